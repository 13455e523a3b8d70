"""Pictures that a clip keeps at their frames: encoded into the latent, held by its mask, and
carried beside it as they were given.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION
from ..load.video_vae import check_video_vae
from . import spans
from .hold import CLEAN, PICTURES
from .latents import fit_pictures, streams, unnormalised
from .time_mask import masks_of, with_streams

# How the model gets a keyframe, by the choice of a node.
KEYFRAMES = {"clean": CLEAN, "renoised": 0.0}


class HeldPictures(NamedTuple):
    """Pictures as they were given, and their place."""

    pictures: Tensor  # [N, H, W, C], 0 to 1
    first: int  # frame of the clip that the first picture is
    latent_frames: range  # that are held
    length: int  # latent frames of the clip


def hold_pictures(
    vae, latent: dict, pictures: Tensor, first: int, strength: float, keyframe: str
) -> dict:
    """Return a latent that holds pictures [N, H, W, C] from a frame on; negative: from the end.

    One picture holds the latent frame that its frame is part of; several, those that lie in their
    span as a whole. strength: 1 holds, less lets as much be made anew; keyframe: one of KEYFRAMES.
    Raises ValueError for pictures that cannot be used or do not lie in the clip.
    """
    video, audio = streams(latent, "latent")
    length = video.shape[2]
    height, width = (size * SPATIAL_COMPRESSION for size in video.shape[3:])
    pixels = fit_pictures("images", pictures, width, height)
    check_video_vae(vae, "Ovi Hold Pictures")
    first = _check_place(first, len(pictures), spans.frames_of(length))
    is_keyframe = len(pictures) == 1 and first > 0
    if is_keyframe:
        held = range(spans.holding(first), spans.holding(first) + 1)
    else:
        held = spans.latent_frames_within(first, first + len(pictures))
    if not held:
        raise ValueError(
            f"images are {len(pictures)} frames from frame {first} on, and none of the clip's "
            "latent frames lies in them as a whole: those are frame 0, then 1 to 4, 5 to 8 and so "
            "on. Give more frames, or one picture."
        )
    video = video.clone() if video.any() or audio.any() else unnormalised(video)
    encoded = _encode_still(vae, pixels) if is_keyframe else _encode(vae, pixels, first, held)
    video[:, :, held.start : held.stop] = encoded.to(video)
    video_mask, audio_mask = masks_of(latent)
    is_clean = is_keyframe and strength == 1
    value = KEYFRAMES[keyframe] if is_clean else 1 - strength
    video_mask[:, :, held.start : held.stop] = value
    given = HeldPictures(pictures, first, held, length)
    carried = (*latent.get(PICTURES, ()), *([given] if strength == 1 else []))
    return with_streams(latent, (video, audio), (video_mask, audio_mask)) | {PICTURES: carried}


def _check_place(first: int, count: int, frames: int) -> int:
    """Return the frame that the first of the pictures is, counted from the clip's start."""
    place = first + frames if first < 0 else first
    if not 0 <= place < frames:
        raise ValueError(
            f"start is frame {first}, outside the clip, whose frames are 0 to {frames - 1}, or "
            f"counted from the end {-frames} to -1."
        )
    if place + count > frames:
        raise ValueError(
            f"images are {count} frames from frame {place} on, but the clip ends with frame "
            f"{frames - 1}: {place + count - frames} too many. Start earlier, give fewer frames, "
            "or make the clip longer."
        )
    return place


def _encode_still(vae, picture: Tensor) -> Tensor:
    """Return the latent frame [1, 48, 1, H, W] of a picture [1, H, W, 3] that stands still: four
    frames of it, after one.
    """
    return vae.encode(picture.repeat(1 + TEMPORAL_COMPRESSION, 1, 1, 1))[:, :, 1:]


def _encode(vae, pixels: Tensor, first: int, held: range) -> Tensor:
    """Return the latent frames held [1, 48, N, H, W] of pictures from a frame on."""
    start = spans.frames_in(held.start).start - first
    stop = spans.frames_in(held.stop - 1).stop - first
    if held.start == 0:
        return vae.encode(pixels[:stop])
    # The VAE begins with a frame alone: the one before, or the first of them once more.
    before = pixels[max(0, start - 1)][None]
    return vae.encode(torch.cat([before, pixels[start:stop]]))[:, :, 1:]
