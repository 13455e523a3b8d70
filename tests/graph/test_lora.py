"""LoRAs by stock loaders and by ours, under every naming, on weights of every precision."""

import pytest
import torch
from goldens import relative_error
from lora_files import (
    AUDIO_LAYERS,
    LAYERS,
    STYLES,
    VIDEO_LAYERS,
    merged,
    with_lora,
    write_lora,
)
from safetensors.torch import load_file, save_file
from small_graph import MODEL, output, parts, sampled
from weight_layouts import FP8_E4M3, LAYOUTS
from weights import seeded

pytestmark = pytest.mark.graph


def with_ours(graph, model, file, video=1.0, audio=1.0, fusion=1.0):
    strengths = {"strength_video": video, "strength_audio": audio, "strength_fusion": fusion}
    return graph.add("OviLoraLoader", model=model, lora_name=file, **strengths)


@pytest.fixture(scope="module")
def loras(small_files):
    """A LoRA on every sort of layer under every naming, and one for each of a few layers."""
    folder = small_files / "loras"
    for style in STYLES:
        write_lora(folder / f"{style}.safetensors", LAYERS, style)
    for layer in (*VIDEO_LAYERS, *AUDIO_LAYERS):
        write_lora(folder / f"{layer}.safetensors", [layer])


@pytest.mark.usefixtures("loras")
def test_every_style_of_names_is_the_lora_added_to_the_file(run, graph, model_folder, caplog):
    """Every file through the stock loader, one also through the others; against weights added by
    hand.
    """
    save_file(merged(load_file(model_folder / MODEL), LAYERS), model_folder / "merged.safetensors")
    model, clip = graph.model(), graph.clip()
    text = graph.text(clip)
    links = {
        name: graph.sample(graph.model(name), text, steps=1)
        for name in (MODEL, "merged.safetensors")
    }
    models = {style: with_lora(graph, model, f"{style}.safetensors") for style in STYLES}
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    models["with text"] = graph.add(
        "LoraLoader", model=model, clip=clip, lora_name="diffusers.safetensors", **strengths
    )
    models["ours"] = with_ours(graph, model, "diffusers.safetensors")
    links |= {name: graph.sample(changed, text, steps=1) for name, changed in models.items()}
    hook = graph.add(
        "CreateHookLoraModelOnly", lora_name="diffusers.safetensors", strength_model=1.0
    )
    pair = {
        "positive_NEW": text,
        "negative_NEW": output(text, 1),
        "strength": 1.0,
        "set_cond_area": "default",
    }
    hooked = graph.add("PairConditioningSetProperties", hooks=hook, **pair)
    links["hook"] = graph.sample(model, hooked, steps=1)
    graph.show(*links.values())
    plain, expected, *others = sampled(run(graph), *links.values())
    assert relative_error(expected, plain) > 1e-2
    for name, actual in zip([*models, "hook"], others, strict=True):
        assert relative_error(actual, expected) < 1e-5, name
    assert "not loaded" not in caplog.text.lower()


@pytest.mark.usefixtures("loras")
@pytest.mark.parametrize("layer", [*VIDEO_LAYERS, *AUDIO_LAYERS])
def test_a_lora_on_any_layer_changes_the_result(run, graph, layer):
    model, text = graph.model(), graph.text()
    changed = [with_lora(graph, model, f"{layer}.safetensors", strength) for strength in (1.0, 0.0)]
    links = [graph.sample(m, text, steps=1) for m in (model, *changed)]
    graph.show(*links)
    plain, changed, switched_off = sampled(run(graph), *links)
    assert relative_error(changed, plain) > 1e-4
    assert torch.equal(switched_off, plain)


