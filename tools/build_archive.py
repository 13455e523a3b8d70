"""Builds the archive that is published: every tracked file but those that .comfyignore names.

Usage: python tools/build_archive.py [FOLDER]

Writes FOLDER/ovi-VERSION.zip (default: dist) and prints its path. The same commit gives the same
bytes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
EARLIEST = (1980, 1, 1, 0, 0, 0)  # that a zip file can hold


def shipped_files() -> list[str]:
    """Return the files of the archive, relative to the repository."""
    ignored = _list_files("--cached", "--ignored", "--exclude-from=.comfyignore")
    return sorted(set(_list_files("--cached")) - set(ignored))


def _list_files(*options: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", *options], cwd=REPOSITORY, capture_output=True, check=True
    )
    return [name for name in listed.stdout.decode().split("\0") if name]


def version() -> str:
    """Return the version that pyproject.toml states."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^version = "([^"]+)"$', text, re.MULTILINE)[1]


def build(folder: Path) -> Path:
    """Write the archive, whole or not at all, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"ovi-{version()}.zip"
    temporary = path.with_suffix(".part")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in shipped_files():
            entry = zipfile.ZipInfo(name, EARLIEST)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, (REPOSITORY / name).read_bytes(), zipfile.ZIP_DEFLATED)
    os.replace(temporary, path)
    return path


def main() -> int:
    """Build it where the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=REPOSITORY / "dist",
        help="where to write the archive",
    )
    print(build(parser.parse_args().folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
