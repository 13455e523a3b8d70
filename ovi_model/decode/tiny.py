"""ComfyUI's tiny decoder of Wan 2.2's latent, run so that frames leave it as they are made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import SPATIAL_COMPRESSION, VIDEO_CHANNELS

# Numbers that the decoder holds for one pixel of a frame, in its last blocks: 105 as counted in
# tests/unit/test_tiny_vae.py, on every core and at every length, and a quarter to spare.
NUMBERS_HELD = 105 * 5 // 4


def bytes_held(tile_area: int, steps: int, dtype: torch.dtype) -> int:
    """Return the bytes that decoding takes besides weights and frames; the area in latent pixels.

    Older cores copy the latent, of so many steps in time, on the way in.
    """
    numbers = NUMBERS_HELD * SPATIAL_COMPRESSION**2 + 2 * VIDEO_CHANNELS * steps
    return numbers * tile_area * dtype.itemsize


def decode_tiny(model: nn.Module, latent: Tensor, add: Callable[[Tensor], None]) -> None:
    """Decode a latent [1, 48, F, h, w], in the scale of the decoder; hand on its 4 F - 3 frames
    [1, 3, 1, 16h, 16w] as they are made.
    """
    too_early = model.frames_to_trim

    def take(_layer: nn.Module, _inputs: tuple, made: Tensor) -> Tensor:
        """Hand on frames [f, 12, 8h, 8w]; leave core so little that it costs nothing."""
        nonlocal too_early
        for frame in made.split(1):
            if too_early:
                too_early -= 1
            else:
                add(functional.pixel_shuffle(frame, model.patch_size).unsqueeze(2))
        return made[..., :1, :1].clone()

    shows_bar, model.show_progress_bar = model.show_progress_bar, False
    hook = model.decoder[-1].register_forward_hook(take)
    try:
        model.decode(latent)
    finally:
        hook.remove()
        model.show_progress_bar = shows_bar
