"""A video with stereo sound of 44.1 kHz as the source of what is held and carried on: loaded by
core's nodes from an mp4, or handed out by a loader as VideoHelperSuite's hands it out.
"""

from collections.abc import Mapping

import pytest
import torch
from comfyui_ovi.ovi_model.latent.hold import SOUND
from comfyui_ovi.ovi_model.load.video_vae import load_video_vae
from media import save
from small_graph import Graph, output, parts

pytestmark = pytest.mark.graph

FRAMES, HELD, LENGTH, RATE = 21, 9, 17, 44100
START = 0.25  # seconds, where the sound that is held begins
TONES = (440.0, 660.0)  # Hz, left and right
LOADERS = ("core", "other extension")


def source():
    """Return pictures [F, 64, 64, 3] that fade from dark to bright, and a sound in stereo."""
    ramp = torch.linspace(0.2, 0.8, FRAMES)[:, None, None, None]
    across = torch.linspace(0, 0.2, 64)[None, None, :, None]
    times = torch.arange(round(FRAMES / 24 * RATE)) / RATE
    waveform = torch.stack([0.3 * torch.sin(2 * torch.pi * tone * times) for tone in TONES])
    return (ramp + across).expand(FRAMES, 64, 64, 3), waveform


class LazySound(Mapping):
    """A sound that is made when it is asked for."""

    def __init__(self):
        self._sound = None

    def __getitem__(self, key):
        self._sound = self._sound or {"waveform": source()[1][None], "sample_rate": RATE}
        return self._sound[key]

    def __iter__(self):
        return iter(("waveform", "sample_rate"))

    def __len__(self):
        return 2


class OtherLoader:
    """Pictures and a sound as another extension's loader hands them out."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT")
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self):
        return source()[0], LazySound(), 24.0


class LoadEncoder:
    """A video VAE that encodes."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
    RETURN_TYPES = ("VAE",)
    FUNCTION = "load"
    CATEGORY = "tests"
    folder = None

    def load(self):
        return (load_video_vae(self.folder / "wan22_encoder_small.safetensors"),)


@pytest.fixture(autouse=True)
def nodes(runtime, small_files, monkeypatch):
    LoadEncoder.folder = small_files / "vae"
    for node in (OtherLoader, LoadEncoder):
        monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, node.__name__, node)


@pytest.fixture
def load(runtime, graph):
    """Return a function that adds a loader: links to pictures, sound and frames a second."""

    def load(loader: str):
        if loader == "core":
            frames, waveform = source()
            audio = {"waveform": waveform[None], "sample_rate": RATE}
            file = save(runtime.input, "mp4", frames, audio=audio, quality=100)
            video = graph.add("LoadVideo", file=file.name)
            images = graph.add("GetVideoComponents", video=video)
        else:
            images = graph.add("OtherLoader")
        return images, output(images, 1), output(images, 2)

    return load


def pitches(waveform: torch.Tensor, rate: int) -> list[float]:
    """Return the strongest frequency of each channel [C, N] in Hz."""
    strongest = torch.fft.rfft(waveform).abs().argmax(dim=1)
    return [float(index) * rate / waveform.shape[1] for index in strongest]


