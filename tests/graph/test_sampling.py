"""Stock samplers, schedules and guiders on Ovi's latent of picture and sound, run by ComfyUI."""

import re
from itertools import pairwise

import comfy.samplers
import numpy as np
import pytest
import torch
from comfyui_ovi.ovi_model import core_facts
from goldens import relative_error
from small_graph import CountForwards, output, parts

pytestmark = pytest.mark.graph


def both(result, *links):
    """The sampled latents of these nodes, each as one row of numbers."""
    rows = []
    for link in links:
        video, audio = parts(result.values(link[0])[link[1]][0])
        rows.append(torch.cat([video.flatten(), audio.flatten()]))
    return rows


def euler_by_hand(patcher, positive, negative, seed, steps, cfg):
    """What stock euler must give for an empty clip of 9 frames at 64 x 64, in plain steps on both
    streams.
    """
    noise = torch.Generator().manual_seed(seed)
    streams = [torch.randn(shape, generator=noise) for shape in ((1, 48, 3, 4, 4), (1, 20, 10))]
    sigmas = comfy.samplers.calculate_sigmas(
        patcher.get_model_object("model_sampling"), "simple", steps
    )
    network = patcher.model.diffusion_model.to(torch.float32)
    for sigma, following in pairwise(sigmas):
        time = (sigma * 1000).reshape(1)
        predictions = []
        for text, options in (positive[0], negative[0]):
            predictions.append(
                network(streams, time, text, audio_context=options.get("audio_context", text))
            )
        for stream, wanted, unwanted in zip(streams, *predictions, strict=True):
            stream += (following - sigma) * (unwanted + cfg * (wanted - unwanted))
    return patcher.model.latent_format.process_out(streams[0]), streams[1]


def test_ksampler_euler_equals_euler_by_hand(run, graph):
    model, text = graph.model(), graph.text()
    sampled = graph.sample(model, text, seed=11, steps=3)
    graph.show(sampled)
    result = run(graph)
    video, audio = parts(result.value(sampled[0]))
    assert video.shape == (1, 48, 3, 4, 4)
    assert audio.shape == (1, 20, 10)
    with torch.no_grad():
        expected = euler_by_hand(
            result.value(model[0]), result.value(text[0]), result.value(text[0], 1), 11, 3, 4.0
        )
    assert relative_error(video, expected[0]) < 1e-5
    assert relative_error(audio, expected[1]) < 1e-5


def test_ksampler_uni_pc_nears_what_euler_nears(run, graph):
    model, text = graph.model(), graph.text()
    euler = graph.sample(model, text, steps=24, cfg=1.0)
    coarse, fine = (
        graph.sample(model, text, steps=steps, cfg=1.0, sampler_name="uni_pc") for steps in (6, 14)
    )
    other_seed = graph.sample(model, text, steps=6, cfg=1.0, sampler_name="uni_pc", seed=8)
    graph.show(euler, coarse, fine, other_seed)
    expected, *actual, elsewhere = both(run(graph), euler, coarse, fine, other_seed)
    far, near = (relative_error(latent, expected) for latent in actual)
    assert 1e-4 < near < far < 0.5
    assert relative_error(elsewhere, expected) > 1


def test_two_stages_equal_one(run, graph):
    model, text, latent = graph.model(), graph.text(), graph.latent()
    whole = graph.sample_advanced(model, text, latent)
    first = graph.sample_advanced(
        model, text, latent, end_at_step=2, return_with_leftover_noise="enable"
    )
    second = graph.sample_advanced(model, text, first, add_noise="disable", start_at_step=2)
    graph.show(whole, second)
    expected, halfway, actual = both(run(graph), whole, first, second)
    assert relative_error(actual, expected) < 1e-5
    assert relative_error(halfway, expected) > 0.1


def test_sampler_custom_advanced_gives_two_nested_latents(run, graph):
    model, text, latent = graph.model(), graph.text(), graph.latent()
    sigmas = graph.add("BasicScheduler", model=model, scheduler="simple", steps=2, denoise=1.0)
    custom = graph.sample_custom(model, text, latent, sigmas)
    plain = graph.sample(model, text, latent_image=latent)
    graph.show(custom, plain)
    actual, denoised, expected = both(run(graph), custom, output(custom, 1), plain)
    assert relative_error(actual, expected) < 1e-6
    assert relative_error(denoised, actual) < 1e-5


