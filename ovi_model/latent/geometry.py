"""Lengths and sizes: pixels and frames of a clip to frames and steps of its latents, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import (
    AUDIO_CHANNELS,
    AUDIO_STEPS_PER_INTERVAL,
    FRAME_RATE,
    PIXEL_STEP,
    SAMPLE_RATE,
    SAMPLES_PER_STEP,
    SPATIAL_COMPRESSION,
    TEMPORAL_COMPRESSION,
    VIDEO_CHANNELS,
)


def latent_frames(frames: int) -> int:
    """Frames of a clip (4n + 1) -> frames of its video latent."""
    return (frames - 1) // TEMPORAL_COMPRESSION + 1


def audio_steps(latent_frames: int) -> int:
    """Latent frames -> steps of the audio latent that lasts as long; 31 -> 157, 61 -> 314."""
    return max(1, round((latent_frames - 1) * AUDIO_STEPS_PER_INTERVAL))


def is_pair(shapes: list[torch.Size]) -> bool:
    """Whether shapes are those of a video [B, 48, F, H, W] and an audio [B, 20, L]."""
    return [(len(shape), *shape[1:2]) for shape in shapes] == [
        (5, VIDEO_CHANNELS),
        (3, AUDIO_CHANNELS),
    ]


def check_equally_long(sound: str, latent_frames: int, steps: int) -> None:
    """Raise ValueError, naming the sound, unless it lasts as long as the picture.

    A recording has as many steps as its seconds take, in short clips more than the model counts;
    encoders round either by one.
    """
    counted = audio_steps(latent_frames)
    recorded = math.ceil(_picture_seconds(latent_frames) * SAMPLE_RATE / SAMPLES_PER_STEP)
    if not max(1, counted - 1) <= steps <= max(counted, recorded) + 1:
        raise ValueError(say_lengths(sound, latent_frames, steps))


def say_lengths(sound: str, latent_frames: int, steps: int) -> str:
    """Say how long a sound and a picture last, and how to make them equal."""
    seconds = steps * SAMPLES_PER_STEP / SAMPLE_RATE
    return (
        f"{sound} has {steps} steps, but a video latent of {latent_frames} latent frames needs "
        f"{audio_steps(latent_frames)}: the sound lasts {seconds:.2f} s, the picture "
        f"{_picture_seconds(latent_frames):.2f} s. Make both with one 'Ovi Latent'. Cut a finished "
        "clip after 'Ovi Decode', where frames and sound are cut by seconds; to cut its latent, "
        "take it apart with 'Ovi Separate Latent' before, cut both parts alike, and put them "
        "together with 'Ovi Concat Latent'."
    )


def _picture_seconds(latent_frames: int) -> float:
    return max(0, (latent_frames - 1) * TEMPORAL_COMPRESSION + 1) / FRAME_RATE


def video_samples(frames: int) -> int:
    """Frames at 24 fps -> audio samples at 16 kHz."""
    return round(frames * SAMPLE_RATE / FRAME_RATE)


def check_size(width: int, height: int, frames: int) -> None:
    """Raise ValueError, with the two nearest values that work, for a size or length that the model
    does not have.
    """
    for name, pixels in (("width", width), ("height", height)):
        if pixels < PIXEL_STEP or pixels % PIXEL_STEP:
            nearest = _nearest(pixels, PIXEL_STEP, PIXEL_STEP)
            raise ValueError(
                f"The {name} is {pixels} pixels; it must be a multiple of {PIXEL_STEP}: {nearest}."
            )
    if frames < 1 or (frames - 1) % TEMPORAL_COMPRESSION:
        nearest = _nearest(frames, TEMPORAL_COMPRESSION, 1)
        raise ValueError(f"The length is {frames} frames; it must be 4n + 1: {nearest}.")


def _nearest(value: int, step: int, first: int) -> str:
    """Name the two nearest of first, first + step, first + 2 step..."""
    below = first + max(0, (value - first) // step) * step
    return f"{below} or {below + step}"


def size_for_area(width: int, height: int, area: int) -> tuple[int, int]:
    """Return width and height in pixels, multiples of 32, nearest to an area and then to the
    image's proportions.

    Source: character-ai/Ovi, ovi/utils/processing_utils.py, preprocess_image_tensor.
    """
    proportion = width / height
    # In patches, of 32 x 32 pixels.
    middle = round(math.sqrt(max(1, area // PIXEL_STEP**2) / proportion))
    heights = range(max(1, middle - 3), middle + 4)
    candidates = [(round(patches * proportion), patches) for patches in heights]
    scale = math.sqrt(area / (width * height)) / PIXEL_STEP
    candidates.append((round(width * scale), round(height * scale)))
    sizes = [
        (max(1, across) * PIXEL_STEP, max(1, down) * PIXEL_STEP) for across, down in candidates
    ]
    return min(
        sizes,
        key=lambda size: (abs(size[0] * size[1] - area), abs(size[0] / size[1] - proportion)),
    )


def empty_latents(
    width: int, height: int, frames: int, batch_size: int, device
) -> tuple[Tensor, Tensor]:
    """Return zeros: video [B, 48, latent frames, H / 16, W / 16] and audio [B, 20, steps]."""
    time = latent_frames(frames)
    size = (height // SPATIAL_COMPRESSION, width // SPATIAL_COMPRESSION)
    video = torch.zeros(batch_size, VIDEO_CHANNELS, time, *size, device=device)
    return video, torch.zeros(batch_size, AUDIO_CHANNELS, audio_steps(time), device=device)
