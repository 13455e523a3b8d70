"""Rows `decode`: a latent to frames with the released decoder's sizes, whole and in tiles, and with
the tiny one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from .machine import Machine
from .rows import Row


def measure(row: Row, machine: Machine) -> dict:
    """Return seconds of decoding a clip's picture, and the FLOP of its products.

    Rows of whole clips ask for the same again: it is measured once in a process.
    """
    key = row.clip, row.how
    if key not in machine.decoded:
        machine.decoded[key] = _measure(row, machine)
    return machine.decoded[key]


def _measure(row: Row, machine: Machine) -> dict:
    decode = decoder(row.how, machine)
    latent = torch.randn(machine.clip(row.clip).shapes()[0])
    with torch.inference_mode():
        # The first time loads the weights and counts.
        with FlopCounterMode(display=False) as counted:
            peak, _ = machine.peak_of(lambda: decode(latent))
        seconds = machine.seconds(lambda: decode(latent))
    flop = counted.get_total_flops()
    return {
        "seconds": seconds,
        "floor": flop / machine.product_rate(),
        "floor_is_reckoned": True,
        "tflop": flop / 1e12,
        "peak_gib": peak,
    }


def decoder(how: str, machine: Machine) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what makes frames of a latent [1, 48, F, H, W]."""
    from comfyui_ovi.ovi_model.decode import tiled_video

    make = make_tiny if how == "tiny" else make_vae
    vae = machine.keep("vae", make, lambda: make(machine))
    decode = tiled_video.decode_tiled if how == "tiled" else tiled_video.decode_whole
    return lambda latent: decode(vae, latent)


def make_vae(machine: Machine):
    """Core's Wan 2.2 VAE with random weights, as wide as released, or narrow."""
    from comfy.ldm.wan import vae2_2
    from comfyui_ovi.ovi_model.load import video_vae
    from comfyui_ovi.ovi_model.load.core_vae import vae_around

    widths = (8, 8) if machine.small else video_vae.RELEASED_WIDTHS
    with torch.device("meta"):
        shapes = video_vae._build(*widths).state_dict()
    dtype = torch.float32 if machine.small else torch.bfloat16
    weights = {name: random_weight(name, x, machine).to(dtype).cpu() for name, x in shapes.items()}
    if not machine.small:
        import comfy.sd

        return comfy.sd.VAE(sd=weights)
    return vae_around(video_vae._build(*widths), weights, vae2_2, "WanVAE")


def random_weight(name: str, outline: torch.Tensor, machine: Machine) -> torch.Tensor:
    """Numbers that keep the size of what passes through."""
    if name.endswith("gamma"):
        return torch.ones(outline.shape)
    numbers = torch.randn(outline.shape, device=machine.device)
    return numbers / outline.shape[1:].numel() ** 0.5 if outline.ndim > 1 else numbers / 10


def make_tiny(_machine: Machine):
    """The tiny decoder of 48 channels (taew2_2), of its own size, with random weights."""
    import comfy.sd
    from small_weights import video_decoder_weights

    return comfy.sd.VAE(sd=video_decoder_weights(0))
