"""Checks all that a safetensors file says of its tensors before anything maps it into memory.

ComfyUI reads such files in two ways; the reader it uses with dynamic VRAM trusts most of what the
file says.
Source of the rules: huggingface/safetensors, README.md, "Format".
"""

import json
import math
from collections import Counter
from pathlib import Path

LENGTH_BYTES = 8
HEADER_LIMIT = 32 * 2**20  # bytes, a hundred times what Ovi's 2,073 tensors take
RANK_LIMIT = 64  # of a PyTorch tensor
SIZE_LIMIT = 2**63  # of a dimension

# Where ComfyUI keeps how each layer is quantised, among the metadata, as JSON: {"layers": {name:
# {"format": ...}}}.
QUANTISATION = "_quantization_metadata"

# Bytes of one number of each type.
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


def check_header(path: Path) -> None:
    """Raise ValueError with the first fault: each byte of the data must belong to exactly one
    well-described tensor.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        data_bytes = path.stat().st_size - LENGTH_BYTES - length
        if data_bytes < 0:
            raise ValueError(f"the list of its tensors would take {length:,} bytes")
        if length > HEADER_LIMIT:
            raise ValueError(
                f"the list of its tensors takes {length:,} bytes, more than {HEADER_LIMIT:,}"
            )
        header = _parse(file.read(length).decode())
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise ValueError("its '__metadata__' is no list of texts")
    if QUANTISATION in metadata:
        read_quantisation(metadata[QUANTISATION])
    _check_data([_span(name, entry) for name, entry in header.items()], data_bytes)


def read_quantisation(text: str) -> dict[str, dict]:
    """Return how each layer is quantised, by its name; raises ValueError if the text does not say
    so.
    """
    layers = _parse(text).get("layers")
    if not isinstance(layers, dict) or not all(isinstance(how, dict) for how in layers.values()):
        raise ValueError(f"its '{QUANTISATION}' does not say how each layer is quantised")
    return layers


def _parse(text: str) -> dict:
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError(f"its JSON is a {type(header).__name__}, not an object")
    return header


def _without_duplicates(pairs: list[tuple]) -> dict:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"'{name}' is listed twice")
    "".join(unique).encode()  # half a character is no name; this raises UnicodeError, a ValueError
    return unique


def _span(name: str, entry: dict) -> tuple[int, int, str]:
    """Return where a tensor begins and ends in the data, and its name."""
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"'{name}' is not described by dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in ITEM_BYTES:
        raise ValueError(f"'{name}' has the dtype {kind!r}, which this reader does not know")
    if not _are_sizes(shape) or len(shape) > RANK_LIMIT:
        raise ValueError(f"'{name}' has the shape {shape!r}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"'{name}' has the data_offsets {offsets!r}")
    start, end = offsets
    if end - start != math.prod(shape) * ITEM_BYTES[kind]:
        raise ValueError(f"'{name}' has {end - start:,} bytes, which do not make {shape} of {kind}")
    return start, end, name


def _are_sizes(numbers: object) -> bool:
    # A bool is an int to isinstance.
    return isinstance(numbers, list) and all(
        type(size) is int and 0 <= size < SIZE_LIMIT for size in numbers
    )


def _check_data(spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """Raise ValueError unless the tensors follow one another without gap or overlap up to the end
    of the file.
    """
    reached = 0
    for start, end, name in sorted(spans):
        if start != reached:
            raise ValueError(
                f"'{name}' begins at byte {start:,} of the data, not {reached:,} where it should"
            )
        reached = end
    if reached != data_bytes:
        raise ValueError(f"its tensors take {reached:,} bytes, it holds {data_bytes:,}")
