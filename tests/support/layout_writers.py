"""Writes small files of the twin DiT in every layout that people have, and says which values each
file stands for.

Every writer takes the fused float32 weights under their published names and a path without suffix,
and returns the file, or the video file and the audio file, and the values they stand for.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_weights import Weights
from torch import Tensor

Written = tuple[list[Path], Weights]

LARGEST_FP8 = torch.finfo(torch.float8_e4m3fn).max
FP8 = {"format": "float8_e4m3fn"}


def is_matrix(key: str, tensor: Tensor) -> bool:
    """Whether this is the weight of a linear layer."""
    return tensor.ndim == 2 and key.endswith(".weight")


def in_blocks(key: str, tensor: Tensor) -> bool:
    """Whether this is the weight of a linear layer inside a block, where nearly all of the numbers
    are.
    """
    return is_matrix(key, tensor) and ".blocks." in f".{key}"


def fused(weights: Weights, path: Path, dtype: torch.dtype) -> Written:
    """The published names, in this precision."""
    stored = {key: tensor.to(dtype) for key, tensor in weights.items()}
    return [_save(stored, path, "")], {key: tensor.float() for key, tensor in stored.items()}


def plain_fp8(weights: Weights, path: Path) -> Written:
    """Eight bits without a scale for all but norms and biases, modulations and convolutions too."""
    stored = {
        key: tensor.to(torch.bfloat16 if "norm" in key or "bias" in key else torch.float8_e4m3fn)
        for key, tensor in weights.items()
    }
    return [_save(stored, path, "")], {key: tensor.float() for key, tensor in stored.items()}


def two_files(
    weights: Weights,
    path: Path,
    video_prefix: str = "",
    audio_prefix: str = "",
    nested: bool = False,
) -> Written:
    """A file for each tower, bfloat16; nested: modulations are called `modulation.modulation`, as
    released.
    """
    stored = {key: tensor.to(torch.bfloat16) for key, tensor in weights.items()}
    halves = split(stored, nested)
    prefixed = [
        {prefix + key: tensor for key, tensor in half.items()}
        for prefix, half in zip((video_prefix, audio_prefix), halves, strict=True)
    ]
    files = [
        _save(half, path, tower) for half, tower in zip(prefixed, ("_video", "_audio"), strict=True)
    ]
    return files, {key: tensor.float() for key, tensor in stored.items()}


def scaled_fp8(weights: Weights, path: Path, files: int, marked: bool = True) -> Written:
    """Eight bits with a scale for each matrix of the blocks; marked: with the `scaled_fp8` that
    goes with them.
    """
    scaled, values = _scale(weights, "scale_weight")
    mark = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)} if marked else {}
    return _save_all(scaled, path, files, mark), values


def listed_fp8(weights: Weights, path: Path, files: int) -> Written:
    """As ComfyUI 0.3.75 stores it: the quantised layers are listed in the metadata."""
    scaled, values = _scale(weights, "weight_scale")
    if files == 1:
        return [_save(scaled, path, "", _list_layers(scaled))], values
    halves = zip(split(scaled, nested=False), ("_video", "_audio"), strict=True)
    return [_save(half, path, tower, _list_layers(half)) for half, tower in halves], values


def marked_fp8(weights: Weights, path: Path, files: int) -> Written:
    """As later ComfyUI stores it: each quantised layer says so itself."""
    scaled, values = _scale(weights, "weight_scale")
    written = torch.tensor(list(json.dumps(FP8).encode()), dtype=torch.uint8)
    for key in [key for key in scaled if key.endswith(".weight_scale")]:
        scaled[key.replace(".weight_scale", ".comfy_quant")] = written.clone()
    return _save_all(scaled, path, files), values


def quanto_int8(weights: Weights, path: Path) -> Written:
    """As optimum-quanto stores it: whole numbers, a scale for each row, and scales of activations
    that are not used.
    """
    stored, values = {}, {}
    for key, tensor in weights.items():
        tensor = tensor.to(torch.bfloat16)
        if not is_matrix(key, tensor):
            stored[key], values[key] = tensor, tensor.float()
            continue
        scale = tensor.abs().amax(1, keepdim=True) / 127
        integers = (tensor / scale).round().clamp(-127, 127)
        stored |= {f"{key}._data": integers.to(torch.int8), f"{key}._scale": scale}
        stored |= {
            key.replace("weight", f"{side}put_scale"): torch.ones(()) for side in ("in", "out")
        }
        values[key] = (integers * scale).float()
    halves = split(stored, nested=True)
    return [
        _save(half, path, tower) for half, tower in zip(halves, ("_video", "_audio"), strict=True)
    ], values


def training_checkpoint(
    weights: Weights, path: Path, *outer: str, sharded: bool = False
) -> Written:
    """A pickle of a training run, the weights below these names, beside other entries.

    sharded: named as a model whose blocks were sharded one by one.
    """
    stored = {key: tensor.to(torch.bfloat16) for key, tensor in weights.items()}
    content: dict = stored
    if sharded:
        wrapped = "_fsdp_wrapped_module."
        content = {
            f"model.{wrapped}" + re.sub(r"(blocks\.\d+\.)", rf"\1{wrapped}", key): tensor
            for key, tensor in stored.items()
        }
    for name in reversed(outer):
        content = {name: content, "iteration": 7}
    file = path.with_name(f"{path.name}.pt")
    torch.save(content, file)
    return [file], {key: tensor.float() for key, tensor in stored.items()}


def saved_by_comfyui(weights: Weights, path: Path) -> Written:
    """Our own names below ComfyUI's prefix, as the node Save Model writes them."""
    stored = {key: tensor.to(torch.bfloat16) for key, tensor in weights.items()}
    names = {key: f"model.diffusion_model.{_our_name(key)}" for key in stored}
    return [_save({names[key]: tensor for key, tensor in stored.items()}, path, "")], {
        key: tensor.float() for key, tensor in stored.items()
    }


