"""The holding nodes: what they put into the latent, its masks and beside it; what is put back; and
what they refuse.
"""

import math
from types import SimpleNamespace

import comfy.sampler_helpers
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.nodes.hold import OviHoldPictures, OviHoldSound, OviTimeMask
from comfyui_ovi.ovi_model.decode.splice import FADE, splice_pictures, splice_sound
from comfyui_ovi.ovi_model.latent import latents
from comfyui_ovi.ovi_model.latent.held_sound import rate_of
from comfyui_ovi.ovi_model.latent.hold import CLEAN, PICTURES, SOUND, clean_frames
from comfyui_ovi.ovi_model.load.audio_vae import load_audio_vae

LENGTH, FRAMES, STEPS = 7, 25, 31
SAMPLES = round(FRAMES * 16000 / 24)


def encode(pixels):
    """A latent of the right shape whose frames tell the mean of the last picture in them."""
    lasts = pixels[::4].mean(dim=(1, 2, 3))
    height, width = (size // 16 for size in pixels.shape[1:3])
    return lasts.view(1, 1, -1, 1, 1).expand(1, 48, -1, height, width)


VAE = SimpleNamespace(encode=encode, latent_channels=48, latent_dim=3, first_stage_model=None)


@pytest.fixture(scope="module")
def audio_vae(small_files):
    return load_audio_vae(small_files / "vae" / "mmaudio_small.safetensors")


def empty(clips=1):
    return latents.empty(64, 64, FRAMES, clips)


def hold_pictures(latent, images, start=0.0, vae=VAE, **inputs):
    defaults = {"unit": "frames", "strength": 1.0, "keyframe": "clean"}
    return OviHoldPictures.execute(latent, vae, images, start, **defaults | inputs).result[0]


def gray(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 64, 64, 3).contiguous()


def video_mask(latent):
    mask = latent["noise_mask"].unbind()[0]
    assert (mask == mask[:1, :, :, :1, :1]).all()
    return mask[0, 0, :, 0, 0].tolist()


def told(latent):
    """What each latent frame says it was encoded from; None where nothing is held."""
    video = latent["samples"].unbind()[0]
    values = [round(float(value), 3) for value in video[0, 0, :, 0, 0]]
    pairs = zip(values, video_mask(latent), strict=True)
    return [value if mask <= 2 * CLEAN else None for value, mask in pairs]


@pytest.mark.parametrize(
    ("start", "unit", "index", "value"),
    [
        (0, "frames", 0, 0.0),
        (-25, "frames", 0, 0.0),
        (24, "frames", 6, CLEAN),
        (-1, "frames", 6, CLEAN),
        (1, "frames", 1, CLEAN),
        (12, "frames", 3, CLEAN),
        (0.5, "seconds", 3, CLEAN),
        (-0.042, "seconds", 6, CLEAN),
    ],
)
def test_a_picture_at_a_frame(start, unit, index, value):
    latent = hold_pictures(empty(2), gray(0.5), start, unit=unit)
    expected = [1.0] * LENGTH
    expected[index] = value
    assert video_mask(latent) == expected
    assert told(latent)[index] == 0.5
    assert (latent["noise_mask"].unbind()[1] == 1).all()
    clean = clean_frames(latent["noise_mask"].unbind()[0], None)
    assert clean[0].flatten().tolist() == [float(k == index) for k in range(LENGTH)]


def test_a_keyframe_is_one_at_any_size_to_which_samplers_scale_its_mask():
    """As when the latent of the picture is enlarged between two passes, and its mask is not."""
    latent = hold_pictures(empty(), gray(0.5), 24)
    mask = latent["noise_mask"].unbind()[0]
    for size in ((7, 9), (3, 2)):
        scaled = comfy.sampler_helpers.prepare_mask(mask, (1, 48, LENGTH, *size), "cpu")
        clean = clean_frames(scaled, None)
        assert clean.flatten().tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_a_keyframe_may_be_renoised():
    latent = hold_pictures(empty(), gray(0.5), 24, keyframe="renoised")
    assert video_mask(latent) == [1, 1, 1, 1, 1, 1, 0]
    assert not clean_frames(latent["noise_mask"].unbind()[0], None).any()


def test_less_strength_holds_less_and_nothing_is_put_back():
    latent = hold_pictures(empty(), gray(0.5), 24, strength=0.75)
    assert video_mask(latent) == [1, 1, 1, 1, 1, 1, 0.25]
    assert latent[PICTURES] == ()
    assert not clean_frames(latent["noise_mask"].unbind()[0], None).any()


def test_frames_of_a_span_hold_what_lies_in_them_as_a_whole():
    values = [index / 32 for index in range(FRAMES)]
    latent = hold_pictures(empty(), gray(*values[3:15]), 3)
    # Frames 5 to 8 and 9 to 12; each latent frame tells its last picture.
    assert told(latent) == [None, None, values[8], values[12], None, None, None]
    latent = hold_pictures(empty(), gray(*values[:9]), 0)
    assert told(latent) == [values[0], values[4], values[8], None, None, None, None]
    latent = hold_pictures(empty(), gray(*values[21:]), -4)
    assert told(latent)[6] == values[24]
    assert video_mask(latent) == [1, 1, 1, 1, 1, 1, 0]


def test_they_chain_in_any_order_and_the_later_wins():
    first, last, span = (gray(0.1), 0), (gray(0.9), -1), (gray(*[0.5] * 9), 0)
    latent = empty()
    for images, start in (span, first, last):
        latent = hold_pictures(latent, images, start)
    assert told(latent) == [0.1, 0.5, 0.5, None, None, None, 0.9]
    for images, start in (first, span):
        latent = hold_pictures(latent, images, start)
    assert told(latent) == [0.5, 0.5, 0.5, None, None, None, 0.9]
    latent = OviTimeMask.execute(latent, 0.5, 0.75, "picture and sound", 0.0).result[0]
    assert video_mask(latent) == [0, 0, 0, 0, 1, 0, CLEAN]
    assert told(latent)[6] == 0.9


@pytest.mark.parametrize(
    ("images", "inputs", "message"),
    [
        (torch.zeros(64, 64, 3), {}, r"images has shape \[64, 64, 3\]: expected"),
        (torch.zeros(0, 64, 64, 3), {}, r"\[0, 64, 64, 3\], which is empty"),
        (torch.full((1, 64, 64, 3), math.nan), {}, "images holds NaN or infinite"),
        (torch.zeros(1, 1, 2000, 3), {}, "images is 2000 x 1 pixels"),
        (gray(0.5), {"start": 25}, "start is frame 25, outside the clip, whose frames are 0 to 24"),
        (gray(0.5), {"start": -26}, "start is frame -26, outside .* -25 to -1"),
        (gray(0.5), {"start": 1.1, "unit": "seconds"}, "start is frame 26, outside"),
        (gray(0.5), {"start": 0.5}, r"start is 0\.5 frames; it must be a whole number"),
        (gray(*[0.5] * 6), {"start": 20}, "ends with frame 24: 1 too many"),
        (gray(0.5, 0.5), {"start": 3}, "2 frames from frame 3 on, and none of the clip's latent"),
        (gray(0.5), {"strength": 1.5}, r"strength is 1\.5; it must be from 0 to 1"),
        (gray(0.5), {"unit": "hours"}, "unit is 'hours'; choose one of 'frames', 'seconds'"),
        (gray(0.5), {"keyframe": "dirty"}, "keyframe is 'dirty'; choose one of"),
        (
            gray(0.5),
            {"vae": SimpleNamespace(latent_channels=16, latent_dim=3, first_stage_model=None)},
            "'vae' of Ovi Hold Pictures works on 16 latent channels",
        ),
    ],
)
def test_pictures_that_cannot_be_held_are_said(images, inputs, message):
    with pytest.raises(ValueError, match=message):
        hold_pictures(empty(), images, **inputs)


def tone(rate, seconds, channels=1, hertz=440):
    time = torch.arange(round(rate * seconds)) / rate
    return (0.5 * torch.sin(2 * math.pi * hertz * time)).expand(1, channels, -1).contiguous()


def hold_sound(audio_vae, waveform, rate, start=0.0, end=0.0, latent=None):
    audio = {"waveform": waveform, "sample_rate": rate}
    return OviHoldSound.execute(latent or empty(), audio_vae, audio, start, end).result


def test_a_short_recording_is_held_whole_with_silence_after_it(audio_vae):
    latent, recording = hold_sound(audio_vae, tone(22050, 0.5, channels=2), 22050)
    assert (latent["noise_mask"].unbind()[1] == 0).all()
    assert (latent["noise_mask"].unbind()[0] == 1).all()
    assert latent["samples"].unbind()[1].std() > 0
    assert recording["sample_rate"] == 22050
    assert recording["waveform"].shape == (1, 2, round(22050 * FRAMES / 24))
    assert torch.equal(recording["waveform"][..., :11025], tone(22050, 0.5, channels=2))
    assert not recording["waveform"][..., 11025:].any()


@pytest.mark.parametrize("steps", [31, 33])
def test_a_sound_of_a_few_steps_more_than_the_picture_is_held_whole(audio_vae, steps):
    """As a recording that was encoded has them."""
    video = latents.empty(64, 64, FRAMES, 1)["samples"].unbind()[0]
    latent = {"samples": NestedTensor([video, torch.zeros(1, 20, steps)])}
    latent, _ = hold_sound(audio_vae, tone(16000, 1.5), 16000, latent=latent)
    assert latent["samples"].unbind()[1].shape == (1, 20, steps)
    assert (latent["noise_mask"].unbind()[1] == 0).all()


def test_no_more_is_encoded_than_the_steps_last(audio_vae):
    """What follows the last step, were it heard, would change the five before it."""
    rate = rate_of(audio_vae)
    end = round(STEPS * 512 * rate / 16000)
    assert end < round(rate * FRAMES / 24)
    cut = tone(rate, 2.0)
    cut[..., end:] = 0
    held, held_cut = (
        hold_sound(audio_vae, waveform, rate)[0]["samples"].unbind()[1]
        for waveform in (tone(rate, 2.0), cut)
    )
    assert torch.equal(held, held_cut)
    assert audio_vae.encode(cut[..., :end].movedim(1, -1)).shape[2] == STEPS


def test_a_recording_over_a_span_is_placed_and_cut(audio_vae):
    latent, recording = hold_sound(audio_vae, tone(16000, 3.0), 16000, 0.25, 0.6)
    mask = latent["noise_mask"].unbind()[1][0, 0]
    assert mask.tolist() == [float(not 8 <= step < 18) for step in range(STEPS)]
    assert not recording["waveform"][..., :4000].any()
    assert torch.equal(recording["waveform"][..., 4000:9600], tone(16000, 3.0)[..., :5600])
    assert not recording["waveform"][..., 9600:].any()


def test_surround_is_mixed_down_with_one_line(audio_vae, caplog):
    caplog.set_level("INFO")
    surround = torch.zeros(1, 6, 24000)
    surround[:, 2] = tone(16000, 1.5)[0, 0]  # the centre
    surround[:, 3] = 1.0  # LFE
    _, recording = hold_sound(audio_vae, surround, 16000)
    lines = [record.getMessage() for record in caplog.records if record.name == "ovi"]
    assert len(lines) == 1
    assert "6 channels, taken as 5.1: mixed down to stereo" in lines[0]
    expected = tone(16000, 1.5)[..., :SAMPLES] * math.sqrt(0.5)
    torch.testing.assert_close(recording["waveform"], expected.expand(1, 2, -1))


@pytest.mark.parametrize(
    ("audio", "span", "message"),
    [
        (None, (0, 0), "audio is empty: the video that was loaded may have no sound"),
        ((torch.zeros(1, 1, 0), 16000), (0, 0), r"audio has shape \[1, 1, 0\]"),
        ((torch.zeros(1, 9, 100), 16000), (0, 0), r"audio has shape \[1, 9, 100\]"),
        ((torch.zeros(2, 1, 100), 16000), (0, 0), "audio holds 2 sounds: give one"),
        ((torch.full((1, 1, 100), math.inf), 16000), (0, 0), "audio holds NaN or infinite"),
        ((torch.zeros(1, 1, 100), 0), (0, 0), "sample rate of 0 Hz"),
        ((torch.zeros(1, 1, 100), 16000), (0.5, 0.4), "start must be before end"),
        ((torch.zeros(1, 1, 100), 16000), (2, 0), "outside the clip, which lasts 1.042 s"),
        ((torch.zeros(1, 1, 100), 16000), (0.5, 0.52), "no audio step of the clip lies as a whole"),
    ],
)
def test_a_sound_that_cannot_be_held_is_said(audio_vae, audio, span, message):
    given = audio and {"waveform": audio[0], "sample_rate": audio[1]}
    with pytest.raises(ValueError, match=message):
        OviHoldSound.execute(empty(), audio_vae, given, *span)


def test_another_vae_for_the_sound_is_said():
    with pytest.raises(ValueError, match="'audio_vae' of Ovi Hold Sound is no audio VAE of Ovi"):
        hold_sound(VAE, tone(16000, 1.0), 16000)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((0.0, 0.0, "taste", 0.0), "streams is 'taste'; choose one of"),
        ((0.0, 0.0, "sound", -0.1), r"ramp is -0\.1 s; it must be 0 or more"),
    ],
)
def test_a_time_mask_that_cannot_be_is_said(inputs, message):
    with pytest.raises(ValueError, match=message):
        OviTimeMask.execute(empty(), *inputs)


