"""A latent of picture and sound as one safetensors file, which says in its header what it is.

Tensors: `video` [B, 48, F, H / 16, W / 16], `audio` [B, 20, L]; `video_mask` and `audio_mask`, or
`mask` where one belongs to the whole latent. Header: `ovi_latent`, a JSON of version, frame rate,
size and what else the latent carries, beside the workflow.
"""

from __future__ import annotations

import json
from pathlib import Path

import comfy.model_management
import safetensors.torch
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ..config import FRAME_RATE, SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION
from ..latent.hold import PICTURES, SOUND
from ..latent.latents import clips, streams
from ..load.weight_file import read_weights
from ..log import log
from .whole_file import write_whole

# Core's own nodes list `.latent` files as latents of one tensor, which ends in a raw error.
SUFFIX = ".safetensors"
HEADER, VERSION = "ovi_latent", 1

STREAMS = ("video", "audio")
STREAM_MASKS = ("video_mask", "audio_mask")
WHOLE_MASK = "mask"
MASKS = (*STREAM_MASKS, WHOLE_MASK)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Core makes noise for every number up to the highest; of as many clips its own batches are.
MOST_CLIPS = 4096


def write_latent(path: Path, latent: dict, tags: dict[str, str]) -> Path:
    """Save a latent as a new file and return its name: path, or the next number that is free.

    tags: more entries of the header, such as the workflow.
    Raises ValueError for a latent that could not be loaded again, OSError with the path.
    """
    tensors = {**dict(zip(STREAMS, clips(latent, "latent"), strict=True)), **_masks_of(latent)}
    carried = {name: x for name, x in latent.items() if name not in ("samples", "noise_mask")}
    given = [carried.pop(name, ()) for name in (PICTURES, SOUND)]
    if any(given):
        log.warning(
            "Pictures and sound that were held are saved as the latent holds them, not as they "
            "were given: from the file they come back decoded."
        )
    for name in [name for name, x in carried.items() if not _is_plain(x)]:
        log.warning("'%s' of the latent is not saved: it is no number or text", name)
        del carried[name]
    _check_tensors("The latent", tensors)
    _check_carried("The latent", carried, len(tensors["video"]))
    header = {**tags, HEADER: json.dumps(_describe(tensors["video"]) | {"carried": carried})}
    # The streams are often views of one tensor, which a file must not hold twice.
    own = {name: x.detach().cpu().clone().contiguous() for name, x in tensors.items()}
    content = safetensors.torch.save(own, header)

    def write(partial: Path) -> None:
        partial.write_bytes(content)  # not the library's writer: its errors are no OSError

    return write_whole(path, write, "latent")


def read_latent(path: Path) -> dict:
    """Return the latent of a file, number by number as it was saved.

    Raises ValueError, naming the file, for anything but a whole file of `write_latent`.
    """
    tensors, header = read_weights(path)
    described = _read_header(path.name, tensors, header)
    _check_names(path.name, tensors)
    _check_tensors(path.name, tensors)
    device = comfy.model_management.intermediate_device()
    # A copy: the file may be changed while it is mapped into memory.
    own = {name: x.to(device, copy=True) for name, x in tensors.items()}
    latent = {"samples": NestedTensor([own[name] for name in STREAMS])}
    video, _ = clips(latent, path.name)
    _check_description(path.name, described, video)
    masks = [own[name] for name in STREAM_MASKS if name in own]
    if masks:
        latent["noise_mask"] = NestedTensor(masks)
    elif WHOLE_MASK in own:
        latent["noise_mask"] = own[WHOLE_MASK]
    return latent | described.get("carried", {})


def pixels(latent: dict) -> tuple[int, int]:
    """Return width and height of the picture, in pixels; raise ValueError if there is none."""
    video, _ = streams(latent, "latent")
    return video.shape[-1] * SPATIAL_COMPRESSION, video.shape[-2] * SPATIAL_COMPRESSION


def _describe(video: Tensor) -> dict:
    """Pixels, frames, and frames a second, of a video latent [B, 48, F, H, W]."""
    return {
        "version": VERSION,
        "frame_rate": FRAME_RATE,
        "width": video.shape[4] * SPATIAL_COMPRESSION,
        "height": video.shape[3] * SPATIAL_COMPRESSION,
        "length": (video.shape[2] - 1) * TEMPORAL_COMPRESSION + 1,
    }


