"""The results as one Markdown table and one JSON, to paste into an issue."""

from __future__ import annotations

import json

from .rows import Row

VERSION = 1
HEADER = ("row", "seconds", "floor", "ratio", "TFLOP", "TFLOP/s", "peak GiB", "remarks")


def table(rows: list[Row], results: dict[str, dict]) -> str:
    """Every row asked for, also one that was not reached; times in seconds.

    A tilde marks what was reckoned: a floor from its FLOP, a clip from some of its steps.
    """
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    lines += [f"| {row.name} | " + " | ".join(cells(results.get(row.name))) + " |" for row in rows]
    return "\n".join(lines)


def cells(result: dict | None) -> list[str]:
    """The cells of a row after its name."""
    if result is None:
        return [""] * (len(HEADER) - 2) + ["not reached"]
    if "failed" in result:
        return [""] * (len(HEADER) - 2) + [result["failed"]]
    seconds, floor, tflop = (result.get(name) for name in ("seconds", "floor", "tflop"))
    mark = "~" if result.get("is_reckoned") else ""
    floor_mark = "~" if result.get("floor_is_reckoned") else ""
    remarks = [f"error {result['error']:.1e}"] if "error" in result else []
    remarks += [result["note"]] if "note" in result else []
    remarks += ["seconds reckoned from fewer steps"] if mark else []
    return [
        _number(seconds, ".3f", mark),
        _number(floor, ".3f", floor_mark),
        _number(seconds and floor and seconds / floor, ".2f"),
        _number(tflop, ".4g"),
        _number(seconds and tflop and tflop / seconds, ".4g"),
        _number(result.get("peak_gib"), ".2f"),
        "; ".join(remarks),
    ]


def _number(value: float | None, form: str, mark: str = "") -> str:
    return f"{mark}{value:{form}}" if value else ""


def heading(about: dict) -> str:
    """One line on what was measured on."""
    small = "; everything small, a dry run" if about.get("small") else ""
    return f"{about.get('machine', 'nothing measured yet')}, ComfyUI {about.get('comfyui')}{small}"


def as_json(rows: list[Row], about: dict, results: dict[str, dict]) -> str:
    """The same for programs, in one line."""
    measured = {row.name: results[row.name] for row in rows if row.name in results}
    return json.dumps({"version": VERSION, "about": about, "rows": measured})
