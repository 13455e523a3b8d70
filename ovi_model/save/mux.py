"""Frames and their sound become one video file, in sync to the sample."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torchaudio
from torch import Tensor

from .containers import Container, check_encoders

# ITU-T H.273; MPEG range.
BT709_LIMITED = {"color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": 1}


@dataclass(frozen=True)
class Clip:
    """Pictures and sound that start together.

    frames [N, H, W, C]: 0 to 1; C = 1 gray, 3 RGB, 4 RGB and an alpha that is dropped.
    frame_rate: frames a second. waveform [C, L]: -1 to 1, at sample_rate Hz; None for a silent
    file.
    """

    frames: Tensor
    frame_rate: Fraction
    waveform: Tensor | None = None
    sample_rate: int = 0


def frame_rate(fps: float) -> Fraction:
    """Frames a second as a fraction; 23.976, 29.97 and so on are television's 24000/1001..."""
    if not 0 < fps < float("inf"):
        raise ValueError(
            f"fps is {fps}: expected a number of frames a second above 0, for example 24."
        )
    television = Fraction(round(fps * 1.001) * 1000, 1001)
    if abs(television - Fraction(fps)) < 0.0005:
        return television
    return Fraction(fps).limit_denominator(1001)


def split_clips(images: Tensor, fps: float, audio: dict | None) -> list[Clip]:
    """Clips of equal length, one for each sound in the batch; one clip where there is no sound.

    images [B * N, H, W, C]: the clips one after the other.
    audio: ComfyUI's AUDIO, waveform [B, C, L].
    Raises ValueError when pictures or sound cannot fill a file.
    """
    _check_images(images)
    if audio is None:
        return [Clip(images, frame_rate(fps))]
    waveform, sample_rate = audio["waveform"], int(audio["sample_rate"])
    _check_audio(waveform, sample_rate)
    if len(images) % len(waveform):
        raise ValueError(
            f"images has {len(images)} frames and audio a batch of {len(waveform)} sounds: the "
            "frames do not divide into clips of equal length. Connect the images and the audio of "
            "one OviDecode, or one sound."
        )
    pairs = zip(images.chunk(len(waveform)), waveform, strict=True)
    return [Clip(frames, frame_rate(fps), sound, sample_rate) for frames, sound in pairs]


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"images has shape {list(images.shape)}: expected [frames, height, width, 1, 3 or 4 "
            "colours]."
        )
    if 0 in images.shape:
        raise ValueError(
            f"images has shape {list(images.shape)}, which is empty: connect at least one frame."
        )


def _check_audio(waveform: Tensor, sample_rate: int) -> None:
    if waveform.ndim != 3 or waveform.shape[0] == 0 or waveform.shape[1] not in (1, 2):
        raise ValueError(
            f"audio has shape {list(waveform.shape)}: expected [batch, 1 or 2 channels, samples]. "
            "Mix surround sound down to stereo first."
        )
    if waveform.shape[2] == 0:
        raise ValueError(
            "audio has 0 samples: connect a sound, or disconnect audio to save a silent video."
        )
    if sample_rate <= 0:
        raise ValueError(
            f"audio has a sample rate of {sample_rate} Hz: expected a number above 0, for example "
            "16000."
        )
    if not torch.isfinite(waveform).all():
        raise ValueError(
            "audio holds NaN or infinite samples: the audio VAE or the sampler failed; check their "
            "inputs."
        )


def write_clip(
    path: Path,
    clip: Clip,
    container: Container,
    quality: int,
    metadata: dict[str, str],
    on_frame: Callable[[], None],
) -> None:
    """Encode a clip to a new file; the file appears under its name when it is whole, or not at all.

    quality: 0 to 100.
    metadata: tags of the file.
    on_frame: called after each frame; what it raises stops the work.
    Raises ValueError for pictures that do not fit, RuntimeError for an encoder that PyAV lacks,
    OSError with the path.
    """
    _check_size(clip, container)
    check_encoders(container, clip.waveform is not None)
    with (
        _whole_file(path) as partial,
        av.open(str(partial), "w", options=container.file_options) as output,
    ):
        output.metadata.update(metadata)
        streams = [_add_pictures(output, clip, container, quality)]
        sound = _fit_sound(clip, container)
        if sound is not None:
            rate = container.audio_rate(clip.sample_rate)
            streams.append(_add_sound(output, len(sound), rate, container))
        for index in range(len(clip.frames)):
            output.mux(streams[0].encode(_picture(clip, index, container)))
            if sound is not None:
                samples = _sound_of_frame(sound, index, clip.frame_rate, streams[1])
                output.mux(streams[1].encode(samples))
            on_frame()
        for stream in streams:
            output.mux(stream.encode(None))


