"""The command line: checks a table of jobs, makes its clips, and says what came of it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from comfy_server import ServerError

from .cluster import cards, joined_cluster
from .comfy_worker import Setup, run_tool
from .film import TAIL_FRAMES, FilmError, read_film
from .job import Job, Refusal, make_jobs
from .job_table import TableError, read_rows
from .ledger import Ledger, LedgerError, read_lines, write_whole
from .order import Order
from .page import write_page
from .pool import Pool, PoolError, Watch
from .progress import Progress
from .room import AUTO, find_room, read_workers
from .workflow import Workflow

FILM_SUFFIXES = (".yaml", ".yml")
FILM_KINDS = (".mp4", ".mkv")
# What is told in a sentence.
PROBLEMS = (TableError, FilmError, LedgerError, PoolError, ServerError, ValueError, OSError)


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when every row is done, 1 when some failed, 2 when nothing could be begun."""
    options = _parser().parse_args(arguments)
    try:
        with Ledger(options.out) as ledger:
            is_film = options.jobs.suffix.lower() in FILM_SUFFIXES
            return (make_film if is_film else make_clips)(options, ledger)
    except PROBLEMS as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="batch/run.sh", description=__doc__)
    parser.add_argument(
        "jobs", type=Path, help="jobs.csv, jobs.jsonl, a folder of files, or film.yaml"
    )
    parser.add_argument(
        "--workflow", type=Path, help="a workflow, API format; a film.yaml names its own"
    )
    parser.add_argument(
        "--film", default="film.mp4", help="name of a film: .mp4, or .mkv without loss"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder for clips and state")
    parser.add_argument(
        "--workers", default=AUTO, help="how many ComfyUI; auto: one for each card, else one"
    )
    parser.add_argument(
        "--cards-per-clip", type=int, default=1, help="cards that one worker gets (default: 1)"
    )
    parser.add_argument(
        "--job-seconds", type=float, default=7200, help="the longest one clip may take"
    )
    parser.add_argument(
        "--flag", action="append", default=[], help="one of ComfyUI's own, as --flag=--lowvram"
    )
    parser.add_argument("--python", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--comfyui", type=Path, required=True, help=argparse.SUPPRESS)
    return parser


def make_clips(options: argparse.Namespace, ledger: Ledger) -> int:
    """Do the jobs of a table that are not done yet; return the exit status."""
    if options.workflow is None:
        raise TableError("give the workflow of these jobs with --workflow")
    rows = read_rows(options.jobs)
    folder = options.jobs if options.jobs.is_dir() else options.jobs.parent
    jobs, refusals = make_jobs(rows, Workflow.read(options.workflow), folder)
    for refusal in refusals:
        _refuse(ledger, refusal)
    to_do = [job for job in jobs if job.id not in ledger.done]
    print(f"{len(rows)} rows, {len(jobs) - len(to_do)} done before, {len(to_do)} to do")
    if to_do:
        do_jobs(options, ledger, to_do)
    failures = read_lines(ledger.folder / "failed.jsonl")
    wanted = {job.id for job in jobs}
    write_page(
        ledger.folder, [record for name, record in ledger.done.items() if name in wanted], failures
    )
    print(f"{len(wanted & ledger.done.keys())} clips in {ledger.folder}, {len(failures)} failed")
    return 1 if failures else 0


def make_film(options: argparse.Namespace, ledger: Ledger) -> int:
    """Do the shots that are not done yet, then put all together; return the exit status."""
    path = ledger.folder / options.film
    if path.suffix not in FILM_KINDS or path.parent != ledger.folder:
        raise FilmError(f"--film {options.film}: expected a name that ends with .mp4 or .mkv.")
    shots = read_film(options.jobs)
    wanted = {shot.job.id: shot.job for shot in shots}
    to_do = [job for name, job in wanted.items() if name not in ledger.done]
    print(f"{len(shots)} shots, {len(to_do)} to do")
    if to_do:
        do_jobs(options, ledger, to_do, TAIL_FRAMES)
    failures = read_lines(ledger.folder / "failed.jsonl")
    if not failures:
        parts = [
            {"path": str(ledger.folder / ledger.done[shot.job.id]["files"][0]), "lead": shot.lead}
            for shot in shots
        ]
        partial = path.with_name(f".partial-{path.name}")
        told = run_tool(options.python, "assemble.py", [str(partial)], json.dumps(parts))
        write_whole(ledger.folder / "assembly.jsonl", told.encode())
        partial.replace(path)
        print(path)
    return 1 if failures else 0


def _refuse(ledger: Ledger, refusal: Refusal) -> None:
    print(f"row {refusal.row}: {refusal.error}", file=sys.stderr)
    ledger.refuse(refusal)


def do_jobs(
    options: argparse.Namespace, ledger: Ledger, jobs: list[Job], tail_frames: int = 0
) -> None:
    """Check the jobs with ComfyUI, then do those that pass; a film's only if all do."""
    asked = read_workers(options.workers)
    with joined_cluster(asked):
        size, on_cards = find_room(asked, options.cards_per_clip, cards())
        setup = Setup(
            options.python, options.comfyui, not on_cards, options.job_seconds, tuple(options.flag)
        )
        progress = Progress(len(jobs), len(ledger.done))
        watch = watch_of(ledger, progress)
        pool = Pool(setup, size, on_cards, watch, ledger.end_of, tail_frames)
        try:
            sound = _checked(pool, ledger, jobs, progress)
            progress.begin()
            if tail_frames and len(sound) < len(jobs):
                return
            pool.run(Order(sound, set(ledger.done)))
        finally:
            pool.close()


def _checked(pool: Pool, ledger: Ledger, jobs: list[Job], progress: Progress) -> list[Job]:
    """Return the jobs that ComfyUI would run, and refuse the others."""
    sound = []
    for job, fault in zip(jobs, pool.faults(jobs), strict=True):
        if fault:
            _refuse(ledger, Refusal(job.row, fault))
            progress.failed += 1
        else:
            sound.append(job)
    return sound


def watch_of(ledger: Ledger, progress: Progress) -> Watch:
    """Return what writes a run down and tells of it."""

    def on_ready(worker) -> None:
        ready = worker.ready
        ledger.note("workers.jsonl", {"worker": worker.number, **vars(ready)})
        print(f"worker {worker.number} on {ready.host} is up after {ready.seconds:.1f} s")

    def on_attempt(worker, job, number, outcome) -> None:
        record = {"id": job.id, "row": job.row, "attempt": number, "worker": worker.number}
        host = worker.ready.host if worker.ready else ""
        about = {"host": host, "comfyui_process": outcome.comfyui_process}
        about |= {"seconds": round(outcome.seconds, 3), "error": outcome.error}
        ledger.note("attempts.jsonl", record | about)

    def on_done(job, outcome, attempts) -> None:
        figures = {"seconds": round(outcome.seconds, 3), "attempts": attempts, "host": outcome.host}
        ledger.finish(job, list(outcome.files), figures)
        progress.done += 1
        print(progress.line(), flush=True)

    def on_failed(job, error, attempts) -> None:
        ledger.fail(job, error, attempts)
        progress.failed += 1
        print(f"row {job.row}: {error}", file=sys.stderr)
        print(progress.line(), flush=True)

    return Watch(on_ready, on_attempt, on_done, on_failed)
