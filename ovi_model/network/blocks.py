"""A transformer block of each tower, run as one: self-attention, a read of prompt and other tower,
the FFN.

Attribute names are the published checkpoint's keys.
Source: character-ai/Ovi, ovi/modules/model.py and ovi/modules/fusion.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import comfy.model_management
import torch
from torch import Tensor, nn

from ..config import TowerConfig
from . import patches
from .attention import FusionCrossAttention, OtherTower, SelfAttention
from .fused_ops import add, add_gated, by_timestep, gelu, modulated_norm, overwrites
from .precision import norm_factory, precisely

# Tokens that go through the FFN at once: enough to keep a card busy, few enough that self-attention
# takes more memory.
FFN_TOKENS = 16384


class Modulation(NamedTuple):
    """How a norm's output is changed and its layer's update weighed, for L / T tokens in a row."""

    shift: Tensor  # [B, T, D]
    scale: Tensor  # [B, T, D]
    gate: Tensor  # [B, T, D]


class TowerInputs(NamedTuple):
    """What every block of one tower is given besides the hidden state."""

    tower: str  # "video" or "audio"
    time: Tensor  # [B, T, 6, D], one for L / T tokens in a row
    text: Tensor  # [B, T, D], the last row for all after it
    freqs_cis: Tensor  # [1, L, 1, d / 2, 2, 2]
    grid: tuple[int, int, int]  # frames, height and width in tokens, L in all


# Hidden states [B, L, D] of the towers in use, the video tower first.
Hidden = tuple[Tensor, ...]


class Block(nn.Module):
    """A block in three parts, since each tower's second part reads the other as its first left it.

    Without gradients, the first and the last part write over the hidden state they are given.
    """

    def __init__(self, config: TowerConfig, factory: dict, operations):
        super().__init__()
        self.eps = config.eps
        self.self_attn = SelfAttention(config, factory, operations)
        self.norm3 = operations.LayerNorm(config.dim, eps=config.eps, **norm_factory(factory))
        self.cross_attn = FusionCrossAttention(config, factory, operations)
        # For the published names; feed_forward runs the layers one by one.
        self.ffn = nn.Sequential(
            operations.Linear(config.dim, config.ffn_dim, **factory),
            nn.GELU(approximate="tanh"),
            operations.Linear(config.ffn_dim, config.dim, **factory),
        )
        self.modulation = ModulationParameters(6, config.dim, factory)

    def forward(
        self,
        hidden: Hidden,
        inputs: tuple[TowerInputs, ...],
        transformer_options: dict,
        partner: Block | None = None,
    ) -> Hidden:
        """Run this block, and in lock step its partner of the other tower, on their hidden states.

        One forward for both, so that what holds a module's forward (checkpoints of training, a
        compiler, prefetched weights) holds the pair.
        """
        blocks = (self,) if partner is None else (self, partner)
        options = [patches.with_tower(transformer_options, its.tower, its.grid) for its in inputs]
        modulations = [block.modulate(its.time) for block, its in zip(blocks, inputs, strict=True)]
        hidden = tuple(
            block.attend_self(x, modulation, its.freqs_cis, asked)
            for block, x, (modulation, _), its, asked in zip(
                blocks, hidden, modulations, inputs, options, strict=True
            )
        )
        others = other_towers(hidden, inputs, transformer_options)
        updates = [
            block.read(x, its.text, its.freqs_cis, other, asked)
            for block, x, its, other, asked in zip(
                blocks, hidden, inputs, others, options, strict=True
            )
        ]
        hidden = tuple(
            patches.change_state(add(x, update), asked)
            for x, update, asked in zip(hidden, updates, options, strict=True)
        )
        del updates, others
        return tuple(
            block.feed_forward(x, modulation)
            for block, x, (_, modulation) in zip(blocks, hidden, modulations, strict=True)
        )

    def modulate(self, time: Tensor) -> tuple[Modulation, Modulation]:
        """time [B, T, 6, D] -> modulation of self-attention and of the FFN."""
        six = self.modulation(time).unbind(2)
        return Modulation(*six[:3]), Modulation(*six[3:])

    def attend_self(
        self, x: Tensor, modulation: Modulation, freqs_cis: Tensor, transformer_options: dict
    ) -> Tensor:
        """Self-attention, gated: x [B, L, D] -> [B, L, D]."""
        shift, scale, gate = modulation
        # Called without `__call__`, which would hold on to the modulated state.
        update = self.self_attn.forward(
            modulated_norm(x, shift, scale, self.eps), freqs_cis, transformer_options
        )
        return add_gated(x, update, gate)

    def read(
        self,
        x: Tensor,
        text: Tensor,
        freqs_cis: Tensor,
        other: OtherTower | None,
        transformer_options: dict,
    ) -> Tensor:
        """Return what cross-attention, which has no gate, adds to x [B, L, D]."""
        return self.cross_attn(self.norm3(x), text, freqs_cis, other, transformer_options)

    def feed_forward(self, x: Tensor, modulation: Modulation) -> Tensor:
        """The FFN, gated: x [B, L, D] -> [B, L, D]."""
        widen, _, narrow = self.ffn

        def update(x: Tensor, modulation: Modulation) -> Tensor:
            inner = widen(modulated_norm(x, modulation.shift, modulation.scale, self.eps))
            return add_gated(x, narrow(gelu(inner)), modulation.gate)

        if not overwrites() or x.shape[0] * x.shape[1] <= FFN_TOKENS:
            return update(x, modulation)
        for chunk, its_modulation in chunks(x, modulation, FFN_TOKENS):
            update(chunk, its_modulation)
        return x


def other_towers(
    hidden: Hidden, inputs: tuple[TowerInputs, ...], transformer_options: dict
) -> list[OtherTower | None]:
    """What each tower reads of the other: nothing where it is alone, or where a node cut this way.

    Source: core's names of the ways of LTX-2, `a2v_cross_attn` and `v2a_cross_attn`.
    """
    if len(hidden) == 1:
        return [None]
    video, audio = (OtherTower(x, its.freqs_cis) for x, its in zip(hidden, inputs, strict=True))
    return [
        audio if transformer_options.get("a2v_cross_attn", True) else None,
        video if transformer_options.get("v2a_cross_attn", True) else None,
    ]


def chunks(x: Tensor, modulation: Modulation, size: int) -> Iterator[tuple[Tensor, Modulation]]:
    """Cut x [B, L, D] and its modulation into contiguous views of at most `size` tokens.

    Where T is 1 they are about equal; else each has as many whole timesteps as fit, at least one.
    """
    timesteps = modulation.shift.shape[1]
    for sample in range(x.shape[0]):
        here = slice(sample, sample + 1)
        own = Modulation(*(part[here] for part in modulation))
        if timesteps == 1:
            count = -(-x.shape[1] // size)
            yield from ((chunk, own) for chunk in x[here].chunk(count, dim=1))
            continue
        step = max(1, size * timesteps // x.shape[1])
        grouped = by_timestep(x[here], own.shift)
        for start in range(0, timesteps, step):
            some = slice(start, start + step)
            yield grouped[:, some].flatten(1, 2), Modulation(*(part[:, some] for part in own))


class ModulationParameters(nn.Module):
    """What is added to the time; core changes no parameter that has modules beside it."""

    def __init__(self, count: int, dim: int, factory: dict):
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, count, dim, **norm_factory(factory)))

    def forward(self, time: Tensor) -> Tensor:
        """time [B, T, count, D], or [B, T, 1, D] for all of them -> [B, T, count, D]."""
        modulation = comfy.model_management.cast_to(self.modulation, time.dtype, time.device)
        return modulation.unsqueeze(1) + time


class Head(nn.Module):
    """Hidden state to velocity, modulated by the time embedding itself (not by its projection)."""

    def __init__(self, config: TowerConfig, out_channels: int, factory: dict, operations):
        super().__init__()
        self.eps = config.eps
        self.head = operations.Linear(config.dim, out_channels, **factory)
        self.modulation = ModulationParameters(2, config.dim, factory)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, L, D], time [B, T, D] -> [B, L, out_channels].

        In the precision of time, since guidance multiplies what is rounded here.
        """
        shift, scale = self.modulation(time.unsqueeze(2)).unbind(2)
        normed = modulated_norm(x, shift, scale, self.eps, time.dtype)
        return precisely(self.head, normed, x.dtype)
