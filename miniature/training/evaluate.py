"""Has a miniature make clips of scenes and seeds that it was not trained on, and judges them.

Usage: python miniature/training/evaluate.py --comfyui PATH [--clips 64] [--out FOLDER]
[--without-fusion] [--image] [--hold sound] [--steps 20] [--video-cfg 4] [--audio-cfg 3]
[--skip-layer 0] [--beside FOLDER ...]
       python miniature/training/evaluate.py --comfyui PATH --source world     judges the world's
       own clips
       python miniature/training/evaluate.py --comfyui PATH --source codecs    the same after both
       VAEs and the vocoder

Run it with ComfyUI's python. Prints a table of figures; writes them, every verdict, and a picture
of eight clips to
the folder. --beside shows figures written before in the same table.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))

from find_comfyui import import_comfy, import_extension  # noqa: E402

import_extension()
from comfyui_ovi.miniature.training import figures, generate, plots, world  # noqa: E402
from comfyui_ovi.miniature.training.judge import Verdict, judge  # noqa: E402

FIRST_SEED = 20_000_000  # of the world's clips; training has seeds below 10 million
# Takes things, colours, counts and pitches in turn: it has no divisor in common with their number.
STRIDE = 10
CLIPS_IN_PICTURE = 8
FIGURES, PICTURE = "figures.json", "clips.png"

Source = Callable[
    [world.Clip, str, int], tuple[Tensor, Tensor]
]  # world's clip, caption, seed -> frames, sound


def make_source(options: argparse.Namespace) -> Source:
    """Return what makes the clips that are judged."""
    if options.source == "world":
        return lambda clip, _caption, _seed: (clip.frames, clip.sound)
    parts = generate.load(options.files)
    if options.source == "codecs":
        return lambda clip, _caption, _seed: generate.through_codecs(parts, clip)
    parts = generate.without_fusion(parts) if options.without_fusion else parts
    guidance = generate.Guidance(
        options.steps, options.video_cfg, options.audio_cfg, options.skip_layer
    )

    def made(clip: world.Clip, caption: str, seed: int) -> tuple[Tensor, Tensor]:
        latent = generate.empty(parts, clip.frames[0] if options.image else None)
        if options.hold:
            latent = generate.hold(parts, clip, options.hold, latent)
        return generate.make_clip(parts, caption, seed, guidance, latent)

    return made


def evaluate(
    source: Source, clips: int, image: bool
) -> tuple[dict[str, float], list[plots.Judged]]:
    """Make and judge clips; return the figures and what each clip was."""
    judged, carried, taken = [], [], 0.0
    for index in range(clips):
        scene = world.HELD_OUT_SCENES[STRIDE * index % len(world.HELD_OUT_SCENES)]
        caption = scene.caption(form=index // len(world.HELD_OUT_SCENES) % 2)
        clip = world.film(scene, FIRST_SEED + index)
        start = time.perf_counter()
        frames, sound = source(clip, caption, index)
        taken += time.perf_counter() - start
        verdict = judge(frames, sound, scene)
        judged.append((caption, frames, sound, verdict))
        carried.append(figures.carried_on(verdict, clip.frames[0]))
        print(
            f"{index + 1}/{clips} {caption} {plots.describe(verdict)}", file=sys.stderr, flush=True
        )
    found = figures.summarise([verdict for *_, verdict in judged])
    if image:
        found |= figures.summarise_carried(carried)
    return found | {"seconds": taken / clips}, judged


def write(
    folder: Path, settings: dict, found: dict[str, float], judged: list[plots.Judged]
) -> None:
    """Write figures, verdicts and picture; a file is either whole or as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = [{"caption": caption, **as_json(verdict)} for caption, _, _, verdict in judged]
    text = json.dumps({"settings": settings, "figures": _finite(found), "clips": clips}, indent=1)
    (folder / f"{FIGURES}.part").write_text(text + "\n", encoding="utf-8")
    (folder / f"{FIGURES}.part").replace(folder / FIGURES)
    plots.draw_clips(judged[:CLIPS_IN_PICTURE]).save(folder / f"{PICTURE}.part", format="PNG")
    (folder / f"{PICTURE}.part").replace(folder / PICTURE)


def as_json(verdict: Verdict) -> dict:
    """What was asked, seen and heard, in plain numbers; times in milliseconds."""
    names = ("colour", "seen", "pitch", "radius", "loudness", "snr")
    heard = [round(1000 * seconds) for seconds in verdict.heard]
    plain = {name: getattr(verdict, name) for name in names}
    return {"asked": asdict(verdict.asked), **plain, "heard_ms": heard, "pitches": verdict.pitches}


def _finite(found: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def read_figures(folder: Path) -> dict[str, float]:
    """Return the figures of an evaluation written before."""
    return json.loads((folder / FIGURES).read_text(encoding="utf-8"))["figures"]


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument(
        "--files", type=Path, default=REPOSITORY / "miniature", help="the miniature's folder"
    )
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument(
        "--source",
        choices=("model", "codecs", "world"),
        default="model",
        help="what makes the clips",
    )
    parser.add_argument(
        "--without-fusion", action="store_true", help="neither tower reads the other"
    )
    parser.add_argument(
        "--image", action="store_true", help="start from the first frame of a clip of the world"
    )
    parser.add_argument(
        "--hold", choices=generate.STREAMS, help="hold this stream of a clip of the world"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--video-cfg", type=float, default=4.0)
    parser.add_argument("--audio-cfg", type=float, default=3.0)
    parser.add_argument(
        "--skip-layer",
        type=int,
        default=0,
        help="block left out of the negative prediction, 0 for none",
    )
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument(
        "--beside",
        type=Path,
        nargs="+",
        default=[],
        help="folders written before, for the same table",
    )
    options = parser.parse_args()
    if options.clips < 1:
        parser.error(f"--clips is {options.clips}; at least one is needed")
    return options


def main() -> None:
    """Evaluate and print the table."""
    options = parse_options()
    import_comfy(options.comfyui)
    with torch.inference_mode():
        found, judged = evaluate(make_source(options), options.clips, options.image)
    if options.out:
        write(
            options.out, {name: str(value) for name, value in vars(options).items()}, found, judged
        )
    columns = {folder.name: read_figures(folder) for folder in options.beside}
    print(figures.table(columns | {options.out.name if options.out else options.source: found}))


if __name__ == "__main__":
    main()
