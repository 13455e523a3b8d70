"""Released weights under our names: what a file holds, what it lacks, how two halves become one.

Source of the key names: character-ai/Ovi, FusionModel.state_dict().
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..config import HEAD_DIM, AudioTowerConfig, VideoTowerConfig
from ..network.model import OviModel
from .quantization import LAYER_FORMAT
from .state_dict import StateDict, count_blocks, find_undefined

AUDIO = "audio_model."
VIDEO = "video_model."

# One tensor that only Ovi's towers have, and one that every audio tower has; no layout quantises
# either.
FUSION_KEY = "blocks.0.cross_attn.norm_k_fusion.weight"
AUDIO_KEY = "patch_embedding.0.weight"

# Numbers in a tensor that is looked through at every load; all of Ovi's that are no matrix together
# take 16 MB.
SMALL = 2**16
# Numbers in a row and in a column that mxfp8 takes at once.
BLOCK = 32


def convert_key(released: str) -> str:
    """Return our name of a released tensor: the video tower is the root, and every modulation is a
    module.
    """
    name = released.removeprefix(VIDEO)
    if name.endswith(".modulation") and not name.endswith(".modulation.modulation"):
        return f"{name}.modulation"
    return name


def convert_keys(state_dict: StateDict, convert: Callable[[str], str] = convert_key) -> StateDict:
    """Rename a released state dict; tensors are shared, not copied.

    Raises ValueError when two released keys would land on one name.
    """
    converted: StateDict = {}
    for released_key, tensor in state_dict.items():
        key = convert(released_key)
        if key in converted:
            raise ValueError(
                f"Two tensors of the file would both be named '{key}'; the second is "
                f"'{released_key}'. Take the file from its original source."
            )
        converted[key] = tensor
    return converted


def has_video_tower(state_dict: StateDict, prefix: str = "") -> bool:
    return any(
        prefix + part + FUSION_KEY in state_dict for part in ("", VIDEO)
    ) and not _is_bare_audio(state_dict, prefix)


def has_audio_tower(state_dict: StateDict, prefix: str = "") -> bool:
    return prefix + AUDIO + AUDIO_KEY in state_dict or _is_bare_audio(state_dict, prefix)


def _is_bare_audio(state_dict: StateDict, prefix: str) -> bool:
    return prefix + AUDIO_KEY in state_dict and prefix + FUSION_KEY in state_dict


def join_towers(video: StateDict, audio: StateDict) -> StateDict:
    """Join the two files of a split release; audio keys may come bare or under `audio_model.`.

    Raises ValueError when two keys of the audio file would land on one name.
    """
    return {**video, **convert_keys(audio, _audio_key)}


def _audio_key(key: str) -> str:
    return key if key.startswith(AUDIO) else AUDIO + key


def read_config(state_dict: StateDict) -> tuple[VideoTowerConfig, AudioTowerConfig]:
    """Read every size off converted weights.

    Raises ValueError when a tensor that tells a size is missing or has the wrong number of
    dimensions.
    """
    patch = _shape(state_dict, "patch_embedding.weight", 5)
    frames, height, width = patch[2:]
    video = VideoTowerConfig(
        in_dim=patch[1],
        out_dim=_shape(state_dict, "head.head.weight", 2)[0] // (frames * height * width),
        patch_size=(frames, height, width),
        **_read_tower(state_dict, ""),
    )
    audio_patch = _shape(state_dict, AUDIO + AUDIO_KEY, 3)
    audio = AudioTowerConfig(
        in_dim=audio_patch[1],
        out_dim=_shape(state_dict, AUDIO + "head.head.weight", 2)[0],
        patch_hidden=_shape(state_dict, AUDIO + "patch_embedding.2.w1.weight", 3)[0],
        patch_kernel=audio_patch[2],
        **_read_tower(state_dict, AUDIO),
    )
    return video, audio


def shapes_of(video: VideoTowerConfig, audio: AudioTowerConfig) -> dict[str, torch.Size]:
    """Return the shape of every tensor of a model of these sizes."""
    model = OviModel(video, audio, device="meta", operations=torch.nn)
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


def check_weights(state_dict: StateDict, video: VideoTowerConfig, audio: AudioTowerConfig) -> None:
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
    expected = shapes_of(video, audio)
    missing = [key for key in expected if key not in state_dict]
    if missing:
        raise ValueError(
            f"The Ovi weights lack {len(missing)} of {len(expected)} tensors, the first is "
            f"'{missing[0]}'. The file is incomplete: download it again."
        )
    for key, shape in expected.items():
        found = state_dict[key]
        is_packed = key.removesuffix(".weight") + LAYER_FORMAT in state_dict and (
            not found.is_floating_point() or found.shape == _filled_up(shape)
        )
        if found.shape != shape and not is_packed:
            raise ValueError(
                f"'{key}' has the shape {list(found.shape)}, expected {list(shape)}. "
                "The file is damaged or not of the Ovi family."
            )
    _check_numbers(state_dict)


def _filled_up(shape: torch.Size) -> torch.Size:
    """The shape of a matrix whose sides are filled up to whole blocks, as mxfp8's are."""
    return torch.Size(-(-side // BLOCK) * BLOCK for side in shape)


def _check_numbers(state_dict: StateDict) -> None:
    """Raise ValueError for the first small tensor with NaN or infinity in it; matrices show theirs
    in the result.
    """
    small = {
        key: tensor
        for key, tensor in state_dict.items()
        if tensor.is_floating_point() and tensor.numel() <= SMALL and not tensor.is_meta
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


def _read_tower(state_dict: StateDict, prefix: str) -> dict:
    dim, text_dim = _shape(state_dict, prefix + "text_embedding.0.weight", 2)
    if dim % HEAD_DIM:
        raise ValueError(
            f"'{prefix}text_embedding.0.weight' is {dim} wide; the width of Ovi is a multiple of "
            f"{HEAD_DIM}."
        )
    # A width alone must not make a model of that size: a square of it is there too, perhaps two
    # numbers to a byte.
    key = prefix + "text_embedding.2.weight"
    rows, columns = _shape(state_dict, key, 2)
    if rows != dim or columns not in (dim, dim // 2):
        raise ValueError(
            f"'{key}' has the shape {[rows, columns]}, expected {[dim, dim]}. The file is damaged: "
            "download it again."
        )
    try:
        num_layers = count_blocks(state_dict, f"{prefix}blocks.")
    except ValueError as error:
        raise ValueError(
            f"The Ovi weights have {error}. The file is damaged or incomplete: download it again."
        ) from error
    return {
        "dim": dim,
        "text_dim": text_dim,
        # Not off the weight, of which some layouts fill up the rows.
        "ffn_dim": _shape(state_dict, prefix + "blocks.0.ffn.0.bias", 1)[0],
        "freq_dim": _shape(state_dict, prefix + "time_embedding.0.weight", 2)[1],
        "num_layers": num_layers,
        "num_heads": dim // HEAD_DIM,
    }


def _shape(state_dict: StateDict, key: str, dimensions: int) -> torch.Size:
    if key not in state_dict:
        raise ValueError(
            f"The Ovi weights lack '{key}'. The file is incomplete: download it again."
        )
    shape = state_dict[key].shape
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(
            f"'{key}' has the shape {list(shape)}, expected {dimensions} dimensions, none of them "
            "0. The file is damaged: download it again."
        )
    return shape
