"""The extension loads from a folder of any name, and twice without harm."""

import asyncio
import importlib
from pathlib import Path

import comfy.sd
import comfy.supported_models
import pytest
from comfyui_ovi.nodes import NODES
from comfyui_ovi.ovi_model import core_patches, family
from small_graph import MODEL

pytestmark = pytest.mark.graph

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def install(runtime, tmp_path, monkeypatch):
    """Let ComfyUI load this extension once more, from a folder of another name; the nodes it then
    knows.
    """

    def load_again(name):
        folder = tmp_path / name
        folder.symlink_to(REPOSITORY, target_is_directory=True)
        monkeypatch.setattr(runtime.nodes, "NODE_CLASS_MAPPINGS", {})
        assert asyncio.run(
            runtime.nodes.load_custom_node(str(folder), module_parent="custom_nodes")
        )
        return set(runtime.nodes.NODE_CLASS_MAPPINGS)

    return load_again


def said(caplog):
    """The warnings of this extension, which the test then has read."""
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    lines = [record.getMessage() for record in warnings if record.name == "ovi"]
    caplog.clear()
    return lines


def homes():
    """What is at every place that is changed; some ComfyUIs have none of one."""
    return [getattr(patch.home, patch.name, None) for patch in core_patches.PATCHES]


@pytest.mark.parametrize("name", ["Ovi v1.0 (copy)", "ovi", "comfyui_ovi-main"])
def test_any_folder_name_and_a_second_copy(runtime, install, tmp_path, caplog, name):
    known = set(runtime.nodes.NODE_CLASS_MAPPINGS)
    changed = homes()
    loaded = install(name)
    assert loaded == {node.define_schema().node_id for node in NODES}
    assert loaded <= known
    entries = [
        entry
        for entry in comfy.supported_models.models
        if entry.unet_config.get("image_model") == "ovi"
    ]
    assert entries == [family.OviConfig]
    assert homes() == changed
    (line,) = said(caplog)
    first = Path(family.__file__).parents[1]
    assert (
        f"sampled by the one in {first}, and nodes may be those of the one in {tmp_path / name}."
        in line
    )
    assert "Remove one of the two folders" in line


def test_the_first_copy_says_that_the_nodes_are_of_another(
    install,
    tmp_path,
    model_folder,
    caplog,
):
    """The other one may be too old to say so."""
    install("later")
    caplog.clear()
    comfy.sd.load_diffusion_model(str(model_folder / MODEL))
    (line,) = said(caplog)
    first = Path(family.__file__).parents[1]
    assert f"sampled by the one in {first}, and nodes may be" in line
    assert f"the one in {tmp_path / 'later'}." in line


def test_nodes_of_one_copy_say_that_the_model_is_of_another(runtime, install, tmp_path, caplog):
    install("other")
    said(caplog)
    other = importlib.import_module(
        f"{str(tmp_path).replace('.', '_x_')}/other.ovi_model.network.model"
    )
    model = runtime.nodes.NODE_CLASS_MAPPINGS["OviMiniature"].execute()[0]
    said(caplog)
    assert other.diffusion_model(model) is model.get_model_object("diffusion_model")
    (line,) = said(caplog)
    assert str(tmp_path / "other") in line
    assert str(Path(family.__file__).parents[1]) in line


def test_a_core_that_knows_ovi_is_left_alone(install, monkeypatch, caplog):
    class Ovi(comfy.supported_models.WAN22_T2V):
        unet_config = {"image_model": "ovi"}  # noqa: RUF012

    Ovi.__module__ = "comfy.supported_models"
    monkeypatch.setattr(comfy.supported_models, "models", [Ovi])
    install("newcomer")
    assert comfy.supported_models.models == [Ovi]
    (line,) = said(caplog)
    assert "This ComfyUI knows Ovi itself (comfy.supported_models.Ovi)" in line
    assert "update the extension, or remove it" in line


def test_another_extension_for_ovi_is_named(install, monkeypatch, caplog):
    """Its module is in no copy of this one."""

    class Ovi(comfy.supported_models.WAN22_T2V):
        unet_config = {"image_model": "ovi"}  # noqa: RUF012

    Ovi.__module__ = "custom_nodes.ovi_by_others"
    monkeypatch.setattr(comfy.supported_models, "models", [Ovi])
    install("newcomer")
    (line,) = said(caplog)
    assert "sampled by the one in custom_nodes.ovi_by_others, and nodes may be" in line
