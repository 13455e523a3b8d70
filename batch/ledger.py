"""What a folder of clips knows: which jobs are done, which failed, and every attempt.

results.jsonl is the state: a line is added when a clip lies under its name, and a job whose line
and files are there is done. One process at a time writes; the folder's lock sees to it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .job import Job, Refusal


class LedgerError(Exception):
    """The folder cannot be used; the message says why."""


class Ledger:
    """The folder that clips are made in. Use it in a with statement."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.clips = folder / "clips"
        self.done: dict[str, dict] = {}

    def __enter__(self) -> Ledger:
        self.clips.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise LedgerError(f"another run writes to {self.folder}: wait for its end.") from error
        for partial in self.clips.glob(".*.partial"):
            partial.unlink()
        self.done = {
            record["id"]: record
            for record in read_lines(self.folder / "results.jsonl")
            if all((self.folder / name).is_file() for name in record["files"])
        }
        write_whole(self.folder / "results.jsonl", _as_lines(self.done.values()))
        write_whole(self.folder / "failed.jsonl", b"")
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def finish(self, job: Job, files: list[tuple[str, bytes]], figures: dict[str, Any]) -> None:
        """Keep the files of a job (suffix, content), then say that it is done."""
        names = []
        for number, (suffix, content) in enumerate(files):
            path = self.clips / f"{job.id}{f'-{number + 1}' if number else ''}{suffix}"
            write_whole(path, content)
            names.append(path.relative_to(self.folder).as_posix())
        record = {"id": job.id, "row": job.row, "files": names, "values": job.values, **figures}
        self._append("results.jsonl", record)
        self.done[job.id] = record

    def end_of(self, name: str) -> Path:
        """Return the file of a finished shot's last frames, by the id of its job."""
        return self.folder / self.done[name]["files"][1]

    def fail(self, job: Job, error: str, attempts: int) -> None:
        """Say that a job is given up."""
        record = {"id": job.id, "row": job.row, "error": error, "attempts": attempts}
        self._append("failed.jsonl", {**record, "values": job.values})

    def refuse(self, refusal: Refusal) -> None:
        """Say that a row is not run."""
        self._append("failed.jsonl", {"row": refusal.row, "error": refusal.error, "attempts": 0})

    def note(self, name: str, record: dict[str, Any]) -> None:
        """Add a line to attempts.jsonl or workers.jsonl."""
        self._append(name, record)

    def _append(self, name: str, record: dict[str, Any]) -> None:
        with (self.folder / name).open("ab") as file:
            file.write(_as_lines([record]))
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict]:
    """Return the objects of a file of JSON lines; a last line that was cut off does not count."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears under its name when it is whole, or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _as_lines(records: Iterable[dict]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
