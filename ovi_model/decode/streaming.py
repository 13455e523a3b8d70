"""ComfyUI's Wan 2.2 video decoder, run so that frames leave it as they are made and tiles know the
whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from comfy.ldm.wan import vae2_2
from torch import Tensor, nn

from .lean_layers import is_lean, lean_layers

# The decoder holds the most in its last block's first convolution. In frames of what that block
# reads: its input 4, normalised 4, activated after two of before 6, kept for the layers until
# there 12. Core's own layers: its input 4, activated 4, the last two of them kept 2, after two of
# before 6, padded 6, kept 12.
# Counted by benchmarks/decode.py, which also shows that the length makes no difference.
FRAMES_HELD = 26
FRAMES_HELD_BY_CORE = 34
# Not counted: a convolution may bring what it reads and writes into another order, 6 and half of 4.
# And 5 % to spare.
FRAMES_INSIDE = 10
# Positions for one latent pixel in that block, each of two by two pixels.
POSITIONS = 64
# The same for the middle layers, which have one position for each; counted too.
MIDDLE_FRAMES_HELD = 24


def is_wan(model: nn.Module) -> bool:
    """Whether this is the VAE that the functions here know."""
    return isinstance(model, vae2_2.WanVAE)


def bytes_held(model: nn.Module, tile_area: int, picture_area: int, dtype: torch.dtype) -> int:
    """Return the bytes that decoding a picture in tiles takes besides weights and frames.

    Areas in latent pixels. The middle layers see the whole picture, the others one tile.
    """
    channels = model.decoder.conv1.out_channels
    frames = FRAMES_HELD if is_lean(model.decoder) else FRAMES_HELD_BY_CORE
    tile = (frames + FRAMES_INSIDE) * POSITIONS * (channels // 2) * tile_area
    return max(tile, MIDDLE_FRAMES_HELD * channels * picture_area) * dtype.itemsize


def middle_bytes(model: nn.Module, volume: int, dtype: torch.dtype) -> int:
    """Return the bytes of what middle_of keeps of a latent; volume: of time, height and width."""
    return volume * model.decoder.conv1.out_channels * dtype.itemsize


def decode_streaming(
    model: nn.Module, latent: Tensor, add: Callable[[Tensor], None], known: Iterable[Tensor] = ()
) -> None:
    """Decode a latent [1, 48, F, h, w]; hand on the frames [1, 3, f, 16h, 16w] as they are made.

    known: what the middle layers make of each latent frame, to replace what they make of this
    latent alone; or nothing.
    Raises RuntimeError if this version of ComfyUI decodes in another way.
    """
    replacements = list(known)

    def take(made: Tensor) -> Tensor:
        if not torch.is_tensor(made):
            raise RuntimeError(
                "The Wan 2.2 decoder of this ComfyUI works in a way that 'Ovi Decode' does not "
                "know yet. Update this extension, or decode with 'Ovi Separate Latent', 'VAE "
                "Decode' and 'VAE Decode Audio'."
            )
        add(vae2_2.unpatchify(made, patch_size=2))
        return _corner(made)

    def know(_made: Tensor) -> Tensor:
        return replacements.pop(0).to(_made)

    changes = {model.decoder: take}
    if replacements:
        changes[model.decoder.middle[-1]] = know
    with lean_layers(model.decoder), _changed(changes):
        model.decode(latent)


def middle_of(model: nn.Module, latent: Tensor, device: torch.device) -> list[Tensor]:
    """Return what the middle layers make of each step [1, C, 1, h, w] of a latent, kept on a
    device.

    Their attention spans the picture, so that a tile alone would come out of them otherwise than
    the whole.
    """
    steps = []

    def keep(made: Tensor) -> Tensor:
        steps.append(made.to(device))
        return _corner(made)

    with lean_layers(model.decoder), _changed({model.decoder.middle[-1]: keep}):
        model.decode(latent)
    return steps


def _corner(made: Tensor) -> Tensor:
    """So little that what core still does with it costs nothing; a copy, for a view would hold the
    whole.
    """
    return made[..., :1, :1].clone()


@contextmanager
def _changed(changes: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While open, each of these layers gives what its function makes of its output."""
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output, change=change: change(output))
        for layer, change in changes.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
