"""Tiles cover a picture evenly, overlap enough, and their masks add up without a tile's edge in
them.
"""

import pytest
import torch
from comfyui_ovi.ovi_model.config import SPATIAL_COMPRESSION
from comfyui_ovi.ovi_model.decode import tiles

SIZES = [1, 2, 15, 16, 23, 24, 25, 33, 44, 60, 61, 80, 120]
AXES = [axis for size in SIZES for axis in tiles.cuts(size)]


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_equal_tiles_reach_from_end_to_end_and_overlap(axis):
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.tile == axis.size
    assert axis.tile >= min(tiles.SMALLEST, axis.size)
    for start, following in zip(axis.starts, axis.starts[1:], strict=False):
        assert tiles.OVERLAP <= start + axis.tile - following <= tiles.OVERLAP + 2


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_shares_sum_to_one_and_leave_out_the_edges(axis):
    masks = axis.blend_masks()
    assert masks.shape == (len(axis.starts), axis.size * SPATIAL_COMPRESSION)
    assert masks.min() >= 0
    torch.testing.assert_close(masks.sum(0), torch.ones(masks.shape[1]))
    edge = tiles.EDGE * SPATIAL_COMPRESSION
    for (cells, mask), start in zip(axis.tiles(), axis.starts, strict=True):
        assert (cells.start, cells.stop) == (start, start + axis.tile)
        assert len(mask) == axis.tile * SPATIAL_COMPRESSION
        assert not mask[:edge].any() or start == 0
        assert not mask[-edge:].any() or cells.stop == axis.size
    outside = masks.clone()
    for number, (cells, _) in enumerate(axis.tiles()):
        outside[number, cells.start * SPATIAL_COMPRESSION : cells.stop * SPATIAL_COMPRESSION] = 0
    assert not outside.any()


def test_one_tile_goes_over_into_the_next_in_a_straight_line():
    left, right = tiles.cut(24, 2).blend_masks()
    assert (left[: 11 * 16] == 1).all()
    torch.testing.assert_close(right[11 * 16 : 13 * 16], (torch.arange(32) + 0.5) / 32)
    assert (right[13 * 16 :] == 1).all()


def test_a_grid_shares_out_every_pixel():
    grid = tiles.Grid(tiles.cut(33, 3), tiles.cut(25, 2))
    total = torch.zeros(33 * 16, 25 * 16, 1)
    for rows, columns, masks in grid.tiles():
        place = slice(rows.start * 16, rows.stop * 16), slice(columns.start * 16, columns.stop * 16)
        assert masks.shape == total[place].shape
        total[place] += masks
    torch.testing.assert_close(total, torch.ones_like(total))
    assert len(grid) == 6
    assert grid.area == 17 * 17


@pytest.mark.parametrize(
    ("rows", "columns", "area", "expected"),
    [
        (44, 44, 1936, (44, 44)),
        (44, 44, 1935, (44, 26)),
        (44, 80, 2000, (44, 44)),
        (60, 60, 1024, (34, 26)),
        (60, 60, 300, (17, 17)),
        (60, 60, 0, (17, 17)),  # nothing fits: the smallest
        (15, 15, 0, (15, 15)),
        (2, 40, 50, (2, 24)),
    ],
)
def test_the_fewest_cells_that_fit(rows, columns, area, expected):
    grid = tiles.least_work(rows, columns, lambda height, width: height * width <= area)
    assert (grid.height.tile, grid.width.tile) == expected
