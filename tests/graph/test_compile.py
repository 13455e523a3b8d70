"""TorchCompileModel on Ovi: one graph without breaks, made once for all steps and for all runs of
one size.
"""

import comfy.sample
import pytest
import torch
import torch._dynamo
from comfy.nested_tensor import NestedTensor
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfyui_ovi.ovi_model.sample import attention_kernel, guidance, reference_guidance
from goldens import relative_error, small_configs, small_patcher
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

SHAPES = (1, 48, 3, 4, 6), (1, 20, 10)


def sample(patcher, seed, steps=4, cfg=4.0, mask=None, references=None):
    draw = torch.Generator().manual_seed(seed)
    prompts = [
        [[torch.randn(1, 16, small_configs()[0].text_dim, generator=draw), references or {}]]
        for _ in range(2)
    ]
    noise = NestedTensor([torch.randn(shape, generator=draw) for shape in SHAPES])
    empty = NestedTensor([torch.zeros(shape) for shape in SHAPES])
    with torch.inference_mode():
        return comfy.sample.sample(
            patcher,
            noise,
            steps,
            cfg,
            "euler",
            "simple",
            *prompts,
            empty,
            noise_mask=mask,
            seed=seed,
        ).unbind()


@pytest.fixture
def compiled():
    """Compile a MODEL as the stock node does, and count its graphs."""
    torch._dynamo.reset()
    counters.clear()

    def compile_it(patcher):
        backend = CompileCounterWithBackend("eager")
        set_torch_compile_wrapper(patcher, backend=backend)
        return backend

    yield compile_it
    torch._dynamo.reset()


def guided(end_percent):
    """With the attention of a card; core's for processors asks the system for free memory in the
    middle of a graph.
    """
    model, _ = attention_kernel.choose_attention(small_patcher(), "pytorch")
    return guidance.guide(model, 3.0, 1, 0.0, end_percent)


def first_frame_held():
    video, audio = (torch.ones(shape) for shape in SHAPES)
    video[:, :, 0] = 0
    return NestedTensor([video, audio])


@pytest.mark.parametrize("mask", [None, first_frame_held()], ids=["text", "image"])
def test_one_graph_serves_all_steps_and_runs(compiled, mask):
    patcher = guided(1.0)
    plain = [sample(patcher, seed, mask=mask) for seed in (0, 1)]
    backend = compiled(patcher)
    for seed, expected in enumerate(plain):
        for stream, other in zip(sample(patcher, seed, mask=mask), expected, strict=True):
            assert relative_error(stream, other) < 1e-5
        assert (backend.frame_count, dict(counters["graph_break"])) == (1, {})


def test_a_skipped_layer_that_ends_in_between_makes_one_more(compiled):
    patcher = guided(0.6)
    backend = compiled(patcher)
    for seed in (0, 1):
        sample(patcher, seed)
        assert (backend.frame_count, dict(counters["graph_break"])) == (2, {})


def test_references_are_in_the_same_graph(compiled):
    """Four predictions of a step, with a picture and a voice after the clip."""
    draw = torch.Generator().manual_seed(5)
    references = {
        "reference_latents": [torch.randn(1, 48, 1, 4, 6, generator=draw)],
        "reference_voices": [torch.randn(1, 20, 6, generator=draw)],
    }
    model, _ = attention_kernel.choose_attention(small_patcher(), "pytorch")
    patcher = reference_guidance.guide_references(model, 4.0, 1.5, 2.0)
    plain = [sample(patcher, seed, steps=2, references=references) for seed in (0, 1)]
    backend = compiled(patcher)
    for seed, expected in enumerate(plain):
        made = sample(patcher, seed, steps=2, references=references)
        for stream, other in zip(made, expected, strict=True):
            assert relative_error(stream, other) < 1e-5
        assert (backend.frame_count, dict(counters["graph_break"])) == (1, {})
