"""What a run takes and gives back: batching by free memory, unloading by core alone, weights that
stay elsewhere.
"""

import gc
import json
import mmap
import struct
import weakref
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import layout_writers
import pytest
import torch
from comfy_server import running_server
from comfyui_ovi.ovi_model.load import diffusion_model
from count_bytes import CountBytes, fused_attention
from goldens import relative_error
from safetensors.torch import load_file, save_file
from small_graph import MODEL, CountForwards, Graph, output, sampled
from small_weights import OviSizes, lora_weights, ovi_weights

pytestmark = pytest.mark.graph

CPU, META = torch.device("cpu"), torch.device("meta")
SIZES = OviSizes(layers=2)

# A flag of ComfyUI's, what to choose in the loader to get the same, and how near: float16 keeps
# eleven bits through four blocks; eight-bit weights are the same numbers either way.
FLAGS = [("--force-fp16", "default", 3e-3), ("--fp8_e4m3fn-unet", "fp8_e4m3fn", 1e-4)]


@pytest.fixture
def run(runtime, stand_ins, model_folder):  # noqa: ARG001
    """Run a Graph with no results kept from before, so that models load again; it must succeed."""

    def run_graph(graph):
        CountForwards.calls.clear()
        result = runtime.run(graph.prompt)
        assert result.ok, result.error
        return result

    return run_graph


def tell_free(monkeypatch, amount):
    """Make core believe that this many bytes are free."""

    def get_free_memory(_device=None, torch_free_too=False):
        return (amount, amount) if torch_free_too else amount

    monkeypatch.setattr(comfy.model_management, "get_free_memory", get_free_memory)


def test_both_prompts_share_a_forward_while_memory_allows(run, graph, monkeypatch):
    counted = graph.add("CountForwards", model=graph.model())
    link = graph.sample(counted, steps=1)
    graph.show(link)
    result = run(graph)
    (expected,) = sampled(result, link)
    assert CountForwards.calls == [[1, 0]]
    # Core goes by one and a half times the estimate.
    needed = 1.5 * result.value(counted[0]).model.memory_required([2, 1, expected.numel()])
    for free, calls in ((needed * 1.01, [[1, 0]]), (needed * 0.99, [[0], [1]])):
        with monkeypatch.context() as patch:
            tell_free(patch, free)
            again = run(graph)
        assert sorted(CountForwards.calls) == calls
        assert relative_error(sampled(again, link)[0], expected) < 1e-5


def test_core_alone_unloads_everything(runtime, graph, model_folder, stand_ins):  # noqa: ARG001
    model = graph.add(
        "OviModelLoader", model=MODEL, audio_model="in the same file", weight_dtype="default"
    )
    lora = graph.add(
        "LoraLoaderModelOnly",
        model=model,
        lora_name="ovi_small_lora.safetensors",
        strength_model=1.0,
    )
    clip, audio_vae = graph.clip(), graph.audio_vae()
    latent = graph.sample(lora, graph.text(clip), steps=1)
    graph.show(
        graph.add(
            "OviDecode", samples=latent, vae=graph.video_vae(), audio_vae=audio_vae, tiling="off"
        )
    )
    executor = runtime.new_executor()
    result = runtime.run(graph.prompt, executor=executor)
    assert result.ok, result.error
    base = result.value(model[0]).model
    models = (base, base.diffusion_model, result.value(clip[0]).cond_stage_model)
    alive = [weakref.ref(part) for part in (*models, result.value(audio_vae[0]).first_stage_model)]
    assert any(
        loaded.model.model is base for loaded in comfy.model_management.current_loaded_models
    )
    del result, base, models

    # What the server does for /free.
    comfy.model_management.unload_all_models()
    executor.reset()
    gc.collect()
    assert comfy.model_management.current_loaded_models == []
    assert [part() for part in alive] == [None] * 4


