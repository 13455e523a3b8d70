"""Two streams put together: lengths, clips and masks."""

from types import SimpleNamespace

import comfy.sampler_helpers
import comfy.utils
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.nodes.latents import OviImageSize
from comfyui_ovi.ovi_model.latent import latents
from comfyui_ovi.ovi_model.load.audio_vae import load_audio_vae


def pair(steps=31, clips=1):
    return {"samples": torch.randn(clips, 48, 7, 4, 4)}, {"samples": torch.randn(clips, 20, steps)}


@pytest.mark.parametrize("steps", [30, 31, 32])
def test_a_sound_of_one_step_more_or_less_fits(steps):
    video, audio = pair(steps, clips=2)
    audio["noise_mask"] = torch.rand(2, 1, steps)
    joined = latents.concat(video, audio)
    sound, mask = joined["samples"].unbind()[1], joined["noise_mask"].unbind()[1]
    assert sound.shape == (2, 20, 31)
    assert mask.shape == (2, 1, 31)
    kept = min(steps, 31)
    assert torch.equal(sound[..., :kept], audio["samples"][..., :kept])
    assert torch.equal(mask[..., :kept], audio["noise_mask"][..., :kept])
    assert torch.equal(sound[..., -1], audio["samples"][..., kept - 1])


def test_a_mask_of_another_width_is_left_for_samplers_to_scale():
    """A picture of a mask, 512 wide, whose second half holds the sound."""
    video, audio = pair()
    audio["noise_mask"] = torch.ones(1, 1, 64, 512)
    audio["noise_mask"][..., 256:] = 0
    mask = latents.concat(video, audio)["noise_mask"].unbind()[1]
    assert torch.equal(mask, audio["noise_mask"].mean(2))


def test_masks_of_unlike_number_are_repeated_to_one():
    """So that a clip that is picked from the batch by its number has its own of both."""
    video, audio = pair(clips=3)
    video["noise_mask"] = torch.rand(1, 1, 7, 4, 4)
    audio["noise_mask"] = torch.rand(3, 1, 31)
    masks = latents.concat(video, audio)["noise_mask"].unbind()
    assert torch.equal(masks[0], video["noise_mask"].expand(3, 1, 7, 4, 4))
    assert torch.equal(masks[1], audio["noise_mask"])


@pytest.mark.parametrize("frames", [1, 7, 13])
def test_images_as_a_mask_of_the_picture_are_frames_of_one_clip(frames):
    video, audio = pair(clips=2)
    video["noise_mask"] = torch.rand(frames, 1, 8, 8)
    mask, _ = latents.concat(video, audio)["noise_mask"].unbind()
    assert len(mask) == 2
    asked = (2, 48, 7, 4, 4), "cpu"
    before = comfy.sampler_helpers.prepare_mask(video["noise_mask"], *asked)
    assert torch.equal(comfy.sampler_helpers.prepare_mask(mask, *asked), before)


@pytest.mark.parametrize("steps", [29, 33])
def test_a_sound_of_another_length_is_refused(steps):
    with pytest.raises(
        ValueError, match=f"audio_latent has {steps} steps, but .* 7 latent frames needs 31"
    ):
        latents.concat(*pair(steps))


def test_a_vae_is_given_its_stream_of_our_pairs_alone(small_files):
    sound_vae = load_audio_vae(small_files / "vae" / "mmaudio_small.safetensors")
    picture_vae = SimpleNamespace(first_stage_model=None)
    video, audio = (part["samples"] for part in pair())
    joined = NestedTensor([video, audio])
    assert latents.stream_for(picture_vae, joined) is video
    assert latents.stream_for(sound_vae, joined) is audio
    of_others = NestedTensor([torch.zeros(1, 128, 7, 4, 4), torch.zeros(1, 8, 31, 16)])
    for vae in (picture_vae, sound_vae):
        for samples in (of_others, video, audio, torch.zeros(1, 4, 8, 8), None):
            assert latents.stream_for(vae, samples) is samples


def test_a_latent_whose_streams_differ_in_length_is_not_taken_apart():
    joined = latents.concat(*pair())
    joined["samples"] = joined["samples"][:, :, 3:]  # as TrimVideoLatent cuts it
    with pytest.raises(
        ValueError,
        match=r"The sound of 'latent' has 28 steps, but .* 4 latent frames needs 16: the sound "
        r"lasts 0\.90 s, the picture 0\.54 s",
    ):
        latents.separate(joined)


def test_as_many_sounds_as_clips():
    video, audio = pair(clips=2)
    with pytest.raises(ValueError, match="video_latent holds 2 clips and audio_latent 1"):
        latents.concat(video, {"samples": audio["samples"][:1]})


