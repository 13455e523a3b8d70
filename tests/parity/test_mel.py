"""The mel spectrogram of sound at 16 kHz against the reference; ComfyUI leaves its filters to
whoever loads it.
"""

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
    assert relative_error(converter(recorded[waveform][None])[0], recorded[mel]) < TOLERANCE


def test_silence(converter):
    recorded = load("mel_16k")[0]["mel_silence"]
    assert (
        relative_error(converter(torch.zeros(1, recorded.shape[1] * 256))[0], recorded) < TOLERANCE
    )
