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
    """Return the bytes a forward holds at its peak, besides weights and inputs; depth makes no
    difference.

    The peak lies in the FFN of a video block or, for many tokens, in its attention; for few tokens,
    at the start,
    where the largest weight may be copied to another device or precision.
    shape: of a pack [B, 1, N], a video [B, 48, F, H, W] or a sound [B, 20, L]. dtype: of the
    activations.
    copies: whether weights are copied to that precision when they are used.
    """
    batch, tokens = shape[0], _tokens(video, shape)
    hidden = batch * tokens * video.dim * dtype.itemsize
    inside = min(batch * tokens, FFN_TOKENS) * (video.dim + video.ffn_dim) * dtype.itemsize
    attention_weight, ffn_weight = (
        copies * video.dim * width * dtype.itemsize for width in (video.dim, video.ffn_dim)
    )
    weight = audio.patch_hidden * audio.dim * audio.patch_kernel * dtype.itemsize
    # In attention: the hidden state, query, key, value and what was read. In the FFN: the state,
    # and of the tokens that go through at once the modulated state and the wide one. In both: a
    # weight's copy in the precision of activations. At the end: the state, the velocity, and that
    # packed.
    velocity = batch * tokens * video.out_dim * math.prod(video.patch_size) * torch.float32.itemsize
    peaks = [
        5 * hidden + attention_weight,
        hidden + inside + ffn_weight,
        hidden + 2 * velocity,
        weight,
    ]
    if not fused.norm:
        # The state, modulated, query, key; and of the key, in float32, a copy and its products with
        # norm and weight.
        states = 2 if dtype == torch.float32 else 3
        peaks.append(4 * hidden + states * batch * tokens * video.dim * torch.float32.itemsize)
    if not fused.attention:
        # The state; query, key, value, and these again by head; what was read. For one slice:
        # scores and their softmax.
        scores = batch * video.num_heads * SLICE * tokens * dtype.itemsize
        peaks.append(8 * hidden + 2 * scores)
    latent = batch * tokens * video.in_dim * math.prod(video.patch_size) * dtype.itemsize
    texts = 2 * batch * video.text_length * video.dim * dtype.itemsize
    freqs_cis = 2 * tokens * video.head_dim * torch.float32.itemsize
    return MARGIN * (max(peaks) + latent + texts + freqs_cis)


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
