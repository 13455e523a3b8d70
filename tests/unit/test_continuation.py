"""The end of a film held at the start of a new clip: which samples are encoded, how a sound goes
on, and what the latent holds.
"""

import math

import pytest
import torch
from comfyui_ovi.nodes import OviContinue, OviMiniature
from comfyui_ovi.ovi_model.latent import continuation, linear_prediction
from comfyui_ovi.ovi_model.latent.overlap import heard_until
from comfyui_ovi.ovi_model.latent.time_mask import masks_of
from torchaudio.functional import resample

RATE = 16000


@pytest.fixture(scope="module")
def vaes(runtime):  # noqa: ARG001
    _, _, vae, audio_vae = OviMiniature.execute().result
    return {"vae": vae, "audio_vae": audio_vae}


def waves(samples, rate=RATE):
    """A note of three harmonics that swells and fades slowly."""
    time = torch.arange(samples) / rate
    swell = 0.3 + 0.1 * (2 * math.pi * 1.5 * time).sin()
    return (swell * sum((2 * math.pi * 310 * n * time).sin() / n for n in (1, 2, 3)))[None]


def film(frames=40, rate=RATE, channels=1, size=64):
    """Pictures with a bright bar that moves, and the note."""
    images = torch.full((frames, size, size, 3), 0.8)
    for index, picture in enumerate(images):
        picture[:, index % size] = 0.2
    return {
        "images": images,
        "audio": {
            "waveform": waves(round(frames * rate / 24), rate).expand(1, channels, -1),
            "sample_rate": rate,
        },
    }


def held_by(vaes, seconds=1.0, **given):
    with torch.inference_mode():
        return OviContinue.execute(**film() | given, **vaes, seconds=seconds).result[0]


def test_the_end_is_half_a_second_and_what_the_frames_held_last():
    sound = torch.arange(1.0, 26668.0)[None]  # 40 frames
    end = continuation.end_of_sound(sound, RATE, 40)
    assert end.shape == (1, 16 * 512 + 8667)
    assert end[0, 0] == 18000 - 8192 + 1
    assert end[0, -1] == 26667
    short = continuation.end_of_sound(sound, RATE, 13)
    assert not short[:, :8192].any()
    assert short[:, 8192:].equal(sound[:, :8667])


def test_silence_at_the_end_counts_as_the_end_up_to_a_tenth():
    sound = torch.full((2, RATE), 0.1)
    assert heard_until(sound, RATE) == RATE
    sound[:, -603:] = 1e-4
    assert heard_until(sound, RATE) == RATE - 603
    sound[:, -6000:] = 0
    assert heard_until(sound, RATE) == RATE - 896


def test_a_note_goes_on_as_it_was():
    note = waves(4096 + linear_prediction.GOES_ON)[0]
    made = linear_prediction.go_on(note[:4096])
    assert made[:4096].equal(note[:4096])
    next_ones = slice(4096, 4096 + 1024)  # what the steps held reach
    error = (made - note)[next_ones].square().mean() / note[next_ones].square().mean()
    assert error < 0.01


@pytest.mark.parametrize("kind", ["noise", "silence", "click", "short"])
def test_no_sound_grows_without_end(kind):
    torch.manual_seed(0)
    sound = {
        "noise": torch.randn(4096),
        "silence": torch.zeros(4096),
        "click": torch.eye(4096)[-1],
        "short": torch.ones(1),
    }[kind]
    made = linear_prediction.go_on(sound)
    assert len(made) == len(sound) + linear_prediction.GOES_ON
    assert made.isfinite().all()
    assert made[len(sound) :].abs().max() <= 2 * sound.abs().max()


def test_four_latent_frames_and_sixteen_steps_are_held(vaes):
    latent = held_by(vaes)
    video, audio = latent["samples"].unbind()
    assert (video.shape[2], audio.shape[2]) == (10, 47)
    picture_mask, sound_mask = masks_of(latent)
    assert picture_mask.mean((0, 1, 3, 4)).tolist() == [0] * 4 + [1] * 6
    assert sound_mask[0, 0].tolist() == [0] * 16 + [1] * 31
    with torch.inference_mode():
        expected = vaes["vae"].encode(film()["images"][-13:])
    torch.testing.assert_close(video[:, :, :4], expected[:, :, :4])


@pytest.mark.parametrize("missing", [0, 603])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_the_sound_held_is_that_of_a_film_that_goes_on(vaes, rate, missing):
    """As the VAE encodes it where nothing is cut; also where the sound ends before its picture."""
    given = film(rate=rate, channels=1 if rate == RATE else 2)
    if missing:
        given["audio"]["waveform"] = given["audio"]["waveform"].clone()
        given["audio"]["waveform"][..., -round(missing / RATE * rate) :] = 0
    _, audio = held_by(vaes, **given)["samples"].unbind()
    whole = waves(3 * RATE)[:, 18000 - 8192 : 18000 - 8192 + 63 * 512]
    vae_rate = getattr(vaes["audio_vae"], "audio_sample_rate", 44100)
    with torch.inference_mode():
        steps = vaes["audio_vae"].encode(resample(whole, RATE, vae_rate)[..., None])
    expected = steps[..., 16:32]
    errors = (audio[..., :16] - expected).square().mean((0, 1)) / expected.square().mean()
    assert errors[:14].max() < 0.01
    assert errors.max() < (0.3 if missing else 0.05)  # cut off 2 and more, and 0.7


FAULTS = {
    "images is 12 frames: a clip goes on from the last 13": film(12),
    "fps is 30; Ovi's clips have 24 frames a second": {"fps": 30.0},
    "fps is nan": {"fps": float("nan")},
    "audio lasts 2.08 s, but the 40 frames of images last 1.67 s": {"audio": film(50)["audio"]},
    "images are 80 x 80 pixels. The width is 80 pixels; .* multiple of 32: 64 or 96": film(size=80),
    "seconds is 0.05": {"seconds": 0.05},
    "audio is empty": {"audio": None},
}


@pytest.mark.parametrize("message", FAULTS)
def test_what_cannot_go_on_is_named(vaes, message):
    with pytest.raises(ValueError, match=message):
        held_by(vaes, **FAULTS[message])


def test_vaes_in_each_others_place_are_named(vaes):
    swapped = {"vae": vaes["audio_vae"], "audio_vae": vaes["vae"]}
    with pytest.raises(ValueError, match="'audio_vae' of Ovi Continue is no audio VAE"):
        held_by(swapped)


def test_frames_that_failed_are_named(vaes):
    given = film()
    given["images"][-1, 0, 0] = math.nan
    with pytest.raises(ValueError, match="images hold NaN or infinite values in the last frames"):
        held_by(vaes, **given)
