"""LoRA files that are refused, and in which words."""

import logging
import re

import pytest
import torch
from comfyui_ovi.ovi_model.load import lora
from goldens import small_patcher, wan_patcher
from lora_files import glora, matrices, save

Q = "diffusion_model.blocks.0.self_attn.q"
DIM = 32
EVERY = {"video": 1.0, "audio": 1.0, "fusion": 1.0}


HADA = {f"{Q}.hada_w{i}_{x}": torch.zeros(DIM, DIM) for i in (1, 2) for x in "ab"}


@pytest.fixture(scope="module")
def model():
    return small_patcher()


def test_other_models_are_refused(tmp_path):
    wan = wan_patcher()
    with pytest.raises(
        ValueError, match=r"model is a WanModel, not an Ovi: connect .*'Ovi Model Loader'"
    ):
        lora.apply_lora(wan, save(tmp_path, matrices("blocks.0.self_attn.q")), EVERY)


# A patch that does not fit, and what is said of its parts, of the weight, and by core.
@pytest.mark.parametrize(
    ("weights", "found", "expected", "reason"),
    [
        (
            matrices(Q, 80, 80),
            rf"'{Q}\.lora_A\.weight' \[4, 80\], '{Q}\.lora_B\.weight' \[80, 4\]",
            [32, 32],
            "other rows",
        ),
        (
            matrices("patch_embedding", DIM, 64),
            r"'patch_embedding\.lora_A\.weight' \[4, 64\], .* \[32, 4\]",
            [32, 48, 1, 2, 2],
            "input of size 2048",
        ),
        (
            matrices("blocks.0.ffn.0", 32, 64),
            r"'blocks\.0\.ffn\.0\.lora_A\.weight' \[4, 64\], .* \[32, 4\]",
            [64, 32],
            "other rows",
        ),
        ({f"{Q}.diff": torch.zeros(DIM)}, rf"'{Q}\.diff' \[32\]", [32, 32], "shapes differ"),
        (
            {"patch_embedding.diff": torch.zeros(DIM, 192)},
            r"'patch_embedding\.diff' \[32, 192\]",
            [32, 48, 1, 2, 2],
            "shapes differ",
        ),
        ({f"{Q}.diff_b": torch.zeros(80)}, rf"'{Q}\.diff_b' \[80\]", [32], "shapes differ"),
        (
            {f"{Q}.set_weight": torch.zeros(80, 80)},
            rf"'{Q}\.set_weight' \[80, 80\]",
            [32, 32],
            "shapes differ",
        ),
        (
            {f"{Q}.lokr_w1": torch.zeros(4, 4), f"{Q}.lokr_w2": torch.zeros(4, 8)},
            rf"'{Q}\.lokr_w1' \[4, 4\], '{Q}\.lokr_w2' \[4, 8\]",
            [32, 32],
            "input of size 512",
        ),
        (
            {name: torch.zeros(8, 8) for name in HADA},
            rf"'{Q}\.hada_w1_a' \[8, 8\], .*'{Q}\.hada_w2_b' \[8, 8\]",
            [32, 32],
            "input of size 64",
        ),
        (
            {f"{Q}.lora_A.weight": torch.zeros(8, DIM), f"{Q}.lora_B.weight": torch.zeros(DIM, 4)},
            rf"'{Q}\.lora_A\.weight' \[8, 32\], '{Q}\.lora_B\.weight' \[32, 4\]",
            [32, 32],
            "32x4 and 8x32",
        ),
        (
            {f"{Q}.lora_A.weight": torch.zeros(DIM), f"{Q}.lora_B.weight": torch.zeros(DIM)},
            rf"'{Q}\.lora_A\.weight' \[32\], '{Q}\.lora_B\.weight' \[32\]",
            [32, 32],
            "out of range",
        ),
        (
            {**matrices(Q), f"{Q}.reshape_weight": torch.tensor([64, 64])},
            rf"'{Q}\.lora_B\.weight' \[32, 4\], '{Q}\.reshape_weight' \[2\]",
            [32, 32],
            r"input of size 1024",
        ),
        (
            {**matrices(Q), f"{Q}.dora_scale": torch.ones(7, 1)},
            rf"'{Q}\.dora_scale' \[7, 1\]",
            [32, 32],
            "size of tensor",
        ),
        ({f"{Q}.lokr_w1": torch.zeros(4, 4)}, rf"'{Q}\.lokr_w1' \[4, 4\]", [32, 32], "NoneType"),
        (
            {**HADA, f"{Q}.hada_t1": torch.zeros(3, 3), f"{Q}.hada_t2": torch.zeros(3, 3)},
            rf"'{Q}\.hada_t2' \[3, 3\]",
            [32, 32],
            "einsum",
        ),
        (
            {
                f"{Q}.lokr_w1": torch.zeros(4, 4),
                f"{Q}.lokr_w2_a": torch.zeros(2, 8),
                f"{Q}.lokr_w2_b": torch.zeros(2, 8),
                f"{Q}.lokr_t2": torch.zeros(3, 3, 1, 1),
            },
            rf"'{Q}\.lokr_t2' \[3, 3, 1, 1\]",
            [32, 32],
            "einsum",
        ),
        (
            glora(Q) | {f"{Q}.b2.weight": torch.zeros(4, 8)},
            rf"'{Q}\.b2\.weight' \[4, 8\]",
            [32, 32],
            "cannot be multiplied|invalid for input",
        ),
        (
            {f"{Q}.oft_blocks": torch.zeros(3, 5, 5), f"{Q}.alpha": torch.tensor(1.0)},
            rf"'{Q}\.oft_blocks' \[3, 5, 5\]",
            [32, 32],
            "invalid for input",
        ),
    ],
)
def test_a_patch_that_does_not_fit_its_weight_is_refused(
    tmp_path, model, caplog, weights, found, expected, reason
):
    message = (
        rf"{found}.* cannot be added to a weight of shape {re.escape(str(expected))} \(.*{reason}"
    )
    with pytest.raises(
        ValueError,
        match=rf"^test\.safetensors is made for another model, or damaged: .*{message}"
        rf".*\)\. Choose a LoRA of Ovi or of Wan 2\.2 5B\.$",
    ):
        lora.apply_lora(model, save(tmp_path, weights), EVERY)
    assert not model.patches
    assert not caplog.records


def test_a_misfit_is_refused_though_the_log_is_silent(tmp_path, model):
    """`--verbose CRITICAL`: core tells of it in the log alone."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with pytest.raises(ValueError, match="cannot be added to a weight"):
            lora.apply_lora(model, save(tmp_path, matrices(Q, DIM, 80)), EVERY)
        assert root.level == logging.CRITICAL
        assert not root.filters
    finally:
        root.setLevel(level)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
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


def test_a_number_that_is_none_is_refused(tmp_path, model):
    parts = {"diffusion_model.blocks.0.norm3.diff": torch.full((DIM,), float("nan"))}
    with pytest.raises(
        ValueError, match=r"test\.safetensors: 'diffusion_model\.blocks\.0\..* holds infinite"
    ):
        lora.apply_lora(model, save(tmp_path, parts), EVERY)