def test_records_go_with_their_stream(audio_vae):
    latent = hold_pictures(hold_sound(audio_vae, tone(16000, 1.0), 16000)[0], gray(0.5))
    video, audio = latents.separate(latent)
    assert PICTURES in video
    assert SOUND not in video
    assert SOUND in audio
    assert PICTURES not in audio
    plain_video, plain_audio = latents.separate(empty())
    assert SOUND in latents.concat(plain_video, audio)
    assert PICTURES not in latents.concat(plain_video, audio)
    assert PICTURES in latents.concat(video, plain_audio)
    joined = latents.concat(video, audio)
    assert joined[SOUND] is latent[SOUND]
    assert joined[PICTURES] is latent[PICTURES]


def test_frames_held_come_back_as_they_were_given():
    images = torch.rand(12, 64, 64, 3)
    latent = hold_pictures(hold_pictures(empty(2), images, 3), torch.rand(1, 64, 64, 3), -1)
    last = latent[PICTURES][1].pictures
    frames = splice_pictures(torch.full((2, FRAMES, 64, 64, 3), 7.0), latent)
    for clip in frames:
        assert torch.equal(clip[5:13], images[2:10])
        assert torch.equal(clip[24], last[0])
        assert (clip[:5] == 7).all()
        assert (clip[13:24] == 7).all()


