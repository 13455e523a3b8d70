"""What cores ask of layers whose weights have eight bits."""

import comfy.ops
import pytest
import torch

pytestmark = pytest.mark.graph


def test_no_eight_bit_layer_is_asked_for_float32(run, graph, monkeypatch):
    """Graphics cards multiply eight-bit matrices in half precision only, and older cores hand them
    what they get.
    """
    asked = []
    original = comfy.ops.cast_bias_weight

    def watch(layer, input=None, *args, **kwargs):  # noqa: A002
        if input is not None and layer.weight.dtype.itemsize == 1:
            asked.append(input.dtype)
        return original(layer, input, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", watch)
    model = graph.add(
        "ModelComputeDtype", model=graph.model(weight_dtype="fp8_e4m3fn"), dtype="bf16"
    )
    graph.show(graph.sample(model, steps=1, cfg=1.0))
    run(graph)
    assert asked
    assert set(asked) == {torch.bfloat16}
