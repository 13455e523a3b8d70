"""The published file at full size, names and shapes alone: 2,073 tensors, 11.66 billion numbers."""

import math

import comfy.model_detection
import pytest
import torch
from comfyui_ovi.ovi_model import config, family
from comfyui_ovi.ovi_model.load import checkpoint
from comfyui_ovi.ovi_model.network import model
from goldens import load_json

SHAPES = load_json("ovi_fusion_keys")


@pytest.fixture(scope="module")
def released():
    return {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}


def test_the_file_is_the_one_described():
    assert len(SHAPES) == 2073
    assert sum(math.prod(shape) for shape in SHAPES.values()) == 11_660_753_108


def test_core_detects_it_and_every_size_is_read(released):
    entry = comfy.model_detection.model_config_from_unet(released, "")
    assert isinstance(entry, family.OviConfig)
    common = {
        "dim": 3072,
        "ffn_dim": 14336,
        "num_layers": 30,
        "text_dim": 4096,
        "freq_dim": 256,
        "num_heads": 24,
    }
    assert entry.unet_config["video"] == config.VideoTowerConfig(
        in_dim=48, out_dim=48, patch_size=(1, 2, 2), **common
    )
    assert entry.unet_config["audio"] == config.AudioTowerConfig(
        in_dim=20, out_dim=20, patch_hidden=8192, patch_kernel=7, **common
    )


def test_the_model_has_these_tensors_and_no_others(released):
    converted = checkpoint.convert_keys(released)
    twin = model.OviModel(*checkpoint.read_config(converted), device="meta", operations=torch.nn)
    expected = {name: tensor.shape for name, tensor in twin.state_dict().items()}
    assert {name: tensor.shape for name, tensor in converted.items()} == expected
    checkpoint.check_weights(converted, *checkpoint.read_config(converted))
