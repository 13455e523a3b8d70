"""Two streams put together: lengths, clips and masks."""

from types import SimpleNamespace

import pytest
import torch
from comfy.nested_tensor import NestedTensor
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
