"""Which release a file is of by its name, and what is said where references go to another."""

from types import SimpleNamespace

import pytest
from comfyui_ovi.ovi_model.core_facts import loaded_file
from comfyui_ovi.ovi_model.load.diffusion_model import load_model
from comfyui_ovi.ovi_model.load.release import release_of
from comfyui_ovi.ovi_model.sample import references

RELEASES = {
    "model_960x960.safetensors": "Ovi",
    "Ovi-11B-fp8.safetensors": "Ovi",
    "Wan2_2-5B-Ovi_960x960_fp8_e4m3fn_scaled_KJ.safetensors": "Ovi",
    "dreamid_omni.bf16.safetensors": "DreamID-Omni",
    "DreamID-Omni on Ovi.safetensors": "DreamID-Omni",
    "hallolive_dit.pt": "Hallo-Live",
    "ovi_miniature.safetensors": "the miniature",
    "movie.safetensors": None,
    "mine.safetensors": None,
}


def loaded(file):
    """What our loader keeps of a model's file."""
    return SimpleNamespace(cached_patcher_init=(load_model, (f"/models/{file}", None, "default")))


@pytest.mark.parametrize("file", RELEASES)
def test_a_name_tells_a_release(file):
    assert loaded_file(loaded(file)) == file
    assert release_of(file) == RELEASES[file]


def test_a_model_without_a_file_tells_none():
    assert loaded_file(SimpleNamespace()) is None
    assert release_of(None) is None


@pytest.mark.parametrize("file", RELEASES)
def test_references_on_another_release_are_not_silent(file, caplog):
    references.say_if_untrained(loaded(file))
    expected = RELEASES[file] in ("Ovi", "Hallo-Live")
    assert ("was not trained for references" in caplog.text) == expected
    assert (file in caplog.text) == expected


def test_a_checkpoint_that_was_loaded_whole_tells_its_file_too():
    """Core's loader of checkpoints keeps a third entry: which of its parts the MODEL is."""
    whole = SimpleNamespace(cached_patcher_init=(load_model, ("/models/mine.safetensors",), 0))
    assert loaded_file(whole) == "mine.safetensors"
