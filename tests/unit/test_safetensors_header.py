"""What a safetensors file may say of its tensors, and what ComfyUI's readers make of it."""

import ctypes
import mmap
import sys
from types import ModuleType

import comfy.utils
import pytest
import torch
from comfyui_ovi.ovi_model.load import quantization
from comfyui_ovi.ovi_model.load.weight_file import read_weights
from safetensors.torch import save_file
from safetensors_bytes import entry, file_of

A, B = entry(0, 8), entry(8, 12)


# A file, and what is said of it; most of it by the safetensors library.
FAULTS = {
    "short": (b"\x05\0\0", "header too small"),
    "header_beyond_file": (file_of({"a": A}, bytes(8), length=10**6), "invalid header length"),
    "absurd_length": (file_of({"a": A}, bytes(8), length=2**64 - 1), "header too large"),
    "not_json": (file_of("{'a': 1}"), "invalid JSON in header: key must be a string"),
    "not_text": (file_of(b"\xff\xfe{}"), "invalid UTF-8 in header"),
    "a_list": (file_of([A]), "invalid JSON in header: invalid type: sequence"),
    "deep": (file_of("[" * 200_000), "invalid JSON in header"),
    "deep_inside": (file_of('{"a": ' + "[" * 200_000), "invalid JSON in header"),
    "twice": (file_of('{"a": 1, "a": 2}'), "invalid JSON in header: invalid type: integer `1`"),
    "twice_inside": (file_of('{"a": {"dtype": "F32", "dtype": "F32"}}'), "duplicate field `dtype`"),
    "half_a_character": (file_of(r'{"\ud800": {}}'), "unexpected end of hex escape"),
    "endless_number": (file_of('{"a": {"shape": [' + "9" * 5000 + "]}}"), "number out of range"),
    "entry_is_no_object": (file_of({"a": [0, 8]}), "invalid type: integer `0`"),
    "no_offsets": (
        file_of({"a": {"dtype": "F32", "shape": [2]}}),
        "missing field `data_offsets`",
    ),
    "unknown_dtype": (file_of({"a": entry(0, 8, dtype="F7")}, bytes(8)), "unknown variant `F7`"),
    "dtype_of_half_a_byte": (
        file_of({"a": entry(0, 4, shape=[8], dtype="F4")}, bytes(4)),
        "'a' is no plain tensor|KeyError: 'F4'|unknown variant `F4`",
    ),
    "dtype_is_no_text": (
        file_of({"a": entry(0, 8, dtype=["F32"])}, bytes(8)),
        "invalid type: sequence, expected string or map",
    ),
    "shape_is_no_list": (
        file_of({"a": entry(0, 8, shape="2")}, bytes(8)),
        'invalid type: string "2"',
    ),
    "negative_size": (
        file_of({"a": entry(0, 8, shape=[-1, -2])}, bytes(8)),
        "invalid value: integer `-1`",
    ),
    "overflow": (file_of({"a": entry(0, 0, shape=[2**63, 0])}), "Overflow when unpacking"),
    "true_is_no_size": (
        file_of({"a": entry(0, 4, shape=[True])}, bytes(4)),
        "invalid type: boolean `true`",
    ),
    "too_many_dimensions": (
        file_of({"a": entry(0, 4, shape=[1] * 65)}, bytes(4)),
        "'a' is no plain tensor",
    ),
    "wrapping_product": (
        file_of({"a": entry(0, 0, shape=[2**62, 4])}),
        "overflow computing buffer size",
    ),
    "shape_does_not_fit": (
        file_of({"a": entry(0, 8, shape=[3])}, bytes(8)),
        "invalid shape, data type, or offset",
    ),
    "offset_is_no_number": (
        file_of({"a": A | {"data_offsets": ["0", 8]}}, bytes(8)),
        'invalid type: string "0"',
    ),
    "offset_is_a_fraction": (
        file_of({"a": A | {"data_offsets": [0, 8.0]}}, bytes(8)),
        "invalid type: floating point `8.0`",
    ),
    "three_offsets": (
        file_of({"a": A | {"data_offsets": [0, 4, 8]}}, bytes(8)),
        "invalid length 3",
    ),
    "negative_offset": (
        file_of({"a": entry(-8, 0, shape=[2])}, bytes(8)),
        "invalid value: integer `-8`",
    ),
    "backwards": (file_of({"a": entry(8, 0, shape=[2])}, bytes(8)), "invalid offset for .* `a`"),
    "overlap": (file_of({"a": A, "b": entry(4, 8)}, bytes(8)), "invalid offset for .* `b`"),
    "same_bytes": (file_of({"a": A, "b": A}, bytes(8)), "invalid offset for .* `[ab]`"),
    "gap": (file_of({"a": A, "b": entry(12, 16)}, bytes(16)), "invalid offset for .* `b`"),
    "out_of_range": (file_of({"a": entry(0, 800)}, bytes(8)), "file not fully covered"),
    "cut_off": (file_of({"a": A, "b": B}, bytes(11)), "file not fully covered"),
    "data_of_nobody": (file_of({"a": A}, bytes(9)), "file not fully covered"),
    "metadata_is_a_list": (file_of({"__metadata__": ["a"]}), "invalid type: sequence"),
    "metadata_of_numbers": (file_of({"__metadata__": {"a": 1}}), "expected a string"),
}
# What the metadata says of quantised layers, and what is said of it.
QUANTISATION_FAULTS = {
    "{": "is no JSON",
    "[" * 200_000: "is no JSON",
    "[]": r"holds a list, not a JSON object",
    "{}": "does not say how each layer is quantised",
    '{"layers": ["a"]}': "does not say how each layer is quantised",
    '{"layers": {"a": "fp8"}}': "does not say how each layer is quantised",
}
# What to do is said after either.
ADVICE = r"(; download it again|Take the file from its original source)\.$"


