"""Stock and foreign nodes around the sampler: loaders, caches, decoders, savers."""

import shutil

import numpy as np
import pytest
import torch
import torch._inductor.config
from comfyui_ovi.ovi_model.config import FRAME_RATE
from goldens import relative_error
from lora_files import LAYERS, with_lora, write_lora
from media import decode
from safetensors.torch import load_file, save_file
from small_graph import MODEL, CountForwards, Graph, output, sampled
from small_weights import OviSizes, ovi_weights
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

pytestmark = pytest.mark.graph

FLOAT8 = {
    "default": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


@pytest.mark.parametrize("loader", ["stock", "ours"])
def test_every_weight_dtype_loads_and_stays_near_the_file(run, graph, loader):
    text = graph.text()
    models = {}
    for name in FLOAT8:
        ours = {"model": MODEL, "audio_model": "in the same file", "weight_dtype": name}
        models[name] = (
            graph.add("OviModelLoader", **ours)
            if loader == "ours"
            else graph.model(weight_dtype=name)
        )
    links = [graph.sample(model, text) for model in models.values()]
    graph.show(*links)
    result = run(graph)
    for name, model in models.items():
        network = result.value(model[0]).model.diffusion_model
        for tower in (network, network.audio_model):
            assert tower.blocks[1].cross_attn.k_fusion.weight.dtype == FLOAT8[name]
    exact, e4m3, e4m3_fast, e5m2 = sampled(result, *links)
    assert 1e-3 < relative_error(e4m3, exact) < relative_error(e5m2, exact) < 0.4
    assert relative_error(e4m3_fast, exact) < 0.2


def split_files(folder):
    """The two files of a split release in each spelling: video bare or prefixed, audio bare or
    prefixed.
    """
    released = load_file(folder / MODEL)
    video = {key: tensor for key, tensor in released.items() if key.startswith("video_model.")}
    audio = {key: tensor for key, tensor in released.items() if key.startswith("audio_model.")}
    save_file(video, folder / "video_prefixed.safetensors")
    save_file(audio, folder / "audio_prefixed.safetensors")
    save_file(_bare(video), folder / "video_bare.safetensors")
    save_file(_bare(audio), folder / "audio_bare.safetensors")


def _bare(weights):
    return {
        key.split(".", 1)[1].replace(".modulation.modulation", ".modulation"): weights[key]
        for key in weights
    }


def test_two_files_in_every_spelling_equal_the_one_file(run, graph, model_folder):
    split_files(model_folder)
    text = graph.text()
    pairs = [(MODEL, "in the same file")]
    pairs += [
        (f"video_{v}.safetensors", f"audio_{a}.safetensors")
        for v in ("bare", "prefixed")
        for a in ("bare", "prefixed")
    ]
    models = [graph.model()]
    models += [
        graph.add("OviModelLoader", model=v, audio_model=a, weight_dtype="default")
        for v, a in pairs
    ]
    links = [graph.sample(model, text, steps=1) for model in models]
    graph.show(*links)
    expected, *others = sampled(run(graph), *links)
    for actual in others:
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
def test_caches_save_calls_and_stay_near(run, graph, node):
    settings = {
        "reuse_threshold": 1.5,
        "start_percent": 0.15,
        "end_percent": 0.95,
        "verbose": False,
    }
    cached = graph.add(node, model=graph.model(), **settings)
    link = graph.sample(graph.add("CountForwards", model=cached), steps=12)
    graph.show(link)
    (actual,) = sampled(run(graph), link)
    calls = len(CountForwards.calls)
    assert 3 <= calls < 12

    again = Graph()
    link = again.sample(steps=12)
    again.show(link)
    (expected,) = sampled(run(again), link)
    assert 0 < relative_error(actual, expected) < 0.5


def can_compile() -> bool:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


@pytest.mark.parametrize(
    "backend",
    [
        "cudagraphs",
        pytest.param(
            "inductor", marks=pytest.mark.skipif(not can_compile(), reason="no C++ compiler")
        ),
    ],
)
def test_a_compiled_model_gives_the_same(run, graph, model_folder, backend):
    """With the attention of graphics cards: the one for the CPU reads the free memory, which
    nothing compiles.
    """
    torch._dynamo.utils.counters.clear()
    save_file(
        ovi_weights(OviSizes(layers=1), torch.float32, seed=1),
        model_folder / "ovi_one_block.safetensors",
    )
    plain, text = graph.model("ovi_one_block.safetensors"), graph.text()
    model = graph.add("OviAttention", model=plain, kernel="pytorch")
    compiled = graph.add("TorchCompileModel", model=model, backend=backend)
    links = [graph.sample(m, text) for m in (model, compiled)]
    graph.show(*links)
    # Code without vectors, on which the C++ compiler works a quarter less; the graph is the same.
    with torch._inductor.config.patch({"cpp.simdlen": 1}):
        expected, actual = sampled(run(graph), *links)
    assert relative_error(actual, expected) < 1e-4
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_saved_model_loads_again(run, runtime, graph, model_folder, small_files):
    """Saved with a LoRA in it; read by both model loaders and by the stock checkpoint loader."""
    write_lora(small_files / "loras" / "to_save.safetensors", LAYERS)
    text = graph.text()
    patched = with_lora(graph, graph.model(), "to_save.safetensors")
    link = graph.sample(patched, text)
    graph.show(link)
    graph.add("ModelSave", model=patched, filename_prefix="diffusion_models/saved")
    (expected,) = sampled(run(graph), link)

    (saved,) = (runtime.output / "diffusion_models").glob("saved*.safetensors")
    (small_files / "checkpoints").mkdir(exist_ok=True)
    shutil.copy(saved, small_files / "checkpoints" / "saved.safetensors")
    saved.rename(model_folder / "saved.safetensors")
    again = Graph()
    ours = {
        "model": "saved.safetensors",
        "audio_model": "in the same file",
        "weight_dtype": "default",
    }
    models = [again.model("saved.safetensors"), again.add("OviModelLoader", **ours)]
    models.append(again.add("CheckpointLoaderSimple", ckpt_name="saved.safetensors"))
    text = again.text()
    links = [again.sample(model, text) for model in models]
    again.show(*links)
    for actual in sampled(run(again), *links):
        assert relative_error(actual, expected) < 1e-5


def decoded(graph, batch_size=1):
    """Add a sampler and what takes its result apart; the links of both."""
    latent = graph.sample(latent_image=graph.latent(batch_size=batch_size), steps=1)
    return latent, graph.add("OviSeparateLatent", latent=latent)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_stock_decoders_agree_with_ours(run, graph, batch_size):
    latent, video = decoded(graph, batch_size)
    vae, audio_vae = graph.video_vae(), graph.audio_vae()
    ours = graph.add("OviDecode", samples=latent, vae=vae, audio_vae=audio_vae, tiling="off")
    plain = graph.add("VAEDecode", samples=video, vae=vae)
    tiles = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    tiled = graph.add("VAEDecodeTiled", samples=video, vae=vae, **tiles)
    sound = graph.add("VAEDecodeAudio", samples=output(video, 1), vae=audio_vae)
    graph.show(ours, plain, tiled, sound)
    result = run(graph)
    frames = result.value(ours[0])
    assert frames.shape == (9 * batch_size, 64, 64, 3)
    assert frames.std() > 0.01
    torch.testing.assert_close(result.value(plain[0]), frames, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.value(tiled[0]), frames, rtol=0, atol=0.02)

    waveform, stock = result.value(ours[0], 1)["waveform"], result.value(sound[0])
    assert waveform.shape == (batch_size, 1, 9 * 16000 // FRAME_RATE)
    assert stock["sample_rate"] == 44100
    assert waveform.std() > 0
    for clip, resampled in zip(waveform, stock["waveform"], strict=True):
        kept = np.interp(
            np.arange(2000, 4000) / 16000, np.arange(resampled.shape[1]) / 44100, resampled[0]
        )
        assert np.corrcoef(kept, clip[0, 2000:4000])[0, 1] > 0.9


def test_stock_decoders_take_the_joint_latent(run, graph):
    latent, video = decoded(graph)
    vae, audio_vae = graph.video_vae(), graph.audio_vae()
    tiles = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    both = [
        [
            graph.add("VAEDecode", samples=latent, vae=vae),
            graph.add("VAEDecodeTiled", samples=latent, vae=vae, **tiles),
            graph.add("VAEDecodeAudio", samples=latent, vae=audio_vae),
        ],
        [
            graph.add("VAEDecode", samples=video, vae=vae),
            graph.add("VAEDecodeTiled", samples=video, vae=vae, **tiles),
            graph.add("VAEDecodeAudio", samples=output(video, 1), vae=audio_vae),
        ],
    ]
    graph.show(*both[0], *both[1])
    result = run(graph)
    joint, alone = ([result.value(link[0]) for link in links] for links in both)
    assert joint[0].shape == joint[1].shape == (9, 64, 64, 3)
    assert all(torch.equal(*frames) for frames in zip(joint[:2], alone, strict=False))
    assert torch.equal(joint[2]["waveform"], alone[2]["waveform"])
    assert joint[2]["waveform"].std() > 0


@pytest.mark.parametrize("length", [37, 121])
def test_the_stock_tiled_decoder_of_sound_takes_every_length(run, runtime, graph, length):
    if "VAEDecodeAudioTiled" not in runtime.nodes.NODE_CLASS_MAPPINGS:
        pytest.skip("this core has no VAEDecodeAudioTiled")
    latent, vae = graph.latent(width=32, height=32, length=length), graph.audio_vae()
    one, several = (
        graph.add("VAEDecodeAudioTiled", samples=latent, vae=vae, tile_size=size, overlap=overlap)
        for size, overlap in ((512, 64), (32, 8))
    )
    whole = graph.add("VAEDecodeAudio", samples=latent, vae=vae)
    graph.show(one, several, whole)
    result = run(graph)
    found, tiles, expected = (result.value(link[0])["waveform"] for link in (one, several, whole))
    torch.testing.assert_close(found, expected.expand_as(found), rtol=0, atol=1e-6)
    assert tiles.shape == found.shape
    assert tiles.isfinite().all()


def test_frames_are_upscaled_and_saved_by_stock_nodes(run, runtime, graph):
    latent, _ = decoded(graph)
    ours = graph.add(
        "OviDecode",
        samples=latent,
        vae=graph.video_vae(),
        audio_vae=graph.audio_vae(),
        tiling="auto",
    )
    upscaler = graph.add("UpscaleModelLoader", model_name="small_2x.safetensors")
    larger = graph.add("ImageUpscaleWithModel", upscale_model=upscaler, image=ours)
    video = graph.add("CreateVideo", images=larger, audio=output(ours, 1), fps=24.0)
    graph.add("SaveVideo", video=video, filename_prefix="stock/Ovi", format="auto", codec="auto")
    result = run(graph)
    frames = result.value(ours[0])
    torch.testing.assert_close(
        torch.nn.functional.avg_pool2d(result.value(larger[0]).movedim(-1, 1), 2).movedim(1, -1),
        frames.clamp(0, 1),
        rtol=0,
        atol=0.1,
    )

    (path,) = (runtime.output / "stock").iterdir()
    saved = decode(path)
    assert saved.frames.shape == (9, 128, 128, 3)
    assert saved.rate == FRAME_RATE
    assert abs(saved.sound_seconds - 9 / FRAME_RATE) < 1024 / saved.sound_rate
