"""Has a miniature keep pictures and recordings of the world's clips, and counts how well it does.

Usage: python miniature/training/held_figures.py --comfyui PATH [--clips 48]
[--only last middle sound span]

Run it with ComfyUI's python. Prints a table with Wilson's intervals of 95 %.

last, middle: one picture of a clip of the world, held clean or renoised. A clip counts where the
whole of it keeps the picture's colour and place, as the first frame's are judged in evaluate.py.
Nothing is put back before that.
sound, span: a recording held whole, or from 0.5 s on. Judged by what is seen at what is heard.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))

from find_comfyui import import_comfy, import_extension  # noqa: E402

import_extension()
from comfyui_ovi.miniature.training import generate, world  # noqa: E402
from comfyui_ovi.miniature.training.evaluate import FIRST_SEED, STRIDE  # noqa: E402
from comfyui_ovi.miniature.training.figures import carried_on, wilson  # noqa: E402
from comfyui_ovi.miniature.training.judge import IN_SYNC, judge  # noqa: E402

PLACES = {"last": world.FRAMES - 1, "middle": world.FRAMES // 2}
KEYFRAMES = ("clean", "renoised")
SPAN = 0.5  # seconds, where the sound that is held begins


def asked(clips: int) -> Iterator[tuple[int, world.Scene, world.Clip]]:
    """Yield seeds, held-out scenes and clips of the world."""
    for index in range(clips):
        scene = world.HELD_OUT_SCENES[STRIDE * index % len(world.HELD_OUT_SCENES)]
        yield index, scene, world.film(scene, FIRST_SEED + index)


def hold_picture(parts, clip: world.Clip, place: int, keyframe: str) -> dict:
    """Return a latent that holds one frame of a clip."""
    node = generate.import_nodes().OviHoldPictures
    how = {"start": float(place), "unit": "frames", "strength": 1.0, "keyframe": keyframe}
    images = clip.frames[place : place + 1]
    return node.execute(generate.empty(parts), parts.vae, images, **how).result[0]


def hold_sound(parts, clip: world.Clip, start: float) -> dict:
    """Return a latent that holds a clip's sound from a second on."""
    node = generate.import_nodes().OviHoldSound
    waveform = clip.sound[None, None, round(start * world.SAMPLE_RATE) :]
    audio = {"waveform": waveform, "sample_rate": world.SAMPLE_RATE}
    return node.execute(generate.empty(parts), parts.audio_vae, audio, start, 0.0).result[0]


def count_pictures(parts, clips: int, name: str, keyframe: str) -> tuple[int, int]:
    """Return how many clips keep the colour and place of the picture given, and of how many."""
    place, kept = PLACES[name], 0
    for seed, scene, clip in asked(clips):
        latent = hold_picture(parts, clip, place, keyframe)
        made = generate.make_clip(
            parts, scene.caption(), seed, generate.Guidance(), latent, held="decoded"
        )
        kept += all(carried_on(judge(*made, scene), clip.frames[place]))
    return kept, clips


def count_sounds(parts, clips: int, start: float) -> tuple[int, int]:
    """Return how many sounds held are seen within a frame, and how many there are."""
    hits = sounds = 0
    for seed, scene, clip in asked(clips):
        latent = hold_sound(parts, clip, start)
        verdict = judge(
            *generate.make_clip(parts, scene.caption(), seed, generate.Guidance(), latent), scene
        )
        errors = [
            error
            for heard, error in zip(verdict.heard, verdict.errors, strict=True)
            if heard >= start
        ]
        hits += sum(error <= IN_SYNC for error in errors)
        sounds += len(errors)
    return hits, sounds


def _row(what: str, hits: int, trials: int) -> str:
    low, high = wilson(hits, trials)
    share = hits / trials if trials else math.nan
    return f"| {what} | {hits} of {trials} | {share:.1%} ({low:.0%} to {high:.0%}) |"


def main() -> None:
    """Print a row of the table for each thing held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--files", type=Path, default=REPOSITORY / "miniature")
    parser.add_argument("--clips", type=int, default=48)
    kinds = (*PLACES, "sound", "span")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args()
    import_comfy(options.comfyui)
    with torch.inference_mode():
        parts = generate.load(options.files)
        for name in options.only:
            if name in PLACES:
                for keyframe in KEYFRAMES:
                    counted = count_pictures(parts, options.clips, name, keyframe)
                    print(_row(f"{name} frame, {keyframe}", *counted))
            else:
                start = SPAN if name == "span" else 0.0
                print(_row(f"sound from {start:g} s", *count_sounds(parts, options.clips, start)))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
