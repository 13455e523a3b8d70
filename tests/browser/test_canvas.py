"""What people do on the canvas, in ComfyUI's real page: add and wire nodes, type prompts, use
blueprints, read what went wrong.
"""

import json
import re

import pytest
from comfy_page import IS_WIRED
from comfy_server import EXTENSION, REPOSITORY
from comfyui_ovi.nodes import NODES
from comfyui_ovi.ovi_model.preview.contact_sheet import TIME_AXIS
from comfyui_ovi.ovi_model.text.advice import advise
from comfyui_ovi.ovi_model.text.mends import mend_prompt
from comfyui_ovi.ovi_model.text.prompt import check_prompt
from miniature_on_canvas import LEAVE_SIZE, LOAD_MINIATURE
from newcomer import LINKS
from newcomer import NODES as BY_HAND
from picture_screens import PALETTE
from workflow_files import WORKFLOWS

pytestmark = pytest.mark.browser
# Pixels of the window, beside the search box: a list that opens under the mouse can take the
# double-click for its own.
PLACE = (300, 300)
EMPTY_PLACE = (1000, 450)
SUGGEST = "count => app.extensionManager.setting.set('Comfy.NodeSuggestions.number', count)"
ADD = """type => {
    const node = LiteGraph.createNode(type)
    node.pos = [-400, -100]
    app.graph.add(node)
}"""
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in WORKFLOWS}
WEB_PAGE = "page.safetensors"
WRITER = "Ovi prompt writer"  # for newer ComfyUIs, and makes no clip
BLUEPRINTS = [
    path for path in sorted((REPOSITORY / "subgraphs").glob("*.json")) if path.stem != WRITER
]
# It makes nothing by itself; the workflows that have it are run.
LOADERS_ALONE = "Ovi files"
# Gives a blueprint the miniature before it if it takes a model, a node that saves behind it, and a
# file or a film of 13 frames where it takes one.
WIRE_BLUEPRINT = """() => {
    const graph = app.graph, [blueprint] = graph.nodes
    const add = type => { const node = LiteGraph.createNode(type); graph.add(node); return node }
    const input = (node, name) => node.inputs.findIndex(input => input.name === name)
    const save = add('OviSaveVideo')
    if (input(blueprint, 'model') >= 0) {
        const miniature = add('OviMiniature')
        for (const [slot, name] of ['model', 'clip', 'vae', 'audio_vae'].entries())
            miniature.connect(slot, blueprint, input(blueprint, name))
    }
    for (const [slot, name] of ['images', 'audio'].entries())
        blueprint.connect(slot, save, input(save, name))
    for (const [type, file, names] of [
        ['LoadImage', 'example.png', ['image']], ['LoadVideo', 'clip.mp4', ['video']],
        ['LoadAudio', 'recording.wav', ['recording', 'voice']],
    ])
        for (const name of names) if (input(blueprint, name) >= 0) {
            const loader = add(type)
            loader.widgets[0].value = file
            loader.connect(0, blueprint, input(blueprint, name))
        }
    for (const [type, name] of [['EmptyImage', 'images'], ['EmptyAudio', 'audio']])
        if (input(blueprint, name) >= 0) add(type).connect(0, blueprint, input(blueprint, name))
}"""
FILM = {"width": 64, "height": 64, "batch_size": 13, "duration": 13 / 24}
SET_ON_BLUEPRINT = """values => {
    for (const widget of app.graph.nodes[0].widgets)
        if (widget.name in values) widget.value = values[widget.name]
}"""
# What is typed wrong or loaded into a workflow, and a part of the answer.
FAULTS = [
    (
        "Ovi_13_All_nodes_miniature",
        {"prompt": "A man says <S>Hello"},
        "'<S>' at line 1, column 12",
    ),
    ("Ovi_13_All_nodes_miniature", {"prompt": " "}, "prompt is empty"),
    ("Ovi_13_All_nodes_miniature", {"width": 70}, "64 or 96"),
    ("Ovi_13_All_nodes_miniature", {"length": 38}, "37 or 41"),
    ("Ovi_13_All_nodes_miniature", {"skip_layer": 30}, "this model has 1 to 3"),
    ("Ovi_14_All_nodes_text", {"text_encoder": WEB_PAGE}, f"{WEB_PAGE} is a web page"),
]
# The streaming sampler in the place of the other, in view, where the page plays what it shows.
SAMPLE_IN_BLOCKS = """() => {
    const graph = app.graph, find = type => graph.nodes.find(node => node.type === type)
    const blocks = LiteGraph.createNode('OviStreamingSampler'), miniature = find('OviMiniature')
    graph.add(blocks)
    blocks.pos = find('OviSamplerUniPC').pos
    const sampler = find('SamplerCustomAdvanced')
    const slot = name => sampler.inputs.findIndex(input => input.name === name)
    blocks.connect(0, sampler, slot('sampler'))
    miniature.connect(2, blocks, 0)
    miniature.connect(3, blocks, 1)
}"""
FILM_SO_FAR = """[...document.querySelectorAll('video')]
    .find(video => video.currentSrc.includes('so_far'))"""
