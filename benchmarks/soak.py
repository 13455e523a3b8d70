"""Runs a workflow many times in one ComfyUI server and watches whether its memory grows.

Usage: python benchmarks/soak.py --comfyui PATH [--runs 50] [--workflow FILE] [--plot FILE.png]

Run it with ComfyUI's python. Every run loads the small checkpoints, samples, decodes and saves;
then the server is asked to unload its models and drop its results, and its resident memory is read.
Ends with status 1 if it grew.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from PIL import Image, ImageDraw

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / folder) for folder in ("tools", "tests/support")]

from comfy_server import Server, ServerError, running_server  # noqa: E402
from small_files import with_small_files, with_small_picture, write_small_files  # noqa: E402

WORKFLOW = REPOSITORY / "workflows" / "api" / "Ovi_11_One_KSampler.json"
SHORT = {"steps": 3, "length": 25}
MIB = 2**20
# The first runs import libraries and fill the pools of allocators once; these come after, and
# before any slow growth.
SETTLED = slice(5, 10)
LAST = slice(-5, None)
TOLERANCE = 0.02


def run_once(server: Server, prompt: dict, seed: int) -> int:
    """Run the workflow with a seed, free everything, and return the bytes the server's process then
    holds.
    """
    for node in prompt.values():
        given = {**SHORT, "seed": seed, "noise_seed": seed}
        node["inputs"] |= {name: value for name, value in given.items() if name in node["inputs"]}
    server.run(prompt)
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1)  # the server frees between two workflows, and does not tell when it has
    return psutil.Process(server.process.pid).memory_info().rss


def growth(sizes: list[int]) -> float:
    """How much larger the last sizes are than the settled ones, by their medians; negative if
    smaller.
    """
    return statistics.median(sizes[LAST]) / statistics.median(sizes[SETTLED]) - 1


def plot(sizes: list[int], path: Path) -> None:
    """Draw the sizes as a line from zero to a tenth above the largest."""
    width, height, margin = 900, 360, 50
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    top = max(sizes) * 1.1

    def place(index: int, size: float) -> tuple[float, float]:
        across = margin + (width - 2 * margin) * index / max(1, len(sizes) - 1)
        return across, height - margin - (height - 2 * margin) * size / top

    for share in (0, 0.25, 0.5, 0.75, 1):
        y = place(0, top * share)[1]
        draw.line((margin, y, width - margin, y), fill="#dddddd")
        draw.text((4, y - 6), f"{top * share / MIB:.0f}", fill="black")
    draw.line([place(index, size) for index, size in enumerate(sizes)], fill="#1f4e9c", width=2)
    draw.text(
        (margin, 12),
        f"Resident memory of the server in MiB after each of {len(sizes)} runs",
        fill="black",
    )
    draw.text((margin, height - 30), "1", fill="black")
    draw.text((width - margin - 12, height - 30), str(len(sizes)), fill="black")
    picture.save(path)


def soak(comfyui: Path, base: Path, workflow: Path, runs: int) -> list[int]:
    """Run the workflow in a server of its own; return what its process held after each run, in
    bytes.
    """
    prompt = with_small_picture(with_small_files(json.loads(workflow.read_text(encoding="utf-8"))))
    write_small_files(comfyui, base / "models")
    sizes = []
    with running_server(comfyui, base) as server:
        for index in range(runs):
            start = time.monotonic()
            sizes.append(run_once(server, prompt, seed=index))
            print(
                f"run {index + 1:3d}  {sizes[-1] / MIB:8.1f} MiB  {time.monotonic() - start:5.1f} "
                "s",
                flush=True,
            )
    return sizes


def main() -> int:
    """Parse the command line, run, print the verdict; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument(
        "--runs", type=int, default=50, help="15 at least, so that the settled and the last differ"
    )
    parser.add_argument("--workflow", type=Path, default=WORKFLOW, help="an API-format workflow")
    parser.add_argument("--plot", type=Path, help="where to draw the memory over the runs, as PNG")
    options = parser.parse_args()
    if options.runs < 15:
        parser.error("--runs must be 15 or more")
    try:
        with tempfile.TemporaryDirectory(prefix="ovi-soak-") as base:
            sizes = soak(options.comfyui.resolve(), Path(base), options.workflow, options.runs)
    except (RuntimeError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.plot:
        plot(sizes, options.plot)
    grown = growth(sizes)
    flat = grown <= TOLERANCE
    print(
        f"last five runs against runs 6 to 10, medians: {grown:+.2%}: {'flat' if flat else 'GROWN'}"
    )
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
