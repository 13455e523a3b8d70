"""Names for files that are saved: inside ComfyUI's output folder, and such that a file can have
them.
"""

import os
import unicodedata
from pathlib import PureWindowsPath

# Bytes of UTF-8: a number, an ending and the mark of an unfinished file still fit within the 255 of
# most disks.
LONGEST_NAME = 200
LONGEST_PREFIX = 1000

NAME = "Ovi"

# Categories of Unicode: control characters, and halves of a character.
IMPOSSIBLE = ("Cc", "Cs")
# What Windows lets no name hold; elsewhere they are letters like others.
RESERVED = '<>:"|?*' if os.name == "nt" else ""


def check_prefix(prefix: str) -> None:
    """Raise ValueError unless a prefix, which may begin with folders, names a file inside the
    output folder.

    Both kinds of slash part folders, so that a workflow is safe on every system if it is on one.
    """
    path = PureWindowsPath(prefix)
    if path.anchor or ".." in path.parts:
        raise _refusal(prefix, "leads out of ComfyUI's output folder")
    if not path.name:
        raise _refusal(prefix, "names no file")
    impossible = [
        letter
        for letter in prefix
        if unicodedata.category(letter) in IMPOSSIBLE or letter in RESERVED
    ]
    if impossible:
        raise _refusal(prefix, f"holds {impossible[0]!a}, which no file name can")
    if max(map(_size, path.parts)) > LONGEST_NAME or _size(prefix) > LONGEST_PREFIX:
        raise _refusal(
            prefix, f"is too long for a file name: up to {LONGEST_NAME} bytes are possible"
        )


def with_name(prefix: str) -> str:
    """Return a prefix whose folders are parted by '/' on every system, with a name behind the last:
    'fresh\\' is 'fresh/Ovi'.
    """
    prefix = prefix.replace("\\", "/")
    name = prefix.split("/")[-1]
    return prefix.removesuffix(".") + NAME if name in ("", ".") else prefix


def _size(name: str) -> int:
    return len(name.encode())


def _refusal(prefix: str, fault: str) -> ValueError:
    return ValueError(
        f"filename_prefix {prefix[:60]!a} {fault}. Write folder and name as in 'video/Ovi'."
    )
