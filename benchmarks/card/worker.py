"""Measures rows in a process of its own and writes each result as a line of JSON.

A row that fails is a result too: its sentence. If the process itself ends, the runner says so for
the row that was under way and starts another with the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from . import boot
from .machine import Machine
from .networks import UnavailableError
from .rows import Row, all_rows


def measures() -> dict[str, Callable[[Row, Machine], dict]]:
    """Who measures each kind; imported late, for they need ComfyUI."""
    from . import decoding, forwards, goldens, whole_clips

    return {
        "golden": goldens.measure,
        "forward": forwards.measure,
        "clip": whole_clips.measure,
        "decode": decoding.measure,
    }


def measure(row: Row, machine: Machine) -> dict:
    """Return what a row came to; never raises what a row may end with."""
    try:
        return measures()[row.kind](row, machine)
    except (UnavailableError, ArithmeticError) as error:
        found = sentence(error)
    except Exception as error:  # noqa: BLE001 - whatever a card, driver or core comes up with
        found = f"{type(error).__name__}: {sentence(error)}"
    # Outside, for the error keeps what its frames held.
    machine.free()
    return {"failed": found}


def sentence(error: Exception) -> str:
    """The first line of what an error says, of a length that fits a table."""
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0].replace("|", "/")[:200]


def describe(machine: Machine) -> dict:
    """What the rows are measured on."""
    import comfyui_version
    from command_line import machine as describe_machine

    about = {
        "machine": describe_machine(),
        "comfyui": comfyui_version.__version__,
        "torch": torch.__version__,
        "small": machine.small,
    }
    if not machine.is_card:
        return about
    card = torch.cuda.get_device_properties(machine.device)
    return about | {
        "card": card.name,
        "capability": f"{card.major}.{card.minor}",
        "gib": round(card.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }


def work(
    names: Iterable[str],
    results: Path,
    comfyui: Path | None,
    packed: Path | None,
    cpu: bool,
    small: bool,
) -> None:
    """Measure the rows of these names in turn; results: the file that lines are added to."""
    machine = Machine(boot.start(comfyui, packed, cpu), small)
    rows = {row.name: row for row in all_rows()}
    with results.open("a", encoding="utf-8") as lines:

        def write(line: dict) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        write({"about": describe(machine)})
        for name in names:
            write({"begun": name})
            write({"row": name, **measure(rows[name], machine)})
