"""The twin DiT: a video and an audio tower that go through their blocks in lock step.

The video tower is the root module and the audio tower its child `audio_model`, so that keys made
for Wan 2.2 5B fit.
Source: character-ai/Ovi, ovi/modules/fusion.py, FusionModel.
"""

from __future__ import annotations

import math

import comfy.ldm.common_dit
import comfy.patcher_extension
import comfy.utils
import torch
from einops import rearrange
from torch import Tensor

from ..config import AudioTowerConfig, VideoTowerConfig
from ..core_facts import folder_of, unpack_latents
from ..log import log
from .lock_step import run_blocks
from .references import Clock, find_references, reference_clock
from .rope import video_freqs_cis
from .towers import AudioTower, Grid, Stream, Tower

# In transformer_options: a sampler asks for timesteps cut to whole numbers. They are cut in this
# file, by which every pass of every guider comes.
WHOLE_TIMESTEPS = "ovi_whole_timesteps"


class OviModel(Tower):
    """The transformer of pictures, [B, 48, F, H, W], with the transformer of sound inside."""

    name = "video"
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
        self.in_channels = video.in_dim
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
        kwargs: `is_embedded` with what `preprocess_text_embeds` returned, `freqs_cis` from
        `prepare_rotations`; `reference_images` [B, 48, n, H, W], `reference_voices` [B, 20, M] and
        the `voice_steps` of each, at the times of a `clock`.
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
        self,
        packed,
        timestep,
        context,
        audio_context,
        transformer_options,
        shapes,
        *,
        is_embedded=False,
        freqs_cis=None,
        reference_images=None,
        reference_voices=None,
        voice_steps=(),
        clock=None,
        **_unused,
    ) -> Tensor:
        latents = unpack_latents(packed, shapes)
        references = find_references(
            latents, reference_images, reference_voices, voice_steps, clock
        )
        towers = [self.audio_model if latent.ndim == 3 else self for latent in latents]
        times = timestep if isinstance(timestep, list | tuple) else [timestep] * len(latents)
        if transformer_options.get(WHOLE_TIMESTEPS):
            times = [time.floor() for time in times]
        if references is not None:
            latents, times = references.append(latents, times)
            clock = references.clock
        texts = [
            audio_context if tower is not self and audio_context is not None else context
            for tower in towers
        ]
        if not is_embedded:
            texts = [tower.embed_text(text) for tower, text in zip(towers, texts, strict=True)]
        # Tables made before the run know nothing of positions that are moved in it.
        moved = transformer_options.get("rope_options") or transformer_options.get("context_window")
        tables = freqs_cis if freqs_cis and not moved else [None] * len(latents)
        clocks = [clock] * len(latents)
        streams = list(map(Stream, towers, latents, times, texts, tables, clocks))
        velocities = self.forward_orig(streams, transformer_options)
        if references is not None:
            velocities = references.drop(velocities)
        return comfy.utils.pack_latents(velocities)[0]

    def forward_orig(self, streams: list[Stream], transformer_options: dict) -> list[Tensor]:
        """Return the velocity of every stream; core's name for what wrappers of a model wrap."""
        # Sound first: its patch embedding is the largest weight, and a copy of it should not lie
        # beside the picture.
        embedded = [its.tower.embed(its, transformer_options) for its in reversed(streams)]
        embedded.reverse()
        hidden = run_blocks(
            list(zip(*(its.tower.blocks for its in streams), strict=True)),
            tuple(its.hidden for its in embedded),
            tuple(its.inputs for its in embedded),
            transformer_options,
            [
                {"x": stream.latent, "vec": its.time}
                for stream, its in zip(streams, embedded, strict=True)
            ],
        )
        return [
            stream.tower.unembed(x, its.time, stream.latent.shape)
            for stream, x, its in zip(streams, hidden, embedded, strict=True)
        ]

    def preprocess_text_embeds(self, context: Tensor, audio_context: Tensor) -> tuple[Tensor, ...]:
        """Embed the prompts of both towers [B, T, text_dim] -> [B, T + 1, D], once for a run.

        `forward` takes them with `is_embedded`. The name is core's.
        """
        return self.embed_text(context), self.audio_model.embed_text(audio_context)

    def prepare_rotations(
        self,
        shapes: list[torch.Size],
        device,
        images: int = 0,
        voices: tuple[int, ...] = (),
    ) -> tuple[Tensor, Tensor]:
        """Return `freqs_cis` of both towers for latents of these shapes, once for a run.

        images, voices: how many reference images follow, and the steps of each reference voice.
        """
        (_, _, frames, *video), (_, _, steps) = shapes
        clock = None
        if images or voices:
            clock = reference_clock(frames, steps, images, voices)
        sizes = (frames + images, *video)
        grid = tuple(
            -(-size // side) for size, side in zip(sizes, self.config.patch_size, strict=True)
        )
        return (
            self.make_rotations(grid, device, {}, clock),
            self.audio_model.make_rotations((steps + sum(voices), 1, 1), device, {}, clock),
        )

    def embed_latent(self, video: Tensor) -> tuple[Tensor, Grid]:
        """[B, 48, F, H, W] -> [B, L, D], and how many patches lie along time, height, width."""
        padded = comfy.ldm.common_dit.pad_to_patch_size(video, self.config.patch_size)
        patches = self.patch_embedding(padded)
        return rearrange(patches, "b d f h w -> b (f h w) d").contiguous(), tuple(patches.shape[2:])

    def make_rotations(
        self, grid: Grid, device, transformer_options: dict, clock: Clock | None = None
    ) -> Tensor:
        """Return [1, L, 1, d / 2, 2, 2]."""
        options = transformer_options.get("rope_options")
        return video_freqs_cis(*grid, self.config.head_dim, device, options, clock)

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
