"""Files that appear when they are whole: under a name that nobody has, whoever else saves there, or
in place of an earlier one.
"""

import contextlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

# Of files that another process has not finished, or never will. Earlier ones had no random part.
PARTIAL = re.compile(r"\..+\.partial\.(mp4|webm|mov|safetensors)")
LONGEST_WRITE = 24 * 60 * 60  # seconds without a byte, after which nobody writes any more


def write_whole(path: Path, write: Callable[[Path], None], what: str = "video") -> Path:
    """Return the name of a file that write has filled: path, or the next number that is free.

    what: the file holds, for the error.

    What write leaves when it fails is removed, and so is what killed processes left in the folder
    a day ago. Raises OSError with the path.
    """
    try:
        _remove_abandoned(path.parent)
        partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.partial{path.suffix}")
        try:
            write(partial)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return _publish(partial, path)
    except OSError as error:
        raise OSError(
            error.errno, f"the {what} could not be saved: {error.strerror}", str(path)
        ) from error


def write_over(path: Path, content: bytes) -> None:
    """Write a file that others find whole or as it was. One process alone writes it."""
    partial = path.with_suffix(".part")
    partial.write_bytes(content)
    partial.replace(path)


def _remove_abandoned(folder: Path) -> None:
    # The folder may be missing, which is said when it is used.
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if PARTIAL.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):  # another process may be as quick
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > LONGEST_WRITE:
                        os.unlink(entry.path)


def _publish(partial: Path, path: Path) -> Path:
    """Give a whole file its name, or the next number that is free; return it."""
    for name in _names(path):
        with contextlib.suppress(FileExistsError):
            _move(partial, name)
            return name
    raise AssertionError("numbers do not end")


def _names(path: Path) -> Iterator[Path]:
    """The path, then the same with higher numbers: k_00001_.mp4, k_00002_.mp4..."""
    yield path
    numbered = re.fullmatch(r"(.*_)(\d+)_", path.stem, re.DOTALL)
    name, number = (numbered[1], int(numbered[2])) if numbered else (f"{path.stem}_", 0)
    while True:
        number += 1
        yield path.with_name(f"{name}{number:05}_{path.suffix}")


def _move(source: Path, target: Path) -> None:
    """Rename a file; raises FileExistsError, and leaves both, if the name is taken."""
    if os.name == "nt":  # where a rename never replaces
        source.rename(target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        target.open("xb").close()
        try:
            source.replace(target)
        except OSError:
            target.unlink(missing_ok=True)
            raise
    else:
        source.unlink()
