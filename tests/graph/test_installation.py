"""The extension loads from a folder of any name, and twice without harm."""

import asyncio
from pathlib import Path

import comfy.model_detection
import comfy.supported_models
import pytest
from comfyui_ovi.nodes import NODES

pytestmark = pytest.mark.graph

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["Ovi v1.0 (copy)", "ovi", "comfyui_ovi-main"])
def test_any_folder_name_and_a_second_copy(runtime, tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.symlink_to(REPOSITORY, target_is_directory=True)
    known = dict.fromkeys(runtime.nodes.NODE_CLASS_MAPPINGS)
    monkeypatch.setattr(runtime.nodes, "NODE_CLASS_MAPPINGS", {})
    detect = comfy.model_detection.detect_unet_config

    assert asyncio.run(runtime.nodes.load_custom_node(str(folder), module_parent="custom_nodes"))

    loaded = set(runtime.nodes.NODE_CLASS_MAPPINGS)
    assert loaded == {node.define_schema().node_id for node in NODES}
    assert loaded <= set(known)
    entries = [entry for entry in comfy.supported_models.models if entry.unet_config.get("image_model") == "ovi"]
    assert len(entries) == 1
    assert comfy.model_detection.detect_unet_config is detect
