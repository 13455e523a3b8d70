"""A new clip joined to the film that it goes on from: by time, its sound faded in where both have
the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import FRAME_RATE
from ..latent.overlap import HELD_FRAMES, heard_until, sample_at
from ..latent.pictures import check_pictures, is_finite, to_rgb
from ..log import log
from .sound import Sound, resample

FADE = 0.040  # seconds, up to the end of the film's sound
MOST_SHIFT = 0.008  # seconds
MOST_GAIN = 10 ** (6 / 20)

SILENT = 10 ** (-50 / 20)  # root mean square, below which neither level nor time is compared
# Of the normalised correlation: below the first, both sounds are unlike; a shift must gain the
# second.
ALIKE, WORTH_A_SHIFT = 0.5, 0.01
# Seconds by which a sound may be longer or shorter than its pictures; 25 frames a second taken for
# 24 are off by that in 2.5 s.
LENGTH_TOLERANCE = 0.1
# Mean difference of the frames that both clips show; a VAE leaves a fifth of it.
SAME_PICTURES = 0.15


def check_film(images_name: str, images: Tensor, audio_name: str, sound: Sound) -> None:
    """Raise ValueError, with the inputs' names, unless pictures [N, H, W, C] and a sound can go on:
    long enough, and of one length at 24 frames a second.
    """
    check_pictures(images_name, images)
    if len(images) < HELD_FRAMES:
        raise ValueError(
            f"{images_name} is {len(images)} frames: a clip goes on from the last {HELD_FRAMES} of "
            "another. Give a longer clip; 'Ovi Latent' starts one from a picture."
        )
    seen, heard = len(images) / FRAME_RATE, sound.waveform.shape[1] / sound.rate
    if abs(seen - heard) > LENGTH_TOLERANCE:
        raise ValueError(
            f"{audio_name} lasts {heard:.2f} s, but the {len(images)} frames of {images_name} last "
            f"{seen:.2f} s at {FRAME_RATE} a second. Connect pictures and sound of one clip. Bring "
            f"a video of another frame rate to {FRAME_RATE} frames a second first; fill a sound "
            "that ends before its pictures with silence ('Audio Concat' with 'Empty Audio')."
        )


def own_frames(images: Tensor, new_images: Tensor) -> Tensor:
    """Return what a new clip [M, H, W, C] adds to a film [N, H, W, C]: all but the frames held.

    Raises ValueError for another size, nothing new, or numbers that are none.
    """
    size, new_size = (f"{x.shape[2]} x {x.shape[1]}" for x in (images, new_images))
    if size != new_size:
        raise ValueError(
            f"images are {size} pixels and new_images {new_size}: they must be of one size. Scale "
            "both after joining, not one before."
        )
    own = to_rgb(new_images[HELD_FRAMES:])
    if not len(own):
        raise ValueError(
            f"new_images has {len(new_images)} frames, and the first {HELD_FRAMES} are the film's: "
            "nothing is new. Connect the clip that was made from 'Ovi Continue'."
        )
    if not is_finite(own):
        raise ValueError(
            "new_images holds NaN or infinite values: the VAE or the sampler failed; check their "
            "inputs."
        )
    held = to_rgb(new_images[:HELD_FRAMES])
    difference = float((to_rgb(images[-HELD_FRAMES:]) - held).abs().mean())
    if difference > SAME_PICTURES:
        log.warning(
            "Ovi Join: the new clip does not begin with the film's last %d frames (they differ by "
            "%.2f of 1): was it made by 'Ovi Continue' from this film?",
            HELD_FRAMES,
            difference,
        )
    return own


def join_sound(film: Sound, new: Sound, frames: tuple[int, int]) -> Sound:
    """Return the sound of a film and of a new clip after it, at the film's rate.

    frames: of the film and of the new clip, which begins with the film's last HELD_FRAMES. The
    result has sample_at(frames of both) samples, and the new clip begins at sample_at(its first
    frame). The new sound is moved by up to MOST_SHIFT and turned up or down by up to MOST_GAIN to
    be the film's in what both have, then faded in: shares of both sum to 1.
    """
    rate, first = film.rate, frames[0] - HELD_FRAMES
    start, total = sample_at(first, rate), sample_at(first + frames[1], rate)
    heard = _fit(film.waveform, sample_at(frames[0], rate))
    stop, fade = heard_until(heard, rate) - start, round(FADE * rate)
    added = resample(new.waveform, new.rate, rate, total - start)
    old, added = _alike_channels(heard[:, : start + stop], _fit(added, total - start))
    known = old[:, start:]
    shift = find_shift(known.mean(0), added[:, :stop].mean(0), rate)
    added = _fit(_shifted(added, shift), total - start)
    added = added * find_gain(known, added[:, :stop], float(added.abs().max()))
    share = torch.ones(total - start)
    share[: stop - fade] = 0
    share[stop - fade : stop] = torch.linspace(0, 1, fade + 2)[1:-1]
    faded = torch.lerp(_fit(known, total - start), added, share)
    return Sound(torch.cat([old[:, :start], faded], dim=1), rate)


def find_shift(film: Tensor, new: Tensor, rate: int) -> int:
    """Return by how many samples a sound [N] is late after another [N], up to MOST_SHIFT: where
    they are most alike. 0 where one is silent or they are unlike.
    """
    most = round(MOST_SHIFT * rate)
    if min(_level(film), _level(new)) < SILENT:
        return 0
    around = torch.nn.functional.pad(new, (most, most))[None, None]
    ones = torch.ones_like(film)
    products = torch.nn.functional.conv1d(around, film[None, None]).flatten()
    energies = torch.nn.functional.conv1d(around.square(), ones[None, None]).flatten()
    alike = products / (energies * film.square().sum()).clamp(min=1e-12).sqrt()
    best = int(alike.argmax())
    if alike[best] < ALIKE or alike[best] < alike[most] + WORTH_A_SHIFT:
        return 0
    return best - most


def find_gain(film: Tensor, new: Tensor, peak: float) -> float:
    """Return the factor that makes a sound [C, N] as loud as another, within MOST_GAIN; 1 where one
    is silent.

    peak: of the whole new sound, which is not turned up past full scale.
    """
    levels = _level(film), _level(new)
    if min(levels) < SILENT:
        return 1.0
    gain = min(MOST_GAIN, max(1 / MOST_GAIN, levels[0] / levels[1]))
    return min(gain, max(1.0, 1 / peak))


def _level(sound: Tensor) -> float:
    return math.sqrt(float(sound.square().mean()))


def _alike_channels(film: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as mono, or both as stereo where one is."""
    channels = max(len(film), len(new))
    return film.expand(channels, -1), new.expand(channels, -1)


def _shifted(sound: Tensor, late: int) -> Tensor:
    """Take away so many samples at the beginning of a sound, or add silence."""
    return sound[:, late:] if late >= 0 else torch.nn.functional.pad(sound, (-late, 0))


def _fit(sound: Tensor, samples: int) -> Tensor:
    """Cut or fill up with silence a sound [C, N]."""
    return torch.nn.functional.pad(sound, (0, max(0, samples - sound.shape[1])))[:, :samples]
