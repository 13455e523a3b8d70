"""A clip made in blocks of about a second, each from noise in a few steps, reading those before it.

Every step predicts a clean block and noises it anew to the next level. A finished block goes
through the model once more at time 0, for what later blocks read of it. There is no guidance.
Source: fudan-generative-vision/Hallo-Live, its inference pipeline.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import comfy.conds
import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..config import SPATIAL_COMPRESSION, STREAMING_ROPE_SCALE, STREAMING_STEPS
from ..core_facts import unpack_latents
from ..log import log
from ..network import past
from ..network.references import Clock
from .streaming_memory import KEEP, USUAL_FRAMES, USUAL_KEEP, cache_bytes, cache_dtype

TRAINED_FRAMES, TRAINED_SIZE = 30, (32, 62)  # latent frames; latent height and width
# The highest level of noise below which the model's table has none: that of time 0.
LOWEST_SIGMA = 5 * 0.001 / (1 + 4 * 0.001)


@dataclass(frozen=True)
class Block:
    """Which latent frames and audio steps are made at once."""

    frames: range
    steps: range


def cut_blocks(frames: int, steps: int, frames_per_block: int) -> list[Block]:
    """Return the blocks of a clip; the last one takes what is left of the sound."""
    edges = [*range(0, frames, frames_per_block), frames]
    last = len(edges) - 2
    return [
        Block(
            range(first, end),
            range(STREAMING_STEPS * first, steps if i == last else STREAMING_STEPS * end),
        )
        for i, (first, end) in enumerate(itertools.pairwise(edges))
    ]


def sample_streaming(
    model,
    x: Tensor,
    sigmas: Tensor,
    extra_args=None,
    callback=None,
    disable=None,  # noqa: ARG001
    frames_per_block: int = USUAL_FRAMES,
    keep: str = USUAL_KEEP,
    player=None,
) -> Tensor:
    """Return a clip [B, 1, N], packed, made block by block from noise [B, 1, N].

    sigmas: the levels of each block's steps, and 0. player: shows finished blocks, see
    preview/film_so_far. Raises ValueError for a latent of which something is held, for more than
    one positive prompt, and for levels that end well above 0.
    """
    if len(sigmas) < 2:  # as core's samplers do
        return x
    if sigmas[-1] > LOWEST_SIGMA:  # some write nearly 0 for 0
        raise ValueError(
            "'Ovi Streaming Sampler' finishes each block before the next: its noise levels must "
            f"end in 0, and these end in {float(sigmas[-1]):.3f}. Take a scheduler that ends in 0, "
            "and do not cut its levels off."
        )
    run = Run(model.inner_model, extra_args or {}, keep)
    video, audio = run.unpack(x)
    blocks = cut_blocks(video.shape[2], audio.shape[2], frames_per_block)
    run.check(video, blocks)
    levels = [float(sigma) for sigma in sigmas[:-1]]
    with player.start() if player else nullcontext() as film:
        finished = [torch.zeros_like(video), torch.zeros_like(audio)]
        for index, block in enumerate(blocks):
            for level, made in run.denoise(block, video, audio, finished[1], levels):
                if callback is not None:
                    place = (index * len(levels) + level) // len(blocks)
                    callback(run.report(finished, made, block, sigmas[place], place))
            finished = run.put(finished, made, block)
            if index + 1 < len(blocks):
                if film is not None:
                    film.add(*run.cut(finished, block))
                run.remember(block, made)
    return comfy.utils.pack_latents(finished)[0]


def draw_noise(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Return normal numbers, on the processor."""
    return torch.randn(shape, generator=generator)


