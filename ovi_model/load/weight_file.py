"""Reads a weight file of any kind ComfyUI takes, and says in one sentence why it cannot be read."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import comfy.utils
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import pickle_steps
from .state_dict import StateDict

SAFETENSORS = (".safetensors", ".sft")
# How a file of PyTorch since 1.6 begins.
ZIP = b"PK\x03\x04"

# What training and repackaging wrap weights in: Ovi's own checkpoints {"module": ...} or {"app":
# {"model": ...}}, Hallo-Live's {"generator_ema": ...}, the mean of the weights beside them.
WRAPPERS = ("module", "app", "model", "state_dict", "generator_ema", "generator")

# What PyTorch has tensors of, but cannot compute with: more dimensions, and two numbers to a byte.
MAX_DIMENSIONS = 64
PACKED_TYPE = getattr(torch, "float4_e2m1fn_x2", None)

# A name more for a tensor costs no byte in a file, but may in memory; tied weights have two names,
# not ten thousand.
NAMES_OF_A_TENSOR = 4

# Letters of a tensor's name, which messages show; published ones have under 100.
LONGEST_NAME = 500

# How a lack of memory is told, also of the kind that a file mapped into it needs.
MEMORY_WORDS = (
    "out of memory",
    "cannot allocate",
    "can't allocate",
    "paging file",
    "os error 1455",
)

# What torch.load(weights_only=True) and the safetensors readers of the supported ComfyUI versions
# raise on a bad file.
UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    OSError,
)


def read_weights(path: str | Path) -> tuple[StateDict, dict[str, str]]:
    """Return a file's tensors by name and its metadata (empty for a pickle, which is never allowed
    to run code).

    A file that wraps its weights, such as {"module": {...}, "step": 9}, gives the wrapped ones.
    Tensors may be views of a map of the file: 23 GB are not copied without need. Core copies what
    its modules keep, but for its dynamic VRAM, which reads the map on purpose; the LoRA loader
    copies its patches.
    Raises ValueError naming the file if it is no file, empty, another kind of file, damaged, or
    holds anything but plain tensors by name.
    """
    path = Path(path)
    _check_is_file(path)
    _check_kind(path)
    try:
        if path.suffix.lower() in SAFETENSORS:
            _check_header(path)
        else:
            _check_pickle(path)
        loaded, metadata = comfy.utils.load_torch_file(
            str(path), safe_load=True, return_metadata=True
        )
    except UNREADABLE as error:
        raise ValueError(f"{path.name} cannot be read: {_reason(path, error)}") from error
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{path.name} holds a {type(loaded).__name__}, not weights by name. Check which file "
            "this is."
        )
    tensors = find_tensors(loaded)
    if not tensors:
        raise ValueError(
            f"{path.name} holds no tensors by name, but {_listed(loaded)}. Check which file this "
            "is."
        )
    _check_tensors(path, tensors)
    state_dict = {
        name: tensor.detach() if tensor.requires_grad else tensor
        for name, tensor in tensors.items()
    }
    return state_dict, metadata or {}


def _listed(entries: dict) -> str:
    """Say what the first names are; a pickle may have anything for a name, which is told by its
    kind.
    """
    names = [
        f"'{name[:40]}'" if isinstance(name, str) else f"a name of type {type(name).__name__}"
        for name in list(entries)[:3]
    ]
    return ", ".join(names) or "nothing"


def _check_is_file(path: Path) -> None:
    name = str(path)
    if os.path.isdir(name):
        raise ValueError(f"'{path.name}' is a folder; choose a file in it.")
    if os.path.isfile(name):
        return
    if os.path.islink(name):
        raise ValueError(
            f"'{path.name}' is a link to a file that is not there; put the file in its place."
        )
    found = "is no ordinary file" if os.path.exists(name) else "is missing"
    raise ValueError(f"'{path.name}' {found}; a weight file is needed here.")


def _check_kind(path: Path) -> None:
    """Raise ValueError if a file is empty or begins as no weight file that ComfyUI reads does."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {_reason(path, error)}") from error
    if not head:
        raise ValueError(f"{path.name} is empty (0 bytes). Download it again.")
    is_safetensors = path.suffix.lower() in SAFETENSORS
    if head.startswith(b"GGUF"):
        raise ValueError(
            f"{path.name} is a GGUF file. Load it with a GGUF loader node, 'Unet Loader (GGUF)'."
        )
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path.name} is a Git LFS pointer of {path.stat().st_size} bytes, not the file it "
            "stands for. Run 'git lfs pull' in its folder, or download the file itself."
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"{path.name} is a web page: the download brought a page about the file. Open the "
            "file's page and use its download button; if it asks for an account, log in first."
        )
    if is_safetensors and head.startswith(ZIP):
        raise ValueError(
            f"{path.name} is a PyTorch file under another name. Rename it to end in .pth."
        )
    if (
        not is_safetensors
        and head[8:9] == b"{"
        and int.from_bytes(head[:8], "little") < path.stat().st_size
    ):
        raise ValueError(
            f"{path.name} is a safetensors file under another name. Rename it to end in "
            ".safetensors."
        )