def gguf(weights: Weights, path: Path, kind: str) -> Written:
    """As tools/convert_checkpoint.py writes it; kind: q8_0, q5_0 or q4_0."""
    from find_comfyui import import_extension

    import_extension()
    from convert_checkpoint import convert
    from gguf import GGUFReader
    from gguf.quants import dequantize

    (source,), _ = fused(weights, path, torch.bfloat16)
    file = path.with_name(f"{path.name}.gguf")
    convert([source], file, kind)
    stored = {
        tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in GGUFReader(file).tensors
    }
    return [file], {
        key: stored[_our_name(key)].reshape(tensor.shape) for key, tensor in weights.items()
    }


def _save_all(weights: Weights, path: Path, files: int, mark: Weights | None = None) -> list[Path]:
    """One file of both towers, or one of each; the mark in every one of them."""
    parts = (
        {"": weights}
        if files == 1
        else dict(zip(("_video", "_audio"), split(weights, nested=False), strict=True))
    )
    return [_save(part | (mark or {}), path, suffix) for suffix, part in parts.items()]


def split(weights: Weights, nested: bool) -> tuple[Weights, Weights]:
    """The video half and the audio half, both without a prefix."""
    halves: tuple[Weights, Weights] = ({}, {})
    for key, tensor in weights.items():
        tower, _, name = key.partition(".")
        name = name if nested else name.replace(".modulation.modulation", ".modulation")
        halves[tower == "audio_model"][name] = tensor
    return halves


def _scale(weights: Weights, scale_name: str) -> tuple[Weights, Weights]:
    """Each matrix of the blocks in fp8 with its scale, all else in bfloat16; and the values these
    stand for.
    """
    stored, values = {}, {}
    for key, tensor in weights.items():
        if not in_blocks(key, tensor):
            stored[key] = tensor.to(torch.bfloat16)
            values[key] = stored[key].float()
            continue
        scale = tensor.abs().max() / LARGEST_FP8
        stored[key] = (tensor / scale).to(torch.float8_e4m3fn)
        stored[f"{key.removesuffix('weight')}{scale_name}"] = scale
        values[key] = stored[key].float() * scale
    return stored, values


def _list_layers(scaled: Weights) -> dict[str, str]:
    """ComfyUI's list of the layers that have a scale, for a file's metadata."""
    layers = {
        key.removesuffix(".weight_scale"): FP8 for key in scaled if key.endswith(".weight_scale")
    }
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def _our_name(key: str) -> str:
    return re.sub(r"(\.modulation)+$", ".modulation.modulation", key.removeprefix("video_model."))


def _save(
    weights: Weights, path: Path, suffix: str, metadata: dict[str, str] | None = None
) -> Path:
    file = path.with_name(f"{path.name}{suffix}.safetensors")
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, file, metadata)
    return file
