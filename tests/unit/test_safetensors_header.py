"""What a safetensors file may say of its tensors, and what ComfyUI's readers make of it."""

import ctypes
import mmap
import sys
from types import ModuleType

import comfy.utils
import pytest
import torch
from comfyui_ovi.ovi_model.load.safetensors_header import HEADER_LIMIT, ITEM_BYTES, check_header
from comfyui_ovi.ovi_model.load.weight_file import read_weights
from safetensors.torch import save_file
from safetensors_bytes import entry, file_of

A, B = entry(0, 8), entry(8, 12)


def quantised(text: str) -> bytes:
    return file_of({"a": A, "__metadata__": {"_quantization_metadata": text}}, bytes(8))


# A file, and what is said of it.
FAULTS = {
    "short": (b"\x05\0\0", "the list of its tensors would take 5 bytes"),
    "header_beyond_file": (file_of({"a": A}, bytes(8), length=10**6), "would take 1,000,000 bytes"),
    "absurd_length": (
        file_of({"a": A}, bytes(8), length=2**64 - 1),
        "would take 18,446,744,073,709,551,615 bytes",
    ),
    "not_json": (file_of("{'a': 1}"), "Expecting property name"),
    "not_text": (file_of(b"\xff\xfe{}"), "can't decode byte 0xff"),
    "a_list": (file_of([A]), "its JSON is a list, not an object"),
    "deep": (file_of("[" * 200_000), "its JSON is nested too deeply"),
    "twice": (file_of('{"a": 1, "a": 2}'), "'a' is listed twice"),
    "twice_inside": (file_of('{"a": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' is listed twice"),
    "half_a_character": (file_of(r'{"\ud800": {}}'), "surrogates not allowed"),
    "endless_number": (file_of('{"a": {"shape": [' + "9" * 5000 + "]}}"), "4300 digits"),
    "entry_is_no_object": (
        file_of({"a": [0, 8]}),
        "'a' is not described by dtype, shape and data_offsets",
    ),
    "no_offsets": (file_of({"a": {"dtype": "F32", "shape": [2]}}), "'a' is not described by"),
    "unknown_dtype": (file_of({"a": entry(0, 8, dtype="F7")}, bytes(8)), "'a' has the dtype 'F7'"),
    "dtype_is_no_text": (
        file_of({"a": entry(0, 8, dtype=["F32"])}, bytes(8)),
        r"'a' has the dtype \['F32'\]",
    ),
    "shape_is_no_list": (file_of({"a": entry(0, 8, shape="2")}, bytes(8)), "'a' has the shape '2'"),
    "negative_size": (
        file_of({"a": entry(0, 8, shape=[-1, -2])}, bytes(8)),
        r"'a' has the shape \[-1, -2\]",
    ),
    "overflow": (file_of({"a": entry(0, 0, shape=[2**63, 0])}), "'a' has the shape"),
    "true_is_no_size": (
        file_of({"a": entry(0, 4, shape=[True])}, bytes(4)),
        r"'a' has the shape \[True\]",
    ),
    "too_many_dimensions": (
        file_of({"a": entry(0, 4, shape=[1] * 65)}, bytes(4)),
        "'a' has the shape",
    ),
    "wrapping_product": (
        file_of({"a": entry(0, 0, shape=[2**62, 4])}),
        "'a' has 0 bytes, which do not make",
    ),
    "shape_does_not_fit": (
        file_of({"a": entry(0, 8, shape=[3])}, bytes(8)),
        r"'a' has 8 bytes.* \[3\] of F32",
    ),
    "offset_is_no_number": (
        file_of({"a": A | {"data_offsets": ["0", 8]}}, bytes(8)),
        r"'a' has the data_offsets \['0', 8\]",
    ),
    "offset_is_a_fraction": (
        file_of({"a": A | {"data_offsets": [0, 8.0]}}, bytes(8)),
        r"data_offsets \[0, 8.0\]",
    ),
    "three_offsets": (
        file_of({"a": A | {"data_offsets": [0, 4, 8]}}, bytes(8)),
        r"data_offsets \[0, 4, 8\]",
    ),
    "negative_offset": (
        file_of({"a": entry(-8, 0, shape=[2])}, bytes(8)),
        r"data_offsets \[-8, 0\]",
    ),
    "backwards": (file_of({"a": entry(8, 0, shape=[2])}, bytes(8)), "'a' has -8 bytes"),
    "overlap": (
        file_of({"a": A, "b": entry(4, 8)}, bytes(8)),
        "'b' begins at byte 4 of the data, not 8",
    ),
    "same_bytes": (file_of({"a": A, "b": A}, bytes(8)), "'b' begins at byte 0 of the data, not 8"),
    "gap": (
        file_of({"a": A, "b": entry(12, 16)}, bytes(16)),
        "'b' begins at byte 12 of the data, not 8",
    ),
    "out_of_range": (
        file_of({"a": entry(0, 800)}, bytes(8)),
        "its tensors take 800 bytes, it holds 8",
    ),
    "cut_off": (file_of({"a": A, "b": B}, bytes(11)), "its tensors take 12 bytes, it holds 11"),
    "data_of_nobody": (file_of({"a": A}, bytes(9)), "its tensors take 8 bytes, it holds 9"),
    "metadata_is_a_list": (file_of({"__metadata__": ["a"]}), "'__metadata__' is no list of texts"),
    "quantisation_is_no_json": (quantised("{"), "Expecting property name"),
    "quantisation_is_a_list": (quantised("[]"), "its JSON is a list"),
    "quantisation_of_nothing": (
        quantised("{}"),
        "its '_quantization_metadata' does not say how each layer",
    ),
    "quantisation_of_no_layers": (quantised('{"layers": ["a"]}'), "does not say how each layer"),
    "quantisation_in_a_word": (
        quantised('{"layers": {"a": "fp8"}}'),
        "does not say how each layer",
    ),
    "metadata_of_numbers": (
        file_of({"__metadata__": {"a": 1}}),
        "'__metadata__' is no list of texts",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told(tmp_path, name):
    content, message = FAULTS[name]
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        check_header(path)
    with pytest.raises(
        ValueError, match=rf"^{name}\.safetensors cannot be read: its .* download it again\.$"
    ):
        read_weights(path)


def test_a_list_of_tensors_without_end_is_not_read(tmp_path):
    path = tmp_path / "long.safetensors"
    with path.open("wb") as file:
        file.write((HEADER_LIMIT + 1).to_bytes(8, "little"))
        file.truncate(HEADER_LIMIT + 9)  # takes no room on the disk
    with pytest.raises(
        ValueError, match=f"takes {HEADER_LIMIT + 1:,} bytes, more than {HEADER_LIMIT:,}"
    ):
        check_header(path)


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
    check_header(path)
    assert {tensor.dtype for tensor in read_weights(path)[0].values()} == types
    assert len(ITEM_BYTES) == len(types) + 1  # and the scales of MX files


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
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(FAULTS[name][0])
    with pytest.raises(
        ValueError, match=rf"^{name}\.safetensors cannot be read: .* download it again\.$"
    ):
        read_weights(path)
