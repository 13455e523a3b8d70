"""Every layout of the weights that people have, written from the same small model, gives the same
result.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import layout_writers as write
import pytest
import torch
from comfy.ldm.wan import vae2_2
from encoder_layouts import ENCODER_LAYOUTS, PLAIN, TEXT, VIDEO_VAE
from gguf_loader import LoadGGUF
from goldens import relative_error
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_graph import MODEL, PROMPT, output, sampled
from weight_layouts import BF16, FP16, GGUF, LAYOUTS, OURS, STOCK
from weights import seeded

pytestmark = pytest.mark.graph

PREFIX = "model.diffusion_model."
PLAIN_ROUNDINGS = (0, BF16, FP16)


@pytest.fixture(scope="module")
def weights(model_folder):
    return load_file(model_folder / MODEL)


class SomeLatent:
    """A picture of two cells in time and its sound, since a sampler is not what is tested here."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
    RETURN_TYPES = ("LATENT", "LATENT")
    FUNCTION = "give"
    CATEGORY = "tests"

    def give(self):
        return {"samples": seeded("picture", (1, 48, 2, 4, 4))}, {
            "samples": seeded("sound", (1, 20, 8))
        }


@pytest.fixture(autouse=True)
def gguf_loader(runtime, monkeypatch):
    """The public loader of GGUF files is another extension."""
    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "LoadGGUF", LoadGGUF)


@pytest.fixture
def narrow_vae(runtime, monkeypatch):
    """Core's Wan 2.2 VAE at width 16, also where core builds width 160 only."""
    wide = vae2_2.WanVAE
    monkeypatch.setattr(
        vae2_2, "WanVAE", lambda **config: wide(**config | {"dim": 16, "dec_dim": 16})
    )
    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "SomeLatent", SomeLatent)


