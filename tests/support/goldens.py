"""Goldens recorded from the reference implementation, and the small model whose weights come with
them.
"""

import json
from pathlib import Path

import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import safetensors.torch
import torch
from comfyui_ovi.ovi_model import config, family
from comfyui_ovi.ovi_model.load import checkpoint
from comfyui_ovi.ovi_model.network import model
from safetensors import safe_open
from torch import Tensor
from weights import named_weight

FOLDER = Path(__file__).resolve().parents[1] / "parity" / "goldens"


def load(name: str) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors of a golden and what it says about itself."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        about = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return tensors, json.loads(about.get("meta", "{}"))


def load_json(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """L2 distance relative to the expected tensor; shapes must be equal."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def small_weights() -> dict[str, Tensor]:
    return checkpoint.convert_keys(
        safetensors.torch.load_file(FOLDER / "fusion_t32_weights.safetensors")
    )


def small_configs() -> tuple[config.VideoTowerConfig, config.AudioTowerConfig]:
    """Two heads of 16 channels (files have 128), three blocks, 16 rows of text."""
    sizes = load("fusion_t32_t2av")[1]["config"]
    video = config.VideoTowerConfig(**_sizes(sizes["video"]))
    return video, config.AudioTowerConfig(**_sizes(sizes["audio"]), patch_hidden=256)


def small_model(dtype: torch.dtype = torch.float32) -> model.OviModel:
    video, audio = small_configs()
    twin = model.OviModel(video, audio, dtype=dtype, operations=comfy.ops.disable_weight_init)
    twin.load_state_dict(small_weights(), strict=True)
    return twin.eval().requires_grad_(False)


def _sizes(recorded: dict) -> dict:
    names = (
        "dim",
        "ffn_dim",
        "num_layers",
        "in_dim",
        "out_dim",
        "text_dim",
        "freq_dim",
        "num_heads",
    )
    return {**{name: recorded[name] for name in names}, "text_length": recorded["text_len"]}


def small_patcher(dtype: torch.dtype = torch.float32):
    """The small model as a MODEL, built as core builds one from a file."""
    video, audio = small_configs()
    entry = family.OviConfig({"image_model": "ovi", "video": video, "audio": audio})
    entry.set_inference_dtype(dtype, None)
    base = entry.get_model({}, "")
    base.load_model_weights(small_weights())
    return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


def named_sizes(name: str) -> tuple[config.VideoTowerConfig, config.AudioTowerConfig]:
    """The sizes a golden names: two heads of 128 channels, three blocks, 512 rows of text."""
    sizes = load(name)[1]["config"]
    video = config.VideoTowerConfig(**_sizes(sizes["video"]))
    return video, config.AudioTowerConfig(**_sizes(sizes["audio"]), patch_hidden=768)


def named_weights(video: config.VideoTowerConfig, audio: config.AudioTowerConfig) -> dict:
    """Weights drawn from their published names, under those names."""
    with torch.device("meta"):
        twin = model.OviModel(video, audio, operations=comfy.ops.disable_weight_init)
    shapes = {key: weight.shape for key, weight in twin.state_dict().items()}
    published = checkpoint.convert_keys({key: key for key in load_json("ovi_fusion_keys")})
    return {
        released: named_weight(released, shapes[own])
        for own, released in published.items()
        if own in shapes
    }


def named_patcher(name: str):
    """The model of a golden whose weights are known by their names, as a MODEL."""
    video, audio = named_sizes(name)
    weights = checkpoint.convert_keys(named_weights(video, audio))
    entry = family.OviConfig({"image_model": "ovi", "video": video, "audio": audio})
    entry.set_inference_dtype(torch.float32, None)
    base = entry.get_model({}, "")
    base.load_model_weights(weights)
    return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


def wan_patcher():
    """A small model of the family without sound, as a MODEL."""
    config = {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "dim": 32,
        "ffn_dim": 32,
        "num_heads": 2,
        "num_layers": 1,
    }
    entry = comfy.supported_models.WAN21_T2V(config)
    entry.set_inference_dtype(torch.float32, None)
    return comfy.model_patcher.ModelPatcher(
        entry.get_model({}, ""), torch.device("cpu"), torch.device("cpu")
    )
