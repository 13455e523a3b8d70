"""Context windows: cut through picture and sound alike where the core can, refused in words where
it cannot.
"""

import pytest
import torch
from comfyui_ovi.ovi_model import core_facts
from small_graph import WINDOWS


def windowed(graph, length):
    model = graph.add(
        "WanContextWindowsManual", model=graph.model(), context_length=length, **WINDOWS
    )
    return graph.sample(model, latent_image=graph.latent(length=17))


@pytest.mark.skipif(core_facts.NESTED_WINDOWS, reason="this core cuts windows itself")
def test_an_older_core_says_what_to_do(graph, runtime, model_folder):  # noqa: ARG001
    graph.show(windowed(graph, 9))
    result = runtime.run(graph.prompt)
    assert "Update ComfyUI (0.33 does both), or remove the context windows node" in result.error


@pytest.mark.skipif(
    not core_facts.NESTED_WINDOWS, reason="this core cannot cut windows out of nested latents"
)
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
