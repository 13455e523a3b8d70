"""The attention of a tower: within itself, and to its prompt together with the other tower.

Attribute names are the published checkpoint's keys. `forward` takes what core's Wan takes, so that
nodes which replace it on Wan can do so here.
Source: character-ai/Ovi, ovi/modules/model.py and ovi/modules/fusion.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ..config import TowerConfig
from . import past, patches
from .fused_ops import apply_rope, rms_norm
from .precision import norm_factory
from .shared_input import SharedInput


class OtherTower(NamedTuple):
    """The other tower as a block reads it."""

    hidden: Tensor  # [B, M, D], after its self-attention
    freqs_cis: Tensor  # [1, M, 1, d / 2, 2, 2]


class SelfAttention(nn.Module):
    """Tokens of one tower read each other; query and key are normalised before they are heads."""

    def __init__(self, config: TowerConfig, factory: dict, operations):
        super().__init__()
        dim, eps = config.dim, config.eps
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.q, self.k, self.v, self.o = (operations.Linear(dim, dim, **factory) for _ in range(4))
        self.norm_q, self.norm_k = (
            operations.RMSNorm(dim, eps=eps, **norm_factory(factory)) for _ in range(2)
        )

    def forward(self, x: Tensor, freqs: Tensor, transformer_options: dict) -> Tensor:
        """x [B, L, D], freqs [1, L, 1, d / 2, 2, 2] -> [B, L, D]."""
        if patches.skips_attention(transformer_options):
            read, query, key = self.v(x), None, None
        else:
            query, key, value = self.project(x, freqs)
            key, value = past.extend(past.SELF, key, value, transformer_options)
            del x
            read = self._attend(query, key, value, transformer_options)
            del value
        read = patches.change_self_attention(read, query, key, self, transformer_options)
        del query, key
        return self.o(read)

    def project(self, x: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, D], freqs_cis [1, L, 1, d / 2, 2, 2] -> query, key, value, each [B, L, D]."""
        read = SharedInput(x, self.q, self.k, self.v)
        query = apply_rope(rms_norm(self.norm_q, read(self.q)), freqs_cis, self.num_heads)
        key = apply_rope(rms_norm(self.norm_k, read(self.k)), freqs_cis, self.num_heads)
        return query, key, read(self.v)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, transformer_options: dict
    ) -> Tensor:
        replacement = patches.find_replacement("attn1", transformer_options)
        if replacement is not None:
            about = patches.about(self, transformer_options)
            return replacement(query, key, value, about)
        return attend(query, key, value, self.num_heads, transformer_options)


class FusionCrossAttention(nn.Module):
    """One tower reads its prompt and the other tower, with one query and one output layer."""

    def __init__(self, config: TowerConfig, factory: dict, operations):
        super().__init__()
        dim, eps, norms = config.dim, config.eps, norm_factory(factory)
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.text_length = config.text_length
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

        x [B, L, D]: this tower, normalised; text [B, T, D], its last row for all after it;
        freqs_cis: of x; other: None if alone.
        """
        query = rms_norm(self.norm_q, self.q(x))
        read = self._read_text(query, text, transformer_options)
        if other is not None:
            query = apply_rope(query, freqs_cis, self.num_heads)
            key, value = self.project_other(*other)
            key, value = past.extend(past.OTHER, key, value, transformer_options)
            from_other = attend(query, key, value, self.num_heads, transformer_options)
            del query, key, value
            read = read + from_other
            del from_other
        return self.o(patches.change_output("attn2", read, self, transformer_options))

    def _read_text(self, query: Tensor, text: Tensor, transformer_options: dict) -> Tensor:
        from_text = SharedInput(text, self.k, self.v)
        key, value = rms_norm(self.norm_k, from_text(self.k)), from_text(self.v)
        key, value = (extend(rows, self.text_length) for rows in (key, value))
        replacement = patches.find_replacement("attn2", transformer_options)
        if replacement is None:
            read = attend(query, key, value, self.num_heads, transformer_options)
        else:
            read = replacement(query, key, value, patches.about(self, transformer_options))
        del key, value
        return patches.change_output("text", read, self, transformer_options)

    def project_other(self, hidden: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
        """The other tower's hidden state [B, M, D] and its freqs_cis -> key and value [B, M, D]."""
        read = SharedInput(self.pre_attn_norm_fusion(hidden), self.k_fusion, self.v_fusion)
        key = rms_norm(self.norm_k_fusion, read(self.k_fusion))
        key = apply_rope(key, freqs_cis, self.num_heads)
        return key, read(self.v_fusion)


def extend(rows: Tensor, count: int) -> Tensor:
    """Rows [B, T, D] -> [B, count, D]: what fills a prompt up is one row again and again."""
    last = rows[:, -1:].expand(-1, count - rows.shape[1], -1)
    return torch.cat([rows, last], dim=1) if last.shape[1] else rows


def attend(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, transformer_options: dict
) -> Tensor:
    """Attention through core, which picks the kernel; query [B, L, D], key and value [B, M, D]."""
    return optimized_attention(
        query, key, value, num_heads, transformer_options=transformer_options
    )
