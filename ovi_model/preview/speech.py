"""Where somebody speaks in a sound, told from the sound alone: it repeats as a voice does, and one
overtone after the other is heard up to where vowels differ.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import SAMPLE_RATE
from ..save.sound import resample

WINDOW, HOP, BINS = 1024, 256, 4096  # samples: 64 ms, 16 ms; the spectrum's length, for fine bins
VOICE = (70, 700)  # Hz, from a deep man to a child that shouts
MIN_PERIODICITY = 0.6  # of the sound's energy, at the lag of its pitch
# Of the best lag's: the first lag with so much is the pitch, for its multiples repeat too.
PITCH_PERIODICITY = 0.85
# So many overtones in a row must be heard, up to where open vowels have their first resonances, in
# Hz: a high voice has fewer there. A knock has two, a beep lacks every other one.
OVERTONES, LEAST_IN_ROW, MOST_IN_ROW, RESONANCES = 10, 3, 5, 1000
MIN_OVERTONE_POWER = 1e-3  # of the strongest one's
MIN_CONTRAST = 4.0  # of an overtone's power to what lies between it and the next ones
MIN_LEVEL = 0.1  # of the loudest window's
# Consonants and breath between syllables are part of speech; the edge of a beep or a click that
# rings is none. Seconds.
MAX_GAP, MIN_SYLLABLE, MIN_LENGTH = 0.3, 0.03, 0.08
WINDOWS_IN_PART = 32  # about half a second of sound


def find_speech(
    waveform: Tensor, sample_rate: int, on_part: Callable[[float], None] = lambda _: None
) -> list[tuple[float, float]]:
    """Return the seconds at which speech begins and ends in a sound [channels, samples].

    It knows voices by their overtones, so that an instrument may pass for one.
    on_part: told which part of the sound is listened to, 0 to 1; what it raises stops the work.
    """
    length = math.ceil(waveform.shape[1] * SAMPLE_RATE / sample_rate)
    mono = waveform.float().mean(0, keepdim=True)
    (sound,) = resample(mono, sample_rate, SAMPLE_RATE, length)
    padded = torch.nn.functional.pad(sound, (WINDOW // 2, WINDOW))
    windows = padded.unfold(0, WINDOW, HOP)
    levels = windows.square().mean(-1).sqrt()
    is_loud = levels > MIN_LEVEL * levels.max().clamp(min=1e-4)
    taper = torch.hann_window(WINDOW)
    of_taper = _repeats(_power(taper))
    spoken = []
    for index, (loud, window) in enumerate(zip(is_loud, windows, strict=True)):
        if index % WINDOWS_IN_PART == 0:
            on_part(index / len(windows))
        spoken.append(bool(loud) and _is_voiced(_power(window * taper), of_taper))
    times = [index * HOP / SAMPLE_RATE for index, is_spoken in enumerate(spoken) if is_spoken]
    return _spans(times)


def _power(window: Tensor) -> Tensor:
    return torch.fft.rfft(window, BINS).abs().square()


def _repeats(power: Tensor) -> Tensor:
    """Return how alike a window of this spectrum is to itself at each lag in samples; 1 at none."""
    repeats = torch.fft.irfft(power)[: WINDOW // 2]
    return repeats / repeats[0].clamp(min=1e-12)


def _is_voiced(power: Tensor, of_taper: Tensor) -> bool:
    """Whether a window, by its spectrum, repeats at the pitch of a voice and has its overtones."""
    repeats = _repeats(power) / of_taper
    shortest, longest = SAMPLE_RATE // VOICE[1], SAMPLE_RATE // VOICE[0]
    best = repeats[shortest:longest].max()
    if best < MIN_PERIODICITY:
        return False
    lag = _first_peak(repeats, PITCH_PERIODICITY * float(best), longest)
    if lag is None or lag < shortest:
        return False
    pitch = SAMPLE_RATE / _between(repeats, lag)
    tones = torch.stack([_at(power, n * pitch) for n in range(1, OVERTONES + 1)])
    valleys = torch.stack([_at(power, (n + 0.5) * pitch, 0) for n in range(OVERTONES + 1)])
    stands_out = tones >= MIN_CONTRAST * torch.maximum(valleys[:-1], valleys[1:])
    is_heard = stands_out & (tones >= MIN_OVERTONE_POWER * tones.max())
    needed = min(max(RESONANCES / pitch, LEAST_IN_ROW), MOST_IN_ROW)
    return _longest_row(is_heard.tolist()) >= int(needed)


def _longest_row(is_heard: list[bool]) -> int:
    return max(sum(row) for _, row in itertools.groupby(is_heard))


def _first_peak(repeats: Tensor, least: float, longest: int) -> int | None:
    """Return the first lag at which a sound repeats so well and better than around it, None for a
    rumble, which is alike to itself everywhere.
    """
    for lag in range(2, longest):
        here = repeats[lag]
        if here >= least and here >= repeats[lag - 1] and here >= repeats[lag + 1]:
            return lag
    return None


def _between(repeats: Tensor, lag: int) -> float:
    """Return where the parabola through a peak and its neighbours is highest: whole samples are too
    coarse for the overtones of a high pitch.
    """
    before, here, after = repeats[lag - 1 : lag + 2].tolist()
    curve = before - 2 * here + after
    return lag + 0.5 * (before - after) / curve if curve < 0 else float(lag)


def _at(power: Tensor, frequency: float, around: int = BINS // WINDOW) -> Tensor:
    """Return the highest power around a frequency in Hz, 0 above what the sound can hold.

    around: bins to each side.
    """
    index = round(frequency * BINS / SAMPLE_RATE)
    near = power[index - around : index + around + 1]
    return near.max() if len(near) else power.new_zeros(())


def _spans(times: list[float]) -> list[tuple[float, float]]:
    """Join moments in order to syllables and these to spans; a moment stands for the hop around
    it.
    """
    hop = HOP / SAMPLE_RATE
    syllables = _join([(time, time) for time in times], 1.5 * hop)
    syllables = [(start, end) for start, end in syllables if end - start >= MIN_SYLLABLE]
    return [
        (max(0.0, start - hop / 2), end + hop / 2)
        for start, end in _join(syllables, MAX_GAP)
        if end - start >= MIN_LENGTH
    ]


def _join(spans: list[tuple[float, float]], most: float) -> list[tuple[float, float]]:
    """Make one of neighbours that are at most so many seconds apart."""
    joined: list[tuple[float, float]] = []
    for start, end in spans:
        if joined and start - joined[-1][1] <= most:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
