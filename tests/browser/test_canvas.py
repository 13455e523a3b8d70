"""What people do on the canvas, in ComfyUI's real page: open templates, run them, add and wire nodes, drop files."""

import json

import pytest
from comfyui_ovi.nodes import NODES
from comfyui_ovi.ovi_model.prompt import check_prompt
from workflow_files import WORKFLOWS

pytest.importorskip("playwright", reason="the Python package playwright is not installed")
from comfy_page import find_chromium
from comfy_server import EXTENSION, REPOSITORY

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not find_chromium(), reason="no Chromium found: install one or set CHROMIUM to its path"),
]
MIDDLE = (960, 540)
SMALL = {"width": 64, "height": 64, "length": 5, "steps": 2, "model_area": "720x720", "skip_layer": -1}
# Puts the miniature in the place of all four loaders.
LOAD_MINIATURE = """() => {
    const graph = app.graph, miniature = LiteGraph.createNode('OviMiniature')
    graph.add(miniature)
    for (const [slot, type] of ['UNETLoader', 'OviTextEncoderLoader', 'VAELoader', 'OviAudioVAELoader'].entries()) {
        const loader = graph.nodes.find(node => node.type === type)
        for (const id of [...loader.outputs[0].links]) {
            const link = graph.links.get(id)
            miniature.connect(slot, graph.getNodeById(link.target_id), link.target_slot)
        }
        graph.remove(loader)
    }
}"""
BLUEPRINTS = sorted((REPOSITORY / "subgraphs").glob("*.json"))
# Gives a blueprint the miniature before it, a node that saves behind it, and a picture if it takes one.
WIRE_BLUEPRINT = """() => {
    const graph = app.graph, [blueprint] = graph.nodes
    const add = type => { const node = LiteGraph.createNode(type); graph.add(node); return node }
    const input = (node, name) => node.inputs.findIndex(input => input.name === name)
    const miniature = add('OviMiniature'), save = add('OviSaveVideo')
    for (const [slot, name] of ['model', 'clip', 'vae', 'audio_vae'].entries())
        miniature.connect(slot, blueprint, input(blueprint, name))
    for (const [slot, name] of ['images', 'audio'].entries()) blueprint.connect(slot, save, input(save, name))
    if (input(blueprint, 'image') >= 0) {
        const image = add('LoadImage')
        image.widgets[0].value = 'example.png'
        image.connect(0, blueprint, input(blueprint, 'image'))
    }
}"""
SET_ON_BLUEPRINT = """values => {
    for (const widget of app.graph.nodes[0].widgets) if (widget.name in values) widget.value = values[widget.name]
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
]


@pytest.fixture
def page(served):
    served.page.clear()
    return served.page


def text_of(page):
    return page.page.inner_text("body")


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS])
def test_a_template_opens_runs_and_plays(page, name):
    page.open_template(name)
    assert page.missing_nodes() == []
    frames = 37
    if name != "ovi_miniature":
        page.set_widgets(SMALL)
        frames = SMALL["length"]
    if name == "ovi_image_to_audio_video":
        # The small video VAE cannot encode a picture on ComfyUI 0.3.75; the miniature's can.
        page.page.evaluate(LOAD_MINIATURE)
    page.press_run()
    played = page.play_video()
    assert played["seconds"] == pytest.approx(frames / 24, abs=0.07)
    assert played["picture"] > 0
    assert played["sound"] > 0
    assert page.problems == []


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_each_node_is_found_by_its_name(page, node):
    schema = node.define_schema()
    page.add_by_search(schema.display_name, *MIDDLE)
    assert page.types() == [schema.node_id]
    assert page.problems == []


def test_two_nodes_are_wired_by_dragging(page):
    page.add_by_search("Ovi Miniature", 500, 400)
    page.add_by_search("Ovi Text Encode", 1100, 400)
    page.drag(page.slot("OviMiniature", False, "clip"), page.slot("OviTextEncode", True, "clip"))
    (encode,) = (node for node in page.api_form().values() if node["class_type"] == "OviTextEncode")
    assert encode["inputs"]["clip"][1] == 1
    assert page.problems == []


def test_a_dropped_video_gives_its_workflow_back(served, page):
    page.open_template("ovi_miniature")
    page.set_widgets({"steps": 2, "noise_seed": 4321})
    page.press_run()
    page.play_video()
    saved = max(served.base.glob("output/video/*.mp4"), key=lambda path: path.stat().st_mtime)
    page.clear()
    page.drop_file(f"/view?filename={saved.name}&subfolder=video&type=output", saved.name)
    page.page.wait_for_function("app.graph.nodes.some(node => node.type === 'OviMiniature')")
    noise = next(node for node in page.api_form().values() if node["class_type"] == "RandomNoise")
    assert noise["inputs"]["noise_seed"] == 4321


def test_an_error_is_told_on_the_canvas(served, page):
    page.open_template("ovi_miniature")
    page.set_widgets({"prompt": "A man says <S>Hello"})
    page.press_run()
    if served.is_newest:
        page.page.get_by_text("View details").first.click()
    page.page.get_by_text("'<S>' at line 1, column 12").first.wait_for()


def test_the_prompt_is_read_as_it_is_typed(page):
    page.add_by_search("Ovi Text Encode", *MIDDLE)
    area = page.page.locator("textarea").first
    area.click()
    area.fill("")
    page.page.keyboard.type("She says <S>Hello there, my friend<E> Audio: rain")
    page.page.wait_for_timeout(400)
    parts = page.page.evaluate(
        "[...document.querySelectorAll('.ovi-prompt-text span')].map(span => [span.className, span.textContent])"
    )
    assert ["ovi-prompt-speech", "Hello there, my friend"] in parts
    assert ["ovi-prompt-sound", " rain"] in parts
    assert "Speech of about 1.7 s" in text_of(page)
    page.page.keyboard.type(" <S>")
    page.page.wait_for_timeout(400)
    assert "<S> is not closed" in text_of(page)
    assert page.problems == []


def test_reading_the_prompt_leaves_no_trace_in_what_is_saved(page):
    page.add_by_search("Ovi Text Encode", *MIDDLE)
    page.set_widgets({"prompt": "A cat. Audio: purring."})
    page.page.wait_for_timeout(400)
    (saved,) = page.page.evaluate("app.graph.nodes.map(node => node.serialize().widgets_values)")
    assert saved[0] == "A cat. Audio: purring."
    assert len(saved) == 4
    (asked,) = page.api_form().values()
    assert set(asked["inputs"]) == {"prompt", "video_negative", "audio_negative", "sound_tag"}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_page_finds_the_faults_that_the_node_finds(page, prompt):
    """One list of rules in two languages."""
    script = f"async prompt => (await import('/extensions/{EXTENSION}/js/prompt_parts.js')).readPrompt(prompt)"
    read = page.page.evaluate(script, prompt)
    assert "".join(part["text"] for part in read["parts"]) == prompt
    try:
        check_prompt(prompt)
    except ValueError:
        assert read["faults"]
    else:
        assert not read["faults"]


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_offered_and_runs(served, page, path):
    offered = [entry["name"] for entry in served.server.get("/global_subgraphs").values()]
    assert path.stem in offered
    page.load(json.loads(path.read_text(encoding="utf-8")), path.stem)
    page.page.evaluate(WIRE_BLUEPRINT)
    page.set_widgets(SMALL)
    # Set on the blueprint alone, what it shows reaches the nodes inside.
    shown = {"prompt": "A red ball bounces once. Audio: one low knock.", "length": 9, "noise_seed": 4321}
    page.page.evaluate(SET_ON_BLUEPRINT, shown)
    inside = {node["class_type"]: node["inputs"] for node in page.api_form().values()}
    assert inside["OviTextEncode"]["prompt"] == shown["prompt"]
    assert inside["OviLatent"]["length"] == shown["length"]
    assert inside["RandomNoise"]["noise_seed"] == shown["noise_seed"]
    page.press_run()
    played = page.play_video()
    assert played["seconds"] == pytest.approx(shown["length"] / 24, abs=0.07)
    assert played["sound"] > 0
    assert page.problems == []