def test_later_runs_hold_no_more_than_the_first(runtime, graph, model_folder, stand_ins):  # noqa: ARG001
    latent = graph.sample(latent_image=graph.latent(width=32, height=32, length=5), steps=1)
    graph.show(latent)
    executor, peaks, kept = runtime.new_executor(), [], []
    with CountBytes() as count:
        for seed in range(10):
            graph.prompt[latent[0]]["inputs"]["seed"] = seed
            count.peak = count.live
            assert runtime.run(graph.prompt, executor=executor).ok
            gc.collect()
            peaks.append(count.peak)
            kept.append(count.live)
    # The second run starts with the results of the first, which a tenth run's start has too.
    assert max(peaks[1:]) <= peaks[0] + kept[0], peaks
    assert peaks[9] == peaks[1], peaks
    assert kept[9] == kept[0], kept


LAYOUTS = ("float32", "float8_e4m3fn", "scaled")


@pytest.fixture
def load(tmp_path):
    """A MODEL of two blocks, weights in one of the layouts; with the small LoRA if asked."""

    def load_one(layout, with_lora):
        weights = ovi_weights(SIZES, torch.float32, seed=1)
        if layout == "scaled":
            (file,), _ = layout_writers.scaled_fp8(weights, tmp_path / "scaled", files=1)
            patcher = comfy.sd.load_diffusion_model(str(file))
        else:
            options = {"dtype": getattr(torch, layout)}
            patcher = comfy.sd.load_diffusion_model_state_dict(weights, model_options=options)
        if with_lora:
            patcher, _ = comfy.sd.load_lora_for_models(
                patcher, None, lora_weights(SIZES, seed=2), 1.0, 0.0
            )
        return patcher

    return load_one


def forward(patcher, device=CPU, **options):
    """The velocities of a picture and a sound that are the same every time, as one row."""
    generator = torch.Generator().manual_seed(3)
    dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
    shapes = (1, 48, 3, 4, 4), (1, 20, 10), (1, 512, SIZES.text_dim)
    video, audio, text = (
        torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes
    )
    time = torch.full((1,), 500.0, device=device)
    velocities = patcher.model.diffusion_model(
        [video, audio], time, text, text, transformer_options=options
    )
    return torch.cat([velocity.flatten() for velocity in velocities]).float()


