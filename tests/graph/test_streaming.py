"""A clip in blocks, in workflows: what runs, what is shown, and what is refused in words."""

import av
import pytest
import torch
from small_graph import CountForwards, output, parts

pytestmark = pytest.mark.graph

LENGTH, FRAMES = 17, 5  # frames; latent frames: two blocks of 3 and 2


def streamed(graph, latent, keep="on the card", sampler=None, **inputs):
    """Add a clip in blocks; sampler: further inputs of the node."""
    text = graph.text()
    model = graph.add("CountForwards", model=graph.model())
    sampler = graph.add("OviStreamingSampler", frames_per_block=3, keep=keep, **(sampler or {}))
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


def sampler_of(graph, link):
    """The node of the sampler that makes what a link gives."""
    return graph.prompt[link[0]]["inputs"]["sampler"][0]


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


def test_levels_that_do_not_go_down_to_nothing(runtime):
    sample = runtime.package.ovi_model.sample.streaming.sample_streaming
    noise = torch.randn(1, 1, 8)
    assert sample(None, noise, torch.tensor([1.0])) is noise, "no step, as with core's samplers"
    with pytest.raises(ValueError, match=r"must end in 0, and these end in 0\.500"):
        sample(None, noise, torch.tensor([1.0, 0.5]))
    with pytest.raises(AttributeError, match="inner_model"):  # 0.001 passes, and the run begins
        sample(None, noise, torch.tensor([1.0, 0.001]))


@pytest.mark.parametrize("has_sound", [True, False], ids=["sound", "silent"])
def test_finished_blocks_are_shown_while_the_next_is_made(runtime, run, graph, has_sound):
    """Three blocks: the first is on the page before the third begins, both before the sampler is
    done; and the film grows.
    """
    sampler = {"vae": graph.video_vae(), **({"audio_vae": graph.audio_vae()} if has_sound else {})}
    latent = graph.latent(length=29)
    link = streamed(graph, latent, sampler=sampler)
    graph.show(link)
    films = []

    def note(event, data):
        shown = (data.get("output") or {}).get("images") if event == "executed" else None
        if shown:
            path = runtime.base / "temp" / shown[0]["filename"]
            films.append((len(CountForwards.calls), data, path))

    made = parts(run(graph, on_event=note).value(link[0]))
    assert len(CountForwards.calls) == 4 + 1 + 4 + 1 + 4
    (first, _, _), (second, _, _) = films
    assert 4 <= first <= 4 + 1 + 4
    assert 4 + 1 + 4 <= second <= 14
    lengths = []
    for _, data, path in films:
        assert data["node"] == data["display_node"] == sampler_of(graph, link)
        with av.open(str(path)) as file:
            assert len(file.streams.audio) == has_sound
            lengths.append(sum(1 for _ in file.decode(file.streams.video[0])))
    assert lengths == [9, 21]

    plain = streamed(graph, latent)
    graph.show(plain)
    without = parts(run(graph).value(plain[0]))
    assert all(torch.equal(one, other) for one, other in zip(made, without, strict=True))


FAULTS = {
    "no vae": (["audio_vae"], "'audio_vae' of Ovi Streaming Sampler is connected, and 'vae' is"),
    "sound for picture": (["vae"], "'vae' of Ovi Streaming Sampler is an audio VAE"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_vae_is_named(runtime, graph, stand_ins, model_folder, fault):  # noqa: ARG001
    names, message = FAULTS[fault]
    sampler = dict.fromkeys(names, graph.audio_vae())
    graph.show(streamed(graph, graph.latent(length=LENGTH), sampler=sampler))
    assert message in runtime.run(graph.prompt).error


def test_a_film_that_cannot_be_shown_costs_no_clip(run, graph, monkeypatch, caplog, runtime):
    """The disk is full: the log says so once, and the clip is made."""

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runtime.package.nodes.streaming, "write_for_page", fail)
    link = streamed(graph, graph.latent(length=33), sampler={"vae": graph.video_vae()})
    graph.show(link)
    parts(run(graph).value(link[0]))
    said = [text for text in caplog.messages if "shown no more" in text]
    assert len(said) == 1
    assert "No space left on device" in said[0]
