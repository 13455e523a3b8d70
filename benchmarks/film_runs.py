"""Makes a film of 12 shots, kills the run when shot 7 is being made, takes it up, and compares it
with a film that was left alone; judges the sound of the whole film; changes one shot.

Usage: python benchmarks/film_runs.py --comfyui PATH [--workers 2]

Run it with ComfyUI's python. Shots 3, 6, 7 and 11 go on from the ones before. The film that was
killed is made by so many workers, the one left alone by one: both must have the same bytes. Then
shot 5 gets another seed, and only it, 6 and 7 may be made. Ends with status 1 if a shot is made
twice or without need, if bytes differ, if memory grows by more than 50 MB after shot 3, or if all
of Wilson's interval of the sounds in step is below 90 %. Memory is also looked at with 12 shots of
5 s at the released size, 704 x 704, of one colour a frame.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from batch_runs import PATIENCE, REPOSITORY, WORKFLOW, ended, read_lines, start, wait_for
from command_line import command, machine, positive

sys.path.append(str(REPOSITORY / "tools"))

from contact_sheet import read_sound
from find_comfyui import import_extension

import_extension()
from comfyui_ovi.batch.shot_file import sample_at, write_shot  # noqa: E402
from comfyui_ovi.miniature.training import world  # noqa: E402
from comfyui_ovi.miniature.training.asked import read_frames  # noqa: E402
from comfyui_ovi.miniature.training.figures import wilson  # noqa: E402
from comfyui_ovi.miniature.training.judge import IN_SYNC, Verdict, judge  # noqa: E402

SHOTS = 12
CONTINUED = (3, 6, 7, 11)
KILLED, CHANGED, FOLLOWERS = 7, 5, (6, 7)
INTO_THE_SHOT = 1.0  # seconds; a shot takes several
SECONDS = 1.0  # that a shot adds to the one before: 13 frames held and 24 new are a trained clip
STRIDE = 5  # takes every kind of scene in turn: it has no divisor in common with their numbers
FIRST_SEED = 1000
# Whole clips of the miniature have 97 % of their sounds in step, joins in a row 82 to 98 %:
# miniature/training/RESULTS.md.
IN_STEP = 0.9
MOST_MEGABYTES = 50  # that the film may take more at its end than at shot 3
LARGE, LARGE_FRAMES = 704, 121  # pixels and frames of a released model's shot of 5 s
FILM = "film.mkv"  # FFV1 and PCM: equal pictures give equal bytes, see REPEATABLE


@dataclass(frozen=True)
class Take:
    """What is between two cuts: a scene that goes on, in shots of these numbers."""

    scene: world.Scene
    shots: range


def takes() -> list[Take]:
    """Return the film's takes, of scenes that training never saw.

    Those of more than one shot have no ball: once at rest it bounces no more in the world that the
    miniature knows.
    """
    going_on = [one for one in world.HELD_OUT_SCENES if one.count == 2 and one.thing != "ball"]
    begins = [shot for shot in range(1, SHOTS + 1) if shot not in CONTINUED]
    found = []
    for number, (first, end) in enumerate(zip(begins, [*begins[1:], SHOTS + 1], strict=True)):
        scenes = going_on if end - first > 1 else world.HELD_OUT_SCENES
        found.append(Take(scenes[STRIDE * number % len(scenes)], range(first, end)))
    return found


def write_film(path: Path, changed: int | None = None) -> Path:
    """Write the film.yaml; a changed shot has another seed."""
    shots = []
    for take in takes():
        for shot in take.shots:
            entry = {"prompt": take.scene.caption(), "seed": FIRST_SEED + shot}
            if shot != take.shots[0]:
                # Held frames count as an event, as in continuation_figures.next_caption: two new.
                caption = replace(take.scene, count=3).caption()
                entry |= {"prompt": caption, "transition": "continue", "seconds": SECONDS}
            entry["seed"] += SHOTS * (shot == changed)
            shots.append(entry)
    path.write_text(yaml.safe_dump({"workflow": str(WORKFLOW), "shots": shots}))
    return path


def kill_in_shot(process: subprocess.Popen, out: Path, shot: int, temporary: Path) -> list[int]:
    """Kill a run when a shot that goes on from another is being made; return the shots that were
    done then.

    temporary: the run's folder for temporary files.
    """

    def before(lines: list[dict]) -> list[str]:
        return [line["id"] for line in lines if line["row"] == shot - 1]

    (name,) = before(wait_for(process, out / "results.jsonl", lambda lines: bool(before(lines))))
    end = time.monotonic() + PATIENCE
    # ComfyUI's input folder has the end of the shot before while the shot is made.
    while not any(path.stat().st_size for path in temporary.glob(f"ovi-*/input/{name}.mkv")):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"shot {shot} was not begun:\n{out.with_suffix('.log').read_text()}")
        time.sleep(0.05)
    time.sleep(INTO_THE_SHOT)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return sorted(line["row"] for line in read_lines(out / "results.jsonl"))


def made(out: Path) -> list[int]:
    """Return the shots that were made, in order; a shot that was made twice is there twice."""
    return [line["row"] for line in read_lines(out / "attempts.jsonl") if not line["error"]]


def compare(out: Path, alone: Path) -> dict[str, int]:
    """Return by what a film that was killed and taken up differs from one left alone."""
    times = Counter(made(out))
    clips = {path.name: path.read_bytes() for path in (out / "clips").iterdir()}
    expected = {path.name: path.read_bytes() for path in (alone / "clips").iterdir()}
    return {
        "films unlike the one left alone": (out / FILM).read_bytes() != (alone / FILM).read_bytes(),
        "files of shots unlike": sum(
            clips.get(name) != expected.get(name) for name in clips | expected
        ),
        "shots not made": sum(not times[shot] for shot in range(1, SHOTS + 1)),
        "shots made twice": sum(number > 1 for number in times.values()),
    }


def compare_changed(before: list[int], after: list[int]) -> dict[str, int]:
    """Return what was made wrongly when one shot was changed; before and after: what was made."""
    new, wanted = Counter(after[len(before) :]), Counter((CHANGED, *FOLLOWERS))
    return {
        "shots made without need": (new - wanted).total(),
        "changed shots not made anew": (wanted - new).total(),
    }


def judge_takes(out: Path, late: int = 0) -> list[Verdict]:
    """Judge each take as the film has it.

    late: frames by which the sound is heard too late, to see that the judge would tell.
    """
    ends = [0, *(line["frames"] for line in read_lines(out / "assembly.jsonl"))]
    frames = read_frames(out / FILM)
    sound = torch.from_numpy(read_sound(out / FILM)[0].samples)
    found = []
    for take in takes():
        begin, end = ends[take.shots.start - 1], ends[take.shots.stop - 1]
        first, last = (sample_at(frame, world.SAMPLE_RATE) for frame in (begin, end))
        heard = sound[first:last].roll(sample_at(late, world.SAMPLE_RATE))
        found.append(judge(frames[begin:end], heard, take.scene))
    return found


def in_step(verdicts: list[Verdict]) -> tuple[int, int]:
    """Return how many sounds are within a frame of what is seen, and how many there are."""
    errors = [error for verdict in verdicts for error in verdict.errors]
    return sum(error <= IN_SYNC for error in errors), len(errors)


def share(good: int, count: int) -> str:
    """Return a share in words, with Wilson's interval of 95 %."""
    low, high = (100 * edge for edge in wilson(good, count))
    return f"{good} of {count}, {100 * good / max(1, count):.1f} % ({low:.0f}-{high:.0f})"


