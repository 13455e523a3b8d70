"""Core's training node wraps a module's forward in a checkpoint, which keeps nothing of what is
made inside; a pair of blocks is one such forward.
"""

import importlib

import pytest
import torch
from goldens import relative_error, small_configs, small_model


@pytest.fixture
def train():
    """Core's module of training nodes."""
    return importlib.import_module("comfy_extras.nodes_train")


def wrap(train, network):
    """Wrap what the training node of this core wraps: the children of the network."""
    if hasattr(train, "find_modules_at_depth"):
        modules = train.find_modules_at_depth(network, depth=2)
    else:
        modules = train.find_all_highest_child_module_with_forward(network)
    for module in modules:
        train.patch(module)
    return network


def with_blocks(count):
    network = small_model()
    for tower in (network, network.audio_model):
        tower.blocks = tower.blocks[:count]
    return network


def forward(network):
    """Return the picture given and a loss of both velocities."""
    generator = torch.Generator().manual_seed(0)
    video, audio = small_configs()
    text = torch.randn(1, 5, video.text_dim, generator=generator)
    picture = torch.randn(1, video.in_dim, 3, 8, 8, generator=generator).requires_grad_()
    sound = torch.randn(1, audio.in_dim, 40, generator=generator)
    velocities = network([picture, sound], torch.tensor([500.0]), text)
    return picture, sum(x.square().mean() for x in velocities)


def bytes_held(network) -> int:
    """Bytes of activations that a forward keeps for its backward, weights apart."""
    held = {}

    def keep(x):
        if not isinstance(x, torch.nn.Parameter):
            held[x.untyped_storage()._cdata] = (x, x.untyped_storage().nbytes())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = forward(network)
    assert result[1].isfinite()
    return sum(size for _, size in held.values())


def test_nothing_of_a_pair_of_blocks_is_held(train):
    one, three = (bytes_held(with_blocks(count)) for count in (1, 3))
    assert three > 2 * one
    one, three = (bytes_held(wrap(train, with_blocks(count))) for count in (1, 3))
    assert three == one


def test_the_gradient_is_the_same(train):
    gradients = []
    for network in (with_blocks(3), wrap(train, with_blocks(3))):
        picture, loss = forward(network)
        loss.backward()
        gradients.append(picture.grad)
    assert relative_error(*gradients) < 1e-6
