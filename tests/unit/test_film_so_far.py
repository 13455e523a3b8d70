"""What is shown of a clip that is made in blocks: frames and sound of the whole clip, as far as
they go.
"""

import pytest
import torch
from comfyui_ovi.ovi_model.decode import clip, tiled_video
from comfyui_ovi.ovi_model.load import miniature
from comfyui_ovi.ovi_model.load.audio_vae import load_audio_vae
from comfyui_ovi.ovi_model.load.video_vae import load_video_vae
from comfyui_ovi.ovi_model.preview import film_so_far

BLOCKS, STEPS = (3, 6, 8), (15, 30, 42)  # ends: latent frames, audio steps


@pytest.fixture(scope="module")
def vaes():
    """The miniature's, which were trained."""
    return (
        load_video_vae(miniature.FOLDER / miniature.VIDEO_VAE),
        load_audio_vae(miniature.FOLDER / miniature.AUDIO_VAE),
    )


@pytest.fixture(scope="module")
def latents():
    """As smooth in space and time as those of a moving picture; and of a sound."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, 48, BLOCKS[-1], 3, 4, generator=draw)
    video = torch.nn.functional.interpolate(coarse, (BLOCKS[-1], 4, 6), mode="trilinear")
    return video, torch.randn(2, 20, STEPS[-1], generator=draw)


def show(vaes, latents):
    """Return the clips that are shown, the last block being none of them."""
    shown = []
    video, audio = latents
    with torch.inference_mode(), film_so_far.Player(*vaes, shown.append).start() as film:
        for frames, steps in list(zip(BLOCKS, STEPS, strict=True))[:-1]:
            film.add(video[:, :, :frames], audio[:, :, :steps])
    return shown


def noise_ratio(actual, expected):
    """PSNR in decibels."""
    return -10 * (actual - expected).square().mean().log10().item()


def test_the_film_grows_by_the_frames_and_sound_of_the_first_clip(vaes, latents):
    first, second = show(vaes, latents)
    whole = tiled_video.decode_whole(vaes[0], latents[0][:1])[0]
    assert [len(clip.frames) for clip in (first, second)] == [9, 21]
    torch.testing.assert_close(first.frames, whole[:9], atol=1e-4, rtol=0)
    assert torch.equal(second.frames[:9], first.frames)
    assert noise_ratio(second.frames[9:], whole[9:21]) > 30
    for made, steps in zip((first, second), STEPS, strict=False):
        assert made.waveform.shape == (1, len(made.frames) * 16000 // 24)
        alone = clip.decode_16k(vaes[1], latents[1][:1, :, :steps])[0]
        torch.testing.assert_close(made.waveform, alone[:, : made.waveform.shape[1]])


def test_frames_before_a_block_tell_how_it_goes_on(vaes, latents, monkeypatch):
    """With one in place of two, frames are farther from those of the whole clip."""
    whole = tiled_video.decode_whole(vaes[0], latents[0][:1])[0, 9:21]
    ratios = []
    for frames in (1, 2):
        monkeypatch.setattr(film_so_far, "FRAMES_BEFORE", frames)
        ratios.append(noise_ratio(show((vaes[0], None), latents)[1].frames[9:], whole))
    assert ratios[0] < ratios[1]
