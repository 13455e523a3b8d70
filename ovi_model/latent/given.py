"""What samplers hand over, checked: a joint latent, and noise for both of its streams."""

from __future__ import annotations

import math

import comfy.sample
from torch import Tensor

from ..config import STREAMING_STEPS
from ..core_facts import find_replacement
from .geometry import check_equally_long, is_pair


def check_is_joint(noise: Tensor | None, shapes: list | None = None) -> None:
    """Raise ValueError unless a sampler was given a pack of picture and sound, or a video without
    sound.

    shapes: of what is packed, where it is known.
    """
    is_pack = noise is not None and noise.ndim == 3 and noise.shape[1] == 1
    is_half = is_pack and shapes is not None and len(shapes) == 1
    if noise is None or noise.ndim == 5 or (is_pack and not is_half):
        return
    if is_half:
        found = f"a nested latent of one stream, {list(shapes[0])}"
    elif noise.ndim == 3:
        found = "sound without a picture"
    else:
        found = f"a latent of shape {list(noise.shape)}"
    raise ValueError(
        f"The sampler was given {found}; Ovi samples both together. Connect 'Ovi Latent', or put a "
        "video latent and an audio latent together with 'Ovi Concat Latent'."
    )


def check_streams(shapes: list) -> None:
    """Raise ValueError unless the streams of a pack are Ovi's picture and sound, and last equally
    long.
    """
    if not is_pair(shapes):
        found = " and ".join(str(list(shape)) for shape in shapes)
        raise ValueError(
            f"The sampler was given latents of shape {found}; Ovi samples a picture [B, 48, F, H, "
            "W] and a sound [B, 20, L] together. Connect 'Ovi Latent'."
        )
    frames, steps = shapes[0][2], shapes[1][2]
    if steps != STREAMING_STEPS * frames:  # as clips that are made in blocks have them
        check_equally_long("The sound given to the sampler", frames, steps)


def check_noise(noise: Tensor, shapes: list) -> None:
    """Raise ValueError unless noise, packed as the sampler packs it, is of all streams; zeros stand
    for none of it.

    Extensions replace core's `prepare_noise` for every workflow by one that makes noise of the
    first stream alone.
    """
    if noise.shape[-1] == sum(math.prod(shape[1:]) for shape in shapes) or not noise.any():
        return
    replaced_by = find_replacement(comfy.sample, "prepare_noise")
    if replaced_by:
        raise ValueError(
            f"The noise is of the picture alone: '{replaced_by}' replaced "
            "comfy.sample.prepare_noise, for every workflow, by a function that does not know "
            "latents of picture and sound. Update or remove that extension, then restart ComfyUI."
        )
    latents = " and ".join(str(list(shape)) for shape in shapes)
    raise ValueError(
        f"The noise has one shape, {list(noise.shape)}, and the latent two, {latents}, for picture "
        "and sound. Use 'RandomNoise', or a noise node that takes latents of several parts."
    )
