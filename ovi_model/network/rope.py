"""Rotary position embedding that puts every video and audio token on one clock.

Tensors have core's layout: [1, L, 1, head_dim / 2, 2, 2], one 2 x 2 rotation for each pair of
channels (2i, 2i + 1).
Source: character-ai/Ovi, ovi/modules/model.py, rope_params and rope_apply; arXiv 2510.01284,
section 3.1.
"""

from __future__ import annotations

import torch
from comfy.ldm.flux.math import rope
from torch import Tensor

from ..config import AUDIO_ROPE_SCALE, AUDIO_STEPS_PER_INTERVAL, ROPE_THETA
from .references import Clock


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that turn with time, height and width: 44, 42 and 42 of 128."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def video_freqs_cis(
    frames: int,
    height: int,
    width: int,
    head_dim: int,
    device,
    options: dict | None = None,
    clock: Clock | None = None,
) -> Tensor:
    """Return [1, frames * height * width, 1, head_dim / 2, 2, 2]; all three count patches.

    options: core's `rope_options`, a scale and a shift of positions for t, y and x. clock: of
    references among the frames.
    """
    grid = (frames, height, width)
    by_axis = []
    for axis, (name, length, dim) in enumerate(zip("tyx", grid, axis_dims(head_dim), strict=True)):
        positions = torch.arange(length, device=device)
        if name == "t" and clock is not None:
            positions = clock.frame_times(length, device)
        freqs_cis = _freqs_cis(_placed(positions, name, options), dim)
        shape = [1, 1, 1, dim // 2, 2, 2]
        shape[axis] = length
        by_axis.append(freqs_cis.view(shape).expand(*grid, -1, -1, -1))
    tokens = frames * height * width
    return torch.cat(by_axis, dim=3).reshape(1, tokens, 1, head_dim // 2, 2, 2)


def audio_freqs_cis(
    steps: int,
    head_dim: int,
    device,
    start: float = 0.0,
    options: dict | None = None,
    clock: Clock | None = None,
) -> Tensor:
    """Return [1, steps, 1, head_dim / 2, 2, 2]: only the channels of time turn.

    start: position of the first step, in audio steps. options: as for the video, of which time
    holds here too, so that both towers stay on one clock. clock: of references among the steps,
    else Ovi's own.
    """
    dim = axis_dims(head_dim)[0]
    clock = Clock(AUDIO_ROPE_SCALE) if clock is None else clock
    positions = clock.step_times(steps, start, device) * clock.audio_scale
    positions = _placed(positions, "t", options)
    still = torch.eye(2, device=device).expand(steps, (head_dim - dim) // 2, 2, 2)
    freqs_cis = torch.cat([_freqs_cis(positions, dim), still], dim=1)
    return freqs_cis.view(1, steps, 1, head_dim // 2, 2, 2)


def _placed(positions: Tensor, axis: str, options: dict | None) -> Tensor:
    """Scale and shift positions [L] as core's `rope_options` say for an axis, "t", "y" or "x"."""
    if not options:
        return positions
    return positions * options.get(f"scale_{axis}", 1.0) + options.get(f"shift_{axis}", 0.0)


def _freqs_cis(positions: Tensor, dim: int) -> Tensor:
    """positions [L] -> [L, dim / 2, 2, 2], float32."""
    return rope(positions.unsqueeze(0), dim, ROPE_THETA)[0]


def window_offset(window) -> float:
    """Return where a context window's sound begins on the clock of its picture, in audio steps.

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
