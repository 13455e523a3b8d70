"""A clip in blocks, in workflows: what runs, what is shown, and what is refused in words."""

import pytest
import torch
from small_graph import CountForwards, output, parts

pytestmark = pytest.mark.graph

LENGTH, FRAMES = 17, 5  # frames; latent frames: two blocks of 3 and 2


def streamed(graph, latent, keep="on the card", **inputs):
    text = graph.text()
    model = graph.add("CountForwards", model=graph.model())
    sampler = graph.add("OviStreamingSampler", frames_per_block=3, keep=keep)
    return graph.add(
        "SamplerCustomAdvanced",
        guider=graph.add("BasicGuider", model=model, conditioning=text),
        sigmas=graph.add(
            "BasicScheduler", model=graph.model(), scheduler="simple", steps=4, denoise=1.0
        ),
        latent_image=latent,
        sampler=sampler,
        noise=graph.add("RandomNoise", noise_seed=7),
        **inputs,
    )


def test_two_blocks_are_four_forwards_each_and_one_between(run, graph):
    """And what samplers hand on as the last prediction is the clip."""
    latent = graph.latent(length=LENGTH, batch_size=2)
    links = [streamed(graph, latent, keep) for keep in ("on the card", "on the card, fp8")]
    graph.show(*links)
    result = run(graph)
    assert CountForwards.calls == [[0]] * 9 * 2
    exact, rounded = (parts(result.value(link[0])) for link in links)
    predicted = parts(result.value(*output(links[0], 1)))
    for stream in range(2):
        assert len(exact[stream]) == 2
        assert torch.equal(exact[stream], predicted[stream])
        error = (exact[stream] - rounded[stream]).norm() / exact[stream].norm()
        assert 0 < error < 0.2
    assert exact[0].shape[2] == FRAMES


def test_the_levels_of_four_simple_steps_are_the_reference_s(run, graph):
    link = graph.add(
        "BasicScheduler", model=graph.model(), scheduler="simple", steps=4, denoise=1.0
    )
    graph.show(link)
    expected = torch.tensor([1.0, 0.9375, 0.8333333, 0.625, 0.0])
    torch.testing.assert_close(run(graph).value(link[0]), expected)


def test_a_held_latent_is_refused(runtime, graph, stand_ins, model_folder):  # noqa: ARG001
    latent = graph.latent(length=LENGTH)
    held = graph.add("OviTimeMask", latent=latent, start=0.0, end=0.4, streams="picture", ramp=0.0)
    graph.show(streamed(graph, held))
    result = runtime.run(graph.prompt)
    assert "'Ovi Streaming Sampler' makes all of a clip" in result.error