@pytest.mark.usefixtures("loras")
def test_a_lora_acts_on_what_is_made_and_leaves_what_is_held(run, graph, model_folder):
    save_file(merged(load_file(model_folder / MODEL), LAYERS), model_folder / "merged.safetensors")
    model, text = graph.model(), graph.text()
    clip = graph.sample(model, text, steps=1)
    held = graph.add(
        "OviTimeMask", latent=clip, start=0.2, end=0.0, streams="picture and sound", ramp=0.0
    )
    models = [
        model,
        graph.model("merged.safetensors"),
        with_lora(graph, model, "diffusers.safetensors"),
        with_ours(graph, model, "diffusers.safetensors"),
    ]
    links = [graph.sample(m, text, latent_image=held, seed=8, steps=1) for m in models]
    graph.show(*links)
    result = run(graph)
    plain, expected, *others = sampled(result, *links)
    assert relative_error(expected, plain) > 1e-3
    for actual in others:
        assert relative_error(actual, expected) < 1e-5
    masks = result.value(held[0])["noise_mask"].unbind()
    for link in links:
        for made, given, mask in zip(
            parts(result.value(link[0])), parts(result.value(clip[0])), masks, strict=True
        ):
            is_held = (mask == 0).expand_as(made)
            assert 0 < is_held.float().mean() < 1
            assert torch.equal(made[is_held], given[is_held])


# A weight of each sort under its released name, and what LoRA files call a difference of it.
DIFFERENCES = {
    "video_model.blocks.1.modulation.modulation": "diffusion_model.blocks.1.modulation.diff",
    "audio_model.blocks.3.modulation.modulation": "audio_model.blocks.3.modulation.modulation.diff",
    "video_model.head.modulation": "diffusion_model.head.modulation.diff",
    "audio_model.blocks.0.norm3.weight": "diffusion_model.audio_model.blocks.0.norm3.diff",
    "video_model.blocks.2.ffn.0.bias": "diffusion_model.blocks.2.ffn.0.diff_b",
    "audio_model.patch_embedding.2.w1.weight": (
        "diffusion_model.audio_model.patch_embedding.2.w1.diff"
    ),
}


@pytest.mark.parametrize("key", DIFFERENCES)
def test_a_difference_of_any_sort_of_weight_is_added_to_it(
    run, graph, model_folder, small_files, key
):
    weights = load_file(model_folder / MODEL)
    difference = 0.3 * seeded(key, weights[key].shape)
    save_file({DIFFERENCES[key]: difference}, small_files / "loras" / f"{key}.safetensors")
    save_file({**weights, key: weights[key] + difference}, model_folder / f"{key}.safetensors")
    model, text = graph.model(), graph.text()
    changed = with_lora(graph, model, f"{key}.safetensors")
    ours = with_ours(graph, model, f"{key}.safetensors")
    links = [
        graph.sample(m, text, steps=1)
        for m in (model, graph.model(f"{key}.safetensors"), changed, ours)
    ]
    graph.show(*links)
    plain, expected, *actual = sampled(run(graph), *links)
    assert relative_error(expected, plain) > 1e-3
    for result in actual:
        assert relative_error(result, expected) < 1e-5


def test_the_lora_of_the_small_set_applies_whole(run, graph, caplog):
    model, text = graph.model("ovi_small.safetensors"), graph.text()
    changed = with_lora(graph, model, "ovi_small_lora.safetensors")
    links = [graph.sample(m, text, steps=1) for m in (model, changed)]
    graph.show(*links)
    result = run(graph)
    plain, actual = sampled(result, *links)
    assert relative_error(actual, plain) > 1e-2
    assert len(result.value(changed[0]).patches) == 16
    assert "not loaded" not in caplog.text


@pytest.mark.usefixtures("loras")
def test_equal_strengths_are_the_stock_loader(run, graph):
    """To the last bit, on weights of eight bits too, whose rounding is drawn for every merge."""
    text = graph.text()
    links = []
    for dtype in ("default", "fp8_e4m3fn"):
        model = graph.model(weight_dtype=dtype)
        both = (
            with_lora(graph, model, "comfy.safetensors", 0.7),
            with_ours(graph, model, "comfy.safetensors", 0.7, 0.7, 0.7),
        )
        links += [graph.sample(changed, text, steps=1) for changed in both]
    graph.show(*links)
    stock, ours, stock_fp8, ours_fp8 = sampled(run(graph), *links)
    assert torch.equal(ours, stock)
    assert torch.equal(ours_fp8, stock_fp8)


