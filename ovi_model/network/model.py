"""The twin DiT: a video and an audio tower that go through their blocks in lock step.

The video tower is the root module and the audio tower its child `audio_model`, so that keys made
for Wan 2.2 5B fit. Source: character-ai/Ovi, ovi/modules/fusion.py, FusionModel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import comfy.ldm.common_dit
import comfy.patcher_extension
import comfy.utils
import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import AudioTowerConfig, TowerConfig, VideoTowerConfig
from ..core_facts import folder_of, unpack_latents
from ..log import log
from .blocks import Block, Head, precisely
from .fused_ops import PRECISE_DEVICES, add, overwrites
from .rope import audio_rotations, time_waves, video_rotations, window_offset

# Core's index of the negative prompt in `transformer_options["cond_or_uncond"]`.
NEGATIVE = 1


class Given(NamedTuple):
    """What every block of one tower is given besides the hidden state."""

    time: Tensor  # [B, T, 6, D], one row for L / T tokens
    text: Tensor  # [B, text length, D]
    rope: Tensor  # [1, L, 1, d / 2, 2, 2]


class Entered(NamedTuple):
    """A latent inside its tower."""

    hidden: Tensor  # [B, L, D]
    given: Given
    embedding: Tensor  # [B, T, D], time as the head reads it


class Tower(nn.Module):
    """What both transformers have: embeddings of prompt and time, blocks, head."""

    def __init__(self, config: TowerConfig, cells: int, factory: dict, operations):
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
        self.head = Head(config, cells, factory, operations)

    def embed_text(self, context: Tensor) -> Tensor:
        """context [B, T, text_dim] -> [B, text length, D]: zeros fill it up before the embedding;
        nothing is masked.
        """
        context = context[:, : self.config.text_length]
        return self.text_embedding(
            nn.functional.pad(context, (0, 0, 0, self.config.text_length - context.shape[1]))
        )

    def embed_time(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """timestep [B] or [B, T], 0 to 1000 -> embedding [B, T, D] for the head, projection [B, T,
        6, D] for blocks.

        In float32, which costs nothing for so few rows, where mixed precision is sure to work; else
        rounded to dtype.
        """
        waves = time_waves(timestep.reshape(timestep.shape[0], -1), self.config.freq_dim)
        first, activate, second = self.time_embedding
        embedding = precisely(second, activate(precisely(first, waves, dtype)), dtype)
        activate, project = self.time_projection
        projection = precisely(project, activate(embedding), dtype).unflatten(2, (6, -1))
        if timestep.device.type in PRECISE_DEVICES:
            dtype = torch.float32
        return embedding.to(dtype), projection.to(dtype)


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
        super().__init__(config, 1, factory, operations)
        padding = config.patch_kernel // 2
        self.patch_embedding = nn.Sequential(
            operations.Conv1d(
                config.in_dim, config.dim, config.patch_kernel, padding=padding, **factory
            ),
            nn.SiLU(),
            AudioPatchEmbedding(config, factory, operations),
        )

    def enter(
        self, audio: Tensor, timestep: Tensor, context: Tensor, transformer_options: dict
    ) -> Entered:
        """audio [B, 20, L], timestep [B] or [B, L], context [B, T, text_dim]."""
        embedding, time = self.embed_time(timestep, audio.dtype)
        hidden = self.patch_embedding(audio).transpose(1, 2).contiguous()
        start = window_offset(transformer_options.get("context_window"))
        rope = audio_rotations(hidden.shape[1], self.config.head_dim, audio.device, start)
        return Entered(hidden, Given(time, self.embed_text(context), rope), embedding)

    def leave(self, hidden: Tensor, embedding: Tensor, _shape: torch.Size) -> Tensor:
        """Hidden state [B, L, D] -> velocity [B, 20, L]."""
        return self.head(hidden, embedding).transpose(1, 2)


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
        super().__init__(video, patch[0] * patch[1] * patch[2], factory, operations)
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
        transformer_options={},
        **kwargs,
    ):
        """Return the velocity of every latent given, in the form it was given.

        x: [video [B, 48, F, H, W], audio [B, 20, L]], or one of the two alone, which then goes
        through its tower alone. timestep: [B] for both, or [video [B] or [B, F], audio [B] or [B,
        L]]; 0 to 1000.
        context: prompt for the video tower [B, T, text_dim]; audio_context: for the audio tower,
        else the same.
        """
        alone = torch.is_tensor(x)
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
        texts = [
            audio_context if tower is not self and audio_context is not None else context
            for tower in towers
        ]

        # Sound first: its patch embedding is the largest weight, and a copy of it should not lie
        # beside the picture.
        entered = [
            tower.enter(latent, time, text, transformer_options)
            for tower, latent, time, text in reversed(
                list(zip(towers, latents, times, texts, strict=True))
            )
        ][::-1]
        hidden = self._run_blocks(towers, entered, transformer_options)
        velocities = [
            tower.leave(x, inside.embedding, latent.shape)
            for tower, x, inside, latent in zip(towers, hidden, entered, latents, strict=True)
        ]
        return comfy.utils.pack_latents(velocities)[0]

    def _run_blocks(
        self, towers: Sequence[Tower], entered: list[Entered], transformer_options: dict
    ) -> Hidden:
        """Every block of one tower, or of both in lock step; a block may be replaced as core's
        other models allow.
        """
        replacements = transformer_options.get("patches_replace", {}).get("dit", {})
        transformer_options["total_blocks"] = len(self.blocks)
        transformer_options["block_type"] = "double"
        given = tuple(inside.given for inside in entered)
        hidden = tuple(inside.hidden for inside in entered)
        for index, blocks in enumerate(zip(*(tower.blocks for tower in towers), strict=True)):
            transformer_options["block_index"] = index
            run = (
                run_skipping_negative
                if index == transformer_options.get("ovi_skip_layer")
                else run_blocks
            )

            replace = replacements.get(("double_block", index))
            if replace is None:
                hidden = run(blocks, hidden, given, transformer_options)
                continue

            def run_this(args: dict, run=run, blocks=blocks) -> dict:
                return {"img": run(blocks, copies(args["img"]), given, transformer_options)}

            # Blocks write over what they are given, and a replacement may keep what it gives and
            # returns.
            args = {"img": hidden, "transformer_options": transformer_options}
            hidden = copies(replace(args, {"original_block": run_this})["img"])
        return hidden

    def enter(
        self, video: Tensor, timestep: Tensor, context: Tensor, _transformer_options: dict
    ) -> Entered:
        """video [B, 48, F, H, W], timestep [B] or [B, F], context [B, T, text_dim]."""
        embedding, time = self.embed_time(timestep, video.dtype)
        cells = self.patch_embedding(
            comfy.ldm.common_dit.pad_to_patch_size(video, self.config.patch_size)
        )
        frames, rows, columns = cells.shape[2:]
        rope = video_rotations(frames, rows, columns, self.config.head_dim, video.device)
        hidden = rearrange(cells, "b d f h w -> b (f h w) d").contiguous()
        return Entered(hidden, Given(time, self.embed_text(context), rope), embedding)

    def leave(self, hidden: Tensor, embedding: Tensor, shape: torch.Size) -> Tensor:
        """Hidden state [B, L, D] -> velocity of the given shape [B, 48, F, H, W]."""
        p, q, r = patch = self.config.patch_size
        f, h, w = (-(-size // side) for size, side in zip(shape[2:], patch, strict=True))
        cells = self.head(hidden, embedding)
        order = "b (f h w) (p q r c) -> b c (f p) (h q) (w r)"
        video = rearrange(cells, order, f=f, h=h, w=w, p=p, q=q, r=r)
        return video[:, :, : shape[2], : shape[3], : shape[4]]


# Hidden states [B, L, D] of the towers in use, the video tower first.
Hidden = tuple[Tensor, ...]


def copies(hidden: Hidden) -> Hidden:
    """Return hidden states that nobody else holds."""
    return tuple(x.clone(memory_format=torch.contiguous_format) for x in hidden)


def run_blocks(
    blocks: tuple[Block, ...], hidden: Hidden, given: tuple[Given, ...], transformer_options: dict
) -> Hidden:
    """One block of each tower, over the hidden states given: each reads the other as its
    self-attention left it.
    """
    rows = [block.rows(g.time) for block, g in zip(blocks, given, strict=True)]
    hidden = tuple(
        block.attend_self(x, row[0], g.rope, transformer_options)
        for block, x, row, g in zip(blocks, hidden, rows, given, strict=True)
    )
    others = (
        [(x, g.rope) for x, g in zip(hidden, given, strict=True)][::-1]
        if len(blocks) > 1
        else [None]
    )
    updates = [
        block.read(x, g.text, g.rope, other, transformer_options)
        for block, x, g, other in zip(blocks, hidden, given, others, strict=True)
    ]
    hidden = tuple(add(x, update) for x, update in zip(hidden, updates, strict=True))
    del others, updates
    return tuple(
        block.feed_forward(x, row[1]) for block, x, row in zip(blocks, hidden, rows, strict=True)
    )


def run_skipping_negative(
    blocks: tuple[Block, ...], hidden: Hidden, given: tuple[Given, ...], transformer_options: dict
) -> Hidden:
    """Skip-layer guidance: samples of the negative prompt pass by this block, and cost nothing."""
    kinds = transformer_options.get("cond_or_uncond", [0])
    halves = [list(states) for states in zip(*(x.chunk(len(kinds)) for x in hidden), strict=True)]
    for i, kind in enumerate(kinds):
        if kind != NEGATIVE:
            own = tuple(
                Given(g.time.chunk(len(kinds))[i], g.text.chunk(len(kinds))[i], g.rope)
                for g in given
            )
            halves[i] = run_blocks(blocks, tuple(halves[i]), own, transformer_options)
    if overwrites():
        return hidden
    return tuple(torch.cat(parts) for parts in zip(*halves, strict=True))


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
            "The node is of the copy of this extension in %s, but the one in %s built the model. "
            "Remove one of the two folders, then restart ComfyUI.",
            folder_of(__name__),
            folder_of(builder.__module__),
        )
    return network
