"""Blocks of the towers in lock step: each tower reads the other as its self-attention left it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import Block, OtherTower
from .fused_ops import add, overwrites

# Core's index of the negative prompt in `transformer_options["cond_or_uncond"]`.
NEGATIVE = 1


class TowerInputs(NamedTuple):
    """What every block of one tower is its besides the hidden state."""

    time: Tensor  # [B, T, 6, D], one for L / T tokens in a row
    text: Tensor  # [B, text length, D]
    freqs_cis: Tensor  # [1, L, 1, d / 2, 2, 2]


# Hidden states [B, L, D] of the towers in use, the video tower first.
Hidden = tuple[Tensor, ...]


def copy_states(hidden: Hidden) -> Hidden:
    """Return hidden states that nobody else holds."""
    return tuple(x.clone(memory_format=torch.contiguous_format) for x in hidden)


def run_blocks(
    blocks: tuple[Block, ...],
    hidden: Hidden,
    inputs: tuple[TowerInputs, ...],
    transformer_options: dict,
) -> Hidden:
    """Run one block of one tower, or of both, over the hidden states its."""
    modulations = [block.modulate(its.time) for block, its in zip(blocks, inputs, strict=True)]
    hidden = tuple(
        block.attend_self(x, modulation, its.freqs_cis, transformer_options)
        for block, x, (modulation, _), its in zip(blocks, hidden, modulations, inputs, strict=True)
    )
    updates = [
        block.read(x, its.text, its.freqs_cis, other, transformer_options)
        for block, x, its, other in zip(
            blocks, hidden, inputs, _other_towers(hidden, inputs), strict=True
        )
    ]
    hidden = tuple(add(x, update) for x, update in zip(hidden, updates, strict=True))
    del updates
    return tuple(
        block.feed_forward(x, modulation)
        for block, x, (_, modulation) in zip(blocks, hidden, modulations, strict=True)
    )


def _other_towers(hidden: Hidden, inputs: tuple[TowerInputs, ...]) -> list[OtherTower | None]:
    """What each tower reads of the other; nothing where it is alone."""
    if len(hidden) == 1:
        return [None]
    video, audio = (OtherTower(x, its.freqs_cis) for x, its in zip(hidden, inputs, strict=True))
    return [audio, video]


def run_skipping_negative(
    blocks: tuple[Block, ...],
    hidden: Hidden,
    inputs: tuple[TowerInputs, ...],
    transformer_options: dict,
) -> Hidden:
    """Skip-layer guidance: samples of the negative prompt pass by this block, and cost nothing."""
    kinds = transformer_options.get("cond_or_uncond", [0])
    count = len(kinds)
    parts = [list(states) for states in zip(*(x.chunk(count) for x in hidden), strict=True)]
    for i, kind in enumerate(kinds):
        if kind != NEGATIVE:
            own = tuple(
                TowerInputs(its.time.chunk(count)[i], its.text.chunk(count)[i], its.freqs_cis)
                for its in inputs
            )
            parts[i] = run_blocks(blocks, tuple(parts[i]), own, transformer_options)
    if overwrites():
        return hidden  # its parts are views of it, and the block wrote over them
    return tuple(torch.cat(of_tower) for of_tower in zip(*parts, strict=True))
