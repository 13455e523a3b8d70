"""What lies between matrix products: each way to compute it gives the same, and overwrites only
where it may.
"""

from types import SimpleNamespace

import comfy.ops
import comfy.quant_ops
import pytest
import torch
from comfy.ldm.flux.math import apply_rope1
from comfyui_ovi.ovi_model.config import VideoTowerConfig
from comfyui_ovi.ovi_model.network import blocks, fused_ops, rope
from goldens import load, relative_error, small_model
from torch.nn import functional

FREQS_CIS = rope.video_freqs_cis(3, 2, 4, 16, "cpu")
KERNELS = getattr(comfy.quant_ops, "ck", None)
with_kernels = pytest.mark.skipif(
    not hasattr(KERNELS, "adaln"), reason="this core has no such kernels"
)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def core_norm(operations=comfy.ops.disable_weight_init, dtype=torch.float32):
    norm = operations.RMSNorm(32, eps=0.1, dtype=dtype).requires_grad_(False)
    norm.weight.copy_(draw(32, seed=9))
    return norm


@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-3)])
def test_modulated_norm_equals_its_equation(dtype, most, timesteps):
    x, shift, scale = (
        draw(2, 6, 8, dtype=dtype),
        draw(2, timesteps, 8, seed=1),
        draw(2, timesteps, 8, seed=2),
    )
    shift_by_token, scale_by_token = (
        x.repeat_interleave(6 // timesteps, 1) for x in (shift, scale)
    )
    expected = (
        functional.layer_norm(x.float(), (8,), eps=0.1) * (1 + scale_by_token) + shift_by_token
    )
    with torch.no_grad():
        plain = fused_ops.modulated_norm(x, shift, scale, 0.1)
        precise = fused_ops.modulated_norm(x, shift, scale, 0.1, torch.float32)
    assert (plain.dtype, precise.dtype) == (dtype, torch.float32)
    assert relative_error(plain, expected) < most
    assert relative_error(precise, expected) < most
    assert torch.equal(fused_ops.modulated_norm(x, shift, scale, 0.1), plain)


@pytest.mark.parametrize("timesteps", [1, 3])
def test_a_gated_update_is_added_in_one_rounding(timesteps):
    x, update, gate = (
        draw(2, 6, 8, dtype=torch.bfloat16),
        draw(2, 6, 8, seed=1).bfloat16(),
        draw(2, timesteps, 8, seed=2),
    )
    expected = (x.float() + update.float() * gate.repeat_interleave(6 // timesteps, 1)).bfloat16()
    with torch.no_grad():
        assert torch.equal(fused_ops.add_gated(x.clone(), update, gate), expected)
    assert torch.equal(fused_ops.add_gated(x, update, gate), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: fused_ops.add(x, draw(2, 24, 32, seed=1)),
        lambda x: fused_ops.add_gated(x, draw(2, 24, 32, seed=1), draw(2, 3, 32, seed=2)),
        fused_ops.gelu,
        lambda x: fused_ops.rms_norm(core_norm(), x),
    ],
    ids=["add", "add_gated", "gelu", "rms_norm"],
)
def test_overwritten_or_not_the_result_is_the_same(change):
    x = draw(2, 24, 32)
    kept = x.clone()
    apart = change(x)
    assert torch.equal(x, kept)
    with torch.no_grad():
        result = change(x)
    assert result.data_ptr() == x.data_ptr()
    assert torch.allclose(result, apart, atol=1e-6)


def patched(norm):
    norm.weight_function = [lambda weight: 2 * weight]
    return norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("norm", "in_place"),
    [
        (core_norm(), True),
        (core_norm(comfy.ops.manual_cast), False),
        (core_norm(comfy.ops.manual_cast, torch.float64), False),
        (patched(core_norm()), False),
    ],
    ids=["plain", "offloaded", "cast", "patched"],
)
def test_a_weight_that_core_changes_on_its_way_is_left_to_core(norm, in_place, dtype):
    norm = norm.to(dtype) if norm.weight.dtype == torch.float32 else norm
    x = draw(2, 24, 32, dtype=dtype)
    with torch.no_grad():
        expected = norm(x)
        actual = fused_ops.rms_norm(norm, x)
    assert (actual.data_ptr() == x.data_ptr()) is in_place
    assert relative_error(actual, expected) < (5e-3 if dtype == torch.bfloat16 else 1e-6)


def test_torch_without_the_kernel_of_a_norm_is_known():
    def operator(returns):
        return SimpleNamespace(
            default=SimpleNamespace(_schema=SimpleNamespace(returns=[None] * returns))
        )

    assert not fused_ops.has_fused_rms_norm(SimpleNamespace())
    assert not fused_ops.has_fused_rms_norm(SimpleNamespace(_fused_rms_norm=operator(1)))
    assert fused_ops.has_fused_rms_norm(SimpleNamespace(_fused_rms_norm=operator(2)))


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 2.5e-3), (torch.float16, 3e-4)]
)
@pytest.mark.parametrize("grad", [True, False])
def test_rotations_equal_core_s(dtype, most, grad):
    x = draw(2, 24, 32, dtype=dtype)
    kept = x.clone()
    expected = apply_rope1(x.float().unflatten(2, (2, -1)), FREQS_CIS).flatten(2)
    with torch.set_grad_enabled(grad):
        turned = fused_ops.apply_rope(x, FREQS_CIS, 2)
    assert turned.dtype == dtype
    assert relative_error(turned, expected) < most
    assert torch.equal(x, kept)


