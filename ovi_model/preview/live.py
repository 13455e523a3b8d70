"""The picture that is shown while Ovi samples: the middle of the clip, through a tiny decoder if
the user has one and chose that method.

ComfyUI's own previewer shows the first frame, which image-to-video holds from the start, hands
every tiny decoder the model's scale, and asks for as much memory as a whole clip takes, for which
parts of the model leave the card.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args
from torch import Tensor

from ..decode.tiny import bytes_held, decode_tiny
from ..load.tiny_vae import FILE_NAMES, is_tiny_file, takes_model_scale
from ..log import log

# Where a tiny decoder may lie: for previews, or for 'Load VAE'.
FOLDERS = ("vae_approx", "vae")


def middle_frame(latent) -> Tensor:
    """Return the middle [B, 48, 1, h, w] of the picture in what a previewer is given."""
    video = latent.unbind()[0] if getattr(latent, "is_nested", False) else latent
    middle = video.shape[2] // 2
    return video[:, :, middle : middle + 1]


def use_tiny_decoder(original: Callable, is_ours: Callable) -> Callable:
    """Wrap core's get_previewer; is_ours tells the family's latent format from all others."""

    @functools.wraps(original)
    def get_previewer(device, latent_format):
        path = _find_decoder() if is_ours(latent_format) and _is_chosen() else None
        return _load(path, latent_format) if path else original(device, latent_format)

    return get_previewer


def _is_chosen() -> bool:
    return args.preview_method == LatentPreviewMethod.TAESD


def _find_decoder() -> Path | None:
    """The tiny decoder that a user has; of several, the one that core would take."""
    found = [
        (FILE_NAMES.index(known), path)
        for folder in FOLDERS
        for name in folder_paths.get_filename_list(folder)
        for known in FILE_NAMES
        if Path(name).name.lower().startswith(known)
        and (path := folder_paths.get_full_path(folder, name))  # none where a link leads nowhere
    ]
    return Path(min(found, key=lambda entry: entry[0])[1]) if found else None


def _load(path: Path, latent_format) -> latent_preview.LatentPreviewer:
    """Return the previewer of a file; if it holds something else, say so and mix colours."""
    state_dict = comfy.utils.load_torch_file(str(path), safe_load=True)
    if is_tiny_file(state_dict):
        return TinyPreviewer(comfy.sd.VAE(sd=state_dict), takes_model_scale(path.name))
    log.warning(
        "%s is no tiny decoder of Wan 2.2's latent, 48 channels; the preview shows mixed colours "
        "instead. Take lighttaew2_2.safetensors of lightx2v/Autoencoders.",
        path.name,
    )
    return latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors,
        latent_format.latent_rgb_factors_bias,
        latent_format.latent_rgb_factors_reshape,
    )


class TinyPreviewer(latent_preview.TAEHVPreviewerImpl):
    """Shows the middle of the clip through a tiny decoder."""

    def __init__(self, vae: comfy.sd.VAE, is_model_scale: bool):
        super().__init__(vae)
        self.is_model_scale = is_model_scale

    @torch.no_grad()
    def decode_latent_to_preview(self, x0):
        """Return the picture of the first clip's middle, from a latent in the model's scale."""
        vae, latent = self.taesd, middle_frame(x0)[:1]
        if not self.is_model_scale:
            latent = comfy.latent_formats.Wan22().process_out(latent)
        needed = bytes_held(latent[0, 0].numel(), 1, vae.vae_dtype)
        comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed)
        made: list[Tensor] = []
        latent = latent.to(device=vae.device, dtype=vae.vae_dtype)
        decode_tiny(vae.first_stage_model, latent, made.append)
        picture = vae.process_output(made[-1].float())[0, :, 0].movedim(0, -1)
        return latent_preview.preview_to_image(picture, do_scale=False)
