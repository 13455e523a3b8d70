"""The latent of picture and sound, as ComfyUI's nodes hand it around: {"samples": NestedTensor,
"noise_mask": ...}.
"""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ..config import AUDIO_CHANNELS, VIDEO_CHANNELS
from ..load.audio_vae import is_audio_vae
from ..load.video_vae import check_video_vae
from . import geometry
from .hold import PICTURES, SOUND
from .pictures import check_pictures, is_finite, to_rgb


def empty(width: int, height: int, frames: int, batch_size: int) -> dict:
    """Return a latent of zeros; sizes in pixels and frames, already checked."""
    device = comfy.model_management.intermediate_device()
    return {
        "samples": NestedTensor(geometry.empty_latents(width, height, frames, batch_size, device))
    }


def from_image(vae, images: Tensor, width: int, height: int, frames: int, batch_size: int) -> dict:
    """Return a latent whose first frame is an encoded image, held by a nested mask; images [N, H,
    W, C], 0 to 1.

    Raises ValueError unless there is one image, or one for each clip of the batch, that can be cut
    to the size; or if the VAE is not Wan 2.2's.
    """
    check_pictures("start_image", images)
    if len(images) not in (1, batch_size):
        raise ValueError(
            f"start_image holds {len(images)} images for a batch of {batch_size}: give one image, "
            "or one for each clip."
        )
    pixels = fit_pictures("start_image", images, width, height)
    check_video_vae(vae, "Ovi Latent")
    encoded = torch.cat([vae.encode(image.unsqueeze(0)) for image in pixels])
    video, audio = empty(width, height, frames, batch_size)["samples"].unbind()
    video = unnormalised(video)
    video[:, :, :1] = encoded[:, :, :1].to(video)
    video_mask = video.new_ones(batch_size, 1, *video.shape[2:])
    video_mask[:, :, :1] = 0
    audio_mask = audio.new_ones(batch_size, 1, audio.shape[2])
    return {
        "samples": NestedTensor([video, audio]),
        "noise_mask": NestedTensor([video_mask, audio_mask]),
    }


def fit_pictures(name: str, images: Tensor, width: int, height: int) -> Tensor:
    """Return images [N, H, W, 1, 3 or 4] as RGB, scaled to cover a size in pixels and cut to it at
    the centre.

    Raises ValueError, with the input's name, for images that cannot be used so.
    """
    check_pictures(name, images)
    colours = to_rgb(images)
    if not is_finite(colours):
        raise ValueError(
            f"{name} holds NaN or infinite values: the node that made it failed; check its "
            "inputs, or connect another image."
        )
    _check_cut(name, images, width, height)
    pixels = comfy.utils.common_upscale(colours.movedim(-1, 1), width, height, "bicubic", "center")
    return pixels.clamp(0, 1).movedim(1, -1)


def unnormalised(video: Tensor) -> Tensor:
    """Return an empty video latent as samplers expect one that is partly filled.

    They normalise the whole latent, so what is yet to be made must be what normalises to zero.
    """
    return comfy.latent_formats.Wan22().process_out(video)


def _check_cut(name: str, images: Tensor, width: int, height: int) -> None:
    """Raise ValueError if nothing is left of an image once it is cut at the centre to the
    proportions of a size in pixels.

    Source: ComfyUI, comfy/utils.py, common_upscale.
    """
    rows, columns = images.shape[1:3]
    proportion, wanted = columns / rows, width / height
    cut_columns = max(0, round((columns - columns * (wanted / proportion)) / 2))
    cut_rows = max(0, round((rows - rows * (proportion / wanted)) / 2))
    if columns <= 2 * cut_columns or rows <= 2 * cut_rows:
        left = "column" if columns <= 2 * cut_columns else "row"
        raise ValueError(
            f"{name} is {columns} x {rows} pixels: cut to the proportions of {width} x "
            f"{height}, not one {left} of it is left. Use a larger image, or a size of its "
            "proportions, which 'Ovi Image Size' finds."
        )


def streams(latent: dict, name: str) -> tuple[Tensor, Tensor]:
    """Return the video [B, 48, F, H, W] and the audio [B, 20, L] of a nested latent, which last
    equally long.

    Raises ValueError, naming the input, for anything else.
    """
    samples = latent["samples"]
    parts = samples.unbind() if getattr(samples, "is_nested", False) else [samples]
    if geometry.is_pair([part.shape for part in parts]):
        _check_whole(name, *parts)
        return parts[0], parts[1]
    if len(parts) == 1 and parts[0].ndim == 5:
        advice = (
            "It is a video without sound: use 'VAE Decode', or add sound with 'Ovi Concat Latent'."
        )
    else:
        advice = "Connect the latent from 'Ovi Latent' or the sampler."
    shapes = " and ".join(str(list(part.shape)) for part in parts)
    raise ValueError(f"{name} is no latent of picture and sound: its shape is {shapes}. {advice}")


def clips(latent: dict, name: str) -> tuple[Tensor, Tensor]:
    """Return the streams of a latent that is to be seen or kept: of as many clips, full of numbers.

    Raises ValueError, naming the input, for anything else.
    """
    video, audio = streams(latent, name)
    if len(video) != len(audio):
        raise ValueError(
            f"'{name}' has {len(video)} video clips but {len(audio)} sounds; they must be as many."
        )
    _check_finite(name, video, audio)
    return video, audio


