"""How much memory a forward takes, counted from what is alive when it takes the most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..config import AUDIO_CHANNELS, AudioTowerConfig, VideoTowerConfig
from .blocks import FFN_TOKENS

# For what is not counted: the sound in a pack, a time for each frame, and what an allocator rounds
# up.
MARGIN = 1.05

# Where no kernel fuses attention, core takes this many queries at a time before it cuts the keys as
# well.
SLICE = 512


class Fused(NamedTuple):
    """What is one kernel, and keeps nothing between its steps."""

    attention: bool
    norm: bool


def memory_required(
    video: VideoTowerConfig,
    audio: AudioTowerConfig,
    shape: Sequence[int],
    dtype: torch.dtype,
    copies: bool,
    fused: Fused,
) -> float:
    """Return the bytes a forward holds at its peak, besides weights and inputs, at any depth.

    shape: of a pack [B, 1, N], a video [B, 48, F, H, W] or a sound [B, 20, L].
    dtype: of the activations; copies: whether weights are copied to it when they are used.
    """
    batch, tokens = shape[0], _tokens(video, shape)
    latent = batch * tokens * video.in_dim * math.prod(video.patch_size) * dtype.itemsize
    texts = 2 * batch * video.text_length * video.dim * dtype.itemsize
    freqs_cis = 2 * tokens * video.head_dim * torch.float32.itemsize
    peak = max(
        _in_attention(video, batch, tokens, dtype, copies, fused),
        _in_ffn(video, batch * tokens, dtype, copies),
        _at_the_end(video, batch * tokens, dtype),
        _at_the_start(audio, dtype),
    )
    return MARGIN * (peak + latent + texts + freqs_cis)


def gradient_memory_required(
    video: VideoTowerConfig, audio: AudioTowerConfig, shape: Sequence[int], dtype: torch.dtype
) -> float:
    """Return the bytes a forward and the gradient of its latents hold at their peak, besides
    weights and inputs: the state before each pair of blocks, which is computed again for its
    gradient, and all of one pair.

    shape: as for `memory_required`. dtype: of the activations. Attention is one kernel.
    """
    tokens = shape[0] * _tokens(video, shape)
    hidden, exact = (
        tokens * video.dim * precision.itemsize for precision in (dtype, torch.float32)
    )
    wide = tokens * video.ffn_dim * dtype.itemsize
    # Counted: the states of a pair that are alive when most are, in either precision, and the
    # FFN's: before its gradient goes through it, or through both attentions.
    of_pair = max(15 * hidden + 4 * exact + 3 * wide, 12 * hidden + 9 * exact)
    weight = max(video.dim * video.ffn_dim * dtype.itemsize, _at_the_start(audio, dtype))
    return MARGIN * (video.num_layers * hidden + of_pair + weight)


def _in_attention(
    video: VideoTowerConfig,
    batch: int,
    tokens: int,
    dtype: torch.dtype,
    copies: bool,
    fused: Fused,
) -> float:
    """The peak for many tokens, in a video block."""
    channels = batch * tokens * video.dim
    hidden = channels * dtype.itemsize
    # The hidden state, query, key, value, what was read; a weight's copy.
    peaks = [5 * hidden + copies * video.dim**2 * dtype.itemsize]
    if not fused.norm:
        # The state, modulated, query, key; and of the key, in float32, a copy and its products with
        # norm and weight.
        states = 2 if dtype == torch.float32 else 3
        peaks.append(4 * hidden + states * channels * torch.float32.itemsize)
    if not fused.attention:
        # The state; query, key, value, and these again by head; what was read. For one slice:
        # scores and their softmax.
        scores = batch * video.num_heads * SLICE * tokens * dtype.itemsize
        peaks.append(8 * hidden + 2 * scores)
    return max(peaks)


def _in_ffn(video: VideoTowerConfig, tokens: int, dtype: torch.dtype, copies: bool) -> float:
    """The state, and of the tokens that go through at once the modulated state and the wide one; a
    weight's copy.
    """
    inside = min(tokens, FFN_TOKENS) * (video.dim + video.ffn_dim)
    weight = copies * video.dim * video.ffn_dim
    return (tokens * video.dim + inside + weight) * dtype.itemsize


def _at_the_end(video: VideoTowerConfig, tokens: int, dtype: torch.dtype) -> float:
    """The state, the velocity in float32, and that packed."""
    velocity = tokens * video.out_dim * math.prod(video.patch_size) * torch.float32.itemsize
    return tokens * video.dim * dtype.itemsize + 2 * velocity


def _at_the_start(audio: AudioTowerConfig, dtype: torch.dtype) -> float:
    """The largest weight, which may be copied to another device or precision; for few tokens."""
    return audio.patch_hidden * audio.dim * audio.patch_kernel * dtype.itemsize


def _tokens(video: VideoTowerConfig, shape: Sequence[int]) -> int:
    """Tokens of one clip; a pack counts as if all of it were video, for its shape does not say
    where sound begins.
    """
    if len(shape) == 5:
        return math.prod(
            math.ceil(size / side) for size, side in zip(shape[2:], video.patch_size, strict=True)
        )
    if shape[1] == AUDIO_CHANNELS:
        return shape[2]
    return math.ceil(math.prod(shape[1:]) / (video.in_dim * math.prod(video.patch_size)))
