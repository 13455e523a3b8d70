"""References beside a clip against the reference: one forward, the places on the clock, the whole
loop through ComfyUI's own sampler, and what is made of pictures and recordings.
"""

import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfy.patcher_extension import WrappersMP
from comfyui_ovi.ovi_model.latent import references as latent_references
from comfyui_ovi.ovi_model.network import fused_ops, model, rope
from comfyui_ovi.ovi_model.network import references as network_references
from comfyui_ovi.ovi_model.network.references import Clock, reference_clock
from comfyui_ovi.ovi_model.sample import reference_guidance, references, solver
from goldens import load, named_patcher, relative_error

FORWARD, LOOP = "dreamid_fwd_2img_2aud", "dreamid_loop_1img_1aud"
REAL = Clock(0.197265625, 2, (31, 31), 760)


@pytest.fixture(scope="module")
def patcher():
    return named_patcher(FORWARD)


def states_of(network):
    """Return hidden states [B, L, D] of both towers after each pair of blocks, and its hooks."""
    states = []
    hooks = [
        block.register_forward_hook(
            lambda _block, _given, made: states.append([x.clone() for x in made])
        )
        for block in network.blocks
    ]
    return states, hooks


@torch.no_grad()
def forward(network, clock=None):
    """Run the recorded forward; returns hidden states by block, and the velocities of the clip."""
    recorded, about = load(FORWARD)
    images, voices = about["num_ref_images"], about["ref_audio_lengths"]
    clock = clock or Clock(about["freqs_scaling"], images, tuple(voices), about["audio_ref_offset"])
    video, audio = recorded["video"][None], recorded["audio"].mT[None]
    frames, steps = video.shape[2] - images, audio.shape[2] - sum(voices)
    states, hooks = states_of(network)
    made = network(
        [video[:, :, :frames], audio[:, :, :steps]],
        recorded["t"],
        recorded["vid_context"][None],
        recorded["audio_context"][None],
        transformer_options={},
        reference_images=video[:, :, frames:],
        reference_voices=audio[:, :, steps:],
        voice_steps=tuple(voices),
        clock=clock,
    )
    for hook in hooks:
        hook.remove()
    return recorded, states, made


def test_a_forward_equals_the_reference(patcher):
    recorded, states, (video, audio) = forward(patcher.model.diffusion_model)
    frames, steps = video.shape[2], audio.shape[2]
    for index, (of_video, of_audio) in enumerate(states):
        assert relative_error(of_video, recorded[f"block{index}.vid"]) <= 5e-6
        assert relative_error(of_audio, recorded[f"block{index}.audio"]) <= 5e-6
    assert relative_error(video[0], recorded["pred_video"][:, :frames]) <= 5e-6
    assert relative_error(audio[0].mT, recorded["pred_audio"][:steps]) <= 5e-6


def conditioning(recorded, latent_format):
    """Return positive and negative CONDITIONING of the recorded loop, with its references."""
    image = latent_format.process_out(recorded["ref_image_latents"][None])
    given = {
        "reference_latents": [image],
        "reference_voices": [recorded["ref_audio_latents"].mT[None]],
    }
    sound = recorded["context_audio_neg"][None]
    return (
        [[recorded["context_pos"][None], given]],
        [[recorded["context_video_neg"][None], {**given, "audio_context": sound}]],
    )


def guider_of(patcher, recorded, about, way="guider", scales=None):
    """Return what samples the recorded loop: our guider, or core's on a patched MODEL."""
    positive, negative = conditioning(recorded, patcher.model.latent_format)
    scales = scales or (about["audio_cfg"], about["video_ref_cfg"], about["audio_ref_cfg"])
    if way == "guider":
        return reference_guidance.reference_guider(
            patcher, positive, negative, about["video_cfg"], scales
        )
    guider = comfy.samplers.CFGGuider(reference_guidance.guide_references(patcher, *scales))
    guider.set_conds(positive, negative)
    guider.set_cfg(about["video_cfg"])
    return guider


def loop(patcher, *watchers, copies=1, each_alone=False, **ways):
    """Sample the recorded loop; returns what was recorded and the finals, as the model sees them.

    watchers: wrappers of the network's forward, see `_watch`. copies: clips at once.
    """
    recorded, about = load(LOOP)
    guider = guider_of(patcher, recorded, about, **ways)
    if each_alone:
        guider.model_patcher.model.memory_required = lambda *_args, **_kwargs: float("inf")
    for watcher in watchers:
        guider.model_patcher.add_wrapper(WrappersMP.DIFFUSION_MODEL, watcher)
    video, audio = recorded["noise_video"], recorded["noise_audio"].mT
    video = video[:, : recorded["final_video"].shape[1]].repeat(copies, 1, 1, 1, 1)
    audio = audio[:, : len(recorded["final_audio"])].repeat(copies, 1, 1)
    noise = NestedTensor([video, audio])
    empty = NestedTensor([torch.zeros_like(video), torch.zeros_like(audio)])
    sampler = comfy.samplers.KSAMPLER(solver.SOLVERS[about["solver"]])
    sigmas = solver.shifted_sigmas(about["steps"], about["shift"], solver=about["solver"])
    try:
        final = guider.sample(noise, empty, sampler, sigmas, disable_pbar=True, seed=0)
    finally:
        vars(guider.model_patcher.model).pop("memory_required", None)
    video, audio = final.unbind()
    return recorded, patcher.model.latent_format.process_in(video), audio.mT


