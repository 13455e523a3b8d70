"""The holding nodes in ComfyUI's own executor: chained, sampled by its samplers, decoded, shown."""

from pathlib import Path

import pytest
import torch
from comfyui_ovi.ovi_model import core_facts
from comfyui_ovi.ovi_model.latent.hold import CLEAN, PICTURES, SOUND
from comfyui_ovi.ovi_model.load.video_vae import load_video_vae
from PIL import Image
from small_graph import WINDOWS, Graph, output, parts

pytestmark = pytest.mark.graph

LENGTH = 17  # frames


class Given:
    """Twenty frames, a sound in stereo of two seconds, and a video VAE that encodes."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
    RETURN_TYPES = ("IMAGE", "IMAGE", "AUDIO", "VAE")
    FUNCTION = "make"
    CATEGORY = "tests"
    folder: Path

    def make(self):
        draw = torch.Generator().manual_seed(2)
        frames = torch.rand(9, 64, 64, 3, generator=draw)
        waveform = torch.rand(1, 2, 88200, generator=draw) - 0.5
        vae = load_video_vae(self.folder / "wan22_encoder_small.safetensors")
        return frames, frames[:1], {"waveform": waveform, "sample_rate": 44100}, vae


@pytest.fixture(autouse=True)
def given(runtime, small_files, monkeypatch):
    Given.folder = small_files / "vae"
    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "Given", Given)


class Chain:
    """A graph whose latent holds frames of a span, the last frame, and a sound over a span."""

    def __init__(self, graph: Graph, batch_size: int = 1):
        self.graph = graph
        self.given = graph.add("Given")
        self.vae, self.audio_vae = output(self.given, 3), graph.audio_vae()
        how = {"unit": "frames", "strength": 1.0, "keyframe": "clean", "vae": self.vae}
        empty = graph.latent(length=LENGTH, batch_size=batch_size)
        self.frames = graph.add(
            "OviHoldPictures", latent=empty, images=self.given, start=0.0, **how
        )
        self.last = graph.add(
            "OviHoldPictures", latent=self.frames, images=output(self.given, 1), start=-1.0, **how
        )
        self.latent = graph.add(
            "OviHoldSound",
            latent=self.last,
            audio_vae=self.audio_vae,
            audio=output(self.given, 2),
            start=0.1,
            end=0.5,
        )

    def decode(self, samples, **inputs):
        vaes = {"vae": self.vae, "audio_vae": self.audio_vae}
        return self.graph.add("OviDecode", samples=samples, tiling="auto", **vaes, **inputs)


def masks_over_time(latent):
    video, audio = latent["noise_mask"].unbind()
    return video[0, 0, :, 0, 0].tolist(), audio[0, 0].tolist()


def test_what_is_held_goes_through_both_samplers_and_comes_back_as_given(run, graph):
    chain = Chain(graph, batch_size=2)
    model, text = graph.model(), graph.text()
    simple = graph.sample(model, text, latent_image=chain.latent)
    sigmas = graph.add("OviScheduler", steps=2, shift=5.0, denoise=1.0)
    custom = graph.sample_custom(
        model, text, chain.latent, sigmas, sampler=graph.add("OviSamplerUniPC")
    )
    decoded = [chain.decode(simple), chain.decode(custom, held="decoded")]
    graph.show(*decoded, output(custom, 1))
    result = run(graph)

    latent = result.value(chain.latent[0])
    picture, sound = masks_over_time(latent)
    assert picture == [0, 0, 0, 1, CLEAN]
    assert sound == [float(not 4 <= step < 15) for step in range(21)]
    for link in (simple, custom, output(custom, 1)):
        sampled = result.value(*link)
        assert sampled[PICTURES] is latent[PICTURES]
        assert sampled[SOUND] is latent[SOUND]
    for link in (simple, custom, output(custom, 1)):
        for made, held, mask in zip(
            parts(result.value(*link)), parts(latent), latent["noise_mask"].unbind(), strict=True
        ):
            is_held = (mask <= CLEAN).expand_as(made)
            assert torch.equal(made[is_held], held[is_held])
            assert not torch.isclose(made[~is_held], held[~is_held]).any(dim=0).all()

    frames, given = result.value(decoded[0][0]), result.value(chain.given[0])
    (original,) = latent[SOUND]
    for clip in frames.unflatten(0, (2, LENGTH)):
        assert torch.equal(clip[:9], given)
        assert torch.equal(clip[-1], given[0])
    heard = result.value(decoded[0][0], 1)["waveform"]
    inside = slice(5 * 512, 14 * 512)
    assert torch.equal(heard[..., inside], original.waveform[None, :, inside].expand(2, 1, -1))
    others = result.value(decoded[1][0]).unflatten(0, (2, LENGTH))
    assert not torch.isclose(others[:, :9], given, atol=1e-3).all(dim=-1).any(dim=1).all()


def test_the_nodes_show_what_is_held(run, runtime, graph):
    chain = Chain(graph)
    masked = graph.add(
        "OviTimeMask", latent=chain.latent, start=0.3, end=0.0, streams="sound", ramp=0.1
    )
    graph.show(masked)
    result = run(graph)
    pictures = []
    for link in (chain.frames, chain.last, chain.latent, masked):
        (shown,) = result.outputs[link[0]]["images"]
        assert shown["type"] == "temp"
        folder = Path(runtime.folder_paths.get_temp_directory()) / shown["subfolder"]
        pictures.append(Image.open(folder / shown["filename"]).convert("RGB"))
    held, clean = (0xE0, 0xA0, 0x30), (0x6F, 0xE0, 0xD6)

    def row(picture, y):
        return [picture.getpixel((x, y)) for x in range(84, 616)]

    first, last, sound, _ = pictures
    assert row(first, 60).count(held) > 0.4 * 532
    assert row(first, 110).count(held) == 0
    assert row(last, 60)[-20:].count(clean) == 20
    assert 0.4 * 532 < row(sound, 110).count(held) < 0.6 * 532


def test_nothing_outside_a_time_mask_changes(run, graph):
    """Of a finished clip, both streams, to the bit, with samplers of several kinds."""
    model, text = graph.model(), graph.text()
    clip = graph.sample(model, text, latent_image=graph.latent(length=LENGTH))
    masked = graph.add(
        "OviTimeMask", latent=clip, start=0.2, end=0.5, streams="picture and sound", ramp=0.0
    )
    again = [
        graph.sample(model, text, latent_image=masked, seed=9, sampler_name=name)
        for name in ("euler", "dpmpp_2m", "euler_ancestral", "uni_pc")
    ]
    graph.show(*again)
    result = run(graph)
    picture, sound = masks_over_time(result.value(masked[0]))
    assert picture == [0, 0, 1, 0, 0]
    assert sound == [float(7 <= step < 15) for step in range(21)]
    before = parts(result.value(clip[0]))
    for link in again:
        after = parts(result.value(link[0]))
        for x, made, mask in zip(before, after, (picture, sound), strict=True):
            is_made = torch.tensor(mask) > 0
            assert torch.equal(x[:, :, ~is_made], made[:, :, ~is_made])
            assert not torch.isclose(x[:, :, is_made], made[:, :, is_made]).all()


@pytest.mark.skipif(
    not core_facts.NESTED_WINDOWS, reason="this core cannot cut windows out of nested latents"
)
def test_context_windows_keep_what_is_held(run, graph):
    chain = Chain(graph)
    model = graph.add("WanContextWindowsManual", model=graph.model(), context_length=9, **WINDOWS)
    sampled = graph.sample(model, latent_image=chain.latent)
    graph.show(sampled)
    result = run(graph)
    latent = result.value(chain.latent[0])
    for made, held, mask in zip(
        parts(result.value(sampled[0])), parts(latent), latent["noise_mask"].unbind(), strict=True
    ):
        is_held = (mask <= CLEAN).expand_as(made)
        assert torch.equal(made[is_held], held[is_held])
