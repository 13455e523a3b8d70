"""Runs rows in worker processes within a limit of time, and goes on where the last call stopped."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .rows import Row

BENCHMARKS = Path(__file__).resolve().parents[1]
# The longest a row may take, in seconds; a compiler at full size takes minutes.
ROW_LIMIT = 300.0
LOOK_EVERY = 0.05


@dataclass
class State:
    """What was measured so far, kept in a file."""

    path: Path
    about: dict = field(default_factory=dict)
    rows: dict[str, dict] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> State:
        """Read it, or begin anew where there is none."""
        if not path.is_file():
            return cls(path)
        kept = json.loads(path.read_text(encoding="utf-8"))
        return cls(path, kept["about"], kept["rows"])

    def write(self) -> None:
        text = json.dumps({"about": self.about, "rows": self.rows}, indent=1)
        self.path.write_text(text + "\n", encoding="utf-8")


@dataclass
class Runner:
    """Measures what is not yet in the state.

    command: starts a worker; the file for its results follows, and names of rows come as JSON.
    """

    state: State
    command: list[str]
    limit: float
    row_limit: float = ROW_LIMIT
    say: Callable[[str], None] = print
    clock: Callable[[], float] = time.monotonic

    def run(self, rows: list[Row]) -> list[str]:
        """Measure rows until the time is over; return the names of those left."""
        end = self.clock() + self.limit
        is_over = False
        while (left := self._left(rows)) and not is_over:
            is_over = self.clock() >= end or not self._run_worker(left, end)
        return left

    def _left(self, rows: list[Row]) -> list[str]:
        return [row.name for row in rows if row.name not in self.state.rows]

    def _run_worker(self, names: list[str], end: float) -> bool:
        """Run one worker over the rows; return False when the time was over."""
        folder = self.state.path.parent
        results, errors = folder / "worker.jsonl", folder / "worker.log"
        results.unlink(missing_ok=True)
        results.touch()
        with errors.open("w", encoding="utf-8") as log:
            worker = subprocess.Popen(
                [*self.command, str(results)],
                cwd=BENCHMARKS,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
            )
            worker.stdin.write(json.dumps(names))
            worker.stdin.close()
            follower, stopped = _Follower(self, results), ""
            while worker.poll() is None and not stopped:
                time.sleep(LOOK_EVERY)
                follower.look()
                stopped = "time" if self.clock() >= end else "row" * follower.is_stuck()
            if stopped:
                worker.kill()
                worker.wait()
            follower.look()
        if worker.returncode == 0 or stopped == "time":
            return not stopped
        if follower.begun is None:
            raise SystemExit(f"The worker ended before a row began:\n{_last_lines(errors)}")
        why = (
            f"took longer than {self.row_limit:.0f} s"
            if stopped
            else f"the process ended: {_last_lines(errors, 1)}"
        )
        follower.note({"row": follower.begun, "failed": why})
        return True


class _Follower:
    """Reads a worker's lines as they come."""

    def __init__(self, runner: Runner, path: Path):
        self.runner, self.path, self.read = runner, path, 0
        self.begun: str | None = None
        self.since = self.runner.clock()

    def look(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        whole = text.rfind("\n") + 1
        for line in text[self.read : whole].splitlines():
            self.note(json.loads(line))
        self.read = whole

    def note(self, line: dict) -> None:
        """Take in a line: what is measured on, a row begun, or a result."""
        state = self.runner.state
        if "about" in line:
            state.about = line["about"]
        elif "begun" in line:
            self.begun, self.since = line["begun"], self.runner.clock()
        else:
            name = line.pop("row")
            state.rows[name] = line
            state.write()
            self.begun, self.since = None, self.runner.clock()
            self.runner.say(f"{name}: {line.get('failed') or 'measured'}")

    def is_stuck(self) -> bool:
        return self.runner.clock() - self.since > self.runner.row_limit


def _last_lines(log: Path, count: int = 15) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(lines[-count:]).replace("|", "/") or "it said nothing"
