"""A clip made in blocks against the reference, through ComfyUI's own sampler."""

import itertools

import comfy.samplers
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfy.patcher_extension import WrappersMP
from comfyui_ovi.ovi_model.network import past
from comfyui_ovi.ovi_model.sample import streaming
from goldens import load, named_patcher, relative_error
from weights import seeded

GOLDEN = "hallo_rollout"


@pytest.fixture(scope="module")
def patcher():
    return named_patcher(GOLDEN)


@pytest.fixture(autouse=True)
def recorded_noise(monkeypatch):
    numbers = itertools.count()

    def draw(_generator, shape):
        return seeded(f"input.hallo.renoise.{next(numbers)}", shape[1:])[None]

    monkeypatch.setattr(streaming, "draw_noise", draw)


def rollout(patcher, **options):
    """Make the recorded clip; returns what was recorded, the final, and each forward's velocity."""
    recorded, about = load(GOLDEN)
    patcher, flows = patcher.clone(), []

    def watch(executor, *args, **kwargs):
        made = executor(*args, **kwargs)
        flows.append(made.clone())
        return made

    patcher.add_wrapper(WrappersMP.DIFFUSION_MODEL, watch)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds([[recorded["context"][None], {}]], [[recorded["context"][None], {}]])
    guider.set_cfg(1.0)
    video = recorded["video_noise"].transpose(0, 1)[None]
    audio = recorded["audio_noise"].mT[None]
    sampler = comfy.samplers.KSAMPLER(
        streaming.sample_streaming,
        {"frames_per_block": about["video_frames_per_block"], **options},
    )
    sigmas = torch.cat([recorded["denoising_steps"] / 1000, torch.zeros(1)])
    empty = NestedTensor([torch.zeros_like(video), torch.zeros_like(audio)])
    final = guider.sample(
        NestedTensor([video, audio]), empty, sampler, sigmas, disable_pbar=True, seed=0
    )
    video, audio = final.unbind()
    video = patcher.model.latent_format.process_in(video)[0].transpose(0, 1)
    return recorded, (video, audio[0].mT), flows


def farthest(patcher, **options):
    recorded, (video, audio), _ = rollout(patcher, **options)
    return max(
        relative_error(video, recorded["final_video"]),
        relative_error(audio, recorded["final_audio"]),
    )


def test_a_rollout_equals_the_reference(patcher):
    recorded, (video, audio), flows = rollout(patcher)
    assert len(flows) == 14  # the last block needs no refresh
    for index, flow in enumerate(flows):
        expected = [
            recorded[f"call{index:02}.video_flow"].transpose(0, 1),
            recorded[f"call{index:02}.audio_flow"].mT,
        ]
        whole = torch.cat([x.flatten() for x in expected])
        assert relative_error(flow.flatten(), whole) <= 1e-5, index
    assert relative_error(video, recorded["final_video"]) <= 1e-5
    assert relative_error(audio, recorded["final_audio"]) <= 1e-5


def test_what_is_kept_in_main_memory_is_the_same(patcher):
    assert farthest(patcher, keep="in main memory") <= 1e-5


MUTATIONS = {
    "no cache": lambda patch: patch.setattr(past, "READ", set()),
    "no cache of self-attention": lambda patch: patch.setattr(
        past, "READ", {("audio", past.OTHER)}
    ),
    "no cache of the picture for the sound": lambda patch: patch.setattr(
        past, "READ", {("video", past.SELF)}
    ),
    "Ovi's own scale": lambda patch: patch.setattr(streaming, "STREAMING_ROPE_SCALE", 0.19676),
    "finished sound as it is": lambda patch: patch.setattr(streaming, "LOWEST_SIGMA", 0.0),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_changed_term_shows(patcher, monkeypatch, mutation):
    MUTATIONS[mutation](monkeypatch)
    assert farthest(patcher) > 3e-5