def farthest(patcher, **ways):
    """Return the largest relative error of the recorded loop's finals, over all clips."""
    recorded, video, audio = loop(patcher, **ways)
    pairs = (video, recorded["final_video"]), (audio, recorded["final_audio"])
    return max(relative_error(clip, expected) for made, expected in pairs for clip in made)


@pytest.mark.parametrize("way", ["guider", "model"])
@pytest.mark.parametrize("each_alone", [False, True], ids=["one batch", "one by one"])
def test_the_loop_equals_the_reference(patcher, way, each_alone):
    assert farthest(patcher, way=way, each_alone=each_alone) <= 1e-5


def test_every_clip_of_a_batch_equals_the_reference(patcher):
    """The reference's offset grows with the place in the batch; each clip here is one alone."""
    assert farthest(patcher, copies=2) <= 1e-5


def test_four_predictions_of_a_step_share_one_forward(patcher):
    """And each is the recorded one, as is what the sampler gives the model at every step."""
    seen = []

    def watch(executor, x, timestep, *args, **kwargs):
        made = executor(x, timestep, *args, **kwargs)
        (options,) = [a for a in args if isinstance(a, dict) and "cond_or_uncond" in a]
        seen.append((options["cond_or_uncond"], x.clone(), made.clone()))
        return made

    recorded, _, _ = loop(patcher, watch)
    assert [sorted(kinds) for kinds, _, _ in seen] == [[0, 1, 2, 3]] * len(recorded["timesteps"])
    shapes = recorded["traj_video_in"].shape[1:], recorded["traj_audio_in"].mT.shape[1:]
    for (_, x, _), *expected in zip(
        seen, recorded["traj_video_in"], recorded["traj_audio_in"], strict=True
    ):
        whole = torch.cat([expected[0].flatten(), expected[1].mT.flatten()])
        assert relative_error(x[0].flatten(), whole) <= 1e-5
    kinds, _, made = seen[0]
    videos, sounds = comfy.utils.unpack_latents(made, [(len(made), *shape) for shape in shapes])
    names = ["pos", "neg", "refimg0", "refaud0"]
    for place, kind in enumerate(kinds):
        video = recorded[f"step0.{names[kind]}.pred_video"][:, : videos.shape[2]]
        sound = recorded[f"step0.{names[kind]}.pred_audio"][: sounds.shape[2]]
        assert relative_error(videos[place], video) <= 5e-6
        assert relative_error(sounds[place].mT, sound) <= 5e-6


@torch.no_grad()
def first_prediction(patcher, **ways):
    """Return the recorded guided prediction of the first step, and what one step makes: both rows
    of numbers, picture before sound.
    """
    recorded, _ = load(LOOP)
    guided = []

    def note(args):
        sigma = float(args["sigma"][0])
        guided.append((args["input"] - args["denoised"]) / sigma)
        raise _EnoughError

    patcher = patcher.clone()
    patcher.set_model_sampler_post_cfg_function(note)
    with pytest.raises(_EnoughError):
        loop(patcher, **ways)
    frames, steps = recorded["final_video"].shape[1], len(recorded["final_audio"])
    video = recorded["step0.guided_video"][:, :frames]
    sound = recorded["step0.guided_audio"][:steps].mT
    return torch.cat([video.flatten(), sound.flatten()]), guided[0].flatten()


class _EnoughError(Exception):
    pass


def off(patcher, **ways):
    """Return the relative error of the first guided prediction."""
    expected, actual = first_prediction(patcher, **ways)
    return relative_error(actual, expected)


def test_the_first_guided_prediction_equals_the_reference(patcher):
    assert off(patcher) <= 1e-5


# What another rule would put in the clock's place, for clip and references of the recorded loop.
CLOCKS = {
    "the next integer offset": lambda clock: clock._replace(
        voice_interval=clock.voice_interval - 1
    ),
    "scale not rounded": lambda clock: clock._replace(audio_scale=3 / 13),
    "Ovi's own scale": lambda clock: clock._replace(audio_scale=0.19676),
    "offset in latent frames": lambda clock: clock._replace(voice_interval=150),
}


@pytest.mark.parametrize("rule", CLOCKS)
def test_another_clock_shows(patcher, monkeypatch, rule):
    def other(*args):
        return CLOCKS[rule](reference_clock(*args))

    monkeypatch.setattr(model, "reference_clock", other)
    monkeypatch.setattr(network_references, "reference_clock", other)
    assert off(patcher) > 1e-4


