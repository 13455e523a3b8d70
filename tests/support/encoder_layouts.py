"""Every file people have of what goes with Ovi's weights: text encoders, video VAEs, audio VAEs and
vocoders.

The tests load a small file of each; list_weights.py makes docs/weights.md of the same list.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import small_weights as small
import torch
from safetensors.torch import load_file, save_file
from small_weights import Weights

TEXT, VIDEO_VAE, AUDIO_VAE = "text encoder", "video VAE", "audio VAE and vocoder"
TEXT_LOADER, CLIP_LOADER = "Ovi Text Encoder Loader", "Load CLIP, type wan"
VAE_LOADER, AUDIO_LOADER = "Load VAE", "Ovi Audio VAE Loader"

# Small files of tests/support/make_small_checkpoints.py, each the plain one of its kind.
PLAIN = {
    TEXT: "text_encoders/umt5_small.safetensors",
    VIDEO_VAE: "vae/wan22_encoder_small.safetensors",
    AUDIO_VAE: "vae/mmaudio_small.safetensors",
}


@dataclass(frozen=True)
class EncoderLayout:
    """One way to store a text encoder or a VAE.

    names: the files people have, `a + b` for two that belong together. loaders: display names of
    the nodes; the test takes the first. since: the version of this extension that read it first.
    write: writes small files of this layout below a path without suffix, from the folder of small
    models, and returns them. error: how far what the file makes may be from what the plain file
    makes, relative; twice what the small files give.
    """

    name: str
    kind: str
    what: str
    source: str
    names: tuple[str, ...]
    folder: str
    loaders: tuple[str, ...]
    write: Callable[[Path, Path], list[Path]]
    error: float = 0.0
    since: str = "0.1.0"


def plain(
    models: Path, path: Path, kind: str, dtype: torch.dtype, suffix: str = ".safetensors"
) -> list[Path]:
    """The plain file in another precision or another container."""
    weights = load_file(models / PLAIN[kind])
    stored = {name: x.to(dtype) if x.is_floating_point() else x for name, x in weights.items()}
    return [_save(stored, path.with_name(path.name + suffix))]


def wan_text_encoder(
    models: Path, path: Path, dtype: torch.dtype, suffix: str = ".safetensors"
) -> list[Path]:
    """Wan's own names, no tokenizer; in fp8 the vectors stay in bfloat16."""
    weights = small.in_wan_naming(_text_encoder(models))
    stored = {name: x.to(dtype) if x.ndim == 2 else x for name, x in weights.items()}
    return [_save(stored, path.with_name(path.name + suffix))]


def scaled_text_encoder(models: Path, path: Path) -> list[Path]:
    """ComfyUI's names and tokenizer; the matrices of the blocks in fp8, each with a scale."""
    stored = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for name, tensor in load_file(models / PLAIN[TEXT]).items():
        stored[name] = tensor
        if tensor.ndim == 2 and "encoder.block" in name and "relative" not in name:
            scale = tensor.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max
            stored[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            stored[f"{name.removesuffix('weight')}scale_weight"] = scale
    return [_save(stored, path.with_suffix(".safetensors"))]


def audio_pair(models: Path, path: Path, dtype: torch.dtype, published: bool) -> list[Path]:
    """VAE and vocoder apart: as published, pickles with the vocoder's weight norm, or plain
    safetensors.
    """
    folder = models / "vae"
    vae = torch.load(folder / "mmaudio_vae_small.pth", weights_only=True)
    vocoder = torch.load(folder / "bigvgan_small.pt", weights_only=True)
    if published:
        return [
            _save(content, path.with_name(path.name + end))
            for content, end in ((vae, "_vae.pth"), (vocoder, ".pt"))
        ]
    return [
        _save(small.cast(content, dtype), path.with_name(f"{path.name}_{part}.safetensors"))
        for content, part in ((vae, "vae"), (vocoder["generator"], "vocoder"))
    ]


def _text_encoder(models: Path) -> Weights:
    weights = load_file(models / PLAIN[TEXT])
    return {name: tensor for name, tensor in weights.items() if name != "spiece_model"}


def _save(content: dict, file: Path) -> Path:
    if file.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, file)
    else:
        torch.save(content, file)
    return file


