"""One or two files to a MODEL, through core's own entry for state dicts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.sd
import torch

from ..core_facts import choose
from . import checkpoint, quantization, quanto
from .state_dict import StateDict, without_prefix
from .weight_file import read_weights

# Core's own choices in Load Diffusion Model.
WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def load_model(
    model_path: str, audio_path: str | None, weight_dtype: str, disable_dynamic: bool = False
):
    """Return a ModelPatcher of the twin DiT in one file, or of a video tower and its audio tower in
    two.

    disable_dynamic: as in core's own loaders, which call this again to get a plain copy.
    Raises ValueError naming the file that is not what it should be.
    """
    state_dict = _read(Path(model_path))
    name = Path(model_path).name
    video, audio = checkpoint.has_video_tower(state_dict), checkpoint.has_audio_tower(state_dict)
    if not video:
        raise ValueError(_not_ovi(Path(model_path), audio))
    if audio_path is None and not audio:
        raise ValueError(
            f"{name} holds only the video tower of Ovi. Choose the file of its audio tower as "
            f"'audio_model'{_partner(Path(model_path), 'video', 'audio')}."
        )
    if audio_path is not None:
        if audio:
            raise ValueError(
                f"{name} holds both towers of Ovi: set 'audio_model' to 'in the same file'."
            )
        audio_tower = _read_audio_tower(Path(audio_path))
        with _naming(Path(audio_path).name):
            state_dict = checkpoint.join_towers(state_dict, audio_tower)
        name = f"{name} with {Path(audio_path).name}"
    model_options = dict(choose("weight_dtype", weight_dtype, WEIGHT_DTYPES))
    with _naming(name):
        patcher = _build(state_dict, model_options, disable_dynamic)
    patcher.cached_patcher_init = (load_model, (model_path, audio_path, weight_dtype))
    return patcher


def _build(state_dict: StateDict, model_options: dict, disable_dynamic: bool):
    core = comfy.sd.load_diffusion_model_state_dict
    if "disable_dynamic" in inspect.signature(core).parameters:
        return core(state_dict, model_options=model_options, disable_dynamic=disable_dynamic)
    return core(state_dict, model_options=model_options)


def _read(path: Path) -> StateDict:
    """Read a file's weights, plain or as core quantises them, without the prefix they were saved
    with.
    """
    state_dict, metadata = read_weights(path)
    with _naming(path.name):
        state_dict = checkpoint.convert_keys(quanto.dequantise(state_dict), without_prefix)
        return quantization.store(state_dict, quantization.read(state_dict, metadata))


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Put a file's name in front of what is said of its weights."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _read_audio_tower(path: Path) -> StateDict:
    state_dict = _read(path)
    if not checkpoint.has_audio_tower(state_dict):
        raise ValueError(
            f"audio_model {path.name} holds no audio tower of Ovi: it has no "
            f"'{checkpoint.AUDIO_KEY}'. Choose the audio file that came with the video file."
        )
    if checkpoint.has_video_tower(state_dict):
        raise ValueError(
            f"audio_model {path.name} holds both towers of Ovi: choose it as 'model', alone."
        )
    return state_dict


def _partner(path: Path, tower: str, other: str) -> str:
    """The other half's file, told by its name where releases name their halves alike."""
    name = path.name.replace(tower, other).replace(tower.title(), other.title())
    if name == path.name:
        return ""
    return (
        f": {name}, in the same folder"
        if path.with_name(name).is_file()
        else f": {name}, to be downloaded too"
    )


def _not_ovi(path: Path, audio: bool) -> str:
    if audio:
        return (
            f"{path.name} holds only the audio tower of Ovi: choose it as 'audio_model' and the "
            f"video file as 'model'{_partner(path, 'audio', 'video')}."
        )
    return (
        f"{path.name} is not an Ovi model: it has no '{checkpoint.FUSION_KEY}'. An Ovi file holds "
        "a video and an audio tower, for example model_960x960.safetensors. For a plain Wan 2.2 "
        "file use the node 'Load Diffusion Model'."
    )
