"""Finds ComfyUI and makes it, and this extension's model code, importable for a tool that runs on
its own.
"""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

EXTENSION = Path(__file__).absolute().parents[1]
PACKAGE = "comfyui_ovi"


def import_comfy(folder: Path | None) -> None:
    """Put ComfyUI on the import path and keep it on the CPU; must run before any of its modules is
    imported.

    folder: ComfyUI's; if None the environment variable COMFYUI_PATH, or the ComfyUI this extension
    is installed in.
    """
    path = Path(folder or os.environ.get("COMFYUI_PATH") or EXTENSION.parents[1]).resolve()
    if not (path / "comfy" / "sd.py").is_file():
        raise SystemExit(
            f"{path} is no ComfyUI: it has no comfy/sd.py. Give the folder that holds ComfyUI's "
            "main.py with --comfyui, or in the environment variable COMFYUI_PATH."
        )
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    from comfy.cli_args import args

    args.cpu = True
    # Pickles are then mapped, not read: their tensors come from the disk as they are used.
    args.mmap_torch_files = True


def import_extension() -> None:
    """Make this extension's modules importable below `comfyui_ovi`, without running what ComfyUI
    runs of it.
    """
    if PACKAGE not in sys.modules:
        spec = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(EXTENSION)]
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