def _check_size(clip: Clip, container: Container) -> None:
    for name, size in (("height", clip.frames.shape[1]), ("width", clip.frames.shape[2])):
        if size % container.size_step:
            raise ValueError(
                f"images has a {name} of {size} pixels, and {container.name} holds even sizes "
                f"only: scale or crop it to {size - 1} or {size + 1}, or save as webm or mov."
            )


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A name beside path to write to; it becomes path at the end and is removed if anything goes
    wrong.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        if path.exists():
            raise FileExistsError(
                errno.EEXIST, "another program took the name meanwhile, queue again"
            )
        os.replace(partial, path)
    except OSError as error:
        raise OSError(
            error.errno, f"the video could not be saved: {error.strerror}", str(path)
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _add_pictures(output, clip: Clip, container: Container, quality: int) -> av.VideoStream:
    stream = output.add_stream(
        container.video_codec, rate=clip.frame_rate, options=container.video_options(quality)
    )
    stream.height, stream.width = clip.frames.shape[1:3]
    stream.pix_fmt = container.pixel_format
    stream.bit_rate = 0  # crf alone decides
    _tag_colours(stream.codec_context)
    return stream


def _picture(clip: Clip, index: int, container: Container) -> av.VideoFrame:
    """Frame number index in the encoder's colours, shown at exactly index / frame rate."""
    frame = clip.frames[index, ..., :3].detach().cpu().float()
    if not torch.isfinite(frame).all():
        raise ValueError(
            f"frame {index} of images holds NaN or infinite values: the VAE or the sampler failed; "
            "try the VAE in fp32 or bf16, and check the model file."
        )
    levels = 65535 if container.picture_format == "rgb48le" else 255
    rgb = (frame.clamp(0, 1) * levels).round().expand(-1, -1, 3).numpy()
    pixels = np.ascontiguousarray(rgb, dtype=np.uint16 if levels > 255 else np.uint8)
    picture = av.VideoFrame.from_ndarray(pixels, format=container.picture_format).reformat(
        format=container.pixel_format, dst_colorspace="ITU709", dst_color_range="MPEG"
    )
    _tag_colours(picture)
    picture.pts, picture.time_base = index, 1 / clip.frame_rate
    return picture


def _tag_colours(target: av.VideoCodecContext | av.VideoFrame) -> None:
    for name, code in BT709_LIMITED.items():
        if hasattr(target, name):  # frames carry only two of the four before PyAV 16
            setattr(target, name, code)


def _fit_sound(clip: Clip, container: Container) -> Tensor | None:
    """The waveform [C, L] at the encoder's rate, -1 to 1, filled up to the pictures' length."""
    if clip.waveform is None:
        return None
    rate = container.audio_rate(clip.sample_rate)
    sound = torchaudio.functional.resample(
        clip.waveform.detach().cpu().float(), clip.sample_rate, rate
    )
    length = round(len(clip.frames) * rate / clip.frame_rate)
    return torch.nn.functional.pad(sound, (0, max(0, length - sound.shape[1]))).clamp(-1, 1)


def _add_sound(output, channels: int, rate: int, container: Container) -> av.AudioStream:
    stream = output.add_stream(container.audio_codec, rate=rate)
    stream.layout = "stereo" if channels == 2 else "mono"
    stream.format = container.sample_format
    stream.bit_rate = channels * min(4 * rate, 96_000)  # transparent for speech and effects
    return stream


def _sound_of_frame(
    sound: Tensor, index: int, frame_rate: Fraction, stream: av.AudioStream
) -> av.AudioFrame:
    """The samples heard while frame number index is seen."""
    start, end = (round(number * stream.rate / frame_rate) for number in (index, index + 1))
    samples = av.AudioFrame.from_ndarray(
        sound[:, start:end].contiguous().numpy(), "fltp", stream.layout.name
    )
    samples.rate = stream.rate
    samples.pts, samples.time_base = start, Fraction(1, stream.rate)
    return samples
