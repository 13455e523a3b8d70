"""What is held of a latent while it is sampled."""

from __future__ import annotations

from torch import Tensor

from ..core_facts import unpack_latents


def clean_frames(denoise_mask: Tensor | None, shapes) -> Tensor | None:
    """Say which frames the model gets clean, at time 0: the first, where all of it is held; [B, 1,
    F, 1, 1] or None.

    Only the first, for only that is what image-to-video was trained on. Every other held part is
    noised to the level of the run: a model with one clock for both towers loses their sync when one
    of them is given clean.
    denoise_mask: the sampler's, in the shape of the latent or of the pack; 0 is held.
    """
    if denoise_mask is None:
        return None
    video_mask = unpack_latents(denoise_mask, shapes)[0] if denoise_mask.ndim == 3 else denoise_mask
    frames = video_mask.new_zeros(video_mask.shape[0], 1, video_mask.shape[2], 1, 1)
    frames[:, 0, 0, 0, 0] = (video_mask[:, :, 0].flatten(1).amax(dim=1) == 0).to(frames.dtype)
    return frames
