"""One weight as ComfyUI stores it quantised: numbers, their scales, and a JSON that says how.

ComfyUI and `ovi_model` must be importable (see find_comfyui) before this module is.
Source of the names: ComfyUI, comfy/ops.py, _load_quantized_module.
"""

import dataclasses
import json
from collections.abc import Callable

import comfy.quant_ops
import torch
from comfyui_ovi.ovi_model.load.quantization import LAYER_FORMAT
from tensor_file import StateDict
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST_FP4 = 6.0
# Widths of a rotation, the usual one first; each is a power of four, as comfy-kitchen asks.
ROTATIONS = (256, 64, 16, 4)
# Targets that need comfy-kitchen, and ComfyUI's name of the format.
KITCHEN = {
    "int8": "int8_tensorwise",
    "int8-convrot": "int8_tensorwise",
    "mxfp8": "mxfp8",
    "nvfp4": "nvfp4",
}


def choose(target: str) -> Callable[[str, Tensor], StateDict]:
    """Return what makes a layer's name and its weight [out, in] into the tensors of a target.

    Raises ValueError saying what to install, where ComfyUI or comfy-kitchen lacks its layout.
    """
    if target == "fp8-product":
        return to_fp8
    check_installed(target)
    return {
        "int8": lambda layer, weight: _quantise(layer, weight, {"format": "int8_tensorwise"}),
        "int8-convrot": to_rotated_int8,
        "mxfp8": lambda layer, weight: _quantise(layer, weight, {"format": "mxfp8"}),
        "nvfp4": to_nvfp4,
    }[target]


def check_installed(target: str) -> None:
    """Raise ValueError unless this Python can quantise to a target of comfy-kitchen."""
    if not hasattr(comfy.quant_ops, "TensorCoreNVFP4Layout"):
        raise ValueError(
            f"This ComfyUI reads no {target}. Update ComfyUI, and comfy-kitchen with it: python -m "
            "pip install -r requirements.txt, in ComfyUI's folder."
        )
    if getattr(comfy.quant_ops, "ck", None) is None:
        raise ValueError(
            f"{target} is made by comfy-kitchen, which is not installed. Install it: python -m pip "
            "install comfy-kitchen"
        )
    if KITCHEN[target] not in comfy.quant_ops.QUANT_ALGOS or not _knows(target):
        raise ValueError(
            f"This ComfyUI or its comfy-kitchen is too old for {target}. Update ComfyUI, and "
            "comfy-kitchen with it: python -m pip install --upgrade comfy-kitchen"
        )


def to_fp8(layer: str, weight: Tensor) -> StateDict:
    """Numbers in fp8 with one scale, as to_scaled_fp8 has them, that may multiply in fp8."""
    numbers, scale = scaled_to_fp8(weight)
    return {
        f"{layer}.weight": numbers,
        f"{layer}.weight_scale": scale,
        **_describe(layer, {"format": "float8_e4m3fn"}),
    }


def scaled_to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return numbers and the scale [] that makes the largest of them fp8's largest."""
    weight = weight.float()
    scale = weight.abs().amax() / torch.finfo(FP8).max
    scale = torch.where(scale == 0, 1.0, scale)
    return (weight / scale).to(FP8), scale


def to_rotated_int8(layer: str, weight: Tensor) -> StateDict:
    """Int8 with a scale a row, after a rotation that spreads what is large; as ComfyUI's ConvRot.

    Raises ValueError where the layer is too narrow to be rotated.
    """
    width = next((width for width in ROTATIONS if weight.shape[1] % width == 0), None)
    if width is None:
        raise ValueError(
            f"'{layer}' reads {weight.shape[1]} channels, no multiple of {ROTATIONS[-1]}, and "
            "cannot be rotated. Use --to int8."
        )
    how = {"format": KITCHEN["int8-convrot"], "convrot": True, "convrot_groupsize": width}
    return _quantise(layer, weight, how, per_channel=True, convrot=True, convrot_groupsize=width)


def to_nvfp4(layer: str, weight: Tensor) -> StateDict:
    """Four bits a number, a scale in fp8 for sixteen of them, and one for the layer."""
    scale = weight.float().abs().amax() / (torch.finfo(FP8).max * LARGEST_FP4)
    # With none, the layout would divide by zero where all is zero.
    scale = torch.where(scale == 0, 1.0, scale)
    return _quantise(layer, weight, {"format": "nvfp4"}, scale=scale)


def _quantise(layer: str, weight: Tensor, how: dict, **options) -> StateDict:
    """Quantise with ComfyUI's own layout of a format, and store as its own Save Model does."""
    layout = comfy.quant_ops.QUANT_ALGOS[how["format"]]["comfy_tensor_layout"]
    made = comfy.quant_ops.QuantizedTensor.from_float(weight.float(), layout, **options)
    stored = made.state_dict(f"{layer}.weight")
    return {name: _plain(tensor) for name, tensor in stored.items()} | _describe(layer, how)


def _plain(tensor: Tensor) -> Tensor:
    """Scales that are powers of two go as bytes, for older readers of safetensors know no other."""
    if tensor.dtype == getattr(torch, "float8_e8m0fnu", None):
        return tensor.view(torch.uint8)
    return tensor


def _describe(layer: str, how: dict) -> StateDict:
    text = torch.tensor(list(json.dumps(how).encode()), dtype=torch.uint8)
    return {layer + LAYER_FORMAT: text}


def _knows(target: str) -> bool:
    """Whether the layout has what a target asks of it beyond its name."""
    if not hasattr(comfy.quant_ops.QuantizedTensor, "from_float"):
        return False  # core has names in place of a library that it could not use
    if target != "int8-convrot":
        return True
    layout = comfy.quant_ops.TensorWiseINT8Layout
    return "convrot" in {field.name for field in dataclasses.fields(layout.Params)}
