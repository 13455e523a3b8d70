"""Reference pictures and voices: frames and audio steps after those of the clip, at times of their
own.

They are put in before every forward and dropped after it, and see the time that all else sees.
Source: Guoxu1233/DreamID-Omni, what its engine and its rope_apply compute for one clip.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import REFERENCE_INTERVAL


class Clock(NamedTuple):
    """How audio steps follow latent frames, and which references come after both."""

    audio_scale: float  # audio steps times this are latent frames
    images: int = 0
    voices: tuple[int, ...] = ()  # audio steps of each
    voice_interval: int = 0  # audio steps from one voice's first step to the next one's
    first_frame: int = 0  # of the latent in its clip

    def frame_times(self, frames: int, device) -> Tensor:
        """Return positions [frames] in latent frames, those of the references last."""
        own = torch.arange(frames - self.images, device=device) + self.first_frame
        references = torch.arange(1, self.images + 1, device=device) * REFERENCE_INTERVAL
        return torch.cat([own, references])

    def step_times(self, steps: int, start: float, device) -> Tensor:
        """Return positions [steps] in audio steps, the clip's from `start` on, the voices' last."""
        own = torch.arange(steps - sum(self.voices), device=device) + start
        voices = [
            torch.arange(length, device=device) + self.voice_interval * (index + 1)
            for index, length in enumerate(self.voices)
        ]
        return torch.cat([own, *voices])


def reference_clock(
    frames: int, steps: int, images: int = 0, voices: tuple[int, ...] = ()
) -> Clock:
    """Return the clock of a clip of so many latent frames and audio steps, and of its references.

    The scale and the interval are rounded to bf16, as the model was trained: 31 and 157 give
    0.197265625 and 760.
    """
    scale = _to_bf16(frames / steps)
    interval = int(_to_bf16(_to_bf16(REFERENCE_INTERVAL) / scale))
    return Clock(scale, images, tuple(voices), interval)


def _to_bf16(number: float) -> float:
    """Round a positive number as bf16 does; a tensor's number would end a compiled graph."""
    part, exponent = math.frexp(number)
    return math.ldexp(round(part * 256), exponent - 8)


class References(NamedTuple):
    """What is put after a clip's latents."""

    images: Tensor | None  # [B or 1, 48, n, H, W], normalised
    voices: Tensor | None  # [B or 1, 20, steps]
    clock: Clock

    def append(self, latents: list[Tensor], times: list[Tensor]) -> tuple[list, list]:
        """Return the latents of picture and sound, and their times, with the references."""
        now = torch.stack([time.reshape(len(time), -1).amax(dim=1) for time in times]).amax(dim=0)
        pairs = zip(latents, times, (self.images, self.voices), strict=True)
        return tuple(zip(*(_append(*pair, now) for pair in pairs), strict=True))

    def drop(self, velocities: list[Tensor]) -> list[Tensor]:
        """Return the velocities of the clip alone."""
        video, audio = velocities
        frames, steps = video.shape[2] - self.clock.images, audio.shape[2] - sum(self.clock.voices)
        return [video[:, :, :frames], audio[:, :, :steps]]


def find_references(latents: list[Tensor], images, voices, voice_steps, clock) -> References | None:
    """Return the references given with the latents of picture and sound, if any.

    clock: else that of the clip's length. Raises ValueError if the clip reaches the first one's
    place.
    """
    if images is None and voices is None:
        return None
    video, audio = latents
    if video.shape[2] > REFERENCE_INTERVAL:
        raise ValueError(
            f"The clip has {video.shape[2]} latent frames, and its references lie from frame "
            f"{REFERENCE_INTERVAL} on: make it {4 * REFERENCE_INTERVAL - 3} frames or shorter, or "
            "let context windows cut it."
        )
    if clock is None:
        count = 0 if images is None else images.shape[2]
        clock = reference_clock(video.shape[2], audio.shape[2], count, voice_steps)
    return References(images, voices, clock)


def _append(latent: Tensor, time: Tensor, references: Tensor | None, now: Tensor):
    if references is None:
        return latent, time
    references = references.to(latent).expand(len(latent), *references.shape[1:])
    if time.ndim > 1:
        time = torch.cat([time, now[:, None].expand(-1, references.shape[2])], dim=1)
    return torch.cat([latent, references], dim=2), time
