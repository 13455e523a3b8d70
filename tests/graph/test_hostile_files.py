"""What people and programs send to ComfyUI: names that lead out of its folders, odd and damaged
files, half letters.
"""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_graph import MODEL, Graph

pytestmark = pytest.mark.graph

SAME_FILE = "in the same file"
# Each input that names a file: the node, its other inputs, the input.
MODEL_INPUTS = {"model": MODEL, "audio_model": SAME_FILE, "weight_dtype": "default"}
VAE_INPUTS = {"vae": "mmaudio_small.safetensors", "vocoder": SAME_FILE}
LORA_INPUTS = {
    "lora_name": "",
    "strength_video": 1.0,
    "strength_audio": 1.0,
    "strength_fusion": 1.0,
}
FILE_INPUTS = [
    ("OviModelLoader", MODEL_INPUTS, "model"),
    ("OviModelLoader", MODEL_INPUTS, "audio_model"),
    ("OviTextEncoderLoader", {}, "text_encoder"),
    ("OviAudioVAELoader", VAE_INPUTS, "vae"),
    ("OviAudioVAELoader", VAE_INPUTS, "vocoder"),
    ("OviLoraLoader", LORA_INPUTS, "lora_name"),
]
INPUT_NAMES = [f"{node}-{name}" for node, _, name in FILE_INPUTS]
FOLDERS = {
    "OviModelLoader": "diffusion_models",
    "OviTextEncoderLoader": "text_encoders",
    "OviAudioVAELoader": "vae",
    "OviLoraLoader": "loras",
}
ODD_NAMES = ["with space", "quote\"s '", "ünï 漢字 🎬", "new\nline", "percent%s{0}", "-flag"]


def load_with(graph, node, inputs, name, file):
    """Add a loader whose one input names a file."""
    model = {"model": graph.model()} if node == "OviLoraLoader" else {}
    link = graph.add(node, **{**inputs, **model, name: file})
    graph.show(link)
    return link


@pytest.fixture
def secret(runtime, model_folder):
    """A good file that lies beside the models folder, not in it."""
    path = runtime.base / "secret.safetensors"
    shutil.copy(model_folder / MODEL, path)
    return path


@pytest.mark.parametrize(("node", "inputs", "name"), FILE_INPUTS, ids=INPUT_NAMES)
def test_no_name_leads_out_of_the_models_folder(runtime, secret, node, inputs, name):
    """Neither through a prompt, nor where a core hands on what a prompt says without a look at the
    list.
    """
    execute = runtime.nodes.NODE_CLASS_MAPPINGS[node].execute
    outside = [
        "../../secret.safetensors",
        f"x/../../../{secret.name}",
        str(secret),
        "/etc/passwd",
        "C:\\secret.pt",
    ]
    for file in [
        *outside,
        "..\\..\\secret.safetensors",
        "nul\0.safetensors",
        "",
        ".",
        "..",
        "x" * 5000,
    ]:
        graph = Graph()
        load_with(graph, node, inputs, name, file)
        result = runtime.run(graph.prompt)
        assert not result.ok
        assert node in result.error
        assert "not found" in result.error or "not in" in result.error, result.error
        model = {"model": None} if node == "OviLoraLoader" else {}
        with pytest.raises(FileNotFoundError, match="not found"):
            execute(**{**inputs, **model, name: file})


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_may_have_any_name_and_be_a_link(runtime, graph, secret, model_folder, name):
    file = model_folder / f"{name}.safetensors"
    file.symlink_to(secret)
    link = load_with(graph, "OviModelLoader", MODEL_INPUTS, "model", file.name)
    result = runtime.run(graph.prompt)
    file.unlink()
    assert result.ok, result.error
    assert type(result.value(link[0]).model).__name__ == "OviBase"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have names on POSIX only")
def test_a_pipe_and_a_link_to_nothing_are_not_waited_for(runtime, model_folder):
    pipe, link = model_folder / "pipe.safetensors", model_folder / "link.safetensors"
    os.mkfifo(pipe)
    link.symlink_to(model_folder / "gone.safetensors")
    for path in (pipe, link):
        graph = Graph()
        load_with(graph, "OviModelLoader", MODEL_INPUTS, "model", path.name)
        result = runtime.run(graph.prompt)
        path.unlink()
        assert not result.ok
        assert path.name in result.error


# The audio tower's file is read only once the video tower's is good.
@pytest.mark.parametrize(
    ("node", "inputs", "name"),
    FILE_INPUTS[:1] + FILE_INPUTS[2:],
    ids=INPUT_NAMES[:1] + INPUT_NAMES[2:],
)
def test_a_pickle_that_would_run_is_refused(
    runtime, graph, model_folder, tmp_path, node, inputs, name
):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    path = model_folder.parent / FOLDERS[node] / "trap.pt"
    torch.save({"weight": torch.zeros(1), "trap": Trap()}, path)
    load_with(graph, node, inputs, name, path.name)
    result = runtime.run(graph.prompt)
    path.unlink()
    assert not result.ok
    assert "trap.pt cannot be read: it holds Python objects" in result.error
    assert not (tmp_path / "trap").exists()


def save_video(graph, prefix):
    images = graph.add("EmptyImage", width=64, height=32, batch_size=1, color=0)
    graph.add(
        "OviSaveVideo", images=images, fps=24.0, filename_prefix=prefix, format="mp4", quality=1
    )


@pytest.mark.parametrize(
    "prefix",
    [
        "../../x",
        "video/../../x",
        "/elsewhere/x",
        "..\\..\\x",
        "C:\\x",
        "",
        "..",
        "nul\0",
        "line\n",
        "x" * 300,
        "x/" * 3000,
    ],
)
def test_no_name_leads_out_of_the_output_folder(runtime, graph, prefix):
    before = set(runtime.base.rglob("*"))
    save_video(graph, prefix)
    result = runtime.run(graph.prompt)
    assert not result.ok
    assert "OviSaveVideo" in result.error
    assert "filename_prefix" in result.error
    assert "as in 'video/Ovi'" in result.error
    assert set(runtime.base.rglob("*")) == before


def test_names_of_many_letters_are_saved(runtime, run):
    for prefix in ("hostile/" + "x" * 200, "hostile/ünï 漢字 🎬", "hostile/quote s '"):
        graph = Graph()
        save_video(graph, prefix)
        run(graph)
    assert len(list((runtime.output / "hostile").iterdir())) == 3


@pytest.mark.parametrize("name", ["prompt", "video_negative", "audio_negative"])
@pytest.mark.usefixtures("small_files")
def test_half_a_character_is_said(runtime, graph, name):
    graph.show(graph.text(**{name: "a cat \ud83d"}))
    result = runtime.run(graph.prompt)
    assert "OviTextEncode" in result.error
    assert "'a cat \\ud83d' holds half a character, '\\ud83d'. Type that place anew" in result.error


def test_nan_in_a_matrix_shows_before_anything_is_decoded(runtime, graph, model_folder):
    weights = load_file(model_folder / MODEL)
    matrix = weights["video_model.blocks.0.ffn.0.weight"]
    matrix[3, 4] = float("nan")
    save_file(weights, model_folder / "nan.safetensors")
    sampled = graph.sample(graph.model("nan.safetensors"), steps=1, cfg=1.0)
    vaes = {"vae": graph.video_vae(), "audio_vae": graph.audio_vae()}
    graph.show(graph.add("OviDecode", samples=sampled, tiling="auto", **vaes))
    result = runtime.run(graph.prompt)
    assert "OviDecode" in result.error
    assert (
        "'samples' holds infinite or undefined numbers (NaN): the sampling failed" in result.error
    )
