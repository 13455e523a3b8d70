"""GGUF files that the converter writes: every number, every type, and what the public loader asks
for.
"""

import sys

import gguf
import pytest
import torch
from layout_writers import in_blocks
from safetensors.torch import save_file

# The largest rounding error in steps of a block, and the steps up to the largest number of a block.
# In 4 and 5 bits
# the range has one step more on the side of that number, so that its opposite is cut off by one.
STEPS = {"q8_0": (0.5, 127), "q5_0": (1, 16), "q4_0": (1, 8)}


@pytest.fixture(params=list(STEPS))
def written(request, convert, source):
    return request.param, gguf.GGUFReader(convert(request.param, source))


def test_every_weight_is_within_the_formats_error(written, plain):
    kind, reader = written
    assert sorted(tensor.name for tensor in reader.tensors) == sorted(plain)
    for tensor in reader.tensors:
        weight = plain[tensor.name]
        actual = torch.from_numpy(
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()
        ).reshape(weight.shape)
        bound = {"F32": 0, "F16": weight.abs() * 2**-11 + 2**-25}.get(tensor.tensor_type.name)
        if bound is None:
            most, steps = STEPS[kind]
            largest = weight.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
            # The scale itself is rounded to half precision.
            bound = (largest * (most / steps + 2**-10)).expand(*largest.shape[:-1], 32).flatten(-2)
        assert ((actual - weight).abs() <= bound).all(), tensor.name


def test_types_are_those_the_public_loader_can_use(written, plain):
    kind, reader = written
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    for name, weight in plain.items():
        if weight.ndim == 1 or name.endswith("modulation"):
            assert types[name] == "F32", name
        elif in_blocks(name, weight) and weight.shape[1] % 32 == 0:
            assert types[name] == kind.upper(), name
        else:
            assert types[name] == "F16", name
    assert types["blocks.0.ffn.2.weight"] == "F16"
    assert set(types.values()) == {"F32", "F16", kind.upper()}


def test_what_the_file_says_of_itself(written, source, plain):
    kind, reader = written
    assert reader.get_field("general.architecture").contents() == "wan"
    assert reader.get_field("ovi.converted_from").contents() == source.name
    assert (
        reader.get_field("general.file_type").contents()
        == gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"]
    )
    shapes = {x: y for x, y in reader.fields.items() if x.startswith("comfy.gguf.orig_shape.")}
    assert list(shapes) == ["comfy.gguf.orig_shape.patch_embedding.weight"]
    (field,) = shapes.values()
    assert field.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
    assert field.contents() == list(plain["patch_embedding.weight"].shape)


def test_without_the_package(convert, source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "gguf_file", raising=False)
    with pytest.raises(
        SystemExit, match=r"need the package 'gguf': run '.*python.* -m pip install gguf'"
    ):
        convert("q8_0", source)
    assert not list(tmp_path.iterdir())


def test_numbers_too_large_for_half_precision(convert, released, tmp_path):
    released = released | {"audio_model.head.head.weight": torch.full((20, 128), 1e6)}
    save_file(released, tmp_path / "in.safetensors")
    with pytest.raises(
        SystemExit, match=r"'audio_model\.head\.head\.weight' has numbers too large for half"
    ):
        convert("q8_0", tmp_path / "in.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]
