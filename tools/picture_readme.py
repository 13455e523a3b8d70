"""Makes the two pictures of README.md: three clips of the miniature that move, and the canvas after
its workflow has run.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import picture_cards
from browser import NoBrowserError, find_chromium
from comfy_page import ComfyPage, open_page
from comfy_server import REPOSITORY, Server, ServerError, running_server
from PIL import Image

DOCS = REPOSITORY / "docs"
# Cards whose clips stand side by side: one thing each that speaks, bounces and flashes.
SHOWN = ("Ovi_01_Miniature_no_download", "Ovi_11_One_KSampler", "Ovi_09_Upscaled_by_a_model")
WORKFLOW = "Ovi_01_Miniature_no_download"
# Pixels.
GAP = 12
SIZE = {"width": 1600, "height": 900}
SCREEN_WIDTH = 1200  # of the picture that is kept
QUALITY = 80


def beside(*clips: list[Image.Image]) -> list[Image.Image]:
    """Return the pictures of clips of one length, one clip beside the other."""
    return [_row(pictures) for pictures in zip(*clips, strict=True)]


def _row(pictures: tuple[Image.Image, ...]) -> Image.Image:
    width, height = pictures[0].size
    row = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "white")
    for number, picture in enumerate(pictures):
        row.paste(picture, (number * (width + GAP), 0))
    return row


def picture_clips(server: Server, base: Path) -> None:
    """Write docs/clips.webp."""
    drawn = [picture_cards.draw(picture_cards.run(server, base, name)) for name in SHOWN]
    picture_cards.save(beside(*drawn), DOCS / "clips.webp")


def picture_canvas(page: ComfyPage) -> None:
    """Write docs/canvas.jpg: the workflow, opened as it is, after Run."""
    page.page.set_viewport_size(SIZE)
    workflow = json.loads((REPOSITORY / "workflows" / f"{WORKFLOW}.json").read_text("utf-8"))
    page.load(workflow, WORKFLOW)
    page.press_run()
    page.play_video()
    with tempfile.TemporaryDirectory() as folder:
        screen = Path(folder) / "screen.png"
        page.page.screenshot(path=screen)
        picture = Image.open(screen).convert("RGB")
        picture = picture.resize((SCREEN_WIDTH, SCREEN_WIDTH * SIZE["height"] // SIZE["width"]))
        picture.save(DOCS / "canvas.jpg", quality=QUALITY, optimize=True)


def main() -> int:
    """Make both pictures; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder)
            with running_server(arguments.comfyui.resolve(), base) as server:
                picture_clips(server, base)
                with open_page(server.url, find_chromium()) as page:
                    picture_canvas(page)
    except (NoBrowserError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