@dataclass
class Run:
    """One clip in the making."""

    guider: object  # core's CFGGuider, in its inner sampling
    extra_args: dict
    keep: str
    past: past.Past = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self):
        self.base = self.guider.inner_model
        self.base.memory_floor = 0.0  # from now on what is kept is seen in what is free
        device = self.guider.model_patcher.load_device
        if KEEP[self.keep][0]:
            device = comfy.model_management.intermediate_device()
        self.past = past.Past(device, cache_dtype(self.base, self.keep))
        self.generator = torch.Generator().manual_seed(self.extra_args.get("seed") or 0)

    def unpack(self, x: Tensor) -> list[Tensor]:
        shapes = [(len(x), *shape[1:]) for shape in self.base.latent_shapes]
        if len(shapes) < 2:
            raise ValueError(
                "'Ovi Streaming Sampler' makes picture and sound together: connect 'Ovi Latent'."
            )
        return unpack_latents(x, shapes)

    def check(self, video: Tensor, blocks: list[Block]) -> None:
        """Raise ValueError for what cannot be streamed; warn of what was not trained, and say how
        much is kept.
        """
        if self.extra_args.get("denoise_mask") is not None:
            raise ValueError(
                "The latent holds pictures or sound, and 'Ovi Streaming Sampler' makes all of a "
                "clip: use 'Ovi Sampler', or a latent of which nothing is held."
            )
        positive = self.guider.conds.get("positive") or []
        if len(positive) != 1:
            raise ValueError(
                f"'Ovi Streaming Sampler' was given {len(positive)} positive prompts; it reads "
                "one. Do not combine prompts, nor give them times or areas."
            )
        height, width = video.shape[3:]
        size = cache_bytes(self.base, video.shape, len(blocks[0].frames), self.keep)
        finished = blocks[-1].frames.start
        log.info("keeps %.2f GB of %d finished latent frames %s", size / 1e9, finished, self.keep)
        if video.shape[2] != TRAINED_FRAMES or (height, width) != TRAINED_SIZE:
            log.warning(
                "Streaming was trained on 992 x 512 pixels and 117 frames; this clip is %d x %d "
                "and has %d latent frames in place of %d.",
                SPATIAL_COMPRESSION * width,
                SPATIAL_COMPRESSION * height,
                video.shape[2],
                TRAINED_FRAMES,
            )

    def denoise(
        self, block: Block, video: Tensor, audio: Tensor, heard: Tensor, levels: list[float]
    ) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Yield, for every level, the prediction of a block's frames and of all sound up to it.

        video, audio: noise of the clip; heard: what is finished of its sound.
        """
        frames, steps = block.frames, block.steps
        picture = video[:, :, frames.start : frames.stop]
        sound = audio[:, :, steps.start : steps.stop]
        history = heard[:, :, : steps.start]
        for index, level in enumerate(levels):
            made = self.predict(block, picture, torch.cat([history, sound], dim=2), level)
            yield index, made
            if index + 1 < len(levels):
                noises = self.draw(picture, sound)
                clean = made[0], made[1][:, :, steps.start :]
                picture, sound = (
                    (1 - levels[index + 1]) * x + levels[index + 1] * noise
                    for x, noise in zip(clean, noises, strict=True)
                )

    def draw(self, picture: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        """Return fresh noise of a block, in the reference's order: frame by frame, step by step."""
        batch, channels, frames, height, width = picture.shape
        of_picture = draw_noise(self.generator, (batch, frames, channels, height, width))
        of_sound = draw_noise(self.generator, (batch, sound.shape[2], sound.shape[1]))
        return of_picture.transpose(1, 2).to(picture), of_sound.mT.to(sound)

    def predict(
        self, block: Block, picture: Tensor, sound: Tensor, level: float
    ) -> tuple[Tensor, Tensor]:
        """Return the clean block [B, 48, f, H, W], and the sound [B, 20, up to its end].

        At a level of 0 the prediction is what it was given.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        latents = [picture, sound]
        packed, shapes = comfy.utils.pack_latents(latents)
        (cond,) = self.guider.conds["positive"]
        given = {name: x for name, x in cond["model_conds"].items() if name != "freqs_cis"}
        given["latent_shapes"] = comfy.conds.CONDConstant(shapes)
        given["finished_steps"] = comfy.conds.CONDConstant(block.steps.start)
        clock = Clock(STREAMING_ROPE_SCALE, first_frame=block.frames.start)
        given["clock"] = comfy.conds.CONDConstant(clock)
        options = self.extra_args["model_options"]
        inner = {**options.get("transformer_options", {}), past.KEY: self.past}
        (clean,) = comfy.samplers.calc_cond_batch(
            self.base,
            [[{**cond, "model_conds": given}]],
            packed,
            packed.new_full((len(packed),), level),
            {**options, "transformer_options": inner},
        )
        video, audio = unpack_latents(clean, shapes)
        if level > 0:
            # What is heard already was given at time 0, so its velocity counts for that level.
            begin = block.steps.start
            moved = (audio - sound)[:, :, :begin] * (LOWEST_SIGMA / level)
            audio = torch.cat([sound[:, :, :begin] + moved, audio[:, :, begin:]], dim=2)
        return video, audio

    def remember(self, block: Block, made: tuple[Tensor, Tensor]) -> None:
        """Run a finished block at time 0, and keep what later blocks read of it."""
        self.past.is_written = True
        self.predict(block, *made, 0.0)
        self.past.is_written = False

    def report(
        self,
        finished: list[Tensor],
        made: tuple[Tensor, Tensor],
        block: Block,
        sigma: Tensor,
        place: int,
    ) -> dict:
        """Return what core's callback takes of a step; place: as of one that makes all at once."""
        shown = self.put(finished, made, block)
        # A preview shows the middle of the clip: until it is made, the newest frame.
        shown[0][:, :, block.frames.stop :] = made[0][:, :, -1:]
        packed = comfy.utils.pack_latents(shown)[0]
        return {"i": place, "denoised": packed, "x": packed, "sigma": sigma}

    def cut(self, finished: list[Tensor], block: Block) -> tuple[Tensor, Tensor]:
        """Return picture, as a VAE takes it, and sound up to the end of a block."""
        video, audio = finished
        picture = self.base.latent_format.process_out(video[:, :, : block.frames.stop])
        return picture, audio[:, :, : block.steps.stop]

    @staticmethod
    def put(finished: list[Tensor], made: tuple[Tensor, Tensor], block: Block) -> list[Tensor]:
        """Return what is finished with a block in it."""
        video, audio = (x.clone() for x in finished)
        video[:, :, block.frames.start : block.frames.stop] = made[0]
        audio[:, :, block.steps.start : block.steps.stop] = made[1][:, :, block.steps.start :]
        return [video, audio]
