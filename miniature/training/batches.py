"""Many clips in one run of a sampler, each with its own caption, noise and latent: several times
cheaper on a processor than one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from . import generate

BATCH = 16


class Ask(NamedTuple):
    """A clip to be made."""

    caption: str
    seed: int  # of its noise
    latent: dict  # of one clip, as generate.empty(), hold() or a holding node gave it


def make_clips(
    parts: generate.Parts,
    asks: Iterable[Ask],
    guidance: generate.Guidance,
    held: str = "as given",
) -> list[tuple[Tensor, Tensor]]:
    """Return frames [F, H, W, 3] and sound [samples] of each clip, as generate.make_clip() makes
    them but for rounding; all latents are of one shape. held: as 'Ovi Decode' has it.
    """
    made, asks = [], iter(asks)
    nodes = generate.import_nodes()
    while some := list(islice(asks, BATCH)):
        sampled = _sample(nodes, parts, some, guidance)
        for index, ask in enumerate(some):
            own = ask.latent | {"samples": _one_of(sampled, index)}
            made.append(generate._decode(nodes, parts, own, held))
    return made


def _sample(nodes, parts: generate.Parts, asks: list[Ask], guidance: generate.Guidance):
    """Return the sampled latents of a batch, nested, as 'Ovi Sampler' makes them."""
    import comfy.sample

    captions = [ask.caption for ask in asks]
    positive, negative = encode_captions(parts, captions, guidance.negatives)
    low, high = guidance.cfg_range
    scales = guidance.audio_cfg, guidance.skip_layer, 0.0, 1.0, low, high
    (model,) = nodes.OviGuidance.execute(parts.model, *scales).args
    (sigmas,) = nodes.OviScheduler.execute(guidance.steps, generate.SHIFT, 1.0).args
    (sampler,) = nodes.OviSamplerUniPC.execute().args
    latent = joined([ask.latent["samples"] for ask in asks])
    masks = [ask.latent.get("noise_mask") for ask in asks]
    return comfy.sample.sample_custom(
        model,
        noise_of(asks),
        guidance.video_cfg,
        sampler,
        sigmas,
        positive,
        negative,
        latent,
        noise_mask=None if masks[0] is None else joined(masks),
        disable_pbar=True,
        seed=asks[0].seed,
    )


def noise_of(asks: list):
    """Return the nested noise of a batch: of each clip, that of its seed alone."""
    import comfy.sample

    return joined([comfy.sample.prepare_noise(ask.latent["samples"], ask.seed) for ask in asks])


def joined(nested: list):
    """Join nested latents, or masks of them, along their batches."""
    return type(nested[0])(
        [torch.cat(streams) for streams in zip(*(one.unbind() for one in nested), strict=True)]
    )


def _one_of(nested, index: int):
    return type(nested)([stream[index : index + 1] for stream in nested.unbind()])


def encode_captions(
    parts: generate.Parts, captions: list[str], negatives: dict[str, str] | None = None
) -> tuple[list, list]:
    """Return positive and negative conditioning of a batch; negatives in place of the defaults."""
    nodes = generate.import_nodes()
    names = ("video_negative", "audio_negative")
    negatives = {name: generate._default(nodes.OviTextEncode, name) for name in names} | (
        negatives or {}
    )
    prompts = [
        nodes.OviTextEncode.execute(
            clip=parts.clip, prompt=caption, sound_tag="Audio:", **negatives
        ).args
        for caption in captions
    ]
    return _batch([prompt[0] for prompt in prompts]), _batch([prompt[1] for prompt in prompts])


def _batch(conditionings: list[list]) -> list:
    """Join conditionings of one entry to one of many prompts; zeros fill up the shorter ones."""
    texts = [entry[0] for (entry,) in conditionings]
    options = [entry[1] for (entry,) in conditionings]
    joined_options = (
        {**options[0], "audio_context": _stack([its["audio_context"] for its in options])}
        if "audio_context" in options[0]
        else options[0]
    )
    return [[_stack(texts), joined_options]]


def _stack(texts: list[Tensor]) -> Tensor:
    longest = max(text.shape[1] for text in texts)
    return torch.cat(
        [torch.nn.functional.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts]
    )