@pytest.mark.parametrize(
    "change",
    [{"voice_interval": 759}, {"audio_scale": 31 / 157}, {"audio_scale": 0.19676}],
    ids=str,
)
def test_another_clock_of_the_real_length_shows(patcher, change):
    """At the scale and offset of 31 latent frames and 157 steps."""
    recorded, about = load(FORWARD)
    voices = tuple(about["ref_audio_lengths"])
    right = Clock(about["freqs_scaling"], 2, voices, about["audio_ref_offset"])
    _, _, (video, _) = forward(patcher.model.diffusion_model, right._replace(**change))
    frames = video.shape[2]
    assert relative_error(video[0], recorded["pred_video"][:, :frames]) > 1e-4


def both_zeroed(conds, _name):
    for name in (references.MODEL_IMAGES, references.MODEL_VOICES):
        conds = WITHOUT(conds, name)
    return conds


def kept(conds, _name):
    return conds


def other_zeroed(conds, name):
    names = {references.MODEL_IMAGES, references.MODEL_VOICES}
    return WITHOUT(conds, *(names - {name}))


WITHOUT = reference_guidance.without


@pytest.mark.parametrize("zeroing", [both_zeroed, other_zeroed, kept])
def test_another_zeroing_shows(patcher, monkeypatch, zeroing):
    monkeypatch.setattr(reference_guidance, "without", zeroing)
    assert off(patcher) > 1e-4


def test_references_at_time_zero_show(patcher, monkeypatch):
    append = network_references._append

    def clean(latent, time, added, now):
        by_place = time[:, None].expand(-1, latent.shape[2])
        return append(latent, by_place, added, 0 * now)

    monkeypatch.setattr(network_references, "_append", clean)
    assert off(patcher) > 1e-2


def test_references_see_the_time_of_all_else_where_a_frame_is_held():
    """A first frame at 0 leaves references at the sampler's time."""
    given = network_references.References(torch.ones(1, 48, 2, 2, 2), None, REAL)
    video, audio = torch.zeros(2, 48, 3, 2, 2), torch.zeros(2, 20, 13)
    now = torch.tensor([700.0, 300.0])
    by_frame = now[:, None].repeat(1, 3)
    by_frame[:, 0] = 0
    latents, times = given.append([video, audio], [by_frame, now])
    assert latents[0].shape[2] == 5
    assert latents[1].shape[2] == 13
    expected = [[0, 700, 700, 700, 700], [0, 300, 300, 300, 300]]
    assert times[0].tolist() == expected
    assert torch.equal(times[1], now)


def test_the_clock_of_the_real_length_is_the_reference_s():
    assert reference_clock(31, 157, 2, (31, 31)) == REAL


def test_the_clock_of_any_length_is_rounded_as_bf16_rounds():
    lengths = [(frames, steps) for frames in range(1, 151) for steps in range(5, 776, 11)]
    frames, steps = torch.tensor(lengths, dtype=torch.float64).T
    scales = (frames / steps).bfloat16()
    intervals = torch.tensor(150, dtype=torch.bfloat16) / scales
    clocks = [reference_clock(*length) for length in lengths]
    assert [clock.audio_scale for clock in clocks] == scales.tolist()
    assert [clock.voice_interval for clock in clocks] == intervals.int().tolist()


@pytest.mark.parametrize("stream", ["video", "audio"])
def test_rotations_of_the_real_length_equal_the_reference(stream):
    recorded, _ = load("dreamid_rope_full")
    x = recorded[f"q_{stream}"]
    if stream == "video":
        table = rope.video_freqs_cis(33, 2, 3, 128, "cpu", clock=REAL)
        assert torch.equal(REAL.frame_times(33, "cpu"), recorded["video_t_pos"])
    else:
        table = rope.audio_freqs_cis(219, 128, "cpu", clock=REAL)
        assert torch.equal(REAL.step_times(219, 0, "cpu"), recorded["audio_pos"])
    turned = fused_ops.apply_rope(x.flatten(2).clone(), table, 1).view(x.shape)
    assert relative_error(turned, recorded[f"roped_{stream}"]) <= 1e-6


@pytest.mark.parametrize("name", ["image0", "image1"])
def test_a_picture_is_prepared_as_the_reference_does(name):
    recorded, about = load("dreamid_preproc")
    height, width = about["target_hw"]
    image = recorded[f"{name}.rgb_u8_hwc"][None].float() / 255
    made = latent_references.letterbox(name, image, width, height)
    given = (made * 2 - 1).movedim(-1, 1).unsqueeze(2)  # as core hands it to the VAE
    assert torch.equal(given, recorded[f"{name}.vae_input"])


@pytest.mark.parametrize("number", [0, 1])
def test_a_voice_is_prepared_as_the_reference_does(number):
    recorded, about = load("dreamid_preproc")
    length = about["wav_lengths"][number]
    part = recorded[f"audio{number}.wav_i16_from_15990"].float() / 32768
    mono = torch.zeros(1, length)
    mono[0, 15990 : 15990 + len(part)] = part
    second = latent_references.cut_voice("voice", mono, 1.0)
    assert list(second.shape) == recorded[f"audio{number}.vae_input_shape"].tolist()
    assert torch.equal(second[:, :200], recorded[f"audio{number}.vae_input_head"])
