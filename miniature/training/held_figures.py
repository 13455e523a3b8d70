"""Has a miniature keep pictures and recordings of the world's clips, and counts how well it does.

Usage: python miniature/training/held_figures.py --comfyui PATH [--clips 64]
[--seed 1000] [--only last middle sound span]

Run it with ComfyUI's python. Prints a table with Wilson's intervals of 95 %.

last, middle: one picture of a clip of the world, held clean or renoised. A clip counts where the
whole of it keeps the picture's colour and place, as the first frame's are judged in evaluate.py.
Nothing is put back before that.
sound, span: a recording held whole, or from 0.5 s on. Judged by what is seen at what is heard.
"""

from __future__ import annotations

import argparse
import functools
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
from comfyui_ovi.miniature.training.batches import Ask, make_clips  # noqa: E402
from comfyui_ovi.miniature.training.evaluate import FIRST_SEED, STRIDE  # noqa: E402
from comfyui_ovi.miniature.training.figures import carried_on, wilson  # noqa: E402
from comfyui_ovi.miniature.training.judge import IN_SYNC, Verdict, judge  # noqa: E402

PLACES = {"last": world.FRAMES - 1, "middle": world.FRAMES // 2}
NOISE_SEED = 1000
KEYFRAMES = ("clean", "renoised")
SPAN = 0.5  # seconds, where the sound that is held begins


def asked(clips: int) -> list[world.Clip]:
    """Return clips of the world, of held-out scenes."""
    scenes = world.HELD_OUT_SCENES
    return [
        world.film(scenes[STRIDE * index % len(scenes)], FIRST_SEED + index)
        for index in range(clips)
    ]


def make(parts, clips: list[world.Clip], seed: int, hold, held: str) -> Iterator[Verdict]:
    """Make a clip of the scene of each of the world's, with what is held of that; judge them."""
    asks = (Ask(clip.scene.caption(), seed + i, hold(clip)) for i, clip in enumerate(clips))
    made = make_clips(parts, asks, generate.Guidance(), held)
    return (judge(*its, clip.scene) for its, clip in zip(made, clips, strict=True))


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


def count_pictures(parts, options, name: str, keyframe: str) -> tuple[int, int]:
    """Return how many clips keep the colour and place of the picture given, and of how many."""
    clips, place = asked(options.clips), PLACES[name]
    hold = functools.partial(hold_picture, parts, place=place, keyframe=keyframe)
    verdicts = make(parts, clips, options.seed, hold, "decoded")
    kept = [
        all(carried_on(verdict, clip.frames[place]))
        for verdict, clip in zip(verdicts, clips, strict=True)
    ]
    return sum(kept), len(kept)


def count_sounds(parts, options, start: float) -> tuple[int, int]:
    """Return how many sounds held are seen within a frame, and how many there are."""
    hold = functools.partial(hold_sound, parts, start=start)
    verdicts = make(parts, asked(options.clips), options.seed, hold, "as given")
    errors = [
        error
        for verdict in verdicts
        for heard, error in zip(verdict.heard, verdict.errors, strict=True)
        if heard >= start
    ]
    return sum(error <= IN_SYNC for error in errors), len(errors)


def _row(what: str, hits: int, trials: int) -> str:
    low, high = wilson(hits, trials)
    share = hits / trials if trials else math.nan
    return f"| {what} | {hits} of {trials} | {share:.1%} ({low:.0%} to {high:.0%}) |"


def main() -> None:
    """Print a row of the table for each thing held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--files", type=Path, default=REPOSITORY / "miniature")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seed", type=int, default=NOISE_SEED, help="of the first clip's noise")
    kinds = (*PLACES, "sound", "span")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args()
    import_comfy(options.comfyui)
    with torch.inference_mode():
        parts = generate.load(options.files)
        for name in options.only:
            if name in PLACES:
                for keyframe in KEYFRAMES:
                    counted = count_pictures(parts, options, name, keyframe)
                    print(_row(f"{name} frame, {keyframe}", *counted))
            else:
                start = SPAN if name == "span" else 0.0
                print(_row(f"sound from {start:g} s", *count_sounds(parts, options, start)))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