LANGUAGE = "name => app.ui.settings.setSettingValueAsync('Comfy.Locale', name)"
# Returns how often they are looked at anew when they are copied, which makes nodes of no graph.
COPY_ALL = """() => {
    const { setInterval } = window
    let count = 0
    window.setInterval = (...given) => {
        if (new Error().stack.includes('/watch.js')) count++
        return setInterval(...given)
    }
    app.canvas.selectItems(app.graph.nodes)
    app.canvas.copyToClipboard()
    const copied = count
    for (const node of [...app.graph.nodes]) {
        app.graph.remove(node)
        app.graph.add(node)
    }
    window.setInterval = setInterval
    return [copied, count]
}"""
# Of letters and what is behind them, by the rule of WCAG 2; where several lie on one another, the
# nearest that is not transparent.
CONTRASTS = """() => {
    const channels = colour => colour.match(/[\\d.]+/g).map(Number)
    const light = colour => channels(colour).slice(0, 3)
        .map(value => value / 255)
        .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0)
    const behind = element => {
        const colour = getComputedStyle(element).backgroundColor
        return channels(colour)[3] === 0 ? behind(element.parentElement) : colour
    }
    const all = document.querySelectorAll('.ovi-ruler span, .ovi-prompt-foot > *')
    return Object.fromEntries([...all].map(element => {
        const [dark, bright] = [getComputedStyle(element).color, behind(element)]
            .map(light).sort((one, other) => one - other)
        return [element.className, (bright + 0.05) / (dark + 0.05)]
    }))
}"""
MENDED = [
    "She says <s>Hello<e> Audio: rain",
    "She says <S>Hello</s>. Audio: rain",
    "A man says <S>Hello Audio: rain",
    "A man says <S>Hello",
    "Hello<E> Audio: rain",
    "A cat. audio: purring",
    "A cat sleeps",
    "A man says \u201cHello there\u201d. Audio: rain",
    "<S>One<E> and she answers 'two three'. Audio: rain",
    "A sign that reads 'OPEN'. He says 'come in'. Audio: rain",
    "She waits. " * 180 + "<S>Hello<E> Audio: rain",
    'He says "<S>One<E>" and answers "two three". Audio: rain',
]
SHOWN_PICTURES = """names => {
    const shown = [...document.querySelectorAll('img')].filter(image => image.naturalWidth > 0)
    return names.every(name => shown.some(image => image.src.endsWith(name)))
}"""
PROMPTS = [
    "A man says <S>Hello there!<E> Audio: rain.",
    "<AUDCAP>wind<ENDAUDCAP> over <S>one<E> and <S>two<E>",
    "No tags at all",
    "A man says <S>Hello",
    "<S>one <S>two<E>",
    "Hello<E>",
    "<S>Hello</S>",
    "<S>Hello</E> there",
    "<AUDCAP>wind",
    "wind<ENDAUDCAP>",
    "<AUDCAP>wind</AUDCAP>",
    "<AUDCAP>Audio: wind<ENDAUDCAP> <S>x<E>",
    "0-2 s: a cat sleeps; 2-5 s: it jumps.",
    "(0:00\u20130:02) a cat (0:02\u20130:05) a dog",
    "He waits 2-3 seconds: nothing. Then 3-4 seconds: a bell.",
    "A clock tower, 00:00-08:00: dark, 08:00-12:00: light.",
    "A sign reads <S>0-2 s: go! 2-5 s: stop!<E>",
]


