"""Runs a table of jobs on two workers and kills what works, then on one worker left alone, and
counts what came of every row.

Usage: python benchmarks/batch_runs.py --comfyui PATH [--jobs 200] [--bad 20]

Run it with ComfyUI's python. A third of the way one ComfyUI is killed (kill -9), and two thirds of
the way the other worker itself. Afterwards every good row must have one clip, equal byte by byte to
that of the single ComfyUI, every bad row must be named, and the same command must make none.
Ends with status 1 if anything is lost, doubled, different or left unnamed.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from command_line import command, machine, positive

REPOSITORY = Path(__file__).resolve().parents[1]
WORKFLOW = REPOSITORY / "workflows" / "api" / "Ovi_13_All_nodes_miniature.json"
SEED = "RandomNoise.noise_seed"
SHORT = {"Ovi Latent.length": 9, "Ovi Scheduler.steps": 2}
# Encoders that give equal bytes for equal pictures. libx264 may not: on a processor with AVX-512
# its macroblock tree reads memory that nothing wrote (seen with PyAV 18.1).
REPEATABLE = {"Ovi Save Video.format": "mov"}
# What a bad row sets -> what must be said of it.
FAULTS = [
    ({"Ovi Latent.lenght": 9}, "has no input 'lenght'"),
    ({"Ovi Scheduler.steps": "two"}, "expected a number"),
    ({"Load Image.image": "absent.png"}, "no node 'Load Image'"),
    ({"Ovi Text Encode.prompt": "She says <S>Hello."}, "'<S>' at line 1"),
    ({"Ovi Latent.width": 40}, "must be a multiple of 32"),
    # No check before the run finds this one.
    ({"Ovi Save Video.filename_prefix": "../outside"}, "leads out of ComfyUI's output folder"),
]
LOST = "ended while it made the clip"
# What the slowest machine may take from one event to the next, in seconds.
PATIENCE = 1800


def write_table(path: Path, rows: list[dict]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def good_rows(number: int) -> list[dict]:
    """Return rows of the miniature at two steps and nine frames, a seed each."""
    return [SHORT | REPEATABLE | {SEED: seed} for seed in range(number)]


def bad_rows(number: int) -> list[tuple[dict, str]]:
    """Return rows with a fault each, and what must be said of it."""
    return [
        (SHORT | {SEED: 1000 + seed} | fault, words)
        for seed, (fault, words) in zip(range(number), itertools.cycle(FAULTS), strict=False)
    ]


def start(
    comfyui: Path,
    table: Path,
    out: Path,
    workers: int | str,
    *flags: str,
    within: Callable[[list], list[str]] = list,
    **variables: str,
) -> subprocess.Popen:
    """Start batch/run.sh with this Python's ComfyUI; its words go to a .log beside out.

    within: makes the command one that runs elsewhere. variables: of the environment.
    """
    environment = os.environ | {"COMFYUI_PATH": str(comfyui), "COMFYUI_PYTHON": sys.executable}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    line = ["bash", REPOSITORY / "batch/run.sh", table, "--workflow", WORKFLOW, "--out", out]
    line += ["--workers", str(workers), *flags]  # another --workflow counts in place of the first
    with out.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(within(line), env=environment, stdout=log, stderr=log)


def read_lines(path: Path) -> list[dict]:
    """Return the whole lines of a file that is being written."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def wait_for(
    process: subprocess.Popen, path: Path, condition: Callable[[list[dict]], bool]
) -> list[dict]:
    """Return the lines of a file as soon as they meet a condition; raises RuntimeError with the log
    when the run ends before.
    """
    end = time.monotonic() + PATIENCE
    while not condition(lines := read_lines(path)):
        if process.poll() is not None or time.monotonic() > end:
            log = path.parent.with_suffix(".log").read_text()
            raise RuntimeError(f"{path.name} did not come so far:\n{log}")
        time.sleep(0.05)
    return lines


