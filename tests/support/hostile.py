"""Strategies for what a download, an editor or an attacker makes of prompts and weight files, and a
count of cases.
"""

import functools
import io
import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors_bytes import entry, file_of
from small_weights import OviSizes, Weights, ovi_shapes

CASES: Counter[str] = Counter()
PLANNED: dict[str, int] = {}
# Whether --nightly was given; known before a test is imported.
NIGHTLY = False


def fuzz(ordinary: int, nightly: int, **strategies: st.SearchStrategy) -> Callable:
    """Run a test on so many cases, the same ones every time; the cases that ran are counted under
    its name.
    """
    cases = nightly if NIGHTLY else ordinary

    def decorate(test: Callable) -> Callable:
        PLANNED[test.__name__] = cases

        @functools.wraps(test)
        def counted(*args, **kwargs):
            CASES[test.__name__] += 1
            test(*args, **kwargs)

        run = settings(
            max_examples=cases,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        return run(given(**strategies)(counted))

    return decorate


# Prompts.

TAGS = [
    "<S>",
    "<E>",
    "<AUDCAP>",
    "<ENDAUDCAP>",
    "</S>",
    "</E>",
    "</AUDCAP>",
    "</ENDAUDCAP>",
    "Audio:",
]
TAGS += ["<", ">", "\n", "\r\n", "\u2028", "\t", " ", "\0"]
tag_soup = st.lists(st.sampled_from(TAGS) | st.text(max_size=6), max_size=8).map("".join)

_words = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=10)
_speech = _words.map("<S>{}<E>".format)
_parts = st.lists(_words | _speech, max_size=4).map("".join)
_sounds = (_parts | _parts.map("Audio: {}".format)).map("<AUDCAP>{}<ENDAUDCAP>".format)
_tagged = st.lists(_parts | _sounds, max_size=4).map("".join)
good_prompts = _tagged | st.tuples(_tagged, _parts).map(" Audio: ".join)


# Values that a field of a file can have instead of its own.
_numbers = st.integers(-3, 70) | st.sampled_from(
    [2**31, 2**32, 2**62, 2**63, 2**64, 10**30, -(2**63)]
)
_others = [
    None,
    True,
    0.5,
    float("inf"),
    "",
    "F32",
    "1",
    [],
    {},
    [[1]],
    [None, 2],
    {"a": 1},
    [True, 4],
    ["0", "8"],
]
_junk = _numbers | st.sampled_from(_others)


# Safetensors files.

DTYPES = [
    "F32",
    "F16",
    "BF16",
    "I8",
    "U8",
    "BOOL",
    "F64",
    "I64",
    "F8_E4M3",
    "F8_E8M0",
    "F4",
    "f32",
    "",
    "C64",
]
DATA = bytes(range(1, 41))
MISPRINTS = [
    ('"b"', '"a"'),
    ("{", "[{"),
    ("F32", "F3"),
    ("16", "1e1"),
    ("}", ""),
    ("a", "\\ud800"),
    ("{", "[" * 9999),
]


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    """A small file in which some fields, bytes or lengths are not what they should be; few are
    still good.
    """
    header = {"a": entry(0, 16, [2, 2]), "b": entry(16, 24), "c": entry(24, 40, [8], "BF16")}
    header["__metadata__"] = {"made": "here"}
    for _ in range(draw(st.integers(0, 2))):
        _edit(draw, header, draw(st.sampled_from("abc")))
    text = json.dumps(header)
    old, new = draw(st.sampled_from([("", "")] * 20 + MISPRINTS))
    text = text.replace(old, new) if old else text
    data = draw(st.sampled_from([DATA] * 5 + [DATA[:-1], DATA + b"\0", b"", DATA * 2]))
    length = draw(
        st.sampled_from([len(text.encode())] * 9 + [0, 1, len(text) - 1, 500, 2**31, 2**64 - 1])
    )
    return draw(_damaged(file_of(text, data, length), most=1))


