"""What nodes made for other models put into a MODEL: refused with the node's name, or right."""

import types

import comfy.model_sampling
import pytest
import torch
from comfyui_ovi.ovi_model.sample import instead, other_nodes
from goldens import small_model, small_patcher


def patched(object_patches=None, **model_options):
    """A MODEL with what nodes put into it."""
    patcher = small_patcher().clone()
    for key, patch in (object_patches or {}).items():
        patcher.add_object_patch(key, patch)
    patcher.model_options |= model_options
    return patcher


class WanCrossAttentionPatch:
    """Bound to an attention, as KJNodes' 'WanVideoNAG' binds it."""

    def __get__(self, attention, _kind=None):
        def wrapped_attention(module, x, context, **_options):
            return module.o(x + context.mean())

        return types.MethodType(wrapped_attention, attention)


class WanAttentionPatch:
    """The same for self-attention, as 'WanVideoEnhanceAVideo' does."""

    def __get__(self, attention, _kind=None):
        def wrapped_attention(module, x, _freqs_cis, **_options):
            return module.o(x)

        return types.MethodType(wrapped_attention, attention)


def check(patcher=None, **transformer_options):
    other_nodes.check(small_model(), patcher, transformer_options)


def refused(patcher=None, **transformer_options) -> str:
    with pytest.raises(ValueError) as error:
        check(patcher, **transformer_options)
    return str(error.value)


def test_nag_of_wan_s_cross_attention_is_refused_by_name():
    attention = small_model().blocks[0].cross_attn
    patch = WanCrossAttentionPatch().__get__(attention)
    said = refused(patched({"diffusion_model.blocks.0.cross_attn.forward": patch}))
    assert said.startswith("'WanVideoNAG' replaces the read of the prompt by Wan's.")
    assert "Use ComfyUI's 'Normalized Attention Guidance'" in said


@pytest.mark.parametrize("layer", ["cross_attn.forward", "ffn.forward", "forward"])
@pytest.mark.parametrize("tower", ["", "audio_model."])
def test_forwards_of_unknown_nodes_are_refused_by_their_file(layer, tower):
    key = f"diffusion_model.{tower}blocks.1.{layer}"
    said = refused(patched({key: lambda x: x}))
    assert f"test_other_nodes) replaces '{tower}blocks.1.{layer}' by Wan's." in said


def test_teacache_is_refused_by_its_option():
    assert "TeaCache's thresholds were measured on other models" in refused(rel_l1_thresh=0.2)


def test_another_model_s_inner_forward_is_refused():
    def teacache_forward_orig(_network, x, *_about):
        return x

    network = small_model()
    network.forward_orig = types.MethodType(teacache_forward_orig, network)
    with pytest.raises(ValueError, match="replaces a model's inner forward by that of another one"):
        other_nodes.check(network, None, {})


def test_self_attention_of_wan_s_kind_may_be_replaced():
    patch = WanAttentionPatch().__get__(small_model().blocks[0].self_attn)
    check(patched({"diffusion_model.blocks.0.self_attn.forward": patch}))


def wrapper(node: str):
    """A wrapper of a forward that is named as one made in a node."""

    def wrap(executor, *args):
        return executor(*args)

    wrap.__qualname__ = f"{node}.execute.<locals>.wrap"
    return wrap


def test_wrappers_are_refused_by_the_node_that_made_them():
    name = "HiDreamO1PatchSeamSmoothing"
    said = refused(wrappers={"diffusion_model": {"key": [wrapper(name)]}})
    assert said.startswith(f"'{name}' moves a picture over a grid of patches")
    check(wrappers={"diffusion_model": {"key": [wrapper("EasyCacheNode")]}})


def sampling(base, *kinds, **parameters):
    """Noise levels as a node sets them: a class made in its function."""
    made = type("ModelSamplingAdvanced", (base, *kinds), {})()
    made.set_parameters(**parameters)
    return made


def test_flows_with_ovi_s_times_may_be_set():
    flow = comfy.model_sampling.ModelSamplingDiscreteFlow
    made = sampling(flow, comfy.model_sampling.CONST, shift=3.0, multiplier=1000)
    check(patched({"model_sampling": made}))


@pytest.mark.parametrize(
    "made",
    [
        sampling(
            comfy.model_sampling.ModelSamplingDiscreteFlow,
            comfy.model_sampling.CONST,
            shift=3.0,
            multiplier=1.0,
        ),
        sampling(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST, shift=1.0),
        sampling(
            comfy.model_sampling.ModelSamplingContinuousEDM,
            comfy.model_sampling.EPS,
            sigma_min=0.1,
            sigma_max=9.0,
            sigma_data=1.0,
        ),
    ],
    ids=["times to 1", "Flux", "EDM"],
)
def test_other_times_and_predictions_are_refused(made):
    said = refused(patched({"model_sampling": made}))
    assert "use 'ModelSamplingSD3', or 'Ovi Scheduler'" in said


def cfg_function(dims):
    """A function of core's 'RescaleCFG', which takes the deviation over some dimensions."""

    def rescale_cfg(args):
        return torch.std(args["cond"], dim=dims, keepdim=True)

    rescale_cfg.__qualname__ = "RescaleCFG.patch.<locals>.rescale_cfg"
    return rescale_cfg


def test_rescaling_is_refused_where_it_asks_for_four_dimensions():
    assert "RescaleCFG" in refused(patched(sampler_cfg_function=cfg_function((1, 2, 3))))
    check(patched(sampler_cfg_function=cfg_function((1, 2))))


def test_every_name_that_stands_for_a_node_has_words():
    assert set(instead.SET_BY.values()) <= set(instead.INSTEAD)
