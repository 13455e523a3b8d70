"""The shared workflows: well laid out, equal to their API-format twins, and run on the small
checkpoints.
"""

import copy
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_ovi.ovi_model.latent import geometry
from comfyui_ovi.ovi_model.load.video_vae import load_video_vae
from goldens import relative_error
from media import decode
from picture_cards import NOT_SHOWN, Card, with_miniature
from PIL import Image
from recording import write_tone, write_training_clips, write_video
from safetensors.torch import load_file
from small_files import with_small_files
from small_graph import CountForwards, parts
from workflow_files import skip_if_newer

pytestmark = pytest.mark.graph

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
PATHS = sorted(FOLDER.glob("*.json"))
NAMES = [path.stem for path in PATHS]
(
    TEXT,
    IMAGE,
    RECORDING,
    SOUND,
    SIMPLE,
    LORA,
    FEW_STEPS,
    CARDS,
    MINIATURE,
    TWO_PASS,
    UPSCALE,
    SHOTS,
    PERSON,
    TRAINING,
    REFERENCES,
    TWO_PEOPLE,
) = (
    "Ovi_14_All_nodes_text",
    "Ovi_15_All_nodes_picture",
    "Ovi_04_Voice_recording_to_video",
    "Ovi_05_Sound_for_a_video",
    "Ovi_11_One_KSampler",
    "Ovi_10_LoRA_and_upscaler",
    "Ovi_07_Fast_in_six_steps",
    "Ovi_12_Two_graphics_cards",
    "Ovi_13_All_nodes_miniature",
    "Ovi_08_Two_passes_larger",
    "Ovi_09_Upscaled_by_a_model",
    "Ovi_06_Film_of_three_shots",
    "Ovi_16_A_face_and_a_voice",
    "Ovi_17_Train_a_LoRA",
    "Ovi_18_References_miniature",
    "Ovi_19_Two_people",
)
# Few nodes, some of them blueprints; the others have all nodes on the canvas.
FEW = [
    "Ovi_01_Miniature_no_download",
    "Ovi_02_Text_to_talking_video",
    "Ovi_03_Picture_to_talking_video",
    *(RECORDING, SOUND, SHOTS, FEW_STEPS, TWO_PASS, UPSCALE, LORA, PERSON, REFERENCES, TWO_PEOPLE),
]
ALL_NODES = [name for name in NAMES if name not in FEW]
TWICE_AS_LARGE = (LORA, TWO_PASS, UPSCALE)
# What the canvas shows beside nodes that run, and the widgets it adds of its own.
NOTES = {"MarkdownNote"}
ONLY_ON_CANVAS = {"control_after_generate", "upload", "audioUI"}
BARS = 110  # pixels, height of the page's bars
TONE = 440  # Hz, of the recording, which is 5.1 and shorter than the clip
STRENGTHS = ("strength_video", "strength_audio", "strength_fusion")
SHRUNK = (
    "OviLatent",
    "OviScheduler",
    "KSampler",
    "ImageScale",
    "ImageFromBatch",
    "OviContinue",
    "OviReferences",
    "OviTrainingClips",
    "OviTrainLora",
)
# The recording lasts half a second, so voices are taken from its beginning.
SMALL = {
    "width": 96,
    "height": 64,
    "size": 64,
    "length": 25,
    "steps": 3,
    "seconds": 0.5,
    "voice_start": 0.0,
    "voice_2_start": 0.0,
}
FRAMES = {SHOTS: 25 + 2 * 12}
GROUPS = ["1 Load", "2 Describe", "3 Sample", "4 Decode and save"]
TRAINING_GROUPS = ["1 Load", "2 Clips", "3 Train", "4 Try it"]
READS_PICTURES = ("LoadImage", "LoadVideo", "OviContinue", "OviTrainingClips")


