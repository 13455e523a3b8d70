"""Judges the miniature's clips under core's guidance nodes, core's caches and cheaper settings, and
writes the figures into RESULTS.md.

Usage: python miniature/training/guidance_figures.py --comfyui PATH [--tables core nag cost]
[--clips 48] [--dry]

Run it with ComfyUI's python, of a release that has the nodes: 0.33 has all. Scenes and seeds are
those of evaluate.py. A minute or two for each variant, on one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from find_comfyui import import_comfy, import_extension

import_extension()
from comfyui_ovi.miniature.training import evaluate, figures, generate, world  # noqa: E402
from comfyui_ovi.miniature.training.generate import Guidance  # noqa: E402

RESULTS = Path(__file__).with_name("RESULTS.md")
ALONE = Guidance(video_cfg=1.0, audio_cfg=1.0)  # the positive prompt alone
# The negative prompt of the tower in which a word shows.
NEGATIVE_OF = {"colour": "video_negative", "pitch": "audio_negative"}


@dataclass(frozen=True)
class Variant:
    """One way to sample: a node of core, settings of the sampler, a word led away from."""

    name: str
    node: str = ""  # module of comfy_extras and class
    inputs: dict[str, Any] = field(default_factory=dict)  # where not the node's defaults
    guidance: Guidance = field(default_factory=Guidance)
    away_from: str = ""  # said by the negative prompt and not by the prompt


MODALITY, STG = "nodes_lt.LTXVModalityGuidance", "nodes_lt.LTXVSpatioTemporalGuidance"
PAG, NAG = "nodes_pag.PerturbedAttentionGuidance", "nodes_nag.NAGuidance"
EASY, LAZY = "nodes_easycache.EasyCacheNode", "nodes_easycache.LazyCacheNode"
PLAIN = Variant("plain")
TABLES = {
    "core": (
        PLAIN,
        *(
            Variant(f"LTXV Modality Guidance, {scale}", MODALITY, {"modality_scale": scale})
            for scale in (1.0, 2.0, 3.0)
        ),
        Variant("LTXV Spatio-Temporal Guidance, 1.0, block 2", STG, {"blocks": "2"}),
        Variant("Perturbed-Attention Guidance, 3.0", PAG),
    ),
    "nag": (
        *(
            Variant(f"{word}: {name}", node, guidance=ALONE, away_from=word)
            for word in NEGATIVE_OF
            for name, node in (("cfg 1", ""), ("cfg 1, NAG", NAG))
        ),
    ),
    "cost": (
        PLAIN,
        Variant("EasyCache, 0.2", EASY),
        Variant("LazyCache, 0.2", LAZY),
        Variant("guidance from 0 to 0.5", guidance=Guidance(cfg_range=(0.0, 0.5))),
        Variant("cfg 1", guidance=ALONE),
        Variant("8 steps", guidance=Guidance(steps=8)),
        Variant("6 steps", guidance=Guidance(steps=6)),
    ),
}
COLUMNS = {"sync": "sync", "colour": "colour", "count_both": "count", "pitch": "pitch"}


@dataclass(frozen=True)
class Cost:
    """What one clip took: rows of each forward of the network, and processor seconds."""

    rows: list[int]
    seconds: float


def apply_node(model, node: str, inputs: dict[str, Any]):
    """Return the MODEL that a node of core makes of one; inputs that are not given are its
    defaults.
    """
    module, name = node.split(".")
    try:
        found = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise SystemExit(
            f"this ComfyUI has no comfy_extras.{node}: give one that has it with --comfyui (0.33 "
            "does), or choose other --tables."
        ) from error
    given = [each for each in found.define_schema().inputs if each.id != "model"]
    defaults = {each.id: each.default for each in given}
    return found.execute(model=model, **defaults | inputs).result[0]


def count_forwards(model, rows: list[int]):
    """Return a copy of a MODEL that notes the rows of each forward, behind every cache."""
    from comfy.patcher_extension import WrappersMP

    def count(executor, packed, *args, **kwargs):
        rows.append(len(packed))
        return executor(packed, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    return model


def ask(variant: Variant, scene: world.Scene, caption: str) -> tuple[str, Guidance]:
    """Return the prompt and the settings: a word to lead away from goes from one prompt to the
    other.
    """
    if not variant.away_from:
        return caption, variant.guidance
    word = getattr(scene, variant.away_from)
    negatives = {NEGATIVE_OF[variant.away_from]: word}
    return caption.replace(f" {word}", ""), replace(variant.guidance, negatives=negatives)


def make_source(parts: generate.Parts, variant: Variant, costs: list[Cost]) -> evaluate.Source:
    """Return what makes the clips of a variant and notes what each took."""

    def made(clip: world.Clip, caption: str, seed: int):
        caption, guidance = ask(variant, clip.scene, caption)
        rows, start = [], time.process_time()
        model = parts.model
        if variant.node:
            model = apply_node(model, variant.node, variant.inputs)
        its = replace(parts, model=count_forwards(model, rows))
        frames_and_sound = generate.make_clip(its, caption, seed, guidance)
        costs.append(Cost(rows, time.process_time() - start))
        return frames_and_sound

    return made


def share_with_interval(right: list[bool]) -> str:
    """Return the share that is right, with Wilson's interval of 95 %, in per cent."""
    if not right:
        return "-"
    low, high = figures.wilson(sum(right), len(right))
    return f"{figures.share(right):.0%} ({100 * low:.0f} to {100 * high:.0f})"


