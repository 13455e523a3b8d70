"""What people see of the nodes, and what their workflows depend on: texts, ids, inputs, defaults,
outputs.
"""

import re
from pathlib import Path

import pytest
from comfyui_ovi.nodes import NODES
from comfyui_ovi.ovi_model.core_facts import ADVANCED_INPUTS, SEARCH_ALIASES
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
SAME_FILE = "in the same file"
# Each node's inputs with their default (None: a connection, a file or an empty text) and the types
# of its outputs. Saved workflows hold widget values in this order: append, never insert, rename or
# remove.
CONTRACT = {
    "OviModelLoader": (
        {"model": None, "audio_model": SAME_FILE, "weight_dtype": "default"},
        ["MODEL"],
    ),
    "OviLoraLoader": (
        {
            "model": None,
            "lora_name": None,
            "strength_video": 1.0,
            "strength_audio": 1.0,
            "strength_fusion": 1.0,
        },
        ["MODEL", "STRING"],
    ),
    "OviTextEncoderLoader": ({"text_encoder": None}, ["CLIP"]),
    "OviAudioVAELoader": ({"vae": None, "vocoder": SAME_FILE}, ["VAE"]),
    "OviMiniature": ({}, ["MODEL", "CLIP", "VAE", "VAE"]),
    "OviMendPrompt": ({"text": None}, ["STRING"]),
    "OviTextEncode": (
        {
            "clip": None,
            "prompt": None,
            "video_negative": "jitter, bad hands, blur, distortion",
            "audio_negative": "robotic, muffled, echo, distorted",
            "sound_tag": "Audio:",
        },
        ["CONDITIONING", "CONDITIONING"],
    ),
    "OviImageSize": ({"image": None, "model_area": "960x960"}, ["INT", "INT"]),
    "OviLatent": (
        {
            "width": 960,
            "height": 960,
            "length": 121,
            "batch_size": 1,
            "vae": None,
            "start_image": None,
        },
        ["LATENT"],
    ),
    "OviHoldPictures": (
        {
            "latent": None,
            "vae": None,
            "images": None,
            "start": 0.0,
            "unit": "frames",
            "strength": 1.0,
            "keyframe": "clean",
        },
        ["LATENT"],
    ),
    "OviHoldSound": (
        {"latent": None, "audio_vae": None, "audio": None, "start": 0.0, "end": 0.0},
        ["LATENT", "AUDIO"],
    ),
    "OviTimeMask": (
        {"latent": None, "start": 0.0, "end": 0.0, "streams": "picture and sound", "ramp": 0.0},
        ["LATENT"],
    ),
    "OviContinue": (
        {
            "images": None,
            "audio": None,
            "vae": None,
            "audio_vae": None,
            "seconds": 4.5,
            "fps": 24.0,
        },
        ["LATENT"],
    ),
    "OviReferences": (
        {
            "positive": None,
            "negative": None,
            "latent": None,
            "vae": None,
            "audio_vae": None,
            "image": None,
            "voice": None,
            "image_2": None,
            "voice_2": None,
            "voice_start": 1.0,
            "voice_2_start": 1.0,
        },
        ["CONDITIONING", "CONDITIONING"],
    ),
    "OviAttention": ({"model": None, "kernel": "auto"}, ["MODEL", "STRING"]),
    "OviGuidance": (
        {
            "model": None,
            "audio_cfg": 3.0,
            "skip_layer": 11,
            "start_percent": 0.0,
            "end_percent": 1.0,
            "cfg_start_percent": 0.0,
            "cfg_end_percent": 1.0,
        },
        ["MODEL"],
    ),
    "OviReferenceGuidance": (
        {"model": None, "audio_cfg": 4.0, "image_cfg": 1.5, "voice_cfg": 2.0},
        ["MODEL"],
    ),
    "OviReferenceGuider": (
        {
            "model": None,
            "positive": None,
            "negative": None,
            "video_cfg": 3.0,
            "audio_cfg": 4.0,
            "image_cfg": 1.5,
            "voice_cfg": 2.0,
        },
        ["GUIDER"],
    ),
    "OviSteer": ({"model": None, "strength": 2.0, "until": 0.6, "steered_steps": 0}, ["MODEL"]),
    "OviScheduler": (
        {"steps": 50, "shift": 5.0, "denoise": 1.0, "solver": "unipc"},
        ["SIGMAS"],
    ),
    "OviSamplerUniPC": ({"solver": "unipc"}, ["SAMPLER"]),
    "OviStreamingSampler": (
        {"frames_per_block": 6, "keep": "on the card", "vae": None, "audio_vae": None},
        ["SAMPLER"],
    ),
    "OviSeparateLatent": ({"latent": None}, ["LATENT", "LATENT"]),
    "OviConcatLatent": ({"video_latent": None, "audio_latent": None}, ["LATENT"]),
    "OviSaveLatent": ({"latent": None, "filename_prefix": "latents/Ovi"}, ["LATENT"]),
    "OviLoadLatent": ({"file": None}, ["LATENT"]),
    "OviDecode": (
        {"samples": None, "vae": None, "audio_vae": None, "tiling": "auto", "held": "as given"},
        ["IMAGE", "AUDIO"],
    ),
    "OviJoin": (
        {
            "images": None,
            "audio": None,
            "new_images": None,
            "new_audio": None,
            "frames": "on disk",
        },
        ["IMAGE", "AUDIO"],
    ),
    "OviPreview": ({"images": None, "fps": 24.0, "audio": None}, ["IMAGE"]),
    "OviSaveVideo": (
        {
            "images": None,
            "fps": 24.0,
            "audio": None,
            "filename_prefix": "video/Ovi",
            "format": "mp4",
            "quality": 80,
        },
        ["VIDEO"],
    ),
    "OviTrainingClips": (
        {
            "folder": None,
            "clip": None,
            "vae": None,
            "audio_vae": None,
            "size": 512,
            "length": 121,
            "sound_tag": "Audio:",
            "caption_dropout": 0.1,
            "first_frame": 0.0,
        },
        ["LATENT", "CONDITIONING", "STRING"],
    ),
    "OviTrainLora": (
        {
            "model": None,
            "latents": None,
            "positive": None,
            "parts": "all",
            "rank": 16,
            "steps": 1000,
            "learning_rate": 0.0003,
            "batch_size": 1,
            "sound_weight": 1.0,
            "seed": 0,
            "recompute": True,
            "name": None,
            "save_every": 250,
        },
        ["LORA_MODEL", "LOSS_MAP", "INT"],
    ),
}
CHOICES = {
    ("OviModelLoader", "weight_dtype"): ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"],
    ("OviTextEncode", "sound_tag"): ["Audio:", "<AUDCAP>", "as written"],
    ("OviImageSize", "model_area"): ["720x720", "960x960"],
    ("OviHoldPictures", "unit"): ["frames", "seconds"],
    ("OviHoldPictures", "keyframe"): ["clean", "renoised"],
    ("OviTimeMask", "streams"): ["picture and sound", "picture", "sound"],
    ("OviAttention", "kernel"): [
        "auto",
        "pytorch",
        "flash-attn",
        "sage",
        "xformers",
        "sage3",
        "int8",
    ],
    ("OviScheduler", "solver"): ["unipc", "dpm++", "euler"],
    ("OviSamplerUniPC", "solver"): ["unipc", "dpm++", "euler"],
    ("OviStreamingSampler", "keep"): ["on the card", "on the card, fp8", "in main memory"],
    ("OviDecode", "tiling"): ["auto", "on", "off"],
    ("OviDecode", "held"): ["as given", "decoded"],
    ("OviJoin", "frames"): ["on disk", "in memory"],
    ("OviSaveVideo", "format"): ["mp4", "webm", "mov"],
}
# Inputs that were added to a node must be optional, or API-format workflows from before would be
# refused.
OPTIONAL = {
    ("OviLatent", "vae"),
    ("OviLatent", "start_image"),
    ("OviGuidance", "cfg_start_percent"),
    ("OviGuidance", "cfg_end_percent"),
    *(
        ("OviReferences", name)
        for name in ("vae", "audio_vae", "image", "voice", "image_2", "voice_2")
    ),
    ("OviScheduler", "solver"),
    ("OviSamplerUniPC", "solver"),
    ("OviStreamingSampler", "vae"),
    ("OviStreamingSampler", "audio_vae"),
    ("OviContinue", "fps"),
    ("OviDecode", "held"),
    ("OviPreview", "audio"),
    ("OviSaveVideo", "audio"),
}
# Ids of other extensions' nodes.
TAKEN = {
    "OviEngineLoader",
    "OviVideoGenerator",
    "OviAttentionSelector",
    "OviWanComponentLoader",
    "OviLatentDecoder",
    "OviMMAudioVAELoader",
}
UNITS = {
    "width": "pixels",
    "height": "pixels",
    "length": "frames",
    "fps": "a second",
    "model_area": "pixels",
    "start_percent": "0 to 1",
    "end_percent": "0 to 1",
    "cfg_start_percent": "0 to 1",
    "cfg_end_percent": "0 to 1",
    "strength_video": "-100 to 100",
    "strength_audio": "-100 to 100",
    "strength_fusion": "-100 to 100",
    "start": "seconds",
    "end": "seconds",
    "ramp": "seconds",
    "strength": "0 to 1",
    "seconds": "seconds",
    "voice_start": "seconds",
    "voice_2_start": "seconds",
    ("OviSteer", "strength"): "multiple of its size",
    "until": "noise level",
    "size": "pixels",
    "caption_dropout": "0 to 1",
    "first_frame": "0 to 1",
}

