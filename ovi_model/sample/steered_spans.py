"""Which frames of a latent are held while the sound that goes with them is to be made."""

from __future__ import annotations

from typing import NamedTuple

import comfy.utils
import torch
from torch import Tensor

from ..config import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_STEP, TEMPORAL_COMPRESSION
from ..core_facts import unpack_latents


class HeldPicture(NamedTuple):
    """Places in a pack [B, 1, N] of picture and sound, as 1 and 0."""

    frames: Tensor  # held, beyond the first, whose sound is to be made
    sound: Tensor  # to be made, for frames that are held


def find_held_picture(denoise_mask: Tensor | None, shapes: list) -> HeldPicture | None:
    """Return what is held and what is made for it, None if no frame is held whose sound is free.

    denoise_mask [B, 1, N]: the sampler's; 0 is held. shapes: of picture and sound. A frame is held
    if all of it is; a step of sound goes with the frames that are seen while it lasts.
    """
    if denoise_mask is None or len(shapes) != 2:
        return None
    picture, sound = unpack_latents(denoise_mask, shapes)
    held = picture.flatten(3).amax(dim=3).amax(dim=1) == 0  # [B, F]
    free = sound.amax(dim=1) > 0  # [B, L]
    seen = _frames_of_steps(sound.shape[-1], picture.shape[2]).to(held.device)  # [L, F]
    counts = seen.sum(dim=1)
    made = free & (held.float() @ seen.T == counts)
    judged = held & (made.float() @ seen > 0)
    judged[:, 0] = False  # it is given clean, so its prediction says nothing
    made &= judged.any(dim=1, keepdim=True)
    if not made.any():
        return None
    frames = judged[:, None, :, None, None].expand(picture.shape).float()
    steps = made[:, None].expand(sound.shape).float()
    nothing = torch.zeros_like
    return HeldPicture(_pack(frames, nothing(steps)), _pack(nothing(frames), steps))


def _pack(picture: Tensor, sound: Tensor) -> Tensor:
    return comfy.utils.pack_latents([picture, sound])[0]


def _frames_of_steps(steps: int, frames: int) -> Tensor:
    """Say as 1 and 0, [L, F], which latent frames are seen while a step of sound lasts.

    The first latent frame is one frame of the clip, each further one four.
    """
    # Frames of the clip that have passed when a step begins, and when it ends.
    edges = torch.arange(steps + 1) * (SAMPLES_PER_STEP * FRAME_RATE / SAMPLE_RATE)
    latent_edges = (edges - 1) / TEMPORAL_COMPRESSION
    first = (latent_edges[:-1].floor() + 1).clamp(0, frames - 1)
    last = latent_edges[1:].ceil().clamp(0, frames - 1)
    index = torch.arange(frames)
    return ((index >= first[:, None]) & (index <= last[:, None])).float()
