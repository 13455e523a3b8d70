"""Jobs: one workflow with the values of one row, known by the hash of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .job_table import Row
from .workflow import Place, Workflow

ID_LENGTH = 20  # hexadecimal digits: 80 bits, a collision in 1e6 jobs has a chance of 4e-13
# Inputs that decide how large a clip is; jobs that share them run one after the other.
SIZES = {"width", "height", "length", "seconds", "batch_size"}
MODELS = (".safetensors", ".gguf", ".pth", ".pt", ".ckpt", ".sft", ".bin")


@dataclass(frozen=True)
class Job:
    """One clip to be made.

    id: hash of workflow, values and files. row: of the table. values: as written, by column.
    changes: what is set in the workflow. files: what ComfyUI's input folder must hold, by the name
    there. group: jobs that are alike here are cheapest one after the other. after: the id of the
    job whose end this one goes on from, if any.
    """

    id: str
    row: int
    values: dict[str, Any]
    workflow: Workflow
    changes: dict[Place, Any]
    files: dict[str, Path] = field(default_factory=dict)
    group: tuple = ()
    after: str = ""

    @property
    def prompt(self) -> dict[str, dict]:
        """What ComfyUI is asked to run."""
        return self.workflow.patched(self.changes)


@dataclass(frozen=True)
class Refusal:
    """A row that is not run, and why."""

    row: int
    error: str


def make_jobs(
    rows: Iterable[Row], workflow: Workflow, folder: Path
) -> tuple[list[Job], list[Refusal]]:
    """Return a job for each sound row, and a refusal with all faults for each other one.

    folder: files that rows name are looked for there. Rows that say the same are one job.
    """
    jobs: dict[str, Job] = {}
    refusals = []
    for row in rows:
        try:
            job = make_job(row, workflow, folder)
        except ValueError as error:
            refusals.append(Refusal(row.number, str(error)))
            continue
        jobs.setdefault(job.id, job)
    return list(jobs.values()), refusals


def make_job(row: Row, workflow: Workflow, folder: Path, after: str = "") -> Job:
    """Return the job of one row; raises ValueError with every fault of the row."""
    changes: dict[Place, Any] = {}
    files: dict[str, Path] = {}
    faults = [row.fault] if row.fault else []
    for address, given in row.values.items():
        try:
            place = workflow.find(address)
            value = workflow.convert(address, place, given)
            if place in changes:
                raise ValueError(f"column '{address}' sets an input that another column sets too.")
            if workflow.takes_file(place):
                path = _existing(address, folder / value)
                value = f"{_hash_of_file(path)[:ID_LENGTH]}{path.suffix.lower()}"
                files[value] = path
            changes[place] = value
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError(" ".join(faults))
    return Job(
        id=job_id(workflow, changes, after),
        row=row.number,
        values=row.values,
        workflow=workflow,
        changes=changes,
        files=files,
        group=group_of(changes),
        after=after,
    )


def job_id(workflow: Workflow, changes: dict[Place, Any], after: str = "") -> str:
    """Return the hash of a workflow, the values set in it and the job it goes on from.

    Titles and the order of nodes do not count; files count by their content.
    """
    nodes = {
        node: {"class_type": what["class_type"], "inputs": what["inputs"]}
        for node, what in workflow.patched(changes).items()
    }
    text = json.dumps([nodes, after], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def group_of(changes: dict[Place, Any]) -> tuple:
    """Return the model files and sizes that a row sets."""
    models = {
        (place, value)
        for place, value in changes.items()
        if isinstance(value, str) and value.endswith(MODELS)
    }
    sizes = {(place, value) for place, value in changes.items() if place.name in SIZES}
    return (tuple(sorted(models)), tuple(sorted(sizes)))


def _existing(address: str, path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"column '{address}': the file {path} does not exist.")
    return path.resolve()


def _hash_of_file(path: Path) -> str:
    about = path.stat()
    return _hash_of(path, about.st_size, about.st_mtime_ns)


@cache
def _hash_of(path: Path, size: int, changed: int) -> str:  # noqa: ARG001
    """Hash a file once while it stays as it is; size and changed are there for the cache."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
