"""LoRA files: what each kind adds, and what goes where."""

import logging

import comfy.lora
import comfy.sd
import pytest
import torch
from comfyui_ovi.ovi_model.load import lora
from goldens import small_patcher
from lora_files import STYLES, glora, matrices, save
from weights import seeded

CORE = "diffusion_model."
DIM, RANK = 32, 4
EVERY = {"video": 1.0, "audio": 1.0, "fusion": 1.0}


@pytest.fixture(scope="module")
def model():
    return small_patcher()


def plain(model):
    """The network's own values by our names."""
    return model.model.diffusion_model.state_dict()


def numbers(model):
    """The values a LoRA changed, as core adds it to them, by our names."""
    return {
        key.removeprefix(CORE): comfy.lora.calculate_weight(
            patches, plain(model)[key.removeprefix(CORE)].clone(), key
        )
        for key, patches in model.patches.items()
    }


def lora_of(shape):
    """A LoRA at half its strength, by alpha."""
    rows, *columns = shape
    up, down = seeded("up", (rows, RANK)), seeded("down", (RANK, *columns))
    parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(RANK / 2)}
    return parts, lambda weight: weight + 0.5 * (up @ down.flatten(1)).view(weight.shape)


def dora_of(shape):
    """Each row of the sum of weight and LoRA, given its length over that of the weight's row."""
    parts, add = lora_of(shape)
    lengths = seeded("lengths", (shape[0], 1)).abs() + 0.5
    parts["dora_scale"] = lengths
    return parts, lambda weight: add(weight) * lengths / weight.norm(dim=1, keepdim=True)


def loha_of(shape):
    """The entrywise product of two products."""
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    parts = {
        name: seeded(name, (shape[0], RANK) if name[-1] == "a" else (RANK, shape[1]))
        for name in names
    }
    a, b, c, d = parts.values()
    return {
        **parts,
        "alpha": torch.tensor(2.0),
    }, lambda weight: weight + (a @ b) * (c @ d) * 2 / RANK


