"""Imports files of a checkout without what they need installed; they are read and never written."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import ClassVar


class Source(importlib.abc.SourceLoader):
    """Loads a file after its text was changed; keeps no compiled copy beside it."""

    def __init__(self, file: Path, change: Callable[[str], str]):
        self.file, self.change = file, change

    def get_filename(self, _name: str) -> str:
        return str(self.file)

    def get_data(self, path: str) -> bytes:
        return self.change(Path(path).read_text(encoding="utf-8")).encode()


class Checkout(importlib.abc.MetaPathFinder):
    """Finds a folder's files under a package name of their own; `__init__.py` of folders is left
    out, for it imports what a forward does not need.
    """

    installed: ClassVar[dict[str, Checkout]] = {}

    def __init__(self, name: str, folder: Path, change: Callable[[str], str] = str):
        self.name, self.folder, self.change = name, folder, change

    def find_spec(self, name: str, _path=None, _target=None) -> ModuleSpec | None:
        first, *parts = name.split(".")
        if first != self.name:
            return None
        place = self.folder.joinpath(*parts)
        if place.is_dir():
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = []
            return spec
        file = place.with_name(f"{place.name}.py")
        if not file.is_file():
            return None
        return importlib.util.spec_from_loader(name, Source(file, self.change))

    def install(self) -> None:
        """Let imports find the files, in place of those found under this name before."""
        before = self.installed.get(self.name)
        if before is not None:
            sys.meta_path.remove(before)
        for loaded in [name for name in sys.modules if name.split(".")[0] == self.name]:
            del sys.modules[loaded]
        sys.meta_path.insert(0, self)
        self.installed[self.name] = self


def stand_in(name: str, **contents) -> dict[str, ModuleType]:
    """A module with these contents, by its name."""
    module = ModuleType(name)
    vars(module).update(contents)
    return {name: module}