ADD_PREVIEW = """() => {
    const decode = app.graph.nodes.find(node => node.type === 'OviDecode')
    const preview = LiteGraph.createNode('OviPreview')
    preview.pos = [decode.pos[0] + 600, decode.pos[1]]
    app.graph.add(preview)
    for (const [slot, name] of ['images', 'audio'].entries())
        decode.connect(slot, preview, preview.inputs.findIndex(input => input.name === name))
}"""
LOOK_AT_PREVIEW = """() => {
    app.canvas.ds.scale = 0.8
    app.canvas.centerOnNode(app.graph.nodes.find(node => node.type === 'OviPreview'))
}"""
PLAYER = "document.querySelector('.ovi-player > video')"
PLAYS_ALOUD = f"!{PLAYER}.paused && !{PLAYER}.muted"
# In pictures of the page, and drawn on the canvas.
SHEETS_SHOWN = """[...document.querySelectorAll('img')]
    .filter(image => image.src.includes('ComfyUI_temp')).length
    + (app.graph.nodes.find(node => node.type === 'OviPreview').imgs?.length ?? 0)"""


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_each_node_is_found_by_its_name(page, node):
    schema = node.define_schema()
    page.add_by_search(schema.display_name, *PLACE)
    assert page.types() == [schema.node_id]
    assert page.problems == []


def test_a_graph_built_by_hand_runs(page, small):
    """Each node by search, each link by dragging, then Run."""
    page.zoom(0.5)
    for name, place in BY_HAND.items():
        page.add_by_search(name, *place)
    for link in LINKS:
        page.wire(*link)
    page.set_widgets(
        small | {"length": 9, "prompt": "A red ball bounces once. Audio: one low knock."}
    )
    page.press_run()
    played = page.play_video()
    assert played["seconds"] == pytest.approx(9 / 24, abs=0.07)
    assert played["picture"] > 0
    assert played["sound"] > 0
    assert page.problems == []


def test_a_clip_is_heard_from_where_its_waveform_is_clicked(served, page, small):
    page.load(json.loads(TEXTS["Ovi_13_All_nodes_miniature"]), "player")
    page.page.evaluate(ADD_PREVIEW)
    page.set_widgets(small | {"length": 21, "batch_size": 2})
    page.page.evaluate(LOOK_AT_PREVIEW)
    page.press_run()
    page.wait_until(f"{PLAYER}?.readyState >= 2")
    assert page.page.evaluate("app.graph.nodes.at(-1).size[0]") == 480
    page.page.evaluate(LOOK_AT_PREVIEW)  # it has grown
    assert page.page.evaluate(f"{PLAYER}.muted")  # until it is asked for
    assert page.page.evaluate(SHEETS_SHOWN) == 1
    assert page.page.locator(".ovi-clips video").count() == 2
    for with_vue in (False, True) if served.is_newest else (False,):
        page.draw_nodes_with_vue(with_vue)
        hear(page, part=0.25 + 0.5 * with_vue)
        assert page.page.evaluate(SHEETS_SHOWN) == 1
    page.draw_nodes_with_vue(False)

    page.page.locator(".ovi-sheet").press("Space")
    page.wait_until(f"{PLAYER}.paused")
    first = page.page.evaluate(f"{PLAYER}.src")
    page.page.locator(".ovi-clips button").nth(1).click()
    page.wait_until(f"first => {PLAYER}.src !== first && {PLAYS_ALOUD}", first)
    saved = page.page.evaluate("app.graph.serialize()")
    (preview,) = [node for node in saved["nodes"] if node["type"] == "OviPreview"]
    assert preview["widgets_values"] == [24]
    page.load(saved, "opened again")
    page.page.evaluate(LOOK_AT_PREVIEW)
    page.page.wait_for_timeout(500)
    assert page.page.locator(".ovi-player").count() == 1
    assert page.page.locator(".ovi-player > *").count() == 0
    assert page.problems == []


