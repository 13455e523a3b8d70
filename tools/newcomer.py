"""Measures a newcomer's ways to a first clip, on a fresh server each: presses of the mouse, keys
and seconds from an open page to a clip that plays. The miniature makes it: nothing is downloaded.

Usage: python tools/newcomer.py --comfyui PATH [--page FOLDER] [--ways app template search]

--page: the page's static folder, if not the one that ComfyUI comes with; apps need a newer page
than that of 0.3.75. Seconds are those of this machine, without a person's time to read and think.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from browser import NoBrowserError, find_chromium
from comfy_page import MADE_VIDEO, PATIENCE_MS, ComfyPage, open_page
from comfy_server import ServerError, flags_of_page, running_server

TEMPLATE = "Ovi_01_Miniature_no_download"
RUN_ICON = "linear-run-button-icon"  # of an app
PROMPT = "A red ball bounces once. Audio: one low knock."
COUNT = """() => {
    window.newcomer = { presses: 0, keys: 0 }
    for (const [event, name] of [['pointerdown', 'presses'], ['keydown', 'keys']])
        addEventListener(event, ({ isTrusted, key }) => {
            newcomer[name] += isTrusted && key !== 'Escape'  // it empties the canvas before a way
        }, true)
}"""
CAN_PLAY = f"({MADE_VIDEO})?.readyState >= 1"
# Names as they are searched for and where they are put, in pixels of the window; then the links.
NODES = {
    "Ovi Miniature": (300, 200),
    "Ovi Text Encode": (300, 500),
    "Ovi Latent": (700, 200),
    "KSampler": (700, 500),
    "Ovi Decode": (1600, 200),
    "Ovi Save Video": (1600, 500),
}
LINKS = (
    ("OviMiniature", "model", "KSampler", "model"),
    ("OviMiniature", "clip", "OviTextEncode", "clip"),
    ("OviMiniature", "vae", "OviDecode", "vae"),
    ("OviMiniature", "audio_vae", "OviDecode", "audio_vae"),
    ("OviTextEncode", "positive", "KSampler", "positive"),
    ("OviTextEncode", "negative", "KSampler", "negative"),
    ("OviLatent", "latent", "KSampler", "latent_image"),
    ("KSampler", "LATENT", "OviDecode", "samples"),
    ("OviDecode", "images", "OviSaveVideo", "images"),
    ("OviDecode", "audio", "OviSaveVideo", "audio"),
)
# What the miniature was made for, in place of what Ovi Latent is added with.
NUMBERS = {"width": 64, "height": 64, "length": 37}
WIDGET = """([type, name]) => {
    const node = app.graph.nodes.find(node => node.type === type)
    const widget = node.widgets.find(widget => widget.name === name)
    const { scale, offset } = app.canvas.ds
    const { left, top } = app.canvas.canvas.getBoundingClientRect()
    const x = node.pos[0] + node.size[0] / 2, y = node.pos[1] + (widget.last_y ?? widget.y) + 10
    return [left + (x + offset[0]) * scale, top + (y + offset[1]) * scale]
}"""
IS_SET = """([type, name, value]) => app.graph.nodes.find(node => node.type === type)
    .widgets.find(widget => widget.name === name).value === value"""


@dataclass(frozen=True)
class Measured:
    """What a way took. to_run, to_clip: seconds from the open page."""

    presses: int
    keys: int
    to_run: float
    to_clip: float


def by_app(page: ComfyPage) -> None:
    """Templates, the card, the switch to the app, Run."""
    page.open_template(TEMPLATE)
    switch = page.page.get_by_test_id("view-mode-toggle")
    switch.get_by_role("button", name="app mode").click()
    page.page.get_by_test_id("linear-widgets").wait_for()
    page.page.get_by_role("button").filter(has=page.page.get_by_test_id(RUN_ICON)).first.click()


def by_template(page: ComfyPage) -> None:
    """Templates, the card, Run."""
    page.open_template(TEMPLATE)
    page.press_run()


def by_search(page: ComfyPage) -> None:
    """Each node by search, each link by dragging, a prompt and three numbers typed, Run."""
    page.zoom(0.75)  # texts are not shown below 0.6
    for name, place in NODES.items():
        page.add_by_search(name, *place)
    for link in LINKS:
        page.wire(*link)
    page.page.locator("textarea").first.click()
    page.page.keyboard.type(PROMPT)
    for name, value in NUMBERS.items():
        _type_number(page, "OviLatent", name, value)
    page.press_run()


def _type_number(page: ComfyPage, node: str, name: str, value: int) -> None:
    page.page.mouse.dblclick(*page.page.evaluate(WIDGET, [node, name]), delay=20)
    page.page.locator(".graphdialog input").fill(str(value))
    page.page.keyboard.press("Enter")
    page.wait_until(IS_SET, [node, name, value])


WAYS: dict[str, Callable[[ComfyPage], None]] = {
    "app": by_app,
    "template": by_template,
    "search": by_search,
}


def measure(comfyui: Path, chromium: str, flags: list[str], way: str) -> Measured:
    """Go one way on a fresh server."""
    with (
        tempfile.TemporaryDirectory() as base,
        running_server(comfyui, Path(base), flags=flags) as server,
        open_page(server.url, chromium) as page,
    ):
        page.clear()
        page.page.evaluate(COUNT)
        start = time.monotonic()
        WAYS[way](page)
        to_run = time.monotonic() - start
        page.wait_until(CAN_PLAY, patience=2 * PATIENCE_MS)
        to_clip = time.monotonic() - start
        done = page.page.evaluate("newcomer")
        page.play_video()
        return Measured(done["presses"], done["keys"], to_run, to_clip)


def main() -> int:
    """Print a line for each way; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--page", type=Path, help="static folder of another page")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    print("| way | presses | keys | seconds to Run | seconds to a clip |\n|---|---|---|---|---|")
    try:
        flags = flags_of_page(arguments.page)
        for way in arguments.ways:
            found = measure(arguments.comfyui.resolve(), find_chromium(), flags, way)
            numbers = f"{found.presses} | {found.keys} | {found.to_run:.0f} | {found.to_clip:.0f}"
            print(f"| {way} | {numbers} |", flush=True)
    except (NoBrowserError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
