"""What is asked of tensors by name, whichever part of Ovi they are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

StateDict = dict[str, Tensor]

# What core calls the network among the weights of a model.
DIFFUSION_MODEL = "diffusion_model."
# What PyTorch's sharded training puts before the names of each part it shards.
SHARDED = "_fsdp_wrapped_module."


def without_prefix(name: str) -> str:
    """Leave out what parallel training puts into a tensor's name, and what ComfyUI and others
    save with.
    """
    name = name.replace(SHARDED, "")
    return name.removeprefix("module.").removeprefix("model.").removeprefix(DIFFUSION_MODEL)


def find_undefined(state_dict: StateDict) -> str | None:
    """Return the name of the first tensor with NaN or infinity in it."""
    for name, tensor in state_dict.items():
        # PyTorch has no such test for fp8.
        if not (tensor.float() if tensor.dtype.itemsize == 1 else tensor).isfinite().all():
            return name
    return None


def check_tensor(path: Path, name: str, found: Tensor | None, wanted: Tensor) -> Tensor:
    """Return a tensor of a file; raise ValueError if it is absent or has another shape than
    wanted.
    """
    if found is None:
        raise ValueError(f"{path.name} is incomplete: it has no '{name}'. Download it again.")
    if found.shape != wanted.shape:
        raise ValueError(
            f"{path.name}: '{name}' has shape {list(found.shape)}, the rest of the file needs "
            f"{list(wanted.shape)}. It is damaged: download it again."
        )
    return found


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Count the blocks whose number follows a prefix, from 0 on.

    Raises ValueError if one is missing: a number alone must not make a model of that many blocks.
    """
    numbered = re.compile(re.escape(prefix) + r"([0-9]{1,9})\.")
    found = {int(match[1]) for name in names if (match := numbered.match(name))}
    for number in range(len(found)):
        if number not in found:
            raise ValueError(f"'{prefix}{max(found)}' but no '{prefix}{number}'")
    return len(found)
