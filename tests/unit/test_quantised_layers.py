"""Targets of the converter whose layers say how they are stored, and may multiply as they are."""

import json

import comfy.quant_ops
import comfy.sd
import pytest
import torch
from comfyui_ovi.ovi_model.load import checkpoint, diffusion_model
from convert_checkpoint import PRODUCTS
from goldens import relative_error
from layout_writers import in_blocks
from quantised_forward import forward
from safetensors.torch import load_file, save_file

FP8 = torch.float8_e4m3fn
KITCHEN = [to for to in PRODUCTS if to != "fp8-product"]
HERE = PRODUCTS if getattr(comfy.quant_ops, "ck", None) else ["fp8-product"]

# Rounding is off by half a step at most, on average by less. A step of fp8 is at most an eighth of
# what it rounds; one of int8 a 127th of the layer's or, rotated, the row's largest number, which is
# some times the average; one of four bits half of what it rounds, or less.
ROUNDING = {
    "fp8-product": 2**-4,
    "int8": 2**-5,
    "int8-convrot": 2**-6,
    "mxfp8": 2**-4,
    "nvfp4": 2**-2,
}


@pytest.mark.parametrize("to", HERE)
class TestFile:
    @pytest.fixture
    def written(self, convert, source, to):
        return load_file(convert(to, source))

    def test_layers_of_blocks_are_as_near_as_the_layout_can_be(self, written, plain, to):
        for name, weight in plain.items():
            if in_blocks(name, weight):
                error = relative_error(dequantise(written, name, weight.shape), weight)
                assert ROUNDING[to] / 8 <= error <= ROUNDING[to] / 2, name
            else:
                assert torch.equal(written[name], weight.to(torch.bfloat16)), name

    def test_nothing_else_is_in_the_file(self, written, plain, to):
        layers = [name.removesuffix(".weight") for name, x in plain.items() if in_blocks(name, x)]
        parts = (".weight_scale", ".comfy_quant") + ((".weight_scale_2",) if to == "nvfp4" else ())
        assert written.keys() == plain.keys() | {layer + part for layer in layers for part in parts}
        assert len(layers) == 2 * 2 * 12

    def test_a_layer_of_zeros_stays_zero(self, convert, released, tmp_path, to):
        key = "video_model.blocks.0.ffn.0.weight"
        save_file(released | {key: torch.zeros_like(released[key])}, tmp_path / "in.safetensors")
        written = load_file(convert(to, tmp_path / "in.safetensors"))
        found = dequantise(written, "blocks.0.ffn.0.weight", released[key].shape)
        assert (found == 0).all()

    def test_stock_and_own_loader_read_it(self, convert, source, to):
        expected = forward(comfy.sd.load_diffusion_model(str(source)))
        converted = str(convert(to, source))
        stock = forward(comfy.sd.load_diffusion_model(converted))
        assert ROUNDING[to] / 8 <= relative_error(stock, expected) <= 2 * ROUNDING[to]
        assert torch.equal(stock, forward(diffusion_model.load_model(converted, None, "default")))


def dequantise(written, name, shape):
    """What core's loader makes of a layer in a file, by core's own layout."""
    layer = name.removesuffix(".weight")
    how = json.loads(bytes(written[f"{layer}.comfy_quant"].tolist()))
    numbers, scale = written[name], written[f"{layer}.weight_scale"]
    if how == {"format": "float8_e4m3fn"}:
        return numbers.float() * scale
    scales = {"scale": scale}
    if how["format"] == "mxfp8":
        scales = {"scale": scale.view(torch.float8_e8m0fnu)}
    elif how["format"] == "nvfp4":
        scales = {"scale": written[f"{layer}.weight_scale_2"], "block_scale": scale}
    scales |= {key: value for key, value in how.items() if key.startswith("convrot")}
    layout = comfy.quant_ops.QUANT_ALGOS[how["format"]]["comfy_tensor_layout"]
    params = comfy.quant_ops.get_layout_class(layout).Params(
        **scales, orig_dtype=torch.float32, orig_shape=tuple(shape)
    )
    return comfy.quant_ops.QuantizedTensor(numbers, layout, params).dequantize()


def test_fp8_has_the_numbers_of_the_other_fp8_target(convert, source, plain):
    precise, product = (load_file(convert(to, source)) for to in ("fp8", "fp8-product"))
    for name, weight in plain.items():
        if in_blocks(name, weight):
            layer = name.removesuffix(".weight")
            assert torch.equal(precise[name].view(torch.uint8), product[name].view(torch.uint8))
            assert precise[f"{layer}.scale_weight"] == product[f"{layer}.weight_scale"]
    assert "scaled_fp8" not in product


