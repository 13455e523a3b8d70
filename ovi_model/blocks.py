"""One transformer block of a tower: self-attention, then a read of the prompt and of the other tower, then the FFN.

Attribute names are the published checkpoint's keys.
Source: character-ai/Ovi, ovi/modules/model.py and ovi/modules/fusion.py.
"""

from __future__ import annotations

import comfy.model_management
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from .config import TowerConfig
from .rope import rotate


class SelfAttention(nn.Module):
    """Tokens of one tower read each other; queries and keys are normalised over all channels, before the heads."""

    def __init__(self, config: TowerConfig, factory: dict, operations):
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (operations.Linear(config.dim, config.dim, **factory) for _ in range(4))
        self.norm_q, self.norm_k = (operations.RMSNorm(config.dim, eps=config.eps, **small(factory)) for _ in range(2))

    def forward(self, x: Tensor, rope: Tensor, transformer_options: dict) -> Tensor:
        """x [B, L, D], rope [1, L, 1, d / 2, 2, 2] -> [B, L, D]."""
        query = rotate(self.norm_q(self.q(x)), rope, self.num_heads)
        key = rotate(self.norm_k(self.k(x)), rope, self.num_heads)
        value = self.v(x)
        return self.o(optimized_attention(query, key, value, self.num_heads, transformer_options=transformer_options))


class FusionCrossAttention(nn.Module):
    """One tower reads its prompt and the other tower; both reads share a query and an output layer."""

    def __init__(self, config: TowerConfig, factory: dict, operations):
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (operations.Linear(config.dim, config.dim, **factory) for _ in range(4))
        self.norm_q, self.norm_k = (operations.RMSNorm(config.dim, eps=config.eps, **small(factory)) for _ in range(2))
        self.k_fusion, self.v_fusion = (operations.Linear(config.dim, config.dim, **factory) for _ in range(2))
        self.pre_attn_norm_fusion = operations.LayerNorm(config.dim, eps=config.eps, **small(factory))
        self.norm_k_fusion = operations.RMSNorm(config.dim, eps=config.eps, **small(factory))

    def forward(self, x: Tensor, text: Tensor, rope: Tensor, other: Other | None, transformer_options: dict) -> Tensor:
        """x [B, L, D] normalised, text [B, T, D], rope of x, the second tower or None when alone -> [B, L, D]."""

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return optimized_attention(query, key, value, self.num_heads, transformer_options=transformer_options)

        query = self.norm_q(self.q(x))
        read = attend(query, self.norm_k(self.k(text)), self.v(text))
        if other is not None:
            hidden, other_rope = other
            hidden = self.pre_attn_norm_fusion(hidden)
            key = self.norm_k_fusion(self.k_fusion(hidden))
            query, key = rotate(query, rope, self.num_heads), rotate(key, other_rope, self.num_heads)
            read = read + attend(query, key, self.v_fusion(hidden))
        return self.o(read)


# The other tower as a block reads it: hidden state [B, M, D] after its self-attention, and its rope.
Other = tuple[Tensor, Tensor]


