"""The estimate of memory against the bytes that are alive in a real forward, counted on the meta
device.
"""

from dataclasses import replace

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import attention_sub_quad
from comfyui_ovi.ovi_model.config import AudioTowerConfig, VideoTowerConfig
from comfyui_ovi.ovi_model.latent import geometry
from comfyui_ovi.ovi_model.network import memory
from comfyui_ovi.ovi_model.network.differentiable import differentiable
from comfyui_ovi.ovi_model.network.model import OviModel
from count_bytes import CountBytes, forward_peak, gradient_peak
from goldens import small_patcher

FUSED = memory.Fused(attention=True, norm=True)
BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
# The towers as released, but for their depth, which tests change; and narrow ones, where small
# terms weigh.
RELEASED = {
    "dim": 3072,
    "ffn_dim": 14336,
    "num_layers": 2,
    "text_dim": 4096,
    "freq_dim": 256,
    "num_heads": 24,
}
NARROW = {**RELEASED, "dim": 128, "ffn_dim": 512, "text_dim": 64, "num_heads": 1, "text_length": 1}
WORDY = {**NARROW, "text_length": 320}


def towers(sizes, patch_hidden=8192):
    audio = AudioTowerConfig(**sizes, in_dim=20, out_dim=20, patch_hidden=patch_hidden)
    return VideoTowerConfig(**sizes, in_dim=48, out_dim=48), audio


def on_meta(video, audio, dtype=BF16, operations=comfy.ops.disable_weight_init):
    return OviModel(video, audio, operations=operations, dtype=dtype, device="meta").requires_grad_(
        False
    )


def latents(width, height, frames, batch=1):
    """Shapes of both latents, and of their pack."""
    cells = geometry.latent_frames(frames)
    video, audio = (
        (batch, 48, cells, height // 16, width // 16),
        (batch, 20, geometry.audio_steps(cells)),
    )
    return [video, audio], (
        batch,
        1,
        sum(torch.Size(shape).numel() for shape in (video, audio)) // batch,
    )


def ratio(size, sizes=RELEASED, dtype=BF16, patch_hidden=8192, **options):
    """The estimate over what is counted."""
    configs = towers(sizes, patch_hidden)
    shapes, pack = latents(*size)
    estimate = memory.memory_required(*configs, pack, dtype, False, FUSED)
    return estimate / forward_peak(on_meta(*configs, dtype), shapes, dtype, **options)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "size", [(704, 704, 121), (960, 960, 121), (960, 960, 241), (1280, 704, 121), (640, 640, 121)]
)
def test_the_estimate_is_the_peak_and_a_tenth_at_most(size, batch):
    assert 1 <= ratio((*size, batch)) < 1.1


@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_in_every_precision(dtype):
    assert 1 <= ratio((704, 704, 121), dtype=dtype) < 1.1


@pytest.mark.parametrize("size", [(704, 704, 121, 2), (512, 512, 121, 2)])
def test_a_time_for_each_frame_fits_too(size):
    assert 1 <= ratio(size, by_frame=True) < 1.1


def test_a_skipped_block_takes_no_more():
    deep = {**RELEASED, "num_layers": 4}
    assert 1 <= ratio((704, 704, 121, 2), deep, ovi_skip_layer=2, cond_or_uncond=[1, 0]) < 1.1


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_norms_that_are_taken_apart_are_counted(dtype):
    """Torch before 2.9 computes them in float32, product by product."""
    configs = towers(RELEASED)
    shapes, pack = latents(960, 960, 121)
    estimate = memory.memory_required(*configs, pack, dtype, False, memory.Fused(True, False))
    assert (
        1 <= estimate / forward_peak(on_meta(*configs, dtype), shapes, dtype, fuse_norm=False) < 1.1
    )


@pytest.mark.parametrize("layers", [2, 8])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_a_gradient_s_estimate_is_the_peak_and_a_fifth_at_most(layers, dtype):
    configs = towers({**RELEASED, "num_layers": layers})
    shapes, pack = latents(704, 704, 121)
    estimate = memory.gradient_memory_required(*configs, pack, dtype)
    counted = gradient_peak(on_meta(*configs, dtype), differentiable, shapes, dtype)
    assert 1 <= estimate / counted < 1.2