def describe(verdicts: list[Verdict]) -> list[str]:
    """Return a line a take."""
    lines = []
    for take, verdict in zip(takes(), verdicts, strict=True):
        scene, good = take.scene, in_step([verdict])[0]
        shots = "-".join(map(str, sorted({take.shots[0], take.shots[-1]})))
        lines.append(
            f"shot {shots:6} {scene.colour} {scene.thing}, {scene.pitch}: {len(verdict.seen)} "
            f"seen, {len(verdict.heard)} heard, {good} in step"
        )
    return lines


def judged(out: Path) -> tuple[dict[str, int], list[str]]:
    """Judge the sync of a film; return the faults, and lines with the figures."""
    verdicts = judge_takes(out)
    good, count = in_step(verdicts)
    faults = {
        "takes without a sound": sum(not verdict.heard for verdict in verdicts),
        "sync below 90 %": wilson(good, count)[1] < IN_STEP,
    }
    figures = [
        *describe(verdicts),
        f"sounds within 42 ms of what is seen: {share(good, count)}",
        f"the same, sound two frames late: {share(*in_step(judge_takes(out, late=2)))}",
    ]
    return faults, figures


def assemble_large(folder: Path) -> list[dict]:
    """Assemble a film of shots at the released size; return what is told of it, a line a shot."""
    shot = folder / "large.mkv"
    pictures = [np.full((LARGE, LARGE, 3), 2 * n, np.uint8) for n in range(LARGE_FRAMES)]
    sound = np.zeros(sample_at(LARGE_FRAMES, world.SAMPLE_RATE), np.float32)
    write_shot(shot, pictures, sound, world.SAMPLE_RATE)
    done = subprocess.run(
        [sys.executable, REPOSITORY / "batch/assemble.py", folder / "large.mp4"],
        input=json.dumps([{"path": str(shot), "lead": 0}] * SHOTS),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def memory(told: list[dict]) -> tuple[int, str]:
    """Return by how many MB too many the assembling grew after shot 3, and a line that says it."""
    third, last = told[2]["megabytes"], told[-1]["megabytes"]
    line = f"{third:.0f} MB after shot 3, {last:.0f} at the end of {told[-1]['frames']} frames"
    return max(0, round(last - third) - MOST_MEGABYTES), line


def run(comfyui: Path, base: Path, workers: int) -> tuple[dict[str, int], list[str]]:
    """Do all runs; return the faults, and lines with the figures."""
    table, out, alone = write_film(base / "film.yaml"), base / "killed", base / "alone"
    changed = write_film(base / "changed.yaml", changed=CHANGED)
    figures, statuses = [], []

    def timed(label: str, table: Path, out: Path, workers: int, kill: bool = False) -> None:
        begin = time.monotonic()
        process = start(comfyui, table, out, workers, "--film", FILM)
        try:
            if kill:
                done = kill_in_shot(process, out, KILLED, base)
                label += f", done: {', '.join(map(str, done))}"
                statuses.append(KILLED in done or (out / FILM).exists())
            else:
                statuses.append(ended(process))
        finally:
            process.kill()
        figures.append(f"{time.monotonic() - begin:4.0f} s  {label}")

    timed(f"{workers} workers, killed in shot {KILLED}", table, out, workers, kill=True)
    timed("the same command again", table, out, workers)
    timed("one worker, left alone", table, alone, 1)
    faults = compare(out, alone)
    for size, told in (
        ("64 x 64", read_lines(alone / "assembly.jsonl")),
        (f"{LARGE} x {LARGE}", assemble_large(base)),
    ):
        faults[f"MB too much, {size}"], line = memory(told)
        figures.append(f"assembling {size}: {line}")
    found, lines = judged(alone)
    faults |= found
    figures += lines
    before = made(out)
    timed(f"shot {CHANGED} changed", changed, out, workers)
    faults |= compare_changed(before, made(out))
    faults["statuses that are wrong"] = sum(map(bool, statuses))
    return faults, figures


def main() -> int:
    """Parse the command line, run, print what came of it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--workers", type=positive, default=2, help="of the run that is killed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="film-", ignore_cleanup_errors=True) as base:
        # What a killed worker leaves behind goes with the folder. Ray has no room for a long name.
        os.environ["TMPDIR"] = base
        faults, figures = run(options.comfyui.resolve(), Path(base), options.workers)
    print(command(), machine(), *figures, sep="\n")
    for name, number in faults.items():
        print(f"{int(number):4d}  {name}")
    return 1 if any(faults.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