class LoadNarrowVideoVAE:
    """Core's Wan 2.2 VAE at width 16, for image-to-video: the stock VAE loader builds width 160
    only.
    """

    INPUT_TYPES = classmethod(lambda cls: {"required": {"vae_name": ("STRING", {})}})  # noqa: ARG005
    RETURN_TYPES = ("VAE",)
    FUNCTION = "load"
    CATEGORY = "tests"
    folder: Path

    def load(self, vae_name):
        return (load_video_vae(self.folder / vae_name),)


def on_canvas(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def api(name):
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def node_of(prompt, class_type):
    """The id of the one node of a type."""
    (found,) = [name for name, node in prompt.items() if node["class_type"] == class_type]
    return found


def shrunk(prompt):
    """The workflow with small files, sizes, length and steps; one that encodes pictures with the
    narrow video VAE.
    """
    prompt = with_small_files(copy.deepcopy(prompt))
    for node in prompt.values():
        if node["class_type"] == "VAELoader" and any(
            other["class_type"] in READS_PICTURES for other in prompt.values()
        ):
            node |= {
                "class_type": "LoadNarrowVideoVAE",
                "inputs": {"vae_name": "wan22_encoder_small.safetensors"},
            }
        small = SMALL if node["class_type"] in SHRUNK else {}
        given = {name for name in small if name in node["inputs"]}
        if node["inputs"].get("length") == 1:
            given.discard("length")  # one picture of a batch
        node["inputs"] |= {name: small[name] for name in given}
    return prompt


@pytest.fixture(scope="module")
def make(runtime, small_files):
    """Run a shared workflow once, shrunk; its prompt, result and video."""
    LoadNarrowVideoVAE.folder = small_files / "vae"
    gradient = np.linspace(0, 255, 96 * 64 * 3).reshape(64, 96, 3)
    Image.fromarray(gradient.astype(np.uint8)).save(runtime.input / "example.png")
    write_tone(runtime.input / "recording.wav", TONE, seconds=0.5, channels=6)
    write_video(runtime.input / "clip.mp4", (SMALL["length"] + 8, SMALL["height"], SMALL["width"]))
    write_training_clips(runtime.input / "training_clips")
    made = {}

    def make_one(name):
        skip_if_newer(missing_nodes(runtime, name))
        if name not in made:
            prompt = shrunk(api(name))
            made[name] = prompt, *run(runtime, prompt, name)
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "LoadNarrowVideoVAE", LoadNarrowVideoVAE)
        yield make_one


def run(runtime, prompt, name):
    result = runtime.run(prompt, extra_data={"extra_pnginfo": {"workflow": on_canvas(name)}})
    assert result.ok, result.error
    (shown,) = result.outputs[node_of(prompt, "OviSaveVideo")]["images"]
    return result, decode(runtime.output / shown["subfolder"] / shown["filename"])


def missing_nodes(runtime, name):
    """Nodes of a workflow that this ComfyUI does not know."""
    types = {node["type"] for node in every_node(on_canvas(name))} - NOTES
    return types - set(runtime.nodes.NODE_CLASS_MAPPINGS)


def every_node(workflow):
    """The nodes of the canvas and of its subgraphs, but for those that stand for a subgraph."""
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    nodes = [node for graph in (workflow, *subgraphs) for node in graph["nodes"]]
    return [node for node in nodes if node["type"] not in {graph["id"] for graph in subgraphs}]


