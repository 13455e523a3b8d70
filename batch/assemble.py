"""Shots on disk to one film, frame by frame; run with ComfyUI's Python, which has PyAV.

Usage: python assemble.py FILM, with JSON as standard input: [{"path": ..., "lead": frames}, ...]

FILM is an .mp4 (H.264 and AAC) or an .mkv (FFV1 and PCM, without loss). Of a shot, the first `lead`
frames are the end of the shot before: they are not shown again, but their sound, which passes over
from one shot to the other, replaces what was there. Sound is placed by time: what belongs to frame
n begins at sample n * rate / 24, so shots of sound that is short or long add up to no delay.
Prints a JSON line a shot with the memory taken so far, in MB.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from shot_file import EXACT, FRAME_RATE, read_sound, sample_at

# ITU-T H.273; MPEG range.
BT709_LIMITED = {"color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": 1}
LATEST_LEAD = 25  # frames at a shot's end whose sound the next shot may replace


class SoundTrack:
    """The sound of a film that has not been written yet."""

    def __init__(self, rate: int):
        self.rate = rate
        self.start = 0
        self._waiting = np.zeros(0, np.float32)

    def place(self, first: int, end: int, sound: np.ndarray) -> None:
        """Let a sound [samples] be heard from one frame of the film to another, in place of what
        was there: cut where it is long, silence where it is short.
        """
        begin = sample_at(first, self.rate) - self.start
        length = sample_at(end, self.rate) - self.start
        if begin < 0:
            raise ValueError("a shot's sound begins before what is written already")
        kept = self._waiting[:begin]
        room = np.zeros(length, np.float32)
        room[: len(kept)] = kept
        heard = sound[: length - begin]
        room[begin : begin + len(heard)] = heard
        self._waiting = room

    def take(self, frame: int) -> np.ndarray:
        """Return what sounds up to a frame, and forget it."""
        count = max(0, sample_at(frame, self.rate) - self.start)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self.start += len(taken)
        return taken


class Film:
    """The file that is written."""

    def __init__(self, file, suffix: str, size: tuple[int, int], rate: int):
        self._file = file
        self._lossless = suffix == ".mkv"
        codec, options = ("ffv1", {}) if self._lossless else ("libx264", {"crf": "18"})
        self._video = file.add_stream(codec, rate=FRAME_RATE, options=options)
        self._video.height, self._video.width = size
        self._video.pix_fmt = "bgr0" if self._lossless else "yuv420p"
        self._audio = file.add_stream("pcm_f32le" if self._lossless else "aac", rate=rate)
        self._audio.layout = "mono"
        self._samples = 0
        if not self._lossless:
            self._video.bit_rate = 0  # crf alone decides
            _tag(self._video.codec_context)

    def show(self, index: int, picture: np.ndarray) -> None:
        """Add frame number index, [H, W, 3]."""
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        if self._lossless:
            frame = frame.reformat(format="bgr0")
        else:
            frame = frame.reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            _tag(frame)
        frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
        self._file.mux(self._video.encode(frame))

    def sound(self, samples: np.ndarray) -> None:
        """Add sound behind what there is."""
        if not len(samples):
            return
        samples = np.ascontiguousarray(samples.clip(-1, 1)[None])
        frame = av.AudioFrame.from_ndarray(samples, "flt" if self._lossless else "fltp", "mono")
        frame.rate, frame.pts = self._audio.rate, self._samples
        frame.time_base = Fraction(1, self._audio.rate)
        self._samples += samples.shape[1]
        self._file.mux(self._audio.encode(frame))

    def end(self) -> None:
        """Write what the encoders still hold."""
        for stream in (self._video, self._audio):
            self._file.mux(stream.encode(None))


def _tag(target) -> None:
    for name, code in BT709_LIMITED.items():
        if hasattr(target, name):  # frames carry only two of the four before PyAV 16
            setattr(target, name, code)


def read_frames(path: Path, lead: int) -> Iterator[np.ndarray]:
    """Yield the frames of a shot that are its own, [H, W, 3]."""
    with av.open(str(path)) as file:
        for index, frame in enumerate(file.decode(video=0)):
            if index >= lead:
                yield frame.to_ndarray(format="rgb24")


def assemble(shots: list[dict], path: Path) -> None:
    """Write a film of shots, one after the other; no more than one shot's sound is in memory.

    Raises ValueError when a shot has another size or rate than the first.
    """
    first = next(read_frames(Path(shots[0]["path"]), 0))
    rate = read_sound(Path(shots[0]["path"]))[1]
    options = EXACT if path.suffix == ".mkv" else EXACT | {"movflags": "+faststart"}
    kind = "matroska" if path.suffix == ".mkv" else "mp4"
    track, shown = SoundTrack(rate), 0
    with av.open(str(path), "w", format=kind, options=options) as file:
        film = Film(file, path.suffix, first.shape[:2], rate)
        for number, shot in enumerate(shots, start=1):
            sound, own_rate = read_sound(Path(shot["path"]))
            if own_rate != rate:
                raise ValueError(f"shot {number} has {own_rate} Hz, shot 1 has {rate}")
            begin = shown
            for picture in read_frames(Path(shot["path"]), shot["lead"]):
                if picture.shape != first.shape:
                    raise ValueError(
                        f"shot {number} has {picture.shape[1]} x {picture.shape[0]} pixels, shot 1 "
                        f"{first.shape[1]} x {first.shape[0]}: make all shots of one size"
                    )
                film.show(shown, picture)
                shown += 1
            track.place(begin - shot["lead"], shown, sound)
            film.sound(track.take(shown - LATEST_LEAD))
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps({"shot": number, "frames": shown, "megabytes": round(used, 1)}))
        film.sound(track.take(shown))
        film.end()


def main() -> int:
    """Assemble the shots named on standard input."""
    try:
        assemble(json.load(sys.stdin), Path(sys.argv[1]))
    except (ValueError, av.FFmpegError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
