"""Makes ComfyUI and this extension importable where only PyTorch is sure to be installed."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
# What ComfyUI imports for models and nodes that are not measured here. Some are too large to take
# along, and two must be built for the PyTorch that is there.
UNUSED = ("scipy", "transformers", "torchvision", "torchaudio", "torchsde", "sentencepiece")
UNUSED = (*UNUSED, "tokenizers", "PIL", "av", "kornia", "spandrel", "requests", "aiohttp", "yaml")


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
    """Finds the unused packages, asked last, so that those installed come first."""

    def find_spec(self, name: str, _path=None, _target=None):
        if name.partition(".")[0] not in UNUSED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec) -> ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def start(comfyui: Path | None, packed: Path | None, cpu: bool) -> torch.device:
    """Import ComfyUI and register the family; return the device to measure.

    comfyui: its folder; packed: what --pack gathered, in which ComfyUI lies too.
    Raises SystemExit where there is no card and the CPU was not asked for.
    """
    if not (cpu or torch.cuda.is_available()):
        raise SystemExit(
            "PyTorch finds no NVIDIA card here. Install a PyTorch built for CUDA, or try the "
            "command on the processor with --cpu --small."
        )
    for folder in ("tools", "tests/support", "benchmarks"):
        path = str(REPOSITORY / folder)
        if path not in sys.path:
            sys.path.insert(0, path)
    if packed:
        comfyui = packed / "ComfyUI"
        sys.path.append(str(packed / "site"))
    if not any(isinstance(finder, _AbsentPackages) for finder in sys.meta_path):
        sys.meta_path.append(_AbsentPackages())
    from find_comfyui import import_comfy, import_extension

    import_comfy(comfyui)
    from comfy.cli_args import args

    args.cpu = cpu
    # Which a card gets by itself; asked for there, other attentions would not be found.
    args.use_pytorch_cross_attention = cpu
    import_extension()
    from comfyui_ovi.ovi_model import core_patches

    core_patches.install()
    return torch.device("cpu" if cpu else "cuda")
