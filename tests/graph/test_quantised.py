"""Ovi files whose weights have eight bits and a scale: ComfyUI's two layouts, in one file and in two."""

import json

import comfy.ops
import pytest
import torch
from goldens import relative_error
from safetensors.torch import load_file, save_file
from small_graph import MODEL, parts

pytestmark = pytest.mark.graph

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def quantise(released, scale_name):
    """Every matrix of the towers in fp8 with its scale; vectors, convolutions and modulations stay as they are."""
    weights, layers = {}, []
    for key, tensor in released.items():
        if tensor.ndim != 2 or not key.endswith(".weight"):
            weights[key] = tensor
            continue
        layer = key.removesuffix(".weight")
        scale = tensor.abs().max().float() / LARGEST
        weights[key] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        weights[f"{layer}.{scale_name}"] = scale
        layers.append(layer)
    return weights, layers


def write(path, weights, layers=None):
    how = {layer: {"format": "float8_e4m3fn"} for layer in layers or ()}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": how})} if layers else None
    save_file(weights, path, metadata)


def half(released, tower):
    return {key.removeprefix("video_model."): x for key, x in released.items() if key.startswith(f"{tower}_model.")}


@pytest.fixture(scope="module")
def files(model_folder):
    """The small model in each layout, as inputs of Ovi Model Loader."""
    released = load_file(model_folder / MODEL)
    halves = {tower: half(released, tower) for tower in ("video", "audio")}
    for name, weights in {"one": released, **halves}.items():
        scaled, _ = quantise(weights, "scale_weight")
        write(
            model_folder / f"scaled_{name}.safetensors",
            {**scaled, "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)},
        )
        write(model_folder / f"listed_{name}.safetensors", *quantise(weights, "weight_scale"))
    one = "in the same file"
    return {
        "exact": (MODEL, one),
        "scaled": ("scaled_one.safetensors", one),
        "scaled, two files": ("scaled_video.safetensors", "scaled_audio.safetensors"),
        "listed": ("listed_one.safetensors", one),
        "listed, two files": ("listed_video.safetensors", "listed_audio.safetensors"),
    }


def test_quantised_files_give_the_exact_file_s_result_within_their_rounding(run, graph, files):
    text = graph.text()
    links = {}
    for name, (model, audio_model) in files.items():
        loaded = graph.add("OviModelLoader", model=model, audio_model=audio_model, weight_dtype="default")
        links[name] = graph.sample(loaded, text, steps=1, cfg=1.0)
    graph.show(*links.values())
    result = run(graph)
    latents = {name: torch.cat([x.flatten() for x in parts(result.value(link[0]))]) for name, link in links.items()}
    exact = latents.pop("exact")
    for name, latent in latents.items():
        # Three bits of mantissa round a weight by up to 1/16, 3 % on average; cfg 1 adds none to that.
        assert 1e-4 < relative_error(latent, exact) < 0.06, name
    # Either layout holds the same numbers, so one file or two make no difference.
    assert torch.equal(latents["scaled"], latents["scaled, two files"])
    assert torch.equal(latents["listed"], latents["listed, two files"])


def test_no_eight_bit_layer_is_asked_for_float32(run, graph, monkeypatch):
    """Graphics cards multiply eight-bit matrices in half precision only, and older cores hand them what they get."""
    asked = []
    original = comfy.ops.cast_bias_weight

    def watch(layer, input=None, *args, **kwargs):  # noqa: A002
        if input is not None and layer.weight.dtype.itemsize == 1:
            asked.append(input.dtype)
        return original(layer, input, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", watch)
    model = graph.add("ModelComputeDtype", model=graph.model(weight_dtype="fp8_e4m3fn"), dtype="bf16")
    graph.show(graph.sample(model, steps=1, cfg=1.0))
    run(graph)
    assert asked
    assert set(asked) == {torch.bfloat16}