def test_depth_makes_no_difference():
    shapes, _ = latents(704, 704, 121)
    two, thirty = (
        forward_peak(
            on_meta(*(replace(tower, num_layers=layers) for tower in towers(RELEASED))),
            shapes,
            BF16,
        )
        for layers in (2, 30)
    )
    assert two == thirty


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        (NARROW, (704, 704, 121, 1)),
        (NARROW, (704, 704, 121, 4)),
        (WORDY, (256, 256, 25, 1)),
        (WORDY, (256, 256, 25, 4)),
    ],
)
def test_what_is_small_in_the_released_model_is_counted(sizes, size):
    """Rotations, latent and prompts."""
    assert 1 <= ratio(size, sizes, patch_hidden=8) < 1.1


@pytest.mark.parametrize("by_frame", [False, True])
@pytest.mark.parametrize(
    "size", [(1280, 704, 121), (704, 704, 121), (512, 512, 49), (256, 256, 25)]
)
def test_eight_bit_weights_are_cast_one_at_a_time(size, by_frame):
    """Few tokens take less than the copy of the largest weight."""
    shapes, pack = latents(*size)
    estimate = memory.memory_required(*towers(RELEASED), pack, BF16, True, FUSED)
    model = on_meta(*towers(RELEASED), FP8, comfy.ops.manual_cast)
    assert 1 <= estimate / forward_peak(model, shapes, BF16, by_frame=by_frame) < 1.1


@pytest.mark.parametrize(("batch", "most"), [(1, 1.3), (2, 1.1)])
@pytest.mark.parametrize("size", [(512, 512, 121), (704, 704, 121)])
def test_attention_in_slices_is_counted_slice_by_slice(size, batch, most, monkeypatch):
    """Core's kernel asks for four times a slice; one clip alone is spared the copies that sort a
    batch by head.
    """
    shapes, pack = latents(*size, batch)
    scores = batch * 24 * memory.SLICE * torch.Size(shapes[0][2:]).numel() / 4 * BF16.itemsize
    monkeypatch.setattr(
        comfy.model_management, "get_free_memory", lambda *_: (4 * scores, 4 * scores)
    )
    kernel = {
        "optimized_attention_override": lambda _original, *args, **kwargs: attention_sub_quad(
            *args, **kwargs
        )
    }
    peak = forward_peak(on_meta(*towers(RELEASED)), shapes, BF16, fuse_attention=False, **kernel)
    assert (
        1
        <= memory.memory_required(*towers(RELEASED), pack, BF16, False, memory.Fused(False, True))
        / peak
        < most
    )


@pytest.mark.parametrize(
    ("shape", "tokens"), [((1, 48, 3, 5, 6), 3 * 3 * 3), ((1, 20, 27), 27), ((1, 1, 27 * 192), 27)]
)
def test_every_form_of_latent_counts_by_its_tokens(shape, tokens):
    video, audio = towers(NARROW, patch_hidden=8)
    same = (1, 48, tokens, 2, 2)
    assert memory.memory_required(
        video, audio, shape, BF16, False, FUSED
    ) == memory.memory_required(video, audio, same, BF16, False, FUSED)


@pytest.mark.parametrize(
    ("fused", "dtype", "factor"), [(True, FP32, 1.0), (False, FP32, 1.0), (True, BF16, 2.5)]
)
def test_core_asks_with_its_attention_and_precision(fused, dtype, factor, monkeypatch):
    base = small_patcher(dtype).model
    monkeypatch.setattr(comfy.model_management, "xformers_enabled", lambda: False)
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: fused)
    base.memory_usage_factor *= factor
    configs = base.diffusion_model.config, base.diffusion_model.audio_model.config
    shape = (2, 1, 48 * 4000)
    kernels = memory.Fused(fused, norm=False)
    expected = factor * memory.memory_required(*configs, shape, dtype, False, kernels)
    assert base.memory_required(shape, cond_shapes={"c_crossattn": [(1, 512, 4096)]}) == expected
    base.manual_cast_dtype = FP16
    assert base.memory_required(shape) == factor * memory.memory_required(
        *configs, shape, FP16, True, kernels
    )


def test_the_counter_follows_what_lives_and_forgets_what_dies():
    weight = torch.zeros(1000)
    with CountBytes() as count:
        kept = weight * 2
        kept.view(10, 100).add_(1)
        del kept
        assert (count.live, count.peak) == (0, 4000)
        pair = weight + 1, weight[:10].clone()
        weight.mul_(2)
    assert (count.live, count.peak) == (4040, 4040)
    del pair
    assert count.live == 0