def row(parts: generate.Parts, variant: Variant, clips: int) -> str:
    """Make and judge the clips of a variant; return its line of the table."""
    costs: list[Cost] = []
    print(f"{variant.name}:", file=sys.stderr)
    _, judged = evaluate.evaluate(make_source(parts, variant, costs), clips, image=False)
    answers = figures.answers([verdict for *_, verdict in judged])
    cells = [variant.name, str(len(answers["sync"]))]
    cells += [share_with_interval(answers[name]) for name in COLUMNS]
    cells += [f"{mean(len(cost.rows) for cost in costs):.1f}"]
    cells += [f"{mean(sum(cost.rows) for cost in costs):.1f}"]
    cells += [f"{median(cost.seconds for cost in costs):.2f}"]
    return f"| {' | '.join(cells)} |"


def table(parts: generate.Parts, variants: tuple[Variant, ...], clips: int) -> str:
    """Return a Markdown table with a line for each variant, each printed as it is made, and what it
    was made with.
    """
    from comfyui_version import __version__

    head = ["", "sounds", *COLUMNS.values(), "forwards", "rows", "seconds"]
    lines = [f"| {' | '.join(head)} |\n{'|---' * len(head)}|"]
    print(lines[0])
    for variant in variants:
        lines.append(row(parts, variant, clips))
        print(lines[-1], flush=True)
    return "\n".join([*lines, "", f"{clips} clips each, ComfyUI {__version__}."])


def put(text: str, name: str, made: str) -> str:
    """Return the text of a page with a table between the two comments of its name."""
    begin, end = (f"<!-- {name} {side} -->\n" for side in ("begins", "ends"))
    if begin not in text or end not in text:
        raise SystemExit(
            f"the page has no {begin.strip()} and {end.strip()} to write between: put both on "
            "lines of their own."
        )
    before, rest = text.split(begin)
    return f"{before}{begin}{made}\n{end}{rest.split(end)[1]}"


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--dry", action="store_true", help="print the tables, write nothing")
    options = parser.parse_args()
    if options.clips < 1:
        parser.error(f"--clips is {options.clips}; at least one is needed")
    return options


def main() -> None:
    """Make the tables; each is written as soon as it is whole."""
    options = parse_options()
    import_comfy(options.comfyui)
    parts = generate.load(evaluate.REPOSITORY / "miniature")
    for name in options.tables:
        with torch.inference_mode():
            made = table(parts, TABLES[name], options.clips)
        if not options.dry:
            part = RESULTS.with_suffix(".part")
            part.write_text(put(RESULTS.read_text("utf-8"), name, made), encoding="utf-8")
            part.replace(RESULTS)


if __name__ == "__main__":
    main()