def test_disable_noise_carries_a_latent_on(run, graph):
    model, text, latent = graph.model(), graph.text(), graph.latent()
    sigmas = graph.add("BasicScheduler", model=model, scheduler="simple", steps=4, denoise=1.0)
    halves = graph.add("SplitSigmas", sigmas=sigmas, step=2)
    whole = graph.sample_custom(model, text, latent, sigmas)
    first = graph.sample_custom(model, text, latent, halves)
    second = graph.sample_custom(
        model, text, first, output(halves, 1), noise=graph.add("DisableNoise")
    )
    graph.show(whole, second)
    expected, actual = both(run(graph), whole, second)
    assert relative_error(actual, expected) < 1e-5


def test_ovi_scheduler_and_sampler_serve_stock_nodes(run, graph):
    model, text, latent = graph.model(), graph.text(), graph.latent()
    sigmas = graph.add("OviScheduler", steps=8, shift=5.0, denoise=1.0)
    ours = graph.sample_custom(model, text, latent, sigmas, sampler=graph.add("OviSamplerUniPC"))
    euler = graph.sample_custom(model, text, latent, sigmas)
    later = graph.add("OviScheduler", steps=4, shift=5.0, denoise=0.5)
    graph.show(ours, euler, later)
    result = run(graph)
    actual, expected = both(result, ours, euler)
    assert 1e-4 < relative_error(actual, expected) < 0.5
    assert torch.equal(result.value(later[0]), result.value(sigmas[0])[-5:])


def test_shift_moves_the_schedule(run, graph):
    model, text = graph.model(), graph.text()
    shifted = graph.add("ModelSamplingSD3", model=model, shift=2.0)
    links = [
        graph.add("BasicScheduler", model=m, scheduler="simple", steps=4, denoise=1.0)
        for m in (model, shifted)
    ]
    samples = [graph.sample(m, text, steps=4) for m in (model, shifted)]
    graph.show(*links, *samples)
    result = run(graph)
    for link, shift in zip(links, (5.0, 2.0), strict=True):
        even = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
        expected = shift * even / (1 + (shift - 1) * even)
        torch.testing.assert_close(result.value(link[0]), expected, rtol=0, atol=1e-6)
    default, other = both(result, *samples)
    assert relative_error(other, default) > 0.01


def guided(graph, model, audio_cfg, skip_layer=-1, start=0.0, end=1.0):
    inputs = {
        "audio_cfg": audio_cfg,
        "skip_layer": skip_layer,
        "start_percent": start,
        "end_percent": end,
    }
    return graph.add("OviGuidance", model=model, **inputs)


def test_one_scale_for_both_is_plain_guidance(run, graph):
    model, text = graph.model(), graph.text()
    plain = graph.sample(model, text)
    same = graph.sample(guided(graph, model, 4.0), text)
    graph.show(plain, same)
    expected, actual = both(run(graph), plain, same)
    assert relative_error(actual, expected) < 1e-5


