"""One transformer block of a tower: self-attention, then a read of the prompt and of the other
tower, then the FFN.

Attribute names are the published checkpoint's keys.
Source: character-ai/Ovi, ovi/modules/model.py and ovi/modules/fusion.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import comfy.model_management
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..config import TowerConfig
from .fused_ops import add_gated, by_row, gelu, modulated_norm, overwrites, rms_norm, rotate


class SelfAttention(nn.Module):
    """Tokens of one tower read each other; queries and keys are normalised over all channels,
    before the heads.
    """

    def __init__(self, config: TowerConfig, factory: dict, operations):
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (
            operations.Linear(config.dim, config.dim, **factory) for _ in range(4)
        )
        self.norm_q, self.norm_k = (
            operations.RMSNorm(config.dim, eps=config.eps, **small(factory)) for _ in range(2)
        )

    def project(self, x: Tensor, rope: Tensor) -> Projections:
        """x [B, L, D], rope [1, L, 1, d / 2, 2, 2] -> query, key, value, each [B, L, D]."""
        query = rotate(rms_norm(self.norm_q, self.q(x)), rope, self.num_heads)
        key = rotate(rms_norm(self.norm_k, self.k(x)), rope, self.num_heads)
        return query, key, self.v(x)


class FusionCrossAttention(nn.Module):
    """One tower reads its prompt and the other tower; both reads share a query and an output layer."""

    def __init__(self, config: TowerConfig, factory: dict, operations):
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (
            operations.Linear(config.dim, config.dim, **factory) for _ in range(4)
        )
        self.norm_q, self.norm_k = (
            operations.RMSNorm(config.dim, eps=config.eps, **small(factory)) for _ in range(2)
        )
        self.k_fusion, self.v_fusion = (
            operations.Linear(config.dim, config.dim, **factory) for _ in range(2)
        )
        self.pre_attn_norm_fusion = operations.LayerNorm(
            config.dim, eps=config.eps, **small(factory)
        )
        self.norm_k_fusion = operations.RMSNorm(config.dim, eps=config.eps, **small(factory))

    def forward(
        self, x: Tensor, text: Tensor, rope: Tensor, other: Other | None, transformer_options: dict
    ) -> Tensor:
        """x [B, L, D] normalised, text [B, T, D], rope of x, the second tower or None when alone ->
        [B, L, D].
        """
        query = rms_norm(self.norm_q, self.q(x))
        read = attend(
            (query, rms_norm(self.norm_k, self.k(text)), self.v(text)),
            self.num_heads,
            transformer_options,
        )
        if other is not None:
            query = rotate(query, rope, self.num_heads)
            also = attend((query, *self.project_other(*other)), self.num_heads, transformer_options)
            del query
            read = read + also
            del also
        return self.o(read)

    def project_other(self, hidden: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """The other tower's hidden state [B, M, D] and its rope -> key and value [B, M, D]."""
        hidden = self.pre_attn_norm_fusion(hidden)
        key = rotate(rms_norm(self.norm_k_fusion, self.k_fusion(hidden)), rope, self.num_heads)
        return key, self.v_fusion(hidden)


# Query [B, L, D], key and value [B, M, D].
Projections = tuple[Tensor, Tensor, Tensor]
# The other tower as a block reads it: hidden state [B, M, D] after its self-attention, and its
# rope.
Other = tuple[Tensor, Tensor]


def attend(projections: Projections, num_heads: int, transformer_options: dict) -> Tensor:
    """Attention through core, which picks the kernel; [B, L, D]."""
    return optimized_attention(*projections, num_heads, transformer_options=transformer_options)


