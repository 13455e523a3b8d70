"""Where the overlapping tiles of a picture lie, and how much of each tile shows at each pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import PIXELS_PER_CELL

# Cells. What a tile says at its edge is wrong, for it does not see beyond: there its neighbour
# alone shows. Over the rest of an overlap one goes over into the other. benchmarks/decode.py
# measures what is left to be seen.
OVERLAP = 8
EDGE = 3
SMALLEST = 16


@dataclass(frozen=True)
class Axis:
    """One side of a picture cut into tiles of one length, in cells."""

    size: int
    tile: int
    starts: tuple[int, ...]

    def shares(self) -> Tensor:
        """Return the share [tiles, size * 16] that each tile has at each pixel; the shares of a
        pixel sum to one.
        """
        middles = (
            torch.arange(self.size * PIXELS_PER_CELL, dtype=torch.float64) + 0.5
        ) / PIXELS_PER_CELL
        heights = [self._height(start, middles) for start in self.starts]
        return torch.stack(heights).div(sum(heights)).float()

    def places(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the cells of each tile and its shares [tile * 16]."""
        for start, share in zip(self.starts, self.shares(), strict=True):
            first = start * PIXELS_PER_CELL
            yield (
                slice(start, start + self.tile),
                share[first : first + self.tile * PIXELS_PER_CELL],
            )

    def _height(self, start: int, places: Tensor) -> Tensor:
        """Zero outside a tile and at its edges, one inside, in between a straight line; a picture's
        edge is none.
        """
        stop = start + self.tile
        begin = places - start if start > 0 else torch.full_like(places, torch.inf)
        end = stop - places if stop < self.size else torch.full_like(places, torch.inf)
        return ((torch.minimum(begin, end) - EDGE) / (OVERLAP - 2 * EDGE)).clamp(0, 1)


@dataclass(frozen=True)
class Grid:
    """A picture cut into tiles of one size."""

    rows: Axis
    columns: Axis

    @property
    def area(self) -> int:
        """Cells of a tile."""
        return self.rows.tile * self.columns.tile

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def places(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield the rows and columns of each tile, in cells, and its shares [height, width, 1] in
        pixels.
        """
        for down, down_share in self.rows.places():
            for across, across_share in self.columns.places():
                yield down, across, (down_share[:, None] * across_share)[..., None]


def cut(size: int, count: int) -> Axis:
    """Cut a side into as many equal tiles, the shortest that overlap enough and reach from end to
    end.
    """
    tile = math.ceil((size + (count - 1) * OVERLAP) / count)
    last = size - tile
    starts = (
        tuple(round(number * last / (count - 1)) for number in range(count)) if count > 1 else (0,)
    )
    return Axis(size, tile, starts)


def cuts(size: int) -> list[Axis]:
    """Every way to cut a side into tiles of at least the smallest length, beginning with the whole."""
    whole = cut(size, 1)
    most = max(1, (size - OVERLAP) // (SMALLEST - OVERLAP))
    return [whole, *(cut(size, count) for count in range(2, most + 1))]


def least_work(rows: int, columns: int, fits: Callable[[int, int], bool]) -> Grid:
    """Return the grid whose tiles together hold the fewest cells, of those whose tile fits; else
    the smallest tile.

    fits: of the rows and columns of a tile.
    """
    grids = [Grid(down, across) for down in cuts(rows) for across in cuts(columns)]
    fitting = [grid for grid in grids if fits(grid.rows.tile, grid.columns.tile)]
    if not fitting:
        return min(grids, key=lambda grid: grid.area)
    return min(fitting, key=lambda grid: (len(grid) * grid.area, len(grid)))
