"""Held parts of a latent, batches and interrupts, through every node from latent to file."""

import pytest
import torch
from comfy.ldm.mmaudio.vae import vae as mel_vae
from comfy.taesd import taehv
from goldens import relative_error
from media import decode
from small_graph import Graph, output, parts

pytestmark = pytest.mark.graph


def mask(graph, width, height, held_columns):
    """A mask of 1, to be made anew, but for its first columns, 0, which are held."""
    whole = graph.add("SolidMask", value=1.0, width=width, height=height)
    held = graph.add("SolidMask", value=0.0, width=held_columns, height=height)
    return graph.add(
        "MaskComposite", destination=whole, source=held, x=0, y=0, operation="multiply"
    )


def sampled_then_separated(graph, model, text):
    """A finished latent of picture and sound, as two links."""
    video = graph.add("OviSeparateLatent", latent=graph.sample(model, text, seed=3))
    return video, output(video, 1)


def masked(graph, latent, width, height, held_columns):
    return graph.add(
        "SetLatentNoiseMask", samples=latent, mask=mask(graph, width, height, held_columns)
    )


def test_the_held_side_of_a_picture_stays(run, graph):
    model, text = graph.model(), graph.text()
    video, audio = sampled_then_separated(graph, model, text)
    held = masked(graph, video, width=4, height=4, held_columns=2)
    together = graph.add("OviConcatLatent", video_latent=held, audio_latent=audio)
    again = graph.sample(model, text, latent_image=together, seed=4)
    graph.show(again)
    result = run(graph)
    before, after = result.value(video[0])["samples"], parts(result.value(again[0]))
    torch.testing.assert_close(after[0][..., :2], before[..., :2], rtol=1e-4, atol=1e-4)
    assert relative_error(after[0][..., 2:], before[..., 2:]) > 0.1
    assert relative_error(after[1], result.value(video[0], 1)["samples"]) > 0.1


@pytest.mark.parametrize(("width", "height", "held_columns"), [(10, 1, 4), (500, 64, 200)])
def test_a_held_sound_stays(run, graph, width, height, held_columns):
    """Ten steps of sound, the first four held by a mask of any size; the picture is made anew."""
    model, text = graph.model(), graph.text()
    video, audio = sampled_then_separated(graph, model, text)
    held = masked(graph, audio, width, height, held_columns)
    together = graph.add("OviConcatLatent", video_latent=video, audio_latent=held)
    again = graph.sample(model, text, latent_image=together, seed=4)
    graph.show(again)
    result = run(graph)
    before, after = result.value(video[0], 1)["samples"], parts(result.value(again[0]))
    torch.testing.assert_close(after[1][..., :4], before[..., :4], rtol=1e-4, atol=1e-4)
    assert relative_error(after[1][..., 4:], before[..., 4:]) > 0.1
    assert relative_error(after[0], result.value(video[0])["samples"]) > 0.1


def test_a_mask_on_the_whole_latent_is_for_the_picture(run, graph):
    model, text = graph.model(), graph.text()
    first = graph.sample(model, text, seed=3)
    again = graph.sample(
        model, text, latent_image=masked(graph, first, 4, 4, held_columns=4), seed=4
    )
    graph.show(again)
    result = run(graph)
    (video, audio), (video_after, audio_after) = (
        parts(result.value(link[0])) for link in (first, again)
    )
    torch.testing.assert_close(video_after, video, rtol=1e-4, atol=1e-4)
    assert relative_error(audio_after, audio) > 0.1


def test_masks_survive_being_taken_apart_and_put_together(run, graph):
    """Separate and Concat undo each other, for a latent with a mask too."""
    model, text = graph.model(), graph.text()
    video, audio = sampled_then_separated(graph, model, text)
    held = masked(graph, video, width=4, height=4, held_columns=2)
    together = graph.add("OviConcatLatent", video_latent=held, audio_latent=audio)
    apart = graph.add("OviSeparateLatent", latent=together)
    again = graph.add("OviConcatLatent", video_latent=apart, audio_latent=output(apart, 1))
    graph.show(again)
    result = run(graph)
    for key in ("samples", "noise_mask"):
        for before, after in zip(
            result.value(together[0])[key].unbind(),
            result.value(again[0])[key].unbind(),
            strict=True,
        ):
            assert torch.equal(before, after)


