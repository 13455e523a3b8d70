"""Writes the English texts of the nodes to locales/en, from which translations are made.

Usage: python tools/export_locales.py --comfyui PATH

Run it with ComfyUI's python after a text of a node has changed; then change it in every other
language too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path

from find_comfyui import EXTENSION, PACKAGE, import_comfy, import_extension

FILE = EXTENSION / "locales" / "en" / "nodeDefs.json"


def node_texts(nodes: list[type]) -> dict[str, dict]:
    """Return what people read of the nodes, as ComfyUI's page looks for it."""
    texts = {}
    for node in nodes:
        schema = node.define_schema()
        texts[schema.node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {
                given.id: _texts(given.display_name or given.id, given.tooltip)
                for given in schema.inputs
            },
            "outputs": {
                str(index): _texts(made.display_name or made.id, made.tooltip)
                for index, made in enumerate(schema.outputs)
            },
        }
    return texts


def _texts(name: str, tooltip: str | None) -> dict[str, str]:
    return {"name": name} | ({"tooltip": tooltip} if tooltip else {})


def as_file(texts: dict[str, dict]) -> str:
    """Return the file's content."""
    return json.dumps(texts, ensure_ascii=False, indent=2) + "\n"


def main() -> None:
    """Write the file, whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    import_comfy(parser.parse_args().comfyui)
    import_extension()
    FILE.parent.mkdir(parents=True, exist_ok=True)
    temporary = FILE.with_suffix(".part")
    temporary.write_text(
        as_file(node_texts(importlib.import_module(f"{PACKAGE}.nodes").NODES)), encoding="utf-8"
    )
    os.replace(temporary, FILE)


if __name__ == "__main__":
    main()