def test_all_are_there():
    all_nodes = [TEXT, IMAGE, SIMPLE, CARDS, MINIATURE, TRAINING]
    assert sorted(NAMES) == sorted([*FEW, *all_nodes])
    assert sorted(path.stem for path in (FOLDER / "api").glob("*.json")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_video_has_the_frames_and_the_sound(make, name):
    prompt, _, video = make(name)
    scale = 2 if name in TWICE_AS_LARGE else 1
    assert video.frames.shape == (
        FRAMES.get(name, SMALL["length"]),
        SMALL["height"] * scale,
        SMALL["width"] * scale,
        3,
    )
    assert video.rate == 24
    assert video.frames.std() > 0.01
    assert np.abs(video.sound).max() > 1e-4
    assert abs(video.sound_seconds - len(video.frames) / 24) <= 1024 / video.sound_rate
    assert json.loads(video.tags["workflow"]) == on_canvas(name)
    assert json.loads(video.tags["prompt"]) == prompt


def test_the_clip_starts_with_the_image(make):
    """The first decoded frame is what the VAE makes of the image alone."""
    prompt, result, _ = make(IMAGE)
    vae, image = (
        result.value(node_of(prompt, kind)) for kind in ("LoadNarrowVideoVAE", "LoadImage")
    )
    frames = result.value(node_of(prompt, "OviDecode"))
    with torch.no_grad():
        expected = vae.decode(vae.encode(image))[0, 0]
    assert image.shape[1:3] == (SMALL["height"], SMALL["width"])
    torch.testing.assert_close(frames[0], expected, rtol=0, atol=1e-3)
    assert (frames[1] - frames[0]).abs().mean() > 1e-2


def test_a_short_recording_is_held_filled_with_silence_and_kept(make):
    """The sound that is sampled is the recording's latent, and what is saved is the recording, not
    its decoding.
    """
    prompt, result, video = make(RECORDING)
    _, sampled = parts(result.value(node_of(prompt, "SamplerCustomAdvanced")))
    _, held = parts(result.value(node_of(prompt, "OviHoldSound")))
    assert held.std() > 0
    assert torch.equal(sampled, held)

    rate = video.sound_rate
    heard, silent = video.sound[..., : rate // 2 - 2048], video.sound[..., rate // 2 + 4096 :]
    spectrum = np.abs(np.fft.rfft(heard.mean(axis=0)))
    assert abs(spectrum.argmax() * rate / heard.shape[-1] - TONE) < 5
    assert np.abs(silent).max() < 0.02


def test_the_face_and_the_voice_count(runtime, make):
    """The clip is another without either, and every step has four predictions."""
    prompt, result, _ = make(PERSON)
    sampler = node_of(prompt, "SamplerCustomAdvanced")
    made = parts(result.value(sampler))
    for name, stream in (("image", 0), ("voice", 1)):
        without = copy.deepcopy(prompt)
        del without[node_of(prompt, "OviReferences")]["inputs"][name]
        other, _ = run(runtime, without, PERSON)
        assert relative_error(parts(other.value(sampler))[stream], made[stream]) > 1e-3


def test_sound_is_made_for_a_video_that_is_kept_as_it_was(runtime, make):
    """The picture is held and saved as it was loaded; the sound is another without steering."""
    prompt, result, video = make(SOUND)
    loaded = result.value(node_of(prompt, "ImageFromBatch")).numpy()
    assert np.abs(video.frames - loaded).mean() < 0.03
    held, _ = parts(result.value(node_of(prompt, "OviHoldPictures")))
    picture, sound = parts(result.value(node_of(prompt, "SamplerCustomAdvanced")))
    torch.testing.assert_close(picture, held, rtol=0, atol=1e-4)

    prompt = copy.deepcopy(prompt)
    prompt[node_of(prompt, "OviSteer")]["inputs"]["strength"] = 0.0
    without, _ = run(runtime, prompt, SOUND)
    _, plain = parts(without.value(node_of(prompt, "SamplerCustomAdvanced")))
    assert relative_error(sound, plain) > 1e-2


def test_the_image_decides_the_size(runtime, make):
    make(IMAGE)
    prompt = api(IMAGE)
    size, latent = node_of(prompt, "OviImageSize"), prompt[node_of(prompt, "OviLatent")]["inputs"]
    assert (latent["width"], latent["height"]) == ([size, 0], [size, 1])
    prompt = {name: prompt[name] for name in (size, node_of(prompt, "LoadImage"))}
    prompt["shown"] = {"class_type": "PreviewAny", "inputs": {"source": [size, 0]}}
    result = runtime.run(prompt)
    assert result.ok, result.error
    width, height = result.value(size, 0), result.value(size, 1)
    geometry.check_size(width, height, 121)
    assert abs(width * height / 960**2 - 1) < 0.05
    assert abs(width / height / 1.5 - 1) < 0.05


def test_the_lora_counts(runtime, make):
    prompt, with_lora, _ = make(LORA)
    prompt = copy.deepcopy(prompt)
    prompt[node_of(prompt, "LoraLoaderModelOnly")]["inputs"]["strength_model"] = 0.0
    without, _ = run(runtime, prompt, LORA)
    sampler = node_of(prompt, "SamplerCustomAdvanced")
    for changed, plain in zip(
        parts(with_lora.value(sampler)), parts(without.value(sampler)), strict=True
    ):
        assert relative_error(changed, plain) > 1e-2


def test_the_second_pass_changes_both_streams_of_the_enlarged_first(make):
    """It starts from the middle of the schedule, at a noise level of 0.83."""
    prompt, result, _ = make(TWO_PASS)
    (first,) = [
        node["inputs"]["latent"][0] for node in prompt.values() if "latent" in node["inputs"]
    ]
    (again,) = [
        node["inputs"]["samples"][0]
        for node in prompt.values()
        if node["class_type"] == "OviDecode"
    ]
    given = parts(result.value(node_of(prompt, "OviConcatLatent")))
    made = parts(result.value(again))
    assert torch.equal(given[1], parts(result.value(first))[1])
    assert given[0].shape == made[0].shape
    noise = [float(result.value(prompt[name]["inputs"]["sigmas"][0])[0]) for name in (first, again)]
    assert noise[0] > 0.99
    assert 0.8 < noise[1] < 0.85
    for before, after in zip(given, made, strict=True):
        assert relative_error(after, before) > 1e-2


def test_the_training_is_saved_drawn_and_tried(runtime, make):
    """The saved file is what was trained, and the sample is another without it."""
    prompt, result, _ = make(TRAINING)
    trainer = node_of(prompt, "OviTrainLora")
    weights, losses = (result.value(trainer, slot) for slot in (0, 1))
    assert len(losses["loss"]) == SMALL["steps"]
    (saved,) = (runtime.output / "loras").glob("my_lora_3_steps_*.safetensors")
    kept = load_file(saved)
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], weights[name]) for name in kept)
    assert result.outputs[node_of(prompt, "LossGraphNode")]["images"]
    (read,) = result.outputs[node_of(prompt, "PreviewAny")]["text"]
    assert read == "training_clips: 2 clips (2 of 64 x 64 x 25)"

    prompt = copy.deepcopy(prompt)
    prompt[node_of(prompt, "LoraModelLoader")]["inputs"]["strength_model"] = 0.0
    without, _ = run(runtime, prompt, TRAINING)
    sampler = node_of(prompt, "KSampler")
    for taught, plain in zip(
        parts(result.value(sampler)), parts(without.value(sampler)), strict=True
    ):
        assert relative_error(taught, plain) > 1e-4


