"""Opens ComfyUI's real page in Chromium, loads workflows onto its canvas and reads them back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from comfy_server import EXTENSION
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What the page says when it is kept from asking servers other than its own, or when it is newer
# than its server.
BLOCKED_REQUESTS = (
    "Failed to load resource",
    "Content Security Policy",
    "Network Error",
    "Error fetching file size",
)
NEWER_PAGE = ("Jobs API", "Failed to fetch queue", "core workflow templates")
VIEWPORT = {"width": 1920, "height": 1080}
# A machine that others use too can take many times as long as it needs alone.
PATIENCE_MS = 300_000
# Conditions are asked for at intervals, not at each frame drawn: a busy machine may draw none.
POLLING_MS = 100
# The page takes two presses with one time stamp for one.
BETWEEN_CLICKS_MS = 20
# Pixels from the double-click to the click that puts the node down: on its title, yet too far away
# to begin another double-click at the same place.
PUT_DOWN = (30, -6)
LONGEST_CLICK_MS = 20_000  # on what may be gone by then
# For how long a gesture may take to show; the last is the longest, since one that is made while
# the one before is still on its way can undo it.
ATTEMPTS_MS = [PATIENCE_MS // 2**n for n in range(7, 0, -1)]

IS_READY = """() => window.app?.vueAppReady && window.app.graph?.nodes
    && document.querySelector('#graph-canvas')
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 50"""
LOAD = "async ([workflow, name]) => { await app.loadGraphData(workflow, true, true, name) }"
API_FORM = "async () => (await app.graphToPrompt()).output"
# Widgets that older pages send, though they are no inputs: a player, a preview.
ONLY_OF_OLDER_PAGES = {"LoadAudio": ("audioUI",), "PreviewAny": ("preview",)}
# Inputs that newer ComfyUIs must have and older ones pass over.
ONLY_OF_NEWER_PAGES = {"LoraModelLoader": {"bypass": False}}
MISSING_NODES = """() => app.graph.nodes.map(node => node.type)
    .filter(type => !(type in LiteGraph.registered_node_types))"""
EMPTY_WIDGETS = """() => app.graph.nodes.flatMap(node => (node.widgets ?? [])
    .filter(widget => widget.value == null && widget.type !== 'button'
        && widget.options?.serialize !== false && widget.serialize !== false)
    .map(widget => `${node.type}.${widget.name}`))"""
ZOOM = """scale => {
    const canvas = app.canvas.canvas.getBoundingClientRect()
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [canvas.width / 2 / scale, canvas.height / 2 / scale]
    app.canvas.setDirty(true, true)
}"""
# The page numbers tabs of one name.
IS_OPEN = """name => app.graph.nodes.length > 0
    && app.extensionManager.workflow.activeWorkflow?.filename.startsWith(name)"""
# A dialog keeps clicks from the canvas until it has faded out.
NO_DIALOG = "!document.querySelector('[role=dialog], .p-dialog-mask')"
# Without clean() a new node shows what an earlier one of its number made.
CLEAR = "() => { app.clean(); app.graph.clear() }"
SLOT = """([type, isInput, name]) => {
    const node = app.graph.nodes.find(node => node.type === type)
    const slot = (isInput ? node.inputs : node.outputs).findIndex(slot => slot.name === name)
    const [x, y] = node.getConnectionPos(isInput, slot)
    const { scale, offset } = app.canvas.ds
    const { left, top } = app.canvas.canvas.getBoundingClientRect()
    return [left + (x + offset[0]) * scale, top + (y + offset[1]) * scale]
}"""
IS_WIRED = """([source, output, target, input]) => {
    const find = type => app.graph.nodes.find(node => node.type === type)
    const from = find(source), to = find(target)
    const link = app.graph.links.get(to.inputs.find(slot => slot.name === input).link)
    return link?.origin_id === from.id && from.outputs[link.origin_slot].name === output
}"""
MENU_ENTRIES = ".litecontextmenu .litemenu-entry:not(.separator)"
MENU_IS_OPEN = f"document.querySelector('{MENU_ENTRIES}') !== null"
# Newer pages can show a workflow as an app.
SHOW_APP = """async on => {
    if (on !== Boolean(document.querySelector('[data-testid=linear-widgets]')))
        await app.extensionManager.command.execute('Comfy.ToggleLinear')
}"""
SET_WIDGETS = """values => {
    for (const graph of [app.graph, ...(app.graph.subgraphs?.values() ?? [])])
        for (const widget of graph.nodes.flatMap(node => node.widgets ?? []))
            if (widget.name in values) widget.value = values[widget.name]
    app.canvas.setDirty(true, true)
}"""
# The first video that was made; one that a node loads is shown too.
MADE_VIDEO = """[...document.querySelectorAll('video')]
    .find(video => video.currentSrc && !video.currentSrc.includes('type=input'))"""
FAILED_RUN = "app.lastExecutionError?.prompt_id"
HAS_ENDED = f"""failed => ({MADE_VIDEO})?.readyState >= 1
    || ({FAILED_RUN} && {FAILED_RUN} !== failed)"""
PLAY = """async patience => {
    const video = MADE_VIDEO, start = performance.now()
    video.muted = video.loop = true
    await video.play()
    const decoded = () => ({
        picture: video.webkitVideoDecodedByteCount, sound: video.webkitAudioDecodedByteCount
    })
    while (!(decoded().picture && decoded().sound) && performance.now() - start < patience)
        await new Promise(done => setTimeout(done, 100))
    return { seconds: video.duration, ...decoded() }
}""".replace("MADE_VIDEO", MADE_VIDEO)
# The first entry under the search box is the one that Enter adds.
IS_FOUND = """name => [...document.querySelectorAll('[role=option]')]
    .map(option => option.textContent.trim()).find(text => text)?.startsWith(name)"""
SEARCH_IS_OPEN = "document.activeElement?.getAttribute('role') === 'combobox'"
IS_ADDED = "before => app.graph.nodes.length > before"
# Newer pages hang a new node on the mouse until it is put down.
IS_PLACED = "app.graph.nodes.every(node => !node.flags.ghost)"
DROP = """async ([url, name]) => {
    const blob = await (await fetch(url)).blob(), files = new DataTransfer()
    files.items.add(new File([blob], name, { type: blob.type }))
    const { left, top } = app.canvas.canvas.getBoundingClientRect()
    const where = { clientX: left + 400, clientY: top + 300 }
    const options = { ...where, bubbles: true, cancelable: true, dataTransfer: files }
    for (const name of ['dragover', 'drop'])
        app.canvas.canvas.dispatchEvent(new DragEvent(name, options))
}"""
FIT_TO_VIEW = """() => {
    const boxes = [...app.graph.nodes, ...(app.graph.groups ?? [])]
        .map(item => item.boundingRect ?? item._bounding)
    const left = Math.min(...boxes.map(box => box[0])), top = Math.min(...boxes.map(box => box[1]))
    const right = Math.max(...boxes.map(box => box[0] + box[2]))
    const bottom = Math.max(...boxes.map(box => box[1] + box[3]))
    const canvas = app.canvas.canvas.getBoundingClientRect(), edge = 110
    const scale = Math.min(
        (canvas.width - 2 * edge) / (right - left), (canvas.height - 2 * edge) / (bottom - top), 1)
    app.canvas.ds.scale = scale
    app.canvas.ds.offset[0] = canvas.width / 2 / scale - (left + right) / 2
    app.canvas.ds.offset[1] = canvas.height / 2 / scale - (top + bottom) / 2
    app.canvas.setDirty(true, true)
}"""


class ComfyPage:
    """ComfyUI's page in one browser tab; problems: every script error since the last load()."""

    def __init__(self, page: Page, url: str):
        self.page = page
        self.url = url
        self.problems: list[str] = []
        self.failed_run: str | None = None  # the last that did, before Run was pressed
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._keep_error)
        page.route("**/*", _only_from(urlsplit(url).netloc))
        page.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
        self._go_to(url)

    def load(self, workflow: dict, name: str) -> None:
        """Put a UI-format workflow on the canvas, as opening its file does."""
        self.problems.clear()
        self.page.evaluate(LOAD, [workflow, name])
        self.page.evaluate(FIT_TO_VIEW)
        self.page.wait_for_timeout(300)

    def api_form(self) -> dict:
        """Return what the Run button would send for the workflow on the canvas."""
        form = self.page.evaluate(API_FORM)
        for node in form.values():
            for name in ONLY_OF_OLDER_PAGES.get(node["class_type"], ()):
                node["inputs"].pop(name, None)
            for name, value in ONLY_OF_NEWER_PAGES.get(node["class_type"], {}).items():
                node["inputs"].setdefault(name, value)
        return form

    def missing_nodes(self) -> list[str]:
        """Return the types of nodes on the canvas that this ComfyUI does not know."""
        return self.page.evaluate(MISSING_NODES)

    def empty_widgets(self) -> list[str]:
        """Return Node.widget for every widget without a value."""
        return self.page.evaluate(EMPTY_WIDGETS)

    def clear(self) -> None:
        """Close what is open and empty the canvas, its middle at the middle of the window."""
        self._until(NO_DIALOG, lambda: self.page.keyboard.press("Escape"))
        self.problems.clear()
        self.show_app(False)
        self.page.evaluate(CLEAR)
        self.zoom(1)

    def add_by_search(self, name: str, x: float, y: float) -> None:
        """Add a node as people do: double-click on the canvas, type its name, press Enter, put it
        down.
        """
        before = len(self.types())
        self._until(SEARCH_IS_OPEN, lambda: self.page.mouse.dblclick(x, y, delay=BETWEEN_CLICKS_MS))
        self._until(IS_FOUND, lambda: self._type_anew(name), name)
        # Not until it has closed: an Enter that meets it as it fades out is an error of the page.
        self._until(IS_ADDED, lambda: self.page.keyboard.press("Enter"), before)
        self.wait_until(f"!({SEARCH_IS_OPEN})")
        title = (x + PUT_DOWN[0], y + PUT_DOWN[1])
        self.page.mouse.move(*title, steps=2)
        self.page.mouse.click(*title)
        self.wait_until(IS_PLACED)

    def draw_nodes_with_vue(self, on: bool) -> None:
        """Switch what the page calls Nodes 2.0 on or off."""
        self.page.evaluate(
            "on => app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on)", on
        )

    def show_app(self, on: bool) -> None:
        """Show the workflow as an app, or its nodes again; for pages that have apps."""
        self.page.evaluate(SHOW_APP, on)

    def types(self) -> list[str]:
        """Return the types of the nodes on the canvas."""
        return self.page.evaluate("app.graph.nodes.map(node => node.type)")

    def wire(self, source: str, output: str, target: str, input_name: str) -> None:
        """Drag from an output to an input, of the first nodes of two types, until just that link is
        there.
        """
        start = self.page.evaluate(SLOT, [source, False, output])
        end = self.page.evaluate(SLOT, [target, True, input_name])
        self._until(IS_WIRED, lambda: self._drag(start, end), [source, output, target, input_name])

    def drop_link(self, source: str, output: str, x: float, y: float) -> list[str]:
        """Drag from an output, of the first node of a type, to an empty place; return what the menu
        there offers.
        """
        start = self.page.evaluate(SLOT, [source, False, output])
        self._until(MENU_IS_OPEN, lambda: self._drag(start, (x, y)))
        return self.page.locator(MENU_ENTRIES).all_text_contents()

    def _drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*((a + b) / 2 for a, b in zip(start, end, strict=True)), steps=4)
        self.page.mouse.move(*end, steps=4)
        self.page.mouse.up()

    def zoom(self, scale: float) -> None:
        """Show the canvas at a scale, its origin in the middle of the window."""
        self.page.evaluate(ZOOM, scale)

    def set_widgets(self, values: dict[str, object]) -> None:
        """Set every widget that has one of these names, on the canvas and in its subgraphs."""
        self.page.evaluate(SET_WIDGETS, values)

    def open_link(self, name: str, *, as_app: bool = False) -> None:
        """Open the page anew, by a link to a template of this extension."""
        mode = "&mode=linear" if as_app else ""
        self._go_to(f"{self.url}/?template={name}&source={EXTENSION}{mode}")
        self.wait_until(IS_OPEN, name)

    def open_cards(self) -> Locator:
        """Open the template browser at this extension's cards; return its dialog."""
        self.clear()
        self.page.get_by_text("Templates", exact=True).first.click()
        dialog = self.page.get_by_role("dialog")
        # Under Extensions: the list that the dialog begins with shows hundreds of others first.
        dialog.get_by_role("button", name=EXTENSION, exact=True).click()
        return dialog

    def open_template(self, name: str) -> None:
        """Open a workflow of this extension from the template browser, on an empty canvas."""
        card = self.open_cards().get_by_test_id(f"template-workflow-{name}")
        card.wait_for()
        self._until(IS_OPEN, lambda: _click_if_there(card), name)
        card.wait_for(state="hidden")
        self.page.evaluate(FIT_TO_VIEW)

    def press_run(self) -> None:
        """Press the Run button."""
        self.failed_run = self.page.evaluate(FAILED_RUN)
        self.page.get_by_test_id("queue-button").first.click()

    def play_video(self) -> dict[str, float]:
        """Wait for a video on the canvas, play a part of it, and return its seconds and the bytes
        that were decoded.
        """
        # Only nodes in view show what they made, and a page that is slow to open a workflow can put
        # the view elsewhere once it has.
        self._until(HAS_ENDED, lambda: self.page.evaluate(FIT_TO_VIEW), self.failed_run)
        if self.page.evaluate(FAILED_RUN) not in (None, self.failed_run):
            error = self.page.evaluate("app.lastExecutionError.exception_message")
            raise AssertionError(f"the run failed: {error}")
        return self.page.evaluate(PLAY, PATIENCE_MS)

    def drop_file(self, url: str, name: str) -> None:
        """Let a file fall on the canvas that the server has at a url."""
        self.page.evaluate(DROP, [url, name])

    def screenshot(self, path: Path) -> None:
        """Write a picture of the page."""
        self.page.screenshot(path=str(path))

    def wait_until(self, condition: str, arg: object = None, patience: float = PATIENCE_MS) -> None:
        """Wait until a condition of the page, in its own language, holds; patience: in ms."""
        self.page.wait_for_function(condition, arg=arg, polling=POLLING_MS, timeout=patience)

    def _go_to(self, url: str) -> None:
        self.page.goto(url, wait_until="domcontentloaded")
        self.wait_until(IS_READY)
        # The page restores its last workflow after it says it is ready.
        self.page.wait_for_timeout(500)

    def _until(self, condition: str, gesture: Callable[[], None], arg: object = None) -> None:
        """Make a gesture, again and again if need be: a busy page can miss one, as it does a
        person's.
        """
        for patience in ATTEMPTS_MS:
            gesture()
            with suppress(PlaywrightTimeout):
                self.wait_until(condition, arg, patience)
                return
        raise AssertionError(
            f"after {len(ATTEMPTS_MS)} attempts the page does not have {condition} with {arg}"
        )

    def _type_anew(self, text: str) -> None:
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)

    def _keep_error(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(
            noise in message.text for noise in BLOCKED_REQUESTS + NEWER_PAGE
        ):
            self.problems.append(message.text)


def _click_if_there(place: Locator) -> None:
    with suppress(PlaywrightTimeout):
        if place.is_visible():
            place.click(timeout=LONGEST_CLICK_MS)


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
    """Yield the page of the server at the url, in a Chromium of its own, closed afterwards."""
    with sync_playwright() as playwright:
        browser: Browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        try:
            yield ComfyPage(browser.new_page(viewport=VIEWPORT), url)
        finally:
            browser.close()