def _edit(draw: st.DrawFn, header: dict, name: str) -> None:
    described = header.get(name)
    if not isinstance(described, dict):
        return
    match draw(st.integers(0, 6)):
        case 0:
            described["shape"] = draw(st.lists(st.integers(-1, 17), max_size=4) | _junk)
        case 1:
            described["data_offsets"] = draw(
                st.lists(st.integers(-4, 48), min_size=2, max_size=2) | _junk
            )
        case 2:
            described["dtype"] = draw(st.sampled_from(DTYPES) | _junk)
        case 3:
            described.pop(draw(st.sampled_from(["dtype", "shape", "data_offsets"])), None)
        case 4:
            header[draw(st.sampled_from(["a", "b", "d", "", "__metadata__", "\0"]))] = described
        case 5:
            header[name] = draw(_junk)
        case 6:
            header["__metadata__"] = draw(
                st.sampled_from([{"format": "pt"}, {"a": 1}, {"": ""}]) | _junk
            )


@st.composite
def _damaged(draw: st.DrawFn, content: bytes, most: int) -> bytes:
    """Change, remove, repeat or insert some bytes, a few times at most; or cut the end off."""
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 8)))
        middle = draw(st.binary(max_size=8) | st.just(content[start:end] * 2))
        content = content[:start] + middle + content[end:]
    return (
        content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 9 else content
    )


# PyTorch files.