each_node = pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)


def default_of(entry):
    """An input's default; for a choice without one, the first of a fixed list, as on the page."""
    default = getattr(entry, "default", None)
    if default is None and getattr(entry, "options", None) and entry.id == "format":
        return entry.options[0]
    return default or None if isinstance(default, str) else default


def test_all_nodes_are_there_under_free_ids():
    assert [node.define_schema().node_id for node in NODES] == list(CONTRACT)
    assert not TAKEN & set(CONTRACT)


@each_node
def test_inputs_and_outputs_are_as_promised(node):
    schema = node.define_schema()
    inputs, outputs = CONTRACT[schema.node_id]
    found = {entry.id: default_of(entry) for entry in schema.inputs}
    assert found == inputs
    assert [output.io_type for output in schema.outputs] == outputs
    for entry in schema.inputs:
        assert bool(entry.optional) == ((schema.node_id, entry.id) in OPTIONAL)
        if (schema.node_id, entry.id) in CHOICES:
            assert list(entry.options) == CHOICES[schema.node_id, entry.id]


@each_node
def test_everything_is_explained(node):
    schema = node.define_schema()
    assert re.fullmatch("Ovi/(load|text|latent|sample|decode|save|preview|train)", schema.category)
    assert re.fullmatch(r"Ovi( [A-Z]\w+)+", schema.display_name)
    assert len(schema.description) > 20
    assert schema.description.endswith(".")
    for entry in schema.inputs:
        assert entry.tooltip, f"{entry.id} has no tooltip"
        assert entry.tooltip.endswith("."), f"{entry.id}: {entry.tooltip}"
        unit = UNITS.get((schema.node_id, entry.id)) or UNITS.get(entry.id, "")
        assert unit.lower() in entry.tooltip.lower(), f"{entry.id} does not say its unit"
    for made in schema.outputs:
        assert made.tooltip, f"{made.id or made.display_name} has no tooltip"
        assert made.tooltip.endswith("."), f"{made.id or made.display_name}: {made.tooltip}"


