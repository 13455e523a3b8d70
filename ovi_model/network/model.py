"""The twin DiT: a video and an audio tower that go through their blocks in lock step.

The video tower is the root module and the audio tower its child `audio_model`, so that keys made
for Wan 2.2 5B fit.
Source: character-ai/Ovi, ovi/modules/fusion.py, FusionModel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import comfy.ldm.common_dit
import comfy.patcher_extension
import comfy.utils
import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import ROPE_THETA, AudioTowerConfig, TowerConfig, VideoTowerConfig
from ..core_facts import folder_of, unpack_latents
from ..log import log
from .blocks import Block, Head, precisely
from .fused_ops import PRECISE_DEVICES
from .lock_step import Hidden, TowerInputs, copy_states, run_blocks, run_skipping_negative
from .rope import audio_freqs_cis, video_freqs_cis, window_offset

# In transformer_options: a sampler asks for timesteps cut to whole numbers. They are cut in this
# file, by which every pass of every guider comes.
WHOLE_TIMESTEPS = "ovi_whole_timesteps"


class Embedded(NamedTuple):
    """A latent inside its tower."""

    hidden: Tensor  # [B, L, D]
    inputs: TowerInputs
    time: Tensor  # [B, T, D], as the head reads it


class Tower(nn.Module):
    """What both transformers have: embeddings of prompt and time, blocks, head."""

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

    def embed_text(self, context: Tensor) -> Tensor:
        """context [B, T, text_dim] -> [B, text length, D]; zeros fill it up and are read too."""
        context = context[:, : self.config.text_length]
        padding = self.config.text_length - context.shape[1]
        return self.text_embedding(nn.functional.pad(context, (0, 0, 0, padding)))

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

    def embed(
        self, audio: Tensor, timestep: Tensor, context: Tensor, transformer_options: dict
    ) -> Embedded:
        """audio [B, 20, L], timestep [B] or [B, L], context [B, T, text_dim]."""
        head_time, time = self.embed_time(timestep, audio.dtype)
        hidden = self.patch_embedding(audio).transpose(1, 2).contiguous()
        start = window_offset(transformer_options.get("context_window"))
        freqs_cis = audio_freqs_cis(hidden.shape[1], self.config.head_dim, audio.device, start)
        inputs = TowerInputs(time, self.embed_text(context), freqs_cis)
        return Embedded(hidden, inputs, head_time)

    def unembed(self, hidden: Tensor, time: Tensor, _shape: torch.Size) -> Tensor:
        """Hidden state [B, L, D] and the head's time -> velocity [B, 20, L]."""
        return self.head(hidden, time).transpose(1, 2)


