"""The picture of a clip: frames where they belong on the time axis, the waveform and its speech
beneath.
"""

import numpy as np
import pytest
from comfyui_ovi.ovi_model.preview import contact_sheet
from comfyui_ovi.ovi_model.preview.contact_sheet import (
    MARGIN,
    WAVE_HEIGHT,
    WIDTH,
    Sound,
    draw_sheet,
    draw_wave,
    fit,
    frames_on_sheet,
)
from PIL import Image, ImageColor

RATE = 16000
SILENCE = Sound(np.zeros(0, np.float32), 0)


def colour_at(picture, x, y):
    return picture.getpixel((round(x), round(y)))


def near(colour, name):
    return max(abs(a - b) for a, b in zip(colour, ImageColor.getrgb(name), strict=True)) < 24


@pytest.mark.parametrize("frames", [1, 5, 8, 37, 121, 241])
def test_frames_are_spread_evenly(frames):
    indices = frames_on_sheet(frames)
    assert len(indices) == contact_sheet.FRAME_COUNT
    assert indices == sorted(indices)
    assert all(0 <= index < frames for index in indices)
    # The middle of each eighth is within half a frame.
    for cell, index in enumerate(indices):
        assert abs((index + 0.5) / frames - (cell + 0.5) / 8) <= 0.5 / frames + 1e-9


@pytest.mark.parametrize("size", [(64, 64), (960, 512), (512, 960), (1, 2000), (3000, 1)])
def test_frames_of_any_shape_fit_their_cell(size):
    fitted = fit(Image.new("RGB", size))
    assert 1 <= fitted.width <= contact_sheet.FRAME_WIDTH
    assert 1 <= fitted.height <= contact_sheet.LARGEST_FRAME_HEIGHT


def test_each_frame_stands_at_its_time():
    colours = [(30 * index, 255 - 30 * index, 90) for index in range(8)]
    pictures = [fit(Image.new("RGB", (64, 64), colour)) for colour in colours]
    sheet = draw_sheet("title", (64, 64), 8, 24.0, pictures, SILENCE)
    assert sheet.width == WIDTH
    span = WIDTH - 2 * MARGIN
    for cell, colour in enumerate(colours):
        assert (
            colour_at(sheet, MARGIN + (cell + 0.5) / 8 * span, contact_sheet.HEADER_HEIGHT + 100)
            == colour
        )


def test_the_waveform_is_loud_where_the_sound_is():
    samples = np.zeros(RATE, np.float32)
    samples[RATE // 2 : RATE // 2 + 1600] = 0.3
    wave = draw_wave(Sound(samples, RATE), 1.0, (1000, WAVE_HEIGHT))
    assert near(colour_at(wave, 550, 30), contact_sheet.LOUDNESS)
    assert near(colour_at(wave, 300, 30), contact_sheet.PANEL)
    assert near(colour_at(wave, 700, 30), contact_sheet.PANEL)


def test_speech_is_marked_where_it_is():
    samples = np.full(RATE, 1e-4, np.float32)
    wave = draw_wave(Sound(samples, RATE, speech=[(0.2, 0.4)]), 2.0, (1000, WAVE_HEIGHT))
    assert near(colour_at(wave, 150, 1), contact_sheet.SPEECH)
    assert near(colour_at(wave, 150, 20), contact_sheet.SPEECH_PANEL)
    for outside in (90, 210):
        assert near(colour_at(wave, outside, 1), contact_sheet.PANEL)


def test_a_clip_without_sound_says_so():
    wave = np.asarray(draw_wave(SILENCE, 1.0, (1000, WAVE_HEIGHT)).convert("L"))
    assert wave.max() > 100  # the words
    assert (wave == wave[0, 0]).mean() > 0.95


def test_a_rate_that_makes_no_whole_blocks_stays_in_time():
    """22,050 Hz has 220.5 samples in a block: the end of ten seconds would be 0.02 s early."""
    rate, seconds = 22050, 30
    samples = np.zeros(rate * seconds, np.float32)
    samples[-rate // 10 :] = 0.5
    wave = draw_wave(Sound(samples, rate), float(seconds), (3000, WAVE_HEIGHT))
    assert near(colour_at(wave, 2995, 60), contact_sheet.LOUDNESS)
    assert near(colour_at(wave, 2988, 60), contact_sheet.PANEL)


def test_a_sound_that_goes_on_has_its_whole_length():
    samples = np.zeros(RATE, np.float32)
    assert Sound(samples, RATE).seconds == 1
    assert Sound(samples, RATE, whole_seconds=600).seconds == 600
    assert SILENCE.seconds == 0
