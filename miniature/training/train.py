"""Trains the miniature from nothing and writes its files.

Usage: python miniature/training/train.py --comfyui PATH --work FOLDER [--files miniature] [--only
STAGE] [--threads 2] [--compile]

Run it with ComfyUI's python. Training goes on from its last save in FOLDER, where losses are drawn
too, and is not repeated where it is done. Stages named in one line of STAGES do not need each
other: with --only they can run side by side, which is the faster way where there are two cores.
--compile needs a C++ compiler and two minutes to begin with, and then nearly halves the time of the
towers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))

from find_comfyui import import_comfy, import_extension  # noqa: E402

# In the order in which they need each other.
STAGES = (
    ("video_vae", "audio_vae", "text_encoder"),
    ("vocoder", "sounds", "pictures"),
    ("audio_tower", "video_tower"),
    ("both_towers",),
    ("files",),
)


def main() -> None:
    """Run every stage, or the one that is asked for."""
    names = [name for line in STAGES for name in line]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for what training saves and draws"
    )
    parser.add_argument(
        "--files", type=Path, default=REPOSITORY / "miniature", help="folder to write the files to"
    )
    parser.add_argument("--only", choices=names, help="one stage alone")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the processor")
    parser.add_argument("--compile", action="store_true", help="compile the towers")
    options = parser.parse_args()
    import_comfy(options.comfyui)
    import_extension()
    torch.set_num_threads(options.threads)
    torch.compiler.set_stance("default" if options.compile else "force_eager")
    options.work.mkdir(parents=True, exist_ok=True)

    from comfyui_ovi.miniature.training import stages

    for name in [options.only] if options.only else names:
        torch.manual_seed(0)
        run: Callable[[Path, Path], None] = getattr(stages, name)
        run(options.work, options.files)


if __name__ == "__main__":
    main()
