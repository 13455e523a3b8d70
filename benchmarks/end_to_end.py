"""Seconds of every stage from the files to the clip, in a real ComfyUI server: load, text,
sampling, decode, save.

Usage: python benchmarks/end_to_end.py --comfyui PATH [--runs 3] [--steps 50]
       python benchmarks/end_to_end.py --comfyui PATH --models FOLDER [--model NAME] [--vae NAME]
       [--text-encoder NAME] [--audio-vae NAME] [--vocoder NAME] [--width 704] [--height 704]
       [--length 121] [--steps 50]

Run it with ComfyUI's python. Without --models the small random checkpoints are made and the picture
is small; with it, files are read from that ComfyUI models folder: those the workflow names, or
those given. On a CUDA card if there is one, else on the CPU.

Cold: the first run of a new server; what the system kept of the files in memory is used, so that
only the first run after a restart of the machine reads them from the disk. Warm: the next run of
that server with another seed. A node's time runs from the message that it starts to that of the
next one. Weights go to the card in the stage that first
uses them. The sound's part of decoding is measured by decoding the last clip's sound once more by
itself. Memory is looked at every 50 ms; resident memory counts pages of mapped files, card memory
is what torch has reserved.
"""

import argparse
import asyncio
import copy
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from command_line import command, machine, positive

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / folder) for folder in ("tools", "tests/support")]

from comfy_server import Server, ServerError, running_server  # noqa: E402
from demo import DemoError, run_prompt  # noqa: E402
from small_files import with_small_files, with_small_picture, write_small_files  # noqa: E402

WORKFLOW = REPOSITORY / "workflows" / "api" / "Ovi_14_All_nodes_text.json"
GIB = 2**30
# A stage, and what is in the name of every node of it; the first that fits counts.
STAGES = (
    ("load", "Loader"),
    ("text", "TextEncode"),
    ("sampling", "Sampler"),
    ("decode", "Decode"),
    ("save", "Save"),
)
OTHER = "other"
MODEL_FOLDERS = ("diffusion_models", "text_encoders", "vae", "loras")
# Option of the command line, and the loaders and inputs it sets.
FILES = {
    "model": (("UNETLoader", "unet_name"), ("OviModelLoader", "model")),
    "text_encoder": (("OviTextEncoderLoader", "text_encoder"), ("CLIPLoader", "clip_name")),
    "vae": (("VAELoader", "vae_name"),),
    "audio_vae": (("OviAudioVAELoader", "vae"),),
    "vocoder": (("OviAudioVAELoader", "vocoder"),),
}
NUMBERS = {
    **{name: (("OviLatent", name),) for name in ("width", "height", "length")},
    "steps": (("OviScheduler", "steps"), ("KSampler", "steps"), ("BasicScheduler", "steps")),
}


@dataclass
class Timing:
    """What one run took: seconds by stage, seconds of each sampling step but the first, peaks of
    memory in bytes.
    """

    stages: dict[str, float] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    resident: int = 0
    card: int = 0

    @property
    def total(self) -> float:
        return sum(self.stages.values())


class Stopwatch:
    """Notes when each node starts and when each of its steps ends; shown what a progress bar would
    be.
    """

    def __init__(self):
        self.starts: list[tuple[str, float]] = []
        self.end = 0.0
        self.steps: dict[str, list[float]] = {}

    def show(self, node: str, step: int = 0, _total: int = 1) -> None:
        """Take the time of a node's start, or of the end of one of its steps."""
        now = time.perf_counter()
        if not self.starts or self.starts[-1][0] != node:
            self.starts.append((node, now))
        if step:
            self.steps.setdefault(node, []).append(now)

    def close(self) -> None:
        """Take the time of the workflow's end."""
        self.end = time.perf_counter()

    def timing(self, prompt: dict) -> Timing:
        """Seconds by stage."""
        timing = Timing()
        for (node, start), (_, end) in pairwise([*self.starts, ("", self.end)]):
            stage = stage_of(prompt[node]["class_type"])
            timing.stages[stage] = timing.stages.get(stage, 0.0) + end - start
            if stage == "sampling":
                timing.steps += [b - a for a, b in pairwise(self.steps.get(node, []))]
        return timing


def stage_of(class_type: str) -> str:
    """The stage a node belongs to."""
    return next((stage for stage, part in STAGES if part in class_type), OTHER)


def with_settings(prompt: dict, options: argparse.Namespace) -> dict:
    """Return a copy of the workflow with the small files, or with what the command line names."""
    prompt = (
        copy.deepcopy(prompt) if options.models else with_small_picture(with_small_files(prompt))
    )
    for option, places in (FILES | NUMBERS).items():
        value = getattr(options, option)
        for node in prompt.values() if value is not None else ():
            node["inputs"] |= {
                name: value for class_type, name in places if node["class_type"] == class_type
            }
    return prompt


def with_seed(prompt: dict, seed: int) -> dict:
    """Return a copy of the workflow with another seed."""
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        node["inputs"] |= {name: seed for name in ("seed", "noise_seed") if name in node["inputs"]}
    return prompt


def with_sound_alone(prompt: dict) -> dict:
    """Return a copy of the workflow that also decodes the sound by itself, with core's node; the
    rest is the same.
    """
    (decode,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "OviDecode"]
    added = {
        "separate": ("OviSeparateLatent", {"latent": decode["samples"]}),
        "sound": ("VAEDecodeAudio", {"samples": ["separate", 1], "vae": decode["audio_vae"]}),
        "shown": ("PreviewAny", {"source": ["sound", 0]}),
    }
    return prompt | {
        name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in added.items()
    }


