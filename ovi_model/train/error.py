"""Clips noised to a level, and how badly the model tells the way back.

Picture and sound have one noise level, as Ovi was trained: with two, its towers lose their sync.
Source: character-ai/Ovi, ovi/ovi_fusion_engine.py, whose sampling is the flow that is learned here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from ..network.attention import extend
from ..network.differentiable import attend_with_gradient
from .clips import Clip

TIMESTEPS = 1000
SQUARES = partial(mse_loss, reduction="none")


@dataclass(frozen=True)
class Noised:
    """One stream of a batch between clip and noise, and what its tower reads."""

    latent: Tensor  # [B, 48, F, h, w] or [B, 20, L]
    velocity: Tensor  # from the clip to the noise, of the same shape
    levels: Tensor  # [B, F] or [B, 1], 0 to 1
    text: Tensor  # [B, T, width]

    def error(self, made: Tensor, compare: Callable) -> Tensor:
        """Compare a velocity with the true one, but for frames that were given clean."""
        errors = compare(made.float(), self.velocity)
        by_time = errors.transpose(1, 2).flatten(2).mean(-1)
        is_noised = (self.levels > 0).expand_as(by_time)
        return by_time[is_noised].mean()


def mean_errors(
    network,
    clips: Sequence[Clip],
    levels: Tensor,
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype,
    compare: Callable = SQUARES,
) -> tuple[Tensor, Tensor]:
    """Return the error of picture and sound, each the mean over clips, with a gradient.

    levels: of each clip's noise [B], 0 to 1. Noise and what is left out come from the generator,
    None for torch's own. Clips of one size run as one batch. dtype: that of the computation.
    compare: two tensors to the error of each number.
    """
    rows = defaultdict(list)
    for row, clip in enumerate(clips):
        rows[clip.shape].append(row)
    sums = torch.zeros(2)
    for own in rows.values():
        batch = noise([clips[row] for row in own], levels[own], generator)
        streams = [_moved(stream, device) for stream in batch]
        made = network(
            [stream.latent.to(dtype) for stream in streams],
            [TIMESTEPS * stream.levels for stream in streams],
            *(stream.text.to(dtype) for stream in streams),
            transformer_options={"optimized_attention_override": attend_with_gradient},
        )
        errors = [stream.error(x, compare) for stream, x in zip(streams, made, strict=True)]
        sums = sums.to(device) + torch.stack(errors) * len(own)
    video, audio = sums / len(clips)
    return video, audio


def noise(
    clips: Sequence[Clip], levels: Tensor, generator: torch.Generator | None
) -> tuple[Noised, Noised]:
    """Return picture and sound of clips of one size at their noise levels [B]."""

    shares = torch.tensor([clip.first_frame for clip in clips])
    is_given = torch.rand(len(clips), generator=generator) < shares
    video = torch.stack([clip.video for clip in clips])
    audio = torch.stack([clip.audio for clip in clips])
    by_frame = levels[:, None].repeat(1, video.shape[2])
    by_frame[is_given, 0] = 0.0
    read = [_text(clip, generator) for clip in clips]
    of_video, of_audio = (_as_long(texts) for texts in zip(*read, strict=True))
    return (
        _mix(video, by_frame, of_video, generator),
        _mix(audio, levels[:, None], of_audio, generator),
    )


def _mix(clip: Tensor, levels: Tensor, text: Tensor, generator) -> Noised:
    added = torch.randn(clip.shape, generator=generator)
    amount = levels.view(len(clip), 1, -1, *[1] * (clip.ndim - 3))
    return Noised(clip + amount * (added - clip), added - clip, levels, text)


def _text(clip: Clip, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return what each tower reads of a clip: its caption, or at times one of what is read without.

    Guidance subtracts what the model makes of a negative prompt. One that training never saw has
    what was learned all the same, and guidance leads away from it.
    """
    if not clip.no_caption or torch.rand((), generator=generator) >= clip.caption_dropout:
        return clip.texts
    return clip.no_caption[torch.randint(len(clip.no_caption), (), generator=generator)]


def _as_long(texts: Sequence[Tensor]) -> Tensor:
    """Join texts [1, T, width], all as long as the longest."""
    longest = max(text.shape[1] for text in texts)
    return torch.cat([extend(text, longest) for text in texts])


def _moved(stream: Noised, device: torch.device) -> Noised:
    return Noised(*(x.to(device) for x in vars(stream).values()))
