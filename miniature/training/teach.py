"""Teaches the miniature a colour it never saw, through the nodes of a workflow, and judges it.

Usage: python miniature/training/teach.py FOLDER --comfyui PATH [--steps 600] [--batch 8]
[--parts all] [--clips 64] [--only clips train judge]

Run it with ComfyUI's python. FOLDER gets 48 clips as mp4 with captions, half of them orange, half
of the old world; the training, which goes on where it was stopped; and the verdicts on 64 orange
clips and 64 of the old world, noise of seeds 1000 and up, with the LoRA. Intervals are Wilson's,
95 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))

from find_comfyui import import_comfy, import_extension  # noqa: E402

import_extension()
from comfyui_ovi.miniature.training import batches, figures, generate, judge, world  # noqa: E402

ORANGE = (0.95, 0.52, 0.12)
HUE, NEAR = 29.0, 15.0  # degrees on the judge's wheel
CLIPS = 24  # of each half
STRIDE = 10  # takes things, counts and pitches in turn
NOISE_SEED = 1000
NAMES = ("clips", "train", "judge")
# What the workflow 'Ovi - Train a LoRA' sets.
RECIPE = {"rank": 8, "learning_rate": 3e-3, "sound_weight": 1.0, "seed": 0}
SHIFT = 3.0


def orange_scenes() -> list[world.Scene]:
    """Return the 27 scenes of an orange thing, things, counts and pitches in turn."""
    red = [scene for scene in world.every_scene() if scene.colour == "red"]
    return [
        dataclasses.replace(red[STRIDE * number % len(red)], colour="orange")
        for number in range(len(red))
    ]


def scenes_to_teach() -> list[world.Scene]:
    """Return the scenes of the clips that are trained on."""
    old = world.TRAINING_SCENES
    kept = [old[(STRIDE + 1) * number % len(old)] for number in range(CLIPS)]
    return [*orange_scenes()[:CLIPS], *kept]


def write_clips(folder: Path) -> None:
    """Write the clips and their captions."""
    from comfyui_ovi.ovi_model.save import containers, mux

    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes_to_teach()):
        colour = ORANGE if scene.colour == "orange" else None
        clip = world.film(scene, number, colour=colour)
        sound = {"waveform": clip.sound[None, None], "sample_rate": world.SAMPLE_RATE}
        (whole,) = mux.split_clips(clip.frames, world.FRAME_RATE, sound)
        path = folder / f"{number:02}.mp4"
        path.unlink(missing_ok=True)
        mux.write_clip(path, whole, containers.CONTAINERS["mp4"], 100, {}, lambda: None)
        path.with_suffix(".txt").write_text(scene.caption(number % 2), encoding="utf-8")


def train(folder: Path, parts: generate.Parts, trained: str, lengths: dict[str, int]) -> None:
    """Train through the nodes; what it took is noted, also of a part of it.

    lengths: steps and batch_size.
    """
    from comfyui_ovi.nodes import training
    from comfyui_ovi.ovi_model.train import state

    nodes = generate.import_nodes()
    start = time.perf_counter(), time.process_time()
    kept = folder / training.FOLDER / trained
    try:
        model = with_shift(parts.model)
        latents, positive, report = training.OviTrainingClips.execute(
            "clips",
            parts.clip,
            parts.vae,
            parts.audio_vae,
            world.SIZE,
            world.FRAMES,
            "Audio:",
            0.1,
            0.0,
        ).args
        print(report, file=sys.stderr)
        settings = RECIPE | lengths | {"parts": trained, "recompute": False}
        settings |= {"name": trained, "save_every": 100}
        listed = {name: [value] for name, value in settings.items()}
        nodes.OviTrainLora.execute(model=[model], latents=latents, positive=positive, **listed)
    finally:
        used = {
            "wall_s": time.perf_counter() - start[0],
            "cpu_s": time.process_time() - start[1],
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if (kept / state.STATE).exists():
            with (kept / "used.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(used) + "\n")


def with_shift(model):
    """Return the MODEL that core's 'ModelSamplingSD3' makes."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, SHIFT)[0]


@dataclasses.dataclass(frozen=True)
class Seen:
    """A verdict, and the hue of the thing in degrees, None without one."""

    verdict: judge.Verdict
    hue: float | None

    @property
    def is_as_asked(self) -> bool:
        """Whether colour, number, pitch and sync are all right."""
        return self.has_its_colour and figures.is_right_but_for_colour(self.verdict)

    @property
    def has_its_colour(self) -> bool:
        if self.verdict.asked.colour == "orange":
            return self.hue is not None and abs((self.hue - HUE + 180) % 360 - 180) <= NEAR
        return self.verdict.colour == self.verdict.asked.colour


def see(frames: Tensor, sound: Tensor, asked: world.Scene) -> Seen:
    """Judge a clip; the judge, which knows no orange, gets one turned to red."""
    wheel = judge._on_wheel(frames)
    is_thing = wheel.norm(dim=-1) >= judge.COLOURED
    hue = None
    if is_thing.sum() >= judge.SMALLEST * len(frames):
        x, y = wheel[is_thing].sum(0).tolist()
        hue = math.degrees(math.atan2(y, x))
    shown = turned(frames, -HUE) if asked.colour == "orange" else frames
    return Seen(judge.judge(shown, sound, asked), hue)


