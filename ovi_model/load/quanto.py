"""Weights that optimum-quanto stored as whole numbers with a scale, back as plain weights."""

from __future__ import annotations

from torch import Tensor

from .state_dict import StateDict

# How optimum-quanto names the two parts of a weight.
# Source: optimum-quanto 0.2.7, tensor/weights/qbytes.py, WeightQBytesTensor.save_to_state_dict.
VALUES = "._data"
SCALE = "._scale"
# Parts that only its four-bit and two-bit weights have.
PACKED = ("._data._data", "._shift")
# Scales of activations, which its loaders leave at one unless these are quantised too.
ACTIVATION_SCALES = (".input_scale", ".output_scale")


def is_quantised(state_dict: StateDict) -> bool:
    """Whether any weight is stored the way optimum-quanto stores it."""
    return any(key.endswith((VALUES, *PACKED)) for key in state_dict)


def dequantise(state_dict: StateDict) -> StateDict:
    """Return plain weights in the precision of their scales; the values leave `state_dict` as
    their product is made.

    Raises ValueError for a weight without a scale or with one that does not fit, and for fewer than
    eight bits.
    """
    if not is_quantised(state_dict):
        return state_dict
    packed = [key for key in state_dict if key.endswith(PACKED)]
    if packed:
        raise ValueError(
            f"'{packed[0]}' holds several numbers to a byte (optimum-quanto, four bits or fewer), "
            "which is not supported. Use the int8 or the bf16 file of the same release."
        )
    plain: StateDict = {}
    for key in list(state_dict):
        if key.endswith(VALUES):
            plain[key.removesuffix(VALUES)] = _multiply(state_dict, key)
        elif key.endswith(SCALE):
            continue  # read with its values
        elif not key.endswith(ACTIVATION_SCALES):
            plain[key] = state_dict.pop(key)
    return plain


def _multiply(state_dict: StateDict, key: str) -> Tensor:
    """Values [out, in], int8 or fp8, times scale [out, 1]."""
    name = key.removesuffix(VALUES)
    if name + SCALE not in state_dict:
        raise ValueError(
            f"'{name}' has no scale '{name}{SCALE}'. The file is incomplete: download it again."
        )
    values, scale = state_dict.pop(key), state_dict[name + SCALE]
    if values.ndim != 2 or scale.shape not in {(), (1,), (1, 1), (len(values), 1)}:
        raise ValueError(
            f"'{name}' has values of shape {list(values.shape)} and a scale of shape "
            f"{list(scale.shape)}, which do not go together. The file is damaged: download it "
            "again."
        )
    # In place: a second tensor of this size, freed again and again, would break up the memory for
    # good.
    return values.to(scale.dtype).mul_(scale)