def kill_both(process: subprocess.Popen, out: Path, jobs: int) -> list[dict]:
    """Kill ComfyUI of one worker a third of the way, the other worker two thirds; return what both
    workers said of themselves first.
    """
    up = wait_for(process, out / "workers.jsonl", lambda lines: len(lines) >= 2)
    wait_for(process, out / "results.jsonl", lambda lines: len(lines) >= max(1, jobs // 3))
    os.kill(up[0]["comfyui_process"], signal.SIGKILL)
    wait_for(process, out / "results.jsonl", lambda lines: len(lines) >= 2 * jobs // 3)
    os.kill(up[1]["worker_process"], signal.SIGKILL)
    return up


def count(
    out: Path, alone: Path, good: int, bad: list[tuple[dict, str]], failures: list[dict]
) -> dict[str, int]:
    """Return how many clips were made, and every kind of fault, by name."""
    done = Counter(line["id"] for line in read_lines(out / "results.jsonl"))
    clips = {path.name: path.read_bytes() for path in (out / "clips").iterdir()}
    expected = {path.name: path.read_bytes() for path in (alone / "clips").iterdir()}
    failed = {line["row"]: line["error"] for line in failures}
    named = [words in failed.get(good + n, "") for n, (_, words) in enumerate(bad, start=1)]
    return {
        "clips": len(clips),
        "bad rows named": sum(named),
        "rows lost": good - len(done),
        "rows done twice": sum(times - 1 for times in done.values()),
        "good rows that failed": len([row for row in failed if row <= good]),
        "clips unlike those of one ComfyUI": sum(
            clips.get(name) != content for name, content in expected.items()
        ),
        "bad rows not named": len(bad) - sum(named),
    }


def ended(process: subprocess.Popen) -> int:
    """Wait for a run to end; return its status."""
    try:
        return process.wait(PATIENCE * 4)
    finally:
        process.kill()


def run(comfyui: Path, base: Path, jobs: int, bad: int) -> tuple[dict[str, int], list[str]]:
    """Do all runs; return the count, and lines with the figures."""
    faults = bad_rows(bad)
    table = write_table(base / "all.jsonl", good_rows(jobs) + [row for row, _ in faults])
    good = write_table(base / "good.jsonl", good_rows(jobs))
    out, alone, figures = base / "two", base / "one", []

    def timed(label: str, table: Path, out: Path, workers: int, kill: bool = False) -> int:
        begin = time.monotonic()
        process = start(comfyui, table, out, workers)
        if kill:
            kill_both(process, out, jobs)
        status = ended(process)
        figures.append(f"{time.monotonic() - begin:6.0f} s  {label}, status {status}")
        return status

    first = timed("two workers, both killed", table, out, 2, kill=True)
    failures = read_lines(out / "failed.jsonl")  # that of the next run is of its own rows
    again = timed("the same again, good rows only", good, out, 2)
    single = timed("one worker", good, alone, 1)
    attempts = read_lines(out / "attempts.jsonl")
    lost = sum(LOST in line["error"] for line in attempts)
    figures.append(f"{len(attempts):6d} attempts, {lost} of them lost")
    counted = count(out, alone, jobs, faults, failures)
    counted["statuses that are wrong"] = [first, again, single] != [1 if bad else 0, 0, 0]
    return counted, figures


def main() -> int:
    """Parse the command line, run, print the count; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--jobs", type=positive, default=200, help="good rows")
    parser.add_argument("--bad", type=positive, default=20, help="bad rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ovi-batch-runs-") as base:
        counted, figures = run(options.comfyui.resolve(), Path(base), options.jobs, options.bad)
    print(command(), machine(), *figures, sep="\n")
    for name, number in counted.items():
        print(f"{number:6d}  {name}")
    made, named, *faults = counted.values()
    return 0 if (made, named) == (options.jobs, options.bad) and not any(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