def whole_way(graph, batch_size, folder, text=None):
    """Every node from the latent to the file; the links of sampler, decoder and saver."""
    settings = {"audio_cfg": 3.0, "skip_layer": 2, "start_percent": 0.0, "end_percent": 1.0}
    model, text = graph.add("OviGuidance", model=graph.model(), **settings), text or graph.text()
    sigmas = graph.add("OviScheduler", steps=2, shift=5.0, denoise=1.0)
    noise, sampler = graph.add("SameNoiseForEveryClip", seed=5), graph.add("OviSamplerUniPC")
    latent = graph.latent(batch_size=batch_size)
    sampled = graph.sample_custom(model, text, latent, sigmas, noise=noise, sampler=sampler)
    video = graph.add("OviSeparateLatent", latent=sampled)
    together = graph.add("OviConcatLatent", video_latent=video, audio_latent=output(video, 1))
    vaes = {"vae": graph.video_vae(), "audio_vae": graph.audio_vae()}
    images = graph.add("OviDecode", samples=together, tiling="auto", **vaes)
    settings = {"fps": 24.0, "filename_prefix": f"{folder}/Ovi", "format": "mp4", "quality": 80}
    saved = graph.add("OviSaveVideo", images=images, audio=output(images, 1), **settings)
    return sampled, images, saved


def test_each_clip_of_a_batch_is_the_clip_made_alone(run, runtime, graph):
    folders = {1: "alone", 2: "batch"}
    links = {size: whole_way(graph, size, folder) for size, folder in folders.items()}
    result = run(graph)
    alone, batch = (
        [
            parts(result.value(link[0])),
            result.value(images[0]),
            result.value(images[0], 1)["waveform"],
        ]
        for link, images, _ in links.values()
    )
    for one, two in zip(alone[0], batch[0], strict=True):
        torch.testing.assert_close(two, one.expand_as(two), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch[1], alone[1].repeat(2, 1, 1, 1), rtol=0, atol=1e-3)
    torch.testing.assert_close(batch[2], alone[2].expand_as(batch[2]), rtol=0, atol=1e-3)
    assert batch[1].shape[0] == 18

    files = [sorted((runtime.output / folder).iterdir()) for folder in folders.values()]
    assert [len(paths) for paths in files] == [1, 2]
    (expected,), clips = ([decode(path) for path in paths] for paths in files)
    for clip in clips:
        assert clip.frames.shape == (9, 64, 64, 3)
        assert abs(clip.frames - expected.frames).mean() < 0.01
        assert abs(clip.sound - expected.sound).max() < 1e-2


def test_clips_of_a_batch_differ_with_stock_noise(run, graph):
    link = graph.sample(latent_image=graph.latent(batch_size=2))
    graph.show(link)
    for stream in parts(run(graph).value(link[0])):
        assert relative_error(stream[0], stream[1]) > 0.5


@pytest.mark.parametrize(
    ("place", "event"),
    [
        ("SamplerCustomAdvanced", "progress"),
        ("OviDecode", "executing"),
        ("OviSaveVideo", "progress"),
    ],
)
def test_an_interrupt_stops_at_once_and_the_next_run_works(stand_ins, runtime, graph, place, event):  # noqa: ARG001
    folder = f"interrupted_{place}"
    sampled, _, _ = whole_way(graph, 1, folder)
    (node,) = [name for name, node in graph.prompt.items() if node["class_type"] == place]

    def stop(name, data):
        if name == event and data["node"] == node:
            runtime.interrupt()

    executor = runtime.new_executor()
    result = runtime.run(graph.prompt, on_event=stop, executor=executor)
    assert result.interrupted
    assert result.details["node_id"] == node
    assert len([data for data in result.named("progress") if data["node"] == node]) <= 1
    assert not [path for path in (runtime.output / folder).glob("*") if path.is_file()]

    result = runtime.run(graph.prompt, executor=executor)
    assert result.ok, result.error
    assert parts(result.value(sampled[0]))[0].shape == (1, 48, 3, 4, 4)
    assert [path.name for path in (runtime.output / folder).iterdir()] == ["Ovi_00001_.mp4"]


@pytest.mark.parametrize("part", ["picture", "sound"])
def test_an_interrupt_stops_a_decoder_midway(stand_ins, runtime, graph, monkeypatch, part):  # noqa: ARG001
    whole_way(graph, 1, f"decoder_{part}")
    decoder, layer = {"picture": (taehv.TAEHV, "decode"), "sound": (mel_vae.VAE, "decode")}[part]
    original, ended = getattr(decoder, layer), []

    def interrupted(self, *args, **kwargs):
        runtime.interrupt()
        made = original(self, *args, **kwargs)
        ended.append(part)
        return made

    monkeypatch.setattr(decoder, layer, interrupted)
    result = runtime.run(graph.prompt)
    assert result.interrupted
    assert not ended


def test_one_noise_seed_gives_one_result(runtime, model_folder):  # noqa: ARG001
    latents = []
    for _ in range(2):
        graph = Graph()
        link = graph.sample(seed=2**64 - 1)
        graph.show(link)
        result = runtime.run(graph.prompt)
        assert result.ok, result.error
        latents.append(torch.cat([stream.flatten() for stream in parts(result.value(link[0]))]))
    assert torch.equal(*latents)
