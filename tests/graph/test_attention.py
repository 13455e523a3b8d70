"""The choice of an attention kernel in workflows: with LoRA and guidance, and with what is not
installed.
"""

import logging

import pytest
import torch
from comfy.ldm.modules import attention as core
from comfyui_ovi.ovi_model.sample.attention_kernel import KERNELS
from goldens import relative_error
from lora_files import LAYERS, with_lora, write_lora
from small_graph import is_ours, output, sampled

pytestmark = pytest.mark.graph


@pytest.fixture
def executor(runtime):
    """An executor for each test, since a cache would not see that another kernel is there."""
    return runtime.new_executor()


def attending(graph, model, kernel):
    return graph.add("OviAttention", model=model, kernel=kernel)


def guided(graph, model):
    inputs = {
        "audio_cfg": 3.0,
        "skip_layer": 2,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "cfg_end_percent": 0.5,
    }
    return graph.add("OviGuidance", model=model, **inputs)


@pytest.mark.parametrize("kernel", ["flash-attn", "sage", "xformers", "sage3", "int8"])
def test_a_workflow_runs_whatever_is_installed(run, graph, kernel, caplog):
    text, model = graph.text(), graph.model()
    chosen = attending(graph, model, kernel)
    links = [graph.sample(m, text) for m in (model, chosen)]
    graph.show(*links, output(chosen, 1))
    result = run(graph)
    expected, actual = sampled(result, *links)
    assert torch.equal(actual, expected)
    (warning,) = [
        r.getMessage() for r in caplog.records if is_ours(r) and r.levelno >= logging.WARNING
    ]
    assert warning.startswith(f"Ovi: Attention '{kernel}' needs a CUDA card")
    assert result.value(chosen[0], 1).startswith(warning.removeprefix("Ovi: "))
    caplog.clear()


def test_the_order_of_attention_lora_and_guidance_does_not_matter(
    run, graph, small_files, monkeypatch
):
    """With a registered function in the place of a kernel, which is called in each order, and as
    often.
    """
    calls = []

    def attend(*args, **kwargs):
        calls.append(kwargs["transformer_options"]["cond_or_uncond"])
        return core.attention_pytorch(*args, **kwargs)

    monkeypatch.setitem(core.REGISTERED_ATTENTION_FUNCTIONS, "xformers", attend)
    kernel = KERNELS["xformers"]._replace(devices=("cpu",))
    monkeypatch.setitem(KERNELS, "xformers", kernel)
    write_lora(small_files / "loras" / "attention.safetensors", LAYERS)
    text, model = graph.text(), graph.model()
    plain = graph.sample(guided(graph, with_lora(graph, model, "attention.safetensors")), text)
    first = guided(
        graph, with_lora(graph, attending(graph, model, "xformers"), "attention.safetensors")
    )
    last = attending(
        graph, guided(graph, with_lora(graph, model, "attention.safetensors")), "xformers"
    )
    back = graph.sample(attending(graph, last, "auto"), text)
    links = [plain, *(graph.sample(m, text) for m in (first, last)), back]
    graph.show(*links)
    expected, first, last, back = sampled(run(graph), *links)
    assert relative_error(first, last) < 1e-5
    assert relative_error(back, expected) < 1e-5
    assert 0 < relative_error(first, expected) < 1e-5
    # Two samplers, a guided step and one that is not, four blocks, three calls a tower.
    assert len(calls) == 2 * 2 * 4 * 6
    assert {tuple(kinds) for kinds in calls} == {(1, 0), (0,)}
