"""Which files the shared workflows ask for, and which nodes that not every ComfyUI has."""

import json
from collections import defaultdict
from collections.abc import Iterable

import pytest
from comfy_server import REPOSITORY
from small_files import SMALL_FILES

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))

# Stock nodes that came after the oldest ComfyUI on which the other workflows run.
NEWER_NODES = {"MultiGPU_WorkUnits"}


def skip_if_newer(missing: Iterable[str]) -> None:
    """Skip a test of a workflow if all that this ComfyUI lacks for it are such nodes."""
    missing = set(missing)
    if missing and missing <= NEWER_NODES:
        pytest.skip(f"this ComfyUI has no node {', '.join(sorted(missing))}")


def files_asked() -> dict[tuple[str, str], set[str]]:
    """Return the names of files by the loader and the input that asks for them."""
    asked = defaultdict(set)
    for path in WORKFLOWS:
        prompt = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
        for node in prompt.values():
            for name, value in node["inputs"].items():
                if (node["class_type"], name) in SMALL_FILES and "." in str(value):
                    asked[node["class_type"], name].add(value)
    return asked
