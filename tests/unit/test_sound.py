"""Sound of any rate and layout: in time to the sample, as loud and as clear as it was, and soon."""

import logging
import math
import time

import av
import numpy as np
import pytest
import torch
from comfyui_ovi.ovi_model.save import containers, mux, sound
from media import decode, make_audio, save

ODD_RATES = [7999, 17000, 22051, 44099, 96001, 192001, 1_000_003]


def tone(frequency, rate, samples):
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(samples).double() / rate)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("rate", "new_rate"), [(rate, 48000) for rate in ODD_RATES])
def test_a_tone_stays_as_it_was_at_every_sample(rate, new_rate, channels):
    frequency = min(1000, rate / 8)
    given = tone(frequency, rate, rate).float().expand(channels, -1)
    found = sound.resample(given, rate, new_rate, new_rate)
    assert found.shape == (channels, new_rate)
    expected = tone(frequency, new_rate, new_rate)
    inner = slice(new_rate // 20, -new_rate // 20)
    assert (found[:, inner] - expected[inner]).abs().max() < 5e-5


@pytest.mark.parametrize(("rate", "frequency"), [(16000, 7000), (22051, 9900), (44100, 19000)])
def test_high_tones_stay_and_those_above_the_new_rate_go(rate, frequency):
    kept = sound.resample(tone(frequency, rate, rate).float()[None], rate, 48000, 48000)[0]
    assert (kept - tone(frequency, 48000, 48000))[4000:-4000].abs().max() < 5e-4
    gone = sound.resample(tone(10000, 48000, 48000).float()[None], 48000, 16000, 16000)[0]
    assert gone[1000:-1000].abs().max() < 5e-4


@pytest.mark.parametrize("rate", [16000, 22051, 44100, 192001])
def test_a_click_is_in_time_after_a_minute(rate):
    given = torch.zeros(1, 60 * rate)
    moments = [0.01, 1.0, 29.97, 59.9]
    for moment in moments:
        given[0, round(moment * rate)] = 1
    found = sound.resample(given, rate, 48000, 60 * 48000)[0]
    for moment in moments:
        start = round((moment - 0.005) * 48000)
        peak = start + int(found[start : start + 480].abs().argmax())
        assert abs(peak - round(moment * rate) * 48000 / rate) <= 0.5 + 1e-6


@pytest.mark.parametrize("samples", [1, 2, 31, 64, 1000])
@pytest.mark.parametrize(("rate", "new_rate"), [(16000, 48000), (22051, 48000), (1, 16000)])
def test_short_sounds_have_their_length(samples, rate, new_rate):
    found = sound.resample(torch.full((1, samples), 0.5), rate, new_rate, 10**9)
    assert found.shape == (1, math.ceil(samples * new_rate / rate))
    assert found[0, 0] == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("sample_rate", [1, 7, 23])
def test_a_rate_below_that_of_the_pictures_is_kept(tmp_path, sample_rate):
    """Some frames have no sample then, and the encoder is given none."""
    found = decode(
        save(tmp_path, "mov", torch.zeros(48, 32, 32, 3), 24, make_audio(22051, sample_rate))
    )
    assert found.sound_rate == sample_rate
    assert found.sound.shape[-1] == 2 * sample_rate


def test_what_is_not_heard_is_not_read_and_changes_nothing():
    given = torch.randn(1, 30 * 22051, generator=torch.Generator().manual_seed(0))
    whole = sound.resample(given, 22051, 48000, 30 * 48000)
    begin = sound.resample(given, 22051, 48000, 48000)
    assert torch.allclose(begin, whole[:, :48000], atol=1e-6)


@pytest.mark.parametrize("sample_rate", [1, 7, *ODD_RATES, 9_999_991])
@pytest.mark.parametrize("format_name", ["mp4", "webm"])
def test_every_rate_is_saved_soon(tmp_path, format_name, sample_rate):
    begin = time.perf_counter()
    path = save(
        tmp_path, format_name, torch.zeros(24, 32, 32, 3), 24, make_audio(22051, sample_rate)
    )
    assert time.perf_counter() - begin < 5
    found = decode(path)
    assert found.sound_rate == containers.CONTAINERS[format_name].audio_rate(sample_rate)
    assert found.sound_seconds == pytest.approx(1, abs=0.05)


def test_hours_of_silence_need_no_memory(tmp_path):
    """Two frames of 100 s each; one second of them has a sound."""
    audio = make_audio(16000)
    audio["waveform"] += 0.25
    (clip,) = mux.split_clips(torch.zeros(2, 32, 32, 3), 0.01, audio)
    assert mux._fit_sound(clip, containers.CONTAINERS["mov"]).shape == (1, 16000)
    found = decode(save(tmp_path, "mov", torch.zeros(2, 32, 32, 3), 0.01, audio))
    assert found.sound.shape == (1, 200 * 16000)
    assert np.count_nonzero(found.sound) == 16000


# What swresample, as it was written for films, makes of each speaker alone.
FFMPEG_LAYOUTS = {3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


def swresample_stereo(waveform, layout, rate=16000):
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=rate)
    woven = waveform.T.reshape(1, -1).contiguous().numpy()  # PyAV does not fill eight planes
    frame = av.AudioFrame.from_ndarray(woven, "flt", layout)
    frame.sample_rate = rate
    blocks = [block.to_ndarray() for given in (frame, None) for block in resampler.resample(given)]
    return torch.from_numpy(np.concatenate(blocks, axis=1))


@pytest.mark.parametrize("channels", FFMPEG_LAYOUTS)
def test_surround_is_mixed_down_as_films_are(channels, caplog):
    given = 0.2 * torch.rand(2, channels, 500, generator=torch.Generator().manual_seed(1))
    with caplog.at_level(logging.INFO):
        mixed = sound.to_stereo(given)
    assert mixed.shape == (2, 2, 500)
    for clip, expected in zip(mixed, given, strict=True):
        assert torch.allclose(
            clip, swresample_stereo(expected, FFMPEG_LAYOUTS[channels]), atol=1e-5
        )
    (line,) = [record.getMessage() for record in caplog.records if "audio has" in record.msg]
    assert f"audio has {channels} channels" in line
    assert "turned down" not in line


@pytest.mark.parametrize(
    ("place", "left", "right"),
    [(0, 1, 0), (1, 0, 1), (2, 0.7071, 0.7071), (3, 0, 0), (4, 0.7071, 0), (5, 0, 0.7071)],
    ids=["left", "right", "centre", "effects", "back left", "back right"],
)
def test_each_speaker_of_five_one(place, left, right):
    given = torch.zeros(1, 6, 10)
    given[0, place] = 0.5
    expected = torch.tensor([left, right]) * 0.5
    assert torch.allclose(sound.to_stereo(given)[0].mean(1), expected, atol=1e-4)


def test_a_mix_that_would_clip_is_turned_down(caplog):
    given = torch.full((1, 6, 10), 0.8)
    given[..., 5:] = 0.4
    with caplog.at_level(logging.INFO):
        mixed = sound.to_stereo(given)
    assert mixed[0, 0].tolist() == pytest.approx([1.0] * 5 + [0.5] * 5)
    assert "turned down by 5.7 dB" in caplog.text


@pytest.mark.parametrize("channels", [1, 2])
def test_mono_and_stereo_stay(channels):
    given = 2 * torch.rand(1, channels, 10)
    assert sound.to_stereo(given) is given


@pytest.mark.parametrize("channels", FFMPEG_LAYOUTS)
def test_surround_is_saved_as_stereo(tmp_path, channels):
    audio = make_audio(48000, 48000, channels)
    audio["waveform"][0, 0] = 0.5
    found = decode(save(tmp_path, "mov", torch.zeros(12, 32, 32, 3), 24, audio))
    assert found.sound.shape == (2, 24000)
    assert found.sound.mean(axis=1) == pytest.approx([0.5, 0], abs=1e-6)


def test_only_the_clips_part_of_surround_is_mixed():
    (clip,) = mux.split_clips(torch.zeros(24, 8, 8, 3), 24, make_audio(60 * 16000, channels=6))
    assert clip.waveform.shape == (2, 16000)


@pytest.mark.parametrize("shape", [(1, 1, 0), (1, 2, 0), (3, 6, 0), (0, 1, 0), (1, 0, 0)])
def test_a_sound_of_no_samples_is_none_and_the_log_says_so(shape, caplog):
    with caplog.at_level(logging.INFO):
        (clip,) = mux.split_clips(
            torch.zeros(4, 8, 8, 3), 24, {"waveform": torch.zeros(shape), "sample_rate": 16000}
        )
    assert clip.waveform is None
    assert len(clip.frames) == 4
    assert caplog.text.count("audio has 0 samples: it counts as no sound") == 1
