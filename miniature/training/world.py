"""A small world of clips with sound in which right and wrong can be measured: what is said of a
clip is true of it.

Three things make sounds: a ball that bounces, a lamp that flashes and a face that says syllables. A
caption tells the thing, its colour, how often and how high it sounds; the seed alone decides where,
how large, when. Every event falls on a frame, where it is seen and heard at once.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 64  # pixels, both sides
FRAMES = 37  # 1.5 s: 10 cells of the video latent and 47 steps of the audio latent
FRAME_RATE = 24
SAMPLE_RATE = 16000
SAMPLES = 47 * 512

THINGS = ("ball", "lamp", "face")
COLOURS = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.7, 0.2),
    "blue": (0.2, 0.3, 0.9),
    "yellow": (0.95, 0.85, 0.1),
}
COUNTS = (1, 2, 3)
PITCHES = {"low": 220.0, "middle": 370.0, "high": 620.0}  # Hz

WALL, GROUND, DARK = (0.82, 0.84, 0.86), (0.45, 0.4, 0.36), (0.12, 0.12, 0.14)
GROUND_Y = 54.0  # pixels from the top
FALL = 1500 / FRAME_RATE**2  # pixels a frame squared
FIRST_EVENT, GAP = (5, 11), (7, 11)  # frames, both ends included
LIT, OPEN = 3, 3  # frames that a flash and an open mouth last

TIMES = {1: "once", 2: "twice", 3: "three times"}
NUMBERS = {1: "one", 2: "two", 3: "three"}
SOUNDS = {"ball": "knock", "lamp": "beep"}
SYLLABLE = "ba"


@dataclass(frozen=True)
class Scene:
    """What a caption says."""

    thing: str
    colour: str
    count: int
    pitch: str

    def caption(self, form: int = 0, unsaid: tuple[str, ...] = ()) -> str:
        """Return one of two wordings, in the form Ovi 1.1 reads: speech in <S>...<E>, the sound
        last.

        unsaid: of "colour" and "pitch", whose words are left out.
        """
        caption = self._say(form)
        for name in unsaid:
            caption = caption.replace(f" {getattr(self, name)}", "")
        return caption

    def _say(self, form: int) -> str:
        if self.thing == "face":
            speech = " ".join([SYLLABLE] * self.count)
            seen = (
                f"A {self.colour} face says <S>{speech}<E>.",
                f"There is a {self.colour} face. <S>{speech}<E>",
            )
            return f"{seen[form]} Audio: a {self.pitch} voice."
        does = "bounces" if self.thing == "ball" else "flashes"
        seen = (
            f"A {self.colour} {self.thing} {does} {TIMES[self.count]}.",
            f"There is a {self.colour} {self.thing}. It {does} {TIMES[self.count]}.",
        )
        sound = SOUNDS[self.thing] + ("" if self.count == 1 else "s")
        return f"{seen[form]} Audio: {NUMBERS[self.count]} {self.pitch} {sound}."


@dataclass(frozen=True)
class Clip:
    """A scene as it happened once."""

    scene: Scene
    frames: Tensor  # [F, H, W, 3], 0 to 1
    sound: Tensor  # [samples] at 16 kHz, -1 to 1
    events: tuple[int, ...]  # frames at which it is seen and heard
    place: tuple[float, float]  # centre of the thing in the first frame, x and y in pixels


def every_scene() -> list[Scene]:
    return [Scene(*said) for said in itertools.product(THINGS, COLOURS, COUNTS, PITCHES)]


def is_held_out(scene: Scene) -> bool:
    """Whether training never sees this: a quarter of all scenes, in which every pair of words is
    seen elsewhere.
    """
    places = (
        THINGS.index(scene.thing),
        list(COLOURS).index(scene.colour),
        COUNTS.index(scene.count),
    )
    return (sum(places) + list(PITCHES).index(scene.pitch)) % 4 == 0


TRAINING_SCENES = [scene for scene in every_scene() if not is_held_out(scene)]
HELD_OUT_SCENES = [scene for scene in every_scene() if is_held_out(scene)]


def film(
    scene: Scene,
    seed: int,
    grid: float | None = None,
    colour: tuple[float, float, float] | None = None,
) -> Clip:
    """Return the clip of a scene that belongs to a seed.

    grid: in Hz; if given, every pitch is exactly the multiple of it that is nearest to the scene's,
    and all waves are in step with the beginning of the clip, whenever they are heard.
    colour: of a scene whose colour the world does not have.
    """
    chance = random.Random(f"{scene} {seed}")
    events = [chance.randint(*FIRST_EVENT)]
    events += itertools.islice(
        itertools.accumulate(_gaps(chance), initial=events[0]), 1, scene.count
    )
    size = chance.uniform(0.0, 1.0)
    draw = {"ball": _draw_ball, "lamp": _draw_lamp, "face": _draw_face}[scene.thing]
    frames, place = draw(colour or COLOURS[scene.colour], events, size, chance)
    sound = torch.zeros(SAMPLES)
    note = {"ball": _knock, "lamp": _beep, "face": _syllable}[scene.thing]
    for event in events:
        pitch = PITCHES[scene.pitch] * chance.uniform(0.97, 1.03)
        start = round(event * SAMPLE_RATE / FRAME_RATE)
        made = (
            note(pitch)
            if grid is None
            else note(grid * round(PITCHES[scene.pitch] / grid), start / SAMPLE_RATE)
        )
        made = made * (0.3 + 0.4 * size)
        sound[start : start + len(made)] += made[: SAMPLES - start]
    return Clip(scene, frames, sound, tuple(events), place)


def _gaps(chance: random.Random):
    while True:
        yield chance.randint(*GAP)


# Pictures: shapes are drawn as coverage 0 to 1 of each pixel, from their distance to the pixel's
# centre.

_ROWS, _COLUMNS = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
Colour = tuple[float, float, float]


def _ellipse(x: float, y: float, width: float, height: float) -> Tensor:
    distance = (((_COLUMNS - x) / width) ** 2 + ((_ROWS - y) / height) ** 2).sqrt()
    return ((1 - distance) * min(width, height) + 0.5).clamp(0, 1)


def _rectangle(x: float, y: float, width: float, height: float) -> Tensor:
    inside = torch.minimum(width - (_COLUMNS - x).abs(), height - (_ROWS - y).abs())
    return (inside + 0.5).clamp(0, 1)


def _paint(frame: Tensor, shape: Tensor, colour: Colour) -> Tensor:
    return frame + shape[..., None] * (torch.tensor(colour) - frame)


def room() -> Tensor:
    """Return the picture [H, W, 3] without a thing."""
    wall = torch.tensor(WALL).expand(SIZE, SIZE, 3)
    return _paint(wall, _rectangle(SIZE / 2, SIZE, SIZE, SIZE - GROUND_Y), GROUND)


def _draw_ball(colour: Colour, events: list[int], size: float, chance: random.Random):
    """A ball that hangs, falls, rises after each impact so as to be down at the next one, and rests
    after the last.
    """
    radius, x, height = 5 + 3 * size, chance.uniform(12, SIZE - 12), chance.uniform(22, 34)
    fall = math.sqrt(2 * height / FALL)

    def height_at(frame: int) -> float:
        if frame <= events[0]:
            return height - FALL / 2 * max(0.0, frame - (events[0] - fall)) ** 2
        for start, end in itertools.pairwise(events):
            if frame <= end:
                return FALL / 2 * (frame - start) * (end - frame)
        return 0.0

    frames = []
    for frame in range(FRAMES):
        # Flat at the moment of impact, so that it is seen in one frame alone.
        flat = 0.7 if frame in events else 1.0
        y = GROUND_Y - radius * flat - height_at(frame)
        frames.append(_paint(room(), _ellipse(x, y, radius / flat**0.5, radius * flat), colour))
    return torch.stack(frames), (x, GROUND_Y - radius - height)


def _lasts(frame: int, events: list[int], length: int) -> bool:
    return any(event <= frame < event + length for event in events)


def _draw_lamp(colour: Colour, events: list[int], size: float, chance: random.Random):
    """A lamp on a stand, dim between its flashes."""
    radius, x, y = 7 + 3 * size, chance.uniform(14, SIZE - 14), chance.uniform(18, 30)
    stand = _paint(room(), _rectangle(x, (y + GROUND_Y) / 2, 1.5, (GROUND_Y - y) / 2), DARK)
    off = _paint(stand, _ellipse(x, y, radius, radius), tuple(0.45 * part for part in colour))
    lit = _paint(stand, 0.5 * _ellipse(x, y, 1.6 * radius, 1.6 * radius), colour)
    lit = _paint(
        lit, _ellipse(x, y, radius, radius), tuple(min(1.0, 0.1 + 1.1 * part) for part in colour)
    )
    return torch.stack([lit if _lasts(frame, events, LIT) else off for frame in range(FRAMES)]), (
        x,
        y,
    )


def _draw_face(colour: Colour, events: list[int], size: float, chance: random.Random):
    """A face whose mouth opens for every syllable."""
    radius, x, y = 13 + 4 * size, chance.uniform(18, SIZE - 18), chance.uniform(24, 34)
    head = _paint(room(), _ellipse(x, y, radius, radius), colour)
    for side in (-1, 1):
        head = _paint(head, _ellipse(x + side * 0.4 * radius, y - 0.3 * radius, 1.8, 2.2), DARK)
    shut = _paint(head, _rectangle(x, y + 0.42 * radius, 0.42 * radius, 0.8), DARK)
    opened = _paint(head, _ellipse(x, y + 0.42 * radius, 0.38 * radius, 0.34 * radius), DARK)
    return torch.stack(
        [opened if _lasts(frame, events, OPEN) else shut for frame in range(FRAMES)]
    ), (x, y)


# Sounds: one note each, 1 at its loudest; start in seconds shifts the phase of its wave.


def _seconds(length: float) -> Tensor:
    return torch.arange(round(length * SAMPLE_RATE)) / SAMPLE_RATE


def _partials(pitch: float, time: Tensor, strengths: dict[int, float]) -> Tensor:
    wave = sum(
        strength * (2 * math.pi * pitch * n * time).sin() for n, strength in strengths.items()
    )
    return wave / sum(strengths.values())


def _edges(time: Tensor, rise: float, fall: float) -> Tensor:
    """An envelope that rises from 0 and falls back to it, both in seconds."""
    return (time / rise).clamp(max=1) * ((time[-1] - time) / fall).clamp(max=1)


def _knock(pitch: float, start: float = 0.0) -> Tensor:
    time = _seconds(0.25)
    return (
        _partials(pitch, start + time, {1: 1.0, 2: 0.3})
        * (-time / 0.06).exp()
        * _edges(time, 0.002, 0.05)
    )


def _beep(pitch: float, start: float = 0.0) -> Tensor:
    time = _seconds(LIT / FRAME_RATE)
    return 0.8 * _partials(pitch, start + time, {1: 1.0, 3: 0.25}) * _edges(time, 0.005, 0.01)


def _syllable(pitch: float, start: float = 0.0) -> Tensor:
    """A voiced vowel: harmonics under the formants of an 'a' at 750 and 1150 Hz."""
    time = _seconds(0.16)
    strengths = {
        n: 1 / n + sum(math.exp(-(((n * pitch - formant) / 150) ** 2)) for formant in (750, 1150))
        for n in range(1, int(3000 / pitch) + 1)
    }
    wave = _partials(pitch, start + time, strengths)
    return wave / wave.abs().max() * _edges(time, 0.008, 0.07)
