"""Draws the contact sheet of a video file: frames evenly over its time, the waveform of its sound
beneath.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from find_comfyui import import_extension
from PIL import Image

import_extension()
from comfyui_ovi.ovi_model.preview import contact_sheet  # noqa: E402


@dataclass
class Clip:
    """A decoded clip: small pictures of all its frames, and its sound.

    sound: channels averaged; empty without an audio track. sound_frame: samples in one frame of the
    audio codec.
    """

    path: Path
    size: tuple[int, int]
    frames_per_second: float
    pictures: list[Image.Image]
    sound: contact_sheet.Sound
    sound_frame: int

    @property
    def video_seconds(self) -> float:
        """Length of the picture track."""
        return len(self.pictures) / self.frames_per_second


def read_clip(path: Path) -> Clip:
    """Decode a whole clip; frames are kept at the size the sheet needs."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} has no video track; a clip with pictures was expected")
        stream = container.streams.video[0]
        size, rate = (stream.width, stream.height), float(stream.average_rate)
        pictures = [contact_sheet.fit(frame.to_image()) for frame in container.decode(stream)]
    return Clip(path, size, rate, pictures, *read_sound(path))


def read_sound(path: Path) -> tuple[contact_sheet.Sound, int]:
    """Return the sound and the codec's frame length in samples, 0 without a sound."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return contact_sheet.Sound(np.zeros(0, np.float32), 0, 0), 0
        stream = container.streams.audio[0]
        to_planar_float = av.AudioResampler(format="fltp")
        blocks, longest = [], 0
        for frame in container.decode(stream):
            longest = max(longest, frame.samples)
            blocks += [block.to_ndarray().mean(axis=0) for block in to_planar_float.resample(frame)]
        return contact_sheet.Sound(np.concatenate(blocks), stream.rate, stream.channels), longest


def draw_sheet(clip: Clip) -> Image.Image:
    """Return the sheet of a clip."""
    frames = len(clip.pictures)
    pictures = [clip.pictures[index] for index in contact_sheet.frames_on_sheet(frames)]
    return contact_sheet.draw_sheet(
        clip.path.name, clip.size, frames, clip.frames_per_second, pictures, clip.sound
    )


def main() -> int:
    """Write the sheet of one clip; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("sheet", type=Path, help="the PNG to write")
    arguments = parser.parse_args()
    draw_sheet(read_clip(arguments.clip)).save(arguments.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