class OviModel(Tower):
    """The transformer of pictures, [B, 48, F, H, W], with the transformer of sound inside."""

    config: VideoTowerConfig

    def __init__(
        self,
        video: VideoTowerConfig,
        audio: AudioTowerConfig,
        *,
        operations,
        dtype=None,
        device=None,
        **_core,
    ):
        factory = {"device": device, "dtype": dtype}
        patch = video.patch_size
        super().__init__(video, video.out_dim * math.prod(patch), factory, operations)
        self.dtype = dtype
        self.patch_embedding = operations.Conv3d(
            video.in_dim, video.dim, patch, stride=patch, **factory
        )
        self.audio_model = AudioTower(audio, factory, operations)

    def forward(
        self,
        x,
        timestep,
        context: Tensor,
        audio_context: Tensor | None = None,
        transformer_options: dict | None = None,
        **kwargs,
    ):
        """Return the velocity of every latent given, in the form it was given.

        x: [video [B, 48, F, H, W], audio [B, 20, L]], or one of them, through its tower alone.
        timestep: [B] for both, or [video [B] or [B, F], audio [B] or [B, L]]; 0 to 1000.
        context: prompt for the video tower [B, T, text_dim].
        audio_context: prompt for the audio tower, else the same.
        """
        alone = torch.is_tensor(x)
        transformer_options = {} if transformer_options is None else transformer_options
        # Wrappers such as EasyCache read and keep one tensor, so the latents cross this boundary
        # packed, as a copy.
        packed, shapes = comfy.utils.pack_latents([x] if alone else x)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._forward,
            self,
            comfy.patcher_extension.get_all_wrappers(
                comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
            ),
        )
        packed = executor.execute(
            packed, timestep, context, audio_context, transformer_options, shapes=shapes, **kwargs
        )
        velocities = unpack_latents(packed, shapes)
        return velocities[0] if alone else velocities

    def _forward(
        self, packed, timestep, context, audio_context, transformer_options, shapes, **_unused
    ) -> Tensor:
        latents = unpack_latents(packed, shapes)
        towers = [self.audio_model if latent.ndim == 3 else self for latent in latents]
        times = timestep if isinstance(timestep, list | tuple) else [timestep] * len(latents)
        if transformer_options.get(WHOLE_TIMESTEPS):
            times = [time.floor() for time in times]
        texts = [
            audio_context if tower is not self and audio_context is not None else context
            for tower in towers
        ]
        streams = list(zip(towers, latents, times, texts, strict=True))

        # Sound first: its patch embedding is the largest weight, and a copy of it should not lie
        # beside the picture.
        embedded = [
            tower.embed(latent, time, text, transformer_options)
            for tower, latent, time, text in reversed(streams)
        ]
        embedded.reverse()
        hidden = self._run_blocks(towers, embedded, transformer_options)
        velocities = [
            tower.unembed(x, its.time, latent.shape)
            for tower, x, its, latent in zip(towers, hidden, embedded, latents, strict=True)
        ]
        return comfy.utils.pack_latents(velocities)[0]

    def _run_blocks(
        self, towers: Sequence[Tower], embedded: list[Embedded], transformer_options: dict
    ) -> Hidden:
        """Run the blocks of one tower, or of both in lock step.

        A block may be replaced as core's other models allow.
        """
        replacements = transformer_options.get("patches_replace", {}).get("dit", {})
        skipped = transformer_options.get("ovi_skip_layer")
        transformer_options["total_blocks"] = len(self.blocks)
        transformer_options["block_type"] = "double"
        inputs = tuple(its.inputs for its in embedded)
        hidden = tuple(its.hidden for its in embedded)
        for index, blocks in enumerate(zip(*(tower.blocks for tower in towers), strict=True)):
            transformer_options["block_index"] = index
            run = run_skipping_negative if index == skipped else run_blocks

            replace = replacements.get(("double_block", index))
            if replace is None:
                hidden = run(blocks, hidden, inputs, transformer_options)
                continue

            def run_this(args: dict, run=run, blocks=blocks) -> dict:
                return {"img": run(blocks, copy_states(args["img"]), inputs, transformer_options)}

            # Blocks write over what they are given, and a replacement may keep what it gives and
            # returns.
            args = {"img": hidden, "transformer_options": transformer_options}
            hidden = copy_states(replace(args, {"original_block": run_this})["img"])
        return hidden

    def embed(
        self, video: Tensor, timestep: Tensor, context: Tensor, _transformer_options: dict
    ) -> Embedded:
        """video [B, 48, F, H, W], timestep [B] or [B, F], context [B, T, text_dim]."""
        head_time, time = self.embed_time(timestep, video.dtype)
        patch_size = self.config.patch_size
        patches = self.patch_embedding(comfy.ldm.common_dit.pad_to_patch_size(video, patch_size))
        freqs_cis = video_freqs_cis(*patches.shape[2:], self.config.head_dim, video.device)
        hidden = rearrange(patches, "b d f h w -> b (f h w) d").contiguous()
        return Embedded(hidden, TowerInputs(time, self.embed_text(context), freqs_cis), head_time)

    def unembed(self, hidden: Tensor, time: Tensor, shape: torch.Size) -> Tensor:
        """Hidden state [B, L, D] and the head's time -> velocity of a shape [B, 48, F, H, W]."""
        p, q, r = patch_size = self.config.patch_size
        f, h, w = (-(-size // side) for size, side in zip(shape[2:], patch_size, strict=True))
        patches = self.head(hidden, time)
        order = "b (f h w) (p q r c) -> b c (f p) (h q) (w r)"
        video = rearrange(patches, order, f=f, h=h, w=w, p=p, q=q, r=r)
        return video[:, :, : shape[2], : shape[3], : shape[4]]


def diffusion_model(model) -> OviModel:
    """Return the twin DiT of a ModelPatcher.

    Raises ValueError if the model is of another family; warns if another copy of this extension has
    built it.
    """
    network = model.get_model_object("diffusion_model")
    if not hasattr(network, "audio_model"):
        raise ValueError(
            f"model is a {type(network).__name__}, not an Ovi: connect 'Load Diffusion Model' with "
            "an Ovi file, or 'Ovi Model Loader'."
        )
    builder = type(network)
    if builder.__name__ == OviModel.__name__ and builder is not OviModel:
        log.warning(
            "The node is of the extension in %s, but the one in %s built the model. Remove one of "
            "the two folders, then restart ComfyUI.",
            folder_of(__name__),
            folder_of(builder.__module__),
        )
    return network
