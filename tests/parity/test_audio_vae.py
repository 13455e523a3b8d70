"""The full-size audio VAE and vocoder, weights drawn from their names, against the reference."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
from comfy.ldm.mmaudio.vae import autoencoder
from comfyui_ovi.ovi_model.decode.audio import decode_16k
from comfyui_ovi.ovi_model.load import audio_vae
from comfyui_ovi.ovi_model.load.core_vae import vae_around
from goldens import relative_error
from safetensors.torch import load_file

GOLDENS = Path(__file__).with_name("goldens")
TOLERANCE = 1e-5


def draw(name, shape):
    """The recorded scheme: normal numbers seeded by the name, scaled by the kind of weight."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") % 2**63
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    match name.rpartition(".")[2]:
        case "bias" | "learnable_gain" | "alpha" | "beta":
            return 0.1 * numbers
        case "weight_g":
            return 0.65 * (1 + 0.1 * numbers)
    return numbers / (numbers.numel() / shape[0]) ** 0.5


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """The two published files at full size; buffers are left to the classes, as recorded."""
    folder = tmp_path_factory.mktemp("audio")
    paths = folder / "v1-16.pth", folder / "best_netG.pt"
    for path, keys in zip(paths, ("mmaudio_vae_16k_keys", "bigvgan_16k_keys_legacy"), strict=True):
        shapes = json.loads((GOLDENS / f"{keys}.json").read_text())
        drawn = {
            k: draw(k, shape)
            for k, shape in shapes.items()
            if k.split(".")[-1] not in audio_vae.COMPUTED
        }
        torch.save({"generator": drawn} if path.suffix == ".pt" else drawn, path)
    loaded = audio_vae.load_audio_vae(*paths)
    for path in paths:
        path.unlink()
    return loaded


@pytest.fixture(scope="module")
def recorded():
    return load_file(GOLDENS / "audio_full.safetensors")


def test_decode(vae, recorded):
    with torch.no_grad():
        assert (
            relative_error(vae.first_stage_model.vae.decode(recorded["z"]), recorded["decode_mel"])
            < TOLERANCE
        )
    assert relative_error(decode_16k(vae, recorded["z"]), recorded["decode_wav"]) < TOLERANCE


def test_vocoder(vae, recorded):
    with torch.no_grad():
        waveform = vae.first_stage_model.vocoder(recorded["vocoder_mel"])
    assert relative_error(waveform, recorded["vocoder_wav"]) < TOLERANCE


def test_encode(vae, recorded):
    with torch.no_grad():
        moments = vae.first_stage_model.vae.encode(recorded["mel"])
    assert relative_error(moments.mean, recorded["encode_mean"]) < TOLERANCE
    assert relative_error(moments.logvar, recorded["encode_logvar"]) < TOLERANCE


def test_encode_sound(vae, recorded):
    """As nearly as the record meets a spectrogram in float64: see test_mel.py."""
    model = vae.first_stage_model
    latent = model.encode_audio(recorded["audio"]).mode()
    mel = copy.deepcopy(model.mel_converter).double()(recorded["audio"].double())
    with torch.no_grad():
        exact = model.vae.encode(mel.float()).mode()
    assert relative_error(latent, exact) < 2 * relative_error(recorded["audio_latent"], exact)
    assert relative_error(latent, recorded["audio_latent"]) < 10 * TOLERANCE


def test_released_files_become_comfyuis_own_class(vae):
    assert type(vae.first_stage_model) is autoencoder.AudioAutoencoder


def test_the_class_for_other_widths_is_the_same_at_the_released_ones(vae, recorded):
    """To the last bit, in ComfyUI's VAE object too."""
    weights = vae.first_stage_model.state_dict()
    model = audio_vae.SizedAutoencoder(*audio_vae.RELEASED_WIDTHS)
    sized = vae_around(model, weights, autoencoder, "AudioAutoencoder")
    assert type(sized.first_stage_model) is audio_vae.SizedAutoencoder
    assert torch.equal(sized.decode(recorded["z"]), vae.decode(recorded["z"]))
    assert torch.equal(decode_16k(sized, recorded["z"]), decode_16k(vae, recorded["z"]))
