"""Latents kept in files and handed through core's nodes: the sampling goes on as if nothing had
happened, or a sentence says which way to take.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.nodes.latent_files import OviLoadLatent
from comfyui_ovi.ovi_model.save.latent_file import read_latent, write_latent
from safetensors import safe_open
from small_graph import Graph, output, parts

pytestmark = pytest.mark.graph

ADVICE = "'Ovi Separate Latent'", "'Ovi Concat Latent'"


@pytest.fixture
def core(runtime):
    """Call a node of core's as its executor does, and return its first output; skip if there is
    none.
    """

    def call(name, **inputs):
        node = runtime.nodes.NODE_CLASS_MAPPINGS.get(name)
        if node is None:
            pytest.skip(f"this core has no {name}")
        if hasattr(node, "execute"):
            return node.execute(**inputs).args[0]
        made = getattr(node(), node.FUNCTION)(**inputs)
        return made[0]

    return call


def clips(count=3, frames=3, **others):
    """A latent of as many clips, with masks of their own."""
    video = torch.randn(count, 48, frames, 4, 4)
    audio = torch.randn(count, 20, round((frames - 1) * 157 / 30))
    masks = torch.rand(count, 1, *video.shape[2:]), torch.rand(count, 1, audio.shape[2])
    return {"samples": NestedTensor([video, audio]), "noise_mask": NestedTensor(masks), **others}


def picked(latent, numbers):
    """The tensors of these clips: of samples and masks, of picture and sound."""
    return [x[numbers] for key in ("samples", "noise_mask") for x in latent[key].unbind()]


def same(latent, tensors):
    return all(map(torch.equal, picked(latent, slice(None)), tensors))


def saved_name(result, link):
    (shown,) = result.outputs[link[0]]["latents"]
    assert shown["type"] == "output"
    return f"{shown['subfolder']}/{shown['filename']}"


def masked_latent(graph):
    """A latent whose left half of the picture is held."""
    apart = graph.add("OviSeparateLatent", latent=graph.latent())
    mask = graph.add("SolidMask", value=0.5, width=4, height=4)
    held = graph.add("SetLatentNoiseMask", samples=apart, mask=mask)
    return graph.add("OviConcatLatent", video_latent=held, audio_latent=output(apart, 1))


def test_sampling_goes_on_from_a_file_to_the_same_bytes(run, runtime):
    """Two steps of four, saved with its mask; the other two from memory and from the file."""
    graph = Graph()
    model, text = graph.model(), graph.text()
    half = graph.sample_advanced(
        model, text, masked_latent(graph), end_at_step=2, return_with_leftover_noise="enable"
    )
    kept = graph.add("OviSaveLatent", latent=half, filename_prefix="kept/%width%")
    rest = {"add_noise": "disable", "start_at_step": 2}
    through = graph.sample_advanced(model, text, kept, **rest)
    graph.show(through)
    first = run(graph, extra_data={"extra_pnginfo": {"workflow": {"nodes": []}}})
    expected = parts(first.value(through[0]))
    name = saved_name(first, kept)
    assert name == "kept/64_00001_.safetensors"
    with safe_open(runtime.output / name, "pt") as file:
        assert json.loads(file.metadata()["workflow"]) == {"nodes": []}
        assert json.loads(file.metadata()["prompt"]) == graph.prompt

    later = Graph()
    loaded = later.add("OviLoadLatent", file=f"{name} [output]")
    again = later.sample_advanced(later.model(), later.text(), loaded, **rest)
    later.show(again)
    second = run(later)
    assert "noise_mask" in second.value(loaded[0])
    assert all(map(torch.equal, parts(second.value(again[0])), expected))


def test_a_server_without_metadata_saves_none(run, runtime, graph, monkeypatch):
    monkeypatch.setattr(runtime.args, "disable_metadata", True)
    kept = graph.add("OviSaveLatent", latent=graph.latent(), filename_prefix="bare/")
    name = saved_name(run(graph, extra_data={"extra_pnginfo": {"workflow": {}}}), kept)
    assert name == "bare/Ovi_00001_.safetensors"
    with safe_open(runtime.output / name, "pt") as file:
        assert set(file.metadata()) == {"ovi_latent"}


def test_a_changed_file_is_read_again(run, runtime, graph):
    kept = graph.add("OviSaveLatent", latent=graph.latent(), filename_prefix="changed")
    large = graph.add(
        "OviSaveLatent", latent=graph.latent(width=96), filename_prefix="changed_large"
    )
    result = run(graph)
    first, second = (saved_name(result, link).removeprefix("/") for link in (kept, large))
    widths = []
    for name in (first, second, second):
        (runtime.input / "changed.safetensors").write_bytes((runtime.output / name).read_bytes())
        again = Graph()
        loaded = again.add("OviLoadLatent", file="changed.safetensors")
        again.show(loaded)
        result = run(again)
        widths.append(parts(result.value(loaded[0]))[0].shape[-1])
    assert widths == [4, 6, 6]


def test_the_list_has_what_can_be_chosen(runtime):
    (runtime.output / "latents").mkdir(exist_ok=True)
    for path in (
        runtime.input / "listed.safetensors",
        runtime.input / "listed.png",
        runtime.output / "latents" / "k_00001_.safetensors",
        runtime.output / "latents" / ".k_00002_.0123456789ab.partial.safetensors",
    ):
        path.touch()
    options = OviLoadLatent.define_schema().inputs[0].options
    assert {"listed.safetensors", "latents/k_00001_.safetensors [output]"} <= set(options)
    assert all(option.removesuffix(" [output]").endswith(".safetensors") for option in options)
    assert not any(".partial" in option for option in options)


@pytest.mark.parametrize(
    "file",
    [
        "absent.safetensors",
        "../output/secret.safetensors",
        "../../x [output]",
        "/etc/hostname",
        "",
        ".",
        "a\0b",
        " [output]",
        5,
    ],
)
def test_files_that_are_none_are_refused_before_anything_is_loaded(runtime, graph, file):
    (runtime.output / "secret.safetensors").touch()
    graph.show(graph.add("OviLoadLatent", file=file))
    result = runtime.run(graph.prompt)
    assert not result.ok
    assert "There is no latent file" in result.error
    assert not result.named("executing")


@pytest.mark.parametrize(
    ("prefix", "said"), [("../x", "leads out of"), ("", "names no file"), ("a\nb", "no file name")]
)
def test_names_that_no_file_can_have(runtime, graph, stand_ins, prefix, said):  # noqa: ARG001
    graph.add("OviSaveLatent", latent=graph.latent(), filename_prefix=prefix)
    result = runtime.run(graph.prompt)
    assert not result.ok
    assert said in result.error


def test_many_save_one_name_at_once(tmp_path):
    """As several servers do; test_whole_file.py has them in processes of their own."""
    path, latent = tmp_path / "k_00001_.safetensors", clips()
    with ThreadPoolExecutor(4) as pool:
        saved = list(pool.map(lambda _: write_latent(path, latent, {}), range(20)))
    names = [f"k_{number:05}_.safetensors" for number in range(1, 21)]
    assert sorted(one.name for one in saved) == names
    assert sorted(one.name for one in tmp_path.iterdir()) == names
    for one in saved:
        assert same(read_latent(one), picked(latent, slice(None)))


@pytest.mark.parametrize(("first", "count"), [(0, 1), (1, 2), (2, 5)])
def test_clips_are_picked_from_a_batch_with_their_masks(core, first, count):
    latent = clips(3)
    made = core("LatentFromBatch", samples=latent, batch_index=first, length=count)
    numbers = list(range(first, 3))[:count]
    assert same(made, picked(latent, numbers))
    assert made["batch_index"] == numbers
    again = core("LatentFromBatch", samples=made, batch_index=0, length=1)
    assert again["batch_index"] == numbers[:1]


def test_clips_are_repeated_with_their_masks(core):
    latent = clips(2, batch_index=[0, 1])
    made = core("RepeatLatentBatch", samples=latent, amount=3)
    assert same(made, picked(latent, [0, 1] * 3))
    assert made["batch_index"] == [0, 1, 2, 3, 4, 5]


def test_one_mask_for_all_clips_stays_one(core):
    latent = clips(2) | {"noise_mask": clips(1)["noise_mask"]}
    for name, more in (
        ("RepeatLatentBatch", {"amount": 2}),
        ("LatentFromBatch", {"batch_index": 1, "length": 1}),
    ):
        made = core(name, samples=latent, **more)
        assert [len(mask) for mask in made["noise_mask"].unbind()] == [1, 1]


@pytest.mark.parametrize("name", ["LatentBatch", "BatchLatentsNode", "BatchImagesMasksLatentsNode"])
def test_latents_form_a_batch(core, name):
    one, other = clips(2), clips(1, batch_index=[7])
    inputs = {
        "LatentBatch": {"samples1": one, "samples2": other},
        "BatchLatentsNode": {"latents": {"a": one, "b": other}},
        "BatchImagesMasksLatentsNode": {"inputs": {"a": one, "b": other}},
    }
    made = core(name, **inputs[name])
    expected = [
        torch.cat(pair) for pair in zip(picked(one, slice(2)), picked(other, [0]), strict=True)
    ]
    assert all(map(torch.equal, made["samples"].unbind(), expected[:2]))
    assert made["batch_index"] == [0, 1, 7]


def test_a_batch_made_by_core_is_sampled_and_decoded(run, graph):
    """One clip twice, and one more; the first and the last of them are picked again."""
    start = graph.sample(latent_image=graph.latent(), steps=1)
    twice = graph.add("RepeatLatentBatch", samples=start, amount=2)
    batch = graph.add("LatentBatch", samples1=twice, samples2=start)
    sampled = graph.sample(latent_image=batch, steps=1, denoise=0.5)
    last = graph.add("LatentFromBatch", samples=sampled, batch_index=2, length=1)
    vaes = {"vae": graph.video_vae(), "audio_vae": graph.audio_vae()}
    images = graph.add("OviDecode", samples=last, tiling="auto", **vaes)
    graph.show(images)
    result = run(graph)
    assert [len(stream) for stream in parts(result.value(sampled[0]))] == [3, 3]
    assert result.value(images[0]).shape[0] == 9


WORKS = {
    "LatentAdd": {"samples1": 2, "samples2": 1},
    "LatentSubtract": {"samples1": 2, "samples2": 2},
    "LatentMultiply": {"samples": 2, "multiplier": 0.5},
    "LatentBlend": {"samples1": 2, "samples2": 2, "blend_factor": 0.5},
    "LatentBatchSeedBehavior": {"samples": 2, "seed_behavior": "fixed"},
    "SetLatentNoiseMask": {"samples": 2, "mask": torch.ones(1, 8, 8)},
}
REFUSED = {
    "SaveLatent": {"samples": 1, "filename_prefix": "core/Ovi"},
    "LatentUpscale": {
        "samples": 1,
        "upscale_method": "bilinear",
        "width": 128,
        "height": 128,
        "crop": "disabled",
    },
    "LatentUpscaleBy": {"samples": 1, "upscale_method": "bilinear", "scale_by": 2.0},
    "LatentRotate": {"samples": 1, "rotation": "90 degrees"},
    "LatentFlip": {"samples": 1, "flip_method": "x-axis: vertically"},
    "LatentCrop": {"samples": 1, "width": 64, "height": 64, "x": 0, "y": 0},
    "LatentComposite": {"samples_to": 1, "samples_from": 1, "x": 0, "y": 0},
    "LatentCompositeMasked": {
        "destination": 1,
        "source": 1,
        "x": 0,
        "y": 0,
        "resize_source": False,
    },
    "LatentInterpolate": {"samples1": 1, "samples2": 1, "ratio": 0.5},
    "LatentConcat": {"samples1": 1, "samples2": 1, "dim": "t"},
    "LatentCut": {"samples": 1, "dim": "t", "index": 0, "amount": 1},
    "LatentCutToBatch": {"samples": 1, "dim": "t", "slice_size": 1},
    "ReplaceVideoLatentFrames": {"destination": 1, "source": 1, "index": 0},
    "NormalizeVideoLatentStart": {"latent": 1, "start_frame_count": 1, "reference_frame_count": 1},
}


def with_latents(inputs):
    return {
        key: clips(x) if isinstance(x, int) and ("samples" in key or key in LATENT_INPUTS) else x
        for key, x in inputs.items()
    }


FOR_IMAGES = {"LatentRotate", "LatentFlip", "LatentCrop", "LatentComposite"}
LATENT_INPUTS = {"destination", "source", "latent"}


@pytest.mark.parametrize("name", WORKS)
def test_nodes_of_core_that_work_on_both_streams(core, name):
    made = core(name, **with_latents(WORKS[name]))["samples"].unbind()
    assert [tuple(stream.shape) for stream in made] == [(2, 48, 3, 4, 4), (2, 20, 10)]


@pytest.mark.parametrize("name", REFUSED)
def test_nodes_of_core_that_work_on_one_stream_say_which_way_to_take(core, name):
    errors = AttributeError, IndexError, TypeError, ValueError
    with pytest.raises(errors) as caught:
        core(name, **with_latents(REFUSED[name]))
    words = ["latents of images", "'Ovi Decode'"] if name in FOR_IMAGES else ADVICE
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("name", ["KSampler", "OviDecode"])
def test_a_nest_of_one_stream_is_refused_in_a_sentence(
    runtime,
    graph,
    stand_ins,  # noqa: ARG001
    model_folder,  # noqa: ARG001
    monkeypatch,
    name,
):
    class NestOfOne:
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
        RETURN_TYPES = ("LATENT",)
        FUNCTION = "make"
        CATEGORY = "tests"
        make = lambda self: ({"samples": NestedTensor([torch.zeros(1, 48, 3, 4, 4)])},)  # noqa: E731, ARG005

    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "NestOfOne", NestOfOne)
    latent = graph.add("NestOfOne")
    if name == "KSampler":
        graph.show(graph.sample(latent_image=latent))
    else:
        vaes = {"vae": graph.video_vae(), "audio_vae": graph.audio_vae()}
        graph.show(graph.add(name, samples=latent, tiling="auto", **vaes))
    result = runtime.run(graph.prompt)
    assert not result.ok
    assert "'Ovi Concat Latent'" in result.error, result.error
