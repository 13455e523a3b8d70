"""Latents back to frames and sound of one length."""

import comfy.sd
import torch
from torch import Tensor

from ..config import SAMPLE_RATE
from ..core_facts import choose
from ..latent.geometry import video_samples
from ..latent.latents import clips
from ..load.audio_vae import is_audio_vae
from ..load.video_vae import check_video_vae
from .audio import decode_16k
from .splice import splice_pictures, splice_sound
from .tiled_video import decode_largest, decode_tiled, decode_whole

# How to make frames [B, F, H, W, 3] of a video latent [B, 48, F, H/16, W/16].
TILINGS = {"auto": decode_largest, "on": decode_tiled, "off": decode_whole}
# Whether what was held comes back as it was given.
HELD = {"as given": True, "decoded": False}


def decode(
    latent: dict, vae: comfy.sd.VAE, audio_vae: comfy.sd.VAE, tiling: str, held: str = "as given"
) -> tuple[Tensor, dict[str, Tensor | int]]:
    """Return frames [B * F, H, W, 3] and sound {"waveform": [B, 1, samples], "sample_rate": 16000}
    of equal length.

    tiling: "on", "off", or "auto" (the largest tiles that fit on the device). held: "as given" puts
    pictures and sound that were held in the place of their decoding, "decoded" does not.
    Raises ValueError if the latent is not Ovi's pair of video and audio of one length, or a VAE
    does not fit its half.
    """
    video, audio = clips(latent, "samples")
    _check_vaes(vae, audio_vae)
    frames = choose("tiling", tiling, TILINGS)(vae, video)
    waveform = decode_16k(audio_vae, audio)
    waveform = fit_length(waveform, video_samples(frames.shape[1]))
    if choose("held", held, HELD):
        frames, waveform = splice_pictures(frames, latent), splice_sound(waveform, latent)
    return frames.flatten(0, 1), {"waveform": waveform, "sample_rate": SAMPLE_RATE}


def _check_vaes(vae: comfy.sd.VAE, audio_vae: comfy.sd.VAE) -> None:
    if is_audio_vae(vae) and not is_audio_vae(audio_vae):
        raise ValueError(
            "'vae' and 'audio_vae' of Ovi Decode are in each other's place: swap the two "
            "connections."
        )
    if not is_audio_vae(audio_vae):
        raise ValueError(
            "'audio_vae' of Ovi Decode is no audio VAE of Ovi. Connect the one of 'Ovi Audio VAE "
            "Loader'."
        )
    check_video_vae(vae, "Ovi Decode")


def fit_length(waveform: Tensor, samples: int) -> Tensor:
    """Cut or fill up with silence a sound [B, C, N] to a number of samples."""
    missing = samples - waveform.shape[-1]
    return (
        torch.nn.functional.pad(waveform, (0, missing)) if missing > 0 else waveform[..., :samples]
    )
