"""Video latents to frames, in the largest tiles that fit in memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import comfy.model_management
import comfy.sd
import torch
from comfy.utils import ProgressBar
from torch import Tensor

from ..config import FRAMES_PER_CELL, PIXELS_PER_CELL
from ..core_facts import on_device
from ..log import log
from .streaming import bytes_held, decode_streaming, is_wan, middle_bytes, middle_of
from .tiles import Grid, least_work

# Cells along each side of a tile of 512 pixels.
USUAL_TILE = 32


def decode_whole(vae: comfy.sd.VAE, video: Tensor) -> Tensor:
    """Return the frames [B, F, H, W, 3] of a latent [B, 48, cells, H/16, W/16], decoded in one
    piece if that can be.

    Raises MemoryError, as all of these, if it runs out of memory even in the smallest tiles.
    """
    return _decode_fitting(vae, video, _grid(video, lambda *_: True))


def decode_tiled(vae: comfy.sd.VAE, video: Tensor) -> Tensor:
    """Return the frames as decode_whole, decoded in tiles of at most 512 pixels."""
    return _decode_fitting(vae, video, _grid(video, lambda *sides: max(sides) <= USUAL_TILE))


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


def memory_required(vae: comfy.sd.VAE, shape: torch.Size, tile: tuple[int, int]) -> float:
    """Return the bytes that decoding a latent of a shape takes on the device, besides weights.

    tile: its rows and columns, in cells.
    """
    model, picture = vae.first_stage_model, shape[-2:]
    kept = math.prod(_frames_shape(shape)) * _frames_dtype(vae).itemsize
    if is_wan(model):
        held = bytes_held(model, math.prod(tile), math.prod(picture), vae.vae_dtype)
        kept += (tile != picture) * middle_bytes(model, math.prod(shape[2:]), vae.vae_dtype)
    else:
        held = vae.memory_used_decode((1, *shape[1:3], *tile), vae.vae_dtype)
    return held + (kept if vae.output_device == vae.device else 0)


def _grid(video: Tensor, fits: Callable[[int, int], bool]) -> Grid:
    return least_work(*video.shape[-2:], fits)


def _load(vae: comfy.sd.VAE, video: Tensor, grid: Grid) -> None:
    needed = memory_required(vae, video.shape, (grid.rows.tile, grid.columns.tile))
    comfy.model_management.load_models_gpu(
        [vae.patcher], memory_required=needed, force_full_load=vae.disable_offload
    )


def _decode_fitting(vae: comfy.sd.VAE, video: Tensor, grid: Grid) -> Tensor:
    """Decode in these tiles and, as often as memory runs out, in tiles of at most half the size."""
    while True:
        try:
            _load(vae, video, grid)
            return _decode_tiles(vae, video, grid)
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
    smaller = _grid(video, lambda rows, columns: rows * columns <= grid.area // 2)
    width, height = grid.columns.tile * PIXELS_PER_CELL, grid.rows.tile * PIXELS_PER_CELL
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
def _decode_tiles(vae: comfy.sd.VAE, video: Tensor, grid: Grid) -> Tensor:
    frames = torch.zeros(
        _frames_shape(video.shape), dtype=_frames_dtype(vae), device=vae.output_device
    )
    bar = ProgressBar(len(grid) * frames.shape[0] * frames.shape[1])
    for clip, picture in zip(video.split(1), frames, strict=True):
        _decode_clip(vae, clip.to(device=vae.device, dtype=vae.vae_dtype), grid, picture, bar)
    return frames


def _decode_clip(
    vae: comfy.sd.VAE, latent: Tensor, grid: Grid, picture: Tensor, bar: ProgressBar
) -> None:
    """Add the frames of a latent [1, 48, cells, h, w] to a black picture [F, 16h, 16w, 3]."""
    model = vae.first_stage_model
    streams = is_wan(model)
    middle = middle_of(model, latent, picture.device) if streams and len(grid) > 1 else []
    for rows, columns, shares in grid.places():
        tile = latent[..., rows, columns]
        add = _adder(vae, picture[:, _pixels(rows), _pixels(columns)], shares, bar)
        if streams:
            decode_streaming(model, tile, add, (step[..., rows, columns] for step in middle))
        else:
            add(model.decode(tile))


def _adder(
    vae: comfy.sd.VAE, place: Tensor, shares: Tensor, bar: ProgressBar
) -> Callable[[Tensor], None]:
    """Return what adds the next frames [1, 3, f, h, w] of a tile, by its shares, to its place [F,
    h, w, 3].
    """
    made = 0

    def add(part: Tensor) -> None:
        nonlocal made
        comfy.model_management.throw_exception_if_processing_interrupted()
        shown = vae.process_output(part.to(place.dtype)).movedim(1, -1)[0] * shares.to(part.device)
        place[made : made + len(shown)] += shown.to(place.device)
        made += len(shown)
        bar.update(len(shown))

    return add


def _pixels(cells: slice) -> slice:
    return slice(cells.start * PIXELS_PER_CELL, cells.stop * PIXELS_PER_CELL)


def _frames_shape(shape: torch.Size) -> tuple[int, ...]:
    clips, _, cells, rows, columns = shape
    return (
        clips,
        (cells - 1) * FRAMES_PER_CELL + 1,
        rows * PIXELS_PER_CELL,
        columns * PIXELS_PER_CELL,
        3,
    )


def _frames_dtype(vae: comfy.sd.VAE) -> torch.dtype:
    """Of an IMAGE; newer versions of ComfyUI let their user choose."""
    return vae.vae_output_dtype() if hasattr(vae, "vae_output_dtype") else torch.float32
