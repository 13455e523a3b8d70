"""One transformer block of a tower: self-attention, a read of prompt and other tower, the FFN.

Attribute names are the published checkpoint's keys.
Source: character-ai/Ovi, ovi/modules/model.py and ovi/modules/fusion.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import comfy.model_management
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..config import TowerConfig
from .fused_ops import (
    add_gated,
    apply_rope,
    by_timestep,
    gelu,
    modulated_norm,
    overwrites,
    rms_norm,
)

# Tokens that go through the FFN at once: enough to keep a card busy, few enough that self-attention
# takes more memory.
FFN_TOKENS = 16384


class Modulation(NamedTuple):
    """How a norm's output is changed and its layer's update weighed, for L / T tokens in a row."""

    shift: Tensor  # [B, T, D]
    scale: Tensor  # [B, T, D]
    gate: Tensor  # [B, T, D]


class OtherTower(NamedTuple):
    """The other tower as a block reads it."""

    hidden: Tensor  # [B, M, D], after its self-attention
    freqs_cis: Tensor  # [1, M, 1, d / 2, 2, 2]


class SelfAttention(nn.Module):
    """Tokens of one tower read each other; query and key are normalised before they are heads."""

    def __init__(self, config: TowerConfig, factory: dict, operations):
        super().__init__()
        dim, eps = config.dim, config.eps
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (operations.Linear(dim, dim, **factory) for _ in range(4))
        self.norm_q, self.norm_k = (
            operations.RMSNorm(dim, eps=eps, **norm_factory(factory)) for _ in range(2)
        )

    def project(self, x: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, D], freqs_cis [1, L, 1, d / 2, 2, 2] -> query, key, value, each [B, L, D]."""
        query = apply_rope(rms_norm(self.norm_q, self.q(x)), freqs_cis, self.num_heads)
        key = apply_rope(rms_norm(self.norm_k, self.k(x)), freqs_cis, self.num_heads)
        return query, key, self.v(x)


class FusionCrossAttention(nn.Module):
    """One tower reads its prompt and the other tower, with one query and one output layer."""

    def __init__(self, config: TowerConfig, factory: dict, operations):
        super().__init__()
        dim, eps, norms = config.dim, config.eps, norm_factory(factory)
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (operations.Linear(dim, dim, **factory) for _ in range(4))
        self.norm_q, self.norm_k = (operations.RMSNorm(dim, eps=eps, **norms) for _ in range(2))
        self.k_fusion, self.v_fusion = (operations.Linear(dim, dim, **factory) for _ in range(2))
        self.pre_attn_norm_fusion = operations.LayerNorm(dim, eps=eps, **norms)
        self.norm_k_fusion = operations.RMSNorm(dim, eps=eps, **norms)

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        freqs_cis: Tensor,
        other: OtherTower | None,
        transformer_options: dict,
    ) -> Tensor:
        """Return [B, L, D].

        x [B, L, D]: this tower, normalised; text [B, T, D]; freqs_cis: of x; other: None if alone.
        """
        query = rms_norm(self.norm_q, self.q(x))
        key = rms_norm(self.norm_k, self.k(text))
        read = attend(query, key, self.v(text), self.num_heads, transformer_options)
        del key
        if other is not None:
            query = apply_rope(query, freqs_cis, self.num_heads)
            from_other = attend(
                query, *self.project_other(*other), self.num_heads, transformer_options
            )
            del query
            read = read + from_other
            del from_other
        return self.o(read)

    def project_other(self, hidden: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
        """The other tower's hidden state [B, M, D] and its freqs_cis -> key and value [B, M, D]."""
        hidden = self.pre_attn_norm_fusion(hidden)
        key = rms_norm(self.norm_k_fusion, self.k_fusion(hidden))
        key = apply_rope(key, freqs_cis, self.num_heads)
        return key, self.v_fusion(hidden)


def attend(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, transformer_options: dict
) -> Tensor:
    """Attention through core, which picks the kernel; query [B, L, D], key and value [B, M, D]."""
    return optimized_attention(
        query, key, value, num_heads, transformer_options=transformer_options
    )


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

    def modulate(self, time: Tensor) -> tuple[Modulation, Modulation]:
        """time [B, T, 6, D] -> modulation of self-attention and of the FFN."""
        six = self.modulation(time).unbind(2)
        return Modulation(*six[:3]), Modulation(*six[3:])

    def attend_self(
        self, x: Tensor, modulation: Modulation, freqs_cis: Tensor, transformer_options: dict
    ) -> Tensor:
        """Self-attention, gated: x [B, L, D] -> [B, L, D]."""
        shift, scale, gate = modulation
        projections = self.self_attn.project(modulated_norm(x, shift, scale, self.eps), freqs_cis)
        read = attend(*projections, self.self_attn.num_heads, transformer_options)
        del projections
        return add_gated(x, self.self_attn.o(read), gate)

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


def norm_factory(factory: dict) -> dict:
    """Where and in what precision to keep norms and modulations: not in eight bits, which save
    nothing there.
    """
    dtype = factory["dtype"]
    if dtype is not None and dtype.itemsize == 1:
        dtype = torch.bfloat16
    return {**factory, "dtype": dtype}


def precisely(layer, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Run one of core's layers in the precision of x, or in dtype if its weights are quantised:
    cores need that.
    """
    weight = layer.weight
    if isinstance(weight, QuantizedTensor) or weight.dtype.itemsize == 1:
        return layer(x.to(dtype)).to(x.dtype)
    return layer(x) if weight.dtype == x.dtype else layer.forward_comfy_cast_weights(x)
