"""What samplers of older cores lack for a nested latent; what is as it should be passes through.

Each function wraps one of core's `CFGGuider`. `is_ours` tells the family's models from all others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import comfy.sampler_helpers
import comfy.utils
import torch
from comfy.nested_tensor import NestedTensor

from ..core_facts import NESTED_WINDOWS
from ..latent.given import check_noise


def nest_noise_and_callback(original, is_ours: Callable):
    """Nodes that disable noise hand over zeros of the picture alone; previews and outputs are to
    see both streams.
    """

    @functools.wraps(original)
    def sample(
        self,
        noise,
        latent_image,
        sampler,
        sigmas,
        denoise_mask=None,
        callback=None,
        *args,
        **kwargs,
    ):
        if is_ours(self.model_patcher.model) and latent_image.is_nested:
            _refuse_context_windows(self.model_options)
            latents = latent_image.unbind()
            if not noise.is_nested:
                check_noise(noise, [latent.shape for latent in latents])
                noise = NestedTensor([torch.zeros_like(latent, device="cpu") for latent in latents])
            callback = _nest_callback(callback, [latent.shape for latent in latents])
        return original(
            self, noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs
        )

    return sample


def _refuse_context_windows(model_options: dict) -> None:
    if not NESTED_WINDOWS and "context_handler" in model_options:
        raise ValueError(
            "This ComfyUI cuts context windows out of pictures alone, not out of a latent with "
            "sound. Update ComfyUI (0.33 does both), or remove the context windows node."
        )


def _nest_callback(callback, shapes: list[torch.Size]):
    if callback is None:
        return None

    def nest(latent):
        if getattr(latent, "is_nested", False):
            return latent
        return NestedTensor(comfy.utils.unpack_latents(latent, shapes))

    def nested(step, denoised, x, total_steps):
        return callback(step, nest(denoised), nest(x), total_steps)

    return nested


def pack_masks(denoise_mask, latent: torch.Tensor, shapes: list[torch.Size], device):
    """Return the masks of all streams as one, packed as a latent [B, 1, N]; a pack or None as it
    is.
    """
    if denoise_mask is None or denoise_mask.shape[1:] == latent.shape[1:]:
        return denoise_mask
    given = denoise_mask.unbind() if denoise_mask.is_nested else [denoise_mask]
    missing = [torch.ones(shape) for shape in shapes[len(given) :]]
    masks = [
        comfy.sampler_helpers.prepare_mask(mask, shape, device)
        for mask, shape in zip([*given, *missing], shapes, strict=False)
    ]
    return comfy.utils.pack_latents(masks)[0].float()


def pack_mask(original, is_ours: Callable):
    """One mask for each stream, ones where there is none, packed as the latents are."""

    @functools.wraps(original)
    def outer_sample(
        self,
        noise,
        latent_image,
        sampler,
        sigmas,
        denoise_mask=None,
        *args,
        latent_shapes=None,
        **kwargs,
    ):
        if is_ours(self.model_patcher.model) and len(latent_shapes or ()) > 1:
            device = self.model_patcher.load_device
            denoise_mask = pack_masks(denoise_mask, latent_image, latent_shapes, device)
        kwargs["latent_shapes"] = latent_shapes
        return original(self, noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)

    return outer_sample


def tell_shapes(original, is_ours: Callable):
    @functools.wraps(original)
    def inner_sample(self, *args, latent_shapes=None, **kwargs):
        if is_ours(self.inner_model):
            self.inner_model.latent_shapes = latent_shapes or []
        return original(self, *args, latent_shapes=latent_shapes, **kwargs)

    return inner_sample
