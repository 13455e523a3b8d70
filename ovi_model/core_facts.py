"""What the running ComfyUI has and does, told by its objects: not by its version, not by its source
text.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import comfy.context_windows
import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from comfy_api.latest import io

try:
    # 0.21.0: blocks whose weights are streamed are fetched ahead, one by one.
    import comfy.model_prefetch as model_prefetch
except ImportError:
    model_prefetch = None

T = TypeVar("T")

# 0.8.0: how a layer is quantised stands beside it in the weights; before, only in the file's
# metadata.
LAYER_FORMATS = hasattr(comfy.utils, "convert_old_quants")
# 0.33.0: samplers take masks, noise and previews of a nested latent. This function was the last of
# it to come.
NESTED_LATENTS = hasattr(comfy.sample, "prepare_empty_noise")
# 0.26.0: context windows cut every stream of a nested latent.
NESTED_WINDOWS = hasattr(comfy.context_windows, "WindowingState")
# Newer than 0.3.75: a node may have more words that a search finds it by.
SEARCH_ALIASES = "search_aliases" in {field.name for field in dataclasses.fields(io.Schema)}
# The same for inputs that a page shows only when it is asked to.
ADVANCED_INPUTS = "advanced" in inspect.signature(io.Input.__init__).parameters


def advanced() -> dict[str, bool]:
    """Return the field of an input that few need, where the schema has one."""
    return {"advanced": True} if ADVANCED_INPUTS else {}


def search_aliases(*words: str) -> dict[str, list[str]]:
    """Return the schema's field for words that a search finds a node by, where there is one."""
    return {"search_aliases": list(words)} if SEARCH_ALIASES else {}


def unpack_latents(packed: torch.Tensor, shapes: list[torch.Size]) -> list[torch.Tensor]:
    """Core's function, also for a latent alone, which cores before 0.8 return as it is."""
    if len(shapes) == 1:
        return [packed.reshape(packed.shape[:1] + shapes[0][1:])]
    return comfy.utils.unpack_latents(packed, shapes)


def on_device(decode):
    """Run a function of a VAE with its card as the current one, as core does since a VAE can choose
    it (0.33.0).
    """

    @functools.wraps(decode)
    def decode_there(vae, *args, **options):
        context = getattr(comfy.model_management, "cuda_device_context", nullcontext)
        with context(vae.device):
            return decode(vae, *args, **options)

    return decode_there


def find_server():
    """Return ComfyUI's server, or None where nodes run without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def compute_dtype(model) -> torch.dtype:
    """Return the precision in which core's model computes."""
    return model.manual_cast_dtype or model.get_dtype()


def loaded_file(patcher) -> str | None:
    """Return the name of the file a patcher was loaded from, where its loader keeps it: ours, and
    core's newer ones.
    """
    _, arguments, *_ = getattr(patcher, "cached_patcher_init", None) or (None, ())
    return next((Path(path).name for path in arguments if isinstance(path, str | Path)), None)


def choose(name: str, value: str, choices: Mapping[str, T]) -> T:
    """Return what a choice stands for; ComfyUI 0.3.75 hands on whatever a prompt names, without a
    look at the list.

    Raises ValueError naming the input and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} is '{value}'; choose one of {', '.join(map(repr, choices))}.")
    return choices[value]


def answer(check: Callable, **inputs) -> bool | str:
    """Run a check as core's validation wants it: True, or the sentence of its ValueError."""
    try:
        check(**inputs)
    except ValueError as error:
        return str(error)
    return True


def module_of(function: Callable) -> str:
    """Return the module a function was written in, whatever it says of itself."""
    while isinstance(function, functools.partial):
        function = function.func
    own = getattr(function, "__globals__", None)
    names = (
        own.get("__name__") if isinstance(own, dict) else None,
        getattr(function, "__module__", None),
    )
    return next((name for name in names if isinstance(name, str)), type(function).__module__)


def node_of(function: Callable) -> str:
    """Return the class of the node that made a function: the first part of its full name."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return name.split(".")[0]


def find_replacement(home, name: str) -> str | None:
    """Return the module whose function stands in the place of a function of core's module, or None
    if it is core's.
    """
    module = module_of(getattr(home, name))
    return None if module == home.__name__ else module


def folder_of(module: str) -> str:
    """Return the folder of the copy of this extension that a module is part of; of another
    extension, the module.
    """
    file = getattr(sys.modules.get(module), "__file__", None)
    folders = Path(file).parents if file else ()
    return str(next((folder for folder in folders if (folder / "ovi_model").is_dir()), module))