def test_the_later_of_two_comes_back():
    spans = torch.rand(9, 64, 64, 3), torch.rand(1, 64, 64, 3)
    latent = hold_pictures(hold_pictures(empty(), spans[0], 0), spans[1], 6)
    (frames,) = splice_pictures(torch.full((1, FRAMES, 64, 64, 3), 7.0), latent)
    assert torch.equal(frames[:5], spans[0][:5])
    assert torch.equal(frames[6], spans[1][0])
    assert (frames[[5, 7, 8]] == 7).all()


def test_what_is_no_longer_held_does_not_come_back():
    latent = hold_pictures(empty(), torch.rand(9, 64, 64, 3), 0)
    latent["noise_mask"].unbind()[0][:, :, 1] = 0.1
    (frames,) = splice_pictures(torch.full((1, FRAMES, 64, 64, 3), 7.0), latent)
    assert (frames[1:5] == 7).all()
    assert (frames[[0, 5, 6, 7, 8]] <= 1).all()
    del latent["noise_mask"]
    assert (splice_pictures(torch.full((1, FRAMES, 64, 64, 3), 7.0), latent) == 7).all()


def test_a_clip_that_was_enlarged_gets_its_frames_at_that_size():
    images = torch.rand(1, 128, 128, 3)
    latent = hold_pictures(empty(), images, 0)
    video, audio = latent["samples"].unbind()
    larger = latent | {"samples": NestedTensor([torch.randn(1, 48, LENGTH, 8, 8), audio])}
    (frames,) = splice_pictures(torch.full((1, FRAMES, 128, 128, 3), 7.0), larger)
    assert torch.equal(frames[0], images[0])
    assert video.shape[-1] == 4


