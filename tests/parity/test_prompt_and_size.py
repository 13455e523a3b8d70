"""Prompt forms and image sizes, exactly as the reference makes them."""

import pytest
from comfyui_ovi.ovi_model.config import VARIANTS
from comfyui_ovi.ovi_model.latent import geometry
from comfyui_ovi.ovi_model.text import prompt
from goldens import load_json

PROMPTS = load_json("prompts")["cases"]
SIZES = load_json("image_sizes")


@pytest.mark.parametrize("case", PROMPTS, ids=[str(i) for i in range(len(PROMPTS))])
@pytest.mark.parametrize("variant", VARIANTS)
def test_prompt_form(case, variant):
    assert prompt.SOUND_FORMS[VARIANTS[variant].sound_tag](case["prompt"]) == case[variant]


@pytest.mark.parametrize(
    "case", SIZES["sizes"] + SIZES["tiny_areas"], ids=lambda c: f"{c['w']}x{c['h']}-{c['area']}"
)
def test_image_size(case):
    assert (
        list(geometry.size_for_area(case["w"], case["h"], case["area"]))[::-1] == case["image_hw"]
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_lengths_and_areas_of_the_variants(name):
    recorded, variant = load_json("prompts")["model_specs"][name], VARIANTS[name]
    assert variant.file == recorded["path"]
    assert variant.area == recorded["video_area"]
    assert geometry.latent_frames(variant.frames) == recorded["video_latent_length"]
    assert (
        geometry.audio_steps(geometry.latent_frames(variant.frames))
        == recorded["audio_latent_length"]
    )