@pytest.mark.parametrize("loader", LOADERS)
def test_its_pictures_and_sound_are_held(run, graph: Graph, load, loader):
    images, audio, _ = load(loader)
    vae, audio_vae = graph.add("LoadEncoder"), graph.audio_vae()
    some = graph.add("ImageFromBatch", image=images, batch_index=0, length=HELD)
    how = {"start": 0.0, "unit": "frames", "strength": 1.0, "keyframe": "clean", "vae": vae}
    pictures = graph.add("OviHoldPictures", latent=graph.latent(length=LENGTH), images=some, **how)
    held = graph.add(
        "OviHoldSound", latent=pictures, audio_vae=audio_vae, audio=audio, start=START, end=0.0
    )
    sampled = graph.sample(latent_image=held, steps=1)
    vaes = {"vae": vae, "audio_vae": audio_vae}
    decoded = graph.add("OviDecode", samples=sampled, tiling="auto", **vaes)
    graph.show(decoded, output(held, 1))
    result = run(graph)

    latent = result.value(held[0])
    video_mask, audio_mask = latent["noise_mask"].unbind()
    assert video_mask[0, 0, :, 0, 0].tolist() == [0] * 3 + [1] * 2
    assert audio_mask[0, 0].tolist() == [1] * 8 + [0] * 13
    picture, sound = parts(result.value(sampled[0]))
    given = parts(latent)
    assert torch.equal(picture[:, :, :3], given[0][:, :, :3])
    assert torch.equal(sound[..., 8:], given[1][..., 8:])
    assert torch.equal(result.value(decoded[0])[:HELD], result.value(some[0])[..., :3])
    recording = result.value(held[0], 1)
    assert recording["sample_rate"] == RATE
    assert recording["waveform"].shape == (1, 2, round(LENGTH / 24 * RATE))
    begin = round(START * RATE)
    assert not recording["waveform"][..., :begin].any()
    kept = recording["waveform"][0, :, begin:]
    assert torch.equal(kept, result.value(audio[0], 1)["waveform"][0, :, : kept.shape[1]])
    assert pitches(kept, RATE) == pytest.approx(TONES, abs=4)
    (original,) = result.value(sampled[0])[SOUND]
    mono = original.waveform[0, round(START * 16000) :]
    both = torch.fft.rfft(mono).abs().topk(2).indices.sort().values * 16000 / len(mono)
    assert both.tolist() == pytest.approx(TONES, abs=4)


@pytest.mark.parametrize("loader", LOADERS)
def test_it_goes_on(run, graph: Graph, load, loader, caplog):
    images, audio, fps = load(loader)
    vae, audio_vae = graph.add("LoadEncoder"), graph.audio_vae()
    vaes = {"vae": vae, "audio_vae": audio_vae}
    latent = graph.add("OviContinue", images=images, audio=audio, fps=fps, seconds=0.5, **vaes)
    sampled = graph.sample(latent_image=latent, steps=1)
    new = graph.add("OviDecode", samples=sampled, tiling="auto", **vaes)
    film = graph.add(
        "OviJoin",
        images=images,
        audio=audio,
        new_images=new,
        new_audio=output(new, 1),
        frames="in memory",
    )
    graph.show(film)
    result = run(graph)
    caplog.clear()  # weights drawn at random decode what is held as other pictures, which is said

    frames, sound = result.value(film[0]), result.value(film[0], 1)
    loaded = result.value(audio[0], 1)["waveform"]
    assert len(frames) == FRAMES + 12
    assert torch.equal(frames[:FRAMES], result.value(images[0])[..., :3])
    assert sound["sample_rate"] == RATE
    assert sound["waveform"].shape == (1, 2, round((FRAMES + 12) / 24 * RATE))
    # Up to the fade, which ends where the film's sound does, 56 ms before its end at the earliest.
    before = round((FRAMES / 24 - 0.1) * RATE)
    assert torch.equal(sound["waveform"][..., :before], loaded[..., :before])
    assert sound["waveform"][..., round(FRAMES / 24 * RATE) :].abs().max() > 0


def test_another_frame_rate_is_refused(runtime, graph: Graph):
    frames, waveform = source()
    audio = {"waveform": waveform[None], "sample_rate": RATE}
    file = save(runtime.input, "mp4", frames, fps=30, audio=audio)
    video = graph.add("LoadVideo", file=file.name)
    images = graph.add("GetVideoComponents", video=video)
    vaes = {"vae": graph.add("LoadEncoder"), "audio_vae": graph.audio_vae()}
    graph.show(
        graph.add(
            "OviContinue",
            images=images,
            audio=output(images, 1),
            fps=output(images, 2),
            seconds=0.5,
            **vaes,
        )
    )
    result = runtime.run(graph.prompt)
    assert not result.ok
    assert "fps is 30" in result.error
