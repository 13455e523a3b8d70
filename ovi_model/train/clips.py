"""Latents and conditionings of a workflow as the clips that a training draws from."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.latent_formats
from torch import Tensor

from ..config import VideoTowerConfig
from ..latent.hold import HELD
from ..latent.latents import clips
from ..latent.time_mask import masks_of
from ..text import conds

# Options of a CONDITIONING entry: what may be read in place of a caption that is left out, as texts
# of both towers, in which share of the steps it is, and in which share the first frame is given
# clean.
NO_CAPTION, CAPTION_DROPOUT, FIRST_FRAME = (
    "ovi_no_caption",
    "ovi_caption_dropout",
    "ovi_first_frame",
)


@dataclass(frozen=True)
class Clip:
    """A clip as the towers see it, and how it is to be drawn."""

    video: Tensor  # [48, F, h, w], normalised
    audio: Tensor  # [20, L]
    texts: tuple[Tensor, Tensor]  # of the video and the audio tower, each [1, T, width]
    no_caption: tuple[tuple[Tensor, Tensor], ...]  # texts of both towers, one of which is read
    caption_dropout: float  # share of the steps, 0 to 1
    first_frame: float  # share of the steps in which it is given clean, 0 to 1

    @property
    def shape(self) -> tuple[int, ...]:
        """What clips of one batch must have in common."""
        return (*self.video.shape, *self.audio.shape)


def read_clips(latents: list[dict], positive: list[list], config: VideoTowerConfig) -> list[Clip]:
    """Return every clip of some latents with its caption.

    latents: joint latents, each of one clip or a batch of equal ones, of any sizes. positive:
    CONDITIONINGs with as many entries as there are clips, in their order, or one for all.
    Raises ValueError, naming the input, for latents that are no clips or captions that are not as
    many.
    """
    pairs = [pair for number, latent in enumerate(latents) for pair in _split(latent, number)]
    entries = [entry for conditioning in positive for entry in conditioning]
    if len(entries) == 1:
        entries *= len(pairs)
    if len(entries) != len(pairs):
        raise ValueError(
            f"'latents' holds {len(pairs)} clips and 'positive' {len(entries)} captions: give one "
            "caption for each clip, in the same order, or one for all."
        )
    return [_make(pair, entry, config) for pair, entry in zip(pairs, entries, strict=True)]


def _split(latent: dict, number: int) -> list[tuple[Tensor, Tensor, bool]]:
    """Return picture, sound, and whether the first frame is held, of each clip of a latent."""
    name = f"latents, number {number + 1}"
    video, audio = (x.detach().cpu().float() for x in clips(latent, name))
    video = comfy.latent_formats.Wan22().process_in(video)
    is_held = [False] * len(video)
    if latent.get("noise_mask") is not None:
        is_held = _read_mask(latent, name)
    return [
        (its_video.clone(), its_audio.clone(), held)
        for its_video, its_audio, held in zip(video, audio, is_held, strict=True)
    ]


def _read_mask(latent: dict, name: str) -> list[bool]:
    """Return whether each clip's first frame is held.

    Raises ValueError if more or less of a clip is: the model was trained on first frames alone.
    """
    video, audio = (mask.flatten(3 if mask.ndim == 5 else 2) for mask in masks_of(latent))
    is_held = [bool((mask[:, 0] <= HELD).all()) for mask in video]
    rest = zip(video, audio, is_held, strict=True)
    if not all((mask[:, held:] == 1).all() and (sound == 1).all() for mask, sound, held in rest):
        raise ValueError(
            f"The mask of '{name}' holds something else than a whole first frame. Training knows "
            "clips whose first frame is given ('Ovi Latent' with start_image) and clips without a "
            "mask; take the mask away."
        )
    return is_held


def _make(pair: tuple[Tensor, Tensor, bool], entry: list, config) -> Clip:
    video, audio, is_held = pair
    text, options = entry

    def own(text: Tensor) -> Tensor:
        trimmed = conds.trim(text.detach()[:1].cpu().float(), config)
        return conds.with_padding(trimmed, config).clone()

    return Clip(
        video,
        audio,
        (own(text), own(options.get("audio_context", text))),
        tuple((own(video), own(audio)) for video, audio in options.get(NO_CAPTION, ())),
        options.get(CAPTION_DROPOUT, 0.0),
        1.0 if is_held else options.get(FIRST_FRAME, 0.0),
    )
