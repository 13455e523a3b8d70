"""A LoRA file on a model, with a strength for each tower and one for the layers that join them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import torch
from torch import Tensor

from ..log import log
from ..network.model import OviModel, diffusion_model
from .checkpoint import AUDIO
from .weight_file import find_undefined, read_weights

GROUPS = ("video", "audio", "fusion")
SHOWN = 3

# What the names in LoRA files of every kind end in.
LORA_NAME = re.compile(r"lora|lokr_|hada_|oft_|\.(diff|diff_b|set_weight)$")
ADVICE = "Choose a LoRA of Ovi or of Wan 2.2 5B."

# A weight of the model, as core names it, to what core adds to it.
Patches = dict[str, object]


def apply_lora(model, path: str, strengths: dict[str, float]) -> tuple[object, str]:
    """Return a copy of a MODEL with the LoRA added to it, and in words how many weights of each
    group it changes.

    strengths: by group, see GROUPS; what is already on the model stays. Warns once of names that
    fit no layer.
    Raises ValueError if the model is no Ovi, or naming the file that is no LoRA for it.
    """
    network = diffusion_model(model)
    file = Path(path).name
    weights = comfy.lora_convert.convert_lora(read_weights(path)[0])
    if undefined := find_undefined(weights):
        raise ValueError(
            f"{file}: '{undefined}' holds infinite or undefined numbers. Download the file again."
        )
    layers = OviModel(
        network.config, network.audio_model.config, device="meta", operations=torch.nn
    ).state_dict()
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    patches, unused = _read_patches(file, weights, names, layers)
    _check_shapes(file, patches, layers, lambda key: _name_of(key, names, weights))

    model = model.clone()
    groups = {
        group: {key: patches[key] for key in patches if _group_of(key) == group} for group in GROUPS
    }
    for group, own in groups.items():
        if strengths[group] != 0:
            model.add_patches(own, strengths[group])
    applied = ", ".join(
        f"{group} {_told(len(own), strengths[group])}" for group, own in groups.items()
    )
    if not unused:
        return model, f"{file}: {applied}"
    left_over = f"{len(unused)} of {len(weights)} names in the file fit nothing: {_listed(unused)}"
    log.warning("%s: %s", file, left_over)
    return model, f"{file}: {applied}; {left_over}"


class _Noting(dict):
    """A dictionary that notes which of its keys were read: core tells of names it has no use for in
    the log alone.
    """

    def __init__(self, content: dict):
        super().__init__(content)
        self.read: set[str] = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.read.update({key} & self.keys())
        return super().get(key, default)


def _read_patches(
    file: str, weights: dict[str, Tensor], names: dict[str, str], layers: dict[str, Tensor]
) -> tuple[Patches, list[str]]:
    """Return core's patches for the layers there are, and the names in the file that make none of
    them.

    Raises ValueError if the file makes no patch at all, or lacks a part of one.
    """
    noting = _Noting(weights)
    try:
        loaded = comfy.lora.load_lora(noting, names, log_missing=False)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{file} is incomplete or damaged: {error}. Download it again.") from error
    patches = {
        key: patch
        for key, patch in loaded.items()
        if key.removeprefix("diffusion_model.") in layers
    }
    if not patches:
        raise ValueError(_nothing_fits(file, weights))
    # A bias for a layer that has none, for example: core reads it and would say so when it adds it.
    absent = [_name_of(key, names, weights) for key in loaded if key not in patches]
    return patches, [*(name for name in weights if name not in noting.read), *absent]


def _nothing_fits(file: str, weights: dict[str, Tensor]) -> str:
    if any(LORA_NAME.search(name) for name in weights):
        return f"{file} is a LoRA of another model: its names, {_listed(list(weights))}, fit no layer of Ovi. {ADVICE}"
    return (
        f"{file} is no LoRA: its names are {_listed(list(weights))}. If it is a whole model, put "
        "it in models/diffusion_models and choose it in 'Load Diffusion Model' or 'Ovi Model "
        f"Loader'. {ADVICE}"
    )


def _check_shapes(file: str, patches: Patches, layers: dict[str, Tensor], name_of) -> None:
    """Raise ValueError naming the first patch that has another shape than its weight.

    layers: the network's tensors before any quantisation, which packs them.
    """
    for key, patch in patches.items():
        expected = list(layers[key.removeprefix("diffusion_model.")].shape)
        if not isinstance(patch, tuple):
            expected = [expected[0], math.prod(expected[1:])]
        try:
            found = _shape_of(patch)
        except (RuntimeError, TypeError) as error:
            parts = [list(part.shape) for part in patch.weights if isinstance(part, Tensor)]
            raise ValueError(
                f"{file} is damaged: '{name_of(key)}' and what belongs to it have the shapes "
                f"{parts}, which do not go together or are not all. Download it again."
            ) from error
        if found not in (None, expected):
            raise ValueError(
                f"{file} is made for another model: '{name_of(key)}' is for a weight of shape "
                f"{found}, but this model's is {expected}. {ADVICE}"
            )


def _shape_of(patch) -> list[int] | None:
    """The shape of what a patch adds, [rows, columns] if it is a product; None if it turns the
    weight, or has a core.

    Raises RuntimeError or TypeError if there is no such product.
    Source: ComfyUI, comfy/weight_adapter, calculate_weight of each kind.
    """
    if isinstance(patch, tuple):
        return list(patch[1][0].shape)
    parts = [
        torch.empty(part.shape, device="meta") if isinstance(part, Tensor) else None
        for part in patch.weights
    ]
    middle = {"lora": slice(3, 4), "loha": slice(5, 7), "lokr": slice(7, 8)}.get(
        patch.name, slice(0)
    )
    if any(part is not None for part in parts[middle]):
        return None
    if patch.name == "lora":
        up, down = parts[:2]
        return list((up.flatten(1) @ down.flatten(1)).shape)
    if patch.name == "loha":
        left_up, left_down, _, right_up, right_down = parts[:5]
        return list(((left_up @ left_down) * (right_up @ right_down)).shape)
    if patch.name == "lokr":
        left, right, _, left_up, left_down, right_up, right_down = parts[:7]
        left = left_up @ left_down if left is None else left
        right = right_up @ right_down if right is None else right
        return list(torch.kron(left, right.flatten(1)).shape)
    return None


def _name_of(key: str, names: dict[str, str], weights: dict[str, Tensor]) -> str:
    """The name in the file that made the patch of a weight."""
    layer = key.removesuffix(".weight").removesuffix(".bias")
    stems = tuple(
        f"{name}." for name, target in names.items() if target.removesuffix(".weight") == layer
    )
    return next((name for name in weights if name.startswith(stems)), key)


def _group_of(key: str) -> str:
    """Where a weight belongs: layers that read the other tower are a group of their own, in both
    towers.
    """
    if "_fusion." in key:
        return "fusion"
    return "audio" if key.startswith(f"diffusion_model.{AUDIO}") else "video"


def _told(count: int, strength: float) -> str:
    return f"{count} keys at {strength:g}" if count else "0"


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + (
        " and so on" if len(names) > SHOWN else ""
    )
