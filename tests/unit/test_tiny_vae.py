"""Tiny decoders: frames leave them one by one and are stock's; the memory said is counted; each
gets the latent in its own scale.
"""

from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.utils
import count_bytes
import numpy as np
import pytest
import torch
from comfy.taesd.taehv import TAEHV
from comfyui_ovi.ovi_model.decode import tiled_video, tiny
from comfyui_ovi.ovi_model.load import tiny_vae
from comfyui_ovi.ovi_model.preview import live


@pytest.fixture(scope="module")
def file(small_files):
    return small_files / "vae" / "wan22_tiny_small.safetensors"


@pytest.fixture
def vae(file):
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(file)))


def latent(frames, height=2, width=3):
    generator = torch.Generator().manual_seed(frames * height + width)
    return torch.randn(1, 48, frames, height, width, generator=generator)


def test_frames_come_one_by_one_and_are_stock_s(vae):
    video, parts = latent(3), []
    with torch.no_grad():
        tiny.decode_tiny(vae.first_stage_model, video, parts.append)
    assert [part.shape for part in parts] == [(1, 3, 1, 32, 48)] * 9
    assert torch.equal(torch.cat(parts, 2).movedim(1, -1), vae.decode(video))
    assert not vae.first_stage_model.decoder[-1]._forward_hooks


def test_a_decoder_of_all_frames_at_once_makes_the_same(vae):
    """Core's other way to run it, which a node may choose."""
    video = latent(2)
    expected = tiled_video.decode_whole(vae, video)
    vae.first_stage_model.parallel = True
    torch.testing.assert_close(tiled_video.decode_whole(vae, video), expected, rtol=1e-5, atol=1e-6)


def test_progress_by_frames_and_interrupt_between_them(vae, monkeypatch):
    steps = []

    def stop(done, total, *_, **__):
        steps.append((done, total))
        comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiled_video.decode_whole(vae, latent(2))
    assert steps == [(1, 5)]
    assert not vae.first_stage_model.decoder[-1]._forward_hooks


@pytest.mark.parametrize(("frames", "side"), [(2, 8), (12, 8), (3, 16)])
def test_the_memory_said_is_the_memory_counted(monkeypatch, frames, side):
    """A fifth of it is to spare; the length makes no difference but for copies of the latent."""
    meta = torch.device("meta")
    monkeypatch.setattr(comfy.model_management, "intermediate_device", lambda: meta)
    with meta:
        model = TAEHV(latent_channels=48).to(torch.float16).requires_grad_(False)
        video = torch.zeros(1, 48, frames, side, side, dtype=torch.float16)
    with torch.no_grad(), count_bytes.CountBytes() as count:
        tiny.decode_tiny(model, video, lambda _: None)
    said = tiny.bytes_held(side * side, frames, torch.float16)
    assert count.peak < 0.83 * said < 1.1 * count.peak


def test_memory_is_asked_for_tiles_not_for_the_whole_clip(vae, monkeypatch):
    monkeypatch.setattr(vae, "memory_used_decode", pytest.fail)
    monkeypatch.setattr(vae, "output_device", torch.device("meta"))
    shapes = [torch.Size((1, 48, frames, 44, 44)) for frames in (31, 61)]
    short, long = (tiled_video.memory_required(vae, shape, (44, 44)) for shape in shapes)
    assert short < long < 1.2 * short
    assert tiled_video.memory_required(vae, shapes[0], (22, 44)) == short / 2


SCALES = [
    ("taew2_2.safetensors", True),
    ("TAEW2_2.pth", True),
    ("lighttaew2_2.safetensors", False),
    ("LightTAEw2_2_bf16.safetensors", False),
    ("my_decoder.safetensors", False),
    (None, False),
]


@pytest.mark.parametrize(("name", "is_model_scale"), SCALES)
def test_each_gets_the_latent_in_its_scale(vae, name, is_model_scale):
    """None: a core that does not keep which file a VAE is of."""
    video = latent(2)
    if name is not None:
        vae.patcher.cached_patcher_init = (pytest.fail, (str(Path("models", name)), None, None))
    scaled = comfy.latent_formats.Wan22().process_in(video) if is_model_scale else video
    assert (scaled - video).abs().max() > 0.1 or not is_model_scale
    assert torch.equal(tiled_video.decode_whole(vae, video), vae.decode(scaled))


def test_other_vaes_are_not_tiny_decoders(file):
    with torch.device("meta"):
        other = TAEHV(latent_channels=16)
    assert not tiny_vae.is_tiny(other)
    assert not tiny_vae.is_tiny(torch.nn.Identity())
    assert tiny_vae.is_tiny_file(comfy.utils.load_torch_file(str(file)))
    assert not tiny_vae.is_tiny_file(other.state_dict())


@pytest.mark.parametrize("is_model_scale", [False, True])
def test_a_preview_is_the_middle_of_the_clip(vae, monkeypatch, is_model_scale):
    """From the latent as the model makes it, which stays as it is."""
    loaded = []
    monkeypatch.setattr(
        comfy.model_management,
        "load_models_gpu",
        lambda _models, memory_required: loaded.append(memory_required),
    )
    made = latent(5, 4, 6)
    kept = made.clone()
    image = live.TinyPreviewer(vae, is_model_scale).decode_latent_to_preview(made)
    middle = made[:, :, 2:3]
    scaled = middle if is_model_scale else comfy.latent_formats.Wan22().process_out(middle)
    monkeypatch.undo()
    expected = vae.decode(scaled)[0, 0].clamp(0, 1) * 255
    actual = torch.from_numpy(np.array(image))
    assert image.size == (96, 64)
    assert (actual - expected).abs().max() <= 1
    assert torch.equal(made, kept)
    assert loaded == [tiny.bytes_held(24, 1, torch.float32)]


def test_a_file_of_something_else_is_told_and_colours_are_mixed(small_files, tmp_path, caplog):
    path = tmp_path / "taew2_2.safetensors"
    path.symlink_to(small_files / "vae" / "mmaudio_small.safetensors")
    previewer = live._load(path, comfy.latent_formats.Wan22())
    assert previewer.decode_latent_to_preview(latent(1)).size == (3, 2)
    assert "taew2_2.safetensors is no tiny decoder" in caplog.text
    assert "lighttaew2_2.safetensors of lightx2v/Autoencoders" in caplog.text