ENCODER_LAYOUTS = (
    EncoderLayout(
        "umt5_scaled_fp8",
        TEXT,
        "scaled fp8, with tokenizer",
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged",
        ("umt5_xxl_fp8_e4m3fn_scaled.safetensors",),
        "text_encoders",
        (TEXT_LOADER, CLIP_LOADER),
        scaled_text_encoder,
        0.08,
    ),
    EncoderLayout(
        "umt5_fp16",
        TEXT,
        "fp16, with tokenizer",
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged",
        ("umt5_xxl_fp16.safetensors",),
        "text_encoders",
        (TEXT_LOADER, CLIP_LOADER),
        partial(plain, kind=TEXT, dtype=torch.float16),
        1e-6,
    ),
    EncoderLayout(
        "umt5_wan_bf16",
        TEXT,
        "bf16, no tokenizer",
        "Kijai/WanVideo_comfy",
        ("umt5-xxl-enc-bf16.safetensors",),
        "text_encoders",
        (TEXT_LOADER,),
        partial(wan_text_encoder, dtype=torch.bfloat16),
    ),
    EncoderLayout(
        "umt5_wan_fp8",
        TEXT,
        "fp8, no tokenizer",
        "Kijai/WanVideo_comfy",
        ("umt5-xxl-enc-fp8_e4m3fn.safetensors",),
        "text_encoders",
        (TEXT_LOADER,),
        partial(wan_text_encoder, dtype=torch.float8_e4m3fn),
        0.12,
    ),
    EncoderLayout(
        "umt5_wan_pth",
        TEXT,
        "bf16 pickle, no tokenizer",
        "Wan-AI/Wan2.2-TI2V-5B",
        ("models_t5_umt5-xxl-enc-bf16.pth",),
        "text_encoders",
        (TEXT_LOADER,),
        partial(wan_text_encoder, dtype=torch.bfloat16, suffix=".pth"),
    ),
    EncoderLayout(
        "wan22_vae",
        VIDEO_VAE,
        "fp16",
        "Comfy-Org/Wan_2.2_ComfyUI_Repackaged",
        ("wan2.2_vae.safetensors",),
        "vae",
        (VAE_LOADER,),
        partial(plain, kind=VIDEO_VAE, dtype=torch.float16),
        1e-3,
    ),
    EncoderLayout(
        "wan22_vae_bf16",
        VIDEO_VAE,
        "bf16",
        "Kijai/WanVideo_comfy",
        ("Wan2_2_VAE_bf16.safetensors",),
        "vae",
        (VAE_LOADER,),
        partial(plain, kind=VIDEO_VAE, dtype=torch.bfloat16),
        4e-3,
    ),
    EncoderLayout(
        "wan22_vae_pth",
        VIDEO_VAE,
        "fp32 pickle",
        "Wan-AI/Wan2.2-TI2V-5B",
        ("Wan2.2_VAE.pth",),
        "vae",
        (VAE_LOADER,),
        partial(plain, kind=VIDEO_VAE, dtype=torch.float32, suffix=".pth"),
    ),
    EncoderLayout(
        "mmaudio_pair",
        AUDIO_VAE,
        "two pickles",
        "hkchengrex/MMAudio; chetwinlow1/Ovi",
        ("v1-16.pth + best_netG.pt",),
        "vae",
        (AUDIO_LOADER,),
        partial(audio_pair, dtype=torch.float32, published=True),
    ),
    EncoderLayout(
        "mmaudio_pair_fp32",
        AUDIO_VAE,
        "two files, fp32",
        "Kijai/WanVideo_comfy, Ovi",
        ("mmaudio_vae_16k_fp32.safetensors + mmaudio_vocoder_bigvgan_best_netG_fp32.safetensors",),
        "vae",
        (AUDIO_LOADER,),
        partial(audio_pair, dtype=torch.float32, published=False),
    ),
    EncoderLayout(
        "mmaudio_pair_bf16",
        AUDIO_VAE,
        "two files, bf16",
        "Kijai/WanVideo_comfy, Ovi",
        ("mmaudio_vae_16k_bf16.safetensors + mmaudio_vocoder_bigvgan_best_netG_bf16.safetensors",),
        "vae",
        (AUDIO_LOADER,),
        partial(audio_pair, dtype=torch.bfloat16, published=False),
        8e-3,
    ),
    EncoderLayout(
        "mmaudio_one",
        AUDIO_VAE,
        "one file",
        "made by tools/convert_checkpoint.py",
        ("any name",),
        "vae",
        (AUDIO_LOADER, VAE_LOADER),
        partial(plain, kind=AUDIO_VAE, dtype=torch.float32),
    ),
)
