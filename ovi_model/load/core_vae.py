"""Core's VAE object around a model of other widths than the released ones, which core builds
itself.
"""

from types import ModuleType

import comfy.sd
from torch import nn

from .state_dict import StateDict


def vae_around(
    model: nn.Module, state_dict: StateDict, home: ModuleType, class_name: str
) -> comfy.sd.VAE:
    """Return the VAE that core makes of these weights, with this model in place of one of its own.

    home, class_name: where core takes the class from that it would build.
    """
    original = getattr(home, class_name)
    setattr(home, class_name, lambda *_arguments, **_config: model)
    try:
        return comfy.sd.VAE(sd=state_dict)
    finally:
        setattr(home, class_name, original)
