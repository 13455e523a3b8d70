"""Reads a weight file of any kind ComfyUI takes, and says in one sentence why one cannot be read."""

import pickle
from pathlib import Path

import comfy.utils
from safetensors import SafetensorError
from torch import Tensor

SAFETENSORS = (".safetensors", ".sft")

# How a lack of memory is told, also of the kind that a file mapped into it needs.
MEMORY_WORDS = ("out of memory", "cannot allocate", "can't allocate", "paging file", "os error 1455")

# What torch.load(weights_only=True) and the safetensors readers of the supported ComfyUI versions raise on a bad file.
UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OSError,
)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors by name and its metadata (empty for a pickle, which is never allowed to run code).

    A file with one outer dictionary, such as {"generator": {...}}, gives the inner one.
    Raises ValueError naming the file if it is a folder, empty, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"'{path.name}' is {'a folder' if path.is_dir() else 'missing'}; a weight file is needed here."
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name} is empty (0 bytes). Download it again.")
    try:
        weights, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except UNREADABLE as error:
        raise ValueError(f"{path.name} cannot be read: {_reason(path, error)}") from error
    if not isinstance(weights, dict):
        raise ValueError(
            f"{path.name} holds a {type(weights).__name__}, not weights by name. Check which file this is."
        )
    if isinstance(weights.get("generator"), dict):
        weights = weights["generator"]
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path.name} holds no tensors, so it is no weight file. Check which file this is.")
    return tensors, metadata or {}


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and "unsupported global" in str(error).lower():
        return (
            "it holds Python objects besides tensors, which could run code, so it is refused. "
            "Take the file from its original source, or a .safetensors version of it."
        )
    if isinstance(error, OSError) or any(word in str(error).lower() for word in MEMORY_WORDS):
        return f"the system says '{error}'. Check the file's permissions, the disk, and free memory."
    kind = "safetensors" if path.suffix.lower() in SAFETENSORS else "PyTorch"
    size = path.stat().st_size
    return (
        f"its {size:,} bytes are no complete {kind} file ({type(error).__name__}: {str(error)[:120]}). "
        "It is damaged or was not downloaded to the end; download it again."
    )
