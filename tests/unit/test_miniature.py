"""The miniature's files: what they become, and what is said when one is not as it came."""

import inspect
import shutil

import comfy.sd
import pytest
import torch
from comfy.ldm.wan import vae2_2
from comfy.utils import load_torch_file
from comfyui_ovi.ovi_model.load import miniature, video_vae
from comfyui_ovi.ovi_model.load.audio_vae import is_audio_vae
from comfyui_ovi.ovi_model.load.video_vae import load_video_vae
from comfyui_ovi.ovi_model.network.model import OviModel
from safetensors.torch import load_file, save_file

FILES = [miniature.MODEL, miniature.TEXT_ENCODER, miniature.VIDEO_VAE, miniature.AUDIO_VAE]
# A weight that only a complete file has, in the order of FILES.
WEIGHTS = [
    "audio_model.blocks.1.cross_attn.v_fusion.weight",
    "encoder.block.1.layer.1.DenseReluDense.wo.weight",
    "decoder.middle.0.residual.2.bias",
    "vocoder.conv_post.weight",
]


@pytest.fixture(scope="module")
def parts():
    return miniature.load_miniature()


@pytest.fixture
def folder(tmp_path):
    """A copy of the miniature, to be damaged."""
    return shutil.copytree(miniature.FOLDER, tmp_path / "miniature")


def test_it_is_small():
    sizes = {
        path.relative_to(miniature.FOLDER).as_posix(): path.stat().st_size
        for path in miniature.FOLDER.rglob("*.safetensors")
    }
    assert sizes.pop(miniature.REFERENCES_LORA) < 5e6
    assert sizes.keys() == set(FILES)
    assert sum(sizes.values()) < 30e6


def test_the_four_parts_are_what_the_nodes_take(parts):
    model, clip, vae, audio_vae = parts
    assert isinstance(model.model.diffusion_model, OviModel)
    assert len(clip.tokenize("a red ball")["umt5xxl"][0]) > 3
    assert (vae.latent_channels, vae.latent_dim) == (48, 3)
    assert is_audio_vae(audio_vae)


def test_the_video_vae_keeps_shapes_both_ways(parts):
    vae = parts[2]
    frames = torch.rand(9, 64, 64, 3)
    latent = vae.encode(frames)
    assert latent.shape == (1, 48, 3, 4, 4)
    assert vae.decode(latent).shape == (1, 9, 64, 64, 3)


def test_widths_come_from_the_weights(tmp_path):
    model = vae2_2.WanVAE(dim=4, dec_dim=8, z_dim=48, temperal_downsample=[False, True, True])
    weights = {
        name: 0.01 * torch.randn(tensor.shape) for name, tensor in model.state_dict().items()
    }
    save_file(weights, tmp_path / "vae.safetensors")
    loaded = load_video_vae(tmp_path / "vae.safetensors").first_stage_model
    assert (loaded.dim, loaded.decoder.dim) == (4, 8)
    assert all(torch.equal(loaded.state_dict()[name], weights[name]) for name in weights)


def test_the_released_widths_are_left_to_core(tmp_path, monkeypatch):
    """Core's loader builds one size, whose widths are the defaults of its class; it would refuse
    others.
    """
    core = inspect.signature(vae2_2.WanVAE).parameters
    widths = core["dim"].default, core["dec_dim"].default
    assert widths == video_vae.RELEASED_WIDTHS
    narrow = vae2_2.WanVAE(dim=4, dec_dim=8, z_dim=48, temperal_downsample=[False, True, True])
    save_file(narrow.state_dict(), tmp_path / "vae.safetensors")
    monkeypatch.setattr(video_vae, "RELEASED_WIDTHS", (4, 8))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_video_vae(tmp_path / "vae.safetensors")


def test_core_builds_its_own_again_afterwards(parts, folder):
    """And Load VAE takes the released width alone, as the help page says."""
    assert parts
    with pytest.raises(RuntimeError, match="size mismatch"):
        comfy.sd.VAE(sd=load_torch_file(str(folder / miniature.VIDEO_VAE)))


@pytest.mark.parametrize("index", range(4), ids=FILES)
def test_each_part_can_be_loaded_again_for_another_device(parts, index):
    """As core does for a plain copy beside a model of dynamic memory, and for a second card."""
    patcher = getattr(parts[index], "patcher", parts[index])
    function, arguments = patcher.cached_patcher_init[:2]
    again = function(*arguments, disable_dynamic=True)
    expected = patcher.model.state_dict()
    assert expected
    for name, weight in again.model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], equal_nan=True)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(
        ValueError, match=f"Install the extension again.*{(folder / file).name}' is missing"
    ):
        miniature.load_miniature(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_stops_early_is_named(folder, file):
    path = folder / file
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(
        ValueError, match=f"Install the extension again.*{path.name} cannot be read"
    ):
        miniature.load_miniature(folder)


@pytest.mark.parametrize(("file", "weight"), list(zip(FILES, WEIGHTS, strict=True)), ids=FILES)
def test_a_file_without_a_weight_is_named(folder, file, weight):
    path = folder / file
    weights = load_file(path)
    del weights[weight]
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"Install the extension again.*{path.name}") as caught:
        miniature.load_miniature(folder)
    assert weight.removeprefix("vocoder.").removeprefix("audio_model.") in str(caught.value)


def test_a_weight_of_another_shape_is_named(folder):
    path = folder / miniature.VIDEO_VAE
    weights = load_file(path)
    weights[WEIGHTS[2]] = weights[WEIGHTS[2]][:-1].clone()
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"{path.name}: '{WEIGHTS[2]}' has shape .* needs"):
        load_video_vae(path)


def test_another_file_is_no_video_vae(folder):
    with pytest.raises(
        ValueError, match=r"mmaudio_miniature\.safetensors is no Wan 2\.2 video VAE: it has no 'enc"
    ):
        load_video_vae(folder / miniature.AUDIO_VAE)
