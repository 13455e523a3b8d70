"""Starts ComfyUI's models and this extension where only PyTorch is sure to be installed."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from . import absent

REPOSITORY = Path(__file__).resolve().parents[2]


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
    absent.allow(packed is not None)
    from find_comfyui import import_comfy, import_extension

    import_comfy(packed / "ComfyUI" if packed else comfyui)
    from comfy.cli_args import args

    args.cpu = cpu
    # Which a card gets by itself; asked for there, other attentions would not be found.
    args.use_pytorch_cross_attention = cpu
    import_extension()
    from comfyui_ovi.ovi_model import core_patches

    core_patches.install()
    return torch.device("cpu" if cpu else "cuda")
