"""The prompts of one step on two devices: core's *MultiGPU CFG Split* gives what one device gives.

The second device is simulated. Core is told of two: the processor, and the processor under the name
`cpu:1`. So it loads the weights a second time, patches them a second time, and runs the two models
at once in its two threads; but both lie in one memory, and nothing is said of cards that do not.
"""

import threading

import comfy.model_management
import comfy.nested_tensor
import comfy.samplers
import pytest
import torch
from comfyui_ovi.ovi_model.load import lora
from comfyui_ovi.ovi_model.load.reload import reload_with
from comfyui_ovi.ovi_model.sample import guidance, reference_guidance, solver
from goldens import relative_error, small_patcher
from lora_files import matrices, save

nodes = pytest.importorskip(
    "comfy_extras.nodes_multigpu", reason="this ComfyUI has no node 'MultiGPU CFG Split'"
)

DEVICES = [torch.device("cpu"), torch.device("cpu", 1)]
TOLERANCE = 5e-6
EVERY = {"video": 1.0, "audio": 1.0, "fusion": 1.0}
SIGMAS = solver.shifted_sigmas(3, 5.0)


@pytest.fixture
def model():
    """The small model, which core may load again."""
    patcher = small_patcher()
    reload_with(patcher, _Loaded)
    return patcher


class _Loaded:
    """What a loader returns: something with a patcher."""

    def __init__(self):
        self.patcher = small_patcher()


@pytest.fixture
def forwards(model, monkeypatch):
    """Core finds two devices; which prompts ran in which thread and on which copy of the network,
    by forward.
    """
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda **_: DEVICES)
    ran = []
    network = type(model.model.diffusion_model)
    original = network.forward

    def note(self, *args, **kwargs):
        kinds = tuple(kwargs["transformer_options"]["cond_or_uncond"])
        ran.append((kinds, threading.get_ident(), id(self)))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(network, "forward", note)
    return ran


def split(model):
    (model,) = nodes.MultiGPUCFGSplitNode.execute(model, 2).result
    assert [clone.load_device for clone in model.get_additional_models_with_key("multigpu")] == [
        DEVICES[1]
    ]
    return model


def conditioning(seed):
    draw = torch.Generator().manual_seed(seed)
    text, sound = (torch.randn(1, 16, 32, generator=draw) for _ in range(2))
    return [[text, {"audio_context": sound}]]


def sample(model, cfg=4.0, is_held=False, **references):
    """Sample a clip of two latent frames, its first one held or not; returns it as one row.

    references: of both prompts.
    """
    draw = torch.Generator().manual_seed(3)
    shapes = (1, 48, 2, 4, 4), (1, 20, 8)
    noise, latent, mask = (
        comfy.nested_tensor.NestedTensor(streams)
        for streams in (
            [torch.randn(shape, generator=draw) for shape in shapes],
            [torch.randn(shapes[0], generator=draw), torch.zeros(shapes[1])],
            [torch.ones(1, 1, 2, 4, 4), torch.ones(1, 1, 8)],
        )
    )
    if is_held:
        mask.tensors[0][:, :, 0] = 0
    guider = comfy.samplers.CFGGuider(model)
    prompts = (conditioning(seed) for seed in (1, 2))
    guider.set_conds(*([[text, {**given, **references}]] for ((text, given),) in prompts))
    guider.set_cfg(cfg)
    sampler = comfy.samplers.KSAMPLER(solver.sample_flow_unipc)
    made = guider.sample(
        noise, latent, sampler, SIGMAS, denoise_mask=mask if is_held else None, disable_pbar=True
    )
    return torch.cat([stream.flatten() for stream in made.unbind()])


def with_lora(model, folder):
    layers = ("blocks.0.self_attn.q", "audio_model.blocks.1.cross_attn.k_fusion")
    weights = {name: part for layer in layers for name, part in matrices(layer).items()}
    return lora.apply_lora(model, save(folder, weights), EVERY)[0]


def guided(model, audio_cfg=3.0, layer=-1, cfg_range=guidance.WHOLE):
    return guidance.guide(model, audio_cfg, layer, 0.0, 1.0, cfg_range)


CASES = {
    "plain": lambda model, _: model,
    "skipped layer": lambda model, _: guided(model, layer=1),
    "range": lambda model, _: guided(model, cfg_range=(0.2, 0.7)),
    "lora": with_lora,
    "all": lambda model, folder: guided(with_lora(model, folder), 3.0, 1, (0.2, 0.9)),
}


@pytest.mark.parametrize("is_held", [False, True], ids=["free", "first frame held"])
@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_two_devices_make_what_one_makes(tmp_path, model, forwards, change, is_held):
    changed = change(model, tmp_path)
    expected = sample(changed, is_held=is_held)
    assert {thread for _, thread, _ in forwards} == {threading.get_ident()}
    assert {kinds for kinds, _, _ in forwards} <= {(1, 0), (0,)}
    together = len(forwards)
    forwards.clear()

    made = sample(split(changed), is_held=is_held)
    assert relative_error(made, expected) < TOLERANCE
    # Every step with two prompts is two forwards at once, of one prompt each.
    assert {kinds for kinds, _, _ in forwards} == {(1,), (0,)}
    assert len({thread for _, thread, _ in forwards}) == 2
    assert len({network for _, _, network in forwards}) == 2
    guided_steps = sum(kinds == (1,) for kinds, _, _ in forwards)
    assert len(forwards) == together + guided_steps


@pytest.mark.parametrize("audio_cfg", [1.0, 3.0])
def test_a_single_prompt_runs_on_one_device(model, forwards, audio_cfg):
    """At cfg 1 there is nothing to split, unless the sound is guided."""
    sample(split(guided(model, audio_cfg)), cfg=1.0)
    assert len({thread for _, thread, _ in forwards}) == (1 if audio_cfg == 1.0 else 2)


@pytest.mark.parametrize("is_held", [False, True], ids=["free", "first frame held"])
def test_references_on_two_devices_make_what_one_makes(model, forwards, is_held):
    """The four predictions of a step are shared out, two to each device."""
    draw = torch.Generator().manual_seed(4)
    references = {
        "reference_latents": [torch.randn(1, 48, 1, 4, 4, generator=draw)],
        "reference_voices": [torch.randn(1, 20, 6, generator=draw)],
    }
    led = reference_guidance.guide_references(model, 4.0, 1.5, 2.0)
    plain = sample(led, is_held=is_held)
    expected = sample(led, is_held=is_held, **references)
    assert relative_error(expected, plain) > 1e-2
    forwards.clear()
    made = sample(split(led), is_held=is_held, **references)
    assert relative_error(made, expected) < TOLERANCE
    assert len({thread for _, thread, _ in forwards}) == 2
    assert len({network for _, _, network in forwards}) == 2
    # One forward for each half of a step's predictions.
    assert sorted(tuple(sorted(kinds)) for kinds, _, _ in forwards) == [(0, 1)] * 3 + [(2, 3)] * 3
