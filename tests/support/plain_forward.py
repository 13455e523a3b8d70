"""The twin DiT once more, as its equations read: float64, complex rotations, no code of the
product. For tests of what other nodes change inside it.

Source: arXiv 2510.01284, section 3; character-ai/Ovi, ovi/modules/model.py and fusion.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6
AUDIO_CLOCK = 0.19676
VIDEO, AUDIO = "video", "audio"


def same(_where, x: Tensor, *_about) -> Tensor:
    """Leave as it is."""
    return x


@dataclass
class Changes:
    """What is done otherwise; `where` is (tower, block)."""

    cut: set[str] = field(default_factory=set)  # towers that do not read the other one
    positions: Callable = lambda _axis, x: x
    query_key_value: Callable = lambda _where, _q, _k, _v: None  # what self-attention reads
    text_query_key_value: Callable = lambda _where, _q, _k, _v: None
    self_read: Callable = same
    text_read: Callable = same
    cross_read: Callable = same
    before_ffn: Callable = same
    after_block: Callable = same


class PlainOvi:
    """Weights by published name, and how many heads each tower has."""

    def __init__(self, weights: dict[str, Tensor], heads: int, text_length: int):
        self.weights = {name: x.double() for name, x in weights.items()}
        self.heads, self.text_length = heads, text_length
        blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
        self.count = len(blocks)

    def __call__(self, latents, timestep: Tensor, texts, changes: Changes) -> list[Tensor]:
        """latents: video [B, 48, F, H, W] and audio [B, 20, L]; timestep [B]; texts [B, T, C]."""
        latents, texts = [x.double() for x in latents], [x.double() for x in texts]
        towers = (VIDEO, AUDIO)
        states = [self.patches(tower, x) for tower, x in zip(towers, latents, strict=True)]
        turns = self.turns(latents, changes)
        times = [self.time(tower, timestep) for tower in towers]
        texts = [self.text(tower, text) for tower, text in zip(towers, texts, strict=True)]
        for block in range(self.count):
            where = [(tower, block) for tower in towers]
            sixes = [
                time[1] + self.weight(place, "modulation.modulation", "modulation")
                for place, time in zip(where, times, strict=True)
            ]
            states = [
                x + six[:, 2:3] * self.self_attention(place, modulated(x, six, 0), turn, changes)
                for place, x, six, turn in zip(where, states, sixes, turns, strict=True)
            ]
            others = zip(reversed(states), reversed(turns), strict=True)
            states = [
                changes.before_ffn(place, x + self.cross(place, x, text, turn, other, changes))
                for place, x, text, turn, other in zip(
                    where, states, texts, turns, list(others), strict=True
                )
            ]
            states = [
                changes.after_block(place, x + six[:, 5:6] * self.ffn(place, modulated(x, six, 3)))
                for place, x, six in zip(where, states, sixes, strict=True)
            ]
        ends = [
            self.end(tower, x, time[0])
            for tower, x, time in zip(towers, states, times, strict=True)
        ]
        return [unpatched(ends[0], latents[0].shape), ends[1].mT]

    def name(self, where, leaf: str) -> str:
        tower, block = where if isinstance(where, tuple) else (where, None)
        prefix = "audio_model." if tower == AUDIO else ""
        return f"{prefix}{'' if block is None else f'blocks.{block}.'}{leaf}"

    def weight(self, where, *names: str) -> Tensor:
        found = [self.name(where, name) for name in names]
        return next(self.weights[name] for name in found if name in self.weights)

    def linear(self, where, leaf: str, x: Tensor) -> Tensor:
        bias = self.weights.get(self.name(where, f"{leaf}.bias"))
        return F.linear(x, self.weight(where, f"{leaf}.weight"), bias)

    def rms(self, where, leaf: str, x: Tensor) -> Tensor:
        norm = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
        return x * norm * self.weight(where, f"{leaf}.weight")

    def layer_norm(self, where, leaf: str, x: Tensor) -> Tensor:
        weight, bias = (self.weight(where, f"{leaf}.{part}") for part in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)

    def patches(self, tower: str, x: Tensor) -> Tensor:
        if tower == VIDEO:
            weight, bias = (self.weight(tower, f"patch_embedding.{p}") for p in ("weight", "bias"))
            return F.conv3d(x, weight, bias, stride=(1, 2, 2)).flatten(2).mT
        weight, bias = (self.weight(tower, f"patch_embedding.0.{p}") for p in ("weight", "bias"))
        x = F.silu(F.conv1d(x, weight, bias, padding=3))
        w1, w2, w3 = (self.weight(tower, f"patch_embedding.2.w{i}.weight") for i in (1, 2, 3))
        gated = F.silu(F.conv1d(x, w1, padding=3)) * F.conv1d(x, w3, padding=3)
        return F.conv1d(gated, w2, padding=3).mT

    def turns(self, latents, changes: Changes) -> list[Tensor]:
        """Return phases [L, d / 2], complex, of the tokens of both towers."""
        dim = self.weight((VIDEO, 0), "self_attn.q.weight").shape[0] // self.heads
        space = 2 * (dim // 6)
        frames, height, width = (latents[0].shape[2], *(x // 2 for x in latents[0].shape[3:]))
        places = torch.meshgrid(*map(torch.arange, (frames, height, width)), indexing="ij")
        video = [
            phases(changes.positions(axis, place.flatten().double()), size)
            for axis, place, size in zip(
                "tyx", places, (dim - 2 * space, space, space), strict=True
            )
        ]
        clock = changes.positions("t", torch.arange(latents[1].shape[2]).double() * AUDIO_CLOCK)
        turned = phases(clock, dim - 2 * space)
        still = torch.ones(len(clock), space, dtype=turned.dtype)
        return [torch.cat(video, dim=1), torch.cat([turned, still], dim=1)]

    def time(self, tower: str, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """timestep [B] -> for the head [B, 1, D], for blocks [B, 6, D]."""
        half = self.weight(tower, "time_embedding.0.weight").shape[1] // 2
        angles = timestep.double()[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        hidden = F.silu(self.linear(tower, "time_embedding.0", waves))
        embedding = self.linear(tower, "time_embedding.2", hidden)
        six = self.linear(tower, "time_projection.1", F.silu(embedding))
        return embedding[:, None], six.unflatten(1, (6, -1))

    def text(self, tower: str, text: Tensor) -> Tensor:
        text = F.pad(text, (0, 0, 0, self.text_length - text.shape[1]))
        hidden = F.gelu(self.linear(tower, "text_embedding.0", text), approximate="tanh")
        return self.linear(tower, "text_embedding.2", hidden)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.unflatten(2, (self.heads, -1)) for x in (query, key, value))
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2)

    def turn(self, x: Tensor, phase: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(2, (self.heads, -1, 2)).contiguous())
        return torch.view_as_real(pairs * phase[None, :, None]).flatten(2)

    def self_attention(self, where, x: Tensor, turn: Tensor, changes: Changes) -> Tensor:
        query, key = (
            self.turn(
                self.rms(where, f"self_attn.norm_{n}", self.linear(where, f"self_attn.{n}", x)),
                turn,
            )
            for n in "qk"
        )
        value = self.linear(where, "self_attn.v", x)
        read = changes.query_key_value(where, query, key, value)
        read = self.attend(query, key, value) if read is None else read
        return self.linear(where, "self_attn.o", changes.self_read(where, read, query, key))

    def cross(
        self, where, x: Tensor, text: Tensor, turn: Tensor, other, changes: Changes
    ) -> Tensor:
        def layer(leaf, given):
            return self.linear(where, f"cross_attn.{leaf}", given)

        def norm(leaf, given):
            return self.rms(where, f"cross_attn.{leaf}", given)

        query = norm("norm_q", layer("q", self.layer_norm(where, "norm3", x)))
        key, value = norm("norm_k", layer("k", text)), layer("v", text)
        read = changes.text_query_key_value(where, query, key, value)
        read = self.attend(query, key, value) if read is None else read
        read = changes.text_read(where, read)
        if where[0] not in changes.cut:
            state, its_turn = other
            state = self.layer_norm(where, "cross_attn.pre_attn_norm_fusion", state)
            key = self.turn(norm("norm_k_fusion", layer("k_fusion", state)), its_turn)
            read = read + self.attend(self.turn(query, turn), key, layer("v_fusion", state))
        return layer("o", changes.cross_read(where, read))

    def ffn(self, where, x: Tensor) -> Tensor:
        inner = F.gelu(self.linear(where, "ffn.0", x), approximate="tanh")
        return self.linear(where, "ffn.2", inner)

    def end(self, tower: str, x: Tensor, time: Tensor) -> Tensor:
        two = time + self.weight(tower, "head.modulation.modulation", "head.modulation")
        return self.linear(tower, "head.head", modulated(x, two, 0))


def modulated(x: Tensor, modulation: Tensor, first: int) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift; shift is modulation [B, n, D] at `first`, then scale."""
    shift, scale = modulation[:, first : first + 1], modulation[:, first + 1 : first + 2]
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def phases(positions: Tensor, dim: int) -> Tensor:
    """positions [L] -> [L, dim / 2]."""
    angles = positions[:, None] * 10000.0 ** (-torch.arange(0, dim, 2).double() / dim)
    return torch.polar(torch.ones_like(angles), angles)


def unpatched(x: Tensor, shape: torch.Size) -> Tensor:
    """[B, F h w, 2 2 C] -> [B, C, F, 2 h, 2 w]."""
    batch, channels, frames, height, width = shape
    x = x.reshape(batch, frames, height // 2, width // 2, 2, 2, channels)
    return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(shape)
