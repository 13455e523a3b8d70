"""Shots on disk, frames and sound without loss; run with ComfyUI's Python, which has PyAV.

Usage: python shot_file.py FOLDER TAIL_FRAMES, with a JSON list of files as standard input

Makes FOLDER/1.mkv of all pictures, in order, and the one sound among the files, and FOLDER/2.mkv of
the last frames and what sounds with them.
"""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FRAME_RATE = 24
SOUNDS = {".flac", ".wav"}
# Nothing random and no date in the file.
EXACT = {"fflags": "+bitexact"}


def sample_at(frame: int, rate: int) -> int:
    """Return the sample that sounds when a frame begins."""
    return round(Fraction(frame * rate, FRAME_RATE))


def read_pictures(paths: list[Path]) -> list[np.ndarray]:
    """Return pictures [H, W, 3], uint8."""
    pictures = []
    for path in paths:
        with av.open(str(path)) as file:
            pictures.append(next(file.decode(video=0)).to_ndarray(format="rgb24"))
    return pictures


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """Return a sound as float32 [samples], its channels mixed, and its rate in Hz."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        as_mono = av.AudioResampler(format="fltp", layout="mono", rate=stream.rate)
        frames = [one for frame in file.decode(stream) for one in as_mono.resample(frame)]
        parts = [frame.to_ndarray()[0] for frame in [*frames, *as_mono.resample(None)]]
        rate = stream.rate
    return np.concatenate([np.zeros(0, np.float32), *parts]), rate


def write_shot(path: Path, pictures: list[np.ndarray], sound: np.ndarray, rate: int) -> None:
    """Write frames as FFV1 and a sound as 32-bit PCM."""
    with av.open(str(path), "w", format="matroska", options=EXACT) as file:
        video = file.add_stream("ffv1", rate=FRAME_RATE)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = "bgr0"
        audio = file.add_stream("pcm_f32le", rate=rate)
        audio.layout = "mono"
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
            file.mux(video.encode(frame))
            start, end = sample_at(index, rate), sample_at(index + 1, rate)
            if index == len(pictures) - 1:
                end = max(end, len(sound))
            if len(heard := sound[start:end]):
                samples = av.AudioFrame.from_ndarray(heard[None].copy(), "flt", "mono")
                samples.rate, samples.pts = rate, start
                samples.time_base = Fraction(1, rate)
                file.mux(audio.encode(samples))
        for stream in (video, audio):
            file.mux(stream.encode(None))


def main() -> int:
    """Make the two files of a shot."""
    folder, tail = Path(sys.argv[1]), int(sys.argv[2])
    paths = [Path(name) for name in json.load(sys.stdin)]
    (sound_path,) = (path for path in paths if path.suffix in SOUNDS)
    pictures = read_pictures([path for path in paths if path.suffix not in SOUNDS])
    sound, rate = read_sound(sound_path)
    write_shot(folder / "1.mkv", pictures, sound, rate)
    first = max(0, len(pictures) - tail)
    write_shot(folder / "2.mkv", pictures[first:], sound[sample_at(first, rate) :], rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
