"""Keys and values of frames that are finished, which later blocks of frames read.

Two of a pair's attentions read them: the video tower's self-attention, and the audio tower where it
reads the picture. All else is made anew with every forward.
Source: fudan-generative-vision/Hallo-Live, its causal inference, future_audio_frames 0.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

# In transformer_options.
KEY = "ovi_past"
SELF, OTHER = "self", "other"
READ = {("video", SELF), ("audio", OTHER)}
# Tokens that self-attention of the picture reads at most, the latest ones.
MOST_TOKENS = 32760


class Past:
    """What was kept, by attention and block; a forward adds its own while `is_written`."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype  # to keep them in
        self.is_written = False
        self.kept: dict[tuple[str, str, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def extend(
        self, place: tuple[str, str, int], key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return key and value [B, L, D] after those that were kept at a place."""
        before = self.kept[place]
        if self.is_written:
            before = [*before]
            self.kept[place].append(tuple(x.to(self.device, self.dtype) for x in (key, value)))
        if not before:
            return key, value
        joined = (
            torch.cat([*(pair[i].to(own) for pair in before), own], dim=1)
            for i, own in enumerate((key, value))
        )
        most = MOST_TOKENS if place[1] == SELF else None
        return tuple(x[:, -most:] if most else x for x in joined)


def extend(kind: str, key: Tensor, value: Tensor, transformer_options: dict):
    """Return key and value with the past, where there is one and this attention reads it."""
    past = transformer_options.get(KEY)
    if past is None or (transformer_options["tower"], kind) not in READ:
        return key, value
    place = (transformer_options["tower"], kind, transformer_options["block_index"])
    return past.extend(place, key, value)


def bytes_of(frames: int, tokens: int, dim: int, layers: int, dtype: torch.dtype) -> int:
    """Return the bytes of two caches over so many latent frames of so many tokens each."""
    return len(READ) * 2 * frames * tokens * dim * layers * dtype.itemsize
