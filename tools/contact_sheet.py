"""Draws frames of a clip evenly over its time, with the waveform of its sound beneath on the same time axis."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FRAMES = 8
CELL_WIDTH = 240
CELL_GAP = 8
MARGIN = 32
LARGEST_FRAME_HEIGHT = 400
HEADER_HEIGHT = 60
TIME_HEIGHT = 40
WAVE_HEIGHT = 200
AXIS_HEIGHT = 44
SMOOTHING = 4
BLOCK_SECONDS = 0.01

BACKGROUND = "#15171c"
PANEL = "#1d2027"
TEXT = "#e8eaee"
FAINT = "#8b919c"
PEAK = "#2f7f86"
LOUDNESS = "#6fe0d6"


@dataclass
class Clip:
    """A decoded clip: small pictures of all its frames, and its sound.

    times: seconds, one per frame. sound: [samples] in -1..1, channels averaged; empty without an audio track.
    sound_frame: samples in one frame of the audio codec.
    """

    path: Path
    size: tuple[int, int]
    frames_per_second: float
    pictures: list[Image.Image]
    times: list[float]
    sound: np.ndarray
    sample_rate: int
    channels: int
    sound_frame: int

    @property
    def video_seconds(self) -> float:
        """Length of the picture track."""
        return len(self.pictures) / self.frames_per_second

    @property
    def sound_seconds(self) -> float:
        """Length of the sound track, 0 without one."""
        return len(self.sound) / self.sample_rate if self.sample_rate else 0.0


def read_clip(path: Path) -> Clip:
    """Decode a whole clip; frames are kept at the size the sheet needs."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} has no video track; a clip with pictures was expected")
        stream = container.streams.video[0]
        size, rate = (stream.width, stream.height), float(stream.average_rate)
        pictures, times = [], []
        for frame in container.decode(stream):
            pictures.append(fit(frame.to_image()))
            times.append(float(frame.time))
    return Clip(path, size, rate, pictures, times, *read_sound(path))