def add_loader(graph, loader, files):
    """Add the node of this name for one file or two."""
    names = [file.name for file in files]
    if loader == STOCK:
        return graph.model(names[0])
    if loader == GGUF:
        return graph.add("LoadGGUF", unet_name=names[0])
    audio_model = names[1] if len(names) == 2 else "in the same file"
    return graph.add(
        "OviModelLoader", model=names[0], audio_model=audio_model, weight_dtype="default"
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_layout_gives_the_result_of_its_values_in_the_fused_file(
    run, graph, model_folder, weights, layout
):
    files, values = layout.write(weights, model_folder / layout.name)
    fused = model_folder / f"{layout.name}_fused.safetensors"
    save_file(values, fused)
    models = [graph.model(), graph.model(fused.name)]
    models += [add_loader(graph, loader, files) for loader in layout.loaders]
    text = graph.text()
    links = [graph.sample(model, text, steps=1, cfg=1.0) for model in models]
    graph.show(*links)
    exact, expected, *loaded = sampled(run(graph), *links)

    # On the processor every layout is computed in float32, so nothing but the values tells them
    # apart; quantised ones are multiplied out by others.
    for actual, loader in zip(loaded, layout.loaders, strict=True):
        assert relative_error(actual, expected) <= (
            0 if layout.rounding in PLAIN_ROUNDINGS else 1e-6
        ), loader
    # Independent errors of the weights go through a layer at their own size and add up in squares:
    # sixteen layers in
    # a row make them four times as large.
    rounded = relative_error(
        *(torch.cat([x.flatten() for x in held.values()]) for held in (values, weights))
    )
    assert layout.rounding / 16 <= rounded <= 2 * layout.rounding
    assert rounded <= relative_error(expected, exact) <= 4 * rounded


# Ways to store the layers of one file, each half of a release in any of them.
NOTATIONS = {
    "plain": write.two_files,
    "scaled": partial(write.scaled_fp8, files=2),
    "unmarked": partial(write.scaled_fp8, files=2, marked=False),
    "listed": partial(write.listed_fp8, files=2),
    "marked": partial(write.marked_fp8, files=2),
}


@pytest.mark.parametrize("video", NOTATIONS)
def test_halves_may_be_stored_in_different_ways(run, graph, model_folder, weights, video):
    written = {
        name: notation(weights, model_folder / f"half_{name}")
        for name, notation in NOTATIONS.items()
    }
    text = graph.text()
    links, expected = {}, {}
    for audio in NOTATIONS:
        loaded = add_loader(graph, OURS, [written[video][0][0], written[audio][0][1]])
        links[audio] = graph.sample(loaded, text, steps=1, cfg=1.0)
        values = {
            key: written[audio if key.startswith("audio_model") else video][1][key]
            for key in weights
        }
        save_file(values, model_folder / f"{video}_{audio}.safetensors")
        expected[audio] = graph.sample(
            graph.model(f"{video}_{audio}.safetensors"), text, steps=1, cfg=1.0
        )
    graph.show(*links.values(), *expected.values())
    result = run(graph)
    for audio in NOTATIONS:
        (actual,), (wanted,) = (sampled(result, both[audio]) for both in (links, expected))
        assert relative_error(actual, wanted) < 1e-6, audio


@pytest.mark.parametrize("notation", [*NOTATIONS][1:])
def test_every_loader_reads_what_lies_below_comfyui_s_prefix(
    run, graph, model_folder, small_files, weights, notation
):
    """Tensors and the list of layers, as in files of whole checkpoints."""
    writer = NOTATIONS[notation]
    (file,), values = partial(writer, files=1)(weights, model_folder / f"below_{notation}")
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    layers = json.loads((metadata or {}).get("_quantization_metadata", '{"layers": {}}'))["layers"]
    below = {
        "_quantization_metadata": json.dumps(
            {"layers": {PREFIX + layer: how for layer, how in layers.items()}}
        )
    }
    save_file(
        {PREFIX + key: x for key, x in load_file(file).items()}, file, below if layers else None
    )
    (small_files / "checkpoints").mkdir(exist_ok=True)
    shutil.copy(file, small_files / "checkpoints" / file.name)
    save_file(values, model_folder / f"{notation}_values.safetensors")

    models = [
        graph.model(f"{notation}_values.safetensors"),
        graph.model(file.name),
        add_loader(graph, OURS, [file]),
    ]
    models.append(graph.add("CheckpointLoaderSimple", ckpt_name=file.name))
    text = graph.text()
    links = [graph.sample(model, text, steps=1, cfg=1.0) for model in models]
    graph.show(*links)
    expected, *loaded = sampled(run(graph), *links)
    for actual in loaded:
        assert relative_error(actual, expected) < 1e-6


def add_encoder(graph, layout, files):
    """Add the loader of a text encoder or a VAE and what it makes; the link to that."""
    names = [file.name for file in files]
    if layout.kind == TEXT:
        return graph.add(
            "CLIPTextEncode",
            clip=graph.add("OviTextEncoderLoader", text_encoder=names[0]),
            text=PROMPT,
        )
    if layout.kind == VIDEO_VAE:
        return graph.add(
            "VAEDecode",
            samples=graph.add("SomeLatent"),
            vae=graph.add("VAELoader", vae_name=names[0]),
        )
    vocoder = names[1] if len(names) == 2 else "in the same file"
    vae = graph.add("OviAudioVAELoader", vae=names[0], vocoder=vocoder)
    return graph.add("VAEDecodeAudio", samples=output(graph.add("SomeLatent"), 1), vae=vae)


def tensor_of(value):
    """The numbers in a conditioning, a sound or images."""
    if isinstance(value, dict):
        return value["waveform"]
    return value[0][0] if isinstance(value, list) else value


@pytest.mark.parametrize("layout", ENCODER_LAYOUTS, ids=lambda layout: layout.name)
def test_a_layout_of_an_encoder_gives_what_the_plain_file_gives(
    run,
    graph,
    small_files,
    narrow_vae,  # noqa: ARG001
    layout,
):
    files = layout.write(small_files, small_files / layout.folder / layout.name)
    links = [add_encoder(graph, layout, made) for made in ([Path(PLAIN[layout.kind])], files)]
    graph.show(*links)
    result = run(graph)
    expected, actual = (tensor_of(result.value(link[0])) for link in links)
    assert expected.std() > 1e-3
    assert actual.shape == expected.shape
    assert relative_error(actual, expected) <= layout.error
    assert torch.equal(actual, expected) == (layout.error == 0)