@pytest.mark.usefixtures("make")
def test_the_miniature_can_be_trained_in_the_place_of_the_files(runtime):
    """With the size and rank that the template's note gives for it; fewer frames and steps."""
    prompt = with_miniature(api(TRAINING), Card(["A red face says <S>ba<E>. Audio: a low voice."]))
    taught = {"size": 64, "length": 13, "rank": 8, "batch_size": 2, "name": "", "steps": 2}
    prompt[node_of(prompt, "OviLatent")]["inputs"]["length"] = 13
    for kind in ("OviTrainingClips", "OviTrainLora", "KSampler"):
        inputs = prompt[node_of(prompt, kind)]["inputs"]
        inputs |= {name: value for name, value in taught.items() if name in inputs}
    result, video = run(runtime, prompt, TRAINING)
    assert video.frames.shape == (13, 64, 64, 3)
    losses = result.value(node_of(prompt, "OviTrainLora"), 1)["loss"]
    assert len(losses) == 2
    assert all(np.isfinite(losses))


@pytest.mark.usefixtures("stand_ins")
def test_few_steps_are_one_forward_of_one_prompt_each(runtime, make):
    """The published six steps, counted behind the LoRA; the LoRA counts."""
    shrunken, changed, _ = make(FEW_STEPS)
    prompt = copy.deepcopy(shrunken)
    guidance, scheduler = (
        prompt[node_of(prompt, kind)]["inputs"] for kind in ("OviGuidance", "OviScheduler")
    )
    scheduler["steps"] = api(FEW_STEPS)[node_of(prompt, "OviScheduler")]["inputs"]["steps"]
    prompt["count"] = {"class_type": "CountForwards", "inputs": {"model": guidance["model"]}}
    guidance["model"] = ["count", 0]
    CountForwards.calls.clear()
    run(runtime, prompt, FEW_STEPS)
    assert CountForwards.calls == [[0]] * 6

    prompt = copy.deepcopy(shrunken)
    prompt[node_of(prompt, "OviLoraLoader")]["inputs"] |= dict.fromkeys(STRENGTHS, 0.0)
    without, _ = run(runtime, prompt, FEW_STEPS)
    sampler = node_of(prompt, "SamplerCustomAdvanced")
    for actual, plain in zip(
        parts(changed.value(sampler)), parts(without.value(sampler)), strict=True
    ):
        assert relative_error(actual, plain) > 1e-2