@pytest.mark.parametrize("with_lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_a_model_loaded_in_part_gives_the_same(load, layout, with_lora):
    patcher = load(layout, with_lora)
    patcher.load(CPU, full_load=True)
    assert not patcher.model.model_lowvram
    expected = forward(patcher)
    # A patched weight is rounded to eight bits again if it is loaded, but not if it is patched at
    # use.
    bound = 0.06 if with_lora and layout != "float32" else 1e-5
    for share in (1e-6, 0.3, 0.7):
        patcher.detach()
        patcher.load(CPU, lowvram_model_memory=share * patcher.model_size())
        assert patcher.model.model_lowvram
        assert relative_error(forward(patcher), expected) < bound, share

    patcher.detach()
    patcher.load(CPU, full_load=True)
    assert patcher.partially_unload(CPU, patcher.model_size() / 3)
    assert patcher.model.model_lowvram
    assert relative_error(forward(patcher), expected) < bound


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_every_weight_is_taken_to_where_it_is_used(load, layout):
    """The meta device refuses whatever lies elsewhere, as a card does."""
    patcher = load(layout, with_lora=False)
    patcher.load(META, lowvram_model_memory=0.1)
    weights = list(patcher.model.parameters())
    assert {weight.device for weight in weights} == {CPU}
    velocities = forward(patcher, META, optimized_attention_override=fused_attention)
    assert velocities.device == META


@pytest.mark.parametrize("state", ["LOW_VRAM", "NO_VRAM", "HIGH_VRAM"])
def test_every_state_of_memory_gives_the_same(run, graph, monkeypatch, state):
    """What --lowvram, --novram, --highvram and --gpu-only set; core does not let them go with
    --cpu.
    """
    model = graph.model()
    link = graph.sample(model, steps=1)
    graph.show(link)
    (expected,) = sampled(run(graph), link)
    core = comfy.model_management
    monkeypatch.setattr(core, "vram_state", core.VRAMState[state])
    monkeypatch.setattr(core, "is_device_cpu", lambda _device: False)
    if state == "LOW_VRAM":
        tell_free(monkeypatch, 2**10)
    result = run(graph)
    assert result.value(model[0]).model.model_lowvram == (state != "HIGH_VRAM")
    assert relative_error(sampled(result, link)[0], expected) < 1e-5


@pytest.mark.parametrize(("flag", "weight_dtype", "bound"), FLAGS)
def test_flags_of_precision_give_the_right_result(
    run, small_files, graph, tmp_path, flag, weight_dtype, bound
):
    model = graph.model()
    latent = graph.sample(model, steps=1, cfg=1.0)
    separate = graph.add("OviSeparateLatent", latent=latent)
    for name, slot in (("video", 0), ("audio", 1)):
        graph.add("SaveLatent", samples=output(separate, slot), filename_prefix=name)
    comfyui = Path(comfy.__path__[0]).parent
    (tmp_path / "models").symlink_to(small_files, target_is_directory=True)
    with running_server(comfyui, tmp_path, flags=[flag]) as server:
        server.run(graph.prompt)
    files = [next((tmp_path / "output").glob(f"{name}*.latent")) for name in ("video", "audio")]
    actual = torch.cat([load_file(file)["latent_tensor"].flatten() for file in files])

    expected = Graph()
    link = expected.sample(expected.model(weight_dtype=weight_dtype), steps=1, cfg=1.0)
    expected.show(link)
    assert actual.isfinite().all()
    assert relative_error(actual, sampled(run(expected), link)[0]) < bound


def map_read_only(path):
    """Read a safetensors file as ComfyUI does with dynamic memory: tensors lie in a map that
    nothing may write to.
    """
    with Path(path).open("rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(bytes(content[8 : 8 + length])), content[8 + length :]
    metadata = header.pop("__metadata__", {})
    return {
        key: torch.frombuffer(data[slice(*about["data_offsets"])], dtype=torch.float32).view(
            about["shape"]
        )
        for key, about in header.items()
    }, metadata


@pytest.mark.skipif(
    not hasattr(comfy.model_patcher, "ModelPatcherDynamic"),
    reason="this core has no dynamic memory",
)
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize(
    "load_file_as_model",
    [comfy.sd.load_diffusion_model, lambda path: diffusion_model.load_model(path, None, "default")],
)
@torch.inference_mode()
def test_dynamic_memory_finds_no_weight_before_it_loads_and_none_missing(
    load_file_as_model, tmp_path, monkeypatch
):
    """Layers without weights, then weights that are the file itself; what a card does with them is
    not tried here.
    """
    path = str(tmp_path / "model.safetensors")
    save_file(ovi_weights(SIZES, torch.float32, seed=1), path)
    plain = load_file_as_model(path)
    plain.load(CPU, full_load=True)
    expected = forward(plain)

    missing = []
    with monkeypatch.context() as dynamic:
        dynamic.setattr(comfy.memory_management, "aimdo_enabled", True)
        dynamic.setattr(comfy.model_patcher.ModelPatcher, "is_dynamic", lambda _self: True)
        dynamic.setattr(comfy.utils, "load_safetensors", map_read_only)
        lazy = comfy.ops.disable_weight_init._lazy_load_from_state_dict

        def watch(module, state_dict, prefix, local_metadata, missing_keys, *args, **kwargs):
            assert module.weight is None
            lazy(module, state_dict, prefix, local_metadata, missing_keys, *args, **kwargs)
            missing.extend(missing_keys)

        dynamic.setattr(
            comfy.ops.disable_weight_init, "_lazy_load_from_state_dict", staticmethod(watch)
        )
        patcher = load_file_as_model(path)
    layers = [layer for layer in patcher.model.modules() if isinstance(layer, torch.nn.Linear)]
    assert missing == []
    assert len(layers) == 60
    assert {layer.weight_comfy_model_dtype for layer in layers} == {torch.float32}
    load_again, inputs = patcher.cached_patcher_init
    assert isinstance(load_again(*inputs, disable_dynamic=True), comfy.model_patcher.ModelPatcher)
    for layer in patcher.model.modules():
        if hasattr(layer, "comfy_cast_weights"):
            layer.comfy_cast_weights = True
    assert relative_error(forward(patcher), expected) < 1e-6
