"""Writes the API-format twin of every workflow, as ComfyUI's own page converts it:
workflows/api/<same name>.json.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from browser import NoBrowserError, find_chromium
from comfy_page import open_page
from comfy_server import REPOSITORY, ServerError, running_server

WORKFLOWS = REPOSITORY / "workflows"


def export(comfyui: Path, chromium: str, pictures: Path | None) -> None:
    """Convert every workflow in one page of one server; pictures: a folder for a screenshot of
    each.
    """
    (WORKFLOWS / "api").mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as base,
        running_server(comfyui, Path(base)) as server,
        open_page(server.url, chromium) as page,
    ):
        for path in sorted(WORKFLOWS.glob("*.json")):
            page.load(json.loads(path.read_text(encoding="utf-8")), path.stem)
            if missing := page.missing_nodes():
                print(
                    f"workflows/{path.name} is left out: this ComfyUI does not know its nodes "
                    f"{', '.join(missing)}",
                    file=sys.stderr,
                )
                continue
            text = json.dumps(page.api_form(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            (WORKFLOWS / "api" / path.name).write_text(text, encoding="utf-8")
            if pictures:
                page.screenshot(pictures / f"{path.stem}.png")
            print(f"workflows/api/{path.name}")


def main() -> int:
    """Export all workflows; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument(
        "--pictures", type=Path, help="also write a screenshot of each workflow to this folder"
    )
    arguments = parser.parse_args()
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    try:
        export(arguments.comfyui.resolve(), find_chromium(), arguments.pictures)
    except (NoBrowserError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
