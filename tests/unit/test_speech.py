"""Speech is told from beeps, knocks, noise and silence by what it sounds like."""

import math
from itertools import pairwise

import pytest
import torch
from comfyui_ovi.ovi_model.preview.speech import SAMPLE_RATE, find_speech

FORMANTS = (750, 1150, 2600)  # Hz, of an "a"


def seconds(length, rate=SAMPLE_RATE):
    return torch.arange(round(length * rate)) / rate


def voice(pitch, length, rate=SAMPLE_RATE):
    """A vowel that is sung: overtones under formants."""
    time = seconds(length, rate)
    overtones = range(1, int(4000 / pitch))
    gains = [
        1 / n + sum(math.exp(-(((n * pitch - formant) / 150) ** 2)) for formant in FORMANTS)
        for n in overtones
    ]
    wave = sum(
        gain * torch.sin(2 * math.pi * pitch * n * time)
        for gain, n in zip(gains, overtones, strict=True)
    )
    return 0.5 * wave / wave.abs().max()


def beep(pitch, length):
    time = seconds(length)
    return 0.5 * torch.sin(2 * math.pi * pitch * time) + 0.1 * torch.sin(
        2 * math.pi * 3 * pitch * time
    )


def noise(length):
    return 0.3 * torch.randn(
        round(length * SAMPLE_RATE), generator=torch.Generator().manual_seed(1)
    )


def silence(length):
    return torch.zeros(round(length * SAMPLE_RATE))


@pytest.mark.parametrize("pitch", [90, 140, 220, 400, 620])
def test_a_voice_is_found_where_it_is(pitch):
    sound = torch.cat(
        [silence(0.5), voice(pitch, 0.4), silence(1.0), voice(pitch, 0.3), silence(0.5)]
    )
    found = find_speech(sound[None], SAMPLE_RATE)
    assert torch.tensor(found).flatten().tolist() == pytest.approx([0.5, 0.9, 1.9, 2.2], abs=0.04)


@pytest.mark.parametrize(
    "sound",
    [
        silence(1),
        noise(1),
        beep(220, 1),
        beep(1000, 1),
        beep(370, 1),
        torch.zeros(0),
        torch.zeros(5),
    ],
    ids=["silence", "noise", "low beep", "high beep", "middle beep", "nothing", "five samples"],
)
def test_nothing_else_is(sound):
    assert find_speech(sound[None], SAMPLE_RATE) == []


def test_noise_around_a_voice_does_not_count():
    sound = torch.cat([0.2 * noise(0.5), voice(200, 0.5) + 0.02 * noise(0.5), 0.2 * noise(0.5)])
    ((start, end),) = find_speech(sound[None], SAMPLE_RATE)
    assert (start, end) == pytest.approx((0.5, 1.0), abs=0.05)


def test_short_pauses_are_part_of_speech_and_a_tick_is_none():
    syllables = torch.cat(
        [voice(150, 0.2), silence(0.15), voice(150, 0.2), silence(0.6), voice(150, 0.03)]
    )
    ((start, end),) = find_speech(syllables[None], SAMPLE_RATE)
    assert (start, end) == pytest.approx((0.0, 0.55), abs=0.04)


def test_rate_and_channels_do_not_matter():
    sound = torch.cat([torch.zeros(24000), voice(180, 0.5, rate=48000), torch.zeros(24000)])
    ((start, end),) = find_speech(torch.stack([sound, 0.5 * sound]), 48000)
    assert (start, end) == pytest.approx((0.5, 1.0), abs=0.04)


@pytest.mark.parametrize("rate", [7919, 22051, 44099, 192001])
def test_a_rate_that_divides_badly_takes_no_longer(rate):
    sound = torch.cat([torch.zeros(rate), voice(180, 0.5, rate), torch.zeros(rate)])
    ((start, end),) = find_speech(sound[None], rate)
    assert (start, end) == pytest.approx((1.0, 1.5), abs=0.04)


def test_it_tells_how_far_it_is_and_can_be_stopped():
    class Stopped(BaseException):
        pass

    parts = []

    def on_part(done):
        parts.append(done)
        if done > 0.5:
            raise Stopped

    with pytest.raises(Stopped):
        find_speech(noise(4)[None], SAMPLE_RATE, on_part)
    assert parts[0] == 0
    assert parts == sorted(parts)
    assert all(later - earlier < 0.15 for earlier, later in pairwise(parts))
    assert parts[-1] < 0.65
