"""Judges clips of three times the length that the miniature was trained on, sampled in windows.

Usage: python miniature/training/window_figures.py --comfyui PATH [--clips 24]

Run it with the python of a ComfyUI whose windows cut sound too (0.26 and later). Windows are of 37
frames, as trained, with FreeNoise and a static schedule, 12 frames over one another.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))

from find_comfyui import import_comfy, import_extension  # noqa: E402

import_extension()
from comfyui_ovi.miniature.training import figures, generate, world  # noqa: E402
from comfyui_ovi.miniature.training.evaluate import STRIDE  # noqa: E402
from comfyui_ovi.miniature.training.guidance_figures import apply_node  # noqa: E402
from comfyui_ovi.miniature.training.judge import IN_SYNC, judge  # noqa: E402

NODE = "nodes_context_windows.ContextWindowsManualNode"
WINDOWS = {
    "context_length": 10,  # latent frames, as are the overlap's
    "context_overlap": 3,
    "context_schedule": "standard_static",
    "dim": 2,
    "freenoise": True,
}
FRAMES = 109
NOISE_SEED = 1000


def row(parts: generate.Parts, is_anchored: bool, clips: int) -> str:
    """Make and judge clips; return a line of the table."""
    model = apply_node(parts.model, NODE, {**WINDOWS, "causal_window_fix": is_anchored})
    parts, node = replace(parts, model=model), generate.import_nodes().OviLatent
    errors, kept = [], 0
    for index in range(clips):
        scene = world.HELD_OUT_SCENES[STRIDE * index % len(world.HELD_OUT_SCENES)]
        size = {"width": world.SIZE, "height": world.SIZE, "length": FRAMES, "batch_size": 1}
        latent = node.execute(**size).result[0]
        seed, guidance = NOISE_SEED + index, generate.Guidance()
        made = generate.make_clip(parts, scene.caption(), seed, guidance, latent)
        verdict = judge(*made, scene)
        errors += verdict.errors
        kept += verdict.colour == scene.colour and verdict.pitch == scene.pitch
    hits = sum(error <= IN_SYNC for error in errors)
    low, high = figures.wilson(hits, len(errors))
    name = "picture and sound anchored" if is_anchored else "neither anchored"
    return (
        f"| {name} | {hits} of {len(errors)}: {hits / max(1, len(errors)):.1%} "
        f"({low:.0%} to {high:.0%}) | {kept} of {clips} |"
    )


def main() -> None:
    """Print a row of the table for windows with an anchor, and one for windows without."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--clips", type=int, default=24)
    options = parser.parse_args()
    import_comfy(options.comfyui)
    with torch.inference_mode():
        parts = generate.load(REPOSITORY / "miniature")
        for is_anchored in (True, False):
            print(row(parts, is_anchored, options.clips), flush=True)


if __name__ == "__main__":
    main()
