"""Weight files read and written one tensor at a time, so that memory never holds more than one of
them.
"""

import contextlib
import json
import re
import time
import uuid
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

StateDict = dict[str, Tensor]

# What the safetensors format calls the types that weights have.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
# What it calls those that quantised layers have too: packed numbers, and text as bytes.
STORED = DTYPES | {torch.int8: "I8", torch.uint8: "U8"}


# Seconds without a byte, after which nobody writes a file any more.
LONGEST_WRITE = 24 * 60 * 60


def part_of(output: Path) -> Path:
    """Return a name to write to until the output is whole, one that nobody has, for two may convert
    to one name; parts that killed processes left there a day ago are removed.
    """
    # Earlier parts ended in the number of their process, as those of other programs may.
    earlier = rf"{re.escape(output.name)}\.\d+\.part"
    abandoned = re.compile(rf"{earlier}|.+\.ovi-[0-9a-f]{{12}}\.part", re.DOTALL)
    for path in output.parent.iterdir():
        if abandoned.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):  # another process may be as quick
                if time.time() - path.stat().st_mtime > LONGEST_WRITE:
                    path.unlink()
    return output.with_name(f"{output.name}.ovi-{uuid.uuid4().hex[:12]}.part")


class SafetensorsFile:
    """A safetensors file, opened anew for each tensor: a mapped one would stay in memory as far as
    it was read.
    """

    def __init__(self, path: Path, tensors: StateDict):
        """tensors: those of the file, as its own library found them; names, shapes and types are
        kept.
        """
        self.path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        starts = {name: 8 + length + header[name]["data_offsets"][0] for name in tensors}
        # As they lie in the file, which is how a disk reads fastest.
        self._starts = dict(sorted(starts.items(), key=lambda item: item[1]))
        self.tensors = _outlines({name: tensors[name] for name in self._starts})

    def read(self, name: str) -> Tensor:
        tensor = torch.empty_like(self.tensors[name], device="cpu")
        with self.path.open("rb") as file:
            file.seek(self._starts[name])
            found = file.readinto(as_bytes(tensor))
        if found != tensor.nbytes:
            raise ValueError(
                f"{self.path.name} became shorter while it was read. Nothing may write to it "
                "meanwhile."
            )
        return tensor


class LoadedFile:
    """A pickle, whose tensors are loaded already, or mapped from the disk if it allows that."""

    def __init__(self, path: Path, tensors: StateDict):
        self.path = path
        self.tensors = _outlines(tensors)
        self._loaded = tensors

    def read(self, name: str) -> Tensor:
        return self._loaded[name]


def _outlines(tensors: StateDict) -> StateDict:
    """Names, shapes and types without numbers."""
    return {name: tensor.to("meta") for name, tensor in tensors.items()}


def as_bytes(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor on the CPU, in order; shared if the tensor is contiguous."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is infinite or undefined; without a copy, where the type allows."""
    smallest, largest = (tensor.float() if tensor.dtype.itemsize == 1 else tensor).aminmax()
    return bool(smallest.isfinite() and largest.isfinite())


class SafetensorsWriter:
    """A new safetensors file, open while the context is; it is whole when every outline's tensor
    was written.

    Source of the layout: huggingface/safetensors, README.md, Format.
    """

    def __init__(self, path: Path, outlines: StateDict, metadata: dict[str, str]):
        """outlines: what will be written, as tensors of which only shape and type are read."""
        # Widest types first, as the format's own library does: so every tensor starts at a multiple
        # of its width.
        ordered = sorted(outlines.items(), key=lambda item: -item[1].dtype.itemsize)
        header: dict = {"__metadata__": metadata}
        end = 0
        for name, outline in ordered:
            start, end = end, end + outline.nbytes
            shape, dtype = list(outline.shape), STORED[outline.dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._start = 8 + len(encoded)
        self._header = header
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, name: str, tensor: Tensor) -> None:
        self._file.seek(self._start + self._header[name]["data_offsets"][0])
        self._file.write(as_bytes(tensor))
