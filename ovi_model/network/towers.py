"""A transformer of one stream: what surrounds its blocks; and the transformer of sound.

Source: character-ai/Ovi, ovi/modules/model.py, WanModel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import ROPE_THETA, AudioTowerConfig, TowerConfig
from .blocks import Block, Head, TowerInputs
from .fused_ops import PRECISE_DEVICES
from .precision import precisely
from .references import Clock
from .rope import audio_freqs_cis, window_offset

# Tokens along time, height and width.
Grid = tuple[int, int, int]


class Stream(NamedTuple):
    """A latent, its tower, and what the tower is told."""

    tower: Tower
    latent: Tensor  # [B, 48, F, H, W] or [B, 20, L]
    timestep: Tensor  # [B], or [B, T] for each latent frame or audio step; 0 to 1000
    text: Tensor  # [B, T, D], embedded, the last row for all after it
    freqs_cis: Tensor | None  # of all tokens, if made before
    clock: Clock | None = None  # of references, if there are any


class Embedded(NamedTuple):
    """A latent inside its tower."""

    hidden: Tensor  # [B, L, D]
    inputs: TowerInputs
    time: Tensor  # [B, T, D], as the head reads it


class Tower(nn.Module):
    """What both transformers have: embeddings of prompt and time, blocks, head."""

    name: str

    def __init__(self, config: TowerConfig, out_channels: int, factory: dict, operations):
        super().__init__()
        self.config = config
        dim = config.dim
        self.text_embedding = nn.Sequential(
            operations.Linear(config.text_dim, dim, **factory),
            nn.GELU(approximate="tanh"),
            operations.Linear(dim, dim, **factory),
        )
        self.time_embedding = nn.Sequential(
            operations.Linear(config.freq_dim, dim, **factory),
            nn.SiLU(),
            operations.Linear(dim, dim, **factory),
        )
        self.time_projection = nn.Sequential(nn.SiLU(), operations.Linear(dim, 6 * dim, **factory))
        self.blocks = nn.ModuleList(
            Block(config, factory, operations) for _ in range(config.num_layers)
        )
        self.head = Head(config, out_channels, factory, operations)

    def embed(self, stream: Stream, transformer_options: dict) -> Embedded:
        """Make tokens of a latent, and all that blocks are given besides them."""
        hidden, grid = self.embed_latent(stream.latent)
        head_time, time = self.embed_time(stream.timestep, stream.latent.dtype)
        freqs_cis = stream.freqs_cis
        if freqs_cis is None:
            freqs_cis = self.make_rotations(grid, hidden.device, transformer_options, stream.clock)
        inputs = TowerInputs(
            self.name, time, stream.text, freqs_cis.to(hidden.device, non_blocking=True), grid
        )
        return Embedded(hidden, inputs, head_time)

    def embed_text(self, context: Tensor) -> Tensor:
        """context [B, T, text_dim] -> [B, T + 1, D], the last row for all that fill the text up.

        Zeros do, and are read too. No row is added to a text of full length.
        """
        context = context[:, : self.config.text_length]
        is_short = context.shape[1] < self.config.text_length
        return self.text_embedding(nn.functional.pad(context, (0, 0, 0, int(is_short))))

    def embed_time(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the time [B, T, D] for the head and [B, T, 6, D] for blocks.

        timestep [B] or [B, T], 0 to 1000. In float32, which costs nothing for so few, where mixed
        precision is sure to work; else rounded to dtype.
        """
        timestep = timestep.reshape(timestep.shape[0], -1)
        waves = timestep_embedding(timestep, self.config.freq_dim)
        first, activate, second = self.time_embedding
        embedding = precisely(second, activate(precisely(first, waves, dtype)), dtype)
        activate, project = self.time_projection
        projection = precisely(project, activate(embedding), dtype).unflatten(2, (6, -1))
        if timestep.device.type in PRECISE_DEVICES:
            dtype = torch.float32
        return embedding.to(dtype), projection.to(dtype)


def timestep_embedding(timestep: Tensor, dim: int) -> Tensor:
    """timestep [B, T] -> its cosines, then sines, at dim / 2 frequencies, [B, T, dim], float32.

    In float64 where the device has it: at t near 1000, float32 angles are off by up to 6e-5.
    """
    exact = torch.float64 if timestep.device.type in PRECISE_DEVICES else torch.float32
    half = dim // 2
    frequencies = ROPE_THETA ** (-torch.arange(half, device=timestep.device, dtype=exact) / half)
    angles = timestep.to(exact).unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


class AudioPatchEmbedding(nn.Module):
    """The second half of the audio patch embedding: a gated MLP of convolutions over time."""

    def __init__(self, config: AudioTowerConfig, factory: dict, operations):
        super().__init__()
        kernel = {
            "kernel_size": config.patch_kernel,
            "padding": config.patch_kernel // 2,
            "bias": False,
        }
        self.w1 = operations.Conv1d(config.dim, config.patch_hidden, **kernel, **factory)
        self.w2 = operations.Conv1d(config.patch_hidden, config.dim, **kernel, **factory)
        self.w3 = operations.Conv1d(config.dim, config.patch_hidden, **kernel, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, L] -> [B, D, L]."""
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class AudioTower(Tower):
    """The transformer of sound, [B, 20, L]."""

    name = "audio"

    def __init__(self, config: AudioTowerConfig, factory: dict, operations):
        super().__init__(config, config.out_dim, factory, operations)
        padding = config.patch_kernel // 2
        self.patch_embedding = nn.Sequential(
            operations.Conv1d(
                config.in_dim, config.dim, config.patch_kernel, padding=padding, **factory
            ),
            nn.SiLU(),
            AudioPatchEmbedding(config, factory, operations),
        )

    def embed_latent(self, audio: Tensor) -> tuple[Tensor, Grid]:
        """[B, 20, L] -> [B, L, D]."""
        hidden = self.patch_embedding(audio).transpose(1, 2).contiguous()
        return hidden, (hidden.shape[1], 1, 1)

    def make_rotations(
        self, grid: Grid, device, transformer_options: dict, clock: Clock | None = None
    ) -> Tensor:
        """Return [1, L, 1, d / 2, 2, 2] for all steps, from the first of a context window on."""
        start = window_offset(transformer_options.get("context_window"))
        options = transformer_options.get("rope_options")
        return audio_freqs_cis(grid[0], self.config.head_dim, device, start, options, clock)

    def unembed(self, hidden: Tensor, time: Tensor, _shape: torch.Size) -> Tensor:
        """Hidden state [B, L, D] and the head's time -> velocity [B, 20, L]."""
        return self.head(hidden, time).transpose(1, 2)
