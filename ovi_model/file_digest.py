"""What tells the content of one file from that of another."""

import hashlib
from pathlib import Path

BLOCK = 1 << 20  # bytes read at a time


def file_digest(path: Path) -> bytes:
    """Return the SHA-256 of a file of any size; hashlib's own function is not in Python 3.10."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.digest()
