"""A LoRA file on a model, with a strength for each tower and one for the layers that join them."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import torch
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from torch import Tensor

from ..log import log
from ..network.model import diffusion_model
from . import checkpoint
from .state_dict import DIFFUSION_MODEL, StateDict, find_undefined
from .weight_file import read_weights

GROUPS = ("video", "audio", "fusion")
SHOWN = 3

# What the names in LoRA files of every kind end in.
LORA_NAME = re.compile(r"lora|lokr_|hada_|oft_|\.(diff|diff_b|set_weight)$")
ADVICE = "Choose a LoRA of Ovi or of Wan 2.2 5B."

# A weight of the model, as core names it, to what core adds to it: an adapter, or a kind ("diff",
# "set") and its one tensor.
Patches = dict[str, WeightAdapterBase | tuple]

# What core raises when the parts of a patch do not go together.
NO_PRODUCT = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)


def apply_lora(model, path: str, strengths: dict[str, float]) -> tuple[object, str]:
    """Return a copy of a MODEL with the LoRA added to it, and in words how many weights of each
    group it changes.

    strengths: by group, see GROUPS; what is already on the model stays. Warns once of names that
    fit no layer.
    Raises ValueError if the model is no Ovi, or naming the file that is no LoRA for it.
    """
    network = diffusion_model(model)
    file = Path(path).name
    state_dict = comfy.lora_convert.convert_lora(read_weights(path)[0])
    if undefined := find_undefined(state_dict):
        raise ValueError(
            f"{file}: '{undefined}' holds infinite or undefined numbers. Download the file again."
        )
    shapes = checkpoint.shapes_of(network.config, network.audio_model.config)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    patches, unused = _read_patches(file, state_dict, names, shapes)
    for key, patch in patches.items():
        shape = shapes[key.removeprefix(DIFFUSION_MODEL)]
        if reason := _find_misfit(patch, shape, key):
            parts = _parts_of(key, patch, names, state_dict)
            raise ValueError(_does_not_fit(file, parts, shape, reason))
    kept = {key: _copied(patch) for key, patch in patches.items()}
    return _add(model, file, kept, strengths, _left_over(file, state_dict, unused))


def _copied(patch: WeightAdapterBase | tuple) -> WeightAdapterBase | tuple:
    """Return a patch whose tensors lie in memory, not in a map of the file.

    They are read at sampling; a map of a file that was written over in the meantime ends the
    process. They stay as long as the model does, at the size they have in the file.
    """
    if isinstance(patch, tuple):
        kind, tensors = patch
        return kind, tuple(tensor.clone() for tensor in tensors)
    patch.weights = tuple(
        part.clone() if isinstance(part, Tensor) else part for part in patch.weights
    )
    return patch


def _left_over(file: str, state_dict: StateDict, unused: list[str]) -> str:
    """Say which names of the file fit nothing, once to the log too."""
    if not unused:
        return ""
    told = f"{len(unused)} of {len(state_dict)} names in the file fit nothing: {_listed(unused)}"
    log.warning("%s: %s", file, told)
    return told


def _add(
    model, file: str, patches: Patches, strengths: dict[str, float], left_over: str
) -> tuple[object, str]:
    """Return a copy of a MODEL with each group of patches at its strength, and that in words."""
    model = model.clone()
    groups = {
        group: {key: patches[key] for key in patches if group_of(key) == group} for group in GROUPS
    }
    for group, own in groups.items():
        if strengths[group] != 0:
            model.add_patches(own, strengths[group])
    applied = ", ".join(
        f"{group} {_told(len(own), strengths[group])}" for group, own in groups.items()
    )
    return model, f"{file}: {applied}; {left_over}" if left_over else f"{file}: {applied}"


def _read_patches(
    file: str, state_dict: StateDict, names: dict[str, str], shapes: dict[str, torch.Size]
) -> tuple[Patches, list[str]]:
    """Return core's patches for the layers there are, and the names in the file that make none of
    them.

    Raises ValueError if the file makes no patch at all, or lacks a part of one.
    """
    try:
        loaded = comfy.lora.load_lora(state_dict, names, log_missing=False)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{file} is incomplete or damaged: {error}. Download it again.") from error
    patches: Patches = {}
    used: set[str] = set()
    without_layer: set[str] = set()
    for key, patch in loaded.items():
        is_adapter = isinstance(patch, WeightAdapterBase)
        made_of = patch.loaded_keys if is_adapter else _names_of_tensor(patch, state_dict)
        if key.removeprefix(DIFFUSION_MODEL) in shapes:
            patches[key] = patch
            used |= made_of
        elif not is_adapter:
            # A bias for a layer that has none, for example: core reads it and cannot add it.
            without_layer |= made_of
    if not patches:
        raise ValueError(_nothing_fits(file, state_dict))
    # Each adapter's names are those of every patch in the file: core has one set for all.
    used -= without_layer
    return patches, [name for name in state_dict if name not in used]


def _names_of_tensor(patch: tuple, state_dict: StateDict) -> set[str]:
    """Return the names of the one tensor that a "diff" or "set" patch holds."""
    _, (tensor,) = patch
    return {name for name, other in state_dict.items() if other is tensor}


def _nothing_fits(file: str, state_dict: StateDict) -> str:
    found = _listed(list(state_dict))
    if any(LORA_NAME.search(name) for name in state_dict):
        return (
            f"{file} is a LoRA of another model: its names, {found}, fit no layer of Ovi. {ADVICE}"
        )
    return (
        f"{file} is no LoRA: its names are {found}. If it is a whole model, put "
        "it in models/diffusion_models and choose it in 'Load Diffusion Model' or 'Ovi Model "
        f"Loader'. {ADVICE}"
    )


def _find_misfit(patch: WeightAdapterBase | tuple, shape: torch.Size, key: str) -> str | None:
    """Say why a patch does not fit a weight of this shape; None if it does."""
    if isinstance(patch, tuple):
        _, (tensor,) = patch
        return None if tensor.shape == shape else "the shapes differ"
    if isinstance(patch, LoRAAdapter):
        up, *_ = patch.weights
        # Core would give a product of as many numbers any shape.
        if up.shape[:1] != shape[:1]:
            return "their product has other rows"
    reason = _try(patch, torch.empty(shape, device="meta"), key)
    # What core computes may depend on numbers, which a meta tensor has none of.
    return reason and _try(patch, torch.zeros(shape), key)


def _try(patch: WeightAdapterBase, weight: Tensor, key: str) -> str | None:
    """Let core add a patch to a weight; return why it cannot, which core raises or only logs."""
    with _core_log() as messages:
        try:
            result = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight, key)
        except NO_PRODUCT as error:
            return str(error) or type(error).__name__
    if messages:
        return messages[0]
    if result.shape != weight.shape:
        return f"the weight would become {list(result.shape)}"
    return None


@contextmanager
def _core_log() -> Iterator[list[str]]:
    """Collect the errors that core logs from this thread, in place of showing them."""
    messages: list[str] = []
    thread, root = threading.get_ident(), logging.getLogger()

    def collect(record: logging.LogRecord) -> bool:
        is_core_error = threading.get_ident() == thread and record.levelno >= logging.ERROR
        if is_core_error:
            messages.append(record.getMessage())
        return not is_core_error

    level = root.level
    root.setLevel(min(level, logging.ERROR))
    root.addFilter(collect)
    try:
        yield messages
    finally:
        root.removeFilter(collect)
        root.setLevel(level)


def _does_not_fit(file: str, parts: StateDict, shape: torch.Size, reason: str) -> str:
    found = ", ".join(f"'{name}' {list(part.shape)}" for name, part in parts.items())
    return (
        f"{file} is made for another model, or damaged: its {found} cannot be added to a weight of "
        f"shape {list(shape)} ({reason}). {ADVICE}"
    )


def _parts_of(
    key: str, patch: WeightAdapterBase | tuple, names: dict[str, str], state_dict: StateDict
) -> StateDict:
    """Return the tensors of the file that made the patch of a weight."""
    if isinstance(patch, tuple):
        used = _names_of_tensor(patch, state_dict)
        return {name: state_dict[name] for name in state_dict if name in used}
    stems = tuple(f"{name}." for name, target in names.items() if target == key)
    return {name: part for name, part in state_dict.items() if name.startswith(stems)}


def group_of(key: str) -> str:
    """Where a weight belongs: layers that read the other tower are a group of their own, in both
    towers.
    """
    if "_fusion." in key:
        return "fusion"
    return "audio" if key.startswith(DIFFUSION_MODEL + checkpoint.AUDIO) else "video"


def _told(count: int, strength: float) -> str:
    return f"{count} keys at {strength:g}" if count else "0"


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + (
        " and so on" if len(names) > SHOWN else ""
    )