def test_a_film_plays_on_while_it_is_made(page):
    """Past its first of three blocks, of 21 frames; the page alone would begin anew, and stand."""
    page.load(json.loads(TEXTS["Ovi_13_All_nodes_miniature"]), "film")
    page.page.evaluate(SAMPLE_IN_BLOCKS)
    page.set_widgets({"length": 69, "steps": 4, "cfg": 1, "audio_cfg": 1})
    page.press_run()
    page.wait_until(f"{FILM_SO_FAR}?.duration > 1.8 && {FILM_SO_FAR}.currentTime > 21 / 24")
    assert page.problems == []


def test_only_nodes_of_a_graph_are_looked_at(page):
    for node in ("OviPreview", "OviStreamingSampler", "OviTextEncode"):
        page.page.evaluate(ADD, node)
    assert page.page.evaluate(COPY_ALL) == [0, 3]
    assert page.problems == []


def hear(page, part):
    """Click on the sheet at a part of the clip's time."""
    # So slow that it is still there when a busy page is asked.
    page.page.evaluate(f"{PLAYER}.playbackRate = 1 / 16, {PLAYER}.pause()")
    sheet = page.page.locator(".ovi-sheet")
    width, height = (sheet.bounding_box()[side] for side in ("width", "height"))
    start, end = TIME_AXIS
    sheet.click(position={"x": width * (start + part * (end - start)), "y": 0.7 * height})
    page.wait_until(f"!{PLAYER}.seeking && {PLAYS_ALOUD}")
    assert page.page.evaluate(f"{PLAYER}.currentTime") == pytest.approx(part * 21 / 24, abs=0.1)


def test_a_dropped_link_offers_what_comes_next_below_nodes_of_core(page):
    """Not before there is a node of Ovi. The page makes its lists anew when their length is set."""
    page.page.evaluate(SUGGEST, 4)
    page.page.evaluate(ADD, "CheckpointLoaderSimple")
    offered = page.drop_link("CheckpointLoaderSimple", "CLIP", *EMPTY_PLACE)
    assert "CLIPTextEncode" in offered
    assert "OviTextEncode" not in offered
    page.page.locator(".litecontextmenu").get_by_text("CLIPTextEncode").click()
    page.clear()
    page.page.evaluate(ADD, "OviMiniature")
    assert page.drop_link("OviMiniature", "clip", *EMPTY_PLACE) == [*offered, "OviTextEncode"]
    page.page.locator(".litecontextmenu").get_by_text("OviTextEncode").click()
    page.wait_until(IS_WIRED, ["OviMiniature", "clip", "OviTextEncode", "clip"])
    page.page.evaluate(SUGGEST, 5)
    assert page.problems == []


@pytest.fixture
def web_page(served):
    """What a download leaves at times: a page of text under the name of a text encoder."""
    path = served.base / "models" / "text_encoders" / WEB_PAGE
    path.write_text("<!DOCTYPE html><title>404 Not Found</title>")
    yield
    path.unlink()


@pytest.mark.parametrize(("name", "wrong", "sentence"), FAULTS, ids=lambda fault: str(fault)[:40])
@pytest.mark.usefixtures("web_page")
def test_an_error_is_told_on_the_canvas(page, name, wrong, sentence):
    page.load(json.loads(TEXTS[name]), name)
    page.set_widgets(wrong)
    page.press_run()
    told = page.page.get_by_text(sentence).first
    told.wait_for()


