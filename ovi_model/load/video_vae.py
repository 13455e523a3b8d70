"""Wan 2.2's video VAE as ComfyUI's VAE: its own at the released widths, its class at others."""

from pathlib import Path

import comfy.sd
import torch
from comfy.ldm.wan import vae2_2

from ..config import VIDEO_CHANNELS
from .audio_vae import is_audio_vae
from .core_vae import vae_around
from .reload import reload_with
from .state_dict import StateDict, check_tensor
from .weight_file import read_weights

# The first layers, whose shapes tell the widths of both halves; the decoder begins at four times
# its width.
ENCODER_KEY, DECODER_KEY = "encoder.conv1.weight", "decoder.conv1.weight"
DECODER_FACTOR = 4
# Of the encoder and the decoder; ComfyUI's own loader builds these alone.
RELEASED_WIDTHS = (160, 256)


def load_video_vae(path: str | Path) -> comfy.sd.VAE:
    """Build core's VAE from a file in the layout of wan2.2_vae.safetensors.

    Raises ValueError if the file is no such VAE, lacks a weight, or has one of another shape.
    """
    path = Path(path)
    state_dict = _read(path)
    widths = _read_widths(state_dict)
    if widths == RELEASED_WIDTHS:
        vae = comfy.sd.VAE(sd=state_dict)
    else:
        vae = vae_around(_build(*widths), state_dict, vae2_2, "WanVAE")
    reload_with(vae.patcher, load_video_vae, path)
    return vae


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


def _read(path: Path) -> StateDict:
    """Return every weight of a model as wide as the file's first layers are."""
    state_dict, _ = read_weights(path)
    for name in (ENCODER_KEY, DECODER_KEY):
        if name not in state_dict or state_dict[name].ndim != 5:
            raise ValueError(
                f"{path.name} is no Wan 2.2 video VAE: it has no '{name}' of five dimensions. "
                "Choose wan2.2_vae.safetensors."
            )
    with torch.device("meta"):
        expected = _build(*_read_widths(state_dict)).state_dict()
    return {
        name: check_tensor(path, name, state_dict.get(name), wanted)
        for name, wanted in expected.items()
    }


def _read_widths(state_dict: StateDict) -> tuple[int, int]:
    return len(state_dict[ENCODER_KEY]), len(state_dict[DECODER_KEY]) // DECODER_FACTOR


def _build(encoder_width: int, decoder_width: int) -> vae2_2.WanVAE:
    return vae2_2.WanVAE(
        dim=encoder_width,
        dec_dim=decoder_width,
        z_dim=VIDEO_CHANNELS,
        temperal_downsample=[False, True, True],
    )
