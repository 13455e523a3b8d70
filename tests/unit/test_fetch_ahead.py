"""Core fetches the weights of a pair of blocks while the one before runs; on a processor it is off,
so its calls are looked at, not their effect.
"""

import inspect
from types import SimpleNamespace

import pytest
import torch
from comfyui_ovi.ovi_model import core_facts
from comfyui_ovi.ovi_model.network import lock_step
from goldens import load, small_model

TENSORS, _ = load("fusion_t32_t2av")


def forward(network, **options):
    texts = [TENSORS[name][None] for name in ("vid_context", "audio_context")]
    latents = [TENSORS["video"][None], TENSORS["audio"].mT[None]]
    with torch.inference_mode():
        return network(latents, TENSORS["t"], *texts, transformer_options=options)


@pytest.fixture
def calls(monkeypatch):
    """What a forward asks of core, in order; each block that runs is noted too."""
    noted = []

    def make(queue, device, transformer_options):
        assert transformer_options["prefetch_dynamic_vbars"]
        noted.append(("make", queue, device.type))
        return list(queue)

    def pop(queue, _device, module):
        assert queue is not None
        noted.append(("pop", module))

    stand_in = SimpleNamespace(make_prefetch_queue=make, prefetch_queue_pop=pop)
    monkeypatch.setattr(lock_step, "model_prefetch", stand_in)
    return noted


def test_a_pair_is_fetched_before_it_runs(calls):
    network = small_model()
    for block in network.blocks:
        block.register_forward_pre_hook(lambda block, _given: calls.append(("run", block)))
    forward(network, prefetch_dynamic_vbars=True)
    (_, queue, device), *rest = calls
    pairs = list(zip(network.blocks, network.audio_model.blocks, strict=True))
    assert device == "cpu"
    assert [tuple(entry) for entry in queue] == pairs
    expected = [
        step
        for module, (block, _) in zip(queue, pairs, strict=True)
        for step in (("pop", module), ("run", block))
    ]
    assert rest == [*expected, ("pop", None)]


def test_a_replaced_block_is_fetched_too(calls):
    replaced = {"dit": {("double_block", 1): lambda args, _extra: {"img": args["img"]}}}
    forward(small_model(), prefetch_dynamic_vbars=True, patches_replace=replaced)
    assert [name for name, *_ in calls] == ["make", *["pop"] * 4]


@pytest.mark.skipif(core_facts.model_prefetch is None, reason="this core does not fetch ahead")
def test_core_takes_these_calls():
    """Its functions take what is given; on a processor they do nothing."""
    network = small_model()
    prefetch = core_facts.model_prefetch
    inspect.signature(prefetch.make_prefetch_queue).bind([], torch.device("cpu"), {})
    queue = prefetch.make_prefetch_queue([network], torch.device("cpu"), {})
    assert queue is None
    prefetch.prefetch_queue_pop(queue, torch.device("cpu"), network)
    forward(network, prefetch_dynamic_vbars=True)
