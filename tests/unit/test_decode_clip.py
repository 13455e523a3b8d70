"""Frames and sound come out at one length; anything but Ovi's pair of latents, or the wrong VAE, is
named.
"""

import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model.decode import clip, tiled_video
from comfyui_ovi.ovi_model.decode.audio import decode_16k
from comfyui_ovi.ovi_model.latent.geometry import audio_steps
from comfyui_ovi.ovi_model.load import audio_vae


@pytest.fixture(scope="module")
def vaes(small_files):
    folder = small_files / "vae"
    video = comfy.sd.VAE(
        sd=comfy.utils.load_torch_file(str(folder / "wan22_tiny_small.safetensors"))
    )
    return video, audio_vae.load_audio_vae(folder / "mmaudio_small.safetensors")


def pair(cells=3, steps=None, batch=1, height=2, width=3, channels=48):
    steps = audio_steps(cells) if steps is None else steps
    return {
        "samples": NestedTensor(
            [torch.randn(batch, channels, cells, height, width), torch.randn(batch, 20, steps)]
        )
    }


@pytest.mark.parametrize(("steps", "tiling"), [(9, "auto"), (10, "on"), (13, "off")])
def test_sound_is_as_long_as_the_picture(vaes, steps, tiling):
    images, audio = clip.decode(pair(steps=steps, batch=2), *vaes, tiling)
    assert images.shape == (2 * 9, 32, 48, 3)
    assert audio["sample_rate"] == 16000
    assert audio["waveform"].shape == (2, 1, 6000)  # 9 frames at 24 a second
    assert not audio["waveform"][..., steps * 512 :].any()


def test_frames_are_those_of_stock_decode(vaes):
    latent = pair(steps=13, batch=2)
    images, audio = clip.decode(latent, *vaes, "off")
    video, sound = latent["samples"].unbind()
    assert torch.equal(images, torch.cat([vaes[0].decode(clip)[0] for clip in video.split(1)]))
    torch.testing.assert_close(audio["waveform"], decode_16k(vaes[1], sound)[..., :6000])


@pytest.fixture(scope="module")
def large(vaes):
    """A frame of more than one tile, decoded whole and in tiles."""
    latent = pair(cells=1, height=2, width=40)
    return latent, *(clip.decode(latent, *vaes, tiling)[0] for tiling in ("off", "on"))


def test_tiles_cover_large_frames(large):
    _, whole, tiled = large
    assert tiled.shape == whole.shape
    assert 0 < (tiled - whole).abs().mean() < 0.01


@pytest.mark.parametrize(("needed", "is_tiled"), [(10**15, True), (1000, False)])
def test_auto_goes_by_core_s_estimate_for_other_video_vaes(
    vaes, large, monkeypatch, needed, is_tiled
):
    latent, whole, _ = large
    monkeypatch.setattr(tiled_video, "is_tiny", lambda _: False)
    monkeypatch.setattr(vaes[0], "memory_used_decode", lambda shape, _: needed * shape[-1])
    assert torch.equal(clip.decode(latent, *vaes, "auto")[0], whole) is not is_tiled


@pytest.mark.parametrize(("samples", "expected"), [(2, [1, 2]), (5, [1, 2, 3, 0, 0])])
def test_fit_length(samples, expected):
    assert clip.fit_length(torch.tensor([[[1, 2, 3]]]), samples).flatten().tolist() == expected


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (
            {"samples": torch.zeros(1, 48, 3, 4, 4)},
            r"samples .*\[1, 48, 3, 4, 4\].*video without sound.*VAE Decode",
        ),
        ({"samples": torch.zeros(1, 20, 9)}, r"samples .*\[1, 20, 9\].*Connect the latent"),
        ({"samples": torch.zeros(1, 4, 8, 8)}, r"samples .*\[1, 4, 8, 8\].*Connect the latent"),
        (pair(channels=16), r"samples .*\[1, 16, 3, 2, 3\] and \[1, 20, 10\]"),
        (pair(steps=0), r"The audio of 'samples' is empty: .*\[1, 20, 0\]"),
        (pair(cells=0), r"The video of 'samples' is empty"),
        (
            pair(cells=4, steps=28),
            r"The sound of 'samples' has 28 steps, but a video latent of 4 latent frames needs 16: "
            r"the sound lasts 0\.90 s, the picture 0\.54 s\..*'Ovi Separate Latent' before",
        ),
        (
            {"samples": NestedTensor([torch.zeros(2, 48, 3, 4, 4), torch.zeros(1, 20, 9)])},
            r"2 video clips but 1 sounds",
        ),
    ],
)
def test_wrong_latents(vaes, latent, message):
    with pytest.raises(ValueError, match=message):
        clip.decode(latent, *vaes, "auto")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("bad", "named"), [((0,), "video"), ((1,), "audio"), ((0, 1), "video and audio")]
)
def test_a_failed_sampling_is_told_before_it_is_decoded(vaes, monkeypatch, number, bad, named):
    latent = pair()
    for stream in bad:
        latent["samples"].unbind()[stream].view(-1)[5] = number
    monkeypatch.setattr(vaes[0].first_stage_model, "decode", pytest.fail)
    monkeypatch.setattr(clip, "decode_16k", pytest.fail)
    causes = "fp16.*bf16 file.*download it again.*LoRA"
    message = rf"^The {named} of 'samples' holds infinite or undefined.*{causes}"
    with pytest.raises(ValueError, match=message):
        clip.decode(latent, *vaes, "off")


def test_wrong_vaes(vaes):
    video, audio = vaes
    for pair_of_vaes, message in (
        ((audio, video), "in each other's place"),
        ((audio, audio), "'vae' of Ovi Decode is an audio VAE"),
        ((video, video), "'audio_vae' of Ovi Decode is no audio VAE of Ovi"),
    ):
        with pytest.raises(ValueError, match=message):
            clip.decode(pair(), *pair_of_vaes, "auto")


def test_a_video_vae_with_other_channels(vaes, monkeypatch):
    monkeypatch.setattr(vaes[0], "latent_channels", 16)
    with pytest.raises(
        ValueError, match=r"works on 16 latent channels, Ovi's video has 48.*wan2\.2_vae"
    ):
        clip.decode(pair(), *vaes, "auto")


def test_an_unknown_tiling(vaes):
    with pytest.raises(ValueError, match="tiling is 'maybe'; choose one of 'auto', 'on', 'off'"):
        clip.decode(pair(), *vaes, "maybe")