class Block(nn.Module):
    """A block in two halves, since each tower's second half reads the other's first."""

    def __init__(self, config: TowerConfig, factory: dict, operations):
        super().__init__()
        self.norm1, self.norm2 = (
            operations.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False, **factory) for _ in range(2)
        )
        self.self_attn = SelfAttention(config, factory, operations)
        self.norm3 = operations.LayerNorm(config.dim, eps=config.eps, **small(factory))
        self.cross_attn = FusionCrossAttention(config, factory, operations)
        self.ffn = nn.Sequential(
            operations.Linear(config.dim, config.ffn_dim, **factory),
            nn.GELU(approximate="tanh"),
            operations.Linear(config.ffn_dim, config.dim, **factory),
        )
        self.modulation = Modulation(6, config.dim, factory)

    def rows(self, time: Tensor) -> tuple[Tensor, ...]:
        """time [B, T, 6, D] -> shift, scale and gate of self-attention, then of the FFN, each [B, T, D]."""
        return self.modulation(time).unbind(2)

    def first_half(self, x: Tensor, rows: tuple[Tensor, ...], rope: Tensor, transformer_options: dict) -> Tensor:
        """First half: x [B, L, D] -> [B, L, D]."""
        shift, scale, gate = rows[:3]
        return add_gated(x, self.self_attn(modulate(self.norm1(x), shift, scale), rope, transformer_options), gate)

    def second_half(
        self,
        x: Tensor,
        rows: tuple[Tensor, ...],
        text: Tensor,
        rope: Tensor,
        other: Other | None,
        transformer_options: dict,
    ) -> Tensor:
        """Second half: cross-attention, ungated, and the FFN; x [B, L, D] -> [B, L, D]."""
        shift, scale, gate = rows[3:]
        x = x + self.cross_attn(self.norm3(x), text, rope, other, transformer_options)
        return add_gated(x, self.ffn(modulate(self.norm2(x), shift, scale)), gate)


class Modulation(nn.Module):
    """Rows added to the time; a module of its own, since core changes no parameter that has modules beside it."""

    def __init__(self, count: int, dim: int, factory: dict):
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, count, dim, **small(factory)))

    def forward(self, time: Tensor) -> Tensor:
        """time [B, T, count, D], or [B, T, 1, D] for all rows -> [B, T, count, D]."""
        return comfy.model_management.cast_to(self.modulation, time.dtype, time.device).unsqueeze(1) + time


class Head(nn.Module):
    """Hidden state to velocity, modulated by the time embedding itself (not by its projection)."""

    def __init__(self, config: TowerConfig, cells: int, factory: dict, operations):
        super().__init__()
        self.norm = operations.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False, **factory)
        self.head = operations.Linear(config.dim, cells * config.out_dim, **factory)
        self.modulation = Modulation(2, config.dim, factory)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, L, D], time [B, T, D] -> [B, L, cells * out_dim].

        In the precision of time, since guidance multiplies what is rounded here.
        """
        shift, scale = self.modulation(time.unsqueeze(2)).unbind(2)
        steps = _multiply_add(_by_row(self.norm(x), shift), 1 + scale.unsqueeze(2), shift.unsqueeze(2), time.dtype)
        return precisely(self.head, steps.flatten(1, 2), x.dtype)


def small(factory: dict) -> dict:
    """Where and in what precision to keep norms and modulations: never in eight bits, which would save nothing."""
    dtype = factory["dtype"]
    return {**factory, "dtype": torch.bfloat16 if dtype is not None and dtype.itemsize == 1 else dtype}


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift; x [B, L, D], rows [B, T, D], each row for L / T tokens in a row."""
    return _multiply_add(_by_row(x, shift), 1 + scale.unsqueeze(2), shift.unsqueeze(2), x.dtype).flatten(1, 2)


def add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update * gate; x and update [B, L, D], gate [B, T, D], each row for L / T tokens in a row."""
    return _multiply_add(_by_row(update, gate), gate.unsqueeze(2), _by_row(x, gate), x.dtype).flatten(1, 2)


def precisely(layer, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Run one of core's layers in the precision of x, or in dtype if its weights are quantised: cores need that."""
    weight = layer.weight
    if isinstance(weight, QuantizedTensor) or weight.dtype.itemsize == 1:
        return layer(x.to(dtype)).to(x.dtype)
    return layer(x) if weight.dtype == x.dtype else layer.forward_comfy_cast_weights(x)


def _by_row(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, L, D] -> [B, T, L / T, D]."""
    return x.unflatten(1, (rows.shape[1], -1))


def _multiply_add(x: Tensor, factor: Tensor, addend: Tensor, dtype: torch.dtype) -> Tensor:
    """x * factor + addend in the widest precision of the three, rounded once, in one pass over memory."""
    if torch.is_grad_enabled():
        return torch.addcmul(addend, x, factor).to(dtype)
    return torch.addcmul(addend, x, factor, out=torch.empty_like(x, dtype=dtype))
