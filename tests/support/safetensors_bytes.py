"""Makes safetensors files byte by byte, so that tests can say what no writer would."""

import json
import struct


def entry(start: int, end: int, shape: object = None, dtype: object = "F32") -> dict:
    """Describe a tensor between two bytes of the data; its shape is a row of floats unless told."""
    return {
        "dtype": dtype,
        "shape": [(end - start) // 4] if shape is None else shape,
        "data_offsets": [start, end],
    }


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a file of this header, a text or what JSON can say; length: what it claims its header
    to take.
    """
    text = (
        header
        if isinstance(header, bytes)
        else (header if isinstance(header, str) else json.dumps(header)).encode()
    )
    return struct.pack("<Q", len(text) if length is None else length) + text + data
