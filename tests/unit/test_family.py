"""What the sampler asks of the family: latents, masks, timesteps, memory, windows, detection."""

import comfy.conds
import comfy.context_windows
import comfy.model_detection
import comfy.supported_models
import comfy.utils
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model import core_facts, core_patches, family
from goldens import small_configs, small_patcher, small_weights

VIDEO, AUDIO = (2, 48, 3, 4, 6), (2, 20, 10)


@pytest.fixture
def base():
    return small_patcher().model


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VIDEO, generator=generator), torch.randn(AUDIO, generator=generator)


def pack(*parts):
    return comfy.utils.pack_latents(parts)[0]


def mask(video=1.0, audio=1.0):
    """Packed sampler masks; numbers, or tensors that spread over the stream."""
    return pack(*(torch.ones(shape) * part for shape, part in ((VIDEO, video), (AUDIO, audio))))


def test_one_line_of_the_log_says_what_is_loaded(caplog):
    caplog.set_level("INFO")
    video, audio = small_configs()
    entry = family.OviConfig({"image_model": "ovi", "video": video, "audio": audio})
    entry.get_model({"a": torch.zeros(10**6, dtype=torch.bfloat16), "b": torch.zeros(10**6, 4)}, "")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "ovi"]
    towers = (
        f"video tower {video.num_layers} blocks {video.dim} wide, "
        f"audio tower {audio.num_layers} blocks"
    )
    assert line == f"Ovi: {towers} {audio.dim} wide; weights float32, 0.02 GB"


@pytest.mark.parametrize("direction", ["process_in", "process_out"])
def test_only_the_video_is_normalised_in_every_form_of_latent(base, direction):
    video, audio = pair()
    base.latent_shapes = [torch.Size(VIDEO), torch.Size(AUDIO)]
    process = {"process_in": base.process_latent_in, "process_out": base.process_latent_out}[
        direction
    ]
    expected = getattr(base.latent_format, direction)(video)
    assert not torch.equal(expected, video)
    assert torch.equal(process(pack(video, audio)), pack(expected, audio))
    assert torch.equal(process(video), expected)
    assert torch.equal(process(audio), audio)
    nested = process(NestedTensor([video, audio])).unbind()
    assert torch.equal(nested[0], expected)
    assert torch.equal(nested[1], audio)


def first_frame(held):
    """A video mask that holds the first frame of the first clip, all of it or its upper half."""
    video = torch.ones(2, 1, 3, 4, 6)
    video[0, :, 0, : 4 if held == "whole" else 2] = 0
    return video


def test_a_held_first_frame_is_clean_and_at_time_zero(base):
    video, audio = pair()
    noise = pack(*pair(1))
    shapes = base.latent_shapes = [torch.Size(VIDEO), torch.Size(AUDIO)]
    out = base.extra_conds(
        denoise_mask=mask(first_frame("whole")), latent_shapes=shapes, device="cpu", noise=noise
    )
    clean = out["clean_frames"].cond
    times = base.process_timestep(torch.tensor([500.5, 500.5]), x=noise, clean_frames=clean)
    assert times[0].tolist() == [[0, 500.5, 500.5], [500.5] * 3]
    assert times[1].tolist() == [500.5, 500.5]

    held = base.scale_latent_inpaint(
        sigma=torch.full((2,), 0.25), noise=noise, latent_image=pack(video, audio)
    )
    noised = 0.25 * noise + 0.75 * pack(video, audio)
    held_video, held_audio = comfy.utils.unpack_latents(held, shapes)
    noised_video, noised_audio = comfy.utils.unpack_latents(noised, shapes)
    assert torch.equal(held_video[0, :, 0], video[0, :, 0])
    assert torch.allclose(held_video[0, :, 1:], noised_video[0, :, 1:])
    assert torch.allclose(held_video[1], noised_video[1])
    assert torch.allclose(held_audio, noised_audio)


