"""What is held of a latent while it is sampled: 0 in a mask is held, 1 is made.

What is held is noised to the level of the run: a model with one clock for both towers loses their
sync when one of them is given clean. Two kinds of frames are given clean, at time 0: a first frame,
as image-to-video was trained, and frames that the mask marks as keyframes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core_facts import unpack_latents

# Entries of a latent, beside its samples: what it holds as it was given, a tuple of HeldPictures
# and one of HeldSound, in the order they were held. Samplers hand them on.
PICTURES, SOUND = "ovi_held_pictures", "ovi_held_sound"

# A mask's value that holds a latent frame and marks it as clean. To every sampler it is 0: what it
# lets through is lost in rounding. It outlives what nodes do to masks but to round them; then the
# frame is held as all others are.
CLEAN = 2.0**-100
# Marks of masks that were scaled are off by a rounding.
_LOWEST, HELD = CLEAN / 2, CLEAN * 2

# Between a latent and the same after it was normalised, sampled and brought back. Core's uni_pc
# ends at a noise level of 0.001, not at 0.
ROUNDING = 1e-2


def clean_frames(denoise_mask: Tensor | None, shapes) -> Tensor | None:
    """Say which frames the model gets clean, at time 0, [B, 1, F, 1, 1] or None: the first, where
    all of it is held, and those that are marked as a whole.

    denoise_mask: the sampler's, in the shape of the latent or of the pack; 0 is held.
    """
    if denoise_mask is None:
        return None
    video_mask = unpack_latents(denoise_mask, shapes)[0] if denoise_mask.ndim == 3 else denoise_mask
    by_frame = video_mask.transpose(1, 2).flatten(2)
    is_clean = by_frame.amax(dim=2) <= HELD
    is_clean[:, 1:] &= by_frame.amin(dim=2)[:, 1:] >= _LOWEST
    return is_clean.to(video_mask.dtype)[:, None, :, None, None]


def undo_rounding(made: Tensor, given: Tensor | None, denoise_mask: Tensor | None) -> Tensor:
    """Return a sampled latent with what a run held as it was given, where they differ by rounding.

    Samplers normalise the whole latent and step from noise to it, so that what they hold comes back
    some bits off. What differs by more is left: a run that ends before the last step leaves noise.
    made, given, denoise_mask: all packed, or all of one stream; of anything else `made` returns.
    """
    if given is None or denoise_mask is None:
        return made
    if not made.shape == given.shape == denoise_mask.shape:
        return made
    given = given.to(made)
    is_held = denoise_mask.to(made.device) <= HELD
    return torch.where(
        is_held & torch.isclose(made, given, rtol=ROUNDING, atol=ROUNDING), given, made
    )
