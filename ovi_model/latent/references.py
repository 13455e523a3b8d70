"""What a model is given of a person: a picture on white at the clip's size, a second of a voice.

Source: Guoxu1233/DreamID-Omni, what its engine makes of an image and of a recording.
"""

from __future__ import annotations

import comfy.model_management
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import SAMPLE_RATE, SAMPLES_PER_STEP, SPATIAL_COMPRESSION
from ..core_facts import on_device
from ..load.audio_vae import is_audio_vae
from ..load.video_vae import check_video_vae
from .pictures import check_pictures, is_finite, to_rgb

NODE = "Ovi References"
WHITE = (255, 255, 255)
VOICE_SECONDS = 1.0
FEWEST_STEPS = 6


def encode_image(vae, name: str, image: Tensor, video: Tensor) -> Tensor:
    """Return the latent [1, 48, 1, H, W] of a picture [1, h, w, C], for a clip [B, 48, F, H, W].

    It is what the VAE gives, as every latent between nodes. Raises ValueError, with the input's
    name, for anything but one picture, or if the VAE is not Wan 2.2's.
    """
    check_video_vae(vae, NODE)
    height, width = (size * SPATIAL_COMPRESSION for size in video.shape[3:])
    return vae.encode(letterbox(name, image, width, height))


def letterbox(name: str, image: Tensor, width: int, height: int) -> Tensor:
    """Return a picture [1, h, w, C] as RGB, fitted into a size in pixels, with white around it.

    Raises ValueError, with the input's name, unless it is one picture that has room there.
    """
    check_pictures(name, image)
    if len(image) != 1:
        raise ValueError(
            f"{name} holds {len(image)} pictures: give one. A second person has sockets of their "
            "own; take one picture out of a batch with 'ImageFromBatch'."
        )
    colours = to_rgb(image[0])
    if not is_finite(colours):
        raise ValueError(
            f"{name} holds NaN or infinite values: the node that made it failed; check its inputs, "
            "or connect another picture."
        )
    pixels = (colours.cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    scale = min(width / picture.width, height / picture.height)
    size = int(picture.width * scale), int(picture.height * scale)
    if 0 in size:
        raise ValueError(
            f"{name} is {picture.width} x {picture.height} pixels: fitted into {width} x {height}, "
            "nothing is left of it. Cut the picture to the face and shoulders."
        )
    canvas = Image.new("RGB", (width, height), WHITE)
    place = (width - size[0]) // 2, (height - size[1]) // 2
    canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), place)
    return torch.from_numpy(np.array(canvas))[None].float() / 255


def cut_voice(name: str, mono: Tensor, start: float) -> Tensor:
    """Return the second [1, samples] of a recording [1, samples] at 16 kHz that begins at a time in
    seconds; less where the recording ends in it.

    Raises ValueError, with the input's name, if too little is left.
    """
    begin = round(start * SAMPLE_RATE)
    second = mono[:, begin : begin + round(VOICE_SECONDS * SAMPLE_RATE)]
    if second.shape[1] < FEWEST_STEPS * SAMPLES_PER_STEP:
        there, least = mono.shape[1] / SAMPLE_RATE, FEWEST_STEPS * SAMPLES_PER_STEP / SAMPLE_RATE
        raise ValueError(
            f"{name} lasts {there:.2f} s, and its second from {start:g} s on is wanted: set its "
            f"start to {max(0.0, there - VOICE_SECONDS):.2f} s or less, or give a longer recording "
            f"(at least {least:.2f} s)."
        )
    return second


def encode_voice(audio_vae, name: str, second: Tensor) -> Tensor:
    """Return the latent [1, 20, steps] of a sound [1, samples] at 16 kHz, the posterior's mean.

    Core's `VAE.encode` takes sound at 44.1 kHz, so it would be resampled twice.
    Raises ValueError, with the input's name, unless it is Ovi's audio VAE.
    """
    if not is_audio_vae(audio_vae):
        raise ValueError(
            f"'audio_vae' of {NODE} is no audio VAE of Ovi, and {name} needs it. Connect the "
            "one of 'Ovi Audio VAE Loader'."
        )
    return _encode(audio_vae, second)


@on_device
def _encode(vae, second: Tensor) -> Tensor:
    needed = vae.memory_used_encode(second[None].shape, vae.vae_dtype)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed)
    posterior = vae.first_stage_model.encode_audio(second.to(vae.device, vae.vae_dtype))
    return posterior.mode().to(vae.output_device).float()