def test_two_cards_make_the_same_clip(runtime, make, monkeypatch):
    """Both are the processor; how they are simulated: tests/unit/test_multi_gpu.py."""
    prompt, alone, _ = make(CARDS)
    devices = [torch.device("cpu"), torch.device("cpu", 1)]
    monkeypatch.setattr(runtime.model_management, "get_all_torch_devices", lambda **_: devices)
    split, _ = run(runtime, prompt, CARDS)
    (second,) = split.value(node_of(prompt, "MultiGPU_WorkUnits")).get_additional_models_with_key(
        "multigpu"
    )
    assert second.load_device == devices[1]
    sampler = node_of(prompt, "KSampler")
    for one, two in zip(parts(alone.value(sampler)), parts(split.value(sampler)), strict=True):
        assert relative_error(two, one) < 1e-5


@pytest.mark.parametrize("name", ALL_NODES)
def test_the_twin_says_the_same(name):
    workflow, prompt = on_canvas(name), api(name)
    nodes = {str(node["id"]): node for node in workflow["nodes"] if node["type"] not in NOTES}
    assert {key: node["type"] for key, node in nodes.items()} == {
        k: n["class_type"] for k, n in prompt.items()
    }
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    for key, node in nodes.items():
        inputs = widget_values(node)
        inputs |= {
            slot["name"]: sources[slot["link"]]
            for slot in node["inputs"]
            if slot["link"] is not None
        }
        assert inputs == prompt[key]["inputs"], f"{node['type']}: run tools/export_workflows.sh"


def widget_values(node):
    """A node's widgets by name; behind every seed the canvas keeps a widget that is no input."""
    names = []
    for slot in node["inputs"]:
        if "widget" in slot:
            names.append(slot["widget"]["name"])
            names += ["control_after_generate"] if names[-1] in ("seed", "noise_seed") else []
    values = dict(zip(names, node.get("widgets_values", []), strict=True))
    return {name: value for name, value in values.items() if name not in ONLY_ON_CANVAS}


@pytest.mark.parametrize("name", NAMES)
def test_every_node_is_known(runtime, name):
    missing = missing_nodes(runtime, name)
    skip_if_newer(missing)
    assert not missing


@pytest.mark.parametrize("name", ALL_NODES)
def test_nodes_stand_apart_and_in_groups(name):
    workflow = on_canvas(name)
    boxes = [box(node["pos"], node["size"], title=30) for node in workflow["nodes"]]
    groups = [box(group["bounding"][:2], group["bounding"][2:]) for group in workflow["groups"]]
    for one, other in [*combinations(boxes, 2), *combinations(groups, 2)]:
        assert not overlap(one, other)
    for left, top, right, bottom in boxes:
        assert any(
            g[0] <= left and g[1] <= top and right <= g[2] and bottom <= g[3] for g in groups
        )
    left, top, right, bottom = zip(*groups, strict=True)
    # In a window of 1600 x 900 the page fits it in at 59 %; below 57 % it draws no text.
    assert max(right) - min(left) <= 2060
    assert max(bottom) - min(top) <= 1170
    titles = [
        group["title"]
        for group in sorted(workflow["groups"], key=lambda group: group["bounding"][0])
    ]
    assert titles == (TRAINING_GROUPS if name == TRAINING else GROUPS)