def turned(frames: Tensor, degrees: float) -> Tensor:
    """Return frames [..., 3] whose hue is turned about grey."""
    angle = math.radians(degrees)
    grey = frames.mean(-1, keepdim=True)
    x, y = judge._on_wheel(frames).unbind(-1)
    x, y = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
    away = torch.stack([2 * x, math.sqrt(3) * y - x, -math.sqrt(3) * y - x], -1) / 3
    return (grey + away).clamp(0, 1)


def make(parts: generate.Parts, scenes: list[world.Scene]) -> Iterator[Seen]:
    """Make and judge a clip of each scene, a batch at a time."""
    empty = generate.empty(parts)
    for start in range(0, len(scenes), batches.BATCH):
        some = scenes[start : start + batches.BATCH]
        asks = [
            batches.Ask(scene.caption(number % 2), NOISE_SEED + number, empty)
            for number, scene in enumerate(some, start)
        ]
        made = batches.make_clips(parts, asks, generate.Guidance())
        for scene, (frames, sound) in zip(some, made, strict=True):
            yield see(frames, sound, scene)


def asked(kind: str, count: int) -> list[world.Scene]:
    """Return the scenes that are judged: orange ones, or held-out ones of the old world."""
    known = orange_scenes() if kind == "orange" else world.HELD_OUT_SCENES
    stride = 1 if kind == "orange" else STRIDE
    return [known[stride * number % len(known)] for number in range(count)]


def row(name: str, seen: list[Seen]) -> str:
    """Return a row of the table."""
    verdicts = [its.verdict for its in seen]
    errors = [error for verdict in verdicts for error in verdict.errors]
    right = (
        [its.has_its_colour for its in seen],
        [error <= judge.IN_SYNC for error in errors],
        [verdict.pitch == verdict.asked.pitch for verdict in verdicts],
        [len(its.heard) == len(its.seen) == its.asked.count for its in verdicts],
        [its.is_as_asked for its in seen],
    )
    return f"| {name} | {' | '.join(map(_share, right))} |"


def _share(right: list[bool]) -> str:
    low, high = figures.wilson(sum(right), len(right))
    share = f"{sum(right) / max(1, len(right)):.1%}"
    return f"{share} ({sum(right)} of {len(right)}; {low:.0%}-{high:.0%})"


HEADER = (
    "| clips | colour | heard within one frame (42 ms) of one seen | pitch | as many seen and "
    "heard as asked | all right |\n|---|---|---|---|---|---|"
)


def judge_all(parts: generate.Parts, folder: Path, trained: str, steps: int, count: int) -> str:
    """Return the table of what the LoRA makes; its verdicts are kept as they come."""
    lines = [HEADER]
    from comfyui_ovi.ovi_model.train import state

    kept = folder / "ovi_training" / trained
    taught = generate.with_lora(parts, kept / state.LORA.format(steps))
    ways: dict[str, tuple[generate.Parts, str]] = {
        "orange, with the LoRA": (taught, "orange"),
        "old world, with the LoRA": (taught, "old"),
    }
    for name, (its_parts, kind) in ways.items():
        seen = list(_noted(make(its_parts, asked(kind, count)), folder / f"{trained}_{kind}.jsonl"))
        lines.append(row(name, seen))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def _noted(seen: Iterator[Seen], path: Path) -> Iterator[Seen]:
    with path.open("w", encoding="utf-8") as file:
        for its in seen:
            verdict = its.verdict
            told = {
                "asked": verdict.asked.caption(),
                "hue": its.hue,
                "colour": verdict.colour,
                "seen": list(verdict.seen),
                "heard": list(map(float, verdict.heard)),
                "pitch": verdict.pitch,
            }
            file.write(json.dumps(told) + "\n")
            file.flush()
            yield its


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for clips, training and verdicts")
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8, help="clips a step")
    parser.add_argument("--clips", type=int, default=64, help="that are judged, of each kind")
    parser.add_argument("--parts", choices=("all", "video", "audio", "fusion"), default="all")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    return parser.parse_args()


def main() -> None:
    """Write clips, train, judge."""
    options = parse_options()
    import_comfy(options.comfyui)
    import folder_paths

    torch.set_num_threads(1)
    folder = options.folder.absolute()
    folder_paths.set_input_directory(str(folder))
    folder_paths.set_output_directory(str(folder))
    if "clips" in options.only:
        write_clips(folder / "clips")
    with torch.inference_mode():
        parts = generate.load(REPOSITORY / "miniature")
        ways: dict[str, Callable[[], object]] = {
            "train": lambda: train(
                folder, parts, options.parts, {"steps": options.steps, "batch_size": options.batch}
            ),
            "judge": lambda: judge_all(parts, folder, options.parts, options.steps, options.clips),
        }
        for name in ways:
            if name in options.only:
                ways[name]()


if __name__ == "__main__":
    main()
