"""Sound steered by a held picture, through stock nodes: samplers, LoRAs, precisions, and what is
refused.
"""

import pytest
import torch
from goldens import relative_error
from lora_files import LAYERS, write_lora
from small_graph import output, parts

pytestmark = pytest.mark.graph


def steered(graph, model, strength=1.0):
    return graph.add("OviSteer", model=model, strength=strength, until=0.6, steered_steps=0)


def held_picture(graph):
    """A latent whose picture is another clip's, and held."""
    made = graph.sample(graph.model(), graph.text(), seed=3)
    video = graph.add("OviSeparateLatent", latent=made)
    hold = graph.add("SolidMask", value=0.0, width=64, height=64)
    held = graph.add("SetLatentNoiseMask", samples=video, mask=hold)
    return graph.add("OviConcatLatent", video_latent=held, audio_latent=output(video, 1))


def samplers(graph, model, text, latent):
    """The same two steps of Euler by each stock sampler."""
    sigmas = graph.add("BasicScheduler", model=model, scheduler="simple", steps=2, denoise=1.0)
    settings = {"steps": 2, "end_at_step": 2}
    return [
        graph.sample(model, text, latent_image=latent),
        graph.sample_advanced(model, text, latent, **settings),
        graph.sample_custom(model, text, latent, sigmas),
    ]


def sounds(result, links):
    return [parts(result.value(link[0]))[1] for link in links]


def test_every_stock_sampler_is_steered_alike(run, graph):
    model, text, latent = graph.model(), graph.text(), held_picture(graph)
    links = samplers(graph, steered(graph, model), text, latent)
    links += [graph.sample(steered(graph, model, strength=0.0), text, latent_image=latent)]
    links += [graph.sample(model, text, latent_image=latent)]
    graph.show(*links)
    result = run(graph)
    *alike, off, plain = sounds(result, links)
    for sound in alike:
        assert relative_error(sound, alike[0]) < 1e-5
    assert torch.equal(off, plain)
    assert relative_error(alike[0], plain) > 1e-2


def test_a_lora_of_a_hook_is_steered_as_one_of_a_loader(run, graph, small_files):
    """Core patches the weights of a hook between the prompts, in inference mode."""
    write_lora(small_files / "loras" / "steered.safetensors", LAYERS, "diffusers")
    model, text, latent = graph.model(), graph.text(), held_picture(graph)
    name = {"lora_name": "steered.safetensors", "strength_model": 1.0}
    loaded = graph.add("LoraLoaderModelOnly", model=model, **name)
    hook = graph.add("CreateHookLoraModelOnly", **name)
    hooked = graph.add(
        "PairConditioningSetProperties",
        positive_NEW=text,
        negative_NEW=output(text, 1),
        strength=1.0,
        set_cond_area="default",
        hooks=hook,
    )
    links = [
        graph.sample(steered(graph, loaded), text, latent_image=latent),
        graph.sample(steered(graph, model), hooked, latent_image=latent),
        graph.sample(steered(graph, model), text, latent_image=latent),
    ]
    graph.show(*links)
    by_loader, by_hook, without = sounds(run(graph), links)
    assert relative_error(by_hook, by_loader) < 1e-4
    assert relative_error(without, by_loader) > 1e-3


@pytest.mark.parametrize(("dtype", "error"), [("bf16", 0.1), ("fp16", 0.02)])
def test_half_precision_is_steered_too(run, graph, dtype, error):
    model, text, latent = graph.model(), graph.text(), held_picture(graph)
    half = graph.add("ModelComputeDtype", model=model, dtype=dtype)
    links = [graph.sample(steered(graph, its), text, latent_image=latent) for its in (model, half)]
    graph.show(*links)
    exact, rounded = sounds(run(graph), links)
    assert 0 < relative_error(rounded, exact) < error


def test_easycache_is_refused_in_words(runtime, graph, model_folder):  # noqa: ARG001
    settings = {"reuse_threshold": 0.2, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
    cached = graph.add("EasyCache", model=steered(graph, graph.model()), **settings)
    graph.show(graph.sample(cached, latent_image=held_picture(graph)))
    result = runtime.run(graph.prompt)
    assert "'Ovi Steer' does not go with this workflow: 'EasyCache'" in result.error
