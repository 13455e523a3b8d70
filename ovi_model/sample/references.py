"""References of a CONDITIONING, checked, as the model takes them.

Pictures go by the name core's 'Reference Latent' gives them, so that node works too.
"""

from __future__ import annotations

import math

import comfy.conds
import torch
from torch import Tensor

from ..config import AUDIO_CHANNELS, SAMPLE_RATE, SAMPLES_PER_STEP
from ..core_facts import loaded_file
from ..load import release
from ..log import log

# In a CONDITIONING: lists of latents, one for each person.
IMAGES, VOICES = "reference_latents", "reference_voices"
# What the model is given.
MODEL_IMAGES, MODEL_VOICES = "reference_images", "reference_voices"
MOST = 2
MOST_STEPS = 157  # of a voice: a clip's; the model knows one second, 31


def reference_conds(latent_format, shapes, images=None, voices=None) -> dict:
    """Return the conds of references: pictures as a VAE gives them, and voices.

    shapes: of the latents of picture and sound. Raises ValueError for references that do not go
    with them.
    """
    images, voices = list(images or ()), list(voices or ())
    if not images and not voices:
        return {}
    if shapes is None or len(shapes) < 2:
        raise ValueError(
            "References go with a latent of picture and sound, and this one has one of them alone: "
            "connect 'Ovi Latent'."
        )
    check_images(images, shapes[0])
    check_voices(voices)
    steps = tuple(voice.shape[2] for voice in voices)
    out = {"voice_steps": comfy.conds.CONDConstant(steps)}
    if images:
        pictures = torch.cat([latent_format.process_in(image) for image in images], dim=2)
        out[MODEL_IMAGES] = comfy.conds.CONDRegular(pictures)
    if voices:
        out[MODEL_VOICES] = comfy.conds.CONDRegular(torch.cat(voices, dim=2))
    return out


def say_if_untrained(patcher) -> None:
    """Warn if a MODEL's file says that it was not trained for references."""
    file = loaded_file(patcher)
    if release.release_of(file) in (release.OVI, release.HALLO):
        log.warning(
            "%s is %s by its name, which was not trained for references: they act as frames and "
            "sounds from far away, not as a face and a voice. Load DreamID-Omni's weights, or "
            "remove 'Ovi References'.",
            file,
            release.release_of(file),
        )


def places_of(conds: dict) -> tuple[int, tuple[int, ...]]:
    """Return how many images, and the steps of each voice, these conds have."""
    images = conds[MODEL_IMAGES].cond.shape[2] if MODEL_IMAGES in conds else 0
    return images, conds["voice_steps"].cond if "voice_steps" in conds else ()


def check_images(images: list[Tensor], shape: torch.Size) -> None:
    """Raise ValueError unless there are at most two pictures of the clip's size."""
    _check_count("pictures", images)
    for image in images:
        wanted = [1, shape[1], 1, *shape[3:]]
        if list(image.shape) != wanted:
            raise ValueError(
                f"A reference picture is a latent of shape {list(image.shape)}, and the clip takes "
                f"{wanted}: give the latent that is sampled to 'Ovi References', which brings "
                "pictures to its size."
            )


def check_voices(voices: list[Tensor]) -> None:
    """Raise ValueError unless there are at most two voices [1, 20, steps]."""
    _check_count("voices", voices)
    for voice in voices:
        is_voice = voice.ndim == 3 and voice.shape[:2] == (1, AUDIO_CHANNELS)
        if not is_voice or not 0 < voice.shape[2] <= MOST_STEPS:
            raise ValueError(
                f"A reference voice is a latent of shape {list(voice.shape)}: expected [1, "
                f"{AUDIO_CHANNELS}, 1 to {MOST_STEPS} steps of "
                f"{1000 * SAMPLES_PER_STEP // SAMPLE_RATE} ms], from 'Ovi References'."
            )


def _check_count(what: str, references: list) -> None:
    if len(references) > MOST:
        raise ValueError(
            f"There are {len(references)} reference {what}; the model knows one or two people. "
            "Remove some."
        )


def size_of(shapes: dict | None) -> int:
    """Return how many numbers of a clip references have, of core's shapes of conds by name."""
    shapes = shapes or {}
    return sum(
        max((math.prod(shape[1:]) for shape in shapes.get(name, ())), default=0)
        for name in (MODEL_IMAGES, MODEL_VOICES)
    )


def shapes_of(images=None, voices=None) -> dict:
    """Return the shapes of references of a CONDITIONING by the model's names."""
    return {
        name: [1, latents[0].shape[1], sum(x[0, 0].numel() for x in latents)]
        for name, latents in ((MODEL_IMAGES, images), (MODEL_VOICES, voices))
        if latents
    }