class Block(nn.Module):
    """A block in three parts, since each tower's second part reads the other as its first left it.

    Without gradients, the first and the last part write over the hidden state they are given.
    """

    def __init__(self, config: TowerConfig, factory: dict, operations):
        super().__init__()
        self.eps = config.eps
        self.self_attn = SelfAttention(config, factory, operations)
        self.norm3 = operations.LayerNorm(config.dim, eps=config.eps, **small(factory))
        self.cross_attn = FusionCrossAttention(config, factory, operations)
        # For the published names; feed_forward runs the layers one by one.
        self.ffn = nn.Sequential(
            operations.Linear(config.dim, config.ffn_dim, **factory),
            nn.GELU(approximate="tanh"),
            operations.Linear(config.ffn_dim, config.dim, **factory),
        )
        self.modulation = Modulation(6, config.dim, factory)

    def rows(self, time: Tensor) -> tuple[Rows, Rows]:
        """time [B, T, 6, D] -> rows of self-attention, then of the FFN."""
        rows = self.modulation(time).unbind(2)
        return rows[:3], rows[3:]

    def attend_self(self, x: Tensor, rows: Rows, rope: Tensor, transformer_options: dict) -> Tensor:
        """Self-attention, gated: x [B, L, D] -> [B, L, D]."""
        shift, scale, gate = rows
        projections = self.self_attn.project(modulated_norm(x, shift, scale, self.eps), rope)
        read = attend(projections, self.self_attn.num_heads, transformer_options)
        del projections
        return add_gated(x, self.self_attn.o(read), gate)

    def read(
        self, x: Tensor, text: Tensor, rope: Tensor, other: Other | None, transformer_options: dict
    ) -> Tensor:
        """Return what cross-attention, which has no gate, adds to x [B, L, D]."""
        return self.cross_attn(self.norm3(x), text, rope, other, transformer_options)

    def feed_forward(self, x: Tensor, rows: Rows) -> Tensor:
        """The FFN, gated: x [B, L, D] -> [B, L, D]."""
        widen, _, narrow = self.ffn

        def update(x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
            inner = widen(modulated_norm(x, shift, scale, self.eps))
            return add_gated(x, narrow(gelu(inner)), gate)

        if not overwrites() or x.shape[0] * x.shape[1] <= FFN_TOKENS:
            return update(x, *rows)
        for part in parts(x, rows, FFN_TOKENS):
            update(*part)
        return x


# Shift, scale and gate, each [B, T, D], each row for L / T tokens in a row.
Rows = tuple[Tensor, Tensor, Tensor]

# Tokens that go through the FFN at once: enough to keep a card busy, few enough that self-attention
# takes more memory.
FFN_TOKENS = 16384


def parts(x: Tensor, rows: Rows, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Cut x [B, L, D] and its rows into contiguous views of at most `size` tokens.

    Where T is 1 they are about equal, else as many whole rows as fit, at least one.
    """
    count = rows[0].shape[1]
    for sample in range(x.shape[0]):
        here = slice(sample, sample + 1)
        if count == 1:
            pieces = -(-x.shape[1] // size)
            yield from (
                (part, *(row[here] for row in rows)) for part in x[here].chunk(pieces, dim=1)
            )
            continue
        step = max(1, size * count // x.shape[1])
        steps = by_row(x, rows[0])
        for start in range(0, count, step):
            some = slice(start, start + step)
            yield steps[here, some].flatten(1, 2), *(row[here, some] for row in rows)


class Modulation(nn.Module):
    """Rows added to the time; a module of its own, since core changes no parameter that has modules
    beside it.
    """

    def __init__(self, count: int, dim: int, factory: dict):
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, count, dim, **small(factory)))

    def forward(self, time: Tensor) -> Tensor:
        """time [B, T, count, D], or [B, T, 1, D] for all rows -> [B, T, count, D]."""
        return (
            comfy.model_management.cast_to(self.modulation, time.dtype, time.device).unsqueeze(1)
            + time
        )


class Head(nn.Module):
    """Hidden state to velocity, modulated by the time embedding itself (not by its projection)."""

    def __init__(self, config: TowerConfig, cells: int, factory: dict, operations):
        super().__init__()
        self.eps = config.eps
        self.head = operations.Linear(config.dim, cells * config.out_dim, **factory)
        self.modulation = Modulation(2, config.dim, factory)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, L, D], time [B, T, D] -> [B, L, cells * out_dim].

        In the precision of time, since guidance multiplies what is rounded here.
        """
        shift, scale = self.modulation(time.unsqueeze(2)).unbind(2)
        return precisely(self.head, modulated_norm(x, shift, scale, self.eps, time.dtype), x.dtype)


def small(factory: dict) -> dict:
    """Where and in what precision to keep norms and modulations: never in eight bits, which would
    save nothing.
    """
    dtype = factory["dtype"]
    return {
        **factory,
        "dtype": torch.bfloat16 if dtype is not None and dtype.itemsize == 1 else dtype,
    }


def precisely(layer, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Run one of core's layers in the precision of x, or in dtype if its weights are quantised:
    cores need that.
    """
    weight = layer.weight
    if isinstance(weight, QuantizedTensor) or weight.dtype.itemsize == 1:
        return layer(x.to(dtype)).to(x.dtype)
    return layer(x) if weight.dtype == x.dtype else layer.forward_comfy_cast_weights(x)