def refuses(folder, name):
    """Assert that a faulty file is refused, in words that name it, its fault and what to do."""
    content, message = FAULTS[name]
    path = folder / f"{name}.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{name}\.safetensors.*({message}).*{ADVICE}"):
        read_weights(path)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told(tmp_path, name):
    refuses(tmp_path, name)


@pytest.mark.parametrize("text", QUANTISATION_FAULTS, ids=range(len(QUANTISATION_FAULTS)))
def test_faults_of_what_is_said_of_layers_are_told(tmp_path, text):
    path = tmp_path / "quantised.safetensors"
    path.write_bytes(file_of({"a": A, "__metadata__": {quantization.METADATA: text}}, bytes(8)))
    weights, metadata = read_weights(path)
    message = rf"'_quantization_metadata' {QUANTISATION_FAULTS[text]}.* download it again\.$"
    with pytest.raises(ValueError, match=message):
        quantization.read(weights, metadata)


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path):
    path, length = tmp_path / "long.safetensors", 2**36  # more than memory holds
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(length + 8)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"^long\.safetensors cannot be read: .*header too large"):
        read_weights(path)


def test_many_tensors_are_fine(tmp_path):
    path = tmp_path / "many.safetensors"
    path.write_bytes(
        file_of(
            {str(index): entry(4 * index, 4 * index + 4) for index in range(20_000)}, bytes(80_000)
        )
    )
    assert len(read_weights(path)[0]) == 20_000


@pytest.mark.parametrize(
    "content",
    [
        file_of({"b": B, "a": A, "__metadata__": {"made": "by hand"}}, bytes(12)),
        file_of({"b": B, "a": A, "__metadata__": None}, bytes(12)),
        file_of(
            {"b": B, "a": A, "none": entry(8, 8, shape=[0, 3]), "one": entry(12, 16, shape=[])},
            bytes(16),
        ),
    ],
)
def test_any_order_and_empty_tensors_are_fine(tmp_path, content):
    path = tmp_path / "fine.safetensors"
    path.write_bytes(content)
    weights, metadata = read_weights(path)
    assert weights["a"].shape == (2,)
    assert weights["b"].shape == (1,)
    assert metadata in ({}, {"made": "by hand"})


def test_every_type_that_safetensors_writes_is_known(tmp_path):
    types = {
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
    }
    types |= {torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2}
    types |= {torch.uint16, torch.uint32, torch.uint64}
    path = tmp_path / "types.safetensors"
    save_file({str(dtype): torch.zeros(3).to(dtype) for dtype in types}, path)
    assert {tensor.dtype for tensor in read_weights(path)[0].values()} == types


class PlainMap:
    """A file mapped into memory without the graphics driver that comfy-aimdo asks for."""

    def __init__(self, path: str):
        with open(path, "rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def get(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def get_file_handle(self) -> int:
        return 0


@pytest.fixture
def read_as_with_dynamic_vram(monkeypatch):
    """ComfyUI's own parser of safetensors files, which it uses with dynamic VRAM."""
    if not hasattr(comfy.utils, "load_safetensors"):
        pytest.skip("this ComfyUI has no parser of its own")
    maps = ModuleType("comfy_aimdo.model_mmap")
    maps.ModelMMAP = PlainMap
    monkeypatch.setitem(sys.modules, "comfy_aimdo.model_mmap", maps)
    monkeypatch.setattr(sys.modules["comfy_aimdo"], "model_mmap", maps, raising=False)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)


@pytest.mark.usefixtures("read_as_with_dynamic_vram")
def test_with_dynamic_vram_a_good_file_gives_the_same_tensors(tmp_path):
    weights = {
        "a": torch.arange(6.0).reshape(2, 3),
        "none": torch.zeros(0, 3),
        "b": torch.ones(2, dtype=torch.bool),
    }
    save_file(weights, tmp_path / "good.safetensors", metadata={"made": "by hand"})
    loaded, metadata = read_weights(tmp_path / "good.safetensors")
    assert metadata == {"made": "by hand"}
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert hasattr(loaded["a"].untyped_storage(), "_comfy_tensor_file_slice")


@pytest.mark.usefixtures("read_as_with_dynamic_vram")
@pytest.mark.parametrize("name", FAULTS)
def test_with_dynamic_vram_no_fault_reaches_the_parser_that_trusts(tmp_path, name):
    refuses(tmp_path, name)
