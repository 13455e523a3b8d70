"""What was held of a clip, put back as it was given: a VAE gives neither frames nor sound back
exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SAMPLE_RATE, SAMPLES_PER_STEP
from ..latent import spans
from ..latent.hold import HELD, PICTURES, SOUND
from ..latent.latents import fit_pictures, streams
from ..latent.time_mask import masks_of
from ..log import log

FADE = round(0.01 * SAMPLE_RATE)  # samples, inside a held sound at an edge where another begins


def splice_pictures(frames: Tensor, latent: dict) -> Tensor:
    """Return frames [B, F, H, W, 3] with those in place that the latent holds; changed in place."""
    held = latent.get(PICTURES, ())
    if not held:
        return frames
    video, _ = streams(latent, "samples")
    owners = _owners([its.latent_frames for its in held], video.shape[2])
    is_held = _held_parts(latent, 0)
    for number, its in enumerate(held):
        if its.length != video.shape[2]:
            _warn("pictures held are", "latent frames", its.length, video.shape[2])
            continue
        pixels = None
        for index in its.latent_frames:
            if owners[index] != number or not is_held[index]:
                continue
            for frame in spans.frames_in(index):
                if 0 <= frame - its.first < len(its.pictures):
                    if pixels is None:
                        height, width = frames.shape[2:4]
                        pixels = fit_pictures("images", its.pictures, width, height).to(frames)
                    frames[:, frame] = pixels[frame - its.first]
    return frames


def splice_sound(waveform: Tensor, latent: dict) -> Tensor:
    """Return a sound [B, 1, samples] at 16 kHz with that in place which the latent holds.

    Where another sound goes on at an edge, both are faded into each other over FADE samples.
    """
    held = latent.get(SOUND, ())
    if not held:
        return waveform
    _, audio = streams(latent, "samples")
    steps = audio.shape[2]
    owners = _owners([its.steps for its in held], steps)
    is_held = _held_parts(latent, 1)
    for number, its in enumerate(held):
        if its.length != steps:
            _warn("sound held is", "audio steps", its.length, steps)
            continue
        own = [index for index in its.steps if owners[index] == number and is_held[index]]
        share = _share(own, steps, waveform.shape[-1]).to(waveform)
        waveform = torch.lerp(waveform, its.waveform.to(waveform), share)
    return waveform


def _owners(parts: list[range], length: int) -> list[int | None]:
    """Say which of several holds each latent frame or step belongs to: the last one."""
    owners: list[int | None] = [None] * length
    for number, part in enumerate(parts):
        for index in part:
            if index < length:
                owners[index] = number
    return owners


def _held_parts(latent: dict, stream: int) -> list[bool]:
    """Say which latent frames or steps the masks hold as a whole, in every clip."""
    mask = masks_of(latent)[stream]
    return (mask.transpose(0, 2).flatten(1).amax(dim=1) <= HELD).tolist()


def _share(own: list[int], steps: int, samples: int) -> Tensor:
    """Return how much of each sample is the held sound's, 0 to 1."""
    share = torch.zeros(samples)
    for index in own:
        # The last step ends with the clip.
        stop = samples if index == steps - 1 else (index + 1) * SAMPLES_PER_STEP
        share[index * SAMPLES_PER_STEP : stop] = 1
    ramp = torch.linspace(0, 1, FADE + 2)[1:-1]
    edges = share.diff()
    for edge in (edges > 0).nonzero().flatten().tolist():
        rising = share[edge + 1 : edge + 1 + FADE]  # less where the clip ends before
        rising.copy_(ramp[: len(rising)])
    for edge in (edges < 0).nonzero().flatten().tolist():
        share[edge + 1 - FADE : edge + 1] = ramp.flip(0)
    return share


def _warn(what: str, unit: str, held: int, found: int) -> None:
    log.warning(
        "The %s of a clip of %d %s, this one has %d: it is decoded, and nothing is put back as it "
        "was given.",
        what,
        held,
        unit,
        found,
    )
