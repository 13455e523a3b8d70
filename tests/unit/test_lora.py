"""LoRA files: what each kind adds, what goes where, and what is refused in which words."""

import logging
import re

import comfy.lora
import comfy.sd
import comfy.weight_adapter
import pytest
import torch
from comfyui_ovi.ovi_model.load import lora
from goldens import small_patcher, wan_patcher
from lora_files import STYLES
from safetensors.torch import save_file
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


def save(folder, weights, name="test.safetensors"):
    save_file(weights, folder / name)
    return str(folder / name)


def matrices(layer, rows=DIM, columns=DIM):
    return {
        f"{layer}.lora_A.weight": seeded(f"{layer} down", (RANK, columns)),
        f"{layer}.lora_B.weight": seeded(f"{layer} up", (rows, RANK)),
    }


def test_other_models_are_refused(tmp_path):
    wan = wan_patcher()
    with pytest.raises(
        ValueError, match=r"model is a WanModel, not an Ovi: connect .*'Ovi Model Loader'"
    ):
        lora.apply_lora(wan, save(tmp_path, matrices("blocks.0.self_attn.q")), EVERY)


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
    assert (
        report
        == f"test.safetensors: video 1 keys at 1, audio 0, fusion 0; {text.removeprefix('test.safetensors: ')}"
    )


Q = "diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (
            matrices(Q, 80, 80),
            rf"made for another model: '{Q}\.lora_\w\.weight' .* \[80, 80\], .* \[32, 32\].*Wan "
            rf"2\.2 5B",
        ),
        (
            matrices("patch_embedding", DIM, 64),
            r"'patch_embedding\.lora_\w\.weight' .* \[32, 64\], .* \[32, 192\]",
        ),
        ({f"{Q}.diff": torch.zeros(DIM)}, rf"'{Q}\.diff' .* \[32\], .* \[32, 32\]"),
        ({"patch_embedding.diff": torch.zeros(DIM, 192)}, r"\[32, 192\], .* \[32, 48, 1, 2, 2\]"),
        ({f"{Q}.diff_b": torch.zeros(80)}, rf"'{Q}\.diff_b' .* \[80\], .* \[32\]"),
        ({f"{Q}.set_weight": torch.zeros(80, 80)}, rf"'{Q}\.set_weight' .* \[80, 80\]"),
        (
            {f"{Q}.lokr_w1": torch.zeros(4, 4), f"{Q}.lokr_w2": torch.zeros(4, 8)},
            rf"'{Q}\.lokr_w\d' .* \[16, 32\], .* \[32, 32\]",
        ),
        (
            {f"{Q}.hada_w{i}_{x}": torch.zeros(8, 8) for i in (1, 2) for x in "ab"},
            rf"'{Q}\.hada_w\d_\w' .* \[8, 8\], .* \[32, 32\]",
        ),
        (
            {f"{Q}.lora_A.weight": torch.zeros(8, DIM), f"{Q}.lora_B.weight": torch.zeros(DIM, 4)},
            rf"damaged: '{Q}\.lora_\w\.weight' and .* \[\[32, 4\], \[8, 32\]\], which do not go "
            rf"together.*again",
        ),
        (
            {f"{Q}.lokr_w1": torch.zeros(4, 4)},
            rf"damaged: '{Q}\.lokr_w1' and .* \[\[4, 4\]\], .* or are not all",
        ),
        (
            {f"{Q}.lora_B.weight": torch.zeros(DIM, 4)},
            rf"incomplete or damaged: '{Q}\.lora_A\.weight'.*again",
        ),
        (
            {**matrices(Q), f"{Q}.alpha": torch.zeros(2)},
            r"incomplete or damaged: .*2 elements.*again",
        ),
        (
            {f"lora_unet_input_blocks_{i}.lora_down.weight": torch.zeros(1) for i in range(4)},
            r"a LoRA of another model: its names, 'lora_unet_input_blocks_0\.lora_down\.weight', "
            r".* and so on, fit no layer of Ovi\. Choose a LoRA of Ovi or of Wan 2\.2 5B",
        ),
        (
            {"model.diffusion_model.middle.diff": torch.zeros(1)},
            r"a LoRA of another model: its names, 'model\.diffusion_model\.middle\.diff', fit no "
            r"layer of Ovi",
        ),
        (
            {f"video_model.blocks.0.self_attn.{x}.weight": torch.zeros(DIM, DIM) for x in "qk"},
            r"no LoRA: its names are 'video_model\..*whole model.*diffusion_models.*'Ovi Model "
            r"Loader'",
        ),
        (
            {"model.diffusion_model.input_blocks.0.weight": torch.zeros(1)},
            r"no LoRA: its names are 'model\.diffusion_model\.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, model, weights, words):
    with pytest.raises(ValueError, match=r"^test\.safetensors.*" + words):
        lora.apply_lora(model, save(tmp_path, weights), EVERY)
    assert not model.patches


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "test.safetensors is empty"), (b"no weights at all", "test.safetensors cannot be read")],
)
def test_a_damaged_file_is_named(tmp_path, model, content, words):
    (tmp_path / "test.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)):
        lora.apply_lora(model, str(tmp_path / "test.safetensors"), EVERY)


def test_shapes_are_those_of_the_network_not_of_its_packed_weights(tmp_path):
    """Loaders of quantised files keep weights as packed bytes, and report those in the state dict."""
    model = small_patcher()
    layer = model.model.diffusion_model.blocks[0].self_attn.q
    layer.weight = torch.nn.Parameter(torch.zeros(DIM, 18, dtype=torch.uint8), requires_grad=False)
    patched, report = lora.apply_lora(model, save(tmp_path, matrices(Q)), EVERY)
    assert list(patched.patches) == [f"{Q}.weight"]
    assert report == "test.safetensors: video 1 keys at 1, audio 0, fusion 0"
    with pytest.raises(ValueError, match=r"\[18, 18\], .* \[32, 32\]"):
        lora.apply_lora(model, save(tmp_path, matrices(Q, 18, 18)), EVERY)


def test_a_number_that_is_none_is_refused(tmp_path, model):
    parts = {"diffusion_model.blocks.0.norm3.diff": torch.full((DIM,), float("nan"))}
    with pytest.raises(
        ValueError, match=r"test\.safetensors: 'diffusion_model\.blocks\.0\..* holds infinite"
    ):
        lora.apply_lora(model, save(tmp_path, parts), EVERY)


def test_the_shape_of_a_product_with_a_core_is_left_to_core():
    mid = torch.zeros(2, 2, 3, 3)
    adapter = comfy.weight_adapter.LoRAAdapter(
        set(), (torch.zeros(4, 2), torch.zeros(2, 4), None, mid, None, None)
    )
    assert lora._shape_of(adapter) is None
