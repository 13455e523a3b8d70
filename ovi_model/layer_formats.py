"""How each quantised layer is stored: ComfyUI's three ways of saying so, brought into the one its current core reads.

Source of the ways: ComfyUI, comfy/utils.py, convert_old_quants, and comfy/ops.py, mixed_precision_ops.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import torch
from torch import Tensor

from .safetensors_header import QUANTISATION, read_quantisation
from .weight_file import without_prefix

Weights = dict[str, Tensor]
# A layer's name to what ComfyUI says of it, for example {"format": "float8_e4m3fn"}.
Formats = dict[str, dict]

# The one way: JSON in bytes beside the layer's `.weight` and `.weight_scale`.
LAYER_FORMAT = ".comfy_quant"
# The oldest: one mark for the file, and a `.scale_weight` beside each weight.
MARK = "scaled_fp8"
OLD_SCALES = {".scale_weight": ".weight_scale", ".scale_input": ".input_scale"}
# A mark of so many elements asks for products in the precision of the activations.
PRECISE_MARK = 2

FP8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}


def unify(weights: Weights, metadata: dict[str, str] | None = None, prefix: str = "") -> Formats:
    """Bring how the layers below a prefix are stored into the one way, in place; return it by layer, without prefix.

    metadata: of the file, whose list of layers, ComfyUI's second way, is read.
    Raises ValueError when a layer's own words are no JSON object.
    """
    precise = _rename_old_scales(weights, prefix)
    layers = read(weights, metadata, prefix)
    for layer in _scaled(weights, prefix):
        layers.setdefault(layer, {"format": FP8[weights[f"{prefix}{layer}.weight"].dtype]} | precise)
    for layer, how in layers.items():
        weights[f"{prefix}{layer}{LAYER_FORMAT}"] = torch.tensor(list(json.dumps(how).encode()), dtype=torch.uint8)
    return layers


def read(weights: Weights, metadata: dict[str, str] | None, prefix: str = "") -> Formats:
    """Return what the metadata and the weights themselves say of layers, which then stands in the weights no more."""
    return _listed(weights, metadata or {}, prefix) | _read_own(weights, prefix)


def check(layers: Formats, weights: Weights, known: Iterable[str]) -> None:
    """Raise ValueError for the first layer in a format not among the known ones, or in fp8 without one scale."""
    known = sorted(known)
    for layer, how in layers.items():
        if how.get("format") not in known:
            raise ValueError(
                f"'{layer}' is quantised as '{how.get('format')}'; this ComfyUI reads {', '.join(known)}. "
                "Update ComfyUI, or use another file of the same release."
            )
        scale = weights.get(f"{layer}.weight_scale")
        if how["format"].startswith("float8") and (scale is None or scale.numel() != 1):
            found = "has no" if scale is None else f"has {scale.numel()} numbers as"
            raise ValueError(
                f"'{layer}' is in {how['format']} but {found} '{layer}.weight_scale'; one is needed. "
                "The file is incomplete or damaged: download it again."
            )


def _rename_old_scales(weights: Weights, prefix: str) -> dict[str, bool]:
    """Give scales their present names; return what ComfyUI says of a layer that needs precise products, if they do."""
    mark = weights.pop(f"{prefix}{MARK}", None)
    precise = mark is None or mark.numel() == PRECISE_MARK
    for old, new in OLD_SCALES.items():
        for key in [key for key in weights if key.startswith(prefix) and key.endswith(old)]:
            scale = weights.pop(key)
            # A scale of activations is of no use to precise products, and one of 1 would cut off what is above 448.
            if new == ".weight_scale" or not (precise or (scale == 1).all()):
                weights[key.removesuffix(old) + new] = scale
    return {"full_precision_matrix_mult": True} if precise else {}


def _listed(weights: Weights, metadata: dict[str, str], prefix: str) -> Formats:
    """What the metadata says of layers that there are; the names in it have the prefix, another, or none."""
    listed = read_quantisation(metadata[QUANTISATION]) if QUANTISATION in metadata else {}
    layers = {without_prefix(name.removeprefix(prefix)): how for name, how in listed.items()}
    return {layer: how for layer, how in layers.items() if f"{prefix}{layer}.weight" in weights}


def _read_own(weights: Weights, prefix: str) -> Formats:
    """What stands beside the layers; beside none, where an older step of core left it, it is removed."""
    layers = {}
    for key in [key for key in weights if key.startswith(prefix) and key.endswith(LAYER_FORMAT)]:
        written = weights.pop(key)
        layer = key.removeprefix(prefix).removesuffix(LAYER_FORMAT)
        if f"{prefix}{layer}.weight" in weights:
            layers[layer] = _parse(key, written)
    return layers


def _parse(key: str, written: Tensor) -> dict:
    try:
        how = json.loads(written.numpy().tobytes()) if written.dtype == torch.uint8 else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{key}' is no JSON ({error}). The file is damaged: download it again.") from error
    if not isinstance(how, dict):
        raise ValueError(f"'{key}' holds {how!r}, not a JSON object. The file is damaged: download it again.")
    return how


def _scaled(weights: Weights, prefix: str) -> list[str]:
    """Layers in fp8 with a scale beside them, whether or not anything says so."""
    scales = [key.removesuffix("_scale") for key in weights if key.startswith(prefix) and key.endswith(".weight_scale")]
    stored = [key for key in scales if key in weights and weights[key].dtype in FP8]
    return [key.removeprefix(prefix).removesuffix(".weight") for key in stored]