def test_fp8_products_become_plain_again(convert, source, plain):
    fp8 = convert("fp8-product", source)
    back = load_file(convert("fp32", fp8))
    assert back.keys() == plain.keys()
    assert all(relative_error(back[name], x) < 2**-5 for name, x in plain.items())


@pytest.mark.skipif(len(HERE) == 1, reason="this ComfyUI has no comfy-kitchen")
class TestRotation:
    def test_is_as_wide_as_the_layer_lets_it(self, convert, source):
        written = load_file(convert("int8-convrot", source))
        found = {
            name: json.loads(bytes(x.tolist()))["convrot_groupsize"]
            for name, x in written.items()
            if name.endswith(".comfy_quant")
        }
        # 128 channels, and in the second layer of the FFN 200.
        assert {found["blocks.0.self_attn.q.comfy_quant"]} == {64}
        assert {found["blocks.0.ffn.2.comfy_quant"]} == {4}
        assert {*found.values()} == {64, 4}

    def test_of_a_layer_that_is_too_narrow(self):
        import quantised_layers

        with pytest.raises(ValueError, match=r"'a' reads 130 channels, no multiple of 4.*int8\."):
            quantised_layers.to_rotated_int8("a", torch.zeros(8, 130))


class TestWhatIsMissing:
    """Is said before anything is written."""

    @pytest.fixture(params=KITCHEN)
    def refuse(self, request, convert, source, tmp_path):
        def refuse():
            with pytest.raises(SystemExit) as caught:
                convert(request.param, source)
            assert not list(tmp_path.iterdir())
            return request.param, str(caught.value)

        return refuse

    @pytest.mark.skipif(len(HERE) > 1, reason="this ComfyUI has comfy-kitchen")
    def test_layouts_of_core(self, refuse):
        to, message = refuse()
        assert f"This ComfyUI reads no {to}. Update ComfyUI, and comfy-kitchen with it" in message

    @pytest.mark.skipif(len(HERE) == 1, reason="this ComfyUI has no comfy-kitchen")
    def test_comfy_kitchen(self, refuse, monkeypatch):
        monkeypatch.delattr(comfy.quant_ops, "ck")
        to, message = refuse()
        assert f"{to} is made by comfy-kitchen, which is not installed. Install it" in message

    @pytest.mark.skipif(len(HERE) == 1, reason="this ComfyUI has no comfy-kitchen")
    @pytest.mark.parametrize("lacks", ["formats", "tensors"])
    def test_a_layout(self, refuse, monkeypatch, lacks):
        if lacks == "formats":
            for name in ("int8_tensorwise", "mxfp8", "nvfp4"):
                monkeypatch.delitem(comfy.quant_ops.QUANT_ALGOS, name)
        else:
            monkeypatch.setattr(comfy.quant_ops, "QuantizedTensor", type("QuantizedTensor", (), {}))
        to, message = refuse()
        assert f"comfy-kitchen is too old for {to}. Update" in message


@pytest.mark.skipif(len(HERE) > 1, reason="this ComfyUI reads int8")
def test_an_older_core_says_what_it_cannot_read(released, tmp_path):
    how = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
    layer = "video_model.blocks.0.ffn.0"
    numbers = {f"{layer}.weight": torch.ones_like(released[f"{layer}.weight"], dtype=torch.int8)}
    stored = released | numbers | {f"{layer}.weight_scale": torch.ones(())}
    save_file(stored | {f"{layer}.comfy_quant": how}, tmp_path / "int8.safetensors")
    with pytest.raises(ValueError, match=r"quantised as 'int8_tensorwise'.*Update ComfyUI"):
        diffusion_model.load_model(str(tmp_path / "int8.safetensors"), None, "default")


def test_rows_that_a_layout_fills_up_are_no_damage(plain):
    """Mxfp8 stores 200 rows as 224; a file with 225 is damaged."""
    config = checkpoint.read_config(plain)
    mark = {"blocks.0.ffn.0.comfy_quant": torch.zeros(1, dtype=torch.uint8)}
    filled = plain | mark | {"blocks.0.ffn.0.weight": torch.zeros(224, 128).to(FP8)}
    checkpoint.check_weights(filled, *config)
    with pytest.raises(ValueError, match=r"'blocks\.0\.ffn\.0\.weight' has the shape \[225, 128\]"):
        checkpoint.check_weights(
            filled | {"blocks.0.ffn.0.weight": torch.zeros(225, 128).to(FP8)}, *config
        )