@pytest.mark.parametrize("name", FEW)
def test_few_nodes_stand_apart_and_fit_a_window(name):
    """At full size in 1600 x 900 pixels, beside the page's own bars; and what an app shows."""
    workflow = on_canvas(name)
    assert 2 <= sum(node["type"] not in NOTES for node in workflow["nodes"]) <= 6
    boxes = [box(node["pos"], node["size"], title=30) for node in workflow["nodes"]]
    for one, other in combinations(boxes, 2):
        assert not overlap(one, other)
    left, top, right, bottom = zip(*boxes, strict=True)
    assert max(right) - min(left) <= 1440
    assert max(bottom) - min(top) <= 750
    view = workflow["extra"]["ds"]
    assert view["scale"] == 1
    assert view["offset"][1] + min(top) >= BARS  # a page that does not fit it in shows it so
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for node_id, widget, *_ in workflow["extra"]["linearData"]["inputs"]:
        assert widget in [slot["name"] for slot in nodes[node_id]["inputs"]]
    (shown,) = workflow["extra"]["linearData"]["outputs"]
    assert nodes[shown]["type"] == "OviSaveVideo"


@pytest.mark.parametrize("name", FEW)
def test_its_subgraphs_are_the_blueprints_of_their_names(name):
    """One that stands twice on the canvas is there twice: older pages mix up nodes of one id."""
    workflow = on_canvas(name)
    graphs = workflow["definitions"]["subgraphs"]
    hosts = [node["type"] for node in workflow["nodes"]]
    assert all(hosts.count(graph["id"]) == 1 for graph in graphs)
    for graph in graphs:
        path = FOLDER.parent / "subgraphs" / f"{graph['name']}.json"
        text = path.read_text(encoding="utf-8")
        if name == SHOTS:  # so that a run makes anew only the shots that were changed
            text = text.replace('"randomize"', '"fixed"')
        (blueprint,) = json.loads(text)["definitions"]["subgraphs"]
        assert blueprint | {"id": graph["id"]} == graph


def box(position, size, title=0):
    """Left, top, right and bottom of what stands on the canvas; a node's title bar lies above its
    position.
    """
    (left, top), (width, height) = position, size
    return left, top - title, left + width, top + height


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("name", NAMES)
def test_loaders_name_their_download(name):
    nodes = every_node(on_canvas(name))
    downloads = [(node, model) for node in nodes for model in node["properties"].get("models", [])]
    assert not downloads if name in (FEW[0], MINIATURE, REFERENCES) else len(downloads) >= 5
    for node, model in downloads:
        assert model["name"] in node["widgets_values"]
        assert model["name"].endswith(".safetensors"), "some pages offer no other"
        assert model["url"].startswith("https://")
        assert model["url"].endswith("/" + model["name"])
        assert model["directory"] in ("diffusion_models", "text_encoders", "vae", "loras")
    notes = "".join(node["widgets_values"][0] for node in nodes if node["type"] in NOTES)
    for node in nodes:
        files = [
            value
            for value in node.get("widgets_values", [])
            if str(value).endswith((".safetensors", ".pth", ".pt"))
        ]
        assert all(file in notes for file in files)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_SHOWN])
def test_the_card_is_square_and_moves(name):
    """The page asks for `.jpg`, and a browser plays what the file is."""
    picture = FOLDER / f"{name}.jpg"
    assert picture.stat().st_size < 300_000
    with Image.open(picture) as image:
        assert image.format == "WEBP"
        assert image.width == image.height
        assert image.n_frames >= 12
        shown = np.asarray(image.convert("L"))
    assert shown.std() > 10  # the first frame, where the card stands still