def _check_header(path: Path) -> None:
    """Raise SafetensorError unless each byte of the data belongs to exactly one tensor.

    ComfyUI's own reader, used with dynamic VRAM, maps the file and trusts its header. The library
    reads no header above 100 MB.
    """
    with safe_open(path, framework="np"):
        pass


def _check_pickle(path: Path) -> None:
    """Raise ValueError if a PyTorch file would grow when it is unpacked or read."""
    if zipfile.is_zipfile(path):
        _check_zip(path)
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP)) == ZIP  # by which PyTorch itself tells
    pickle_steps.check_file(path, is_zip)


def _check_zip(path: Path) -> None:
    """Raise ValueError if a zip would grow when unpacked: PyTorch stores its records, and
    compresses none.
    """
    with zipfile.ZipFile(path) as records:
        unpacked = sum(record.file_size for record in records.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(f"it would unpack to {unpacked:,} bytes")


def find_tensors(entries: dict, depth: int = 4) -> StateDict:
    """Return the tensors by name within the wrappers, if these hold any, else those beside them."""
    for wrapper in WRAPPERS:
        # Not entries.get: a pickle may put attributes of its own in front of an OrderedDict's.
        inner = dict.get(entries, wrapper)
        if depth and isinstance(inner, dict) and (tensors := find_tensors(inner, depth - 1)):
            return tensors
    return {
        name: tensor
        for name, tensor in dict.items(entries)
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }


def _check_tensors(path: Path, tensors: StateDict) -> None:
    """Raise ValueError unless each is an ordinary tensor in memory, and all together are no larger
    than the file.
    """
    for name, tensor in tensors.items():
        if len(name) > LONGEST_NAME:
            raise ValueError(
                f"{path.name}: the name '{name[:40]}...' has {len(name):,} letters. Take the file "
                "from its original source."
            )
        if not _is_plain(tensor):
            raise ValueError(
                f"{path.name}: '{name}' is no plain tensor. Take the file from its original source."
            )
    claimed, size = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if claimed > NAMES_OF_A_TENSOR * size:
        raise ValueError(
            f"{path.name}: its tensors would take {claimed:,} bytes, the file has {size:,}. It was "
            "made to fill the memory; take the file from its original source."
        )


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor lies in memory number by number, and PyTorch can compute with it."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype != PACKED_TYPE
        and tensor.ndim <= MAX_DIMENSIONS
        and not tensor.is_nested
        and not tensor.is_quantized
    )


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and "unsupported global" in str(error).lower():
        return (
            "it holds Python objects besides tensors, which could run code, so it is refused. "
            "Take the file from its original source, or a .safetensors version of it."
        )
    if isinstance(error, pickle_steps.RefusedError):
        return (
            f"{error}, so it is refused. Take the file from its original source, or a .safetensors "
            "version of it."
        )
    if isinstance(error, OSError | MemoryError) or any(
        word in str(error).lower() for word in MEMORY_WORDS
    ):
        return (
            f"the system says '{error}'. Check the file's permissions, the disk, and free memory."
        )
    if "mmap can only be used" in str(error):
        return (
            "a PyTorch before 1.6 saved it, in a form that cannot be mapped into memory. Load and "
            "save it again with a current PyTorch, or start ComfyUI without --mmap-torch-files."
        )
    kind = "safetensors" if path.suffix.lower() in SAFETENSORS else "PyTorch"
    first_line = str(error).partition("\n")[0][:120]
    return (
        f"its {path.stat().st_size:,} bytes are no complete {kind} file ({type(error).__name__}: "
        f"{first_line}). It is damaged or was not downloaded to the end; download it again."
    )
