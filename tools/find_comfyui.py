"""Finds ComfyUI and makes it, and this extension's model code, importable for a tool that runs on its own."""

import importlib.util
import os
import sys
from pathlib import Path

EXTENSION = Path(__file__).absolute().parents[1]


def import_comfy(folder: Path | None) -> None:
    """Put ComfyUI on the import path and keep it on the CPU; must run before any of its modules is imported.

    folder: ComfyUI's; if None the environment variable COMFYUI_PATH, or the ComfyUI this extension is installed in.
    """
    path = Path(folder or os.environ.get("COMFYUI_PATH") or EXTENSION.parents[1]).resolve()
    if not (path / "comfy" / "sd.py").is_file():
        raise SystemExit(
            f"{path} is no ComfyUI: it has no comfy/sd.py. Give the folder that holds ComfyUI's main.py with "
            "--comfyui, or in the environment variable COMFYUI_PATH."
        )
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    from comfy.cli_args import args

    args.cpu = True
    # Pickles are then mapped, not read: their tensors come from the disk as they are used.
    args.mmap_torch_files = True


def import_ovi_model() -> None:
    """Make `ovi_model` importable without its parent folder, whose `nodes` would hide ComfyUI's own."""
    import_package("ovi_model", EXTENSION / "ovi_model")


def import_package(name: str, folder: Path) -> None:
    """Import a folder as a package of this name, once."""
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