def test_each_scale_guides_its_stream(run, graph):
    """One step from noise: the picture depends on cfg alone, the sound on audio_cfg alone."""
    model, text = graph.model(), graph.text()
    cases = [(4.0, 3.0), (4.0, 1.0), (2.0, 3.0), (1.0, 3.0)]
    links = [
        graph.sample(guided(graph, model, sound), text, steps=1, cfg=picture)
        for picture, sound in cases
    ]
    graph.show(*links)
    result = run(graph)
    (video, audio), (video_2, audio_2), (video_3, audio_3), (video_4, audio_4) = (
        parts(result.value(link[0])) for link in links
    )
    torch.testing.assert_close(video_2, video, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(audio_3, audio, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(audio_4, audio, rtol=1e-5, atol=1e-5)
    assert relative_error(audio_2, audio) > 0.01
    assert relative_error(video_3, video) > 0.01
    # Guidance is linear in its scale: v(4) - v(1) = 3 (v(2) - v(1)).
    torch.testing.assert_close(video - video_4, 3 * (video_3 - video_4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("cfg", "audio_cfg", "skipped", "expected"),
    [
        (1.0, 1.0, -1, [[0]] * 3),
        (1.0, 3.0, -1, [[1, 0]] * 3),
        (4.0, 1.0, -1, [[1, 0]] * 3),
        (4.0, 3.0, 2, [[1, 0]] * 3),
    ],
)
def test_each_step_is_one_call_of_the_model(run, graph, cfg, audio_cfg, skipped, expected):
    counted = graph.add("CountForwards", model=graph.model())
    graph.show(graph.sample(guided(graph, counted, audio_cfg, skipped), steps=3, cfg=cfg))
    run(graph)
    assert CountForwards.calls == expected


rescale_takes_sound = pytest.mark.skipif(
    not core_facts.NESTED_WINDOWS, reason="this core's RescaleCFG takes pictures only"
)


@pytest.mark.parametrize(
    ("node", "settings"),
    [
        ("HalvedGuidance", {}),
        pytest.param("RescaleCFG", {"multiplier": 0.7}, marks=rescale_takes_sound),
    ],
)
def test_a_cfg_function_of_another_node_goes_on_to_guide_the_picture(run, graph, node, settings):
    model, text = graph.model(), graph.text()
    other = graph.add(node, model=model, **settings)
    links = [
        graph.sample(m, text, steps=1)
        for m in (other, guided(graph, other, 3.0), guided(graph, model, 3.0))
    ]
    graph.show(*links)
    result = run(graph)
    (video, _), (actual_video, actual_audio), (other_video, audio) = (
        parts(result.value(link[0])) for link in links
    )
    torch.testing.assert_close(actual_video, video, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual_audio, audio, rtol=1e-5, atol=1e-5)
    assert relative_error(other_video, video) > 1e-3


def test_skip_layer_equals_the_stock_node(run, graph):
    model, text = graph.model(), graph.text()
    slg = {"double_layers": "2", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0}
    stock = graph.add("SkipLayerGuidanceDiTSimple", model=model, **slg)
    models = (
        model,
        stock,
        guided(graph, model, 4.0, 2),
        guided(graph, model, 4.0, 2, start=0.0, end=0.001),
    )
    links = [graph.sample(m, text, steps=3) for m in models]
    graph.show(*links)
    plain, expected, actual, first_step_only = both(run(graph), *links)
    assert relative_error(actual, expected) < 1e-3
    assert relative_error(actual, plain) > 1e-2
    assert relative_error(first_step_only, actual) > 1e-3
    assert relative_error(first_step_only, plain) > 1e-3


def test_negative_prompts_reach_their_own_stream(run, graph):
    """One step, no read between the streams is left out, so a changed negative moves its own stream
    most.
    """
    model, clip = graph.model(), graph.clip()
    texts = [
        graph.text(clip),
        graph.text(clip, video_negative="grain"),
        graph.text(clip, audio_negative="hiss"),
    ]
    links = [graph.sample(model, text, steps=1) for text in texts]
    graph.show(*links)
    result = run(graph)
    (video, audio), (video_1, audio_1), (video_2, audio_2) = (
        parts(result.value(link[0])) for link in links
    )
    assert relative_error(video_1, video) > relative_error(video_2, video) > 0
    assert relative_error(audio_2, audio) > relative_error(audio_1, audio) > 0


def test_previews_show_the_picture_at_every_step(run, graph):
    graph.show(graph.sample(latent_image=graph.latent(width=128), steps=3, seed=21))
    result = run(graph, preview="latent2rgb")
    previews = [np.asarray(data["image"]) for data in result.named("preview")]
    assert [image.shape for image in previews] == [(4, 8, 3)] * 3
    assert all(image.std() > 1 for image in previews)
    assert not np.array_equal(previews[0], previews[-1])


def test_the_log_tells_steps_and_seconds_a_step(run, graph, capsys):
    """ComfyUI's own samplers do; the solver of the reference does as they do."""
    sigmas = graph.add("OviScheduler", steps=3, shift=5.0, denoise=1.0)
    inputs = graph.model(), graph.text(), graph.latent(), sigmas
    graph.show(graph.sample_custom(*inputs, sampler=graph.add("OviSamplerUniPC")))
    run(graph)
    assert re.search(r"3/3 \[.*(it/s|s/it)", capsys.readouterr().err)


@pytest.mark.parametrize("sampler_name", comfy.samplers.KSampler.SAMPLERS)
def test_every_stock_sampler_takes_both_streams(run, graph, sampler_name):
    sampled = graph.sample(steps=3, sampler_name=sampler_name)
    graph.show(sampled)
    video, audio = parts(run(graph).value(sampled[0]))
    assert video.isfinite().all()
    assert audio.isfinite().all()
    assert video.std() > 0.01
    assert audio.std() > 0.01