def _torch_bytes(value: object, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _rezipped(content: bytes, pickled: bytes) -> bytes:
    """The same PyTorch file with another pickle in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for record in old.infolist():
            is_pickle = record.filename.endswith("data.pkl")
            new.writestr(record.filename, pickled if is_pickle else old.read(record))
    return file.getvalue()


_WEIGHTS = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
_TORCH_VALUES = [
    _WEIGHTS,
    {"module": _WEIGHTS, "step": 3},
    {"app": {"model": _WEIGHTS}},
    [1, "x", torch.zeros(1)],
]
_ZIPPED = [_torch_bytes(value, zipped=True) for value in _TORCH_VALUES]
_LEGACY = [_torch_bytes(value, zipped=False) for value in _TORCH_VALUES]
_PICKLES = [zipfile.ZipFile(io.BytesIO(content)).read("archive/data.pkl") for content in _ZIPPED]


@st.composite
def torch_files(draw: st.DrawFn) -> bytes:
    """A small PyTorch file, old or new, with damage to its bytes or to the pickle within."""
    which = draw(st.integers(0, len(_TORCH_VALUES) - 1))
    match draw(st.integers(0, 2)):
        case 0:
            return draw(_damaged(_ZIPPED[which], most=4))
        case 1:
            return draw(_damaged(_LEGACY[which], most=4))
        case _:
            return _rezipped(_ZIPPED[which], draw(_damaged(_PICKLES[which], most=4)))


# Checkpoints.


class SmallestOvi(OviSizes):
    """One block of one head, and next to nothing else."""

    audio_hidden = 8

    def __init__(self):
        super().__init__(dim=128, ffn_dim=8, layers=1, text_dim=8, freq_dim=8)


def smallest_ovi() -> Weights:
    """Weights of every shape that a file of Ovi holds, which take no memory."""
    zero = torch.zeros((), dtype=torch.bfloat16)
    return {name: zero.expand(shape) for name, shape in ovi_shapes(SmallestOvi()).items()}


def quantised_ovi() -> Weights:
    """The same with one layer quantised the way ComfyUI does it."""
    weights, layer = smallest_ovi(), "video_model.blocks.0.ffn.0"
    weights[f"{layer}.weight"] = weights[f"{layer}.weight"].to(torch.float8_e4m3fn)
    weights[f"{layer}.weight_scale"] = torch.tensor(1.0)
    weights[f"{layer}.comfy_quant"] = torch.tensor(
        list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8
    )
    return weights


PREFIXES = [
    "",
    "video_model.",
    "audio_model.",
    "model.diffusion_model.",
    "module.",
    "diffusion_model.",
]
ODD_KEYS = [
    "",
    ".",
    "blocks.",
    "blocks..",
    "blocks.999999999999.x",
    f"blocks.{'9' * 5000}.x",
    "blocks.\u00b2.x",
]
ODD_KEYS += [
    ".modulation" * 20_000 + "x",
    "blocks.\u0663.x",
    "blocks.-1.x",
    "blocks.7.ffn.0.weight",
    "scaled_fp8",
    "blocks.0.ffn.0.comfy_quant",
]
ODD_KEYS += [
    "blocks.0.ffn.0.scale_weight",
    "blocks.0.ffn.0.weight._data",
    "blocks.0.ffn.0.weight._scale",
    "a\nb",
    "\0",
]
ODD_KEYS += [
    "encoder.block.7.x",
    "encoder.block.999999999999.x",
    "encoder.block.\u0663.x",
    "shared.weight_scale",
]
DTYPES_OF_TENSORS = [
    torch.float32,
    torch.float16,
    torch.float8_e4m3fn,
    torch.int8,
    torch.bool,
    torch.int64,
]


# What a file may say of its quantised layers.
_formats = st.sampled_from(["float8_e4m3fn", "nvfp4", "int8", "", None, 3, ["float8_e4m3fn"]])
_hows = (
    st.fixed_dictionaries({}, optional={"format": _formats, "full_precision_matrix_mult": _junk})
    | _junk
)
_layers = st.dictionaries(
    st.sampled_from(["video_model.blocks.0.ffn.0", "blocks.0.ffn.0", "x", ""]), _hows, max_size=2
)
quantisations = st.one_of(
    (_layers | _junk).map(lambda layers: json.dumps({"layers": layers})),
    _junk.map(json.dumps),
    st.sampled_from(["", "{", "NaN", "[" * 9999, '{"layers": {"a": {}, "a": {}}}', "\0"]),
)


@dataclass(frozen=True)
class Change:
    """One thing done to a state dict, to the tensor at this place in the order of names."""

    kind: str
    place: int = 0
    prefix: str = ""
    name: str = ""
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32


_places = st.integers(0, 10**6)
_prefixes = st.sampled_from(PREFIXES)
_sizes = st.sampled_from([0, 1, 2, 3, 5, 7, 8, 128, 256, 128 * 2000, 10**6])
_shapes = st.lists(_sizes, max_size=5).map(tuple).filter(lambda shape: math.prod(shape) < 10**8)
_dtypes = st.sampled_from(DTYPES_OF_TENSORS)
_change = st.one_of(
    st.builds(Change, st.just("gone"), _places),
    st.builds(Change, st.just("misshapen"), _places, shape=_shapes),
    st.builds(Change, st.just("of another type"), _places, dtype=_dtypes),
    st.builds(Change, st.just("of no number"), _places),
    st.builds(Change, st.just("renamed"), _places, _prefixes),
    st.builds(Change, st.just("there twice"), _places, _prefixes),
    st.builds(
        Change,
        st.just("added"),
        prefix=_prefixes,
        name=st.sampled_from(ODD_KEYS),
        shape=_shapes,
        dtype=_dtypes,
    ),
)
changes = st.lists(_change, min_size=1, max_size=3)


def apply_changes(weights: Weights, changes: list[Change], among: str = "") -> Weights:
    """Return a state dict in which tensors, such as have `among` in their names, are gone,
    misshapen and so on.
    """
    weights = dict(weights)
    for change in changes:
        names = sorted(name for name in weights if among in name) or sorted(weights)
        name = names[change.place % len(names)]
        zero = torch.zeros((), dtype=change.dtype)
        match change.kind:
            case "gone":
                del weights[name]
            case "misshapen":
                weights[name] = zero.expand(change.shape)
            case "of another type":
                weights[name] = zero.expand(weights[name].shape)
            case "of no number":
                weights[name] = torch.tensor(math.nan).expand(weights[name].shape)
            case "renamed":
                weights[change.prefix + name.split(".", 1)[-1]] = weights.pop(name)
            case "there twice":
                weights[change.prefix + name] = weights[name]
            case "added":
                weights[change.prefix + change.name] = zero.expand(change.shape)
    return weights
