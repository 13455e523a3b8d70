"""Templates as people use them, in ComfyUI's real page: opened from its dialog, run and played;
then the files they leave.
"""

import json
from datetime import date, timedelta

import pytest
from comfy_server import EXTENSION
from comfyui_ovi.ovi_model.template_links import RENAMED
from miniature_on_canvas import LEAVE_SIZE, LOAD_MINIATURE
from workflow_files import WORKFLOWS, skip_if_newer

pytestmark = pytest.mark.browser
NEEDS_ENCODER = (
    "Ovi_03_Picture_to_talking_video",
    "Ovi_15_All_nodes_picture",
    "Ovi_04_Voice_recording_to_video",
    "Ovi_05_Sound_for_a_video",
    "Ovi_06_Film_of_three_shots",
    "Ovi_16_A_face_and_a_voice",
    "Ovi_17_Train_a_LoRA",
    "Ovi_19_Two_people",
)
MINIATURE = (
    "Ovi_01_Miniature_no_download",
    "Ovi_13_All_nodes_miniature",
    "Ovi_18_References_miniature",
)


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS])
def test_a_template_opens_runs_and_plays(page, small, name):
    page.open_template(name)
    skip_if_newer(page.missing_nodes())
    assert page.missing_nodes() == []
    frames = 37
    if name not in MINIATURE:
        page.set_widgets(small)
        frames = small["length"]
    if name == "Ovi_06_Film_of_three_shots":
        page.set_widgets({"length": 13, "seconds": 1 / 6})
        frames = 13 + 4 + 4
    if name in NEEDS_ENCODER:
        # The small video VAE cannot encode a picture on ComfyUI 0.3.75; the miniature's can.
        page.page.evaluate(LOAD_MINIATURE)
        page.page.evaluate(LEAVE_SIZE)
    page.press_run()
    played = page.play_video()
    assert played["seconds"] == pytest.approx(frames / 24, abs=0.07)
    assert played["picture"] > 0
    assert played["sound"] > 0
    assert page.problems == []


CARDS = """() => [...document.querySelectorAll('[data-testid^=template-workflow-]')]
    .map(card => card.dataset.testid.replace('template-workflow-', ''))"""
# Pixels of the first card's picture, as shown.
FIRST_PICTURE = """() => {
    const [card] = document.querySelectorAll('[data-testid^=template-workflow-]')
    const image = card.querySelector('img')
    return image?.naturalWidth ? [image.naturalWidth, image.naturalHeight] : null
}"""


def test_cards_stand_in_the_order_of_their_names_with_pictures(page):
    names = sorted(path.stem for path in WORKFLOWS)
    first = page.open_cards().get_by_test_id(f"template-workflow-{names[0]}")
    first.wait_for()
    page.wait_until(FIRST_PICTURE)
    size, shown = page.page.evaluate(FIRST_PICTURE), page.page.evaluate(CARDS)
    first.click()  # older pages close their cards in no other way that a key could take
    first.wait_for(state="hidden")
    assert size == [320, 320]
    assert [name for name in shown if name in names] == names
    assert page.problems == []


def test_a_template_for_newcomers_is_an_app(served, page):
    """Where the page has apps; another shows its few nodes."""
    page.open_template("Ovi_01_Miniature_no_download")
    assert len(page.types()) <= 6
    if served.is_newest:
        page.show_app(True)
        shown = page.page.get_by_test_id("linear-widgets")
        for label in ("prompt", "frames (37 = 1.5 s)", "width (pixels)", "steps", "seed"):
            shown.get_by_text(label, exact=True).first.wait_for()
    assert page.problems == []


def test_a_dropped_video_gives_its_workflow_back(served, page):
    page.open_template("Ovi_13_All_nodes_miniature")
    page.set_widgets({"steps": 2, "noise_seed": 4321})
    page.press_run()
    page.play_video()
    saved = max(served.base.glob("output/video/*.mp4"), key=lambda path: path.stat().st_mtime)
    page.clear()
    page.drop_file(f"/view?filename={saved.name}&subfolder=video&type=output", saved.name)
    page.wait_until("app.graph.nodes.some(node => node.type === 'OviMiniature')")
    noise = next(node for node in page.api_form().values() if node["class_type"] == "RandomNoise")
    assert noise["inputs"]["noise_seed"] == 4321
    assert page.problems == []


SAVE_LATENT = """() => {
    const graph = app.graph, saver = LiteGraph.createNode('OviSaveLatent')
    graph.add(saver)
    graph.nodes.find(node => node.type === 'SamplerCustomAdvanced').connect(0, saver, 0)
    saver.widgets[0].value = 'latents/%date:yyyy%-%RandomNoise.noise_seed%'
}"""


def test_a_dropped_latent_gives_its_workflow_back_and_is_in_the_list(served, page):
    page.open_template("Ovi_13_All_nodes_miniature")
    page.set_widgets({"steps": 2, "noise_seed": 5432})
    page.page.evaluate(SAVE_LATENT)
    page.press_run()
    page.play_video()
    (saved,) = served.base.glob("output/latents/*.safetensors")
    assert saved.name == f"{date.today().year}-5432_00001_.safetensors"
    page.clear()
    page.drop_file(f"/view?filename={saved.name}&subfolder=latents&type=output", saved.name)
    page.wait_until("app.graph.nodes.some(node => node.type === 'OviMiniature')")
    noise = next(node for node in page.api_form().values() if node["class_type"] == "RandomNoise")
    assert noise["inputs"]["noise_seed"] == 5432
    listed = page.page.evaluate("fetch('/object_info/OviLoadLatent').then(info => info.json())")
    (options, *more) = listed["OviLoadLatent"]["input"]["required"]["file"]
    choices = more[0]["options"] if options == "COMBO" else options
    assert f"latents/{saved.name} [output]" in choices
    assert page.problems == []


def test_a_file_name_is_filled_in(served, page):
    """With the date and with what another node is set to; what is saved in the workflow stays as
    typed.
    """
    typed = "video/%date:yyyy-MM-dd%_%RandomNoise.noise_seed%_%width%"
    page.open_template("Ovi_13_All_nodes_miniature")
    page.set_widgets({"steps": 2, "noise_seed": 77, "filename_prefix": typed})
    page.press_run()
    page.play_video()
    (saved,) = served.base.glob("output/video/*_77_64_*.mp4")
    assert abs(date.fromisoformat(saved.name.split("_")[0]) - date.today()) <= timedelta(days=1)
    assert typed in page.page.evaluate("JSON.stringify(app.graph.serialize())")
    assert page.problems == []


def test_a_link_opens_a_template_as_an_app(served, page):
    """Where the page has apps. This test and the next are the last on a page: it is opened anew."""
    page.open_link("Ovi_01_Miniature_no_download", as_app=True)
    assert "OviSaveVideo" in page.types()
    if served.is_newest:
        page.page.get_by_test_id("linear-widgets").get_by_text("steps", exact=True).wait_for()


def test_a_link_to_an_earlier_name_opens_its_template(served, page):
    workflows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in WORKFLOWS}
    for old, new in RENAMED.items():
        address = f"/api/workflow_templates/{EXTENSION}/{old}.json"
        assert served.server.get(address) == workflows[new]
    page.open_link("ovi_miniature")
    assert "OviMiniature" in page.types()
