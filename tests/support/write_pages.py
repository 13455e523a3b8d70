"""Writes what is made from the code: docs/weights.md, docs/compatibility.md, and the arrows in
docs/architecture.md.

Usage: python tests/support/write_pages.py [--comfyui FOLDER], with the Python that runs ComfyUI
"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
import find_comfyui


def main() -> None:
    """Write them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="the folder that holds ComfyUI's main.py")
    folder = parser.parse_args().comfyui
    find_comfyui.import_comfy(folder)
    find_comfyui.import_extension()
    import list_core_names
    import list_rooms
    import list_weights

    for pages in (list_weights, list_core_names, list_rooms):
        pages.PAGE.write_text(pages.page(), encoding="utf-8")
        print(pages.PAGE)


if __name__ == "__main__":
    main()
