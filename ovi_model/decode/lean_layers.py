"""The layers of ComfyUI's Wan 2.2 decoder in fewer passes over memory, while it decodes.

Core's own normalisation reads and writes its input four times over, and each convolution's input is
copied once behind the frames before it and, on older cores, once more into a frame of zeros. Here a
normalisation is one pass where the card has it fused, its activation is written where the
convolution reads it, and borders are left to the convolution. Weights, order and caches stay
core's; a first latent frame, before which there is nothing, goes through core's own layers.

Source of the mathematics: ComfyUI, comfy/ldm/wan/vae.py and vae2_2.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import comfy.model_management
import torch
from comfy.ldm.wan import vae, vae2_2
from torch import Tensor, nn
from torch.nn import functional

from ..log import log
from ..network.fused_ops import FUSED_RMS_NORM

# Frames that a causal convolution sees before its own.
FRAMES_BEFORE = 2
# As torch.nn.functional.normalize has it.
SMALLEST_NORM = 1e-12
# Widths, latent frames and latent pixels of the decoder on which core's layers are tried.
TRIED_WIDTH, TRIED_LATENT = 2, (1, 4, 4, 2, 3)


@contextmanager
def lean_layers(decoder: nn.Module) -> Iterator[None]:
    """While open, the layers of a decoder run as the functions here do.

    A decoder of another class, and every decoder of a core whose layers compute something else,
    stays as it is; so does all where gradients are asked for, for memory is written over.
    """
    replaces = is_lean(decoder) and not torch.is_grad_enabled()
    with _replaced(decoder) if replaces else nullcontext():
        yield


@contextmanager
def _replaced(decoder: nn.Module) -> Iterator[None]:
    layers = [layer for layer in decoder.modules() if _is_known(layer)]
    for layer in layers:
        layer.forward = functools.partial(LEAN[type(layer)], layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def is_lean(decoder: nn.Module) -> bool:
    """Whether the layers of a decoder are replaced while it decodes."""
    return type(decoder) is vae2_2.Decoder3d and agrees_with_core()


def _is_known(layer: nn.Module) -> bool:
    """Whether a layer is of a class known here and not replaced by somebody else."""
    return type(layer) in LEAN and "forward" not in vars(layer)


@functools.cache
def agrees_with_core() -> bool:
    """Whether a small decoder of this core makes the same frames with its own layers and with
    these; tried once.
    """
    decoder = _small_decoder()
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(TRIED_LATENT, generator=generator)
    try:
        with torch.inference_mode():
            expected = _decode(decoder, latent)
            with _replaced(decoder):
                made = _decode(decoder, latent)
        agrees = torch.allclose(made, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        agrees = False
    if not agrees:
        log.info("this ComfyUI's Wan 2.2 decoder is newer than this extension; it runs as it is.")
    return agrees


def _small_decoder() -> nn.Module:
    """A decoder of random weights; its attention, which is not replaced, may need a card."""
    decoder = vae2_2.Decoder3d(TRIED_WIDTH, TRIED_LATENT[1], temperal_upsample=[True, True, False])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in decoder.parameters():
            fan_in = weight[0].numel() if weight.ndim > 1 and weight[0].numel() > 1 else 1
            weight.normal_(std=fan_in**-0.5, generator=generator)
    decoder.middle[1].optimized_attention = lambda _query, _key, value: value
    return decoder


def _decode(decoder: nn.Module, latent: Tensor) -> Tensor:
    """Decode frame by frame, as core's VAE does."""
    cache = [None] * vae2_2.count_conv3d(decoder)
    steps = [
        decoder(frame, feat_cache=cache, feat_idx=[0], first_chunk=number == 0)
        for number, frame in enumerate(latent.split(1, dim=2))
    ]
    return torch.cat(steps, dim=2)


def normalise(norm: vae.RMS_norm, x: Tensor) -> Tensor:
    """Return x [B, C, ...] scaled to a mean square of one over its channels, times the weights."""
    if not norm.channel_first or norm.bias is not None:
        return vae.RMS_norm.forward(norm, x)
    weight, channels = norm.gamma.to(x), x.shape[1]
    if fuses_rms_norm(x) and _channels_are_last(x):
        eps = SMALLEST_NORM**2 / channels
        rows = x.movedim(1, -1)
        return functional.rms_norm(rows, (channels,), weight.flatten(), eps).movedim(-1, 1)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(SMALLEST_NORM)
    return (x / length.div_(norm.scale)).mul_(weight)


def fuses_rms_norm(x: Tensor) -> bool:
    """Whether torch has RMSNorm as one kernel of x's device; "meta" counts for a card."""
    return FUSED_RMS_NORM and x.device.type in ("cuda", "meta")


def causal(
    conv: vae.CausalConv3d, x: Tensor, cache_x=None, cache_list=None, cache_idx=None
) -> Tensor:
    """Convolve x [B, C, T, H, W] after the frames of cache_x, or of a place in a list, if any."""
    if conv.kernel_size[0] == 1:
        return _convolve(conv, x)
    if cache_x is None:
        return vae.CausalConv3d.forward(conv, x, None, cache_list, cache_idx)
    extended, place = _after(cache_x, x)
    place.copy_(x)
    return _convolve(conv, extended)


def residual(block: vae2_2.ResidualBlock, x: Tensor, feat_cache=None, feat_idx=[0]) -> Tensor:
    """Two convolutions of x [B, C, T, H, W], each of what is normalised and activated, beside a
    shortcut.
    """
    if feat_cache is None or feat_cache[feat_idx[0]] is None:
        return vae2_2.ResidualBlock.forward(block, x, feat_cache, feat_idx)
    made = x
    for norm, conv in ((0, 2), (3, 6)):
        extended, place = _after(_take(feat_cache, feat_idx), made)
        torch.ops.aten.silu.out(block.residual[norm](made), out=place)
        del made, place
        made = _convolve_and_keep(block.residual[conv], extended, feat_cache, feat_idx)
        del extended
    return made.add_(block.shortcut(x))


