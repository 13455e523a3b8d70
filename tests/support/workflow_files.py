"""Which files the shared workflows ask for."""

import json
from collections import defaultdict

from comfy_server import REPOSITORY
from small_files import SMALL_FILES

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))


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