def test_apart_and_together_again():
    video, audio = pair()
    video["noise_mask"] = torch.rand(1, 1, 7, 4, 4)
    parts = latents.separate(latents.concat(video, audio))
    assert torch.equal(parts[0]["samples"], video["samples"])
    assert torch.equal(parts[1]["samples"], audio["samples"])
    assert torch.equal(parts[0]["noise_mask"], video["noise_mask"])
    assert (parts[1]["noise_mask"] == 1).all()


def test_a_mask_of_a_picture_belongs_to_the_picture():
    joined = latents.concat(*pair())
    joined["noise_mask"] = torch.zeros(1, 1, 7, 4, 4)
    video, audio = latents.separate(joined)
    assert "noise_mask" in video
    assert "noise_mask" not in audio


class FirstFrame:
    """Keeps what it is given to encode."""

    latent_channels = 48

    def encode(self, pixels):
        self.pixels = pixels
        return torch.zeros(1, 48, 1, pixels.shape[1] // 16, pixels.shape[2] // 16)


@pytest.fixture
def vae(monkeypatch):
    monkeypatch.setattr(latents, "check_video_vae", lambda vae, node: None)  # noqa: ARG005
    return FirstFrame()


def first_frame(vae, image, width=64, height=64):
    latents.from_image(vae, image, width, height, 5, 1)
    return vae.pixels[0]


def test_a_gray_start_image_becomes_rgb(vae):
    image = torch.rand(1, 100, 80, 1)
    gray = first_frame(vae, image)
    assert gray.shape == (64, 64, 3)
    assert torch.equal(gray, first_frame(vae, image.expand(-1, -1, -1, 3)))


def test_an_alpha_is_dropped_also_where_it_is_no_number(vae):
    image = torch.rand(1, 64, 64, 4)
    image[..., 3] = float("nan")
    assert torch.equal(first_frame(vae, image), image[0, ..., :3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_start_image_of_another_precision(vae, dtype):
    image = torch.full((1, 80, 100, 3), 0.5, dtype=dtype)
    assert torch.allclose(first_frame(vae, image), torch.tensor(0.5), atol=1e-6)


def with_nan():
    image = torch.zeros(1, 64, 64, 3)
    image[0, 3, 5, 2] = float("nan")
    return image


@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        (torch.zeros(64, 64, 3), (64, 64), r"start_image has shape \[64, 64, 3\]: expected"),
        (torch.zeros(1, 1, 64, 64, 3), (64, 64), r"start_image has shape \[1, 1, 64, 64, 3\]"),
        (torch.zeros(1, 64, 64, 2), (64, 64), r"start_image has shape \[1, 64, 64, 2\]: expected"),
        (torch.zeros(1, 64, 64, 5), (64, 64), r"start_image has shape \[1, 64, 64, 5\]: expected"),
        (torch.zeros(0, 64, 64, 3), (64, 64), r"\[0, 64, 64, 3\], which is empty: connect"),
        (torch.zeros(1, 0, 64, 3), (64, 64), r"\[1, 0, 64, 3\], which is empty"),
        (with_nan(), (64, 64), "start_image holds NaN or infinite values"),
        (torch.full((1, 8, 8, 1), float("inf")), (64, 64), "start_image holds NaN or infinite"),
        (
            torch.zeros(1, 100, 80, 3),
            (8192, 64),
            "start_image is 80 x 100 pixels: cut to the proportions of 8192 x 64, not one row",
        ),
        (torch.zeros(1, 80, 100, 3), (64, 8192), "100 x 80 .* 64 x 8192, not one column"),
        (torch.zeros(1, 2, 2000, 3), (32, 960), "2000 x 2 .* not one column of it"),
    ],
)
def test_a_start_image_that_cannot_be_one_is_said(vae, image, size, message):
    with pytest.raises(ValueError, match=message):
        latents.from_image(vae, image, *size, 5, 1)


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (1, 300), (300, 1), (256, 128), (129, 2)])
@pytest.mark.parametrize("size", [(64, 64), (4096, 32), (32, 4096), (960, 512)])
def test_a_cut_is_refused_where_core_cannot_make_it(vae, columns, rows, size):
    image = torch.rand(1, rows, columns, 3)
    try:
        comfy.utils.common_upscale(image.movedim(-1, 1), *size, "bicubic", "center")
    except RuntimeError:
        with pytest.raises(ValueError, match="of it is left"):
            first_frame(vae, image, *size)
    else:
        assert first_frame(vae, image, *size).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(64, 64, 3), r"image has shape \[64, 64, 3\]: expected \[frames, height"),
        (torch.zeros(1, 0, 64, 3), r"image has shape \[1, 0, 64, 3\], which is empty"),
    ],
)
def test_an_image_without_a_size_is_said(image, message):
    with pytest.raises(ValueError, match=message):
        OviImageSize.execute(image, "960x960")
