"""Rows of jobs from a CSV file, a file of JSON lines, or a folder of pictures and sounds."""

from __future__ import annotations

import csv
import json
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a file of a folder is to a workflow, by the kind of the file.
FOLDER_COLUMNS = {"image": "picture", "audio": "sound", "video": "film", "text": "prompt"}


class TableError(Exception):
    """A table that cannot be read at all."""


@dataclass(frozen=True)
class Row:
    """One job as it was written. number: the row's, from 1; the header of a CSV is not counted.

    fault: why it cannot be read, else empty.
    """

    number: int
    values: dict[str, Any]
    fault: str = ""


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a .csv, .jsonl or folder; raise TableError when it is none of these."""
    if path.is_dir():
        return _read_folder(path)
    readers = {".csv": _read_csv, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines}
    if path.suffix.lower() not in readers:
        raise TableError(
            f"{path} is no table of jobs: expected a .csv, a .jsonl (one JSON object a line) or a "
            "folder of pictures and sounds."
        )
    if not path.is_file():
        raise TableError(f"{path} does not exist: give the table of jobs.")
    rows = list(readers[path.suffix.lower()](path))
    if not rows:
        raise TableError(f"{path} holds no jobs: write one a row.")
    return rows


def _read_csv(path: Path) -> Iterator[Row]:
    """Read a CSV with a header; an empty cell leaves the workflow's own value."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, cells in enumerate(csv.DictReader(file), start=1):
            extra = cells.pop(None, None)
            fault = f"it has {len(extra)} cells more than the header" if extra else ""
            values = {name: cell for name, cell in cells.items() if cell not in (None, "")}
            yield Row(number, values, fault)


def _read_json_lines(path: Path) -> Iterator[Row]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate((line for line in lines if line.strip()), start=1):
        try:
            values = json.loads(line)
        except ValueError as error:
            yield Row(number, {}, f"it is no JSON: {error}")
            continue
        fault = "" if isinstance(values, dict) else "it is no JSON object: write {...}"
        yield Row(number, {} if fault else values, fault)


def _read_folder(path: Path) -> list[Row]:
    """Files with one stem are one job: a.png, a.wav and a.txt start, sound and tell of one clip."""
    jobs: dict[str, dict[str, Any]] = {}
    for file in sorted(path.iterdir()):
        kind = (mimetypes.guess_type(file.name)[0] or "").split("/")[0]
        if file.is_file() and kind in FOLDER_COLUMNS:
            is_text = kind == "text"
            value = file.read_text(encoding="utf-8").strip() if is_text else file.name
            jobs.setdefault(file.stem, {})[FOLDER_COLUMNS[kind]] = value
    if not jobs:
        raise TableError(f"{path} holds no pictures, sounds or texts that a job could be made of.")
    return [Row(number, values) for number, values in enumerate(jobs.values(), start=1)]
