"""Lets ComfyUI be imported where packages are absent that it imports and that are not used here."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType

# What ComfyUI imports for models and nodes that are not measured here. Some are too large to take
# along, and two must be built for the PyTorch that is there.
UNUSED = ("scipy", "torchvision", "torchaudio", "torchsde")
VERSIONED = ("transformers", "tokenizers", "sentencepiece")
UNUSED = (*UNUSED, *VERSIONED, "PIL", "av", "kornia", "spandrel", "requests", "aiohttp", "yaml")


class Absent:
    """Stands for anything of a package that is not there; only its use is an error."""

    def __init__(self, *_args, **_kwargs):
        pass

    def __init_subclass__(cls, **_kwargs):
        super().__init_subclass__()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent()

    def __call__(self, *args, **_kwargs):
        # A decorator hands on what it is put on.
        return args[0] if len(args) == 1 and callable(args[0]) else Absent()

    def __mro_entries__(self, _bases) -> tuple:
        # A class of its own, since a class may derive from several that are absent.
        return (type("Absent", (Absent,), {}),)

    def __or__(self, _other):
        return Absent()

    __ror__ = __getitem__ = __or__


class _AbsentModule(ModuleType):
    __path__ = ()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent()


class _AbsentPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds these packages, as if they were there."""

    def __init__(self, packages: tuple[str, ...]):
        self.packages = packages

    def find_spec(self, name: str, _path=None, _target=None):
        if name.partition(".")[0] not in self.packages:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec) -> ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def allow(is_packed: bool) -> None:
    """Let imports find the unused packages where they are not installed.

    is_packed: ComfyUI was brought here, and what is installed of those that it asks for in certain
    versions is not asked.
    """
    if any(isinstance(finder, _AbsentPackages) for finder in sys.meta_path):
        return
    sys.meta_path.append(_AbsentPackages(UNUSED))
    if is_packed:
        sys.meta_path.insert(0, _AbsentPackages(VERSIONED))
