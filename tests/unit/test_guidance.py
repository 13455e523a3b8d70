"""The range of guidance, on the small model with core's own samplers: which prompts run at which
noise level.
"""

import comfy.samplers
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfy.patcher_extension import WrappersMP
from comfyui_ovi.ovi_model.sample import guidance, solver
from goldens import relative_error, small_patcher

STEPS = 8
SIGMAS = solver.shifted_sigmas(STEPS, 5.0)
BOTH, POSITIVE = [1, 0], [0]


@pytest.fixture
def patcher():
    return small_patcher()


def conditioning(seed):
    return [[torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(seed)), {}]]


def sample(model, cfg=4.0, sigmas=SIGMAS):
    """Sample a clip with the reference's solver; returns it as one row, and the prompts of each
    forward.

    The forwards are counted behind everything that could leave one out: in the network itself.
    """
    forwards = []

    def note(_network, args, kwargs):
        kinds = kwargs["transformer_options"]["cond_or_uncond"]
        assert args[0][0].shape[0] == len(kinds)
        forwards.append(kinds)

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(1), conditioning(2))
    guider.set_cfg(cfg)
    noise = torch.Generator().manual_seed(3)
    noise = NestedTensor(
        [torch.randn(shape, generator=noise) for shape in ((1, 48, 2, 4, 4), (1, 20, 8))]
    )
    blank = NestedTensor([torch.zeros_like(stream) for stream in noise.unbind()])
    sampler = comfy.samplers.KSAMPLER(solver.sample_flow_unipc)
    hook = model.model.diffusion_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        streams = guider.sample(noise, blank, sampler, sigmas, disable_pbar=True).unbind()
    finally:
        hook.remove()
    return torch.cat([stream.flatten() for stream in streams]), forwards


def guided(patcher, *cfg_range, audio_cfg=3.0, layer=-1):
    return guidance.guide(patcher, audio_cfg, layer, 0.0, 1.0, cfg_range or guidance.WHOLE)


def switched(patcher, start, end, audio_cfg=3.0):
    """The same in another way: both prompts are predicted everywhere, and a cfg function drops the
    negative one.
    """
    model = guidance.guide(patcher, audio_cfg, -1, 0.0, 1.0)
    within = model.model_options["sampler_cfg_function"]
    sampling = model.get_model_object("model_sampling")
    first = sampling.percent_to_sigma(start) if start > 0 else 2.0

    def choose(args):
        is_within = sampling.percent_to_sigma(end) <= float(args["sigma"][0]) <= first
        return within(args) if is_within else args["cond"].clone()

    model.set_model_sampler_cfg_function(choose, disable_cfg1_optimization=True)
    return model


# Half and quarters of eight steps; level 4 of 8 lies just below the middle of the schedule, as
# training stops at 0.999.
RANGES = {
    (0.0, 1.0): [BOTH] * 8,
    (0.0, 0.5): [BOTH] * 4 + [POSITIVE] * 4,
    (0.5, 1.0): [POSITIVE] * 4 + [BOTH] * 4,
    (0.25, 0.75): [POSITIVE] * 2 + [BOTH] * 4 + [POSITIVE] * 2,
    (0.0, 0.0): [POSITIVE] * 8,
    (1.0, 1.0): [POSITIVE] * 8,
    (0.0, 0.001): [BOTH] + [POSITIVE] * 7,
}


@pytest.mark.parametrize(("cfg_range", "expected"), RANGES.items(), ids=map(str, RANGES))
def test_outside_the_range_the_positive_prompt_runs_alone(patcher, cfg_range, expected):
    actual, forwards = sample(guided(patcher, *cfg_range))
    assert forwards == expected
    reference, forwards = sample(switched(patcher, *cfg_range))
    assert forwards == [BOTH] * STEPS
    assert relative_error(actual, reference) < 1e-5


def test_a_first_level_a_little_above_the_highest_is_the_start(patcher):
    """Rounding can put it there."""
    sigmas = torch.tensor([1.0000001, 0.9, 0.5, 0.0])
    assert sigmas[0] > patcher.get_model_object("model_sampling").percent_to_sigma(0.0)
    assert sample(guided(patcher, 0.0, 0.5), sigmas=sigmas)[1] == [BOTH, BOTH, POSITIVE]


def test_each_range_gives_another_clip(patcher):
    clips = [
        sample(guided(patcher, *cfg_range))[0]
        for cfg_range in RANGES
        if cfg_range not in {(0.0, 0.0)}
    ]
    for index, clip in enumerate(clips):
        assert all(relative_error(clip, other) > 1e-3 for other in clips[:index])


