"""Speech is told from beeps, knocks, noise and silence by what it sounds like."""

import math
from itertools import pairwise

import pytest
import torch
from comfyui_ovi.miniature.training import world
from comfyui_ovi.ovi_model.preview.speech import SAMPLE_RATE, find_speech

FORMANTS = (750, 1150, 2600)  # Hz, of an "a"
# Hz and bandwidths in Hz, of four resonances of a throat.
VOWELS = {
    "a": (750, 1150, 2600, 3500),
    "e": (550, 1850, 2500, 3500),
    "o": (450, 800, 2800, 3500),
    "u": (310, 870, 2250, 3500),
}
BANDWIDTHS = (80, 100, 150, 200)


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


def spoken(vowel, pitch, length):
    """A vowel as a throat makes it: overtones of a source that falls by 6 dB an octave, through
    resonances one after the other, with vibrato and breath.
    """
    time = seconds(length)
    phase = 2 * math.pi * torch.cumsum(pitch * (1 + 0.02 * (10 * math.pi * time).sin()), 0)
    wave = torch.zeros(len(time))
    for n in range(1, int(7000 / pitch) + 1):
        gain = 1 / n
        for resonance, width in zip(VOWELS[vowel], BANDWIDTHS, strict=True):
            gain *= resonance**2 / math.hypot(resonance**2 - (n * pitch) ** 2, width * n * pitch)
        wave += gain * (n * phase / SAMPLE_RATE).sin()
    return 0.5 * wave / wave.abs().max() + 0.03 * noise(length)


def tones(length, strengths):
    """Pure tones by their Hz."""
    time = seconds(length)
    return 0.3 * sum(
        strength * (2 * math.pi * pitch * time).sin() for pitch, strength in strengths.items()
    )


def square(pitch, length):
    """An alarm as a small loudspeaker makes it: every other overtone."""
    return tones(length, {n * pitch: 1 / n for n in range(1, int(7000 / pitch) + 1, 2)})


def chord(pitch, length):
    """A minor chord of pipes with an octave each."""
    notes = (pitch, 1.2 * pitch, 1.5 * pitch)
    return tones(length, {n * note: 0.3 / n**2 for note in notes for n in (1, 2)})


def siren(length):
    time = seconds(length)
    pitch = 700 + 300 * (2 * math.pi * time).sin()
    return 0.5 * (2 * math.pi * torch.cumsum(pitch, 0) / SAMPLE_RATE).sin()


def rumble(length):
    """Noise below 200 Hz, as of thunder or an engine far away."""
    return torch.nn.functional.avg_pool1d(noise(length)[None], 81, 1, 40)[0]


def clicks(length):
    sound = silence(length)
    ring = (-torch.arange(400) / 60).exp() * noise(400 / SAMPLE_RATE)
    for start in range(0, len(sound) - len(ring), SAMPLE_RATE // 10):
        sound[start : start + len(ring)] += ring
    return sound


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
    ("vowel", "pitches"),
    [
        ("a", (75, 120, 220, 300, 400, 500)),
        ("e", (75, 120, 220, 300, 400, 680)),
        ("o", (75, 120, 220, 300)),
        ("u", (75, 120, 220, 300)),
    ],
)
def test_vowels_are_found_at_low_and_high_pitches(vowel, pitches):
    for pitch in pitches:
        sound = torch.cat([silence(0.3), spoken(vowel, pitch, 0.4), silence(0.3)])
        found = find_speech(sound[None], SAMPLE_RATE)
        assert torch.tensor(found).flatten().tolist() == pytest.approx([0.3, 0.7], abs=0.06), pitch


@pytest.mark.parametrize("count", world.COUNTS)
@pytest.mark.parametrize("pitch", world.PITCHES)
def test_each_syllable_of_the_miniatures_world_is_found(pitch, count):
    clip = world.film(world.Scene("face", "yellow", count, pitch), seed=count)
    found = find_speech(clip.sound[None], world.SAMPLE_RATE)
    for event in clip.events:
        middle = event / world.FRAME_RATE + 0.06
        assert any(start < middle < end for start, end in found)
    last = clip.events[-1] / world.FRAME_RATE
    assert found[0][0] == pytest.approx(clip.events[0] / world.FRAME_RATE, abs=0.04)
    assert last < found[-1][1] < last + 0.2


@pytest.mark.parametrize("pitch", world.PITCHES)
@pytest.mark.parametrize("thing", ["ball", "lamp"])
def test_knocks_and_beeps_of_the_world_are_none(thing, pitch):
    clip = world.film(world.Scene(thing, "red", 3, pitch), seed=1)
    assert find_speech(clip.sound[None], world.SAMPLE_RATE) == []


@pytest.mark.parametrize(
    "sound",
    [
        silence(1),
        noise(1),
        beep(220, 1),
        beep(1000, 1),
        beep(370, 1),
        square(220, 1),
        square(620, 1),
        tones(1, {620: 1, 1240: 0.5}),
        chord(370, 1),
        siren(1),
        rumble(1),
        clicks(1),
        torch.zeros(0),
        torch.zeros(5),
    ],
    ids=[
        *("silence", "noise", "low beep", "high beep", "middle beep", "low alarm", "high alarm"),
        *("octave", "chord", "siren", "rumble", "clicks", "nothing", "five samples"),
    ],
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