def read_sound(path: Path) -> tuple[np.ndarray, int, int, int]:
    """Return the sound [samples], its sample rate, its channel count and the codec's frame length in samples."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return np.zeros(0, np.float32), 0, 0, 0
        stream = container.streams.audio[0]
        to_planar_float = av.AudioResampler(format="fltp")
        blocks, longest = [], 0
        for frame in container.decode(stream):
            longest = max(longest, frame.samples)
            blocks += [block.to_ndarray().mean(axis=0) for block in to_planar_float.resample(frame)]
        return np.concatenate(blocks), stream.rate, stream.channels, longest


def fit(picture: Image.Image) -> Image.Image:
    """Scale a frame to the width of its cell, or to the largest height if it is tall."""
    scale = min(CELL_WIDTH / picture.width, LARGEST_FRAME_HEIGHT / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def draw_sheet(clip: Clip) -> Image.Image:
    """Return the whole sheet; cell i spans the i-th part of the time axis and shows the frame in its middle."""
    width = 2 * MARGIN + FRAMES * CELL_WIDTH + (FRAMES - 1) * CELL_GAP
    frames_bottom = HEADER_HEIGHT + clip.pictures[0].height
    wave_top = frames_bottom + TIME_HEIGHT
    height = wave_top + WAVE_HEIGHT + AXIS_HEIGHT
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw_header(draw, clip)
    span = width - 2 * MARGIN
    sheet.paste(draw_wave(clip, span), (MARGIN, wave_top))
    draw_axis(draw, clip.video_seconds, span, wave_top)
    for cell in range(FRAMES):
        index = min(int((cell + 0.5) / FRAMES * len(clip.pictures)), len(clip.pictures) - 1)
        picture, seconds = clip.pictures[index], clip.times[index]
        center = MARGIN + round((cell + 0.5) / FRAMES * span)
        sheet.paste(picture, (center - picture.width // 2, HEADER_HEIGHT), rounded_mask(picture.size))
        draw.line((center, wave_top - 7, center, wave_top - 1), FAINT)
        draw.text((center, frames_bottom + 18), f"{seconds:.2f} s", TEXT, font(17), anchor="mm")
    return sheet


def draw_header(draw: ImageDraw.ImageDraw, clip: Clip) -> None:
    """Write what the clip is above its frames."""
    facts = [
        f"{clip.size[0]} x {clip.size[1]}",
        f"{len(clip.pictures)} frames at {clip.frames_per_second:g} fps",
        f"{clip.video_seconds:.3f} s",
    ]
    channels = {1: "mono", 2: "stereo"}.get(clip.channels, f"{clip.channels} channels")
    facts.append(
        f"sound {clip.sample_rate / 1000:g} kHz {channels}, {clip.sound_seconds:.3f} s" if clip.sample_rate else ""
    )
    draw.text((MARGIN, HEADER_HEIGHT / 2), clip.path.name, TEXT, font(20), anchor="lm")
    right = draw.im.size[0] - MARGIN
    draw.text((right, HEADER_HEIGHT / 2), "   |   ".join(filter(None, facts)), FAINT, font(17), anchor="rm")


def draw_wave(clip: Clip, width: int) -> Image.Image:
    """Return the waveform: peaks, and over them the loudness (root mean square), smoothed by drawing it larger."""
    large = Image.new("RGB", (width * SMOOTHING, WAVE_HEIGHT * SMOOTHING), PANEL)
    draw = ImageDraw.Draw(large)
    middle = large.height / 2
    if not clip.sound.size:
        draw.text((large.width / 2, middle), "no sound", FAINT, font(17 * SMOOTHING), anchor="mm")
        return large.resize((width, WAVE_HEIGHT), Image.Resampling.LANCZOS)
    blocks = sound_blocks(clip)
    seconds = (np.arange(len(blocks)) + 0.5) * BLOCK_SECONDS
    columns = seconds / clip.video_seconds * large.width
    reach = middle * 0.92 / max(float(np.abs(blocks).max()), 1e-3)
    loudness = np.sqrt((blocks**2).mean(axis=1))
    fill_between(draw, columns, middle - reach * blocks.max(axis=1), middle - reach * blocks.min(axis=1), PEAK)
    fill_between(draw, columns, middle - reach * loudness, middle + reach * loudness, LOUDNESS)
    draw.line((0, middle, large.width, middle), LOUDNESS, SMOOTHING)
    return large.resize((width, WAVE_HEIGHT), Image.Resampling.LANCZOS)


def sound_blocks(clip: Clip) -> np.ndarray:
    """Return the sound cut into short blocks [blocks, samples], the last one filled up with silence."""
    length = max(1, round(BLOCK_SECONDS * clip.sample_rate))
    missing = -len(clip.sound) % length
    return np.pad(clip.sound, (0, missing)).reshape(-1, length)


def fill_between(
    draw: ImageDraw.ImageDraw, columns: np.ndarray, upper: np.ndarray, lower: np.ndarray, colour: str
) -> None:
    """Fill the area between two curves over the same columns."""
    there = np.stack([columns, upper], axis=1)
    back = np.stack([columns, lower], axis=1)[::-1]
    draw.polygon(np.concatenate([there, back]).ravel().tolist(), colour)


def draw_axis(draw: ImageDraw.ImageDraw, seconds: float, span: int, wave_top: int) -> None:
    """Draw ticks at round times under the waveform."""
    step = next((step for step in (0.1, 0.25, 0.5, 1, 2, 5, 10) if seconds / step <= 12), 30)
    bottom = wave_top + WAVE_HEIGHT
    for tick in range(int(seconds / step + 1e-6) + 1):
        place = MARGIN + round(tick * step / seconds * span)
        draw.line((place, bottom, place, bottom + 7), FAINT)
        draw.text((place, bottom + 22), f"{tick * step:g} s", FAINT, font(15), anchor="mm")


def rounded_mask(size: tuple[int, int], radius: int = 6) -> Image.Image:
    """Return a mask with smooth round corners."""
    large = Image.new("L", (size[0] * SMOOTHING, size[1] * SMOOTHING), 0)
    box = (0, 0, large.width - 1, large.height - 1)
    ImageDraw.Draw(large).rounded_rectangle(box, radius * SMOOTHING, fill=255)
    return large.resize(size, Image.Resampling.LANCZOS)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, which is there on every machine."""
    return ImageFont.load_default(size=size)


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
