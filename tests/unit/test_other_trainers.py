"""What diffusion-pipe calls of ComfyUI to train a model, on the miniature, and its files in core's
loader.

It loads with `comfy.sd.load_diffusion_model`, puts PEFT's adapters beside every linear layer inside
the blocks, found by the name of their class, runs the model in layers, a block at a time, each in
a checkpoint, and saves `diffusion_model.<layer>.lora_A.weight` and `lora_B`.
Source: tdrussell/diffusion-pipe, models/base.py (ComfyPipeline), models/minimax_h3.py and
utils/saver.py.
"""

import inspect
import logging
import sys
from types import SimpleNamespace

import comfy.sd
import comfy.utils
import pytest
import torch
from comfyui_ovi.ovi_model.load import miniature
from comfyui_ovi.ovi_model.network.towers import Stream
from comfyui_ovi.ovi_model.train import core_trainer
from goldens import relative_error
from safetensors.torch import save_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from weights import seeded

PATH = str(miniature.FOLDER / miniature.MODEL)
RANK, STEPS = 4, 3


class Adapted(nn.Module):
    """A linear layer with an adapter beside it, its parts named as PEFT names them; alpha is the
    rank.
    """

    def __init__(self, layer: nn.Linear, name: str):
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, RANK, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(RANK, layer.out_features, bias=False)})
        self.lora_A["default"].weight.data = 0.1 * seeded(name, (RANK, layer.in_features))
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def load():
    """The model as it is loaded there."""
    takes = inspect.signature(comfy.sd.load_diffusion_model).parameters
    newer = {"disable_dynamic": True} if "disable_dynamic" in takes else {}
    options = {"dtype": torch.float32}
    patcher = comfy.sd.load_diffusion_model(PATH, model_options=options, **newer)
    patcher.set_model_compute_dtype(torch.float32)
    with torch.no_grad():
        patcher.patch_model()
    return patcher.model.diffusion_model.train()


def add_adapters(network) -> list[str]:
    """Put adapters beside the linear layers of all blocks; return the layers' names."""
    names = [
        f"{block_name}.{name}"
        for block_name, block in network.named_modules()
        if type(block).__name__ == "Block"
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    network.requires_grad_(False)
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, Adapted(network.get_submodule(name), name))
    return names


def to_file(network) -> dict[str, torch.Tensor]:
    """What is trained, under the names it has in the file."""
    return {
        "diffusion_model." + name.replace(".default", ""): weight.detach()
        for name, weight in network.named_parameters()
        if weight.requires_grad
    }


def batch(network):
    video = seeded("video", (2, 48, 3, 4, 4))
    audio = seeded("audio", (2, 20, 10))
    text = seeded("text", (2, 5, network.config.text_dim))
    return [video, audio], torch.tensor([900.0, 300.0]), text


def in_layers(network):
    """Velocities, with a checkpoint around every pair of blocks."""
    latents, time, text = batch(network)
    towers = (network, network.audio_model)
    embedded = [
        tower.embed(Stream(tower, latent, time, tower.embed_text(text), None), {})
        for tower, latent in zip(towers, latents, strict=True)
    ]
    hidden = tuple(its.hidden for its in embedded)
    inputs = tuple(its.inputs for its in embedded)
    for block, partner in zip(*(tower.blocks for tower in towers), strict=True):
        hidden = checkpoint(block, hidden, inputs, {}, partner, use_reentrant=False)
    return [
        tower.unembed(x, its.time, latent.shape)
        for tower, x, its, latent in zip(towers, hidden, embedded, latents, strict=True)
    ]


def whole(network):
    latents, time, text = batch(network)
    return network(latents, time, text)


def loss_of(velocities):
    return sum((x - seeded(str(x.shape), x.shape)).square().mean() for x in velocities)


@pytest.fixture(scope="module")
def trained():
    """A network with adapters after a few steps."""
    network = load()
    names = add_adapters(network)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    losses, unmoved = [], set()
    for _ in range(STEPS):
        loss = loss_of(in_layers(network))
        loss.backward()
        gradients = {name: x.grad for name, x in network.named_parameters() if x.requires_grad}
        unmoved = {name for name, x in gradients.items() if x is None or not x.any()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return SimpleNamespace(network=network, names=names, losses=losses, unmoved=unmoved)


def test_every_linear_layer_of_every_block_is_trained(trained):
    """Of both towers and of their fusion; no gradient is lost on the way."""
    assert len(trained.names) == 96
    for part in ("audio_model.blocks.", "_fusion", ".ffn."):
        assert any(part in name for name in trained.names), part
    assert trained.unmoved == set()
    assert trained.losses[-1] < trained.losses[0]


def test_layer_by_layer_is_the_same_as_at_once(trained):
    for one, other in zip(in_layers(trained.network), whole(trained.network), strict=True):
        assert relative_error(one.detach(), other.detach()) < 1e-6


def test_core_s_loader_patches_every_pair_of_its_file(trained, tmp_path, caplog):
    """What 'Load LoRA' calls; the model with the file makes what the model with adapters made."""
    weights = to_file(trained.network)
    assert len(weights) == 2 * len(trained.names)
    assert f"diffusion_model.{trained.names[0]}.lora_A.weight" in weights
    save_file(weights, tmp_path / "adapter_model.safetensors")

    patcher = comfy.sd.load_diffusion_model(PATH, model_options={"dtype": torch.float32})
    file = comfy.utils.load_torch_file(str(tmp_path / "adapter_model.safetensors"), safe_load=True)
    with caplog.at_level(logging.WARNING):
        patched, _ = comfy.sd.load_lora_for_models(patcher, None, file, 1.0, 0.0)
    assert "not loaded" not in caplog.text
    assert {*patched.patches} == {f"diffusion_model.{name}.weight" for name in trained.names}

    with torch.no_grad():
        wanted = whole(trained.network)
        plain = whole(patcher.model.diffusion_model)
        patched.load(torch.device("cpu"))
        found = whole(patched.model.diffusion_model)
    for x, y, without in zip(found, wanted, plain, strict=True):
        assert relative_error(x, y) < 1e-5
        assert relative_error(without, y) > 1e-2


def test_a_trainer_of_core_that_does_not_load_keeps_no_node_of_ours(monkeypatch, caplog):
    def fail(_name):
        raise OSError("a library is missing")

    monkeypatch.setattr(core_trainer.importlib, "import_module", fail)
    monkeypatch.delitem(sys.modules, "nodes", raising=False)
    assert core_trainer.find_trainer() is None
    assert "a library is missing" in caplog.text
