"""Files of video, pictures and sound as the model's clips are: 24 frames a second, mono sound."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.audio.resampler import AudioResampler
from torch import Tensor

from ..config import FRAME_RATE
from ..latent.geometry import size_for_area
from ..save.sound import read_sound

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".m4a")
BT709 = 1  # code of a file's matrix of colours
UNKNOWN = 2
HD = 720  # pixels of height from which a video that does not say it has BT.709


def read_frames(path: Path, area: int, most: int) -> tuple[Tensor, float]:
    """Return the first frames of a video at 24 a second, [F, H, W, 3] of 0 to 1, and its seconds.

    Frames are scaled to cover the size of this area in pixels that is nearest to their
    proportions, and cut at the centre. A picture is one frame.
    Raises ValueError if the file has no picture; what PyAV raises if it is damaged.
    """
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it has no picture")
        stream = container.streams.video[0]
        rate = stream.average_rate or Fraction(FRAME_RATE)
        timed = _nearest(container.decode(stream), float(1 / rate))
        frames = list(itertools.islice((_pixels(frame, area) for frame in timed), most))
        seconds = float(container.duration or 0) / av.time_base
    if not frames:
        raise ValueError("it has no picture that can be read")
    return torch.from_numpy(np.stack(frames)).float() / 255, max(seconds, len(frames) / FRAME_RATE)


def _nearest(frames: Iterator[av.VideoFrame], duration: float) -> Iterator[av.VideoFrame]:
    """Yield for every 24th of a second the frame that is nearest to it; duration: of a frame."""
    count, last, first, time = 0, None, None, 0.0
    for frame in frames:
        now = frame.time if frame.time is not None else time + duration
        first = now if first is None else first
        while last is not None and count / FRAME_RATE < (time + now - first) / 2:
            yield last
            count += 1
        last, time = frame, now - first
    while last is not None and count / FRAME_RATE < time + duration - 0.5 / FRAME_RATE:
        yield last
        count += 1


def _pixels(frame: av.VideoFrame, area: int) -> np.ndarray:
    """Return a frame [H, W, 3] in 8 bits, of the size that belongs to an area."""
    width, height = size_for_area(frame.width, frame.height, area)
    scale = max(width / frame.width, height / frame.height)
    covering = max(width, round(frame.width * scale)), max(height, round(frame.height * scale))
    is_hd = frame.colorspace == UNKNOWN and frame.height >= HD
    matrix = "ITU709" if frame.colorspace == BT709 or is_hd else "DEFAULT"
    scaled = frame.reformat(*covering, "rgb24", src_colorspace=matrix, interpolation="BICUBIC")
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    return scaled.to_ndarray()[top : top + height, left : left + width]


class Heard(NamedTuple):
    """A sound as mono."""

    waveform: Tensor  # [1, samples]
    rate: int  # Hz
    channels: int  # in its file


def read_audio(path: Path, seconds: float) -> Heard | None:
    """Return the first seconds of a file's sound, None if it has none. Surround sound is mixed
    down, as everywhere.

    Where the file has a picture too, the sound begins where the picture does.
    """
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        resampler = AudioResampler(format="fltp")
        video = container.streams.video
        begin = float((video[0].start_time or 0) * video[0].time_base) if video else None
        blocks, rate, start = [], stream.rate, None
        for frame in container.decode(stream):
            start = frame.time if start is None else start
            blocks += [made.to_ndarray() for made in resampler.resample(frame)]
            if sum(block.shape[1] for block in blocks) > rate * (seconds + 1):
                break
    if not blocks:
        return None
    waveform = torch.from_numpy(np.concatenate(blocks, axis=1))
    late = 0 if begin is None or start is None else round((start - begin) * rate)
    waveform = torch.nn.functional.pad(waveform, (late, 0))  # cut where it is early
    audio = {"waveform": waveform[None, :, : math.ceil(seconds * rate)], "sample_rate": rate}
    sound = read_sound("the sound", audio)
    return Heard(sound.waveform.mean(dim=0, keepdim=True), sound.rate, len(waveform))
