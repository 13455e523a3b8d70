"""Measures sound that is made for a held picture, with and without steering.

Usage: python miniature/training/steering_figures.py --comfyui PATH [--clips 64] [--batch 16]
[--first 0] [--pictures world] [--only NAME ...] [--try SAMPLER STRENGTH STEERED ...]
[--until 0.6] [--steps 20] [--out FILE]

Run it with ComfyUI's python. Pictures are of the world's held-out scenes, as the world shows them
or as the miniature makes them (noise of seeds 5000 and up, its own sound thrown away); the noise of
the sounds is of seeds 1000 and up, so that every way makes the same clips. Each way is a sampler of
ComfyUI, with steering by the node 'Ovi Steer' or without. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))

from find_comfyui import import_comfy, import_extension  # noqa: E402

import_extension()
from comfyui_ovi.miniature.training import batches, figures, generate, world  # noqa: E402
from comfyui_ovi.miniature.training.evaluate import FIRST_SEED, STRIDE  # noqa: E402
from comfyui_ovi.miniature.training.judge import IN_SYNC, Verdict, judge  # noqa: E402

NOISE_SEED = 1000
PICTURE_SEED = 5000
VIDEO_CFG, AUDIO_CFG = 4.0, 3.0


@dataclass(frozen=True)
class Way:
    """How the sound of a held picture is made."""

    sampler: str  # of ComfyUI's KSampler, or "ovi" for 'Ovi Sampler' with 'Ovi Scheduler'
    strength: float = 0.0
    steered: int = 0


WAYS = {
    "not steered": Way("ovi"),
    "Ovi Sampler, unipc": Way("ovi", 2.0),
    "KSampler, euler": Way("euler", 2.0),
    "KSampler, dpmpp_2m": Way("dpmpp_2m", 2.0),
    "four steps, Ovi Sampler, unipc": Way("ovi", 4.0, 4),
    "four steps, KSampler, euler": Way("euler", 4.0, 4),
}


@dataclass(frozen=True)
class Asked:
    """A clip whose picture is held."""

    clip: world.Clip
    scene: world.Scene
    caption: str
    seed: int
    latent: dict


def asked_clips(parts: generate.Parts, indices: range, pictures: str) -> list[Asked]:
    """Return the same clips as evaluate.py asks for, of these numbers, encoded and held.

    pictures: "world" or "miniature", whose they are.
    """
    scenes = [
        world.HELD_OUT_SCENES[STRIDE * index % len(world.HELD_OUT_SCENES)] for index in indices
    ]
    captions = [
        scene.caption(form=index // len(world.HELD_OUT_SCENES) % 2)
        for index, scene in zip(indices, scenes, strict=True)
    ]
    clips = [
        world.film(scene, FIRST_SEED + index) for index, scene in zip(indices, scenes, strict=True)
    ]
    if pictures == "miniature":
        clips = _made_anew(parts, indices, captions, clips)
    return [
        Asked(
            clip,
            scene,
            caption,
            NOISE_SEED + index,
            generate.hold(parts, clip, "picture", generate.empty(parts)),
        )
        for index, scene, caption, clip in zip(indices, scenes, captions, clips, strict=True)
    ]


def _made_anew(
    parts: generate.Parts, indices: range, captions: list[str], clips: list[world.Clip]
) -> list[world.Clip]:
    """Return clips with the miniature's pictures in place of the world's."""
    asks = [
        batches.Ask(caption, PICTURE_SEED + index, generate.empty(parts))
        for index, caption in zip(indices, captions, strict=True)
    ]
    made = batches.make_clips(parts, asks, generate.Guidance())
    return [
        dataclasses.replace(clip, frames=frames)
        for clip, (frames, _) in zip(clips, made, strict=True)
    ]


def make(parts: generate.Parts, asked: list[Asked], way: Way, options) -> Iterator[Verdict]:
    """Make the sounds of a batch of held pictures; yield what is heard and, in the pictures as
    they were given, seen of each.
    """
    import comfy.sample
    from comfyui_ovi.ovi_model.decode.audio import decode_16k
    from comfyui_ovi.ovi_model.latent.geometry import video_samples

    nodes = generate.import_nodes()
    latent, mask = (
        batches.joined([its.latent[key] for its in asked]) for key in ("samples", "noise_mask")
    )
    noise = batches.noise_of(asked)
    positive, negative = batches.encode_captions(parts, [its.caption for its in asked])
    (model,) = nodes.OviGuidance.execute(parts.model, AUDIO_CFG, -1, 0.0, 1.0).args
    (model,) = nodes.OviSteer.execute(model, way.strength, options.until, way.steered).args
    settings = {"noise_mask": mask, "disable_pbar": True, "seed": asked[0].seed}
    if way.sampler == "ovi":
        (sigmas,) = nodes.OviScheduler.execute(options.steps, generate.SHIFT, 1.0).args
        (sampler,) = nodes.OviSamplerUniPC.execute().args
        made = comfy.sample.sample_custom(
            model, noise, VIDEO_CFG, sampler, sigmas, positive, negative, latent, **settings
        )
    else:
        made = comfy.sample.sample(
            model,
            noise,
            options.steps,
            VIDEO_CFG,
            way.sampler,
            "simple",
            positive,
            negative,
            latent,
            **settings,
        )
    sounds = made.unbind()[1]
    for index, its in enumerate(asked):
        waveform = decode_16k(parts.audio_vae, sounds[index : index + 1])[0, 0]
        yield judge(its.clip.frames, waveform[: video_samples(world.FRAMES)].float(), its.scene)


def row(name: str, verdicts: list[Verdict], seconds: float) -> str:
    """Return a row of the table."""
    errors = [error for verdict in verdicts for error in verdict.errors]
    cells = [
        _share(sum(error <= IN_SYNC for error in errors), len(errors)),
        f"{figures.chance(verdicts):.1%}",
        _share(sum(map(figures.is_right_but_for_colour, verdicts)), len(verdicts)),
        f"{figures.share(len(v.heard) == v.asked.count for v in verdicts):.1%}",
        f"{seconds / len(verdicts):.2f}",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def _share(hits: int, count: int) -> str:
    low, high = figures.wilson(hits, count)
    return f"{hits / max(1, count):.1%} ({hits} of {count}; {low:.0%}-{high:.0%})"


HEADER = (
    "| way | heard within one frame (42 ms) of one seen | by chance | clips all right | "
    "as many heard as asked | s a clip |\n|---|---|---|---|---|---|"
)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--first", type=int, default=0, help="number of the first clip")
    parser.add_argument("--batch", type=int, default=16, help="clips at once")
    parser.add_argument(
        "--pictures", choices=("world", "miniature"), default="world", help="who made what is held"
    )
    parser.add_argument(
        "--only", nargs="+", choices=WAYS, default=list(WAYS), help="ways to measure"
    )
    parser.add_argument(
        "--try",
        dest="tried",
        nargs=3,
        action="append",
        default=[],
        metavar=("SAMPLER", "STRENGTH", "STEERED"),
        help="measure another way in place of those above; STEERED 0 is all steps",
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--until", type=float, default=0.6, help="noise level")
    parser.add_argument("--out", type=Path, help="file to add the verdicts to, one line a way")
    options = parser.parse_args()
    if min(options.clips, options.batch) < 1:
        parser.error("--clips and --batch are at least 1")
    return options


def main() -> None:
    """Measure every way, a batch of clips at a time, and print the table."""
    options = parse_options()
    import_comfy(options.comfyui)
    torch.set_num_threads(1)
    ways = {name: WAYS[name] for name in options.only}
    if options.tried:
        ways = {", ".join(way): read_way(*way) for way in options.tried}
    verdicts = {name: [] for name in ways}
    seconds = dict.fromkeys(ways, 0.0)
    with torch.inference_mode():
        parts = generate.load(REPOSITORY / "miniature")
        end = options.first + options.clips
        for start in range(options.first, end, options.batch):
            indices = range(start, min(start + options.batch, end))
            some = asked_clips(parts, indices, options.pictures)
            for name, way in ways.items():
                begin = time.process_time()
                made = list(make(parts, some, way, options))
                seconds[name] += time.process_time() - begin
                verdicts[name] += made
                print(row(name, verdicts[name], seconds[name]), file=sys.stderr, flush=True)
                if options.out:
                    write(options.out, name, made)
    rows = [row(name, verdicts[name], seconds[name]) for name in ways]
    print("\n".join([HEADER, *rows]))


def read_way(sampler: str, strength: str, steered: str) -> Way:
    """Read a way as the command line has it."""
    return Way(sampler, float(strength), int(steered))


def write(path: Path, name: str, verdicts: list[Verdict]) -> None:
    """Add a line with what was heard and seen of each clip, in seconds, to a file."""
    clips = [
        {"asked": v.asked.caption(), "seen": list(v.seen), "heard": list(map(float, v.heard))}
        for v in verdicts
    ]
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"way": name, "clips": clips}) + "\n")


if __name__ == "__main__":
    main()
