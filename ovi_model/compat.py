"""Every shim for older cores, each behind a probe for the feature it stands in for.

A shim does what a current core does itself. It acts on models of this family alone (`is_ours`), but for one that
changes nothing for others: a nested tensor knows `cpu()`.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import nullcontext

import comfy.context_windows
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.nested_tensor import NestedTensor

_GUIDER = comfy.samplers.CFGGuider


def _mentions(code, word: str) -> bool:
    return word in inspect.getsource(code)


# 0.8.0: sampling takes one mask for each stream of a nested latent.
NESTED_MASKS = _mentions(comfy.samplers, "denoise_masks")
# 0.8.0: how a layer is quantised stands beside it in the weights; before, only in the file's metadata.
LAYER_FORMATS = hasattr(comfy.utils, "convert_old_quants")
# 0.33.0: callbacks (previews, denoised output) see nested latents, not the pack.
NESTED_CALLBACKS = _mentions(comfy.samplers, "packed_callback")
# 0.33.0: the model knows the shapes in the pack before `process_latent_in` is called.
SHAPES_ON_MODEL = _mentions(comfy.samplers, "self.inner_model.latent_shapes")
# 0.33.0: nodes that disable noise make it nested.
NESTED_EMPTY_NOISE = hasattr(comfy.sample, "prepare_empty_noise")
# 0.33.0: context windows cut every stream of a nested latent.
NESTED_WINDOWS = _mentions(comfy.context_windows, "latent_shapes")


def on_device(decode):
    """Run a function of a VAE with its card as the current one, as core does since a VAE can choose it (0.33.0)."""

    @functools.wraps(decode)
    def decode_there(vae, *args):
        context = getattr(comfy.model_management, "cuda_device_context", nullcontext)
        with context(vae.device):
            return decode(vae, *args)

    return decode_there


def install(is_ours) -> None:
    """Put the shims this core needs in place; `is_ours(model)` tells the family's models from all others."""
    if not (NESTED_MASKS and NESTED_CALLBACKS and NESTED_EMPTY_NOISE and NESTED_WINDOWS):
        _GUIDER.sample = _nested_sample(_GUIDER.sample, is_ours)
    if not SHAPES_ON_MODEL:
        _GUIDER.inner_sample = _shapes_on_model(_GUIDER.inner_sample, is_ours)
    if not hasattr(NestedTensor, "cpu"):
        NestedTensor.cpu = lambda self: self.to("cpu")


def unpack_latents(packed: torch.Tensor, shapes: list[torch.Size]) -> list[torch.Tensor]:
    """Core's function, also for a latent alone, which cores before 0.8 return as it is."""
    if len(shapes) == 1:
        return [packed.reshape(packed.shape[:1] + shapes[0][1:])]
    return comfy.utils.unpack_latents(packed, shapes)


def _nested_sample(original, is_ours):
    """CFGGuider.sample for nested latents: zero noise, masks and callbacks that fit them, no context windows."""

    @functools.wraps(original)
    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *args, **kwargs):
        if is_ours(self.model_patcher.model) and latent_image.is_nested:
            latents = latent_image.unbind()
            _refuse_context_windows(self.model_options)
            noise = _nest_noise(noise, latents)
            denoise_mask = _pack_mask(denoise_mask, latents, self.model_patcher.load_device)
            callback = _nest_callback(callback, latents)
        return original(self, noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)

    return sample


def _refuse_context_windows(model_options: dict) -> None:
    if not NESTED_WINDOWS and "context_handler" in model_options:
        raise ValueError(
            "This ComfyUI cuts context windows out of pictures alone, not out of a latent with sound. "
            "Update ComfyUI (0.33 does both), or remove the context windows node."
        )


def _nest_noise(noise, latents: list[torch.Tensor]):
    """Nodes that disable noise hand over zeros of the video's shape only; any other noise must be of both streams."""
    if noise.is_nested:
        return noise
    if noise.any():
        shapes = " and ".join(str(list(latent.shape)) for latent in latents)
        raise ValueError(
            f"The noise has one shape, {list(noise.shape)}, and the latent two, {shapes}, for picture and sound. Use "
            "'RandomNoise', or a noise node that takes latents of several parts."
        )
    return NestedTensor([torch.zeros_like(latent, device="cpu") for latent in latents])


def _pack_mask(mask, latents: list[torch.Tensor], device):
    """One mask for each stream, ones where there is none, packed as the latents are."""
    if mask is None or NESTED_MASKS:
        return mask
    given = mask.unbind() if mask.is_nested else [mask]
    masks = [
        comfy.sampler_helpers.prepare_mask(
            given[i] if i < len(given) else torch.ones(latent.shape), latent.shape, device
        )
        for i, latent in enumerate(latents)
    ]
    return comfy.utils.pack_latents(masks)[0].float()


def _nest_callback(callback, latents: list[torch.Tensor]):
    if callback is None or NESTED_CALLBACKS:
        return callback
    shapes = [latent.shape for latent in latents]

    def nested(step, denoised, x, total_steps):
        denoised, x = (NestedTensor(comfy.utils.unpack_latents(pack, shapes)) for pack in (denoised, x))
        return callback(step, denoised, x, total_steps)

    return nested


def _shapes_on_model(original, is_ours):
    @functools.wraps(original)
    def inner_sample(self, *args, latent_shapes=None, **kwargs):
        if is_ours(self.inner_model):
            self.inner_model.latent_shapes = latent_shapes
        return original(self, *args, latent_shapes=latent_shapes, **kwargs)

    return inner_sample