@pytest.mark.parametrize(
    "held",
    [
        mask(first_frame("half")),
        mask(audio=0.0),
        mask(video=torch.tensor([1.0, 0, 1]).view(1, 1, 3, 1, 1)),
    ],
)
def test_anything_else_held_is_noised_under_the_common_time(base, held):
    shapes = base.latent_shapes = [torch.Size(VIDEO), torch.Size(AUDIO)]
    noise = pack(*pair(1))
    out = base.extra_conds(denoise_mask=held, latent_shapes=shapes, device="cpu", noise=noise)
    times = base.process_timestep(
        torch.tensor([500.0, 500.0]), x=noise, clean_frames=out["clean_frames"].cond
    )
    assert (times[0] == 500).all()
    scaled = base.scale_latent_inpaint(
        sigma=torch.full((2,), 0.25), noise=noise, latent_image=pack(*pair())
    )
    assert torch.allclose(scaled, 0.25 * noise + 0.75 * pack(*pair()))


def test_a_mask_that_changes_with_the_step_makes_no_frame_clean(base):
    """Differential Diffusion holds a half-held first frame whole at first: noised, as its time."""
    shapes = base.latent_shapes = [torch.Size(VIDEO), torch.Size(AUDIO)]
    noise, half, whole = pack(*pair(1)), torch.ones(2, 1, 3, 4, 6), torch.ones(2, 1, 3, 4, 6)
    half[:, :, 0], whole[:, :, 0] = 0.5, 0
    out = base.extra_conds(denoise_mask=mask(half), latent_shapes=shapes, device="cpu", noise=noise)
    sigma = torch.full((2,), 0.25)
    times = base.process_timestep(1000 * sigma, x=noise, clean_frames=out["clean_frames"].cond)
    held = base.scale_latent_inpaint(
        sigma=sigma, noise=noise, latent_image=pack(*pair()), denoise_mask=mask(whole)
    )
    assert (times[0] == 250).all()
    assert torch.allclose(held, 0.25 * noise + 0.75 * pack(*pair()))


def test_without_a_mask_no_frame_is_clean(base):
    shapes = [torch.Size(VIDEO), torch.Size(AUDIO)]
    base.extra_conds(
        denoise_mask=mask(first_frame("whole")), latent_shapes=shapes, device="cpu", noise=None
    )
    out = base.extra_conds(latent_shapes=shapes, device="cpu", noise=None)
    assert "clean_frames" not in out
    assert base.clean_frames is None
    assert base.process_timestep(torch.tensor([999.5]), x=pack(*pair())).tolist() == [999.5]


@torch.inference_mode()
def test_texts_form_a_batch_whatever_their_length(base):
    positive = base.extra_conds(cross_attn=torch.randn(1, 9, 32), device="cpu", noise=None)
    negative = base.extra_conds(
        cross_attn=torch.randn(1, 30, 32),
        audio_context=torch.ones(1, 2, 32),
        device="cpu",
        noise=None,
    )
    assert positive.keys() == negative.keys()
    for key in ("c_crossattn", "audio_context", "is_embedded"):
        assert positive[key].can_concat(negative[key])
    embedded = base.diffusion_model.embed_text(torch.zeros(1, 0, 32))
    batch = positive["c_crossattn"].concat([negative["c_crossattn"]])
    assert batch.shape == (2, 16, embedded.shape[2])
    assert torch.allclose(batch[0, 9:], embedded[0].expand(7, -1))
    sounds = negative["audio_context"].concat([positive["audio_context"]])
    assert sounds.shape[:2] == (2, 10)
    assert torch.equal(sounds[0, 2:], sounds[0, 2:3].expand(8, -1))