def test_a_clip_of_another_length_gets_none_and_the_log_says_so(audio_vae, caplog):
    latent = hold_pictures(hold_sound(audio_vae, tone(16000, 1.0), 16000)[0], gray(0.5))
    longer = latents.empty(64, 64, FRAMES + 4, 1)
    longer |= {key: latent[key] for key in (PICTURES, SOUND)}
    longer["noise_mask"] = NestedTensor([torch.zeros(1, 1, 8, 4, 4), torch.zeros(1, 1, 37)])
    assert (splice_pictures(torch.full((1, 29, 64, 64, 3), 7.0), longer) == 7).all()
    assert (splice_sound(torch.full((1, 1, 19333), 7.0), longer) == 7).all()
    assert "The pictures held are of a clip of 7 latent frames, this one has 8" in caplog.text
    assert "The sound held are" not in caplog.text
    assert "The sound held is of a clip of 31 audio steps, this one has 37" in caplog.text


def test_a_sound_held_whole_comes_back_to_the_sample(audio_vae):
    waveform = torch.rand(1, 1, SAMPLES) - 0.5
    latent, _ = hold_sound(audio_vae, waveform, 16000, latent=empty(2))
    made = splice_sound(torch.full((2, 1, SAMPLES), 7.0), latent)
    assert torch.equal(made, waveform.expand(2, 1, -1))