def _check_finite(name: str, video: Tensor, audio: Tensor) -> None:
    """Raise ValueError for what a failed sampling would decode to: a black picture, or noise."""
    failed = [
        stream for stream, x in (("video", video), ("audio", audio)) if not x.isfinite().all()
    ]
    if failed:
        raise ValueError(
            f"The {' and '.join(failed)} of '{name}' holds infinite or undefined numbers (NaN): "
            "the sampling failed. Usual causes: the model computes in fp16, whose range is too "
            "small for it (start ComfyUI without --force-fp16 and --fp16-unet, use a bf16 file); a "
            "damaged model file (download it again); a LoRA of another model or at too high a "
            "strength (try without it)."
        )


def stream_for(vae, samples):
    """Return the stream of a pair of Ovi's that a VAE decodes; anything else as it is."""
    parts = samples.unbind() if getattr(samples, "is_nested", False) else []
    return parts[is_audio_vae(vae)] if geometry.is_pair([part.shape for part in parts]) else samples


def _check_whole(name: str, video: Tensor, audio: Tensor) -> None:
    """Raise ValueError if a stream is empty, or one lasts longer than the other."""
    if 0 in video.shape or 0 in audio.shape:
        empty = "video" if 0 in video.shape else "audio"
        shapes = f"{list(video.shape)} and {list(audio.shape)}"
        raise ValueError(
            f"The {empty} of '{name}' is empty: the shapes are {shapes}. Make the clip longer."
        )
    geometry.check_equally_long(f"The sound of '{name}'", video.shape[2], audio.shape[2])


def separate(latent: dict) -> tuple[dict, dict]:
    """Take a latent apart; a mask that is not nested belongs to the video."""
    parts = [{**latent, "samples": samples} for samples in streams(latent, "latent")]
    for part, others in zip(parts, (SOUND, PICTURES), strict=True):
        part.pop(others, None)
    mask = latent.get("noise_mask")
    if mask is not None:
        masks = mask.unbind() if getattr(mask, "is_nested", False) else [mask]
        for i, part in enumerate(parts):
            del part["noise_mask"]
            if i < len(masks):
                part["noise_mask"] = masks[i]
    return parts[0], parts[1]


def concat(video_latent: dict, audio_latent: dict) -> dict:
    """Put two streams together.

    A sound one step (32 ms) off loses its last step or has it twice: encoders round the length
    their own way.
    Raises ValueError if a stream is of the wrong kind or they do not last equally long.
    """
    video, audio = video_latent["samples"], audio_latent["samples"]
    _check_stream("video_latent", video, 5, VIDEO_CHANNELS)
    _check_stream("audio_latent", audio, 3, AUDIO_CHANNELS)
    steps = geometry.audio_steps(video.shape[2])
    if abs(audio.shape[2] - steps) > 1:
        raise ValueError(geometry.say_lengths("audio_latent", video.shape[2], audio.shape[2]))
    if len(video) != len(audio):
        raise ValueError(
            f"video_latent holds {len(video)} clips and audio_latent {len(audio)}: they must be as "
            "many."
        )
    masks = video_latent.get("noise_mask"), audio_latent.get("noise_mask")
    latent = {
        **audio_latent,
        **video_latent,
        "samples": NestedTensor([video, with_steps(audio, steps)]),
    }
    if masks != (None, None):
        video_mask, audio_mask = (
            own_mask(x, mask) for x, mask in zip((video, audio), masks, strict=True)
        )
        if audio_mask.shape[-1] == audio.shape[-1]:  # of another width, samplers scale it
            audio_mask = with_steps(audio_mask, steps)
        latent["noise_mask"] = NestedTensor(_of_as_many_clips([video_mask, audio_mask]))
    return latent


def _of_as_many_clips(masks: list[Tensor]) -> list[Tensor]:
    """Repeat the shorter batch of masks, as samplers would, so that clips and masks can be picked
    by one number.
    """
    most = max(map(len, masks))
    return [comfy.utils.repeat_to_batch_size(mask, most) for mask in masks]


def with_steps(audio: Tensor, steps: int) -> Tensor:
    """audio [B, C, L], one step too short, too long, or neither -> [B, C, steps]."""
    return torch.cat([audio, audio[..., -1:]], dim=-1)[..., :steps]


def own_mask(samples: Tensor, mask: Tensor | None) -> Tensor:
    """A stream's mask, ones if it has none.

    One drawn as images [N, 1, H, W] is one of a clip with N frames for a picture, as samplers read
    it, and loses its height for sound.
    """
    if mask is None:
        return samples.new_ones(len(samples), 1, *samples.shape[2:])
    if mask.ndim != 4:
        return mask
    return mask.mean(dim=2) if samples.ndim == 3 else mask.reshape(1, 1, -1, *mask.shape[2:])


def _check_stream(name: str, samples, dimensions: int, channels: int) -> None:
    nested = getattr(samples, "is_nested", False)
    if nested or samples.ndim != dimensions or samples.shape[1] != channels or 0 in samples.shape:
        found = "a latent of picture and sound" if nested else f"of shape {list(samples.shape)}"
        advice = (
            "Take it apart with 'Ovi Separate Latent' first."
            if nested
            else "Check what is connected here."
        )
        raise ValueError(
            f"{name} is {found}; expected {channels} channels and {dimensions} dimensions. {advice}"
        )