def test_the_prompt_is_read_as_it_is_typed(page):
    page.add_by_search("Ovi Text Encode", *PLACE)
    area = page.page.locator("textarea").first
    area.click()
    area.fill("")
    page.page.keyboard.type("She says <S>Hello there, my friend<E> Audio: rain")
    page.page.get_by_text("Speech of about 1.7 s").wait_for()
    page.page.locator(".ovi-ruler-sound", has_text="rain").wait_for()
    (block,) = page.page.locator(".ovi-ruler-speech").all()
    assert block.text_content() == "Hello there, my friend"
    assert block.is_visible()  # a new node has room for it
    assert "is-late" not in block.get_attribute("class")
    for long in (1, 2):
        page.page.keyboard.type(" <S>one two three four five six seven eight<E>")
        page.page.get_by_text(f"Speech of about {1.667 + long * 8 * 5 / 12:.1f} s").wait_for()
    assert page.page.locator(".ovi-ruler-speech.is-late").count() == 1  # past 5 s
    page.page.keyboard.type(" <S>")
    page.page.get_by_text("<S> is not closed").wait_for()
    area.fill("She says <S>Hello<E>")
    page.page.locator(".ovi-ruler-sound", has_text="no sound is described").wait_for()
    area.fill("<img1>: a woman identified as <sub1>. <sub1> says <S>Hello<E>")
    page.page.locator(".ovi-ruler-sound", has_text="follows from the sentences").wait_for()
    assert page.problems == []


def test_the_ruler_speaks_the_language_of_the_page(page):
    page.add_by_search("Ovi Text Encode", *PLACE)
    page.page.get_by_text("No speech.").wait_for()
    page.page.evaluate(LANGUAGE, "fr")
    try:
        page.page.get_by_text("Pas de parole.").wait_for()
        assert page.problems == []
    finally:
        page.page.evaluate(LANGUAGE, "en")
        page.open_link("Ovi_01_Miniature_no_download")  # opened anew, all of it is English


def test_what_is_wrong_with_a_prompt_is_mended_by_a_click(page):
    page.add_by_search("Ovi Text Encode", *PLACE)
    page.set_widgets({"prompt": 'A man says "Hello there"'})
    for says in ("Nothing is said of the sound", "is not spoken"):
        page.page.locator(".ovi-prompt-line", has_text=says).wait_for()
        page.page.locator(".ovi-prompt-mend").click()
    page.page.get_by_text("Speech of about 0.8 s").wait_for()
    (asked,) = page.api_form().values()
    expected = "A man says <S>Hello there<E>\n\nAudio: quiet room tone."
    assert asked["inputs"]["prompt"] == expected
    page.page.locator(".ovi-prompt-examples").select_option("A singer on a stage")
    page.page.locator(".ovi-ruler-speech", has_text="Carry me home tonight.").wait_for()
    assert page.problems == []


@pytest.mark.parametrize("is_light", [False, True], ids=["dark", "light"])
def test_the_ruler_is_legible(page, is_light):
    page.page.evaluate(PALETTE, "light" if is_light else "dark")
    try:
        page.add_by_search("Ovi Text Encode", *PLACE)
        page.set_widgets(
            {"prompt": "A <s>man<E> <S>one two<E> <S>" + "word " * 40 + "<E> Audio: x"}
        )
        page.page.locator(".ovi-ruler-speech.is-late").wait_for()
        contrasts = page.page.evaluate(CONTRASTS)
        assert len(contrasts) >= 5
        assert min(contrasts.values()) >= 4.5, contrasts
    finally:
        page.page.evaluate(PALETTE, "dark")


def test_each_example_is_in_the_form_that_ovi_reads(page):
    script = """async module => {
        const { EXAMPLES } = await import(`${module}/prompt_examples.js`)
        const { findMends } = await import(`${module}/prompt_mends.js`)
        return Object.values(EXAMPLES).map(text => [text, findMends(text)])
    }"""
    examples = page.page.evaluate(script, f"/extensions/{EXTENSION}/js")
    assert len(examples) >= 6
    for text, mends in examples:
        check_prompt(text)
        assert advise(text) == mends == []


@pytest.mark.parametrize("prompt", MENDED)
def test_a_mended_prompt_has_nothing_left_to_say(page, prompt):
    """The page's rules and the node's, in two languages."""
    script = """async ([module, prompt]) => {
        const { findMends } = await import(`${module}/prompt_mends.js`)
        for (let mends; (mends = findMends(prompt)).length;) prompt = mends[0].mended
        return prompt
    }"""
    mended = page.page.evaluate(script, [f"/extensions/{EXTENSION}/js", prompt])
    assert said_of(prompt)
    assert not said_of(mended)
    assert mend_prompt(prompt) == mended


