"""Ovi's weights in one file or two of any layout, under our names, plain, and read one at a time.

`ovi_model` must be importable (find_comfyui.import_extension) before this module is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comfyui_ovi.ovi_model.load import checkpoint, quantization, quanto
from comfyui_ovi.ovi_model.load.state_dict import StateDict, without_prefix
from comfyui_ovi.ovi_model.load.weight_file import SAFETENSORS, read_weights
from tensor_file import DTYPES, LoadedFile, SafetensorsFile
from torch import Tensor

# ComfyUI's two names for the scale of `<layer>.weight`.
SCALES = (".scale_weight", ".weight_scale")
# Beside a weight, but no part of what it stands for: scales of activations, and what says how it is
# stored.
ASIDE = (".scale_input", ".input_scale", ".output_scale", quantization.LAYER_FORMAT)
# Those of ComfyUI's formats that are numbers times one scale.
SCALED_FORMATS = ("float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class Entry:
    """One weight and where it is; parts are keys of the file: the weight itself, or its numbers and
    their scale.
    """

    file: SafetensorsFile | LoadedFile
    parts: tuple[str, ...]

    def read(self) -> Tensor:
        return restore({key: self.file.read(key) for key in self.parts})

    def outline(self) -> Tensor:
        """Shape and type, on the meta device."""
        return restore({key: self.file.tensors[key] for key in self.parts})


Entries = dict[str, Entry]


class OviWeights:
    """Every weight of the twin DiT by the model's own name.

    outlines: shapes and types, on the meta device. quantised: whether any weight has a scale in its
    file.
    left_out: names in the files that the model does not have.
    Raises ValueError naming the file that is not, or not all of, what it should be.
    """

    def __init__(self, paths: Sequence[Path]):
        self.names = " and ".join(path.name for path in paths)
        entries = _join([(path.name, _read_entries(path)) for path in paths])
        try:
            entries = checkpoint.convert_keys(entries)
            outlines = {name: entry.outline() for name, entry in entries.items()}
            own = _check(outlines)
        except ValueError as error:
            raise ValueError(f"{self.names}: {error}") from error
        self.left_out = [name for name in entries if name not in own]
        self.outlines = {name: outline for name, outline in outlines.items() if name in own}
        self._entries = entries
        self.quantised = any(len(entries[name].parts) > 1 for name in self.outlines)

    def read(self, name: str) -> Tensor:
        return self._entries[name].read()


def is_block_matrix(name: str, weight: Tensor) -> bool:
    """Whether this is a linear layer of a block: there are 94 % of all numbers, and the only ones
    worth fewer bits.
    """
    return weight.ndim == 2 and name.endswith(".weight") and ".blocks." in f".{name}"


def restore(parts: StateDict) -> Tensor:
    """Return the weight for which its parts stand: itself alone, or numbers [out, in] with a scale
    [] or [out, 1].

    Raises ValueError if a part is absent.
    """
    parts = quanto.dequantise(parts)
    scales = [key for key in parts if key.endswith(SCALES)]
    numbers = [tensor for key, tensor in parts.items() if key not in scales]
    if numbers and numbers[0].dtype.itemsize > 1:
        return numbers[0]  # ComfyUI too has no use for a scale beside a plain weight
    if len(numbers) != 1 or len(scales) > 1:
        raise ValueError(
            f"{', '.join(parts)}: a scale needs one weight. The file is damaged: download it again."
        )
    return numbers[0].float() * parts[scales[0]].float() if scales else numbers[0]


def _read_entries(path: Path) -> Entries:
    """Find the parts of every weight of a file."""
    if path.suffix.lower() == ".gguf":
        raise ValueError(f"{path.name} is a GGUF file; give the file that it was made from.")
    tensors, metadata = read_weights(path)
    file = (SafetensorsFile if path.suffix.lower() in SAFETENSORS else LoadedFile)(path, tensors)
    _check_formats(file, metadata)
    parts: dict[str, list[str]] = {}
    for key in file.tensors:
        name = without_prefix(key)
        if name != quantization.MARK and not name.endswith(ASIDE):
            parts.setdefault(_weight_name(name), []).append(key)
    return {name: Entry(file, tuple(keys)) for name, keys in parts.items()}


def _weight_name(part: str) -> str:
    for scale in SCALES:
        if part.endswith(scale):
            return f"{part.removesuffix(scale)}.weight"
    return part.removesuffix(quanto.VALUES).removesuffix(quanto.SCALE)


def _check_formats(file: SafetensorsFile | LoadedFile, metadata: dict[str, str]) -> None:
    """Raise ValueError for a layer that ComfyUI stores as other than numbers and a scale."""
    written = {
        key: file.read(key) for key in file.tensors if key.endswith(quantization.LAYER_FORMAT)
    }
    try:
        layers = quantization.read_named(file.tensors | written, metadata)
    except ValueError as error:
        raise ValueError(f"{file.path.name}: {error}") from error
    for layer, how in layers.items():
        found = how.get("format")
        if found not in SCALED_FORMATS:
            raise ValueError(
                f"{file.path.name}: '{layer}' is quantised as '{found}', of which only ComfyUI can "
                f"make plain weights. Use the bf16 file, or one in {' or '.join(SCALED_FORMATS)}."
            )


def _join(files: list[tuple[str, Entries]]) -> Entries:
    """Return the entries of the one file that holds both towers, or of two that hold one each, in
    either order.
    """
    towers = [
        (checkpoint.has_video_tower(entries), checkpoint.has_audio_tower(entries))
        for _, entries in files
    ]
    for (name, _), held in zip(files, towers, strict=True):
        if not any(held):
            raise ValueError(f"{name} is not an Ovi model: it has no '{checkpoint.FUSION_KEY}'.")
        if all(held) and len(files) > 1:
            raise ValueError(f"{name} holds both towers of Ovi already: give it alone.")
    if len(files) == 1 and all(towers[0]):
        return files[0][1]
    kind, other = ("video", "audio") if towers[0][0] else ("audio", "video")
    if len(files) == 1:
        raise ValueError(
            f"{files[0][0]} holds only the {kind} tower of Ovi: give the file of its {other} tower "
            "too."
        )
    if towers[0] == towers[1]:
        raise ValueError(
            f"{files[0][0]} and {files[1][0]} both hold the {kind} tower of Ovi: one must be the "
            f"{other}."
        )
    video, audio = files if kind == "video" else reversed(files)
    return checkpoint.join_towers(video[1], audio[1])


def _check(outlines: StateDict) -> set[str]:
    """Return the names of the model's own weights, all of which must be there, with their shapes,
    as plain numbers.
    """
    video, audio = checkpoint.read_config(outlines)
    checkpoint.check_weights(outlines, video, audio)
    own = set(checkpoint.shapes_of(video, audio))
    for name in own:
        if outlines[name].dtype not in DTYPES:
            raise ValueError(
                f"'{name}' is stored as {outlines[name].dtype}, without a scale. Use the bf16 file."
            )
    return own
