"""Which timesteps the model sees, with the solvers of this extension and with core's samplers, and
the schedules people give them.
"""

from functools import partial

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.nodes.sampling import OviSamplerUniPC, OviScheduler
from comfyui_ovi.ovi_model.sample.guidance import guide
from comfyui_ovi.ovi_model.sample.solver import SOLVERS, shifted_sigmas
from goldens import small_patcher

WHOLE = ["unipc", "dpm++"]
SHAPES = ((1, 48, 3, 4, 4), (1, 20, 13))
SIGMAS = shifted_sigmas(4, 5.0)


@pytest.fixture
def patcher():
    return small_patcher()


def random(seed, batch):
    generator = torch.Generator().manual_seed(seed)
    return NestedTensor([torch.randn(batch, *s[1:], generator=generator) for s in SHAPES])


def held_first_frame(batch=1):
    mask = torch.ones(batch, 1, *SHAPES[0][2:])
    mask[:, :, 0] = 0
    return NestedTensor([mask, torch.ones(batch, 1, SHAPES[1][2])])


def ours(solver):
    return comfy.samplers.KSAMPLER(SOLVERS[solver])


def sample(model, sampler, sigmas=SIGMAS, batch=1):
    """Sample with a held first frame; returns picture and sound, and the times [B, F], [B] that the
    towers were told at each forward, picture first.
    """
    seen = []
    network = model.model.diffusion_model

    def note(tower):
        embed_time = tower.embed_time
        tower.embed_time = lambda time, dtype: seen.append(time) or embed_time(time, dtype)

    note(network)
    note(network.audio_model)
    texts = ([[torch.full((1, 9, 32), value), {}]] for value in (0.5, -0.5))
    final = comfy.sample.sample_custom(
        model,
        random(3, batch),
        4.0,
        sampler,
        sigmas.clone(),  # core's uni_pc writes into them
        *texts,
        random(4, batch),
        noise_mask=held_first_frame(batch),
        disable_pbar=True,
        seed=5,
    )
    del network.embed_time, network.audio_model.embed_time
    return final.unbind(), list(zip(seen[1::2], seen[::2], strict=True))


@pytest.mark.parametrize("solver", WHOLE)
def test_our_solvers_tell_the_model_whole_timesteps(patcher, solver):
    sigmas = shifted_sigmas(4, 5.0, solver=solver)
    _, times = sample(patcher, ours(solver), sigmas)
    assert len(times) == 4
    for sigma, (picture, sound) in zip(sigmas, times, strict=False):
        expected = int(sigma * 1000)
        assert picture.tolist() == [[0, expected, expected]] * 2
        assert sound.tolist() == [expected] * 2


@pytest.mark.parametrize(
    "name",
    [
        "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "uni_pc",
        "res_multistep", "lcm", "ddim",
    ],
)  # fmt: skip
def test_stock_samplers_tell_it_timesteps_as_they_are(patcher, name):
    """Also after a run with one of ours, which leaves nothing behind in the MODEL."""
    sample(patcher, ours("unipc"))
    (video, audio), times = sample(patcher, comfy.samplers.sampler_object(name))
    assert torch.isfinite(video).all()
    assert torch.isfinite(audio).all()
    given = random(4, 1).unbind()[0]
    leftover = 5e-3 if name == "uni_pc" else 1e-5  # core's ends at 0.001
    assert torch.allclose(video[:, :, 0], given[:, :, 0], atol=leftover)
    assert all((picture[:, 0] == 0).all() for picture, _ in times)
    fractions = [float(sound[0] % 1) for _, sound in times]
    assert sum(fraction > 0.01 for fraction in fractions) >= len(times) - 1
    assert all((picture[:, 1:] == sound[:, None]).all() for picture, sound in times)


def test_every_pass_of_a_guider_is_told_the_same(patcher):
    """Passes that nodes add after the guidance, and our own for the sound and the skipped layer."""
    model = guide(patcher, 3.0, 1, 0.0, 1.0)

    def once_more(args):
        conds = [args["cond"]]
        (prediction,) = comfy.samplers.calc_cond_batch(
            args["model"], conds, args["input"], args["sigma"], args["model_options"]
        )
        return args["denoised"] + 0.1 * (prediction - args["denoised"])

    model.set_model_sampler_post_cfg_function(once_more)
    _, times = sample(model, ours("dpm++"))
    assert len(times) == 8
    assert all(float(sound[0]) in {int(sigma * 1000) for sigma in SIGMAS} for _, sound in times)


@pytest.mark.parametrize("solver", WHOLE)
@pytest.mark.parametrize(
    "sigmas",
    [
        torch.tensor([1.0, 0.7, 0.4, 0.0]),
        torch.tensor([0.9999999, 0.5, 0.25]),
        torch.tensor([0.6, 0.0]),
        torch.tensor([0.003, 0.0005, 0.0]),
        shifted_sigmas(3, 5.0, denoise=0.4),
        shifted_sigmas(3, 5.0, solver="euler"),
    ],
    ids=["custom", "ends above zero", "one step", "nearly clean", "denoise", "another solver's"],
)
def test_any_falling_levels_are_sampled(patcher, solver, sigmas):
    (video, audio), times = sample(patcher, ours(solver), sigmas, batch=2)
    assert video.shape[0] == audio.shape[0] == 2
    assert torch.isfinite(video).all()
    assert torch.isfinite(audio).all()
    # In float32, where the model multiplies: 999.9999 is 999, and 0.7 * 1000 is 700.
    assert [sound[0] for _, sound in times] == [(sigma * 1000).floor() for sigma in sigmas[:-1]]


@pytest.mark.parametrize("solver", SOLVERS)
def test_denoise_keeps_the_end_of_a_longer_schedule(solver):
    whole = shifted_sigmas(8, 5.0, solver=solver)
    assert torch.equal(shifted_sigmas(4, 5.0, denoise=0.5, solver=solver), whole[-5:])


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_schedule_falls_from_the_noise_to_nothing(solver):
    for steps in (1, 2, 3, 7, 50, 1000):
        sigmas = shifted_sigmas(steps, 5.0, solver=solver)
        assert len(sigmas) == steps + 1
        assert (sigmas.diff() < 0).all()
        assert 0.999 <= sigmas[0] <= 1
        assert sigmas[-1] == 0


def test_euler_is_core_s(patcher):
    here = sample(patcher, ours("euler"))[0]
    stock = sample(patcher, comfy.samplers.sampler_object("euler"))[0]
    assert all(torch.equal(*pair) for pair in zip(here, stock, strict=True))


@pytest.mark.parametrize("make", [OviSamplerUniPC.execute, partial(OviScheduler.execute, 4, 5, 1)])
def test_an_unknown_solver_is_named(make):
    with pytest.raises(ValueError, match="solver is 'heun'; choose one of 'unipc'"):
        make(solver="heun")