def resample(layer: vae2_2.Resample, x: Tensor, feat_cache=None, feat_idx=[0]) -> Tensor:
    """Enlarge x [B, C, T, H, W] to twice its height and width, and time where the layer does."""
    in_time = layer.mode == "upsample3d"
    if layer.mode not in ("upsample2d", "upsample3d") or (
        in_time and (feat_cache is None or feat_cache[feat_idx[0]] is None)
    ):
        return vae2_2.Resample.forward(layer, x, feat_cache, feat_idx)
    if in_time:
        extended, place = _after(_take(feat_cache, feat_idx), x)
        place.copy_(x)
        pairs = _convolve_and_keep(layer.time_conv, extended, feat_cache, feat_idx)
        frames = _interleave(pairs)
    else:
        frames = x.transpose(1, 2).flatten(0, 1)
    return layer.resample(frames).unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def up_block(
    block: vae2_2.Up_ResidualBlock, x: Tensor, feat_cache=None, feat_idx=[0], first_chunk=False
) -> Tensor:
    """Residual blocks and an enlargement of x [B, C, T, H, W], beside x itself repeated."""
    made = x
    for layer in block.upsamples:
        made = layer(made, feat_cache, feat_idx)
    shortcut = block.avg_shortcut
    if shortcut is None:
        return made
    repeated = _repeated(shortcut, x)
    if first_chunk or repeated is None:
        return made.add_(shortcut(x, first_chunk))
    time, side = shortcut.factor_t, shortcut.factor_s
    blocks = made.unflatten(4, (-1, side)).unflatten(3, (-1, side)).unflatten(2, (-1, time))
    blocks.add_(repeated)
    return made


def _repeated(shortcut: vae2_2.DupUp3D, x: Tensor) -> Tensor | None:
    """Return what core's shortcut makes of x, [B, C, T, t, H, s, W, s] with a size of one where it
    repeats; None where it repeats in another way.
    """
    sizes, left = [], shortcut.repeats
    for size in (shortcut.factor_s, shortcut.factor_s, shortcut.factor_t):
        sizes.insert(0, 1 if left % size == 0 else size)
        left //= size if left % size == 0 else 1
    if left != 1 or x.shape[1] != shortcut.out_channels * sizes[0] * sizes[1] * sizes[2]:
        return None
    return x.unflatten(1, (shortcut.out_channels, *sizes)).permute(0, 1, 5, 2, 6, 3, 7, 4)


def memory_order(x: Tensor) -> torch.memory_format:
    """Return the order of memory in which what x is made of is convolved.

    Channels last is that of half precision's own kernels, on NVIDIA's cards and on processors;
    benchmarks/RESULTS.md says what was timed, and what was not.
    """
    on_cuda = x.device.type == "cuda" and comfy.model_management.is_nvidia()
    is_half = x.dtype in (torch.bfloat16, torch.float16)
    if is_half and (on_cuda or x.device.type in ("cpu", "meta")):
        return torch.channels_last_3d
    return torch.contiguous_format


def _channels_are_last(x: Tensor) -> bool:
    return x.movedim(1, -1).is_contiguous()


def _take(cache: list, index: list[int]) -> Tensor | None:
    """Take the frames of before out of their place; core marks with a word where there is none."""
    before, cache[index[0]] = cache[index[0]], None
    return None if isinstance(before, str) else before


def _after(before: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return room for x behind the frames of before [B, C, 0 to 2, H, W], filled up with zeros to
    two; and the part of it that is x's.
    """
    shape = *x.shape[:2], FRAMES_BEFORE + x.shape[2], *x.shape[3:]
    extended = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_order(x))
    missing = FRAMES_BEFORE - (0 if before is None else before.shape[2])
    extended[:, :, :missing].zero_()
    if before is not None:
        extended[:, :, missing:FRAMES_BEFORE].copy_(before)
    return extended, extended[:, :, FRAMES_BEFORE:]


def _convolve_and_keep(
    conv: vae.CausalConv3d, extended: Tensor, cache: list, index: list[int]
) -> Tensor:
    """Convolve, and keep the last frames for what comes next."""
    cache[index[0]] = extended[:, :, -FRAMES_BEFORE:].clone()
    index[0] += 1
    return _convolve(conv, extended)


def _convolve(conv: vae.CausalConv3d, extended: Tensor) -> Tensor:
    """Convolve frames, with those before them; the borders of height and width are zeros."""
    padding = conv.padding
    conv.padding = (0, *(size // 2 for size in conv.kernel_size[1:]))
    try:
        return super(vae.CausalConv3d, conv).forward(extended)
    finally:
        conv.padding = padding


def _interleave(pairs: Tensor) -> Tensor:
    """Return frames [B * 2 T, C, H, W] of pairs [B, 2 C, T, H, W], in the order of time."""
    apart = pairs.unflatten(1, (2, -1))
    if _channels_are_last(pairs):
        return apart.permute(0, 3, 1, 4, 5, 2).flatten(0, 2).movedim(-1, 1)
    return apart.permute(0, 3, 1, 2, 4, 5).flatten(0, 2)


LEAN = {
    vae.RMS_norm: normalise,
    vae.CausalConv3d: causal,
    vae2_2.ResidualBlock: residual,
    vae2_2.Resample: resample,
    vae2_2.Up_ResidualBlock: up_block,
}
