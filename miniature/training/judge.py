"""Says what is seen and heard in a clip and when; nothing here is learned.

Every limit lies between two things of the world, so that it is the world that sets it and no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .world import COLOURS, DARK, FALL, FRAME_RATE, GAP, GROUND_Y, PITCHES, SAMPLE_RATE, SIZE, Scene

IN_SYNC = 0.042  # seconds between what is seen and what is heard of one event, one frame at most

# Strength of colour: 0.08 is the ground's, 0.24 that of the green lamp when it is off.
COLOURED = 0.16
SMALLEST = 20  # coloured pixels, a quarter of the smallest ball's
# Height of the ball's lower edge in pixels: 0 at an impact, at least this one frame before and
# after it.
LOWEST_ABOVE = FALL / 2 * (GAP[0] - 1)
BULB = 4  # pixels around the middle of the lamp, well within the smallest bulb
# Dark part of a face below its middle, in squares of the radius: 0.1 is the shut mouth, 0.4 the
# open one.
MOUTH_OPEN = 0.25

HOP, WINDOW = 80, 160  # samples of the sound's envelope, 5 and 10 ms
# Level, root mean square: the quietest event has 0.13, and noise 40 dB below full scale 0.01.
AUDIBLE = 0.036
# An event begins at this part of the loudest level, and the next one only after a silence below the
# second part, which the slowest note reaches 0.1 s after its beginning.
BEGINS, ENDS = 0.35, 0.2
SILENCE = 6  # hops; the world has at least 26 between two sounds
NOTE, LONGEST_NOTE = (
    0.1,
    0.27,
)  # seconds in which every note is loud, and after which every one has ended
PITCH_RANGE = (150.0, 900.0)  # Hz
PERIODIC = 0.3  # share of a sound that its own repetition may leave over
NOTHING = 1e-4  # level below which silence is not measured, -80 dB


@dataclass(frozen=True)
class Verdict:
    """What is seen and heard in a clip that was asked to show a scene; None where there is nothing
    to tell from.
    """

    asked: Scene
    colour: str | None
    places: (
        Tensor  # [F, 2], middle of the thing in pixels, x and y; not a number in frames without it
    )
    radius: float  # of the thing in pixels, 0 if there is none
    seen: tuple[int, ...]  # frames at which an event is seen
    heard: tuple[float, ...]  # seconds at which one is heard
    pitches: tuple[float | None, ...]  # Hz, one for each event heard
    loudness: float  # level at the loudest of an event, median; 0 in silence
    snr: float | None  # level of the events over that of the silence, dB

    @property
    def pitch(self) -> str | None:
        """Name of the pitch nearest to the median of the events'."""
        found = sorted(math.log(pitch) for pitch in self.pitches if pitch)
        middle = found[len(found) // 2] if found else None
        return middle and min(PITCHES, key=lambda name: abs(math.log(PITCHES[name]) - middle))

    @property
    def errors(self) -> list[float]:
        """Seconds from each event heard to the one seen with it."""
        return sync_errors(self.heard, self.seen)


def judge(frames: Tensor, sound: Tensor, asked: Scene) -> Verdict:
    """Return what is seen and heard in frames [F, 64, 64, 3] of 0 to 1 and a sound [samples] of -1
    to 1 at 16 kHz.
    """
    if frames.ndim != 4 or tuple(frames.shape[1:]) != (SIZE, SIZE, 3) or sound.ndim != 1:
        raise ValueError(
            f"frames are {list(frames.shape)} and the sound is {list(sound.shape)}; the world's "
            f"clips are [frames, {SIZE}, {SIZE}, 3] and [samples]. Give one clip, sound in mono."
        )
    frames, sound = frames.float(), sound.float()
    colour, masks = find_colour(frames)
    places, areas = find_places(masks)
    radius = math.sqrt(float(areas.median()) / math.pi)
    seen: list[int] = []
    if colour:
        watch = {"ball": _height, "lamp": _brightness, "face": _openness}[asked.thing]
        seen = rises(*watch(frames, masks, places, colour))
    level = envelope(sound)
    heard = find_onsets(level)
    pitches = tuple(find_pitch(sound, onset) for onset in heard)
    loudness = sorted(_peak(level, onset) for onset in heard)
    middle = loudness[len(loudness) // 2] if heard else 0.0
    return Verdict(
        asked, colour, places, radius, tuple(seen), heard, pitches, middle, find_snr(level, heard)
    )


def rises(
    signal: Tensor, begins: float, ends: float, calm: int = 1, is_calm: bool = False
) -> list[int]:
    """Return where a signal [N] comes above one limit after it was below the other for `calm`
    values on end.

    is_calm: whether the signal was that low before it begins.
    """
    found, below = [], calm if is_calm else 0
    for index, value in enumerate(signal.tolist()):
        if value >= begins and below >= calm:
            found.append(index)
        if value >= begins:
            below = 0
        elif below < calm and not math.isnan(value):
            below = below + 1 if value < ends else 0
    return found


# The picture.


def find_colour(frames: Tensor) -> tuple[str | None, Tensor]:
    """Return the colour that most coloured pixels are nearest to, and where it is, [F, H, W]; None
    for a few specks.
    """
    wanted = torch.nn.functional.normalize(_on_wheel(torch.tensor(list(COLOURS.values()))), dim=-1)
    wheel = torch.nn.functional.avg_pool2d(_on_wheel(frames).movedim(-1, 1), 3, 1, 1).movedim(1, -1)
    nearest = (wheel @ wanted.T).argmax(-1)
    nearest[wheel.norm(dim=-1) < COLOURED] = -1
    counts = [(nearest == index).sum() for index in range(len(COLOURS))]
    best = int(torch.stack(counts).argmax())
    colour = list(COLOURS)[best] if counts[best] >= SMALLEST * len(frames) else None
    return colour, nearest == best


def _on_wheel(pixels: Tensor) -> Tensor:
    """Take grey away from pixels [..., 3]: the angle of what is left [..., 2] is the hue, its
    length the strength.
    """
    red, green, blue = pixels.unbind(-1)
    return torch.stack([red - (green + blue) / 2, math.sqrt(3) / 2 * (green - blue)], -1)


def find_places(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the middle [F, 2] of the thing in each frame, x and y in pixels, and its area [F]."""
    areas = masks.sum((1, 2)).float()
    centres = torch.arange(SIZE) + 0.5
    sums = torch.stack([(masks.sum(1) * centres).sum(-1), (masks.sum(2) * centres).sum(-1)], -1)
    return torch.where(areas[:, None] >= SMALLEST, sums / areas[:, None], math.nan), areas


def _height(
    _frames: Tensor, masks: Tensor, places: Tensor, _colour: str
) -> tuple[Tensor, float, float]:
    """How far the ball's lower edge is below the height at which it has reached the ground, and the
    limits of it.
    """
    rows = (masks.sum(2) >= 2).int()
    edge = SIZE - rows.flip(1).argmax(1).float()
    height = torch.where(places[:, 1].isnan(), math.nan, GROUND_Y - edge)
    return -height, -LOWEST_ABOVE / 2, -LOWEST_ABOVE * 0.65


def _brightness(
    frames: Tensor, _masks: Tensor, places: Tensor, colour: str
) -> tuple[Tensor, float, float]:
    """How bright the middle of the lamp is, and the limits: off it has 0.45 of its colour, lit all
    of it.
    """
    x, y = (round(float(place)) for place in places.nanmedian(0).values)
    bulb = frames[:, max(0, y - BULB) : y + BULB, max(0, x - BULB) : x + BULB].amax(-1)
    full = max(COLOURS[colour])
    return bulb.flatten(1).median(1).values, 0.725 * full, 0.65 * full


def _openness(
    frames: Tensor, masks: Tensor, places: Tensor, colour: str
) -> tuple[Tensor, float, float]:
    """How much of the face's lower half is dark, in squares of its radius, and the limits of it."""
    x, y = places.nanmedian(0).values
    radius = (masks.sum((1, 2)).float().median() / math.pi).sqrt()
    centres = torch.arange(SIZE) + 0.5
    below = (centres - y > 0.05 * radius) & (centres - y < 0.85 * radius)
    within = below[:, None] & ((centres - x).abs() < 0.5 * radius)
    bright, dark = max(COLOURS[colour]), max(DARK)
    darkness = ((bright - frames.amax(-1)) / (bright - dark)).clamp(0, 1)
    return (darkness * within).sum((1, 2)) / radius**2, MOUTH_OPEN, 0.9 * MOUTH_OPEN


# The sound.


def envelope(sound: Tensor) -> Tensor:
    """Return the level [N] of a sound, root mean square in windows whose middles are HOP apart."""
    padded = torch.nn.functional.pad(sound, (WINDOW // 2, WINDOW // 2))
    return padded.unfold(0, WINDOW, HOP).square().mean(-1).sqrt()


def find_onsets(level: Tensor) -> tuple[float, ...]:
    """Return the seconds at which events begin in an envelope."""
    loudest = float(level.max())
    begins = max(AUDIBLE, BEGINS * loudest)
    onsets = rises(level, begins, begins * ENDS / BEGINS, SILENCE, is_calm=True)
    return tuple(index * HOP / SAMPLE_RATE for index in onsets)


def _peak(level: Tensor, onset: float) -> float:
    start = round(onset * SAMPLE_RATE / HOP)
    return float(level[start : start + round(NOTE * SAMPLE_RATE / HOP)].max())


def find_pitch(sound: Tensor, onset: float) -> float | None:
    """Return the fundamental in Hz of the note that begins at onset seconds; None for noise.

    Source: de Cheveigne and Kawahara 2002, YIN: the first lag at which a sound repeats well enough.
    """
    start, length = round(onset * SAMPLE_RATE), round(NOTE * SAMPLE_RATE)
    shortest, longest = (round(SAMPLE_RATE / pitch) for pitch in reversed(PITCH_RANGE))
    note = sound[start : start + length]
    if len(note) < 4 * longest:
        return None
    shifted = note.unfold(0, len(note) - longest, 1)
    difference = (shifted - shifted[0]).square().sum(1)
    lags = torch.arange(1, longest + 1)
    left = difference[1:] * lags / difference[1:].cumsum(0).clamp(min=1e-9)
    candidates = [
        lag
        for lag in range(shortest, longest)
        if left[lag - 1] <= min(PERIODIC, left[lag - 2], left[lag])
    ]
    return SAMPLE_RATE / _between(left, candidates[0]) if candidates else None


def _between(left: Tensor, lag: int) -> float:
    """Return where the parabola through a lowest value and its neighbours is lowest; left[0] is for
    lag 1.
    """
    before, here, after = (float(value) for value in left[lag - 2 : lag + 1])
    curve = before - 2 * here + after
    return lag + 0.5 * (before - after) / curve if curve > 0 else float(lag)


def find_snr(level: Tensor, heard: tuple[float, ...]) -> float | None:
    """Return by how many dB events are louder than what lies between them; None without either."""
    times = torch.arange(len(level)) * HOP / SAMPLE_RATE
    loud, silent = (
        torch.zeros(len(level), dtype=torch.bool),
        torch.ones(len(level), dtype=torch.bool),
    )
    for onset in heard:
        loud |= (times >= onset) & (times < onset + NOTE)
        silent &= (times < onset - IN_SYNC) | (times > onset + LONGEST_NOTE)
    if not loud.any() or not silent.any():
        return None
    powers = [float(level[part].square().mean()) for part in (loud, silent)]
    return 10 * math.log10(powers[0] / max(powers[1], NOTHING**2))


# Both together.


def sync_errors(heard: tuple[float, ...], seen: tuple[int, ...]) -> list[float]:
    """Return the seconds from each event heard to one seen, each seen one taken once; infinite if
    none is left.
    """
    errors = [math.inf] * len(heard)
    if heard and seen:
        distances = (torch.tensor(heard).double()[:, None] - torch.tensor(seen) / FRAME_RATE).abs()
        # How far apart those are that do not belong together must not decide which do.
        pairs = linear_sum_assignment(distances.clamp(max=3 / FRAME_RATE).numpy())
        for i, j in zip(*pairs, strict=True):
            errors[i] = float(distances[i, j])
    return errors
