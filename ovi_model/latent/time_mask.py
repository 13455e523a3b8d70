"""Masks of a joint latent: as samplers read them, and opened for a span of seconds alone."""

from __future__ import annotations

import comfy.sampler_helpers
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ..config import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_STEP
from . import spans
from .hold import HELD
from .latents import own_mask, streams

# What a span is cut out of, by the choice of a node: picture, sound.
STREAMS = {
    "picture and sound": (True, True),
    "picture": (True, False),
    "sound": (False, True),
}


def masks_of(latent: dict) -> tuple[Tensor, Tensor]:
    """Return copies of a latent's masks as samplers read them: [B, 1, F, H, W] and [B, 1, L]."""
    parts = streams(latent, "latent")
    given = latent.get("noise_mask")
    if given is None:
        masks = []
    else:
        masks = given.unbind() if getattr(given, "is_nested", False) else [given]
    own = [*masks[:2], None, None][:2]
    video, audio = (
        comfy.sampler_helpers.prepare_mask(own_mask(x, mask).float(), x.shape, x.device)[:, :1]
        for x, mask in zip(parts, own, strict=True)
    )
    return video.clone(), audio.clone()


def with_streams(latent: dict, samples: tuple[Tensor, ...], masks: tuple[Tensor, ...]) -> dict:
    """Return a latent with other streams and masks; what else it carries stays."""
    return latent | {"samples": NestedTensor([*samples]), "noise_mask": NestedTensor([*masks])}


def open_span(latent: dict, start: float, end: float, kind: str, ramp: float) -> dict:
    """Return a latent of which the seconds [start, end) alone are made anew; the rest is held.

    Masks multiply: what was held before stays held. A latent frame or audio step is opened where it
    lies in the span as a whole.
    kind: one of STREAMS, whose masks change; ramp: seconds inside the span in which its mask rises
    from each edge that is not the clip's own.
    Raises ValueError for a span outside the clip, or in which no latent frame or step lies.
    """
    video, audio = streams(latent, "latent")
    length, steps = video.shape[2], audio.shape[2]
    end = spans.check_span(start, end, length)
    is_of_picture, is_of_sound = STREAMS[kind]
    masks = masks_of(latent)
    if is_of_picture:
        opened = spans.picture_within(start, end, length)
        middles = [_middle(spans.frames_in(index), FRAME_RATE) for index in range(length)]
        window = _window("picture", opened, middles, (start, end), ramp)
        _multiply(masks[0], window.view(1, 1, -1, 1, 1))
    if is_of_sound:
        opened = spans.sound_within(start, end, length, steps)
        rate = SAMPLE_RATE / SAMPLES_PER_STEP
        middles = [(index + 0.5) / rate for index in range(steps)]
        window = _window("sound", opened, middles, (start, end), ramp)
        _multiply(masks[1], window.view(1, 1, -1))
    return with_streams(latent, (video, audio), masks)


def _middle(frames: range, rate: float) -> float:
    return (frames.start + frames.stop) / 2 / rate


def _window(
    stream: str, opened: range, middles: list[float], span: tuple[float, float], ramp: float
) -> Tensor:
    """Return the mask of a span over latent frames or steps, told by their middles in seconds."""
    start, end = span
    if not opened:
        raise ValueError(
            f"From {start:g} to {end:g} s there is no whole part of the {stream}: a latent frame "
            "lasts 0.167 s and an audio step 0.032 s, and only those are made anew that lie in the "
            "span as a whole. Make the span longer."
        )
    window = torch.zeros(len(middles))
    for index in opened:
        from_start = middles[index] - start if opened.start > 0 else ramp
        to_end = end - middles[index] if opened.stop < len(middles) else ramp
        window[index] = min(1.0, min(from_start, to_end) / ramp) if ramp > 0 else 1.0
    return window


def _multiply(mask: Tensor, window: Tensor) -> None:
    """Multiply a mask in place; marks of keyframes stay."""
    mask.copy_(torch.where(mask <= HELD, mask, mask * window.to(mask)))
