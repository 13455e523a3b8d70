"""Training of the twin DiT by flow matching: each tower alone, then both with one timestep and what
joins them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from comfyui_ovi.ovi_model.config import TEXT_LENGTH
from comfyui_ovi.ovi_model.network.model import OviModel
from einops import rearrange
from torch import Tensor

from . import parts
from .loop import Losses, train, train_repeatedly
from .settings import TOWERS, Schedule


@dataclass(frozen=True)
class Latents:
    """Clips as the towers see them."""

    video: Tensor  # [N, 48, cells, h, w], mean 0 and deviation 1
    audio: Tensor  # [N, 20, steps]
    scenes: Tensor  # [N], the scene's number


@dataclass(frozen=True)
class Texts:
    """Encoded captions, padded with zeros to one length, which differs from the number of tokens of
    a tower.
    """

    captions: Tensor  # [scenes, wordings, T, width]
    nothing: Tensor  # [T, width], the empty text
    negatives: tuple[Tensor, Tensor]  # video's and audio's, [T, width]


def train_alone(
    name: str, folder: Path, schedule: Schedule, latents: Latents, texts: Texts
) -> OviModel:
    """Train one tower without the other."""
    sees = name == "video_tower"
    model = parts.twin_dit(texts.nothing.shape[0])
    predict = torch.compile(model, dynamic=False)

    def losses_of(generator: torch.Generator, size: int) -> Losses:
        batch = draw(latents, texts, size, generator)
        kept = batch.video if sees else batch.audio
        with torch.autocast("cpu", torch.bfloat16):
            made = predict(
                kept.noisy, kept.time, kept.text, transformer_options=reads_padding(kept.text)
            )
        return {"loss": kept.error(made)}

    return train(name, folder, model, schedule, losses_of)


def train_jointly(folder: Path, model: OviModel, latents: Latents, texts: Texts) -> OviModel:
    """Train both towers and the layers that join them."""
    predict = torch.compile(model, dynamic=False)

    def losses_of(generator: torch.Generator, size: int) -> Losses:
        batch = draw(latents, texts, size, generator)
        seen, heard = batch.video, batch.audio
        options = reads_padding(seen.text, heard.text)
        with torch.autocast("cpu", torch.bfloat16):
            made = predict(
                [seen.noisy, heard.noisy],
                [seen.time, heard.time],
                seen.text,
                heard.text,
                transformer_options=options,
            )
        losses = {"video": seen.error(made[0]), "audio": heard.error(made[1])}
        return {"loss": losses["video"] + losses["audio"], **losses}

    return train_repeatedly("both_towers", folder, model, TOWERS.joint, losses_of)


def join(video: OviModel, audio: OviModel) -> OviModel:
    """Return the video tower of one model with the audio tower of another; what joins them adds
    nothing as yet.
    """
    weights = {
        name: weight
        for name, weight in video.state_dict().items()
        if not name.startswith("audio_model.")
    }
    weights |= {
        name: weight
        for name, weight in audio.state_dict().items()
        if name.startswith("audio_model.")
    }
    for name in weights:
        if ".v_fusion." in name:
            weights[name] = torch.zeros_like(weights[name])
    video.load_state_dict(weights)
    return video


@dataclass(frozen=True)
class Noised:
    """One stream of a batch, between noise and clip."""

    noisy: Tensor
    velocity: Tensor  # from the clip to the noise
    time: Tensor  # [B, rows], 0 to 1000
    text: Tensor  # [B, T, width]

    def error(self, made: Tensor) -> Tensor:
        """Mean squared error of the velocity, but for what was given clean."""
        squares = (made.float() - self.velocity).square().mean((1, *range(3, made.ndim)))
        noised = (self.time > 0).float().expand_as(squares)
        return (squares * noised).sum() / noised.sum()


@dataclass(frozen=True)
class Batch:
    video: Noised
    audio: Noised
    chosen: Tensor  # [B], the clips' numbers


def draw(
    latents: Latents,
    texts: Texts,
    size: int,
    generator: torch.Generator,
    first_frame: float = TOWERS.first_frame,
) -> Batch:
    """Draw clips and captions, with one noise level for both streams; at times a clean first frame
    or no caption.
    """

    def share(portion: float) -> Tensor:
        return torch.rand(size, generator=generator) < portion

    chosen = torch.randint(len(latents.video), (size,), generator=generator)
    uniform = torch.rand(size, generator=generator)
    sigma = TOWERS.shift * uniform / (1 + (TOWERS.shift - 1) * uniform)
    wording = torch.randint(texts.captions.shape[1], (size,), generator=generator)
    caption = texts.captions[latents.scenes[chosen], wording]
    dropped, negative = share(TOWERS.drop_text), share(0.5)

    def read(instead: Tensor) -> Tensor:
        without = torch.where(negative.view(-1, 1, 1), instead, texts.nothing)
        return torch.where(dropped.view(-1, 1, 1), without, caption)

    clips = latents.video[chosen].float(), latents.audio[chosen].float()
    levels = [sigma.view(-1, 1).expand(-1, clips[0].shape[2]).clone(), sigma.view(-1, 1)]
    levels[0][share(first_frame), 0] = 0.0
    streams = []
    for clip, level, instead in zip(clips, levels, texts.negatives, strict=True):
        noise = torch.randn(clip.shape, generator=generator)
        amount = level.view(size, 1, -1, *[1] * (clip.ndim - 3))
        streams.append(
            Noised(clip + amount * (noise - clip), noise - clip, 1000 * level, read(instead))
        )
    return Batch(*streams, chosen)


def reads_padding(*texts: Tensor) -> dict:
    """Return options under which the model reads a short text as it reads one padded to 512 tokens.

    Padding is all alike, so that few such tokens stand for many once their number is added to their
    logits.
    """
    masks = []
    for text in texts:
        is_padding = (text == 0).all(-1)
        here = is_padding.sum(1, keepdim=True)
        weight = ((TEXT_LENGTH - text.shape[1] + here) / here).log()
        masks.append((weight * is_padding)[:, None, None, :])
    length = texts[0].shape[1]
    # A block reads the texts of its towers in turn, video first.
    turns = itertools.cycle(masks)

    def attend(
        _core: Callable, query: Tensor, key: Tensor, value: Tensor, heads: int, **_options
    ) -> Tensor:
        mask = next(turns) if key.shape[1] == length else 0.0
        query, key, value = (
            rearrange(x, "b l (h d) -> b h l d", h=heads) for x in (query, key, value)
        )
        # Written out, as torch's fused attention takes twice as long for so few tokens.
        logits = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2) + mask
        read = logits.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
        return rearrange(read, "b h l d -> b l (h d)")

    return {"optimized_attention_override": attend}
