"""Opens ComfyUI's real page in Chromium, loads workflows onto its canvas and reads them back."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Route, sync_playwright

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What the page says when it is kept from asking servers other than its own.
BLOCKED_REQUESTS = ("Failed to load resource", "Content Security Policy", "Network Error", "Error fetching file size")
VIEWPORT = {"width": 1920, "height": 1080}
MILLISECONDS = 90_000

IS_READY = """() => window.app?.vueAppReady && window.app.graph?.nodes && document.querySelector('#graph-canvas')
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 50"""
LOAD = "async ([workflow, name]) => { await app.loadGraphData(workflow, true, true, name) }"
API_FORM = "async () => (await app.graphToPrompt()).output"
MISSING_NODES = (
    "() => app.graph.nodes.map(node => node.type).filter(type => !(type in LiteGraph.registered_node_types))"
)
EMPTY_WIDGETS = """() => app.graph.nodes.flatMap(node => (node.widgets ?? [])
    .filter(widget => widget.value == null && widget.type !== 'button' && widget.options?.serialize !== false
        && widget.serialize !== false)
    .map(widget => `${node.type}.${widget.name}`))"""
FIT_TO_VIEW = """() => {
    const boxes = [...app.graph.nodes, ...(app.graph.groups ?? [])].map(item => item.boundingRect ?? item._bounding)
    const left = Math.min(...boxes.map(box => box[0])), top = Math.min(...boxes.map(box => box[1]))
    const right = Math.max(...boxes.map(box => box[0] + box[2]))
    const bottom = Math.max(...boxes.map(box => box[1] + box[3]))
    const canvas = app.canvas.canvas.getBoundingClientRect(), edge = 110
    const scale = Math.min((canvas.width - 2 * edge) / (right - left), (canvas.height - 2 * edge) / (bottom - top), 1)
    app.canvas.ds.scale = scale
    app.canvas.ds.offset[0] = canvas.width / 2 / scale - (left + right) / 2
    app.canvas.ds.offset[1] = canvas.height / 2 / scale - (top + bottom) / 2
    app.canvas.setDirty(true, true)
}"""


def find_chromium() -> str | None:
    """Return the Chromium to drive: CHROMIUM, else the first installed one, else None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


class ComfyPage:
    """ComfyUI's page in one browser tab; problems lists every script error since the last load()."""

    def __init__(self, page: Page, url: str):
        self.page = page
        self.problems: list[str] = []
        page.set_default_timeout(MILLISECONDS)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._keep_error)
        page.route("**/*", _only_from(urlsplit(url).netloc))
        page.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
        page.goto(url, wait_until="domcontentloaded")
        page.wait_for_function(IS_READY)
        page.wait_for_timeout(500)  # the page restores its last workflow after it says it is ready

    def load(self, workflow: dict, name: str) -> None:
        """Put a UI-format workflow on the canvas, as opening its file does."""
        self.problems.clear()
        self.page.evaluate(LOAD, [workflow, name])
        self.page.evaluate(FIT_TO_VIEW)
        self.page.wait_for_timeout(300)

    def api_form(self) -> dict:
        """Return what the Run button would send for the workflow on the canvas."""
        return self.page.evaluate(API_FORM)

    def missing_nodes(self) -> list[str]:
        """Return the types of nodes on the canvas that this ComfyUI does not know."""
        return self.page.evaluate(MISSING_NODES)

    def empty_widgets(self) -> list[str]:
        """Return Node.widget for every widget without a value."""
        return self.page.evaluate(EMPTY_WIDGETS)

    def screenshot(self, path: Path) -> None:
        """Write a picture of the page."""
        self.page.screenshot(path=str(path))

    def _keep_error(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(noise in message.text for noise in BLOCKED_REQUESTS):
            self.problems.append(message.text)


def _only_from(host: str):
    """Return a handler that lets the page talk to its own server and nowhere else."""

    def handle(route: Route) -> None:
        address = urlsplit(route.request.url)
        if address.netloc == host or address.scheme in ("data", "blob"):
            route.continue_()
        else:
            route.abort()

    return handle


@contextmanager
def open_page(url: str, chromium: str) -> Iterator[ComfyPage]:
    """Yield the page of the server at the url, in a Chromium of its own that is closed afterwards."""
    with sync_playwright() as playwright:
        browser: Browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        try:
            yield ComfyPage(browser.new_page(viewport=VIEWPORT), url)
        finally:
            browser.close()
