"""Where ComfyUI is changed: each change does its work, passes through what needs none, and an
extension that stands in the way is named.
"""

import ast
import functools
from pathlib import Path
from types import ModuleType

import comfy.model_detection
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model import core_facts, core_patches, family
from safetensors.torch import load_file
from small_graph import MODEL, Graph, output, sampled

pytestmark = pytest.mark.graph

PACKAGE = Path(family.__file__).parent
SAMPLER_PATCHES = [
    patch for patch in core_patches.PATCHES if patch.home is comfy.samplers.CFGGuider
]
# What 0.33 does itself, but for the second of one name: on older cores the changes stand there
# already, and are put on once more.
INTERFACES = ("sample", "sample", "outer_sample", "outer_sample", "inner_sample")


def written_elsewhere(text):
    """A function named `replacement`, of a module of another extension."""
    home = ModuleType("custom_nodes.other_extension")
    exec(text, home.__dict__)  # noqa: S102
    return home.replacement


def changes_of(path):
    """What a file does that can change a module or class: setattr, or an attribute of core set."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {"comfy"} | {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("comfy")
        for alias in node.names
    }
    for node in ast.walk(tree):
        called = getattr(node.func, "id", None) if isinstance(node, ast.Call) else None
        if called in ("setattr", "delattr"):
            yield called
        for target in getattr(node, "targets", []) if isinstance(node, ast.Assign) else []:
            while isinstance(target, ast.Attribute):
                target = target.value
                if getattr(target, "id", None) in imported:
                    yield ast.unparse(node)


def test_every_change_is_in_the_list():
    assert [patch.name for patch in SAMPLER_PATCHES] == list(INTERFACES)
    elsewhere = {
        "core_patches.py": {"setattr"},
        "core_vae.py": {"setattr"},  # core's class of another width, for the time of one call
        "differentiable.py": {"setattr", "delattr"},  # a MODEL's own layers, for one forward
        "frames_on_disk.py": {"setattr"},  # a tensor knows the file that it is a map of
        "mux.py": {"setattr"},  # settings of an encoder
    }
    for path in PACKAGE.rglob("*.py"):
        assert set(changes_of(path)) == elsewhere.get(path.name, set()), path


def test_no_fact_is_read_off_core_s_source_or_version():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in ("getsource", "comfyui_version", "__version__")), (
            path
        )


def test_each_change_says_where_why_and_until_when():
    for patch in core_patches.PATCHES:
        assert patch.place.startswith(("comfy.", "comfy_extras.", "latent_preview."))
        assert patch.why.endswith(".")
        assert patch.newer
        if patch.is_needed:
            module = core_facts.module_of(getattr(patch.home, patch.name))
            assert module.startswith(core_patches.__name__.removesuffix("core_patches"))


def samplings(graph):
    """Nothing, the picture, the sound held; and two in a row, of which the second adds no noise."""
    model, text, latent = graph.model(), graph.text(), graph.latent()
    mask = graph.add("SolidMask", value=0.0, width=64, height=64)
    held = graph.add("SetLatentNoiseMask", samples=latent, mask=mask)
    apart = graph.add("OviSeparateLatent", latent=latent)
    sound = graph.add("SetLatentNoiseMask", samples=output(apart, 1), mask=mask)
    recording = graph.add("OviConcatLatent", video_latent=apart, audio_latent=sound)
    first = graph.sample_advanced(
        model, text, latent, end_at_step=2, return_with_leftover_noise="enable"
    )
    second = graph.sample_advanced(model, text, first, start_at_step=2, add_noise="disable")
    plain = [graph.sample(model, text, latent_image=given) for given in (latent, held, recording)]
    return [*plain, second]


def test_the_changes_for_older_cores_change_nothing_where_none_is_needed(
    runtime,
    graph,
    stand_ins,  # noqa: ARG001
    model_folder,  # noqa: ARG001
    monkeypatch,
):
    links = samplings(graph)
    graph.show(*links)

    def run():
        result = runtime.run(graph.prompt, preview="latent2rgb")
        assert result.ok, result.error
        return sampled(result, *links), [event["image"].size for event in result.named("preview")]

    before, previews = run()
    assert len(previews) == 10
    for patch in SAMPLER_PATCHES:
        monkeypatch.setattr(patch.home, patch.name, patch.wrap(getattr(patch.home, patch.name)))
    again, previews_again = run()
    assert all(torch.equal(one, other) for one, other in zip(before, again, strict=True))
    assert previews_again == previews


def test_nested_tensors_move_to_the_processor():
    nested = NestedTensor([torch.zeros(1), torch.ones(2)])
    assert [part.device.type for part in nested.cpu().unbind()] == ["cpu", "cpu"]


REPLACEMENTS = {
    "knows nothing": "replacement = lambda state_dict, key_prefix, metadata=None: None",
    "knows Wan alone": "replacement = lambda state_dict, key_prefix, metadata=None: "
    "{'image_model': 'wan2.1', 'model_type': 't2v', 'dim': 256, 'num_heads': 2, 'ffn_dim': 512, "
    "'num_layers': 4, 'patch_size': (1, 2, 2), 'freq_dim': 256, 'window_size': (-1, -1), "
    "'qk_norm': True, 'cross_attn_norm': True, 'eps': 1e-6, 'in_dim': 48, 'out_dim': 48}",
}
LOADERS = {
    "UNETLoader": {"unet_name": MODEL, "weight_dtype": "default"},
    "OviModelLoader": {
        "model": MODEL,
        "audio_model": "in the same file",
        "weight_dtype": "default",
    },
    "OviMiniature": {},
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_a_replaced_detection_is_named(runtime, model_folder, monkeypatch, loader, replacement):  # noqa: ARG001
    function = written_elsewhere(REPLACEMENTS[replacement])
    monkeypatch.setattr(comfy.model_detection, "detect_unet_config", function)
    graph = Graph()
    graph.show(graph.add(loader, **LOADERS[loader]))
    result = runtime.run(graph.prompt)
    assert not result.ok
    assert "'custom_nodes.other_extension' replaced comfy.model_detection.detect_unet_config" in (
        result.error
    )
    assert "Update or remove that extension" in result.error


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.diffusion_model._orig_mod."])
def test_a_prefix_that_core_does_not_know_is_named(model_folder, prefix):
    weights = load_file(model_folder / MODEL)
    with pytest.raises(ValueError, match=f"its names begin with '{prefix}', which"):
        comfy.sd.load_diffusion_model_state_dict({prefix + k: x for k, x in weights.items()})


def test_whoever_wrote_a_function_is_told():
    nameless = {}
    exec("def made(): pass", nameless)  # noqa: S102
    nameless["made"].__globals__.pop("__name__", None)

    class Odd:
        def __getattr__(self, name):
            return self

    assert core_facts.module_of(functools.partial(load_file)) == "safetensors.torch"
    assert core_facts.module_of(functools.lru_cache(load_file)) == "safetensors.torch"
    assert isinstance(core_facts.module_of(nameless["made"]), str)
    assert core_facts.module_of(Odd()) == Odd.__module__


def test_a_replaced_detection_that_asks_the_old_one_is_fine(run, graph, monkeypatch):
    old = comfy.model_detection.detect_unet_config
    monkeypatch.setattr(
        comfy.model_detection, "detect_unet_config", lambda *args, **kwargs: old(*args, **kwargs)
    )
    link = graph.add("OviMiniature")
    graph.show(link)
    assert isinstance(run(graph).value(link[0]).model, family.OviBase)
