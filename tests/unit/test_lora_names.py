"""The names of LoRA files: every style of every trainer means the layer it should, and none means
two.
"""

import comfy.lora
import pytest
from comfyui_ovi.ovi_model.load import lora_names
from goldens import small_patcher, wan_patcher
from lora_files import AUDIO, STYLES


@pytest.fixture(scope="module")
def base():
    return small_patcher().model


@pytest.fixture(scope="module")
def keys(base):
    """The network's tensors by our names."""
    return list(base.diffusion_model.state_dict())


@pytest.fixture(scope="module")
def names(base):
    return comfy.lora.model_lora_keys_unet(base, {})


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("tower", ["", AUDIO])
def test_every_layer_has_its_name_in_every_style(keys, names, style, tower):
    """Every weight and every modulation, but biases, which are parts of their layers."""
    layers = [
        key for key in keys if key.startswith(AUDIO) == bool(tower) and not key.endswith(".bias")
    ]
    assert len(layers) > 60
    for key in layers:
        assert names[STYLES[style].name(key.removesuffix(".weight"))] == f"diffusion_model.{key}"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.1.attn1.to_q", "blocks.1.self_attn.q.weight"),
        ("blocks.1.attn1.to_out.0", "blocks.1.self_attn.o.weight"),
        ("blocks.1.attn1.norm_k", "blocks.1.self_attn.norm_k.weight"),
        ("blocks.1.attn2.to_k", "blocks.1.cross_attn.k.weight"),
        ("blocks.1.attn2.norm_q", "blocks.1.cross_attn.norm_q.weight"),
        ("blocks.1.ffn.net.0.proj", "blocks.1.ffn.0.weight"),
        ("blocks.1.ffn.net.2", "blocks.1.ffn.2.weight"),
        ("blocks.1.norm2", "blocks.1.norm3.weight"),
        ("blocks.1.scale_shift_table", "blocks.1.modulation.modulation"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0.weight"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2.weight"),
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0.weight"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2.weight"),
        ("condition_embedder.time_proj", "time_projection.1.weight"),
        ("proj_out", "head.head.weight"),
        ("scale_shift_table", "head.modulation.modulation"),
        ("blocks.1.modulation.modulation", "blocks.1.modulation.modulation"),
        ("blocks.1.modulation", "blocks.1.modulation.modulation"),
        ("blocks.1.norm3", "blocks.1.norm3.weight"),
        ("head.modulation", "head.modulation.modulation"),
    ],
)
@pytest.mark.parametrize("tower", ["", AUDIO])
def test_names_of_other_spellings(names, theirs, ours, tower):
    for prefix in lora_names.PREFIXES:
        assert names[f"{prefix}{tower}{theirs}"] == f"diffusion_model.{tower}{ours}"
    for prefix in lora_names.UNDERSCORED_PREFIXES:
        assert (
            names[prefix + f"{tower}{theirs}".replace(".", "_")] == f"diffusion_model.{tower}{ours}"
        )


def test_no_name_means_two_layers(keys):
    meanings = {}
    for name, key in lora_names.names_of(keys):
        assert meanings.setdefault(name, key) == key
    assert set(meanings.values()) == {key for key in keys if not key.endswith(".bias")}


def test_other_models_keep_core_s_names():
    names = comfy.lora.model_lora_keys_unet(wan_patcher().model, {})
    assert "diffusion_model.blocks.0.self_attn.q" in names
    assert "transformer.blocks.0.self_attn.q" not in names