def test_gradients_flow():
    x, update, gate = (draw(1, 24, 32, seed=i).requires_grad_() for i in range(3))
    timesteps = draw(1, 3, 32, seed=3)
    y = fused_ops.modulated_norm(
        fused_ops.add_gated(x, update, gate[:, :3]), timesteps, timesteps, 1e-6
    )
    fused_ops.apply_rope(
        fused_ops.gelu(fused_ops.add(y, update)), FREQS_CIS, 2
    ).square().sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in (x, update, gate))


@pytest.mark.parametrize("timesteps", [1, 4])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [5, 12, 13])
def test_chunks_cover_every_token_once_in_views(size, batch, timesteps):
    x, part = torch.zeros(batch, 24, 8), torch.zeros(batch, timesteps, 8)
    for chunk, own in blocks.chunks(x, blocks.Modulation(part, part, part), size):
        assert chunk.shape[1] <= max(size, 24 // timesteps)
        assert chunk.is_contiguous()
        its_timesteps = 1 if timesteps == 1 else chunk.shape[1] * timesteps // 24
        assert {tensor.shape[:2] for tensor in own} == {(1, its_timesteps)}
        chunk.add_(1)
    assert torch.equal(x, torch.ones_like(x))


@pytest.mark.parametrize("timesteps", [1, 4])
@pytest.mark.parametrize("tokens", [5, 6, 24, 47])
def test_the_ffn_in_chunks_equals_the_whole(tokens, timesteps, monkeypatch):
    block = blocks.Block(
        VideoTowerConfig(8, 16, 1, 48, 48, 8, 8, 1), {"dtype": None, "device": None}, torch.nn
    )
    x = draw(2, 24, 8)
    modulation = blocks.Modulation(*(draw(2, timesteps, 8, seed=i) for i in (1, 2, 3)))
    with torch.no_grad():
        whole = block.feed_forward(x.clone(), modulation)
        monkeypatch.setattr(blocks, "FFN_TOKENS", tokens)
        parts = block.feed_forward(x, modulation)
    assert torch.allclose(whole, parts, atol=1e-6)
    assert parts.data_ptr() == x.data_ptr()


@with_kernels
def test_core_s_kernels_are_taken_only_where_they_are_compiled():
    class Library:
        adaln, apply_rope1 = "adaln", "apply_rope1"

        def __init__(self, available, disabled):
            self.backend = {
                "available": available,
                "disabled": disabled,
                "capabilities": ["adaln", "apply_rope1"],
            }

        def list_backends(self):
            return {
                "eager": {"available": True, "disabled": False, "capabilities": ["adaln"]},
                "cuda": self.backend,
            }

    assert set(KERNELS.list_backends()["eager"]) >= {"available", "disabled", "capabilities"}
    assert fused_ops.compiled_kernel("adaln", library=Library(True, False)) == "adaln"
    assert fused_ops.compiled_kernel("adaln", library=Library(True, True)) is None
    assert fused_ops.compiled_kernel("adaln", library=Library(False, False)) is None
    assert fused_ops.compiled_kernel("adaln", library=None) is None


@pytest.mark.parametrize("grad", [True, False])
def test_core_s_kernels_run_on_cards_and_without_gradients(grad, monkeypatch):
    """The meta device stands for a card."""
    called = []
    monkeypatch.setattr(fused_ops, "FUSED_NORM", lambda x, *_: called.append("norm") or x)
    monkeypatch.setattr(fused_ops, "FUSED_ROPE", lambda x, _: called.append("rotation") or x)
    x = torch.zeros(1, 24, 32, dtype=torch.bfloat16, device="meta", requires_grad=grad)
    part = torch.zeros(1, 1, 32, device="meta")
    with torch.set_grad_enabled(grad):
        normed = fused_ops.modulated_norm(x, part, part, 1e-6)
        turned = fused_ops.apply_rope(x, FREQS_CIS.to("meta"), 2)
    assert called == ([] if grad else ["norm", "rotation"])
    assert (normed.requires_grad, turned.requires_grad) == (grad, grad)
    with torch.no_grad():
        fused_ops.modulated_norm(draw(1, 24, 32), draw(1, 1, 32), draw(1, 1, 32), 1e-6)
        fused_ops.apply_rope(x.detach().float(), FREQS_CIS.to("meta"), 2)
    assert len(called) == (0 if grad else 2)


@with_kernels
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 5e-6), (torch.bfloat16, None)])
@pytest.mark.parametrize("case", ["t2av", "i2av"])
def test_a_forward_through_core_s_kernels_equals_the_reference(case, dtype, most, monkeypatch):
    """As on a card, with what the library computes where nothing is compiled: the call and its
    layout are the same.
    """
    monkeypatch.setattr(fused_ops, "FUSED_NORM", KERNELS.adaln)
    monkeypatch.setattr(fused_ops, "FUSED_ROPE", KERNELS.apply_rope1)
    monkeypatch.setattr(fused_ops, "uses_device_kernels", lambda _: True)
    tensors, _ = load(f"fusion_t32_{case}")
    time = tensors["t"]
    if case == "i2av":
        time = [torch.cat([0 * time, time.expand(tensors["video"].shape[1] - 1)])[None], time]
    given = [
        tensors[name][None].to(dtype) for name in ("video", "audio", "vid_context", "audio_context")
    ]
    with torch.inference_mode():
        video, audio = small_model(dtype)([given[0], given[1].mT], time, given[2], given[3])
    reference = {} if most else load(f"fusion_t32_{case}_bf16")[0]
    for name, velocity in (("pred_video", video[0]), ("pred_audio", audio[0].mT)):
        expected = tensors[name]
        bound = most or relative_error(reference[name], expected)
        assert relative_error(velocity.float(), expected) <= bound, name
