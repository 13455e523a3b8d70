"""How each quantised layer is stored: ComfyUI's three ways of saying so, brought into the one its
current core reads.

Source of the ways: ComfyUI, comfy/utils.py, convert_old_quants, and comfy/ops.py,
mixed_precision_ops.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import torch
from torch import Tensor

from .state_dict import StateDict, without_prefix

# A layer's name to what ComfyUI says of it, for example {"format": "float8_e4m3fn"}.
Formats = dict[str, dict]

# The one way: JSON in bytes beside the layer's `.weight` and `.weight_scale`.
LAYER_FORMAT = ".comfy_quant"
# The second, in the metadata of the file, as JSON: {"layers": {name: {"format": ...}}}.
METADATA = "_quantization_metadata"
# The oldest: one mark for the file, and a `.scale_weight` beside each weight.
MARK = "scaled_fp8"
OLD_SCALES = {".scale_weight": ".weight_scale", ".scale_input": ".input_scale"}
# A mark of so many elements asks for products in the precision of the activations.
PRECISE_MARK = 2

FP8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}


def read(
    state_dict: StateDict, metadata: dict[str, str] | None = None, prefix: str = ""
) -> Formats:
    """Return how each layer is stored that is quantised, whichever of the three ways says so.

    metadata: of the file, whose list of layers is ComfyUI's second way; prefix: what names in it
    may begin with.
    Raises ValueError when a layer's own words are no JSON object.
    """
    layers = read_named(state_dict, metadata, prefix)
    mark = state_dict.get(MARK)
    is_precise = mark is None or mark.numel() == PRECISE_MARK
    for layer in _scaled(state_dict):
        how = {"format": FP8[state_dict[f"{layer}.weight"].dtype]}
        layers.setdefault(layer, how | {"full_precision_matrix_mult": True} if is_precise else how)
    return layers


def read_named(
    state_dict: StateDict, metadata: dict[str, str] | None = None, prefix: str = ""
) -> Formats:
    """Return what the metadata and the weights themselves say of layers, without those that only
    have a scale.
    """
    return _listed(state_dict, metadata or {}, prefix) | _read_own(state_dict)


def store(state_dict: StateDict, layers: Formats) -> StateDict:
    """Return the weights stored in the one way; what does not go with it is left out."""
    stored: StateDict = {}
    for key, tensor in state_dict.items():
        if key == MARK or key.endswith(LAYER_FORMAT):
            continue
        old = next((old for old in OLD_SCALES if key.endswith(old)), None)
        layer = key.removesuffix(old or "")
        if old is None:
            stored[key] = tensor
        elif old == ".scale_weight" or _uses_activation_scale(layers.get(layer, {}), tensor):
            stored[layer + OLD_SCALES[old]] = tensor
    for layer, how in layers.items():
        stored[layer + LAYER_FORMAT] = torch.tensor(
            list(json.dumps(how).encode()), dtype=torch.uint8
        )
    return stored


def _uses_activation_scale(how: dict, scale: Tensor) -> bool:
    """Precise products have no use for a scale of activations, and one of 1 would cut off what is
    above 448.
    """
    return bool(how) and not how.get("full_precision_matrix_mult") and not bool((scale == 1).all())


def check(layers: Formats, state_dict: StateDict, known: Iterable[str]) -> None:
    """Raise ValueError for the first layer in a format not among the known ones, or in fp8 without
    one scale.
    """
    known = sorted(known)
    for layer, how in layers.items():
        if how.get("format") not in known:
            raise ValueError(
                f"'{layer}' is quantised as '{str(how.get('format'))[:40]}'; this ComfyUI reads "
                f"{', '.join(known)}. Update ComfyUI, or use another file of the same release."
            )
        scale = state_dict.get(f"{layer}.weight_scale")
        if how["format"].startswith("float8") and (scale is None or scale.numel() != 1):
            found = "has no" if scale is None else f"has {scale.numel()} numbers as"
            raise ValueError(
                f"'{layer}' is in {how['format']} but {found} '{layer}.weight_scale'; one is "
                "needed. The file is incomplete or damaged: download it again."
            )


def read_metadata(metadata: dict[str, str]) -> Formats:
    """Return what a file's metadata says of layers, by their names in it.

    Raises ValueError if that is not how each layer is quantised.
    """
    if METADATA not in metadata:
        return {}
    layers = _parse(METADATA, metadata[METADATA]).get("layers")
    if not isinstance(layers, dict) or not all(isinstance(how, dict) for how in layers.values()):
        raise ValueError(
            f"'{METADATA}' does not say how each layer is quantised. The file is damaged: download "
            "it again."
        )
    return layers


def _listed(state_dict: StateDict, metadata: dict[str, str], prefix: str) -> Formats:
    """What the metadata says of layers that there are; the names in it have the prefix, another, or
    none.
    """
    listed = read_metadata(metadata)
    layers = {without_prefix(name.removeprefix(prefix)): how for name, how in listed.items()}
    return {layer: how for layer, how in layers.items() if f"{layer}.weight" in state_dict}


def _read_own(state_dict: StateDict) -> Formats:
    """What stands beside the layers; an older step of core may have left it beside none."""
    layers = {
        key.removesuffix(LAYER_FORMAT): key for key in state_dict if key.endswith(LAYER_FORMAT)
    }
    return {
        layer: _parse(key, state_dict[key].flatten().view(torch.uint8).numpy().tobytes())
        for layer, key in layers.items()
        if f"{layer}.weight" in state_dict
    }


def _parse(name: str, text: str | bytes) -> dict:
    try:
        how = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"'{name}' is no JSON ({error}). The file is damaged: download it again."
        ) from error
    if not isinstance(how, dict):
        raise ValueError(
            f"'{name}' holds a {type(how).__name__}, not a JSON object. The file is damaged: "
            "download it again."
        )
    return how


def _scaled(state_dict: StateDict) -> list[str]:
    """Layers in fp8 with a scale beside them, whether or not anything says so."""
    layers = [
        key.removesuffix(scale)
        for key in state_dict
        for scale in (".weight_scale", ".scale_weight")
        if key.endswith(scale)
    ]
    return [
        layer
        for layer in layers
        if f"{layer}.weight" in state_dict and state_dict[f"{layer}.weight"].dtype in FP8
    ]
