"""How quantised layers are told apart: what a file says of each, which core reads which."""

import json

import comfy.model_detection
import comfy.quant_ops
import pytest
import torch
from comfyui_ovi.ovi_model import checkpoint, compat, family
from layout_writers import marked_fp8, quanto_int8, scaled_fp8
from safetensors.torch import load_file
from small_weights import OviSizes, ovi_weights


@pytest.fixture(scope="module")
def released():
    return ovi_weights(OviSizes(layers=1), torch.float32, seed=1)


def written(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def test_each_layer_says_how_it_is_quantised():
    how = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    weights = {"a.comfy_quant": written(json.dumps(how)), "a.weight": torch.zeros(1), "b.weight": torch.zeros(1)}
    assert checkpoint.read_layer_formats(weights) == {"a": how}


@pytest.mark.parametrize("mark", [written("{not json"), written("[1]"), torch.tensor([300, -1]), torch.tensor(2.5)])
def test_a_damaged_mark_is_named(mark):
    with pytest.raises(ValueError, match=r"'a\.comfy_quant' .*download it again"):
        checkpoint.read_layer_formats({"a.comfy_quant": mark})


def test_a_format_the_core_does_not_know_is_named(released, tmp_path):
    (file,), _ = marked_fp8(released, tmp_path / "marked")
    weights = load_file(file)
    weights["video_model.blocks.0.ffn.0.comfy_quant"] = written('{"format": "nvfp9"}')
    config = comfy.model_detection.model_config_from_unet(weights, "")
    with pytest.raises(
        ValueError, match=r"'video_model\.blocks\.0\.ffn\.0' is quantised as 'nvfp9'; this ComfyUI reads"
    ):
        config.process_unet_state_dict(weights)


def test_a_fused_file_of_quanto_points_to_our_loader(released, tmp_path):
    files, _ = quanto_int8(released, tmp_path / "int8")
    video, audio = map(load_file, files)
    fused = video | {f"audio_model.{key}": tensor for key, tensor in audio.items()}
    with pytest.raises(ValueError, match=r"optimum-quanto\. Use the node 'Ovi Model Loader'"):
        comfy.model_detection.detect_unet_config(fused, "")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_old_cores_are_told_which_layers_have_a_scale(released, tmp_path, prefix):
    (file,), _ = scaled_fp8(released, tmp_path / "scaled", files=1)
    weights = {prefix + key: tensor for key, tensor in load_file(file).items()}
    weights |= {"other.scale_weight": torch.ones(())} if prefix else {}
    weights[f"{prefix}video_model.blocks.0.ffn.0.scale_input"] = torch.ones(())
    layers = compat.list_scaled_layers(weights, prefix)
    assert len(layers) == 24
    assert layers["audio_model.blocks.0.cross_attn.k_fusion"] == {"format": "float8_e4m3fn"}
    assert f"{prefix}video_model.blocks.0.ffn.0.input_scale" in weights
    assert f"{prefix}video_model.blocks.0.ffn.0.weight_scale" in weights
    assert f"{prefix}scaled_fp8" not in weights
    assert [key for key in weights if "scale_weight" in key] == (["other.scale_weight"] if prefix else [])


def test_scaled_layers_of_another_format_are_left_to_core(released, tmp_path):
    (file,), _ = scaled_fp8(released, tmp_path / "scaled", files=1)
    weights = load_file(file)
    weights["video_model.blocks.0.ffn.0.weight"] = weights["video_model.blocks.0.ffn.0.weight"].to(torch.float8_e5m2)
    before = dict(weights)
    assert compat.list_scaled_layers(weights, "") == {}
    assert weights == before


@pytest.mark.skipif(compat.LAYER_FORMATS, reason="this core reads the marks itself")
def test_old_cores_build_the_layers_that_the_marks_name(released, tmp_path):
    (file,), _ = marked_fp8(released, tmp_path / "marked")
    config = comfy.model_detection.model_config_from_unet(load_file(file), "")
    assert isinstance(config, family.OviConfig)
    assert len(config.layer_quant_config) == 24
    assert {how["format"] for how in config.layer_quant_config.values()} <= comfy.quant_ops.QUANT_ALGOS.keys()