@pytest.mark.usefixtures("loras")
def test_strengths_by_part_and_a_stack_of_two(run, graph, model_folder):
    """One loader with three strengths, and two in a row that change a part each; against weights
    added by hand.
    """
    parts = {"fusion": [layer for layer in LAYERS if layer.endswith("_fusion")]}
    parts["audio"] = [
        layer
        for layer in LAYERS
        if layer.startswith("audio_model.") and layer not in parts["fusion"]
    ]
    parts["video"] = [layer for layer in LAYERS if layer not in parts["fusion"] + parts["audio"]]
    strengths = {"video": 1.0, "audio": -0.5, "fusion": 2.0}
    weights = load_file(model_folder / MODEL)
    for part, strength in strengths.items():
        weights = merged(weights, parts[part], strength)
    save_file(weights, model_folder / "merged_parts.safetensors")

    text, model = graph.text(), graph.model()
    expected = graph.model("merged_parts.safetensors")
    at_once = with_ours(graph, model, "comfy.safetensors", **strengths)
    first = with_ours(graph, model, "kohya.safetensors", video=1.0, audio=-1.5, fusion=0.0)
    stacked = with_ours(graph, first, "diffusers.safetensors", video=0.0, audio=1.0, fusion=2.0)
    links = [graph.sample(m, text, steps=1) for m in (expected, at_once, stacked)]
    graph.show(*links, output(first, 1))
    result = run(graph)
    exact, *others = sampled(result, *links)
    for actual in others:
        assert relative_error(actual, exact) < 1e-5
    counts = {part: len(layers) for part, layers in parts.items()}
    assert result.value(first[0], 1) == (
        f"kohya.safetensors: video {counts['video']} keys at 1, "
        f"audio {counts['audio']} keys at -1.5, fusion {counts['fusion']} keys at 0"
    )


# Every precision in which a file can be, among the layouts people have; the others hold the same
# numbers.
PRECISIONS = ("fused_fp16", "fused_bf16", "plain_fp8", "scaled_fp8", "marked_fp8")


def in_layout(graph, folder, layout):
    """Load the small model from a file of a layout."""
    (file,), _ = layout.write(load_file(folder / MODEL), folder / f"lora_{layout.name}")
    return graph.model(file.name)


@pytest.mark.usefixtures("loras")
def test_a_lora_takes_effect_in_every_precision(run, graph, model_folder):
    """As it does in float32, but for the rounding of weights, once in the file and once with the
    LoRA added.

    The first is by half a unit in the last place at most. The second can be by a whole one, for
    core rounds eight
    bits up or down at random, in proportion. So a weight is off by three times the half unit at
    most, and a result, which is a sum over many weights, by less.
    """
    layouts = [layout for layout in LAYOUTS if layout.name in PRECISIONS]
    assert len(layouts) == len(PRECISIONS)
    models = [graph.model(), graph.model(weight_dtype="fp8_e4m3fn")]
    models += [in_layout(graph, model_folder, layout) for layout in layouts]
    text = graph.text()
    changed = [with_lora(graph, model, "comfy.safetensors", 2.0) for model in models]
    links = [graph.sample(model, text, steps=1, cfg=1.0) for model in (models[0], *changed)]
    graph.show(*links)
    plain, expected, *others = sampled(run(graph), *links)
    assert relative_error(expected, plain) > 1
    for rounding, actual in zip(
        [FP8_E4M3, *(layout.rounding for layout in layouts)], others, strict=True
    ):
        assert 0 < relative_error(actual, expected) < 3 * rounding
