"""Layers that read one input: it is quantised once, and the products run as they are stored."""

import comfy.quant_ops
import pytest
import torch
from comfyui_ovi.ovi_model.load import diffusion_model
from comfyui_ovi.ovi_model.network import attention
from comfyui_ovi.ovi_model.network.shared_input import SharedInput
from goldens import relative_error
from quantised_forward import allow_products, forward
from torch import nn

kitchen = pytest.mark.skipif(
    getattr(comfy.quant_ops, "ck", None) is None, reason="this ComfyUI has no comfy-kitchen"
)
LAYERS = 2 * 2 * 12  # blocks, towers, linear layers of a block


class NotShared(SharedInput):
    """Every layer gets the input as it is."""

    def __init__(self, x, *_layers):
        super().__init__(x)


@pytest.fixture
def load(convert, source, monkeypatch):
    """Convert and load with products allowed; returns the patcher."""
    allow_products(monkeypatch)
    return lambda to: diffusion_model.load_model(str(convert(to, source)), None, "default")


@pytest.fixture
def quantised_inputs(monkeypatch):
    """Shapes of what is quantised from now on."""
    shapes = []
    original = comfy.quant_ops.QuantizedTensor.from_float

    def count(x, *args, **kwargs):
        shapes.append(tuple(x.shape))
        return original(x, *args, **kwargs)

    monkeypatch.setattr(comfy.quant_ops.QuantizedTensor, "from_float", count)
    return shapes


def without_sharing(patcher, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(attention, "SharedInput", NotShared)
        return forward(patcher)


@kitchen
class TestProducts:
    """Which function multiplies, and what it is given."""

    @pytest.fixture
    def multiplied(self, monkeypatch):
        """Types of both factors of each product of torch in eight bits."""
        factors = []
        homes = (torch, "_int_mm"), (torch, "_scaled_mm"), (nn.functional, "scaled_mm")
        for home, name in homes:
            original = getattr(home, name, None)
            if original is not None:
                monkeypatch.setattr(home, name, self.recording(original, name, factors))
        return factors

    def recording(self, original, name, factors):
        def multiply(a, b, *args, **kwargs):
            factors.append((name.lstrip("_"), a.dtype, b.dtype))
            return original(a, b, *args, **kwargs)

        return multiply

    def test_fp8_multiplies_in_fp8(self, load, multiplied):
        forward(load("fp8-product"))
        assert multiplied == [("scaled_mm", torch.float8_e4m3fn, torch.float8_e4m3fn)] * LAYERS

    @pytest.mark.parametrize("to", ["int8", "int8-convrot"])
    def test_int8_multiplies_in_int8(self, load, multiplied, to):
        forward(load(to))
        assert multiplied == [("int_mm", torch.int8, torch.int8)] * LAYERS

    def test_the_other_fp8_target_does_not(self, load, multiplied, quantised_inputs):
        forward(load("fp8"))
        assert (multiplied, quantised_inputs) == ([], [])


@kitchen
class TestSharing:
    @pytest.fixture
    def model(self, load):
        return load("fp8-product")

    @pytest.fixture
    def block(self, model):
        return model.model.diffusion_model.blocks[0]

    def test_an_input_is_quantised_once(self, model, quantised_inputs, monkeypatch):
        expected = without_sharing(model, monkeypatch)
        assert len(quantised_inputs) == LAYERS
        quantised_inputs.clear()
        assert torch.equal(forward(model), expected)
        # q, k and v of self-attention; k and v of the prompt; k and v of the other tower.
        assert len(quantised_inputs) == LAYERS * 8 // 12

    def test_a_layer_with_a_lora_reads_the_input_itself(
        self, model, block, quantised_inputs, monkeypatch
    ):
        forward(model)
        before = len(quantised_inputs)
        block.self_attn.q.weight_function = [lambda weight: weight * 1.5]
        expected = without_sharing(model, monkeypatch)
        quantised_inputs.clear()
        assert torch.equal(forward(model), expected)
        assert len(quantised_inputs) == before
        # With only v left as it was, nothing is left to share.
        block.self_attn.k.weight_function = [lambda weight: weight * 1.5]
        quantised_inputs.clear()
        forward(model)
        assert len(quantised_inputs) == before

    @pytest.mark.parametrize("wrap", ["hook", "forward"])
    def test_what_stands_before_a_layer_gets_the_input(self, model, block, wrap):
        layer, read = block.self_attn.k, []
        if wrap == "hook":
            layer.register_forward_pre_hook(lambda _layer, given: read.append(given[0]))
        else:
            own = layer.forward
            layer.forward = lambda x: (read.append(x), own(x))[1]
        forward(model)
        assert [(type(x), x.ndim) for x in read] == [(torch.Tensor, 3)]

    def test_a_scale_of_the_file_is_the_layers_own(self, model, block, monkeypatch):
        block.self_attn.k.input_scale = nn.Parameter(torch.tensor(0.02), requires_grad=False)
        expected = without_sharing(model, monkeypatch)
        assert torch.equal(forward(model), expected)

    def test_in_training_each_layer_has_its_gradient(self, block):
        layers = block.self_attn.q, block.self_attn.k, block.self_attn.v
        grads = []
        for share in (SharedInput, NotShared):
            x = torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(2))
            read = share(x.requires_grad_(), *layers)
            sum(read(layer).sum() for layer in layers).backward()
            grads.append(x.grad)
        assert torch.equal(*grads)
        assert grads[0].abs().min() > 0


def test_plain_layers_get_the_input_as_it_is():
    read = []

    class Layer(nn.Linear):
        def forward(self, x):
            read.append(x)
            return super().forward(x)

    layers = [Layer(4, 4) for _ in range(3)]
    x = torch.randn(1, 2, 4)
    shared = SharedInput(x, *layers)
    assert all(
        torch.equal(shared(layer), nn.functional.linear(x, *layer.parameters())) for layer in layers
    )
    assert len(read) == 3
    assert all(given is x for given in read)


@kitchen
@pytest.mark.parametrize("to", ["int8", "fp8"])
def test_layers_that_quantise_no_input_get_it_as_it_is(load, to):
    attend = load(to).model.diffusion_model.blocks[0].self_attn
    assert SharedInput(torch.randn(1, 3, 128), attend.q, attend.k, attend.v)._quantised is None


@pytest.mark.skipif(hasattr(comfy.quant_ops, "ck"), reason="this ComfyUI multiplies in fp8")
def test_an_older_core_multiplies_fp8_in_full(load, quantised_inputs):
    """0.3.75 quantises no input that has no scale in the file: the same numbers as precise fp8."""
    product, precise = forward(load("fp8-product")), forward(load("fp8"))
    assert relative_error(product, precise) < 1e-5
    assert quantised_inputs == []