def test_a_sound_held_over_a_span_is_faded_in_inside_it(audio_vae):
    waveform = torch.rand(1, 1, SAMPLES) - 0.5
    latent, _ = hold_sound(audio_vae, waveform, 16000, 0.25, 0.6)
    made = splice_sound(torch.full((1, 1, SAMPLES), 7.0), latent)[0, 0]
    begin, end = 8 * 512, 18 * 512
    inside = slice(begin + FADE, end - FADE)
    assert torch.equal(made[inside], waveform[0, 0, inside.start - 4000 : inside.stop - 4000])
    assert (made[:begin] == 7).all()
    assert (made[end:] == 7).all()
    rising, falling = made[begin : begin + FADE], made[end - FADE : end]
    assert 5 < rising[:20].mean() < 7
    assert -0.5 < rising[-5:].mean() < 1
    assert 5 < falling[-20:].mean() < 7
    assert (made.diff().abs() < 1.2).all()


@pytest.mark.parametrize(("frames", "left"), [(269, 133), (25, 1307)])
def test_a_sound_held_in_the_last_step_alone_fades_in_as_long_as_it_lasts(audio_vae, frames, left):
    """269 frames leave fewer samples to the last step than a fade has."""
    samples = round(frames * 16000 / 24)
    latent = latents.empty(64, 64, frames, 1)
    begin = (latent["samples"].unbind()[1].shape[-1] - 1) * 512
    assert samples - begin == left
    waveform = torch.zeros(1, 1, samples)
    latent, _ = hold_sound(audio_vae, waveform, 16000, begin / 16000, latent=latent)
    (made,) = splice_sound(torch.full((1, 1, samples), 7.0), latent)[0]
    assert (made[:begin] == 7).all()
    assert 5 < made[begin] < 7
    assert made[-1] < (6 if left < FADE else 1e-3)
