"""Frames and their sound become one video file, in sync to the sample."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ..latent.pictures import check_pictures, is_finite, to_rgb
from .containers import Container, check_encoders
from .sound import check_sound, is_heard, resample, to_stereo
from .whole_file import write_whole

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

    @property
    def samples(self) -> int:
        """Of its sound: how many are heard while pictures are seen."""
        return math.ceil(len(self.frames) * self.sample_rate / self.frame_rate)


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
    check_pictures("images", images)
    rate = frame_rate(fps)
    if audio is None or not is_heard(audio):
        return [Clip(images, rate)]
    waveform, sample_rate = audio["waveform"], int(audio["sample_rate"])
    check_sound(waveform, sample_rate)
    if len(images) % len(waveform):
        raise ValueError(
            f"images has {len(images)} frames and audio a batch of {len(waveform)} sounds: the "
            "frames do not divide into clips of equal length. Connect the images and the audio of "
            "one OviDecode, or one sound."
        )
    frames = images.chunk(len(waveform))
    if waveform.shape[1] > 2:
        waveform = to_stereo(waveform[..., : Clip(frames[0], rate, None, sample_rate).samples])
    pairs = zip(frames, waveform, strict=True)
    return [Clip(pictures, rate, sound, sample_rate) for pictures, sound in pairs]


def write_clip(
    path: Path,
    clip: Clip,
    container: Container,
    quality: int,
    metadata: dict[str, str],
    on_frame: Callable[[], None],
) -> Path:
    """Encode a clip to a new file and return its name: path, or the next number that is free.

    The file appears under its name when it is whole, or not at all.
    quality: 0 to 100.
    metadata: tags of the file.
    on_frame: called after each frame; what it raises stops the work.
    Raises ValueError for pictures that do not fit, RuntimeError for an encoder that PyAV lacks,
    OSError with the path.
    """
    _check_size(clip, container)
    check_encoders(container, clip.waveform is not None)

    def encode(partial: Path) -> None:
        with av.open(str(partial), "w", options=container.file_options) as output:
            output.metadata.update(metadata)
            _encode(output, clip, container, quality, on_frame)

    return write_whole(path, encode)


def _encode(
    output, clip: Clip, container: Container, quality: int, on_frame: Callable[[], None]
) -> None:
    streams = [_add_pictures(output, clip, container, quality)]
    sound = _fit_sound(clip, container)
    if sound is not None:
        rate = container.audio_rate(clip.sample_rate)
        streams.append(_add_sound(output, len(sound), rate, container))
    for index in range(len(clip.frames)):
        output.mux(streams[0].encode(_picture(clip, index, container)))
        if sound is not None:
            samples = _sound_of_frame(sound, index, clip.frame_rate, streams[1])
            if samples.samples:  # a rate below that of the pictures has none for some
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


def _add_pictures(output, clip: Clip, container: Container, quality: int) -> av.VideoStream:
    stream = output.add_stream(
        container.video_codec, rate=clip.frame_rate, options=container.video_options(quality)
    )
    stream.height, stream.width = container.size(*clip.frames.shape[1:3])
    stream.pix_fmt = container.pixel_format
    stream.bit_rate = 0  # crf alone decides
    _tag_colours(stream.codec_context)
    return stream


def _picture(clip: Clip, index: int, container: Container) -> av.VideoFrame:
    """Frame number index in the encoder's size and colours, shown at exactly index / frame rate."""
    height, width = container.size(*clip.frames.shape[1:3])
    frame = to_rgb(clip.frames[index].detach().cpu())
    if not is_finite(frame):
        raise ValueError(
            f"frame {index} of images holds NaN or infinite values: the VAE or the sampler failed; "
            "try the VAE in fp32 or bf16, and check the model file."
        )
    levels = 65535 if container.picture_format == "rgb48le" else 255
    rgb = (frame.clamp(0, 1) * levels).round().numpy()
    pixels = np.ascontiguousarray(rgb, dtype=np.uint16 if levels > 255 else np.uint8)
    picture = av.VideoFrame.from_ndarray(pixels, format=container.picture_format).reformat(
        width, height, container.pixel_format, dst_colorspace="ITU709", dst_color_range="MPEG"
    )
    _tag_colours(picture)
    picture.pts, picture.time_base = index, 1 / clip.frame_rate
    return picture


def _tag_colours(target: av.VideoCodecContext | av.VideoFrame) -> None:
    for name, code in BT709_LIMITED.items():
        if hasattr(target, name):  # frames carry only two of the four before PyAV 16
            setattr(target, name, code)


def _fit_sound(clip: Clip, container: Container) -> Tensor | None:
    """The waveform [C, L] at the encoder's rate, -1 to 1, cut to the pictures' length."""
    if clip.waveform is None:
        return None
    rate = container.audio_rate(clip.sample_rate)
    length = round(len(clip.frames) * rate / clip.frame_rate)
    return resample(clip.waveform, clip.sample_rate, rate, length).clamp(-1, 1)


def _add_sound(output, channels: int, rate: int, container: Container) -> av.AudioStream:
    stream = output.add_stream(container.audio_codec, rate=rate)
    stream.layout = "stereo" if channels == 2 else "mono"
    stream.format = container.sample_format
    stream.bit_rate = channels * min(4 * rate, 96_000)  # transparent for speech and effects
    return stream


def _sound_of_frame(
    sound: Tensor, index: int, frame_rate: Fraction, stream: av.AudioStream
) -> av.AudioFrame:
    """The samples heard while frame number index is seen; silence where the sound has ended."""
    start, end = (round(number * stream.rate / frame_rate) for number in (index, index + 1))
    heard = sound[:, start:end]
    filled = torch.nn.functional.pad(heard, (0, end - start - heard.shape[1]))
    samples = av.AudioFrame.from_ndarray(filled.contiguous().numpy(), "fltp", stream.layout.name)
    samples.rate = stream.rate
    samples.pts, samples.time_base = start, Fraction(1, stream.rate)
    return samples