@torch.inference_mode()
def test_a_text_is_embedded_at_once_unless_its_weights_may_change(base):
    """By hooks of its conditioning, or by training, which also needs the gradient."""
    given = {"cross_attn": torch.randn(1, 9, 32), "device": "cpu", "noise": None}
    plain, hooked = base.extra_conds(**given), base.extra_conds(**given, hooks=object())
    with torch.inference_mode(False), torch.enable_grad():
        training = base.extra_conds(**given)
    assert [out["is_embedded"].cond for out in (plain, hooked, training)] == [True, False, False]
    raw = hooked["c_crossattn"].cond
    assert torch.equal(raw[:, :9], given["cross_attn"])
    assert torch.equal(raw, training["c_crossattn"].cond)
    assert not hooked["is_embedded"].can_concat(plain["is_embedded"])
    embedded = base.diffusion_model.embed_text(given["cross_attn"])
    assert torch.allclose(plain["c_crossattn"].cond, embedded)


def test_prompts_put_together_are_read_one_after_another(base, caplog):
    """As 'Conditioning (Concat)' makes of two encoded prompts, each filled up to full length."""
    length, width = base.diffusion_model.config.text_length, base.diffusion_model.config.text_dim
    first, second = torch.randn(1, 5, width), torch.randn(1, 7, width)
    filled = [
        torch.nn.functional.pad(text, (0, 0, 0, length - text.shape[1])) for text in (first, second)
    ]
    texts = base.extra_conds(cross_attn=torch.cat(filled, dim=1), noise=torch.zeros(1, 48, 1, 2, 2))
    made = texts["c_crossattn"].cond  # raw, since no device is named
    assert made.shape == (1, 13, width)
    assert torch.equal(made[:, :12], torch.cat([first, second], dim=1))
    assert not made[:, 12:].any()
    assert not caplog.records

    base.extra_conds(
        cross_attn=torch.randn(1, length + 1, width), noise=torch.zeros(1, 48, 1, 2, 2)
    )
    assert f"more than {length} tokens" in caplog.text


def test_text_of_another_encoder_is_refused(base):
    with pytest.raises(ValueError, match=r"encoded 768 wide, but this Ovi reads 32.*umT5"):
        base.extra_conds(cross_attn=torch.randn(1, 9, 768), device="cpu", noise=None)


def test_windows_cut_both_streams(base):
    shapes = [torch.Size((1, 48, 61, 4, 6)), torch.Size((1, 20, 314))]
    window = list(range(30, 61))
    base.windows_are_anchored = False
    assert base.map_context_window_to_modalities(window, shapes, 2) == [
        window,
        list(range(157, 314)),
    ]
    base.windows_are_anchored = True
    assert base.map_context_window_to_modalities(window, shapes, 2)[1] == list(range(152, 314))
    assert base.map_context_window_to_modalities([0, 1], shapes[:1], 2) == [[0, 1]]


def test_registering_again_changes_nothing():
    before = list(comfy.supported_models.models), comfy.model_detection.detect_unet_config
    core_patches.install()
    assert (comfy.supported_models.models, comfy.model_detection.detect_unet_config) == before
    assert before[0].count(family.OviConfig) == 1


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_detection_under_either_prefix(prefix):
    weights = {prefix + key: tensor for key, tensor in small_weights().items()}
    # Heads of files are 128 wide; the small model of the goldens is narrower than one.
    with pytest.raises(ValueError, match="32 wide; the width of Ovi is a multiple of 128"):
        comfy.model_detection.detect_unet_config(weights, prefix)


def test_other_models_are_left_to_core():
    plain = {
        key.replace(".modulation.modulation", ".modulation"): x
        for key, x in small_weights().items()
    }
    wan = {
        key: tensor for key, tensor in plain.items() if "fusion" not in key and "audio" not in key
    }
    assert comfy.model_detection.detect_unet_config(wan, "")["image_model"] == "wan2.1"


