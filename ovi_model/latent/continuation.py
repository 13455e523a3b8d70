"""A clip that goes on from a film: its end, pictures and sound, held at the start of a new clip."""

from __future__ import annotations

import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ..config import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_STEP
from ..load.video_vae import check_video_vae
from . import geometry
from .latents import empty, unnormalised, with_steps
from .linear_prediction import go_on
from .overlap import (
    HELD_FRAMES,
    HELD_LATENT_FRAMES,
    HELD_STEPS,
    SECONDS_BEFORE,
    STEPS_BEFORE,
    heard_until,
    sample_at,
)
from .pictures import is_finite, to_rgb

# Samples at 16 kHz that resampling changes where a sound ends.
EDGE = 64
# Frames a second that count as 24; television's 23.976 drifts a frame in 42 s.
RATE_TOLERANCE = 0.001


def check_frame_rate(fps: float) -> None:
    """Raise ValueError unless a film has Ovi's frame rate."""
    if not abs(fps - FRAME_RATE) <= RATE_TOLERANCE:
        raise ValueError(
            f"fps is {fps:g}; Ovi's clips have {FRAME_RATE} frames a second, and what goes on from "
            f"a film must have its rate. Bring the video to {FRAME_RATE} frames a second first: in "
            "its loader, or in a video editor."
        )


def end_of_sound(waveform: Tensor, rate: int, frames: int) -> Tensor:
    """Return the end [C, samples] of a film's sound at the same rate: half a second before the
    frames held, and what sounds with them. Silence stands for what is before the film.
    """
    start = sample_at(frames - HELD_FRAMES, rate) - round(SECONDS_BEFORE * rate)
    heard = waveform[:, max(0, start) : sample_at(frames, rate)]
    return torch.nn.functional.pad(heard, (max(0, -start), 0))


def sound_to_encode(end: Tensor, length: int) -> Tensor:
    """Return what is encoded [1, samples] for a clip of so many frames, from the end [1, N] of a
    film's sound at 16 kHz, which goes on for a moment before silence follows.

    Cut off, a sound is encoded wrongly for 0.1 s before the cut: its last step has 71 % of the
    error of none in the miniature, 3 % so.
    """
    going_on = go_on(end[0, : heard_until(end, SAMPLE_RATE) - EDGE])[None]
    steps = STEPS_BEFORE + geometry.audio_steps(geometry.latent_frames(length))
    samples = steps * SAMPLES_PER_STEP
    silence = max(0, samples - going_on.shape[1])
    return torch.nn.functional.pad(going_on, (0, silence))[:, :samples]


def continue_film(vae, audio_vae, images: Tensor, sound: Tensor, length: int) -> dict:
    """Return the latent of a clip of so many frames that begins with a film's last ones.

    images [N, H, W, C]: the film; sound [1, samples]: of sound_to_encode, at the rate at which the
    VAE takes sound. All of it is held by hard masks: the first frame clean, the rest noised to the
    level of the run.
    Raises ValueError for pictures or a VAE that cannot be used.
    """
    tail = to_rgb(images[-HELD_FRAMES:])
    height, width = tail.shape[1:3]
    _check_size(width, height)
    if not is_finite(tail):
        raise ValueError(
            "images hold NaN or infinite values in the last frames: the node that made them "
            "failed; check its inputs."
        )
    check_video_vae(vae, "Ovi Continue")
    video, audio = empty(width, height, length, 1)["samples"].unbind()
    video = unnormalised(video)
    video[:, :, :HELD_LATENT_FRAMES] = vae.encode(tail)[:, :, :HELD_LATENT_FRAMES].to(video)
    steps = with_steps(audio_vae.encode(sound[..., None]), STEPS_BEFORE + audio.shape[2])
    audio[..., :HELD_STEPS] = steps[..., STEPS_BEFORE : STEPS_BEFORE + HELD_STEPS].to(audio)
    video_mask = video.new_ones(1, 1, *video.shape[2:])
    audio_mask = audio.new_ones(1, 1, audio.shape[2])
    video_mask[:, :, :HELD_LATENT_FRAMES] = 0
    audio_mask[..., :HELD_STEPS] = 0
    return {
        "samples": NestedTensor([video, audio]),
        "noise_mask": NestedTensor([video_mask, audio_mask]),
    }


def _check_size(width: int, height: int) -> None:
    try:
        geometry.check_size(width, height, 1)
    except ValueError as error:
        raise ValueError(
            f"images are {width} x {height} pixels. {error} Scale and crop the film to such a size "
            "first ('Upscale Image')."
        ) from error