def test_guidance_nowhere_is_scale_one(patcher):
    expected, forwards = sample(guided(patcher, audio_cfg=1.0), cfg=1.0)
    assert forwards == [POSITIVE] * STEPS
    assert relative_error(sample(guided(patcher, 1.0, 1.0))[0], expected) < 1e-5


def test_the_whole_schedule_patches_nothing_and_changes_no_bit(patcher):
    whole, nearly = guided(patcher), guided(patcher, 0.0, 0.999)
    assert WrappersMP.CALC_COND_BATCH not in whole.wrappers
    assert nearly.wrappers[WrappersMP.CALC_COND_BATCH]
    (expected, _), (actual, forwards) = sample(whole), sample(nearly)
    assert forwards == [BOTH] * STEPS
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("audio_cfg", [1.0, 3.0])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_scales_of_one_save_the_negative_prompt_within_the_range_too(patcher, cfg, audio_cfg):
    within = POSITIVE if cfg == audio_cfg == 1.0 else BOTH
    actual, forwards = sample(guided(patcher, 0.0, 0.5, audio_cfg=audio_cfg), cfg=cfg)
    assert forwards == [within] * 4 + [POSITIVE] * 4
    expected, _ = sample(switched(patcher, 0.0, 0.5, audio_cfg=audio_cfg), cfg=cfg)
    assert relative_error(actual, expected) < 1e-5


def test_a_layer_is_skipped_within_both_ranges(patcher):
    plain, forwards = sample(guided(patcher, 0.0, 0.5))
    skipping, same_forwards = sample(guided(patcher, 0.0, 0.5, layer=1))
    assert forwards == same_forwards
    assert relative_error(skipping, plain) > 1e-3
    never_within_both = guidance.guide(patcher, 3.0, 1, 0.6, 1.0, (0.0, 0.5))
    assert torch.equal(sample(never_within_both)[0], plain)


def test_a_range_that_ends_before_it_starts_is_refused(patcher):
    with pytest.raises(
        ValueError,
        match=r"cfg_start_percent is 0\.8 and cfg_end_percent 0\.2: guidance would end before",
    ):
        guided(patcher, 0.8, 0.2)


def test_the_last_range_counts_and_the_given_model_stays(patcher):
    first = guided(patcher, 0.0, 0.25)
    second = guided(first, 0.0, 0.75)
    none = guided(second)
    assert not patcher.wrappers.get(WrappersMP.CALC_COND_BATCH)
    for model, count in ((first, 2), (second, 6), (none, STEPS)):
        assert sample(model)[1].count(BOTH) == count


@pytest.mark.parametrize("is_first", [True, False])
def test_other_wrappers_still_run(patcher, is_first):
    """EasyCache, for one, reads the last argument."""
    seen = []

    def watch(executor, *args):
        assert "transformer_options" in args[-1]
        seen.append([index for index, cond in enumerate(args[1]) if cond is not None])
        return executor(*args)

    model = patcher.clone()
    if is_first:
        model.add_wrapper(WrappersMP.CALC_COND_BATCH, watch)
    model = guided(model, 0.0, 0.5)
    if not is_first:
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "watch", watch)
    _, forwards = sample(model)
    assert forwards == [BOTH] * 4 + [POSITIVE] * 4
    assert len(seen) == STEPS
    assert seen[0] == [0, 1]
    # The first to be added is asked first; the other sees what is left.
    assert seen[-1] == ([0, 1] if is_first else [0])


def test_the_two_predictions_share_no_memory(patcher):
    """A node that changes one of them in place must not change the other."""
    model = guided(patcher, 1.0, 1.0)
    expected, _ = sample(model)
    model.set_model_sampler_pre_cfg_function(
        lambda args: [args["conds_out"][0], args["conds_out"][1].zero_()]
    )
    model.set_model_sampler_cfg_function(lambda args: args["cond"])
    assert relative_error(sample(model)[0], expected) < 1e-5


def test_a_prediction_asked_for_alone_is_left_alone(patcher):
    """As stock skip-layer guidance asks for the negative one."""
    model = guided(patcher, 1.0, 1.0)

    def one_by_one(args):
        rest = (args["model"], args["input"], args["sigma"], args["model_options"])
        positive, negative = args["conds"]
        network, x, sigma, options = rest
        wanted = comfy.samplers.calc_cond_batch(network, [positive, None], x, sigma, options)[0]
        unwanted = comfy.samplers.calc_cond_batch(network, [None, negative], x, sigma, options)[1]
        return [wanted, unwanted]

    model.set_model_sampler_calc_cond_batch_function(one_by_one)
    actual, forwards = sample(model)
    assert forwards == [[0], [1]] * STEPS
    assert relative_error(actual, sample(guided(patcher))[0]) < 1e-5