@pytest.mark.parametrize("nested", [False, True])
def test_previews_show_the_middle_of_the_picture(base, nested):
    video, audio = pair()
    shown = base.latent_format.latent_rgb_factors_reshape(
        NestedTensor([video, audio]) if nested else video
    )
    assert torch.equal(shown, video[:, :, 1:2])


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((1, 48, 10), "sound without a picture"),
        ((1, 16, 8, 8), r"a latent of shape \[1, 16, 8, 8\]"),
    ],
)
def test_a_latent_of_another_kind_is_refused(base, shape, found):
    with pytest.raises(
        ValueError, match=f"{found}; Ovi samples both together.*'Ovi Concat Latent'"
    ):
        base.extra_conds(device="cpu", noise=torch.zeros(shape))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 48, 7, 4, 4), (1, 20, 63)], r"63 steps.* 7 latent frames needs 31.*2\.02 s.*1\.04 s"),
        ([(1, 48, 4, 4, 4), (1, 20, 28)], r"28 steps.* 4 latent frames needs 16.*0\.90 s.*0\.54 s"),
        (
            [(1, 48, 7, 4, 4), (1, 8, 31)],
            r"shape \[1, 48, 7, 4, 4\] and \[1, 8, 31\].*'Ovi Latent'",
        ),
        ([(1, 48, 7, 4, 4), (1, 8, 31, 16)], r"and \[1, 8, 31, 16\].*'Ovi Latent'"),
        ([(1, 48, 7, 4, 4), (1, 20, 31), (1, 20, 31)], r"\[1, 20, 31\] and \[1, 20, 31\]"),
    ],
)
def test_streams_that_the_model_cannot_sample_together_are_refused(base, shapes, message):
    noise = pack(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match=f"given .*{message}"):
        base.extra_conds(device="cpu", noise=noise, latent_shapes=shapes)


def test_a_video_alone_is_sampled(base):
    shapes = [torch.Size((1, 48, 7, 4, 4))]
    base.extra_conds(device="cpu", noise=torch.zeros(shapes[0]), latent_shapes=shapes)


@pytest.mark.skipif(
    not core_facts.NESTED_WINDOWS, reason="this core has no windows of nested latents"
)
def test_a_window_takes_its_own_clean_frames(base):
    clean = comfy.conds.CONDRegular(torch.tensor([1.0, 0, 0, 0]).view(1, 1, 4, 1, 1))
    for frames, expected in (([0, 1], [1, 0]), ([2, 3], [0, 0])):
        window = comfy.context_windows.IndexListContextWindow(frames, dim=2, total_frames=4)
        cut = base.resize_cond_for_context_window("clean_frames", clean, window, None, "cpu")
        assert cut.cond.flatten().tolist() == expected
    assert base.resize_cond_for_context_window("c_crossattn", clean, window, None, "cpu") is None


def test_a_prediction_without_a_prompt_is_refused_in_words(base):
    """As guiders ask for one whose negative is not connected."""
    with pytest.raises(ValueError, match=r"without a prompt.*connect its input 'negative'"):
        base.apply_model(torch.zeros(1, 1, 4), torch.ones(1))


def test_a_run_does_not_find_what_the_last_one_was_given(base):
    """ComfyUI hands over no latent of zeros, so that nothing else would take the old one away."""
    base.latent_shapes = [torch.Size(VIDEO), torch.Size(AUDIO)]
    latent, held = pack(*pair()), mask(0.0, 0.0)
    base.current_patcher = patcher = object()  # as core does when a run begins
    base.process_latent_in(latent)
    base.denoise_mask = held
    almost = base._on_video(base.latent_format.process_in, latent) + 1e-7
    base.current_patcher = None  # and when it ends
    assert torch.equal(base.process_latent_out(almost), latent), "'denoised_output' is asked after"
    streams = NestedTensor(comfy.utils.unpack_latents(almost, base.latent_shapes))
    made = base.process_latent_out(streams)
    assert torch.equal(pack(*made.unbind()), latent), "as core hands it over"
    base.process_latent_in(latent)  # by 'AddNoise', outside of a run
    assert not torch.equal(base.process_latent_out(almost), latent)
    base.current_patcher = patcher
    assert base.given is base.denoise_mask is base.clean_frames is None
    assert not torch.equal(base.process_latent_out(almost), latent)


def test_a_pack_whose_shapes_nobody_told_is_no_picture(base):
    """A guider of two models tells them to one alone, and hands the latent to both."""
    base.latent_shapes = []
    latent = pack(*pair())
    assert base.process_latent_in(latent) is latent
