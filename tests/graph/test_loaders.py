"""The loader and decode nodes, run by ComfyUI beside the stock nodes they have to agree with."""

import pytest
import torch
from comfy.nested_tensor import NestedTensor

pytestmark = [pytest.mark.graph, pytest.mark.usefixtures("small_files")]

AUDIO = {
    "class_type": "OviAudioVAELoader",
    "inputs": {"vae": "mmaudio_vae_small.pth", "vocoder": "bigvgan_small.pt"},
}
VIDEO = {"class_type": "VAELoader", "inputs": {"vae_name": "wan22_tiny_small.safetensors"}}


@pytest.fixture
def latent(runtime, monkeypatch):
    """A test-only node that gives a latent, since a sampler is not what is tested here."""

    class GiveLatent:
        RETURN_TYPES = ("LATENT",)
        FUNCTION = "give"
        CATEGORY = "tests"
        samples = None

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802
            return {"required": {}}

        def give(self):
            return ({"samples": self.samples},)

    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "GiveLatent", GiveLatent)
    GiveLatent.samples = NestedTensor([torch.randn(2, 48, 3, 4, 6), torch.randn(2, 20, 12)])
    return GiveLatent


def text_prompt(file):
    return {
        "1": {"class_type": "OviTextEncoderLoader", "inputs": {"text_encoder": file}},
        "2": {
            "class_type": "CLIPTextEncode",
            "inputs": {"clip": ["1", 0], "text": "<S>Hello.<E> rain"},
        },
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }


def decode_prompt(**inputs):
    links = {"samples": ["1", 0], "vae": ["2", 0], "audio_vae": ["3", 0], "tiling": "auto"}
    return {
        "1": {"class_type": "GiveLatent", "inputs": {}},
        "2": VIDEO,
        "3": AUDIO,
        "4": {"class_type": "OviDecode", "inputs": links | inputs},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 1]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }


def test_text_encoder_of_both_layouts_feeds_stock_text_encode(runtime):
    conditionings = []
    for file in ("umt5_small.safetensors", "models_t5_umt5-small-enc.pth"):
        result = runtime.run(text_prompt(file))
        assert result.ok, result.error
        conditionings.append(result.value("2")[0][0])
    assert conditionings[0].shape == (1, 512, 64)
    assert torch.equal(*conditionings)


def test_a_link_that_leads_nowhere_is_no_reason_to_refuse_its_neighbour(runtime):
    link = runtime.models / "text_encoders" / "nowhere.safetensors"
    link.symlink_to("gone.safetensors")
    try:
        result = runtime.run(text_prompt("umt5_small.safetensors"))
    finally:
        link.unlink()
    assert result.ok, result.error


def test_a_file_that_is_not_there_is_refused(runtime):
    result = runtime.run(text_prompt("gone.safetensors"))
    assert not result.ok
    assert "gone.safetensors" in result.error


@pytest.mark.usefixtures("latent")
def test_decode(runtime):
    result = runtime.run(decode_prompt())
    assert result.ok, result.error
    images, audio = result.value("4", 0), result.value("4", 1)
    assert images.shape == (18, 64, 96, 3)
    assert audio["waveform"].shape == (2, 1, 6000)
    assert audio["sample_rate"] == 16000
    assert images.std() > 0.01


@pytest.mark.usefixtures("latent")
def test_decode_with_both_halves_in_one_file(runtime):
    prompt = decode_prompt()
    two_files = runtime.run(prompt).value("4", 1)["waveform"]
    prompt["3"] = {
        "class_type": "OviAudioVAELoader",
        "inputs": {"vae": "mmaudio_small.safetensors", "vocoder": "in the same file"},
    }
    one_file = runtime.run(prompt).value("4", 1)["waveform"]
    torch.testing.assert_close(one_file, two_files, rtol=1e-3, atol=1e-6)


def test_stock_audio_nodes_take_the_audio_vae(runtime, latent):
    latent.samples = torch.randn(1, 20, 12)
    prompt = {
        "1": {"class_type": "GiveLatent", "inputs": {}},
        "2": AUDIO,
        "3": {"class_type": "VAEDecodeAudio", "inputs": {"samples": ["1", 0], "vae": ["2", 0]}},
        "4": {"class_type": "VAEEncodeAudio", "inputs": {"audio": ["3", 0], "vae": ["2", 0]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}},
    }
    result = runtime.run(prompt)
    assert result.ok, result.error
    audio = result.value("3")
    assert audio["sample_rate"] == 44100
    assert abs(audio["waveform"].shape[-1] - 12 * 512 * 44100 / 16000) < 2
    assert result.value("4")["samples"].shape == (1, 20, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": ["3", 0], "audio_vae": ["2", 0]}, "in each other's place"),
        ({"tiling": "sometimes"}, "sometimes"),
    ],
)
@pytest.mark.usefixtures("latent")
def test_mistakes_are_named(runtime, changes, message):
    result = runtime.run(decode_prompt(**changes))
    assert not result.ok
    assert message in result.error


def test_a_bare_video_latent_is_named(runtime, latent):
    latent.samples = torch.zeros(1, 48, 3, 4, 4)
    result = runtime.run(decode_prompt())
    assert "OviDecode (node 4)" in result.error
    assert "[1, 48, 3, 4, 4]" in result.error
    assert "VAE Decode" in result.error