@each_node
def test_ids_are_unique_within_a_node(node):
    """ComfyUI 0.3.75 refuses a node whose output has the id of an input."""
    schema = node.define_schema()
    ids = [entry.id for entry in [*schema.inputs, *schema.outputs] if entry.id]
    assert len(ids) == len(set(ids))


@each_node
def test_the_help_page_tells_of_every_input(node):
    schema = node.define_schema()
    page = (REPOSITORY / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {schema.display_name}\n")
    for entry in schema.inputs:
        assert f"| {entry.id} |" in page, f"{entry.id} is not in its table"


@each_node
def test_the_help_page_shows_the_node_wired(node):
    name = node.define_schema().node_id
    pages = REPOSITORY / "web" / "docs"
    shown = re.findall(r"!\[(.+)\]\((.+)\)", (pages / f"{name}.md").read_text(encoding="utf-8"))
    assert f"{name}.jpg" in [file for _, file in shown], "python tools/picture_nodes.py takes it"
    for _, file in shown:
        with Image.open(pages / file) as picture:
            picture.verify()


@pytest.mark.skipif(not SEARCH_ALIASES, reason="this ComfyUI searches by names alone")
@pytest.mark.parametrize("words", ["talking", "lip sync", "speech", "sound"])
def test_a_search_for_what_people_want_finds_nodes(runtime, words):
    found = [
        name
        for name in CONTRACT
        for alias in runtime.nodes.NODE_CLASS_MAPPINGS[name].GET_NODE_INFO_V1()["search_aliases"]
        or []
        if words in alias.lower()
    ]
    assert found


def advanced_inputs(known):
    info = known.GET_NODE_INFO_V1()["input"]
    return {
        name
        for entries in info.values()
        for name, entry in entries.items()
        if isinstance(entry, tuple | list) and len(entry) > 1 and entry[1].get("advanced")
    }


def test_inputs_that_few_need_are_advanced_where_a_page_can_hide_them(runtime):
    known = runtime.nodes.NODE_CLASS_MAPPINGS
    found = {name: advanced_inputs(known[name]) for name in CONTRACT}
    found = {name: inputs for name, inputs in found.items() if inputs}
    expected = {
        "OviModelLoader": {"audio_model", "weight_dtype"},
        "OviHoldPictures": {"keyframe"},
        "OviTimeMask": {"ramp"},
        "OviJoin": {"frames"},
        "OviGuidance": {
            *("start_percent", "end_percent", "cfg_start_percent", "cfg_end_percent"),
        },
        "OviSteer": {"until"},
        "OviStreamingSampler": {"frames_per_block"},
        "OviDecode": {"tiling", "held"},
        "OviTrainingClips": {"sound_tag"},
        "OviTrainLora": {"parts", "sound_weight", "recompute", "save_every"},
    }
    assert found == (expected if ADVANCED_INPUTS else {})


def test_no_help_page_is_left_over():
    assert {path.stem for path in (REPOSITORY / "web" / "docs").glob("*.md")} == set(CONTRACT)


@pytest.mark.parametrize("name", CONTRACT)
def test_comfyui_knows_the_node_from_this_extension(runtime, name):
    known = runtime.nodes.NODE_CLASS_MAPPINGS[name]
    assert known.GET_NODE_INFO_V1()["category"].startswith("Ovi/")
