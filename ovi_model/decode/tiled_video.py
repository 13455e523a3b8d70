"""Video latents to frames, in the largest tiles that fit in memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import comfy.model_management
import comfy.sd
import torch
from comfy.utils import ProgressBar
from torch import Tensor

from ..config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION
from ..core_facts import on_device
from ..load.tiny_vae import in_its_scale, is_tiny
from ..log import log
from . import tiny
from .streaming import bytes_held, decode_streaming, is_wan, middle_bytes, middle_of
from .tiles import Grid, least_work

# Latent pixels along each side of a tile of 512 pixels.
USUAL_TILE = 32


def decode_whole(vae: comfy.sd.VAE, video: Tensor) -> Tensor:
    """Return the frames [B, 4F - 3, 16H, 16W, 3] of a latent [B, 48, F, H, W], decoded in one tile.

    Raises MemoryError, as all of these, if it runs out of memory even in the smallest tiles.
    """
    return _decode_fitting(vae, video, _grid(video, lambda *_: True))


def decode_tiled(vae: comfy.sd.VAE, video: Tensor, has_bar: bool = True) -> Tensor:
    """Return the frames as decode_whole, decoded in tiles of at most 512 pixels.

    has_bar: whether the page shows how far it is.
    """
    return _decode_fitting(vae, video, _usual_grid(video.shape), has_bar)


def decode_largest(vae: comfy.sd.VAE, video: Tensor) -> Tensor:
    """Return the frames as decode_whole, decoded in the largest tiles for which there is memory.

    That is first asked of ComfyUI, which sends other models off the device for it, and then looked
    for.
    """
    management, device = comfy.model_management, vae.device

    def largest(room: float) -> Grid:
        room -= management.extra_reserved_memory()
        return _grid(video, lambda *sides: memory_required(vae, video.shape, sides) <= room)

    weights = 1.1 * vae.model_size()  # as ComfyUI reckons
    _load(vae, video, largest(management.get_total_memory(device) - weights))
    # Newer versions of ComfyUI know of more that they can take back.
    free_memory = getattr(vae.patcher, "get_free_memory", management.get_free_memory)
    return _decode_fitting(vae, video, largest(free_memory(device)))


def tile_memory_required(vae: comfy.sd.VAE, shape: torch.Size) -> float:
    """Return the bytes that decode_tiled takes for a latent of a shape, besides weights."""
    grid = _usual_grid(shape)
    return memory_required(vae, shape, (grid.height.tile, grid.width.tile))


def memory_required(vae: comfy.sd.VAE, shape: torch.Size, tile: tuple[int, int]) -> float:
    """Return the bytes that decoding a latent of a shape takes on the device, besides weights.

    tile: its height and width in the latent.
    """
    model, picture = vae.first_stage_model, shape[-2:]
    kept = math.prod(_frames_shape(shape)) * _frames_dtype(vae).itemsize
    if is_wan(model):
        held = bytes_held(model, math.prod(tile), math.prod(picture), vae.vae_dtype)
        kept += (tile != picture) * middle_bytes(model, math.prod(shape[2:]), vae.vae_dtype)
    elif is_tiny(model):
        held = tiny.bytes_held(math.prod(tile), shape[2], vae.vae_dtype)
    else:
        held = vae.memory_used_decode((1, *shape[1:3], *tile), vae.vae_dtype)
    return held + (kept if vae.output_device == vae.device else 0)


def _usual_grid(shape: torch.Size) -> Grid:
    return least_work(*shape[-2:], lambda *sides: max(sides) <= USUAL_TILE)


def _grid(video: Tensor, fits: Callable[[int, int], bool]) -> Grid:
    return least_work(*video.shape[-2:], fits)


def _load(vae: comfy.sd.VAE, video: Tensor, grid: Grid) -> None:
    needed = memory_required(vae, video.shape, (grid.height.tile, grid.width.tile))
    comfy.model_management.load_models_gpu(
        [vae.patcher], memory_required=needed, force_full_load=vae.disable_offload
    )


def _decode_fitting(vae: comfy.sd.VAE, video: Tensor, grid: Grid, has_bar: bool = True) -> Tensor:
    """Decode in these tiles and, as often as memory runs out, in tiles of at most half the size."""
    while True:
        try:
            _load(vae, video, grid)
            return _decode_tiles(vae, video, grid, has_bar)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        # Not sooner, for the error keeps what the decoder held.
        comfy.model_management.soft_empty_cache()
        grid = _smaller(video, grid)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # Newer versions of ComfyUI know the driver's own errors too.
    is_oom = getattr(comfy.model_management, "is_oom", None)
    return is_oom(error) if is_oom else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def _smaller(video: Tensor, grid: Grid) -> Grid:
    """Return a grid of at most half as large tiles, or the smallest; raise MemoryError if they were
    these.
    """
    smaller = _grid(video, lambda height, width: height * width <= grid.area // 2)
    width, height = (axis.tile * SPATIAL_COMPRESSION for axis in (grid.width, grid.height))
    if smaller.area >= grid.area:
        raise MemoryError(
            f"Ovi Decode ran out of memory even in tiles of {width} x {height} pixels, the "
            "smallest. Close other programs that use the graphics card, or start ComfyUI with "
            "--cpu-vae, which decodes on the processor."
        )
    log.warning("out of memory in tiles of %d x %d pixels; taking smaller ones.", width, height)
    return smaller


@torch.no_grad()
@on_device
def _decode_tiles(vae: comfy.sd.VAE, video: Tensor, grid: Grid, has_bar: bool = True) -> Tensor:
    frames = torch.zeros(
        _frames_shape(video.shape), dtype=_frames_dtype(vae), device=vae.output_device
    )
    bar = ProgressBar(len(grid) * frames.shape[0] * frames.shape[1]) if has_bar else None
    for clip, picture in zip(video.split(1), frames, strict=True):
        _decode_clip(vae, clip.to(device=vae.device, dtype=vae.vae_dtype), grid, picture, bar)
    return frames


def _decode_clip(
    vae: comfy.sd.VAE, latent: Tensor, grid: Grid, picture: Tensor, bar: ProgressBar | None
) -> None:
    """Add the frames of a latent [1, 48, F, H, W] to a black picture [4F - 3, 16H, 16W, 3]."""
    model = vae.first_stage_model
    latent = in_its_scale(vae, latent) if is_tiny(model) else latent
    middle = middle_of(model, latent, picture.device) if is_wan(model) and len(grid) > 1 else []
    for down, across, mask in grid.tiles():
        tile = latent[..., down, across]
        add = _adder(vae, picture[:, _pixels(down), _pixels(across)], mask, bar)
        if is_wan(model):
            decode_streaming(model, tile, add, (step[..., down, across] for step in middle))
        elif is_tiny(model):
            tiny.decode_tiny(model, tile, add)
        else:
            add(model.decode(tile))


def _adder(
    vae: comfy.sd.VAE, place: Tensor, mask: Tensor, bar: ProgressBar | None
) -> Callable[[Tensor], None]:
    """Return what adds the next frames [1, 3, f, h, w] of a tile to its place [F, h, w, 3].

    mask: how much of the tile shows, [h, w, 1].
    """
    made = 0

    def add(part: Tensor) -> None:
        nonlocal made
        comfy.model_management.throw_exception_if_processing_interrupted()
        shown = vae.process_output(part.to(place.dtype)).movedim(1, -1)[0] * mask.to(part.device)
        place[made : made + len(shown)] += shown.to(place.device)
        made += len(shown)
        if bar:
            bar.update(len(shown))

    return add


def _pixels(latent_pixels: slice) -> slice:
    start, stop = latent_pixels.start, latent_pixels.stop
    return slice(start * SPATIAL_COMPRESSION, stop * SPATIAL_COMPRESSION)


def _frames_shape(shape: torch.Size) -> tuple[int, ...]:
    batch, _, time, height, width = shape
    frames = (time - 1) * TEMPORAL_COMPRESSION + 1
    return batch, frames, height * SPATIAL_COMPRESSION, width * SPATIAL_COMPRESSION, 3


def _frames_dtype(vae: comfy.sd.VAE) -> torch.dtype:
    """Of an IMAGE; newer versions of ComfyUI let their user choose."""
    return vae.vae_output_dtype() if hasattr(vae, "vae_output_dtype") else torch.float32
