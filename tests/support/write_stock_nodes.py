"""Runs every node of core that takes a MODEL, or makes prompts of prompts, on the miniature, and
writes what came of it for this version of core: docs/stock_nodes.json, and the table in
docs/compatibility.md.

Usage: python tests/support/write_stock_nodes.py [--comfyui FOLDER] [--check]
With the Python that runs ComfyUI. --check writes nothing and fails where an outcome is another one.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))


def main() -> None:
    """Walk, then write or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"))
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    asked = parser.parse_args()
    from comfy_runtime import ComfyRuntime

    with tempfile.TemporaryDirectory() as base:
        runtime = ComfyRuntime(Path(asked.comfyui).resolve(), Path(base).resolve(), REPOSITORY)
        found = walk(runtime)
    import list_core_names
    import list_stock_nodes
    from comfyui_version import __version__ as core

    cores = list_stock_nodes.read()
    known = cores.get(core, {})
    before, after = kinds(known), kinds(found)
    for name in sorted({*before, *after}):
        was, now = before.get(name, "absent"), after.get(name, "absent")
        if was != now:
            print(f"{name}: {was}, now {now}")
    if asked.check:
        sys.exit(before != after)
    list_stock_nodes.write({**cores, core: found})
    list_core_names.PAGE.write_text(list_core_names.page(), encoding="utf-8")


def walk(runtime) -> dict:
    """Return the outcome of every node, and say which is a fault."""
    from stock_nodes import FAILS, SILENT, Walker, stock_nodes

    walker = Walker(runtime)
    found = {name: walker.look(name) for name in stock_nodes(walker.mappings)}
    walker.close()
    for name, outcome in found.items():
        if outcome.outcome in (FAILS, SILENT):
            print(f"{name}: {outcome}")
    return found


def kinds(found: dict) -> dict[str, str]:
    """Return the outcomes without figures and words."""
    return {name: outcome.outcome for name, outcome in found.items()}


if __name__ == "__main__":
    main()
