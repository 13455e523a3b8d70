"""The miniature: a small trained Ovi that lies in this extension, as the four parts a workflow
needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.sd
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..config import SPATIAL_COMPRESSION
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
REFERENCES_LORA = "loras/ovi_miniature_references.safetensors"
SIDE, FRAMES = 64, 37  # pixels and frames of its training
# Pixels of a picture. One of 960 x 960 takes a processor minutes for a step, and shows nothing.
MOST_PIXELS = 512 * 512
KEY = "ovi_miniature"


def list_lora() -> None:
    """Have every LoRA loader list the LoRA by which the miniature reads references."""
    folder_paths.add_model_folder_path("loras", str((FOLDER / REFERENCES_LORA).parent))


def load_miniature(
    folder: Path = FOLDER,
) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE, comfy.sd.VAE]:
    """Return the twin DiT, the text encoder, the VAE of the picture and the VAE of the sound.

    Raises ValueError naming the file that is missing, damaged or incomplete.
    """
    with _to_be_installed_again():
        model = load_model(str(folder / MODEL), None, "default")
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _refuse_large)
        return (
            model,
            load_text_encoder(folder / TEXT_ENCODER),
            load_video_vae(folder / VIDEO_VAE),
            load_audio_vae(folder / AUDIO_VAE),
        )


def _refuse_large(executor, packed, *args, shapes, **kwargs):
    """Raise ValueError at the first step of a picture far larger than those it was trained on.

    shapes: of the latents, [B, 48, F, H, W] of the picture first, unless the sound is alone.
    """
    if len(shapes[0]) == 5:
        height, width = (SPATIAL_COMPRESSION * side for side in shapes[0][-2:])
        if height * width > MOST_PIXELS:
            raise ValueError(
                f"Ovi Miniature was made for {SIDE} x {SIDE} pixels and {FRAMES} frames, and the "
                f"latent has {width} x {height} pixels: set width and height of 'Ovi Latent' to "
                f"{SIDE} and length to {FRAMES}. It knows a drawn world alone; for real clips of "
                "this size load a released model with 'Load Diffusion Model'."
            )
    return executor(packed, *args, shapes=shapes, **kwargs)


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