def lokr_of(shape):
    """A Kronecker product, one side of it a product itself, scaled by alpha over its rank."""
    left, up, down = (
        seeded("left", (4, 4)),
        seeded("up", (shape[0] // 4, 2)),
        seeded("down", (2, shape[1] // 4)),
    )
    parts = {"lokr_w1": left, "lokr_w2_a": up, "lokr_w2_b": down, "alpha": torch.tensor(1.0)}
    return parts, lambda weight: weight + torch.kron(left, up @ down) / 2


def difference_of(shape):
    difference = seeded("difference", shape)
    return {"diff": difference}, lambda weight: weight + difference


def replacement_of(shape):
    replacement = seeded("replacement", shape)
    return {"set_weight": replacement}, lambda _: replacement


KINDS = {
    "LoRA": (lora_of, "blocks.1.self_attn.q"),
    "LoRA on a convolution": (lora_of, "patch_embedding"),
    "DoRA": (dora_of, "blocks.1.self_attn.q"),
    "LoHa": (loha_of, "blocks.0.ffn.0"),
    "LoKr": (lokr_of, "blocks.0.ffn.2"),
    "diff": (difference_of, "blocks.1.cross_attn.v_fusion"),
    "diff of a norm": (difference_of, "blocks.1.norm3"),
    "diff of a convolution": (difference_of, "audio_model.patch_embedding.2.w1"),
    "diff of a modulation": (difference_of, "blocks.2.modulation.modulation"),
    "diff of the head's modulation": (difference_of, "audio_model.head.modulation.modulation"),
    "set_weight": (replacement_of, "audio_model.blocks.0.self_attn.norm_q"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["comfy", "diffusers_kohya"])
def test_every_kind_adds_what_it_should(tmp_path, model, kind, style):
    """By our node, which checks shapes first, and by core's own function; against the equation of
    the kind.
    """
    make, layer = KINDS[kind]
    key = f"{layer}.weight" if f"{layer}.weight" in plain(model) else layer
    weight = plain(model)[key].clone()
    parts, change = make(weight.shape)
    file = {f"{STYLES[style].name(layer)}.{part}": tensor for part, tensor in parts.items()}

    ours, report = lora.apply_lora(model, save(tmp_path, file), EVERY)
    stock, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 1.0)
    assert "1 keys at 1" in report
    assert "fit nothing" not in report
    torch.testing.assert_close(numbers(ours)[key], change(weight), rtol=1e-5, atol=1e-5)
    assert torch.equal(numbers(ours)[key], numbers(stock)[key])
    assert torch.equal(plain(model)[key], weight)


@pytest.mark.parametrize("style", ["comfy", "kohya", "diffusers"])
def test_biases_change_with_their_layer(tmp_path, model, style):
    change = seeded("change", (DIM,))
    file = {f"{STYLES[style].name('audio_model.blocks.0.self_attn.k')}.diff_b": change}
    patched, report = lora.apply_lora(model, save(tmp_path, file), EVERY)
    key = "audio_model.blocks.0.self_attn.k.bias"
    torch.testing.assert_close(numbers(patched)[key], plain(model)[key] + change)
    assert report == "test.safetensors: video 0, audio 1 keys at 1, fusion 0"


PARTS = {
    "video": ("blocks.0.self_attn.q", "blocks.2.cross_attn.k", "head.head"),
    "audio": ("audio_model.blocks.0.self_attn.q", "audio_model.text_embedding.0"),
    "fusion": (
        "blocks.0.cross_attn.k_fusion",
        "blocks.1.cross_attn.v_fusion",
        "blocks.1.cross_attn.pre_attn_norm_fusion",
        "audio_model.blocks.2.cross_attn.v_fusion",
        "audio_model.blocks.1.cross_attn.norm_k_fusion",
    ),
}


@pytest.fixture
def whole(tmp_path, model):
    """A file with differences for some layers of each part."""
    layers = [layer for part in PARTS.values() for layer in part]
    file = {
        f"diffusion_model.{layer}.diff": seeded(layer, plain(model)[f"{layer}.weight"].shape)
        for layer in layers
    }
    return save(tmp_path, file)


@pytest.mark.parametrize("part", PARTS)
def test_each_strength_governs_its_own_part(model, whole, part):
    patched, report = lora.apply_lora(model, whole, {**dict.fromkeys(PARTS, 0.0), part: 0.5})
    assert set(numbers(patched)) == {f"{layer}.weight" for layer in PARTS[part]}
    for layer in PARTS[part]:
        weight = plain(model)[f"{layer}.weight"]
        torch.testing.assert_close(
            numbers(patched)[f"{layer}.weight"],
            weight + 0.5 * seeded(layer, weight.shape),
            rtol=1e-5,
            atol=1e-5,
        )
    told = {
        name: f"{name} {len(layers)} keys at {0.5 if name == part else 0:g}"
        for name, layers in PARTS.items()
    }
    assert report == f"test.safetensors: {', '.join(told.values())}"


def test_equal_strengths_are_the_stock_loader(model, whole):
    patched, _ = lora.apply_lora(model, whole, dict.fromkeys(PARTS, 0.7))
    stock, _ = comfy.sd.load_lora_for_models(
        model, None, comfy.utils.load_torch_file(whole), 0.7, 0.0
    )
    expected = numbers(stock)
    assert numbers(patched).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in numbers(patched).items())
    assert not model.patches


def test_loras_stack(tmp_path, model, whole):
    other = save(tmp_path, matrices("diffusion_model.blocks.0.self_attn.q"), "other.safetensors")
    first, _ = lora.apply_lora(model, whole, EVERY)
    both, _ = lora.apply_lora(first, other, {**EVERY, "video": -2.0})
    alone, _ = lora.apply_lora(model, other, {**EVERY, "video": -2.0})
    key = "blocks.0.self_attn.q.weight"
    weight = plain(model)[key]
    total = numbers(first)[key] - weight + numbers(alone)[key]
    torch.testing.assert_close(numbers(both)[key], total, rtol=1e-5, atol=1e-5)
    assert len(both.patches) == len(first.patches)


def test_names_that_fit_nothing_are_told_once(tmp_path, model, caplog):
    """Layers of another tower, a part that no kind has, and a bias for a layer without one."""
    strange = {
        f"lora_te_text_model_layers_{i}.lora_down.weight": torch.zeros(RANK, 8) for i in range(2)
    }
    strange |= {
        "diffusion_model.blocks.0.self_attn.q.magnitude": torch.zeros(1),
        "diffusion_model.blocks.0.self_attn.norm_q.diff_b": torch.zeros(DIM),
    }
    path = save(tmp_path, {**matrices("diffusion_model.blocks.0.self_attn.q"), **strange})
    with caplog.at_level(logging.WARNING):
        patched, report = lora.apply_lora(model, path, EVERY)
    assert len(patched.patches) == 1
    (record,) = caplog.records
    text = record.getMessage().removeprefix("Ovi: ")
    assert text.startswith("test.safetensors: 4 of 6 names in the file fit nothing: '")
    assert text.endswith("' and so on")
    assert text.count("', '") == 2
    left_over = text.removeprefix("test.safetensors: ")
    assert report == f"test.safetensors: video 1 keys at 1, audio 0, fusion 0; {left_over}"


Q = "diffusion_model.blocks.0.self_attn.q"
# Kinds that are no plain product.
FITTING = {
    "GLoRA": glora(Q),
    "OFT": {f"{Q}.oft_blocks": 0.1 * torch.ones(4, 8, 8), f"{Q}.alpha": torch.tensor(1.0)},
    "LoRA with a core": {
        "patch_embedding.lora_up.weight": seeded("up", (DIM, 2, 1, 1)),
        "patch_embedding.lora_mid.weight": seeded("mid", (2, 2, 2, 2)),
        "patch_embedding.lora_down.weight": seeded("down", (2, 48, 1, 1)),
    },
}


@pytest.mark.parametrize("kind", FITTING)
def test_a_patch_of_another_kind_that_fits_is_added_as_core_adds_it(tmp_path, model, kind):
    ours, report = lora.apply_lora(model, save(tmp_path, FITTING[kind]), EVERY)
    stock, _ = comfy.sd.load_lora_for_models(model, None, FITTING[kind], 1.0, 1.0)
    ((key, changed),) = numbers(ours).items()
    assert torch.equal(changed, numbers(stock)[key])
    assert report == "test.safetensors: video 1 keys at 1, audio 0, fusion 0"


def test_shapes_are_those_of_the_network_not_of_its_packed_weights(tmp_path):
    """Loaders of quantised files keep packed bytes, and report those in the state dict."""
    model = small_patcher()
    layer = model.model.diffusion_model.blocks[0].self_attn.q
    layer.weight = torch.nn.Parameter(torch.zeros(DIM, 18, dtype=torch.uint8), requires_grad=False)
    patched, report = lora.apply_lora(model, save(tmp_path, matrices(Q)), EVERY)
    assert list(patched.patches) == [f"{Q}.weight"]
    assert report == "test.safetensors: video 1 keys at 1, audio 0, fusion 0"
    with pytest.raises(ValueError, match=r"\[4, 18\], .* \[18, 4\] .* \[32, 32\]"):
        lora.apply_lora(model, save(tmp_path, matrices(Q, 18, 18)), EVERY)
