"""Pictures shown while Ovi samples through a tiny decoder, in ComfyUI's own executor."""

import shutil

import numpy as np
import pytest
import torch
from small_graph import Graph

pytestmark = pytest.mark.graph
FILE = "wan22_tiny_small.safetensors"


@pytest.fixture
def place(small_files):
    """Place the small tiny decoder as a file of this name, or a link to a file that is gone, which
    ComfyUI lists and has no path of; away again when the test is over.
    """
    placed = []

    def put(folder, name, is_gone=False):
        path = small_files / folder / name
        path.parent.mkdir(exist_ok=True)
        if is_gone:
            path.symlink_to(small_files / "gone")
        else:
            shutil.copy(small_files / "vae" / FILE, path)
        placed.append(path)

    yield put
    for path in placed:
        path.unlink()


@pytest.fixture
def sample(runtime, stand_ins, model_folder):  # noqa: ARG001
    """Sample anew, with previews of a kind; the picture's latent and the previews."""
    graph = Graph()
    sampled = graph.sample(latent_image=graph.latent(width=128), steps=2)
    graph.show(sampled)

    def sample_with(preview):
        result = runtime.run(graph.prompt, preview=preview)
        assert result.ok, result.error
        return result.value(sampled[0])["samples"].unbind()[0], pictures(result)

    return sample_with


def pictures(result):
    return [np.asarray(data["image"]).astype(float) for data in result.named("preview")]


@pytest.mark.parametrize(
    ("folder", "name"), [("vae_approx", "lighttaew2_2.safetensors"), ("vae", "taew2_2.safetensors")]
)
def test_previews_are_decoded_and_change_nothing(sample, runtime, place, folder, name):
    place(folder, name)
    video, previews = sample("taesd")
    assert [image.shape for image in previews] == [(64, 128, 3)] * 2
    vae = runtime.nodes.VAELoader().load_vae(FILE)[0]
    middle = video[:, :, 1:2]
    if folder == "vae":
        middle = runtime.package.ovi_model.family.OviLatentFormat().process_in(middle)
    with torch.no_grad():
        expected = vae.decode(middle)[0, 0].clamp(0, 1).mul(255).numpy()
    assert np.abs(previews[-1] - expected).max() < 3
    without, none = sample("none")
    assert not none
    assert torch.equal(without, video)


@pytest.mark.parametrize("has_dangling_link", [False, True])
def test_without_a_decoder_colours_are_mixed(sample, caplog, place, has_dangling_link):
    if has_dangling_link:
        place("vae_approx", "taew2_2.safetensors", is_gone=True)
    _, previews = sample("taesd")
    assert [image.shape for image in previews] == [(4, 8, 3)] * 2
    assert "could not find models/vae_approx/lighttaew2_2" in caplog.text


def test_ovi_decode_takes_a_tiny_decoder_in_its_scale(run, runtime, graph, place):
    """Where ComfyUI keeps which file a VAE is of."""
    place("vae", "taew2_2.safetensors")
    latent = graph.sample(latent_image=graph.latent(length=5))
    audio_vae = graph.audio_vae()
    frames = [
        graph.add(
            "OviDecode",
            samples=latent,
            vae=graph.add("VAELoader", vae_name=name),
            audio_vae=audio_vae,
            tiling="auto",
        )
        for name in (FILE, "taew2_2.safetensors")
    ]
    graph.show(latent, *frames)
    result = run(graph)
    plain, scaled = (result.value(link[0]) for link in frames)
    assert plain.shape == (5, 64, 64, 3)
    vae = runtime.nodes.VAELoader().load_vae("taew2_2.safetensors")[0]
    video = result.value(latent[0])["samples"].unbind()[0]
    keeps_file = hasattr(vae.patcher, "cached_patcher_init")
    expected = runtime.package.ovi_model.family.OviLatentFormat().process_in(video)
    assert torch.equal(scaled, vae.decode(expected if keeps_file else video)[0])
    assert torch.equal(scaled, plain) is not keeps_file
