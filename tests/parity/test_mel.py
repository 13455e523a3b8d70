"""The mel spectrogram of sound at 16 kHz against the reference; ComfyUI leaves its filters to
whoever loads it.

Processors round a Fourier transform of float32 in unlike ways, and the logarithm makes that large
where a band is all but silent. So what is recorded is met before the logarithm, and after it as
nearly as the record itself meets the spectrogram in float64.
"""

import copy

import pytest
import torch
from comfyui_ovi.ovi_model.load import audio_vae
from goldens import load, relative_error

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def converter(small_files):
    return audio_vae.load_audio_vae(
        small_files / "vae" / "mmaudio_small.safetensors"
    ).first_stage_model.mel_converter


def test_filters(converter):
    recorded = load("mel_16k")[0]["mel_basis"]
    assert relative_error(audio_vae.mel_basis(), recorded) < TOLERANCE
    assert relative_error(converter.mel_basis, recorded) < TOLERANCE


@pytest.mark.parametrize(
    ("waveform", "mel"),
    [("waveform", "mel"), ("waveform_short", "mel_short"), ("waveform_loud", "mel_clipped")],
)
def test_spectrogram(converter, waveform, mel):
    recorded = load("mel_16k")[0]
    made = converter(recorded[waveform][None])[0]
    assert relative_error(10**made, 10 ** recorded[mel]) < TOLERANCE
    exact = copy.deepcopy(converter).double()(recorded[waveform][None].double())[0]
    assert relative_error(made, exact) < 2 * relative_error(recorded[mel], exact)


def test_silence(converter):
    recorded = load("mel_16k")[0]["mel_silence"]
    assert (
        relative_error(converter(torch.zeros(1, recorded.shape[1] * 256))[0], recorded) < TOLERANCE
    )
