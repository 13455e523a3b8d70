"""The tiny decoders of Wan 2.2's latent that ComfyUI loads as a VAE, and the scale of each.

Two are about, alike to the last name and shape: lightx2v's *lighttaew2_2* takes the latent as the
large VAE does, madebyollin's *taew2_2*, after which it was trained, as the model does. ComfyUI
hands both what its large VAE would get when it decodes, and both what the model makes when it
previews. The names of their files tell them apart, here as in lightx2v's own program.
"""

import comfy.latent_formats
import comfy.sd
from comfy.taesd.taehv import TAEHV
from torch import Tensor, nn

from ..config import VIDEO_CHANNELS
from ..core_facts import loaded_file
from .state_dict import StateDict

# How the names of the files begin, the one that ComfyUI's previews ask for first.
FILE_NAMES = ("lighttaew2_2", "taew2_2")
# In the name of a file that takes the large VAE's scale.
LARGE_SCALE = "lighttae"


def is_tiny(model: nn.Module) -> bool:
    """Whether this is a tiny decoder of Ovi's video latent."""
    return isinstance(model, TAEHV) and model.latent_channels == VIDEO_CHANNELS


def is_tiny_file(state_dict: StateDict) -> bool:
    """Whether these are the weights of one, as ComfyUI tells them."""
    first, last = state_dict.get("decoder.1.weight"), state_dict.get("decoder.22.bias")
    return first is not None and last is not None and first.shape[1] == VIDEO_CHANNELS


def takes_model_scale(file_name: str) -> bool:
    """Whether the decoder of a file takes the latent as the model makes it."""
    name = file_name.lower()
    return "tae" in name and LARGE_SCALE not in name


def in_its_scale(vae: comfy.sd.VAE, latent: Tensor) -> Tensor:
    """Return a latent of the large VAE's scale in that of a tiny decoder.

    Where ComfyUI does not keep which file a VAE is of (before 0.33), it stays as it is.
    """
    name = loaded_file(vae.patcher)
    if name is not None and takes_model_scale(name):
        return comfy.latent_formats.Wan22().process_in(latent)
    return latent
