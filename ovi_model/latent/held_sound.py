"""A recording that a clip keeps over a span of seconds: encoded into the latent, held by its mask,
and carried beside it as it was given.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..config import SAMPLE_RATE, SAMPLES_PER_STEP
from ..load.audio_vae import is_audio_vae
from . import spans
from .hold import SOUND
from .latents import streams, unnormalised, with_steps
from .time_mask import masks_of, with_streams

CORE_RATE = 44100  # Hz, of cores whose VAE does not tell it


class HeldSound(NamedTuple):
    """A sound as it was given, over a whole clip."""

    waveform: Tensor  # [1, samples], at 16 kHz
    steps: range  # that are held
    length: int  # audio steps of the clip


def rate_of(audio_vae, node: str = "Ovi Hold Sound") -> int:
    """Return the sample rate in Hz at which core's VAE takes a sound.

    Raises ValueError, naming the node, unless it is a VAE of Ovi's sound.
    """
    if not is_audio_vae(audio_vae):
        raise ValueError(
            f"'audio_vae' of {node} is no audio VAE of Ovi. Connect the one of 'Ovi Audio VAE "
            "Loader'."
        )
    return getattr(audio_vae, "audio_sample_rate", CORE_RATE)


def place(waveform: Tensor, rate: int, span: tuple[float, float], seconds: float) -> Tensor:
    """Return a sound [C, samples] of a rate in Hz as one of so many seconds, silent outside a span,
    at whose start it begins; it is cut at its end.
    """
    begin, end = (round(time * rate) for time in span)
    placed = waveform.new_zeros(len(waveform), round(seconds * rate))
    heard = waveform[:, : max(0, end - begin)]
    placed[:, begin : begin + heard.shape[1]] = heard[:, : placed.shape[1] - begin]
    return placed


def hold_sound(
    audio_vae, latent: dict, to_encode: Tensor, original: Tensor, span: tuple[float, float]
) -> dict:
    """Return a latent that holds a sound over a span of seconds.

    to_encode: of the whole clip, mono [1, samples], at the rate of rate_of; original: the same at
    16 kHz. A step is held where it lies in the span as a whole.
    Raises ValueError where none does.
    """
    video, audio = streams(latent, "latent")
    length, steps = video.shape[2], audio.shape[2]
    held = spans.sound_within(*span, length, steps)
    if not held:
        raise ValueError(
            f"From {span[0]:g} to {span[1]:g} s no audio step of the clip lies as a whole: a step "
            f"lasts {SAMPLES_PER_STEP / SAMPLE_RATE:g} s. Make the span longer."
        )
    encoded = with_steps(audio_vae.encode(to_encode[..., None]), steps)
    if not (video.any() or audio.any()):
        video = unnormalised(video)
    audio = audio.clone()
    audio[..., held.start : held.stop] = encoded[..., held.start : held.stop].to(audio)
    video_mask, audio_mask = masks_of(latent)
    audio_mask[..., held.start : held.stop] = 0
    carried = (*latent.get(SOUND, ()), HeldSound(original, held, steps))
    return with_streams(latent, (video, audio), (video_mask, audio_mask)) | {SOUND: carried}
