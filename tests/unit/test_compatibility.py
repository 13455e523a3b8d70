"""Every name of ComfyUI that this extension uses is in the running one, and the page is current."""

import importlib
from functools import reduce

import comfy.model_base
import list_core_names
import pytest
from comfyui_ovi.ovi_model import core_facts
from comfyui_ovi.ovi_model.core_patches import PATCHES
from core_names import CoreNames, read_core_names, read_source

NAMES = read_core_names()
SOURCE = """
import comfy.sd
from comfy.ldm.wan import vae2_2 as wan

class Model(comfy.sd.Base):
    kind = 1
    def build(self, patcher):
        size, core = 1, comfy.sd
        core.load(wan.Decoder, size, hasattr(core, "probe"))
        comfy = patcher
        return comfy.not_of_core, self.load.not_of_core
"""
# Members that core's class has with a fact, or only without it; all others every core has.
WITH_FACT = {
    "comfy.model_base.BaseModel.resize_cond_for_context_window": core_facts.NESTED_WINDOWS,
    "comfy.supported_models.WAN22_T2V.quant_config": core_facts.LAYER_FORMATS,
    "comfy.supported_models.WAN22_T2V.layer_quant_config": not core_facts.LAYER_FORMATS,
    "comfy.supported_models.WAN22_T2V.scaled_fp8": not core_facts.LAYER_FORMATS,
}
# Core calls it without having it in the base of all models.
NOT_IN_BASE = "comfy.model_base.BaseModel.map_context_window_to_modalities"


def find(module: str, name: str):
    """Return what a full name of core stands for; raise AttributeError if there is none."""
    names = name.removeprefix(module).strip(".").split(".") if name != module else []
    return reduce(_member, names, importlib.import_module(module))


def _member(home, name: str):
    try:
        return getattr(home, name)
    except AttributeError:
        if hasattr(home, "__path__"):
            return importlib.import_module(f"{home.__name__}.{name}")
        raise


def test_names_are_read_through_aliases_and_assignments():
    names = CoreNames()
    read_source(SOURCE, "file.py", names)
    assert names.modules == {"comfy.sd", "comfy.ldm.wan"}
    wan = "comfy.ldm.wan.vae2_2"
    assert set(names.used) == {"comfy.sd.Base", "comfy.sd.load", wan, f"{wan}.Decoder"}
    assert set(names.probed) == {"comfy.sd.probe"}
    assert set(names.overridden) == {"comfy.sd.Base.kind", "comfy.sd.Base.build"}
    assert names.module_of(f"{wan}.Decoder") == "comfy.ldm.wan"


def test_the_page_is_current():
    assert list_core_names.PAGE.read_text(encoding="utf-8") == list_core_names.page(), (
        "run python tests/support/write_pages.py"
    )


@pytest.mark.parametrize("name", sorted({*NAMES.used, *NAMES.modules}))
def test_core_has_what_is_used(name):
    """But for names that the code asks for before it uses them."""
    if name not in NAMES.probed:
        find(NAMES.module_of(name), name)


@pytest.mark.parametrize("name", sorted({*NAMES.overridden} - {NOT_IN_BASE}))
def test_core_has_what_is_replaced_in_its_classes(name):
    home, _, member = name.rpartition(".")
    kind = find(NAMES.module_of(home), home)
    has = hasattr(kind, member) or member in kind.__init__.__code__.co_names
    assert has == WITH_FACT.get(name, True)


def test_core_has_models_that_place_sound_in_context_windows():
    kinds = [kind for kind in vars(comfy.model_base).values() if isinstance(kind, type)]
    has = any(NOT_IN_BASE.rpartition(".")[2] in vars(kind) for kind in kinds)
    assert NOT_IN_BASE in NAMES.overridden
    assert has == core_facts.NESTED_WINDOWS


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.place)
def test_a_change_is_made_on_the_cores_that_the_page_says(patch):
    told = {
        "every core": True,
        "before 0.33": not core_facts.NESTED_LATENTS,
        "from 0.26 on": core_facts.NESTED_WINDOWS,
        "from 0.33 on": core_facts.NESTED_LATENTS,
    }
    assert patch.is_needed == told[list_core_names.cores_of(patch)]
    assert hasattr(patch.home, patch.name) or not patch.is_needed
