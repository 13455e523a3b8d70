"""What a clip in blocks keeps of its finished blocks: where, in which precision, how many bytes;
core leaves room for it when it loads the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import comfy.model_management
import torch

from ..core_facts import compute_dtype
from ..network import past

# Where keys and values are kept, and in which precision (None: as computed).
KEEP = {
    "on the card": (False, None),
    "on the card, fp8": (False, torch.float8_e4m3fn),
    "in main memory": (True, None),
}
USUAL_KEEP, USUAL_FRAMES = "on the card", 6


def kept_frames(frames: int, frames_per_block: int) -> int:
    """Return how many latent frames of a clip are kept; none reads the last block."""
    return (frames - 1) // frames_per_block * frames_per_block


def cache_dtype(model, keep: str) -> torch.dtype:
    """Return the precision in which a model's keys and values are kept."""
    return KEEP[keep][1] or compute_dtype(model)


def cache_bytes(model, shape: torch.Size, frames_per_block: int, keep: str) -> int:
    """Return the bytes of what is kept of a clip whose picture has this shape, [B, 48, F, H, W].

    model: core's, of the family.
    """
    batch, _, frames, height, width = shape
    network, dtype = model.diffusion_model, cache_dtype(model, keep)
    _, tall, wide = network.config.patch_size
    tokens = -(-height // tall) * -(-width // wide)
    kept = kept_frames(frames, frames_per_block)
    return batch * past.bytes_of(kept, tokens, network.config.dim, len(network.blocks), dtype)


def reserve_caches(original, sampler_function: Callable, is_ours: Callable):
    """Wrap core's CFGGuider.outer_sample: where this function is the sampler, what it keeps on the
    card is part of what core leaves free there, and what it decodes with is loaded with the model.
    A sampler itself is asked after that.

    is_ours tells the family's models from all others.
    """

    @functools.wraps(original)
    def outer_sample(self, noise, latent_image, sampler, *args, latent_shapes=None, **kwargs):
        model, kwargs["latent_shapes"] = self.model_patcher.model, latent_shapes
        is_streaming = getattr(sampler, "sampler_function", None) is sampler_function
        if is_streaming and is_ours(model) and len(latent_shapes or ()) > 1:
            _reserve(self, noise.shape, latent_shapes[0], **sampler.extra_options)
        try:
            return original(self, noise, latent_image, sampler, *args, **kwargs)
        finally:
            if is_streaming and is_ours(model):
                model.memory_floor = 0.0

    return outer_sample


def _reserve(
    guider,
    packed: torch.Size,
    shape: torch.Size,
    frames_per_block: int = USUAL_FRAMES,
    keep: str = USUAL_KEEP,
    player=None,
) -> None:
    """Tell core, by the model, of caches for a picture of a shape, and of decoding its blocks."""
    model, device = guider.model_patcher.model, guider.model_patcher.load_device
    kept = 0 if KEEP[keep][0] else cache_bytes(model, shape, frames_per_block, keep)
    check_memory(kept, device)
    # A block with all that it reads takes no more than a whole clip.
    needed = model.memory_required(packed)
    if player is not None:
        needed = max(needed, player.memory_required(shape, frames_per_block))
        for cond in guider.conds.get("positive", []):
            cond["additional_models"] = [*cond.get("additional_models", []), *player.patchers]
    model.memory_floor = needed + kept


def check_memory(kept: float, device: torch.device) -> None:
    """Raise ValueError if a device does not have so many bytes."""
    there = comfy.model_management.get_total_memory(device)
    if kept > there:
        raise ValueError(
            f"'Ovi Streaming Sampler' keeps {kept / 2**30:.1f} GiB of this clip, and {device} has "
            f"{there / 2**30:.1f} GiB in all. Set 'keep' to 'on the card, fp8' or 'in main "
            "memory', or make the clip smaller or shorter, or fewer clips at once."
        )
