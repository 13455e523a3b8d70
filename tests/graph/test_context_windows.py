"""Context windows: cut through picture and sound alike where the core can, refused in words where
it cannot.
"""

import pytest
import torch
from comfyui_ovi.ovi_model import core_facts
from small_graph import WINDOWS


def windows(graph, length, **settings):
    return graph.add(
        "WanContextWindowsManual",
        model=graph.model(),
        context_length=length,
        **WINDOWS | settings,
    )


def windowed(graph, length, **settings):
    return graph.sample(windows(graph, length, **settings), latent_image=graph.latent(length=17))


cuts_windows = pytest.mark.skipif(
    not core_facts.NESTED_WINDOWS, reason="this core cannot cut windows out of nested latents"
)


@pytest.mark.skipif(core_facts.NESTED_WINDOWS, reason="this core cuts windows itself")
def test_an_older_core_says_what_to_do(graph, runtime, model_folder):  # noqa: ARG001
    graph.show(windowed(graph, 9))
    result = runtime.run(graph.prompt)
    assert "Update ComfyUI (0.33 does both), or remove the context windows node" in result.error


@cuts_windows
def test_windows_cover_picture_and_sound(graph, run):
    whole = graph.sample(latent_image=graph.latent(length=17))
    one, many = windowed(graph, 17), windowed(graph, 9)
    graph.show(whole, one, many)
    result = run(graph)
    whole, one, many = (result.value(link[0])["samples"].unbind() for link in (whole, one, many))
    for stream in range(2):
        assert torch.allclose(one[stream], whole[stream], atol=1e-5)
        assert many[stream].shape == whole[stream].shape
        assert torch.isfinite(many[stream]).all()
        assert not torch.allclose(many[stream], whole[stream], atol=1e-3)
        closeness = torch.nn.functional.cosine_similarity(
            many[stream].flatten(), whole[stream].flatten(), dim=0
        )
        assert closeness > 0.9


@cuts_windows
def test_each_clip_of_a_batch_is_the_clip_made_alone(graph, run):
    model, text = windows(graph, 9), graph.text()
    sigmas = graph.add("OviScheduler", steps=2, shift=5.0, denoise=1.0)
    noise = graph.add("SameNoiseForEveryClip", seed=5)
    links = [
        graph.sample_custom(
            model, text, graph.latent(length=17, batch_size=clips), sigmas, noise=noise
        )
        for clips in (1, 2)
    ]
    graph.show(*links)
    result = run(graph)
    alone, both = (result.value(link[0])["samples"].unbind() for link in links)
    for stream in range(2):
        assert len(both[stream]) == 2
        assert torch.allclose(both[stream], alone[stream].expand_as(both[stream]), atol=1e-5)


@cuts_windows
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"context_schedule": "looped_uniform", "closed_loop": True}, "turns around"),
        ({"context_schedule": "standard_uniform", "context_stride": 2}, "leaves frames out"),
    ],
)
def test_windows_that_sound_cannot_follow(graph, runtime, model_folder, settings, sentence):  # noqa: ARG001
    graph.show(windowed(graph, 9, **settings))
    assert sentence in runtime.run(graph.prompt).error


@cuts_windows
def test_windows_apart_are_refused_without_an_anchor(graph, runtime, model_folder):  # noqa: ARG001
    settings = {
        name: WINDOWS[name]
        for name in ("context_stride", "closed_loop", "fuse_method", "freenoise")
    }
    model = graph.add(
        "ContextWindowsManual",
        model=graph.model(),
        context_length=3,
        context_overlap=0,
        context_schedule="batched",
        dim=2,
        causal_window_fix=False,
        cond_retain_index_list="",
        latent_retain_index_list="",
        split_conds_to_windows=False,
        **settings,
    )
    graph.show(graph.sample(model, latent_image=graph.latent(length=17)))
    assert "0.17 s of sound" in runtime.run(graph.prompt).error
