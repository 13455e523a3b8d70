"""The goldens are sharp: change any one term of the model's equations and a recorded forward no
longer fits.

A mutation replaces a function of the model's modules, or layers of a built model, while a test
runs.
"""

import fnmatch
import itertools
import math
import types

import pytest
import torch
from comfyui_ovi.ovi_model.network import (
    attention,
    blocks,
    fused_ops,
    lock_step,
    model,
    rope,
    towers,
)
from goldens import load, relative_error, small_model
from torch import nn
from torch.nn import functional

TOLERANCE = 5e-6

# Ways to change a function: each takes it and returns another one.


def given(place, change):
    """Change the argument at this place."""
    return lambda original: (
        lambda *args, **named: original(
            *args[:place], change(args[place]), *args[place + 1 :], **named
        )
    )


def returned(change):
    """Change the result."""
    return lambda original: lambda *args, **named: change(original(*args, **named))


def replaced(new):
    """Put another function or constant in its place."""
    return lambda _original: new


def only(number, mutate):
    """Mutate the call of this number, counted from 0."""

    def mutate_one(original):
        mutated, count = mutate(original), itertools.count()
        return lambda *args, **named: (mutated if next(count) == number else original)(
            *args, **named
        )

    return mutate_one


def inside(module, name, mutate):
    """Mutate what the function finds under this name of its module, for as long as it runs."""

    def mutate_outer(original):
        def run(*args, **named):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, name, mutate(getattr(module, name)))
                return original(*args, **named)

        return run

    return mutate_outer


def zero(x):
    return 0 * x


def first_argument(x, *_):
    return x


def one(x):
    return torch.ones_like(x)


def swapped(x):
    """The halves of the last dimension in the other order."""
    return torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1)


def embed_text_then_pad(tower, context):
    return functional.pad(tower.text_embedding(context), (0, 0, 0, 1))


def rms_norm(eps=0.0, power=-0.5):
    """The norm with another epsilon or power, in float32."""
    return lambda norm, x: (
        x * (x.square().mean(-1, keepdim=True) + (eps or norm.eps)) ** power * norm.weight
    )


def unweighted_rms_norm(norm, x):
    return x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt()


def swap_texts(original):
    return lambda network, x, time, text, audio_text, options: original(
        network, x, time, audio_text, text, options
    )


def read_itself(original):
    """A block's read in which the other tower is the same one: its state and its freqs_cis."""
    return lambda block, x, text, freqs_cis, _other, options: original(
        block, x, text, freqs_cis, (x, freqs_cis), options
    )


# Ways to change a layer: each takes it and returns another one.


class Then(nn.Module):
    """A layer whose result is changed."""

    def __init__(self, layer, change):
        super().__init__()
        self.layer, self.change = layer, change

    def forward(self, *args):
        return self.change(self.layer(*args))


def gone(_layer):
    return nn.Identity()


def then(change):
    return lambda layer: Then(layer, change)


def inaccurate(layer):
    """The same with another epsilon."""
    layer.eps = 1e-3
    return layer


def without_weights(layer):
    for weight in layer.parameters():
        weight.zero_()
    return layer


def width_first(patches):
    """Patches [B, D, F, H, W] in the order width, height, frame, in the same box."""
    return patches.permute(0, 1, 4, 3, 2).reshape(patches.shape)


def channels_first(velocity):
    """What is said of a patch of 2 x 2, by channel and then by pixel."""
    return velocity.unflatten(-1, (4, -1)).transpose(-1, -2).flatten(-2)


