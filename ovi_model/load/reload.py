"""How core loads a part again: for another device, or as a plain copy beside dynamic memory."""

import inspect
from collections.abc import Callable

from comfy.model_patcher import ModelPatcher


def reload_with(patcher: ModelPatcher, load: Callable, *arguments: object) -> None:
    """Let core load a part again by the call that made it."""
    patcher.cached_patcher_init = (_load_patcher, (load, *arguments))


def _load_patcher(
    load: Callable, *arguments: object, disable_dynamic: bool = False
) -> ModelPatcher:
    """Return the patcher of a part loaded anew; core's VAE has no say over dynamic memory."""
    if "disable_dynamic" in inspect.signature(load).parameters:
        return load(*arguments, disable_dynamic=disable_dynamic).patcher
    return load(*arguments).patcher
