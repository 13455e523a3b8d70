"""Where somebody speaks in a sound, told from the sound alone: it repeats as a voice does and has
many overtones.
"""

from __future__ import annotations

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
# So many of ten overtones must have this part of the strongest one's power; a beep has fewer.
MIN_OVERTONES, MIN_OVERTONE_POWER = 5, 1e-3
MIN_LEVEL = 0.1  # of the loudest window's
# Consonants and breath between syllables are part of speech; a click that rings is none. Seconds.
MAX_GAP, MIN_LENGTH = 0.3, 0.08
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
    if lag < shortest:
        return False
    strengths = torch.stack([_at(power, n * SAMPLE_RATE / lag) for n in range(1, 11)])
    is_heard = strengths >= MIN_OVERTONE_POWER * strengths.max()
    return int(is_heard.sum()) >= MIN_OVERTONES


def _first_peak(repeats: Tensor, least: float, longest: int) -> int:
    for lag in range(2, longest):
        here = repeats[lag]
        if here >= least and here >= repeats[lag - 1] and here >= repeats[lag + 1]:
            return lag
    return longest


def _at(power: Tensor, frequency: float) -> Tensor:
    """Return the highest power near a frequency in Hz, 0 above what the sound can hold."""
    width = BINS // WINDOW
    index = round(frequency * BINS / SAMPLE_RATE)
    near = power[index - width : index + width + 1]
    return near.max() if len(near) else power.new_zeros(())


def _spans(times: list[float]) -> list[tuple[float, float]]:
    """Join moments in order to spans; a moment stands for the hop around it."""
    spans: list[list[float]] = []
    for time in times:
        if spans and time - spans[-1][1] <= MAX_GAP:
            spans[-1][1] = time
        else:
            spans.append([time, time])
    half = HOP / SAMPLE_RATE / 2
    return [
        (max(0.0, start - half), end + half) for start, end in spans if end - start >= MIN_LENGTH
    ]
