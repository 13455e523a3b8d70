"""Trained parts to files in the published layouts."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from comfy.latent_formats import Wan22
from safetensors.torch import save_file
from torch import Tensor, nn

Weights = dict[str, Tensor]


def write_file(path: Path, weights: Weights, dtype: torch.dtype) -> None:
    """Write under a temporary name and rename; fractions become dtype."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cast = {
        name: (weight.detach().to(dtype) if weight.is_floating_point() else weight).contiguous()
        for name, weight in weights.items()
    }
    temporary = path.with_suffix(".part")
    save_file(cast, str(temporary))
    os.replace(temporary, path)


def write_video_vae(path: Path, vae: nn.Module, means: Tensor, size: float) -> None:
    """Write the VAE so that its latents, normalised as ComfyUI does for Wan 2.2, have mean 0 and
    deviation 1.

    means [48]: of what the VAE encodes, by channel; size: its deviation from them, over all
    channels.
    """
    weights = dict(vae.state_dict())
    latent_format = Wan22()
    wan_mean, wan_size = latent_format.latents_mean.flatten(), latent_format.latents_std.flatten()
    channels = len(means)
    # The last layer before the latent and the first after it see one position each, so they take
    # the change.
    scale, shift = wan_size / size, wan_mean - means * wan_size / size
    before, bias = weights["conv1.weight"].clone(), weights["conv1.bias"].clone()
    before[:channels] *= scale.view(-1, 1, 1, 1, 1)
    bias[:channels] = bias[:channels] * scale + shift
    after = weights["conv2.weight"]
    undone = after[..., 0, 0, 0] @ (shift / scale)
    weights |= {"conv1.weight": before, "conv1.bias": bias}
    weights |= {
        "conv2.weight": after / scale.view(1, -1, 1, 1, 1),
        "conv2.bias": weights["conv2.bias"] - undone,
    }
    write_file(path, weights, torch.float16)


def write_audio_vae(path: Path, vae: nn.Module, vocoder: nn.Module, size: float) -> None:
    """Write VAE and vocoder in ComfyUI's one file, the VAE's latents with deviation 1.

    The decoder normalises what its first layer gives, which has no bias: the size of a latent is
    nothing to it.
    """
    plain = {
        name: weight
        for name, weight in vae.state_dict().items()
        if ".parametrizations." not in name
    }
    plain |= {
        f"{name}.weight": layer.weight
        for name, layer in vae.named_modules()
        if isinstance(layer, nn.Conv1d)
    }
    plain["encoder.learnable_gain"] = (plain["encoder.learnable_gain"] + 1) / size - 1
    weights = {f"vae.{name}": tensor for name, tensor in plain.items()}
    weights |= {f"vocoder.{name}": tensor for name, tensor in vocoder.state_dict().items()}
    write_file(path, weights, torch.float16)


def write_text_encoder(path: Path, encoder: nn.Module, tokenizer: Tensor) -> None:
    """Write umT5 with its tokenizer."""
    write_file(path, {**encoder.state_dict(), "spiece_model": tokenizer}, torch.bfloat16)


def write_towers(path: Path, model: nn.Module) -> None:
    """Write both towers under the names of Ovi's release."""
    write_file(
        path,
        {released_name(name): weight for name, weight in model.state_dict().items()},
        torch.bfloat16,
    )


def released_name(name: str) -> str:
    """Return the released name of one of our tensors."""
    tower = "" if name.startswith("audio_model.") else "video_model."
    if name.endswith("head.modulation.modulation"):
        name = name.removesuffix(".modulation")
    return tower + name