def said_of(prompt):
    """What the node says of a prompt, refused or advised."""
    try:
        check_prompt(prompt)
    except ValueError as error:
        return [str(error)]
    return advise(prompt) or ["It is long."] * (len(prompt.split()) > 350)


def test_a_workflow_reads_and_plays_with_nodes_2_0(served, page):
    """The page's other way to draw nodes."""
    page.draw_nodes_with_vue(True)
    try:
        page.open_template("Ovi_13_All_nodes_miniature")
        page.page.get_by_text("No speech in a clip of 1.5 s").wait_for()
        page.set_widgets({"steps": 2, "prompt": "A red face says <S>ba ba<E>. Audio: a low voice."})
        page.page.get_by_text("Speech of about 0.8 s in a clip of 1.5 s").wait_for()
        if served.is_newest:  # where Nodes 2.0 is an experiment, it takes every video for a picture
            page.press_run()
            assert page.play_video()["sound"] > 0
        assert page.problems == []
    finally:
        page.draw_nodes_with_vue(False)


def test_reading_the_prompt_leaves_no_trace_in_what_is_saved(page):
    page.add_by_search("Ovi Text Encode", *PLACE)
    page.set_widgets({"prompt": "A cat. Audio: purring."})
    page.page.get_by_text("No speech").wait_for()
    (saved,) = page.page.evaluate("app.graph.nodes.map(node => node.serialize().widgets_values)")
    assert saved[0] == "A cat. Audio: purring."
    assert len(saved) == 4
    (asked,) = page.api_form().values()
    assert set(asked["inputs"]) == {"prompt", "video_negative", "audio_negative", "sound_tag"}


SAVED_BY_BLUEPRINT = """app.graph.nodes.find(node => node.isSubgraphNode?.())
    .serialize().widgets_values ?? []"""


def test_a_blueprint_that_shows_the_prompt_has_the_ruler(page):
    page.load(json.loads(TEXTS["Ovi_01_Miniature_no_download"]), "miniature")
    before = page.page.evaluate(SAVED_BY_BLUEPRINT)
    # The node inside has a ruler of its own, which is not in sight.
    line = page.page.locator(".ovi-prompt-line:visible")
    line.filter(has_text="Speech of about 1.3 s in a clip of 1.5 s").wait_for()
    assert page.page.evaluate(SAVED_BY_BLUEPRINT) == before
    typed = {"prompt": 'A face says "ba ba". Audio: a voice.', "length": 61}
    page.page.evaluate(SET_ON_BLUEPRINT, typed)
    line.filter(has_text="is not spoken").wait_for()
    page.page.locator(".ovi-prompt-mend:visible").click()
    line.filter(has_text="in a clip of 2.5 s").wait_for()
    inside = {node["class_type"]: node["inputs"] for node in page.api_form().values()}
    assert inside["OviTextEncode"]["prompt"] == "A face says <S>ba ba<E>. Audio: a voice."
    assert page.problems == []


def test_the_length_of_a_latent_is_told_in_seconds(page):
    page.add_by_search("Ovi Latent", *PLACE)
    page.set_widgets({"length": 241})
    labels = page.page.evaluate("app.graph.nodes[0].widgets.map(widget => widget.label)")
    assert sum("(10.04 s)" in (label or "") for label in labels) == 1
    assert "10.04" not in page.page.evaluate("JSON.stringify(app.graph.serialize())")
    assert page.problems == []


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_page_finds_the_faults_that_the_node_finds(page, prompt):
    """One list of rules in two languages."""
    module = f"/extensions/{EXTENSION}/js/prompt_parts.js"
    script = "async ([module, prompt]) => (await import(module)).readPrompt(prompt)"
    read = page.page.evaluate(script, [module, prompt])
    assert "".join(part["text"] for part in read["parts"]) == prompt
    try:
        check_prompt(prompt)
    except ValueError:
        assert read["faults"]
    else:
        assert not read["faults"]


def test_the_blueprints_are_offered(served):
    offered = [entry["name"] for entry in served.server.get("/global_subgraphs").values()]
    assert {path.stem for path in BLUEPRINTS} <= set(offered)


