"""Draws frames of a clip evenly over its time, with the waveform of its sound beneath on the same
time axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FRAME_COUNT = 8
FRAME_WIDTH = 240
FRAME_GAP = 8
MARGIN = 32
WIDTH = 2 * MARGIN + FRAME_COUNT * FRAME_WIDTH + (FRAME_COUNT - 1) * FRAME_GAP
TIME_AXIS = (MARGIN / WIDTH, 1 - MARGIN / WIDTH)  # begin and end, of the width
LARGEST_FRAME_HEIGHT = 400
HEADER_HEIGHT = 60
TIME_HEIGHT = 40
WAVE_HEIGHT = 200
AXIS_HEIGHT = 44
SPEECH_HEIGHT = 5
SMOOTHING = 4
BLOCK_SECONDS = 0.01

BACKGROUND = "#15171c"
PANEL = "#1d2027"
TEXT = "#e8eaee"
FAINT = "#8b919c"
PEAK = "#2f7f86"
LOUDNESS = "#6fe0d6"
SPEECH = "#e0a030"
SPEECH_PANEL = "#2e2a22"

Spans = Sequence[tuple[float, float]]  # seconds, begin and end


@dataclass(frozen=True)
class Sound:
    """What is heard. samples [L]: -1 to 1, channels averaged, empty without a sound; speech: where
    somebody speaks; whole_seconds: of the sound that samples are the begin of, None if all of it.
    """

    samples: np.ndarray
    sample_rate: int
    channels: int = 1
    speech: Spans = ()
    whole_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """The length of the whole sound, 0 without one."""
        if self.whole_seconds is not None:
            return self.whole_seconds
        return len(self.samples) / self.sample_rate if self.sample_rate else 0.0


def frames_on_sheet(frames: int) -> list[int]:
    """Return which frames of a clip a sheet shows: each from the middle of its part of the time."""
    middles = [(place + 0.5) / FRAME_COUNT for place in range(FRAME_COUNT)]
    return [min(int(middle * frames), frames - 1) for middle in middles]


def fit(picture: Image.Image) -> Image.Image:
    """Scale a frame to the width it has on the sheet, or to the largest height if it is tall."""
    scale = min(FRAME_WIDTH / picture.width, LARGEST_FRAME_HEIGHT / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def draw_sheet(
    title: str,
    size: tuple[int, int],
    frames: int,
    fps: float,
    pictures: list[Image.Image],
    sound: Sound,
) -> Image.Image:
    """Return the whole sheet.

    size: of a frame as it is, width and height in pixels; frames: of the clip; pictures: of
    frames_on_sheet(frames), each scaled by `fit`.
    """
    seconds = frames / fps
    frames_bottom = HEADER_HEIGHT + pictures[0].height
    wave_top = frames_bottom + TIME_HEIGHT
    sheet = Image.new("RGB", (WIDTH, wave_top + WAVE_HEIGHT + AXIS_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _draw_header(
        draw,
        title,
        [f"{size[0]} x {size[1]}", f"{frames} frames at {fps:g} fps", f"{seconds:.3f} s"],
        sound,
    )
    span = WIDTH - 2 * MARGIN
    sheet.paste(draw_wave(sound, seconds, (span, WAVE_HEIGHT)), (MARGIN, wave_top))
    _draw_axis(draw, seconds, span, wave_top)
    for place, (index, picture) in enumerate(zip(frames_on_sheet(frames), pictures, strict=True)):
        center = MARGIN + round((place + 0.5) / FRAME_COUNT * span)
        sheet.paste(
            picture, (center - picture.width // 2, HEADER_HEIGHT), _rounded_mask(picture.size)
        )
        draw.line((center, wave_top - 7, center, wave_top - 1), FAINT)
        draw.text((center, frames_bottom + 18), f"{index / fps:.2f} s", TEXT, font(17), anchor="mm")
    return sheet


def _draw_header(draw: ImageDraw.ImageDraw, title: str, facts: list[str], sound: Sound) -> None:
    """Write what the clip is above its frames."""
    channels = {1: "mono", 2: "stereo"}.get(sound.channels, f"{sound.channels} channels")
    if sound.sample_rate:
        facts = [
            *facts,
            f"sound {sound.sample_rate / 1000:g} kHz {channels}, {sound.seconds:.3f} s",
        ]
    draw.text((MARGIN, HEADER_HEIGHT / 2), title, TEXT, font(20), anchor="lm")
    draw.text(
        (WIDTH - MARGIN, HEADER_HEIGHT / 2), "   |   ".join(facts), FAINT, font(17), anchor="rm"
    )


def draw_wave(sound: Sound, seconds: float, size: tuple[int, int]) -> Image.Image:
    """Return the waveform: peaks, and over them the loudness (root mean square).

    seconds: along the width; size: width and height in pixels. Speech has a background, and a line
    above, of its own colour. All is drawn larger, so that it is smooth.
    """
    large = Image.new("RGB", (size[0] * SMOOTHING, size[1] * SMOOTHING), PANEL)
    draw = ImageDraw.Draw(large)
    middle = large.height / 2
    if not sound.samples.size:
        draw.text((large.width / 2, middle), "no sound", FAINT, font(17 * SMOOTHING), anchor="mm")
        return large.resize(size, Image.Resampling.LANCZOS)
    for span in sound.speech:
        left, right = (time / seconds * large.width for time in span)
        draw.rectangle((left, 0, right, large.height), SPEECH_PANEL)
        draw.rectangle((left, 0, right, SPEECH_HEIGHT * SMOOTHING), SPEECH)
    blocks = _blocks(sound)
    block_seconds = blocks.shape[1] / sound.sample_rate
    places = (np.arange(len(blocks)) + 0.5) * block_seconds / seconds * large.width
    height = middle * 0.92 / max(float(np.abs(blocks).max()), 1e-3)
    loudness = np.sqrt((blocks**2).mean(axis=1))
    _fill_between(
        draw,
        places,
        middle - height * blocks.max(axis=1),
        middle - height * blocks.min(axis=1),
        PEAK,
    )
    _fill_between(draw, places, middle - height * loudness, middle + height * loudness, LOUDNESS)
    draw.line((0, middle, large.width, middle), LOUDNESS, SMOOTHING)
    return large.resize(size, Image.Resampling.LANCZOS)


def _blocks(sound: Sound) -> np.ndarray:
    """Return the sound cut into short blocks [blocks, samples], the last one filled up with
    silence.
    """
    length = max(1, round(BLOCK_SECONDS * sound.sample_rate))
    return np.pad(sound.samples, (0, -len(sound.samples) % length)).reshape(-1, length)


def _fill_between(
    draw: ImageDraw.ImageDraw,
    places: np.ndarray,
    upper: np.ndarray,
    lower: np.ndarray,
    colour: str,
) -> None:
    """Fill the area between two curves over the same places."""
    there = np.stack([places, upper], axis=1)
    back = np.stack([places, lower], axis=1)[::-1]
    draw.polygon(np.concatenate([there, back]).ravel().tolist(), colour)


def _draw_axis(draw: ImageDraw.ImageDraw, seconds: float, span: int, wave_top: int) -> None:
    """Draw ticks at round times under the waveform."""
    step = next((step for step in (0.1, 0.25, 0.5, 1, 2, 5, 10) if seconds / step <= 12), 30)
    bottom = wave_top + WAVE_HEIGHT
    for tick in range(int(seconds / step + 1e-6) + 1):
        place = MARGIN + round(tick * step / seconds * span)
        draw.line((place, bottom, place, bottom + 7), FAINT)
        draw.text((place, bottom + 22), f"{tick * step:g} s", FAINT, font(15), anchor="mm")


def _rounded_mask(size: tuple[int, int], radius: int = 6) -> Image.Image:
    """Return a mask with smooth round corners."""
    large = Image.new("L", (size[0] * SMOOTHING, size[1] * SMOOTHING), 0)
    box = (0, 0, large.width - 1, large.height - 1)
    ImageDraw.Draw(large).rounded_rectangle(box, radius * SMOOTHING, fill=255)
    return large.resize(size, Image.Resampling.LANCZOS)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, which is there on every machine."""
    return ImageFont.load_default(size=size)
