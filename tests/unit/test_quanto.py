"""Weights of optimum-quanto become plain ones; what else it writes is named."""

import pytest
import torch
from comfyui_ovi.ovi_model.load import quanto


def stored(dtype=torch.int8):
    """One layer as optimum-quanto 0.2.7 writes it."""
    return {
        "block.q.weight._data": torch.tensor([[1, -2], [127, 64]]).to(dtype),
        "block.q.weight._scale": torch.tensor([[0.5], [2.0]], dtype=torch.bfloat16),
        "block.q.bias": torch.ones(2),
        "block.q.input_scale": torch.ones(()),
        "block.q.output_scale": torch.ones(()),
        "patch_embedding.weight": torch.zeros(2, 2, 1),
    }


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_rows_are_scaled_and_the_rest_is_kept(dtype):
    weights = stored(dtype)
    plain = quanto.dequantise(weights)
    assert plain.keys() == {"block.q.weight", "block.q.bias", "patch_embedding.weight"}
    values = torch.tensor([[1.0, -2.0], [127.0, 64.0]]).to(dtype).float()
    assert torch.equal(plain["block.q.weight"].float(), values * torch.tensor([[0.5], [2.0]]))
    assert plain["block.q.weight"].dtype == torch.bfloat16
    assert (
        "block.q.weight._data" not in weights
    )  # so that its memory is free before the next one is made


def test_other_weights_pass():
    weights = {"a.weight": torch.zeros(1), "a.input_scale": torch.ones(())}
    assert quanto.dequantise(weights) is weights


def test_a_weight_without_its_scale_is_named():
    weights = stored()
    del weights["block.q.weight._scale"]
    with pytest.raises(
        ValueError, match=r"'block\.q\.weight' has no scale 'block\.q\.weight\._scale'.*download it"
    ):
        quanto.dequantise(weights)


@pytest.mark.parametrize("part", ["_shift", "_data._data"])
def test_four_bit_weights_are_refused(part):
    with pytest.raises(
        ValueError, match=rf"'block\.q\.weight\.{part}' holds several numbers to a byte.*int8"
    ):
        quanto.dequantise(stored() | {f"block.q.weight.{part}": torch.zeros(2, 1)})


def test_a_scale_of_another_shape_is_named():
    weights = stored() | {"block.q.weight._scale": torch.ones(3, 1)}
    with pytest.raises(
        ValueError,
        match=r"'block\.q\.weight' has values of shape \[2, 2\] and a scale of shape \[3, 1\]",
    ):
        quanto.dequantise(weights)
