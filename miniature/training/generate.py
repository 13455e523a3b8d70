"""Makes clips in this process with the nodes that a workflow has: this extension's, and core's
custom sampler.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from find_comfyui import import_extension
from torch import Tensor
from torchaudio.functional import resample

from .world import FRAMES, SAMPLE_RATE, SIZE, Clip

SHIFT = 5.0
STREAMS = ("picture", "sound")
CORE_RATE = 44100  # Hz, where a VAE of ComfyUI does not tell it


@dataclass(frozen=True)
class Guidance:
    """What a workflow sets for its sampler."""

    steps: int = 20
    video_cfg: float = 4.0
    audio_cfg: float = 3.0
    skip_layer: int = 0
    cfg_range: tuple[float, float] = (0.0, 1.0)
    # In place of the defaults of 'Ovi Text Encode', by its inputs' names.
    negatives: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Parts:
    """A miniature, loaded."""

    model: Any
    clip: Any
    vae: Any
    audio_vae: Any


def import_nodes() -> SimpleNamespace:
    """Return the nodes by their names; ComfyUI must be on the import path."""
    import_extension()
    from comfy_extras import nodes_custom_sampler
    from comfyui_ovi import nodes as ours
    from comfyui_ovi.ovi_model import core_patches

    core_patches.install()
    core = (
        nodes_custom_sampler.CFGGuider,
        nodes_custom_sampler.RandomNoise,
        nodes_custom_sampler.SamplerCustomAdvanced,
    )
    return SimpleNamespace(**{node.__name__: node for node in (*ours.NODES, *core)})


def load(folder: Path) -> Parts:
    """Load the four files of a miniature."""
    import_nodes()
    from comfyui_ovi.ovi_model.load import miniature

    return Parts(*miniature.load_miniature(folder))


def without_fusion(parts: Parts) -> Parts:
    """Return the parts with towers that read zeros of each other: the values of the fusion are set
    to nothing.
    """
    model = parts.model.clone()
    values = {
        name: weight for name, weight in model.model.state_dict().items() if ".v_fusion." in name
    }
    model.add_patches(
        {name: ("set", (torch.zeros_like(weight),)) for name, weight in values.items()}
    )
    return Parts(model, parts.clip, parts.vae, parts.audio_vae)


def with_lora(parts: Parts, file: Path) -> Parts:
    """Return the parts with a LoRA on the model, as core's loader puts it there."""
    import comfy.sd
    import comfy.utils

    lora = comfy.utils.load_torch_file(str(file))
    return replace(parts, model=comfy.sd.load_lora_for_models(parts.model, None, lora, 1.0, 0.0)[0])


def empty(parts: Parts, first_frame: Tensor | None = None) -> dict:
    """Return the latent of a clip to be made, from a first frame [H, W, 3] if there is one."""
    image = {} if first_frame is None else {"vae": parts.vae, "start_image": first_frame[None]}
    return _run(
        import_nodes().OviLatent, width=SIZE, height=SIZE, length=FRAMES, batch_size=1, **image
    )[0]


def hold(parts: Parts, clip: Clip, stream: str, latent: dict) -> dict:
    """Return a latent that holds the picture or the sound of a clip in place of its own; the other
    is to be made.
    """
    nodes = import_nodes()
    streams = dict(zip(STREAMS, _run(nodes.OviSeparateLatent, latent=latent), strict=True))
    streams[stream] = _encode(parts, clip)[stream] | {"noise_mask": torch.zeros(1, 1, 8, 8)}
    return _concat(nodes, streams)


def make_clip(
    parts: Parts,
    caption: str,
    seed: int,
    guidance: Guidance,
    latent: dict | None = None,
    held: str = "as given",
) -> tuple[Tensor, Tensor]:
    """Return frames [F, H, W, 3] and sound [samples] of a caption; latent: what empty() or hold()
    gave; held: as 'Ovi Decode' has it.
    """
    nodes = import_nodes()
    negatives = {
        name: _default(nodes.OviTextEncode, name) for name in ("video_negative", "audio_negative")
    }
    negatives |= guidance.negatives
    positive, negative = _run(
        nodes.OviTextEncode, clip=parts.clip, prompt=caption, sound_tag="Audio:", **negatives
    )
    names = ("start_percent", "end_percent", "cfg_start_percent", "cfg_end_percent")
    ranges = dict(zip(names, (0.0, 1.0, *guidance.cfg_range), strict=True))
    scales = {"audio_cfg": guidance.audio_cfg, "skip_layer": guidance.skip_layer}
    (model,) = _run(nodes.OviGuidance, model=parts.model, **scales, **ranges)
    (guider,) = _run(
        nodes.CFGGuider, model=model, positive=positive, negative=negative, cfg=guidance.video_cfg
    )
    (sigmas,) = _run(nodes.OviScheduler, steps=guidance.steps, shift=SHIFT, denoise=1.0)
    (sampler,) = _run(nodes.OviSamplerUniPC)
    (noise,) = _run(nodes.RandomNoise, noise_seed=seed)
    how = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas}
    sampled, _ = _run(nodes.SamplerCustomAdvanced, latent_image=latent or empty(parts), **how)
    return _decode(nodes, parts, sampled, held)


def through_codecs(parts: Parts, clip: Clip) -> tuple[Tensor, Tensor]:
    """Return frames and sound of a clip as both VAEs and the vocoder give them back."""
    nodes = import_nodes()
    return _decode(nodes, parts, _concat(nodes, _encode(parts, clip)))


def _encode(parts: Parts, clip: Clip) -> dict[str, dict]:
    # ComfyUI's VAE takes sound at a rate of its own, [B, samples, 1].
    waveform = resample(
        clip.sound, SAMPLE_RATE, getattr(parts.audio_vae, "audio_sample_rate", CORE_RATE)
    )
    latents = parts.vae.encode(clip.frames), parts.audio_vae.encode(waveform[None, :, None])
    return {stream: {"samples": latent} for stream, latent in zip(STREAMS, latents, strict=True)}


def _concat(nodes: SimpleNamespace, streams: dict[str, dict]) -> dict:
    return _run(
        nodes.OviConcatLatent, video_latent=streams["picture"], audio_latent=streams["sound"]
    )[0]


def _decode(
    nodes: SimpleNamespace, parts: Parts, latent: dict, held: str = "as given"
) -> tuple[Tensor, Tensor]:
    vaes = {"vae": parts.vae, "audio_vae": parts.audio_vae}
    frames, sound = _run(nodes.OviDecode, samples=latent, **vaes, tiling="auto", held=held)
    return frames.float(), sound["waveform"][0, 0].float()


def _run(node, **inputs) -> tuple:
    return node.execute(**inputs).result


def _default(node, name: str) -> Any:
    return next(given.default for given in node.define_schema().inputs if given.id == name)
