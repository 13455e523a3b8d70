"""Wan 2.2's video VAE at any width: core's class and core's VAE object, where core's loader builds
width 160 only.
"""

from pathlib import Path

import comfy.sd
from comfy.ldm.wan import vae2_2
from torch import Tensor

from ..config import VIDEO_CHANNELS
from .audio_vae import is_audio_vae
from .core_vae import vae_around
from .weight_file import read_weights

# The first layers, whose shapes tell the widths of both halves; the decoder begins at four times
# its width.
ENCODER_KEY, DECODER_KEY = "encoder.conv1.weight", "decoder.conv1.weight"
DECODER_FACTOR = 4


def load_video_vae(path: str | Path) -> comfy.sd.VAE:
    """Build core's VAE from a file in the layout of wan2.2_vae.safetensors.

    Raises ValueError if the file is no such VAE, lacks a weight, or has one of another shape.
    """
    path = Path(path)
    weights, _ = read_weights(path)
    vae = vae_around(_build(path, weights), weights, vae2_2, "WanVAE")
    vae.patcher.cached_patcher_init = (_load_patcher, (path,))
    return vae


def _load_patcher(path: Path, disable_dynamic: bool = False):  # noqa: ARG001
    return load_video_vae(path).patcher


def check_video_vae(vae: comfy.sd.VAE, node: str) -> None:
    """Raise ValueError, naming the node, unless this is a VAE of Ovi's video latent, from whatever
    loader.
    """
    if is_audio_vae(vae):
        raise ValueError(
            f"'vae' of {node} is an audio VAE. Connect 'Load VAE' with wan2.2_vae.safetensors."
        )
    if vae.latent_channels != VIDEO_CHANNELS or vae.latent_dim != 3:
        raise ValueError(
            f"'vae' of {node} works on {vae.latent_channels} latent channels, Ovi's video has "
            f"{VIDEO_CHANNELS}. Connect 'Load VAE' with wan2.2_vae.safetensors (wan_2.1_vae has "
            "16)."
        )


def _build(path: Path, weights: dict[str, Tensor]) -> vae2_2.WanVAE:
    """Return a model whose every weight the file holds, in its shape."""
    for name in (ENCODER_KEY, DECODER_KEY):
        if name not in weights or weights[name].ndim != 5:
            raise ValueError(
                f"{path.name} is no Wan 2.2 video VAE: it has no '{name}' of five dimensions."
            )
    model = vae2_2.WanVAE(
        dim=len(weights[ENCODER_KEY]),
        dec_dim=len(weights[DECODER_KEY]) // DECODER_FACTOR,
        z_dim=VIDEO_CHANNELS,
        temperal_downsample=[False, True, True],
    )
    for name, wanted in model.state_dict().items():
        if name not in weights:
            raise ValueError(f"{path.name} is incomplete: it has no '{name}'.")
        if weights[name].shape != wanted.shape:
            shapes = f"{list(weights[name].shape)}, the rest of the file needs {list(wanted.shape)}"
            raise ValueError(f"{path.name}: '{name}' has shape {shapes}.")
    return model