@contextmanager
def watched_memory(server: Server) -> Iterator[dict[str, int]]:
    """Follow the server's memory while the context is open; its peaks in bytes."""
    process, peaks, ended = (
        psutil.Process(server.process.pid),
        {"resident": 0, "card": 0},
        threading.Event(),
    )

    def look() -> None:
        while not ended.wait(0.05):
            peaks["resident"] = max(peaks["resident"], process.memory_info().rss)
            if torch.cuda.is_available():
                card = server.get("/system_stats")["devices"][0]
                peaks["card"] = max(peaks["card"], card["torch_vram_total"])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def run(server: Server, prompt: dict, limit: float) -> Timing:
    """Run a workflow and measure it; raises ServerError if it takes longer than limit seconds."""
    stopwatch = Stopwatch()
    with watched_memory(server) as peaks:
        try:
            asyncio.run(asyncio.wait_for(run_prompt(server, prompt, stopwatch), limit))
        except asyncio.TimeoutError as error:
            raise ServerError(
                f"a run took over {limit:.0f} s: see --limit\n{server.log_tail()}"
            ) from error
    timing = stopwatch.timing(prompt)
    timing.resident, timing.card = peaks["resident"], peaks["card"]
    return timing


def make_models(options: argparse.Namespace, base: Path) -> tuple[str, ...]:
    """Make the small checkpoints, or have the server read a folder; return flags for the server."""
    if not options.models:
        write_small_files(options.comfyui, base / "models")
        return ()
    folders = {"base_path": str(options.models.resolve()), **{name: name for name in MODEL_FOLDERS}}
    paths = base / "models.yaml"
    paths.write_text(json.dumps({"benchmark": folders}), encoding="utf-8")
    return ("--extra-model-paths-config", str(paths))


def measure(
    options: argparse.Namespace, prompt: dict, base: Path
) -> tuple[dict[str, list[Timing]], str]:
    """Timings of the runs by the names of the table's columns, and ComfyUI's version; a server for
    each pair of runs.

    Of the third column only the stage "decode" counts: it is that of the sound.
    """
    flags = make_models(options, base)
    columns: dict[str, list[Timing]] = {"cold": [], "warm": [], "sound": []}
    for index in range(options.runs):
        with running_server(
            options.comfyui, base, cpu=not torch.cuda.is_available(), flags=flags
        ) as server:
            version = server.get("/system_stats")["system"]["comfyui_version"]
            first, second = (with_seed(prompt, 2 * index + i) for i in range(2))
            for name, given in zip(columns, (first, second, with_sound_alone(second)), strict=True):
                columns[name].append(run(server, given, options.limit))
        print(f"{index + 1} of {options.runs} done", file=sys.stderr, flush=True)
    return columns, version


def middle(timings: list[Timing], stage: str) -> float:
    """Median seconds of a stage."""
    return statistics.median(timing.stages.get(stage, 0.0) for timing in timings)


def print_table(columns: dict[str, list[Timing]]) -> None:
    """Print medians of all runs: seconds and shares of each stage, time of a step, memory."""
    shown = [columns["cold"], columns["warm"]]
    totals = [statistics.median(timing.total for timing in timings) for timings in shown]
    print("| stage | cold s | share | warm s | share |")
    print("|---|---|---|---|---|")

    def line(name: str, *seconds: float) -> None:
        cells = [f"{x:.2f} | {x / total:.1%}" for x, total in zip(seconds, totals, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")

    for stage in [stage for stage, _ in STAGES] + [OTHER]:
        line(stage, *(middle(timings, stage) for timings in shown))
        if stage == "decode":
            sound = middle(columns["sound"], stage)
            print(f"| of that sound, by itself | | | {sound:.2f} | {sound / totals[1]:.1%} |")
    line("whole run", *totals)
    print()
    for name, timings in zip(("cold", "warm"), shown, strict=True):
        steps = [seconds for timing in timings for seconds in timing.steps]
        step = f"{statistics.median(steps):.3f} s a sampling step, " if steps else ""
        card = max(timing.card for timing in timings)
        print(
            f"{name}: {step}peak of resident memory "
            f"{max(timing.resident for timing in timings) / GIB:.2f} GiB"
            + (f", of card memory {card / GIB:.2f} GiB" if card else "")
        )


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument(
        "--workflow", type=Path, default=WORKFLOW, help="an API-format workflow with one Ovi Decode"
    )
    parser.add_argument(
        "--runs", type=positive, default=3, help="servers started, each for a cold and a warm run"
    )
    parser.add_argument(
        "--models", type=Path, help="a ComfyUI models folder; small random files if left out"
    )
    for name in FILES:
        parser.add_argument(f"--{name.replace('_', '-')}", help="name of a file in that folder")
    for name in NUMBERS:
        parser.add_argument(f"--{name}", type=positive, help="as in the workflow if left out")
    parser.add_argument(
        "--limit", type=float, default=7200, help="seconds after which a run has failed"
    )
    options = parser.parse_args()
    options.comfyui = options.comfyui.resolve()
    return options


def main() -> int:
    """Measure and print; return the exit status."""
    options = parse_options()
    prompt = with_settings(json.loads(options.workflow.read_text(encoding="utf-8")), options)
    try:
        with tempfile.TemporaryDirectory(prefix="ovi-end-to-end-") as base:
            columns, version = measure(options, prompt, Path(base))
    except (DemoError, RuntimeError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{command()}\n\n{machine()}, ComfyUI {version}; medians of {options.runs} runs\n")
    print_table(columns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
