"""The whole joint loop through ComfyUI's own sampler, with this extension's guidance, schedule and
solver.
"""

import math

import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model.network.model import OviModel
from comfyui_ovi.ovi_model.sample import guidance, solver
from goldens import load, relative_error, small_patcher

TOLERANCE = 1e-5


def conditioning(recorded):
    negative = {"audio_context": recorded["context_audio_neg"][None]}
    return [[recorded["context_pos"][None], {}]], [[recorded["context_video_neg"][None], negative]]


def starting_latent(recorded, latent_format):
    """Zeros, or the recorded first frame as a VAE would give it, with its mask."""
    video = torch.zeros_like(recorded["noise_video"])[None]
    audio = torch.zeros_like(recorded["noise_audio"].mT)[None]
    if "first_frame_latent" not in recorded:
        return NestedTensor([video, audio]), None
    video[:, :, :1] = recorded["first_frame_latent"]
    video_mask = torch.ones_like(video[:, :1])
    video_mask[:, :, 0] = 0
    return NestedTensor([latent_format.process_out(video), audio]), NestedTensor(
        [video_mask, torch.ones_like(audio[:, :1])]
    )


def run(name, dtype=torch.float32, each_alone=False, sampler=None):
    """Sample a recorded case, by default with the solver of that name; returns the latents each
    step gave the model, and the finals, as the model sees them.
    """
    recorded, about = load(name)
    model = guidance.guide(small_patcher(dtype), about["audio_cfg"], about["slg_layer"], 0.0, 1.0)
    if each_alone:
        model.model.memory_required = lambda *_args, **_kwargs: float("inf")
    seen = []

    def watch(executor, x, *args, **kwargs):
        seen.append(x[:1])
        return executor(x, *args, **kwargs)

    model.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, watch)
    positive, negative = conditioning(recorded)
    latent, mask = starting_latent(recorded, model.model.latent_format)
    noise = NestedTensor([recorded["noise_video"][None], recorded["noise_audio"].mT[None]])
    sampler = sampler or comfy.samplers.KSAMPLER(solver.SOLVERS[about["solver"]])
    sigmas = solver.shifted_sigmas(about["steps"], about["shift"], solver=about["solver"])
    final = comfy.sample.sample_custom(
        model,
        noise,
        about["video_cfg"],
        sampler,
        sigmas,
        positive,
        negative,
        latent,
        noise_mask=mask,
        disable_pbar=True,
    )
    video, audio = final.unbind()
    return recorded, seen, model.model.latent_format.process_in(video)[0], audio[0].mT


@pytest.mark.parametrize("each_alone", [False, True], ids=["one batch", "one by one"])
@pytest.mark.parametrize("case", ["unipc_t2av", "unipc_i2av", "dpmpp_i2av", "euler_i2av"])
def test_joint_loop_equals_the_reference(case, each_alone):
    recorded, seen, video, audio = run(f"loop_t32_{case}", each_alone=each_alone)
    steps = len(recorded["traj_video_in"])
    assert len(seen) == steps * (2 if each_alone else 1)
    for given, video_in, audio_in in zip(
        seen[:: len(seen) // steps],
        recorded["traj_video_in"],
        recorded["traj_audio_in"],
        strict=True,
    ):
        expected = torch.cat([video_in.flatten(), audio_in.mT.flatten()])
        assert relative_error(given.flatten(), expected) <= TOLERANCE
    assert relative_error(video, recorded["final_video"]) <= TOLERANCE
    assert relative_error(audio, recorded["final_audio"]) <= TOLERANCE


def farthest(name, sampler=None):
    """Largest error of the finals of a recorded case."""
    recorded, _, video, audio = run(name, sampler=sampler)
    return max(
        relative_error(video, recorded["final_video"]),
        relative_error(audio, recorded["final_audio"]),
    )


def test_stock_euler_is_the_reference_s():
    assert farthest("loop_t32_euler_i2av", comfy.samplers.ksampler("euler")) <= TOLERANCE


def test_whole_timesteps_are_not_for_euler(monkeypatch):
    """The recorded loop tells the two apart."""
    forward = OviModel.forward

    def cut(network, x, timestep, *args, **named):
        times = [time.floor() for time in timestep]
        return forward(network, x, times, *args, **named)

    monkeypatch.setattr(OviModel, "forward", cut)
    assert farthest("loop_t32_euler_i2av") > 1000 * TOLERANCE


@pytest.mark.parametrize("case", ["unipc_t2av", "unipc_i2av", "dpmpp_i2av"])
def test_whole_timesteps_are_for_the_others(monkeypatch, case):
    monkeypatch.setattr(solver, "_at_whole_timesteps", lambda extra_args: extra_args)
    assert farthest(f"loop_t32_{case}") > 10 * TOLERANCE


def test_stock_dpmpp_is_another():
    """Core's counts time as the log of sigma alone."""
    assert farthest("loop_t32_dpmpp_i2av", comfy.samplers.ksampler("dpmpp_2m")) > 10 * TOLERANCE


# Terms of DPM++, by the name of the function that is changed.
TERMS = {
    "half the log SNR is the log of sigma": (
        "_lambda",
        lambda sigma: -math.log(sigma) if sigma else math.inf,
    ),
    "what is kept of the state": ("_step", lambda start, end: (1.0, *STEP(start, end)[1:])),
    "order 1": ("_ratio", lambda *_: math.inf),
    "the place of the earlier level": ("_ratio", lambda *_: -1.0),
}
STEP = solver._step


@pytest.mark.parametrize("term", TERMS)
def test_a_changed_term_of_dpmpp_shows(monkeypatch, term):
    monkeypatch.setattr(solver, *TERMS[term])
    assert farthest("loop_t32_dpmpp_i2av") > 10 * TOLERANCE


def test_dpmpp_is_not_corrected():
    assert farthest("loop_t32_dpmpp_i2av", comfy.samplers.KSAMPLER(solver.sample_flow_unipc)) > (
        10 * TOLERANCE
    )


def test_bf16_loop_is_no_further_from_fp32_than_the_reference_is():
    exact, reference = load("loop_t32_unipc_t2av")[0], load("loop_t32_unipc_t2av_bf16")[0]
    _, _, video, audio = run("loop_t32_unipc_t2av", torch.bfloat16)
    for name, final in (("final_video", video), ("final_audio", audio)):
        ours, theirs = (
            relative_error(final, exact[name]),
            relative_error(reference[name], exact[name]),
        )
        assert ours <= theirs, (name, ours, theirs)