# What is changed: the owner of a function, its name there, and how.
FUNCTIONS = {
    "half of the channels turn with place": (
        rope,
        "axis_dims",
        replaced(lambda dim: (dim - 2 * (dim // 6), dim // 6, dim // 6)),
    ),
    "the sound's clock is not scaled": (rope, "AUDIO_ROPE_SCALE", replaced(1.0)),
    "the sound begins a step late": (
        towers,
        "audio_freqs_cis",
        lambda original: lambda *args: original(*args[:3], args[3] + 1, *args[4:]),
    ),
    "rotations of another base": (rope, "rope", given(2, lambda theta: 2 * theta)),
    "time: sines before cosines": (towers, "timestep_embedding", returned(swapped)),
    "time: waves of another base": (
        towers,
        "timestep_embedding",
        inside(towers, "ROPE_THETA", lambda theta: 2 * theta),
    ),
    "self-attention: query not rotated": (
        attention.SelfAttention,
        "project",
        inside(attention, "apply_rope", only(0, replaced(first_argument))),
    ),
    "self-attention: key not rotated": (
        attention.SelfAttention,
        "project",
        inside(attention, "apply_rope", only(1, replaced(first_argument))),
    ),
    "attention with one head": (attention, "optimized_attention", given(3, lambda _heads: 1)),
    "fusion: query not rotated": (
        attention.FusionCrossAttention,
        "forward",
        inside(attention, "apply_rope", only(0, replaced(first_argument))),
    ),
    "fusion: key not rotated": (
        attention.FusionCrossAttention,
        "project_other",
        inside(attention, "apply_rope", replaced(first_argument)),
    ),
    "fusion: what is read is subtracted": (
        attention.FusionCrossAttention,
        "forward",
        inside(attention, "attend", only(1, returned(torch.neg))),
    ),
    "modulation without time": (blocks.ModulationParameters, "forward", given(1, zero)),
    "self-attention modulated as the FFN": (
        blocks.Block,
        "modulate",
        returned(lambda modulations: (modulations[1], modulations[1])),
    ),
    "FFN modulated as self-attention": (
        blocks.Block,
        "modulate",
        returned(lambda modulations: (modulations[0], modulations[0])),
    ),
    "self-attention without shift": (
        blocks.Block,
        "attend_self",
        inside(blocks, "modulated_norm", given(1, zero)),
    ),
    "FFN without shift": (
        blocks.Block,
        "feed_forward",
        inside(blocks, "modulated_norm", given(1, zero)),
    ),
    "head without shift": (
        blocks.Head,
        "forward",
        inside(blocks, "modulated_norm", given(1, zero)),
    ),
    "self-attention without scale": (
        blocks.Block,
        "attend_self",
        inside(blocks, "modulated_norm", given(2, zero)),
    ),
    "FFN without scale": (
        blocks.Block,
        "feed_forward",
        inside(blocks, "modulated_norm", given(2, zero)),
    ),
    "head without scale": (
        blocks.Head,
        "forward",
        inside(blocks, "modulated_norm", given(2, zero)),
    ),
    "FFN without GELU": (blocks, "gelu", replaced(first_argument)),
    "FFN in place of the hidden state": (
        blocks.Block,
        "feed_forward",
        inside(blocks, "add_gated", given(0, zero)),
    ),
    "self-attention in place of the hidden state": (
        blocks.Block,
        "attend_self",
        inside(blocks, "add_gated", given(0, zero)),
    ),
    "head without time": (blocks.Head, "forward", given(2, zero)),
    "norm times scale alone": (blocks, "modulated_norm", given(2, lambda scale: scale - 1)),
    "norm without shift": (blocks, "modulated_norm", given(1, zero)),
    "no norm, but shift and scale": (
        fused_ops,
        "functional",
        replaced(
            types.SimpleNamespace(
                **vars(functional) | {"layer_norm": lambda x, *_, **__: x.clone()}
            )
        ),
    ),
    "gates open": (blocks, "add_gated", given(2, one)),
    "RMS norm without weights": (attention, "rms_norm", replaced(unweighted_rms_norm)),
    "RMS norm with another epsilon": (attention, "rms_norm", replaced(rms_norm(eps=1e-3))),
    "RMS norm multiplies by the root": (attention, "rms_norm", replaced(rms_norm(power=0.5))),
    "cross-attention is subtracted": (blocks, "add", given(1, torch.neg)),
    "cross-attention is left out": (blocks, "add", given(1, zero)),
    "FFN with the exact GELU": (blocks, "gelu", replaced(functional.gelu)),
    "rotations backwards": (attention, "apply_rope", given(1, lambda freqs_cis: freqs_cis.mT)),
    "products without what is added": (fused_ops, "_multiply_add", given(2, zero)),
    "text filled up after its embedding": (
        towers.Tower,
        "embed_text",
        replaced(embed_text_then_pad),
    ),
    "audio patches without gate": (
        towers.AudioPatchEmbedding,
        "forward",
        replaced(lambda layer, x: layer.w2(functional.silu(layer.w1(x)))),
    ),
    "audio patches without SiLU": (
        towers.AudioPatchEmbedding,
        "forward",
        replaced(lambda layer, x: layer.w2(layer.w1(x) * layer.w3(x))),
    ),
    "each tower reads itself": (blocks.Block, "read", read_itself),
    "each tower has the other's text": (model.OviModel, "forward", swap_texts),
    "the skipped layer runs": (lock_step, "NEGATIVE", replaced(None)),
}

# What is changed: names of layers as published, of both towers unless at the root, and how.
LAYERS = {
    "self-attention: no norm of queries": ("*blocks.?.self_attn.norm_q", gone),
    "self-attention: no norm of keys": ("*blocks.?.self_attn.norm_k", gone),
    "self-attention: no value layer": ("*blocks.?.self_attn.v", gone),
    "self-attention: no output layer": ("*blocks.?.self_attn.o", gone),
    "cross-attention: no norm of queries": ("*blocks.?.cross_attn.norm_q", gone),
    "cross-attention: no norm of keys": ("*blocks.?.cross_attn.norm_k", gone),
    "cross-attention: no value layer": ("*blocks.?.cross_attn.v", gone),
    "cross-attention: no output layer": ("*blocks.?.cross_attn.o", gone),
    "cross-attention: no norm before": ("*blocks.?.norm3", gone),
    "fusion: no norm before": ("*blocks.?.cross_attn.pre_attn_norm_fusion", gone),
    "fusion: no norm of keys": ("*blocks.?.cross_attn.norm_k_fusion", gone),
    "fusion: no value layer": ("*blocks.?.cross_attn.v_fusion", gone),
    "blocks without modulation": ("*blocks.?.modulation", gone),
    "heads without modulation": ("*head.modulation", without_weights),
    "self-attention: epsilon of queries": ("*blocks.?.self_attn.norm_q", inaccurate),
    "self-attention: epsilon of keys": ("*blocks.?.self_attn.norm_k", inaccurate),
    "cross-attention: epsilon of queries": ("*blocks.?.cross_attn.norm_q", inaccurate),
    "cross-attention: epsilon of keys": ("*blocks.?.cross_attn.norm_k", inaccurate),
    "cross-attention: epsilon before": ("*blocks.?.norm3", inaccurate),
    "fusion: epsilon before": ("*blocks.?.cross_attn.pre_attn_norm_fusion", inaccurate),
    "fusion: epsilon of keys": ("*blocks.?.cross_attn.norm_k_fusion", inaccurate),
    "blocks: epsilon of modulated norms": ("*blocks.?", inaccurate),
    "heads: epsilon of the norm": (("head", "audio_model.head"), inaccurate),
    "text with the exact GELU": ("*text_embedding.1", lambda _layer: nn.GELU()),
    "audio patches without the first SiLU": ("audio_model.patch_embedding.1", gone),
    "time embedding without SiLU": ("*time_embedding.1", gone),
    "time embedding without time": ("*time_embedding.1", then(zero)),
    "time projection without SiLU": ("*time_projection.0", gone),
    "channels of a patch before its pixels": ("head", then(channels_first)),
    "patches in the order of width": ("patch_embedding", then(width_first)),
}


def change_layers(network, patterns, change):
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    names = [
        name
        for name, _ in network.named_modules()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]
    assert names
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, change(network.get_submodule(name)))


def largest_error(network) -> float:
    """Largest error over one recorded forward from an image, with a skipped layer."""
    tensors, about = load("fusion_t32_i2av_slg2")
    time = tensors["t"][:, None].repeat(1, tensors["video"].shape[1])
    time[:, 0] = 0
    options = {"cond_or_uncond": [1], "ovi_skip_layer": about["kwargs"]["slg_layer"]}
    latents = [tensors["video"][None], tensors["audio"].mT[None]]
    texts = (tensors["vid_context"][None], tensors["audio_context"][None])
    with torch.no_grad():
        video, audio = network(latents, [time, tensors["t"]], *texts, options)
    errors = (
        relative_error(video[0], tensors["pred_video"]),
        relative_error(audio[0].mT, tensors["pred_audio"]),
    )
    assert all(math.isfinite(error) for error in errors)
    return max(errors)


def test_every_norm_has_the_reference_s_epsilon():
    norms = [module for module in small_model().modules() if hasattr(module, "eps")]
    assert len(norms) == 2 * (3 * 8 + 1)
    assert {module.eps for module in norms} == {1e-6}


def test_the_model_unchanged_fits():
    assert largest_error(small_model()) <= TOLERANCE


@pytest.mark.parametrize("rebuilt", [rms_norm(), lambda norm, x: norm(x)], ids=["ours", "core's"])
def test_a_norm_written_anew_fits(monkeypatch, rebuilt):
    """So that the mutations of this norm show by their change alone."""
    monkeypatch.setattr(attention, "rms_norm", rebuilt)
    assert largest_error(small_model()) <= TOLERANCE


@pytest.mark.parametrize("mutation", FUNCTIONS)
def test_a_changed_function_shows(monkeypatch, mutation):
    owner, name, mutate = FUNCTIONS[mutation]
    monkeypatch.setattr(owner, name, mutate(getattr(owner, name)))
    assert largest_error(small_model()) > TOLERANCE


@pytest.mark.parametrize("mutation", LAYERS)
def test_a_changed_layer_shows(mutation):
    network = small_model()
    change_layers(network, *LAYERS[mutation])
    assert largest_error(network) > TOLERANCE