@pytest.mark.parametrize(
    "path",
    [path for path in BLUEPRINTS if path.stem != LOADERS_ALONE],
    ids=lambda path: path.stem,
)
def test_a_blueprint_runs(page, small, path):
    page.load(json.loads(path.read_text(encoding="utf-8")), path.stem)
    page.page.evaluate(WIRE_BLUEPRINT)
    page.page.evaluate(LOAD_MINIATURE)
    page.page.evaluate(LEAVE_SIZE)
    page.set_widgets(small | {"length": 9})
    goes_on = "continue" in path.stem
    if goes_on:
        page.set_widgets(FILM)
    # Set on the blueprint alone, what it shows reaches the nodes inside.
    shown = {
        "prompt": "A red ball bounces once. Audio: one low knock.",
        "length": 5,
        "seconds": 1 / 6,
        "noise_seed": 4321,
    }
    frames = FILM["batch_size"] + 4 if goes_on else shown["length"]
    page.page.evaluate(SET_ON_BLUEPRINT, shown)
    nodes = list(page.api_form().values())
    inside = {node["class_type"]: node["inputs"] for node in nodes}
    assert inside["OviTextEncode"]["prompt"] == shown["prompt"]
    if goes_on:
        assert inside["OviContinue"]["seconds"] == pytest.approx(shown["seconds"])
    else:
        assert inside["OviLatent"]["length"] == shown["length"]
    assert shown["noise_seed"] in [node["inputs"].get("noise_seed") for node in nodes]
    page.press_run()
    played = page.play_video()
    assert played["seconds"] == pytest.approx(frames / 24, abs=0.07)
    assert played["sound"] > 0
    assert page.problems == []


def test_the_prompt_writer_is_offered_where_comfyui_can_write(served, page):
    """Where it cannot, the page has no node that would be red."""
    offered = [entry["name"] for entry in served.server.get("/global_subgraphs").values()]
    can_write = page.page.evaluate("'TextGenerate' in LiteGraph.registered_node_types")
    assert (WRITER in offered) == can_write
    if can_write:
        page.add_by_search(WRITER, *PLACE)
        asked = {node["class_type"]: node["inputs"] for node in page.api_form().values()}
        assert list(asked) == ["StringConcatenate", "TextGenerate", "OviMendPrompt"]
        assert asked["StringConcatenate"]["string_b"].startswith("An old fisherman")
    assert page.problems == []


@pytest.mark.parametrize("name", ["Ovi_02_Text_to_talking_video", "Ovi_14_All_nodes_text"])
def test_every_file_that_is_missing_is_offered(page, name):
    """Of all five; pages offer what is a safetensors file and has an address they trust."""
    text = TEXTS[name]
    files = set(re.findall(r'"name": "(.+\.safetensors)"', text))
    assert len(files) == 5
    for file in files:
        text = text.replace(f'"{file}"', f'"absent_{file}"')
    page.load(json.loads(text), "absent")
    page.page.get_by_text("Missing Models").or_(page.page.get_by_text("View details")).first.click()
    page.page.locator("span, button").get_by_text("absent_").nth(4).wait_for()
    offered = page.page.get_by_role("button", name=re.compile("^Download(?! all)"))
    offered.nth(4).wait_for()
    assert offered.count() == 5
    assert page.problems == []


def test_help_speaks_the_language_of_the_page(page):
    page.page.evaluate(LANGUAGE, "ja")
    try:
        page.add_by_search("Ovi Latent", *PLACE)
        page.page.get_by_test_id("info-button").click()
        page.page.get_by_text("よくある間違い").wait_for()  # common mistakes
        page.wait_until(SHOWN_PICTURES, ["OviLatent.jpg"])
        assert page.problems == []
    finally:
        page.page.evaluate(LANGUAGE, "en")
        page.open_link("Ovi_01_Miniature_no_download")


def test_help_shows_its_pictures(page):
    """The last test on a page: help stays open beside the canvas."""
    page.add_by_search("Ovi Preview", *PLACE)
    page.page.get_by_test_id("info-button").click()
    page.page.get_by_text("What counts as speech.").wait_for()
    page.wait_until(
        SHOWN_PICTURES, ["OviPreview.jpg", "miniature_speaks.jpg", "miniature_plays.jpg"]
    )
    assert page.problems == []
