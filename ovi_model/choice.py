"""One of several named things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def choose(name: str, value: str, choices: Mapping[str, T]) -> T:
    """Return what a choice stands for; ComfyUI 0.3.75 hands on whatever a prompt names, without a look at the list.

    Raises ValueError naming the input and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} is '{value}'; choose one of {', '.join(map(repr, choices))}.")
    return choices[value]