def _masks_of(latent: dict) -> dict[str, Tensor]:
    mask = latent.get("noise_mask")
    if mask is None:
        return {}
    if not getattr(mask, "is_nested", False):
        return {WHOLE_MASK: mask}
    masks = mask.unbind()
    if len(masks) > len(STREAM_MASKS):
        raise ValueError(f"The latent has {len(masks)} masks for picture and sound.")
    return dict(zip(STREAM_MASKS, masks, strict=False))


def _read_header(name: str, tensors: dict[str, Tensor], header: dict[str, str]) -> dict:
    """Return what the header says of a latent; raise ValueError if it says nothing we know."""
    if HEADER not in header:
        advice = (
            "It holds one tensor, as 'Save Latent' writes it: use 'Load Latent'."
            if "latent_tensor" in tensors
            else "Choose a file that 'Ovi Save Latent' wrote."
        )
        raise ValueError(
            f"{name} is no latent of picture and sound: its header has no '{HEADER}'. {advice}"
        )
    try:
        described = json.loads(header[HEADER])
    except (ValueError, RecursionError):
        described = None
    if not isinstance(described, dict):
        raise ValueError(f"{name}: '{HEADER}' in its header is no description. It is damaged.")
    version = described.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"{name} is of version {str(version)[:40]!r} of the format; this extension reads "
            f"version {VERSION}. Update the extension, or save the latent again."
        )
    return described


def _check_names(name: str, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless there are both streams, and nothing but them and their masks."""
    for stream in STREAMS:
        if stream not in tensors:
            raise ValueError(f"{name} is incomplete: it has no '{stream}'. Save the latent again.")
    if unknown := sorted(set(tensors) - {*STREAMS, *MASKS}):
        raise ValueError(
            f"{name} holds '{unknown[0][:60]}', which is no part of a latent. Choose a file that "
            "'Ovi Save Latent' wrote."
        )
    given = [mask for mask in MASKS if mask in tensors]
    if given not in ([], [WHOLE_MASK], list(STREAM_MASKS[:1]), list(STREAM_MASKS)):
        raise ValueError(f"{name} holds {' and '.join(given)}, which do not go together.")


def _check_tensors(name: str, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless all are of real numbers, and masks are finite and not empty."""
    for part, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{name}: '{part}' is of type {dtype}; expected real numbers, such as float32."
            )
    for part in [part for part in MASKS if part in tensors]:
        mask = tensors[part]
        ranks = (3,) if part == "audio_mask" else (2, 3, 4, 5)
        if mask.ndim not in ranks or 0 in mask.shape:
            raise ValueError(f"{name}: '{part}' has shape {list(mask.shape)}, which is no mask.")
        if not mask.isfinite().all():
            raise ValueError(f"{name}: '{part}' holds infinite or undefined numbers (NaN).")


def _check_description(name: str, described: dict, video: Tensor) -> None:
    """Raise ValueError unless the header fits the tensors."""
    for entry, expected in _describe(video).items():
        found = described.get(entry)
        if found != expected:
            raise ValueError(
                f"{name}: its header says {entry} {str(found)[:40]!r}, its tensors are of "
                f"{expected}. It is damaged or was changed: save the latent again."
            )
    _check_carried(name, described.get("carried", {}), len(video))


def _check_carried(name: str, carried, clip_count: int) -> None:
    """Raise ValueError unless what the latent carries is plain, and numbers of clips are some."""
    if not isinstance(carried, dict) or not all(map(_is_plain, carried.values())):
        raise ValueError(f"{name} carries something that is no number or text. It is damaged.")
    if {"samples", "noise_mask"} & set(carried):
        raise ValueError(f"{name} carries a second 'samples' or 'noise_mask'. It is damaged.")
    numbers = carried.get("batch_index")
    if numbers is None:
        return
    if (
        not isinstance(numbers, list)
        or len(numbers) != clip_count
        or not all(type(number) is int and 0 <= number < MOST_CLIPS for number in numbers)
    ):
        raise ValueError(
            f"{name}: batch_index is {str(numbers)[:60]}; expected {clip_count} numbers of clips, "
            f"0 to {MOST_CLIPS - 1}."
        )


def _is_plain(value) -> bool:
    """Whether a value is a number, a text or a list of them, and so the same after JSON."""
    values = value if isinstance(value, list) else [value]
    return all(isinstance(one, bool | int | float | str) for one in values)
