"""Rotations that put every video and audio token on one clock.

Tables have core's layout: [1, L, 1, head_dim / 2, 2, 2], one 2 x 2 rotation for each pair of
channels (2i, 2i + 1). Source: character-ai/Ovi, ovi/modules/model.py, rope_params and rope_apply;
arXiv 2510.01284, section 3.1.
"""

from __future__ import annotations

import torch
from comfy.ldm.flux.math import rope
from torch import Tensor

from ..config import AUDIO_ROPE_SCALE, AUDIO_STEPS_PER_INTERVAL, ROPE_THETA
from .fused_ops import PRECISE_DEVICES


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that turn with time, row and column: 44, 42 and 42 of 128."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def video_rotations(frames: int, rows: int, columns: int, head_dim: int, device) -> Tensor:
    """Return [1, frames * rows * columns, 1, head_dim / 2, 2, 2] for tokens in the order frame,
    row, column.
    """
    grid = (frames, rows, columns)
    tables = []
    for axis, (length, dim) in enumerate(zip(grid, axis_dims(head_dim), strict=True)):
        table = _rotations(torch.arange(length, device=device), dim)
        shape = [1, 1, 1, dim // 2, 2, 2]
        shape[axis] = length
        tables.append(table.view(shape).expand(*grid, -1, -1, -1))
    return torch.cat(tables, dim=3).reshape(1, frames * rows * columns, 1, head_dim // 2, 2, 2)


def audio_rotations(steps: int, head_dim: int, device, start: float = 0.0) -> Tensor:
    """Return [1, steps, 1, head_dim / 2, 2, 2]: the time channels turn, the others stay as they
    are.

    start: position of the first step, in audio steps.
    """
    dim = axis_dims(head_dim)[0]
    turned = _rotations((torch.arange(steps, device=device) + start) * AUDIO_ROPE_SCALE, dim)
    still = torch.eye(2, device=device).expand(steps, (head_dim - dim) // 2, 2, 2)
    return torch.cat([turned, still], dim=1).view(1, steps, 1, head_dim // 2, 2, 2)


def _rotations(positions: Tensor, dim: int) -> Tensor:
    """positions [L] -> [L, dim / 2, 2, 2], float32."""
    return rope(positions.unsqueeze(0), dim, ROPE_THETA)[0]


def window_offset(window) -> float:
    """Return the place of the first sound of a context window on the clock of its first picture, in
    audio steps.

    window: core's IndexListContextWindow, or None outside context windows. Core may put one more
    video frame, the anchor, before the window, and rounds the sound's first step; the offset keeps
    both towers on one clock.
    """
    if window is None:
        return 0.0
    anchor = getattr(window, "causal_anchor_index", None)
    first_frame = window.index_list[0] if anchor is None else anchor
    first_step = window.modality_windows[1].index_list[0]
    return first_step - first_frame * AUDIO_STEPS_PER_INTERVAL


def time_waves(timestep: Tensor, dim: int) -> Tensor:
    """timestep [B, T] -> cosines, then sines, of it at dim / 2 frequencies, [B, T, dim], float32.

    In float64 where the device has it: at t near 1000, float32 angles are off by up to 6e-5.
    """
    exact = torch.float64 if timestep.device.type in PRECISE_DEVICES else torch.float32
    half = dim // 2
    frequencies = ROPE_THETA ** (-torch.arange(half, device=timestep.device, dtype=exact) / half)
    angles = timestep.to(exact).unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()
