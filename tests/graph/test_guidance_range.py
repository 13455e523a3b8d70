"""Guidance limited to a part of the schedule, in workflows: what runs, what comes out, and beside
which other nodes.
"""

import pytest
import torch
from comfyui_ovi.ovi_model import core_facts
from goldens import relative_error
from small_graph import WINDOWS, CountForwards, output, sampled

pytestmark = pytest.mark.graph

STEPS = 4
BOTH, POSITIVE = [1, 0], [0]
EARLY = {"cfg_start_percent": 0.0, "cfg_end_percent": 0.4}


def guided(graph, model, audio_cfg=3.0, **cfg_range):
    inputs = {"audio_cfg": audio_cfg, "skip_layer": 2, "start_percent": 0.0, "end_percent": 1.0}
    return graph.add("OviGuidance", model=model, **inputs, **cfg_range)


def counted(graph, **cfg_range):
    return guided(graph, graph.add("CountForwards", model=graph.model()), **cfg_range)


def test_a_workflow_without_the_range_is_as_it_was(run, graph):
    text = graph.text()
    models = [
        guided(graph, graph.model()),
        guided(graph, graph.model(), cfg_start_percent=0.0, cfg_end_percent=1.0),
    ]
    links = [graph.sample(model, text) for model in models]
    graph.show(*links)
    before, now = sampled(run(graph), *links)
    assert torch.equal(now, before)


def test_ksampler_guides_within_the_range_alone(run, graph):
    """Two of four steps guided and two not are a guided sampler followed by one with both scales at
    1.
    """
    text, latent = graph.text(), graph.latent()
    limited = graph.sample(counted(graph, **EARLY), text, latent_image=latent, steps=STEPS)
    graph.show(limited)
    (actual,) = sampled(run(graph), limited)
    assert CountForwards.calls == [BOTH] * 2 + [POSITIVE] * 2

    model = graph.model()
    ends = {"end_at_step": 2, "return_with_leftover_noise": "enable"}
    first = graph.sample_advanced(guided(graph, model), text, latent, **ends)
    plain = guided(graph, model, audio_cfg=1.0)
    second = graph.sample_advanced(
        plain, text, first, add_noise="disable", start_at_step=2, cfg=1.0
    )
    throughout = graph.sample(guided(graph, model), text, latent_image=latent, steps=STEPS)
    graph.show(second, throughout)
    expected, guided_throughout = sampled(run(graph), second, throughout)
    assert relative_error(actual, expected) < 1e-5
    assert relative_error(guided_throughout, expected) > 1e-2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_cfg_guider_and_our_sampler_guide_within_the_range_alone(run, graph, batch_size):
    sigmas = graph.add("OviScheduler", steps=STEPS, shift=5.0, denoise=1.0)
    sampler = graph.add("OviSamplerUniPC")
    middle = counted(graph, cfg_start_percent=0.25, cfg_end_percent=0.75)
    graph.show(
        graph.sample_custom(
            middle, graph.text(), graph.latent(batch_size=batch_size), sigmas, sampler=sampler
        )
    )
    run(graph)
    assert CountForwards.calls == [POSITIVE, BOTH, BOTH, POSITIVE]


def sampled_by(graph, guider):
    sigmas = graph.add("OviScheduler", steps=STEPS, shift=5.0, denoise=1.0)
    inputs = {
        "noise": graph.add("RandomNoise", noise_seed=7),
        "sampler": graph.add("OviSamplerUniPC"),
    }
    return graph.add(
        "SamplerCustomAdvanced", guider=guider, sigmas=sigmas, latent_image=graph.latent(), **inputs
    )


def test_a_guider_with_three_prompts_goes_on_to_guide_with_every_layer(run, graph):
    text = graph.text()
    prompts = {
        "cond1": text,
        "cond2": graph.text(prompt="A dog. Audio: it barks"),
        "negative": output(text, 1),
    }
    prompts |= {"cfg_conds": 4.0, "cfg_cond2_negative": 3.0, "style": "regular"}
    models = [counted(graph, **EARLY), graph.model()]
    links = [
        sampled_by(graph, graph.add("DualCFGGuider", model=model, **prompts)) for model in models
    ]
    graph.show(*links)
    actual, expected = sampled(run(graph), *links)
    assert [sorted(kinds) for kinds in CountForwards.calls] == [[0, 1, 2]] * STEPS
    assert relative_error(actual, expected) < 1e-5  # audio_cfg is cfg_cond2_negative here


def test_a_guider_with_one_prompt_makes_what_it_made_without_guidance(run, graph):
    text = graph.text()
    models = [counted(graph), counted(graph, **EARLY), graph.model()]
    links = [
        sampled_by(graph, graph.add("BasicGuider", model=model, conditioning=text))
        for model in models
    ]
    graph.show(*links)
    *guided_ones, expected = sampled(run(graph), *links)
    assert CountForwards.calls == [POSITIVE] * 2 * STEPS
    for actual in guided_ones:
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize(("node", "threshold"), [("EasyCache", 1.5), ("LazyCache", 0.8)])
def test_a_cache_and_the_range_both_save(run, graph, node, threshold):
    settings = {
        "reuse_threshold": threshold,
        "start_percent": 0.15,
        "end_percent": 0.95,
        "verbose": False,
    }
    text, steps = graph.text(), 12
    cached = graph.add(node, model=graph.model(), **settings)
    limited = guided(graph, graph.add("CountForwards", model=cached), **EARLY)
    link = graph.sample(limited, text, steps=steps)
    graph.show(link)
    (actual,) = sampled(run(graph), link)
    calls = list(CountForwards.calls)
    assert 3 <= len(calls) < steps
    assert BOTH in calls
    assert POSITIVE in calls

    exact = graph.sample(guided(graph, graph.model(), **EARLY), text, steps=steps)
    graph.show(exact)
    (expected,) = sampled(run(graph), exact)
    assert 0 < relative_error(actual, expected) < 0.5


@pytest.mark.skipif(
    not core_facts.NESTED_WINDOWS, reason="this core cannot cut windows out of nested latents"
)
def test_context_windows_keep_to_the_range(run, graph):
    model = graph.add("CountForwards", model=graph.model())
    windowed = graph.add("WanContextWindowsManual", model=model, context_length=9, **WINDOWS)
    graph.show(
        graph.sample(
            guided(graph, windowed, **EARLY), latent_image=graph.latent(length=17), steps=2
        )
    )
    run(graph)
    windows = len(CountForwards.calls) // 2
    assert windows > 1
    assert CountForwards.calls == [BOTH] * windows + [POSITIVE] * windows


def test_a_range_that_ends_before_it_starts_is_refused(runtime, graph, model_folder):  # noqa: ARG001
    graph.show(guided(graph, graph.model(), cfg_start_percent=0.5, cfg_end_percent=0.25))
    result = runtime.run(graph.prompt)
    assert "cfg_start_percent is 0.5 and cfg_end_percent 0.25" in result.error
    assert "Choose a start that is not above the end" in result.error
