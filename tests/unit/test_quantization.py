"""How quantised layers are told apart: what a file says of each, which core reads which."""

import json

import comfy.model_detection
import comfy.quant_ops
import pytest
import torch
from comfyui_ovi.ovi_model import core_facts, family
from comfyui_ovi.ovi_model.load import quantization
from layout_writers import listed_fp8, marked_fp8, quanto_int8, scaled_fp8
from safetensors.torch import load_file
from small_weights import OviSizes, ovi_weights


@pytest.fixture(scope="module")
def released():
    return ovi_weights(OviSizes(layers=1), torch.float32, seed=1)


def unify(weights, metadata=None):
    """Read how the weights are stored, store them in the one way, and return both."""
    layers = quantization.read(weights, metadata)
    return layers, quantization.store(weights, layers)


def written(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def test_each_layer_says_how_it_is_quantised():
    how = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    weights = {
        "a.comfy_quant": written(json.dumps(how)),
        "a.weight": torch.zeros(1),
        "b.weight": torch.zeros(1),
    }
    weights["stray.comfy_quant"] = written("{}")
    layers, stored = unify(weights)
    assert layers == {"a": how}
    assert json.loads(bytes(stored["a.comfy_quant"].tolist())) == how
    assert stored.keys() == {"a.comfy_quant", "a.weight", "b.weight"}


@pytest.mark.parametrize(
    "mark",
    [
        written("{not json"),
        written("[1]"),
        written("[" * 9999),
        torch.tensor([300, -1]),
        torch.tensor(10**12),
    ],
)
def test_a_damaged_mark_is_named(mark):
    with pytest.raises(ValueError, match=r"'a\.comfy_quant' .*download it again"):
        quantization.read({"a.comfy_quant": mark, "a.weight": torch.zeros(1)})


def fp8_layer(**companions):
    return {"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)} | {
        f"a.{k}": v for k, v in companions.items()
    }


@pytest.mark.parametrize(
    ("mark", "precise"),
    [(None, True), (torch.zeros(2), True), (torch.zeros(0), False), (torch.zeros(1), False)],
)
def test_the_mark_tells_how_to_multiply(mark, precise):
    weights = fp8_layer(scale_weight=torch.tensor(2.0), scale_input=torch.tensor(3.0))
    weights |= {} if mark is None else {"scaled_fp8": mark}
    how = {"format": "float8_e4m3fn"} | ({"full_precision_matrix_mult": True} if precise else {})
    asked = dict(weights)
    layers, stored = unify(weights)
    assert layers == {"a": how}
    assert ("a.input_scale" in stored) is not precise
    assert stored["a.weight_scale"] == 2
    assert "scaled_fp8" not in stored
    assert weights == asked


def test_a_scale_of_one_for_activations_is_left_out():
    weights = fp8_layer(scale_weight=torch.tensor(2.0), scale_input=torch.tensor(1.0)) | {
        "scaled_fp8": torch.zeros(0)
    }
    assert "a.input_scale" not in unify(weights)[1]


def test_a_scale_says_enough_by_itself():
    """Also of the other fp8, and of none that is plain."""
    weights = fp8_layer(weight_scale=torch.tensor(2.0))
    weights |= {
        "b.weight": torch.ones(2).to(torch.float8_e5m2),
        "b.weight_scale": torch.tensor(2.0),
    }
    weights |= {"c.weight": torch.ones(2), "c.weight_scale": torch.tensor(2.0)}
    assert {layer: how["format"] for layer, how in quantization.read(weights).items()} == {
        "a": "float8_e4m3fn",
        "b": "float8_e5m2",
    }


@pytest.mark.parametrize("spelled", ["", "model.diffusion_model.", "model.model."])
def test_a_list_names_layers_with_or_without_the_prefix(spelled):
    weights = fp8_layer(weight_scale=torch.tensor(2.0))
    layers = {
        f"{spelled}a": {"format": "float8_e4m3fn"},
        "text_encoder.b": {"format": "float8_e4m3fn"},
    }
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
    assert quantization.read(weights, metadata, "model.model.") == {
        "a": {"format": "float8_e4m3fn"}
    }


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "model.model."])
def test_detection_reads_the_list_below_a_prefix(released, tmp_path, prefix):
    (file,), _ = listed_fp8(released, tmp_path / "listed", files=1)
    weights = {prefix + key: tensor for key, tensor in load_file(file).items()}
    layers = {
        key.removesuffix(".weight"): {"format": "float8_e4m3fn"}
        for key, tensor in weights.items()
        if tensor.dtype == torch.float8_e4m3fn
    }
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
    config = comfy.model_detection.detect_unet_config(weights, prefix, metadata=metadata)
    assert len(config["layer_formats"]) == len(layers) == 24


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_detection_changes_nothing(released, tmp_path, prefix):
    """It is a question; what it finds is written into the weights when core asks to have them
    converted.
    """
    (file,), _ = scaled_fp8(released, tmp_path / "scaled", files=1)
    weights = {prefix + key: tensor for key, tensor in load_file(file).items()}
    asked = dict(weights)
    config = comfy.model_detection.detect_unet_config(weights, prefix)
    assert len(config["layer_formats"]) == 24
    assert weights == asked


@pytest.mark.parametrize(
    ("scale", "found"),
    [
        ({}, "has no 'a.weight_scale'"),
        ({"a.weight_scale": torch.ones(4, 1)}, "has 4 numbers as 'a.weight_scale'"),
    ],
)
def test_fp8_needs_one_scale(scale, found):
    with pytest.raises(ValueError, match=rf"'a' is in float8_e4m3fn but {found}; one is needed"):
        quantization.check({"a": {"format": "float8_e4m3fn"}}, scale, ["float8_e4m3fn"])


@pytest.mark.parametrize("how", [{}, {"format": ["fp8"]}, {"format": None}])
def test_a_format_of_another_kind_is_named(how):
    with pytest.raises(ValueError, match=r"'a' is quantised as .*; this ComfyUI reads x"):
        quantization.check({"a": how}, {}, ["x"])


def test_a_format_the_core_does_not_know_is_named(released, tmp_path):
    (file,), _ = marked_fp8(released, tmp_path / "marked", files=1)
    weights = load_file(file)
    weights["video_model.blocks.0.ffn.0.comfy_quant"] = written('{"format": "nvfp9"}')
    config = comfy.model_detection.model_config_from_unet(weights, "")
    with pytest.raises(
        ValueError, match=r"'blocks\.0\.ffn\.0' is quantised as 'nvfp9'; this ComfyUI reads"
    ):
        config.process_unet_state_dict(weights)


def test_a_fused_file_of_quanto_points_to_our_loader(released, tmp_path):
    files, _ = quanto_int8(released, tmp_path / "int8")
    video, audio = map(load_file, files)
    fused = video | {f"audio_model.{key}": tensor for key, tensor in audio.items()}
    with pytest.raises(ValueError, match=r"optimum-quanto\. Use the node 'Ovi Model Loader'"):
        comfy.model_detection.detect_unet_config(fused, "")


@pytest.mark.skipif(core_facts.LAYER_FORMATS, reason="this core reads the marks itself")
def test_old_cores_build_the_layers_that_the_marks_name(released, tmp_path):
    (file,), _ = marked_fp8(released, tmp_path / "marked", files=1)
    config = comfy.model_detection.model_config_from_unet(load_file(file), "")
    assert isinstance(config, family.OviConfig)
    assert len(config.layer_quant_config) == 24
    assert {
        how["format"] for how in config.layer_quant_config.values()
    } <= comfy.quant_ops.QUANT_ALGOS.keys()
