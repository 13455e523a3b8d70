"""Clips and captions as the towers see them, encoded by trained parts as ComfyUI does it."""

from __future__ import annotations

from pathlib import Path

import torch
from comfyui_ovi.ovi_model.load.text_encoder import load_text_encoder
from torch import Tensor, nn

from .autoencoders import draw_clips, draw_sounds
from .text import AUDIO_NEGATIVE, VIDEO_NEGATIVE
from .towers import Texts
from .world import TRAINING_SCENES

ENCODED_AT_ONCE = 25


@torch.no_grad()
def encode_sounds(model: nn.Module, count: int) -> Tensor:
    """Return the audio latents [count, 20, steps] of the first clips, as the VAE gives them."""
    mels = model.mel_converter(draw_sounds(count))
    return torch.cat([model.vae.encode(part).mean for part in mels.split(ENCODED_AT_ONCE)])


@torch.no_grad()
def encode_pictures(vae: nn.Module, count: int) -> Tensor:
    """Return the video latents [count, 48, F, H, W] of the first clips, as the VAE gives them."""
    latents = []
    clips = draw_clips(count)
    for start in range(0, count, ENCODED_AT_ONCE):
        frames = torch.stack([clip.frames for clip in clips[start : start + ENCODED_AT_ONCE]])
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(frames.movedim(-1, 1) * 2 - 1).float())
    return torch.cat(latents)


def scene_numbers(count: int) -> Tensor:
    """Return the number [count] of each clip's scene."""
    return torch.arange(count) % len(TRAINING_SCENES)


@torch.no_grad()
def encode_texts(file: Path, unsaid: tuple[str, ...] = ()) -> Texts:
    """Return every caption of training, and what stands in for it at times, as the text encoder's
    file gives them; unsaid: as Scene.caption has it.
    """
    clip = load_text_encoder(file)

    def encode(text: str) -> Tensor:
        tokens = clip.tokenize(text, disable_weights=True)
        return clip.encode_from_tokens_scheduled(tokens)[0][0][0].float()

    captions = [
        [encode(scene.caption(form, unsaid)) for form in (0, 1)] for scene in TRAINING_SCENES
    ]
    others = [encode(text) for text in ("", VIDEO_NEGATIVE, AUDIO_NEGATIVE)]
    every = [*(text for pair in captions for text in pair), *others]
    # One more than the longest needs, so that each has padding.
    length = 1 + max(int((text != 0).any(-1).sum()) for text in every)
    short = [[text[:length] for text in pair] for pair in captions]
    nothing, *negatives = (text[:length] for text in others)
    return Texts(torch.stack([torch.stack(pair) for pair in short]), nothing, tuple(negatives))
