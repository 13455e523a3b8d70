"""The miniature: a small trained Ovi that lies in this extension, as the four parts a workflow
needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.sd
from comfy.model_patcher import ModelPatcher

from .audio_vae import load_audio_vae
from .diffusion_model import load_model
from .text_encoder import load_text_encoder
from .video_vae import load_video_vae

FOLDER = Path(__file__).parents[2] / "miniature"
# In the folders of ComfyUI/models where the ordinary loaders look.
MODEL = "diffusion_models/ovi_miniature.safetensors"
TEXT_ENCODER = "text_encoders/umt5_miniature.safetensors"
VIDEO_VAE = "vae/wan22_miniature.safetensors"
AUDIO_VAE = "vae/mmaudio_miniature.safetensors"


def load_miniature(
    folder: Path = FOLDER,
) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE, comfy.sd.VAE]:
    """Return the twin DiT, the text encoder, the VAE of the picture and the VAE of the sound.

    Raises ValueError naming the file that is missing, damaged or incomplete.
    """
    with _to_be_installed_again():
        return (
            load_model(str(folder / MODEL), None, "default"),
            load_text_encoder(folder / TEXT_ENCODER),
            load_video_vae(folder / VIDEO_VAE),
            load_audio_vae(folder / AUDIO_VAE),
        )


@contextmanager
def _to_be_installed_again() -> Iterator[None]:
    """Say where to get files that are no download of their own."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            "The miniature comes with this extension, in its folder 'miniature'. Install the "
            f"extension again, since a file there is not as it came: {error}"
        ) from error
