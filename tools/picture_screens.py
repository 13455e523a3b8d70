"""Takes screens of what a newcomer meets on ComfyUI's page, to be looked at: cards, every template
and app as it opens, the prompt's ruler in dark and light, errors as they are told.

Usage: python tools/picture_screens.py --comfyui PATH OUT [--page FOLDER] [--only cards ruler ...]

--page: the page's static folder, if not the one that ComfyUI comes with; apps need a newer page
than that of 0.3.75. Screens are 1600 x 900 PNG files in OUT. No weights are needed: the lists of
the loaders show empty files.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from browser import NoBrowserError, find_chromium
from comfy_page import ComfyPage, open_page
from comfy_server import REPOSITORY, ServerError, flags_of_page, running_server
from PIL import Image

SIZE = {"width": 1600, "height": 900}
SETTLED_MS = 1500  # what fades in, grows or is loaded has done so
NAMES = [path.stem for path in sorted((REPOSITORY / "workflows").glob("*.json"))]
MINIATURE = "Ovi_13_All_nodes_miniature"
HAS_APPS = "Boolean(app.extensionManager.command.commands.find(c => c.id === 'Comfy.ToggleLinear'))"
IS_APP = "Boolean(app.graph.extra?.linearData)"
PALETTE = "name => app.ui.settings.setSettingValueAsync('Comfy.ColorPalette', name)"
# Shows the last row of cards.
SCROLL = """() => [...document.querySelectorAll('[data-testid^=template-workflow-]')]
    .at(-1).scrollIntoView({ block: 'end' })"""
ALL_LOADED = """[...document.querySelectorAll('[data-testid^=template-workflow-] img')]
    .every(image => image.complete)"""
# A run that was accepted leaves an empty list of faults.
HAS_FAILED = "Object.keys(app.lastNodeErrors ?? {}).length > 0 || Boolean(app.lastExecutionError)"
PROMPTS = {
    "good": "A woman on a pier says <S>The tide is coming in.<E> Audio: waves, a gull cries.",
    "late": "A man says <S>" + "word " * 40 + "<E> Audio: rain",
    "faults": 'A <s>man<e> says "Hello there" <S>one two',
    "people": "<img1>: a woman identified as <sub1>. <sub1> says, <S>Come in.<E>",
}
# What is set wrong in the miniature's graph. The first two are told before anything runs.
FAULTS = {
    "open_tag": {"prompt": "A man says <S>Hello"},
    "size": {"width": 70},
    "too_large": {"width": 960, "height": 960},
}


def take_cards(page: ComfyPage) -> Iterator[str]:
    """Show the cards, from the first and to the last."""
    dialog = page.open_cards()
    dialog.get_by_test_id(f"template-workflow-{NAMES[0]}").wait_for()
    page.wait_until(ALL_LOADED)
    yield "cards_first"
    page.page.evaluate(SCROLL)
    page.wait_until(ALL_LOADED)
    yield "cards_last"
    page.open_link(NAMES[0])  # older pages close their cards in no other way


def take_templates(page: ComfyPage) -> Iterator[str]:
    """Open every template, by its link, and show it as the page does."""
    for name in NAMES:
        page.open_link(name)
        yield f"template_{name}"


def take_apps(page: ComfyPage) -> Iterator[str]:
    """Show every template that is an app, as one; nothing where the page has no apps."""
    if not page.page.evaluate(HAS_APPS):
        return
    for name in NAMES:
        page.open_link(name)
        if page.page.evaluate(IS_APP):
            page.show_app(True)
            yield f"app_{name}"


def take_rulers(page: ComfyPage) -> Iterator[str]:
    """Show the ruler of four prompts, in the page's dark and light colours."""
    for palette in ("dark", "light"):
        page.page.evaluate(PALETTE, palette)
        for name, prompt in PROMPTS.items():
            page.clear()
            page.add_by_search("Ovi Text Encode", 500, 200)
            page.set_widgets({"prompt": prompt})
            yield f"ruler_{palette}_{name}"
    page.page.evaluate(PALETTE, "dark")


def take_errors(page: ComfyPage) -> Iterator[str]:
    """Press Run with something wrong, and show what the page says first."""
    for name, wrong in FAULTS.items():
        page.open_link(MINIATURE)
        page.set_widgets(wrong)
        page.press_run()
        page.wait_until(HAS_FAILED)
        yield f"error_{name}"


TAKES: dict[str, Callable[[ComfyPage], Iterator[str]]] = {
    "cards": take_cards,
    "templates": take_templates,
    "apps": take_apps,
    "ruler": take_rulers,
    "errors": take_errors,
}


def make_files(base: Path) -> None:
    """Write the files that the templates name, empty, and a picture of the name ComfyUI brings."""
    for name in NAMES:
        workflow = json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text("utf-8"))
        for model in _models_of(workflow):
            folder = base / "models" / model["directory"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / model["name"]).touch()
    (base / "input").mkdir()
    Image.new("RGB", (96, 128), "teal").save(base / "input" / "example.png")


def _models_of(part: object) -> Iterator[dict]:
    """Return the files that the nodes of a workflow and of its subgraphs say they need."""
    if isinstance(part, dict):
        yield from part.get("properties", {}).get("models", [])
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from _models_of(inner)


def main() -> int:
    """Take the screens; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the screens")
    parser.add_argument("--page", type=Path, help="static folder of another page")
    parser.add_argument("--only", nargs="+", choices=TAKES, default=list(TAKES))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        flags = flags_of_page(arguments.page)
        with tempfile.TemporaryDirectory() as base:
            make_files(Path(base))
            with (
                running_server(arguments.comfyui.resolve(), Path(base), flags=flags) as server,
                open_page(server.url, find_chromium()) as page,
            ):
                page.page.set_viewport_size(SIZE)
                for kind in arguments.only:
                    for name in TAKES[kind](page):
                        page.page.wait_for_timeout(SETTLED_MS)
                        page.screenshot(arguments.out / f"{name}.png")
                        print(name, flush=True)
    except (NoBrowserError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
