"""Released weights under our names: what a file holds, what it lacks, how two halves become one.

Source of the key names: character-ai/Ovi, FusionModel.state_dict().
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import HEAD_DIM, AudioTowerConfig, VideoTowerConfig
from ..network.model import OviModel
from .quantization import LAYER_FORMAT
from .weight_file import find_undefined

AUDIO = "audio_model."
VIDEO = "video_model."

# One tensor that only Ovi's towers have, and one that every audio tower has; no layout quantises
# either.
FUSION_KEY = "blocks.0.cross_attn.norm_k_fusion.weight"
AUDIO_KEY = "patch_embedding.0.weight"

# Numbers in a tensor that is looked through at every load; all of Ovi's that are no matrix together
# take 16 MB.
SMALL = 2**16

Weights = dict[str, Tensor]


def convert_key(released: str) -> str:
    """Return our name of a released tensor: the video tower is the root, and every modulation is a
    module.
    """
    name = released.removeprefix(VIDEO)
    if name.endswith(".modulation"):
        return (
            name.removesuffix(".modulation").removesuffix(".modulation") + ".modulation.modulation"
        )
    return name


def convert_keys(released: Weights, convert: Callable[[str], str] = convert_key) -> Weights:
    """Rename a released state dict; tensors are shared, not copied.

    Raises ValueError when two released keys would land on one name.
    """
    converted: Weights = {}
    for released_key, tensor in released.items():
        key = convert(released_key)
        if key in converted:
            raise ValueError(
                f"Two tensors of the file would both be named '{key}'; the second is "
                f"'{released_key}'. Take the file from its original source."
            )
        converted[key] = tensor
    return converted


def has_video_tower(weights: Weights, prefix: str = "") -> bool:
    return any(
        prefix + part + FUSION_KEY in weights for part in ("", VIDEO)
    ) and not _is_bare_audio(weights, prefix)


def has_audio_tower(weights: Weights, prefix: str = "") -> bool:
    return prefix + AUDIO + AUDIO_KEY in weights or _is_bare_audio(weights, prefix)


def _is_bare_audio(weights: Weights, prefix: str) -> bool:
    return prefix + AUDIO_KEY in weights and prefix + FUSION_KEY in weights


def join_towers(video: Weights, audio: Weights) -> Weights:
    """Join the two files of a split release; audio keys may come bare or under `audio_model.`.

    Raises ValueError when two keys of the audio file would land on one name.
    """
    return {**video, **convert_keys(audio, _audio_key)}


def _audio_key(key: str) -> str:
    return key if key.startswith(AUDIO) else AUDIO + key


def read_config(weights: Weights) -> tuple[VideoTowerConfig, AudioTowerConfig]:
    """Read every size off converted weights.

    Raises ValueError when a tensor that tells a size is missing or has the wrong number of
    dimensions.
    """
    patch = _shape(weights, "patch_embedding.weight", 5)
    cells = patch[2] * patch[3] * patch[4]
    video = VideoTowerConfig(
        in_dim=patch[1],
        out_dim=_shape(weights, "head.head.weight", 2)[0] // cells,
        patch_size=(patch[2], patch[3], patch[4]),
        **_read_tower(weights, ""),
    )
    audio_patch = _shape(weights, AUDIO + AUDIO_KEY, 3)
    audio = AudioTowerConfig(
        in_dim=audio_patch[1],
        out_dim=_shape(weights, AUDIO + "head.head.weight", 2)[0],
        patch_hidden=_shape(weights, AUDIO + "patch_embedding.2.w1.weight", 3)[0],
        patch_kernel=audio_patch[2],
        **_read_tower(weights, AUDIO),
    )
    return video, audio


def check_weights(weights: Weights, video: VideoTowerConfig, audio: AudioTowerConfig) -> None:
    """Compare converted weights with what the model of these sizes needs.

    Raises ValueError naming the first tensor that is missing, has another shape, or holds NaN or
    infinity. Quantised layers, whose tensors are packed integers, are checked for presence alone.
    """
    if (video.num_layers, video.dim) != (audio.num_layers, audio.dim):
        raise ValueError(
            f"The towers do not match: video has {video.num_layers} blocks of width {video.dim}, "
            f"audio {audio.num_layers} of width {audio.dim}. Both files must come from the same "
            "release."
        )
    expected = OviModel(video, audio, device="meta", operations=torch.nn).state_dict()
    missing = [key for key in expected if key not in weights]
    if missing:
        raise ValueError(
            f"The Ovi weights lack {len(missing)} of {len(expected)} tensors, the first is "
            f"'{missing[0]}'. The file is incomplete: download it again."
        )
    for key, tensor in expected.items():
        found = weights[key]
        is_packed = (
            not found.is_floating_point() and key.removesuffix(".weight") + LAYER_FORMAT in weights
        )
        if found.shape != tensor.shape and not is_packed:
            raise ValueError(
                f"'{key}' has the shape {list(found.shape)}, expected {list(tensor.shape)}. "
                "The file is damaged or not of the Ovi family."
            )
    _check_numbers(weights)


def _check_numbers(weights: Weights) -> None:
    """Raise ValueError for the first small tensor with NaN or infinity in it; matrices show theirs
    in the result.
    """
    small = {
        key: x
        for key, x in weights.items()
        if x.is_floating_point() and x.numel() <= SMALL and not x.is_meta
    }
    if undefined := find_undefined(small):
        raise ValueError(
            f"'{undefined}' holds infinite or undefined numbers. The file is damaged: download it "
            "again."
        )


def missing_half(video: bool) -> str:
    """Say what to do with a file that holds only one tower."""
    held, absent = ("video", "audio") if video else ("audio", "video")
    return (
        f"This file holds only the {held} tower of Ovi; its {absent} tower is in a second file. "
        "Use the node 'Ovi Model Loader', with the video file as 'model' and the audio file as "
        "'audio_model'."
    )


def _read_tower(weights: Weights, prefix: str) -> dict:
    dim, text_dim = _shape(weights, prefix + "text_embedding.0.weight", 2)
    if dim % HEAD_DIM:
        raise ValueError(
            f"'{prefix}text_embedding.0.weight' is {dim} wide; the width of Ovi is a multiple of "
            f"{HEAD_DIM}."
        )
    # A width alone must not make a model of that size: a square of it is there too, perhaps two
    # numbers to a byte.
    key = prefix + "text_embedding.2.weight"
    rows, columns = _shape(weights, key, 2)
    if rows != dim or columns not in (dim, dim // 2):
        raise ValueError(
            f"'{key}' has the shape {[rows, columns]}, expected {[dim, dim]}. The file is damaged: "
            "download it again."
        )
    return {
        "dim": dim,
        "text_dim": text_dim,
        "ffn_dim": _shape(weights, prefix + "blocks.0.ffn.0.weight", 2)[0],
        "freq_dim": _shape(weights, prefix + "time_embedding.0.weight", 2)[1],
        "num_layers": _count_blocks(weights, prefix),
        "num_heads": dim // HEAD_DIM,
    }


def _count_blocks(weights: Weights, prefix: str) -> int:
    """Count a tower's blocks, whose numbers go on from 0; a number alone must not make a model of
    that many.
    """
    numbered = re.compile(re.escape(prefix) + r"blocks\.([0-9]{1,9})\.")
    found = {int(match[1]) for key in weights if (match := numbered.match(key))}
    absent = next(index for index in range(len(found) + 1) if index not in found)
    if absent < len(found):
        raise ValueError(
            f"The Ovi weights have '{prefix}blocks.{max(found)}' but no '{prefix}blocks.{absent}'. "
            "The file is damaged or incomplete: download it again."
        )
    return len(found)


def _shape(weights: Weights, key: str, dimensions: int) -> torch.Size:
    if key not in weights:
        raise ValueError(
            f"The Ovi weights lack '{key}'. The file is incomplete: download it again."
        )
    shape = weights[key].shape
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(
            f"'{key}' has the shape {list(shape)}, expected {dimensions} dimensions, none of them "
            "0. The file is damaged: download it again."
        )
    return shape
