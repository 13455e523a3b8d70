"""Where the overlapping tiles of a picture lie, and how much of each shows at each pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import SPATIAL_COMPRESSION

# Latent pixels. What a tile says at its edge is wrong, for it does not see beyond: there its
# neighbour alone shows. Over the rest of an overlap one goes over into the other.
# benchmarks/decode.py measures what is left to be seen.
OVERLAP = 8
EDGE = 3
SMALLEST = 16


@dataclass(frozen=True)
class Axis:
    """One side of a picture cut into tiles of one length, in latent pixels."""

    size: int
    tile: int
    starts: tuple[int, ...]

    def blend_masks(self) -> Tensor:
        """Return how much each tile shows at each pixel, [tiles, size * 16]; tiles sum to one."""
        pixels = torch.arange(self.size * SPATIAL_COMPRESSION, dtype=torch.float64)
        middles = (pixels + 0.5) / SPATIAL_COMPRESSION
        ramps = [self._ramp(start, middles) for start in self.starts]
        return torch.stack(ramps).div(sum(ramps)).float()

    def tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield where each tile lies and its blend mask [tile * 16]."""
        for start, mask in zip(self.starts, self.blend_masks(), strict=True):
            stop = start + self.tile
            own = slice(start * SPATIAL_COMPRESSION, stop * SPATIAL_COMPRESSION)
            yield slice(start, stop), mask[own]

    def _ramp(self, start: int, places: Tensor) -> Tensor:
        """Zero outside a tile and at its edges, one inside, in between a straight line.

        A tile has no edge where the picture ends.
        """
        stop = start + self.tile
        from_start = places - start if start > 0 else torch.full_like(places, torch.inf)
        to_stop = stop - places if stop < self.size else torch.full_like(places, torch.inf)
        return ((torch.minimum(from_start, to_stop) - EDGE) / (OVERLAP - 2 * EDGE)).clamp(0, 1)


@dataclass(frozen=True)
class Grid:
    """A picture cut into tiles of one size."""

    height: Axis
    width: Axis

    @property
    def area(self) -> int:
        """Latent pixels of a tile."""
        return self.height.tile * self.width.tile

    def __len__(self) -> int:
        return len(self.height.starts) * len(self.width.starts)

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield where each tile lies, down and across, and its blend mask [16 h, 16 w, 1]."""
        for down, mask_down in self.height.tiles():
            for across, mask_across in self.width.tiles():
                yield down, across, (mask_down[:, None] * mask_across)[..., None]


def cut(size: int, count: int) -> Axis:
    """Cut a side into as many tiles, the shortest that overlap enough and reach to both ends."""
    tile = math.ceil((size + (count - 1) * OVERLAP) / count)
    if count == 1:
        return Axis(size, tile, (0,))
    last = size - tile
    return Axis(size, tile, tuple(round(number * last / (count - 1)) for number in range(count)))


def cuts(size: int) -> list[Axis]:
    """Every way to cut a side into tiles of at least the smallest length, the whole first."""
    whole = cut(size, 1)
    most = max(1, (size - OVERLAP) // (SMALLEST - OVERLAP))
    return [whole, *(cut(size, count) for count in range(2, most + 1))]


def least_work(height: int, width: int, fits: Callable[[int, int], bool]) -> Grid:
    """Return the grid whose tiles together are the smallest, of those whose tile fits.

    fits: of a tile's height and width. If none fits, the grid of the smallest tile.
    """
    grids = [Grid(down, across) for down in cuts(height) for across in cuts(width)]
    fitting = [grid for grid in grids if fits(grid.height.tile, grid.width.tile)]
    if not fitting:
        return min(grids, key=lambda grid: grid.area)
    return min(fitting, key=lambda grid: (len(grid) * grid.area, len(grid)))
