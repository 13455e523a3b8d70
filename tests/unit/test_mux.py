"""Saved files are decoded again: pictures, sound, their sync, colours and tags."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from comfyui_ovi.ovi_model.save import containers, mux
from media import decode, make_audio, save

FORMATS = list(containers.CONTAINERS)
AUDIO_FRAME = {"mp4": 1024, "webm": 960, "mov": 0}  # samples in one frame of the audio codec


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize(
    ("fps", "rate"), [(24, Fraction(24)), (23.976, Fraction(24000, 1001)), (30, Fraction(30))]
)
@pytest.mark.parametrize(("sample_rate", "channels"), [(16000, 1), (48000, 2)])
def test_a_flash_and_a_click_meet_again(tmp_path, format_name, fps, rate, sample_rate, channels):
    flash = 17
    images = torch.zeros(30, 48, 80, 3)
    images[flash] = 1
    audio = make_audio(int(30 / rate * sample_rate), sample_rate, channels)
    audio["waveform"][..., round(flash / rate * sample_rate)] = 0.9

    found = decode(save(tmp_path, format_name, images, fps, audio))

    assert found.frames.shape == (30, 48, 80, 3)
    assert found.rate == rate
    assert found.times == pytest.approx(
        [index / rate for index in range(30)], abs=0.0006 if format_name == "webm" else 1e-6
    )
    seen = found.times[int(found.frames.mean(axis=(1, 2, 3)).argmax())]
    assert len(found.sound) == channels
    heard = found.sound_start + int(np.abs(found.sound).max(axis=0).argmax()) / found.sound_rate
    assert seen == pytest.approx(flash / rate, abs=0.0006)
    assert heard == pytest.approx(
        float(flash / rate), abs=0.6 / sample_rate if format_name == "mov" else 0.001
    )
    assert abs(found.seconds - 30 / rate) <= AUDIO_FRAME[format_name] / found.sound_rate + 1e-6
    assert (
        abs(found.sound_seconds - 30 / rate) <= AUDIO_FRAME[format_name] / found.sound_rate + 1e-6
    )


@pytest.mark.parametrize(
    ("size", "stored"),
    [
        ((512, 960), (274, 512)),
        ((960, 512), (512, 274)),
        ((63, 64), (64, 64)),
        ((1, 400), (2, 400)),
    ],
)
def test_what_a_page_plays_is_small_and_even(tmp_path, size, stored):
    height, width = size
    images = torch.zeros(3, height, width, 3)
    images[:, :, : width // 2, 0] = 1
    images[:, :, width // 2 :, 2] = 1
    (clip,) = mux.split_clips(images, 24, make_audio(2000))
    path = mux.write_clip(tmp_path / "clip.mp4", clip, containers.FOR_PAGE, 60, {}, lambda: None)
    found = decode(path)
    assert found.frames.shape == (3, *stored, 3)
    left, right = np.split(found.frames, 2, axis=2)
    assert np.abs(left.mean(axis=(0, 1, 2)) - (1, 0, 0)).max() < 0.05
    assert np.abs(right.mean(axis=(0, 1, 2)) - (0, 0, 1)).max() < 0.05
    assert found.sound is not None


@pytest.mark.parametrize("format_name", FORMATS)
def test_colours_survive(tmp_path, format_name):
    colours = torch.tensor(
        [
            [1, 0, 0],
            [0, 1, 0],
            [0, 0, 1],
            [0.5, 0.5, 0.5],
            [0, 0, 0],
            [1, 1, 1],
            [0.2, 0.6, 0.9],
            [1, 0.5, 0.25],
        ]
    )
    found = decode(save(tmp_path, format_name, colours[:, None, None].expand(-1, 64, 64, -1)))
    error = np.abs(found.frames.mean(axis=(1, 2)) - colours.numpy()) * 255
    assert error.max() < 4
    assert found.matrix == found.primaries == found.transfer == 1
    container = containers.CONTAINERS[format_name]
    assert found.pixel_format == container.pixel_format


@pytest.mark.parametrize("format_name", FORMATS)
def test_gray_and_alpha_and_out_of_range_pictures(tmp_path, format_name):
    gray = decode(save(tmp_path, format_name, torch.full((2, 32, 32, 1), 0.25)))
    assert np.abs(gray.frames - 0.25).max() < 0.02
    (tmp_path / f"clip.{format_name}").unlink()

    images = torch.tensor([1.7, -0.4, 0.0, 0.3]).expand(2, 32, 32, 4)
    found = decode(save(tmp_path, format_name, images))
    assert np.abs(found.frames - [1, 0, 0]).max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs(tmp_path, dtype):
    audio = make_audio(1000)
    audio["waveform"] = torch.full((1, 1, 1000), 0.5, dtype=dtype)
    found = decode(save(tmp_path, "mov", torch.full((2, 32, 32, 3), 0.5, dtype=dtype), audio=audio))
    assert np.abs(found.frames - 0.5).max() < 0.02
    assert np.abs(found.sound[:, :1000] - 0.5).max() < 1e-6


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_tone_comes_back_as_loud_and_as_high(tmp_path, format_name):
    seconds = torch.arange(16000) / 16000
    audio = make_audio(16000)
    audio["waveform"][0, 0] = 0.5 * torch.sin(2 * torch.pi * 440 * seconds)
    found = decode(save(tmp_path, format_name, torch.zeros(24, 32, 32, 3), audio=audio))
    middle = found.sound[0][found.sound_rate // 4 : found.sound_rate * 3 // 4]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() * 2 == pytest.approx(440, abs=2)
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("format_name", FORMATS)
def test_stereo_sides_stay_apart(tmp_path, format_name):
    audio = make_audio(44100, 44100, 2)
    audio["waveform"][0, 1] = 0.5 * torch.sin(torch.arange(44100) * 0.05)
    found = decode(save(tmp_path, format_name, torch.zeros(24, 32, 32, 3), audio=audio))
    left, right = np.sqrt((found.sound**2).mean(axis=1))
    assert left < 0.01
    assert right > 0.3


@pytest.mark.parametrize(
    ("format_name", "sample_rate", "saved_rate"),
    [
        ("mp4", 16000, 16000),
        ("mp4", 44100, 44100),
        ("mp4", 17000, 48000),
        ("webm", 16000, 48000),
        ("mov", 17000, 17000),
    ],
)
def test_sample_rates(tmp_path, format_name, sample_rate, saved_rate):
    found = decode(
        save(tmp_path, format_name, torch.zeros(12, 32, 32, 3), audio=make_audio(9000, sample_rate))
    )
    assert found.sound_rate == saved_rate
    assert found.sound_seconds == pytest.approx(0.5, abs=1024 / saved_rate)


def test_loud_sound_is_clipped_not_wrapped(tmp_path):
    audio = make_audio(8000)
    audio["waveform"][0, 0] = torch.linspace(-3, 3, 8000)
    found = decode(save(tmp_path, "mov", torch.zeros(12, 32, 32, 3), audio=audio))
    assert np.all(np.diff(found.sound[0]) >= 0)
    assert found.sound.min() == pytest.approx(-1, abs=1e-6)
    assert found.sound.max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("format_name", ["mp4", "webm"])
def test_loud_sound_is_clipped_before_lossy_encoders(tmp_path, format_name):
    audio = make_audio(8000)
    audio["waveform"][0, 0] = 3 * torch.sin(torch.arange(8000) * 0.1)
    found = decode(save(tmp_path, format_name, torch.zeros(12, 32, 32, 3), audio=audio))
    assert 0.9 < np.abs(found.sound).max() < 1.5


@pytest.mark.parametrize("samples", [100, 16000, 90000])
def test_sound_is_cut_or_filled_to_the_pictures(tmp_path, samples):
    audio = make_audio(samples)
    audio["waveform"] += 0.25
    found = decode(save(tmp_path, "mov", torch.zeros(25, 32, 32, 3), audio=audio))
    expected = round(25 * 16000 / 24)
    assert found.sound.shape == (1, expected)
    assert np.count_nonzero(found.sound) == min(samples, expected)


def test_one_frame_and_silent_files(tmp_path):
    found = decode(save(tmp_path, "mp4", torch.zeros(1, 32, 32, 3)))
    assert len(found.frames) == 1
    assert found.sound is None


@pytest.mark.parametrize("format_name", FORMATS)
def test_tags_survive_and_lie_in_front(tmp_path, format_name):
    workflow = {"nodes": [{"text": 'ü "quoted" <S>hello<E> \n line', "list": list(range(5000))}]}
    tags = {"workflow": json.dumps(workflow), "prompt": json.dumps({"1": {}})}
    path = save(tmp_path, format_name, torch.rand(24, 64, 64, 3), metadata=tags)
    found = {name.lower(): text for name, text in decode(path).tags.items()}
    assert json.loads(found["workflow"]) == workflow
    assert json.loads(found["prompt"]) == {"1": {}}
    assert path.read_bytes().index(b'"nodes"') < 5000


@pytest.mark.parametrize("format_name", FORMATS)
def test_quality_changes_size(tmp_path, format_name):
    images = torch.rand(6, 128, 192, 3, generator=torch.Generator().manual_seed(0))
    sizes = []
    for quality in (0, 50, 80, 100):
        folder = tmp_path / str(quality)
        folder.mkdir()
        sizes.append(save(folder, format_name, images, quality=quality).stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2] <= sizes[3]
    assert len(decode(folder / f"clip.{format_name}").frames) == 6


@pytest.mark.parametrize("quality", [0, 100])
def test_every_mp4_is_of_a_kind_that_browsers_play(tmp_path, quality):
    path = save(tmp_path, "mp4", torch.rand(6, 64, 64, 3), quality=quality)
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.profile in (
            "High",
            "Main",
            "Constrained Baseline",
        )


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (24.0, Fraction(24)),
        (23.976, Fraction(24000, 1001)),
        (24000 / 1001, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (0.5, Fraction(1, 2)),
        (0.01, Fraction(1, 100)),
        (23.98, Fraction(1199, 50)),
        (1000.0, Fraction(1000)),
    ],
)
def test_frame_rates_are_exact(fps, expected):
    assert mux.frame_rate(fps) == expected


def test_a_batch_is_split_in_order():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(-1, 2, 2, 3)
    audio = make_audio(10, batch=3)
    audio["waveform"] += torch.arange(3.0).view(3, 1, 1) / 10
    clips = mux.split_clips(images, 24, audio)
    assert [clip.frames[:, 0, 0, 0].tolist() for clip in clips] == [[0, 1], [2, 3], [4, 5]]
    assert [float(clip.waveform.mean()) for clip in clips] == pytest.approx([0, 0.1, 0.2])
