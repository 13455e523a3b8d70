"""EasyCache and LazyCache: what a skipped step reuses for picture and sound, and what it must not
touch.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfy_extras import nodes_easycache
from comfyui_ovi.ovi_model.latent import latents
from comfyui_ovi.ovi_model.sample import guidance, solver
from goldens import relative_error
from safetensors.torch import save_file
from slow_weights import slow_weights
from small_graph import Graph, output
from small_weights import OviSizes

pytestmark = pytest.mark.graph

CACHES = ("EasyCache", "LazyCache")
SIGMAS = solver.shifted_sigmas(steps=12, shift=5.0)
START, END = 0.15, 0.9
EULER, UNIPC = (
    comfy.samplers.sampler_object("euler"),
    comfy.samplers.KSAMPLER(solver.sample_flow_unipc),
)
CFG, AUDIO_CFG, SEED = 4.0, 3.0, 7
# Some four steps of twelve are skipped, and all that may be.
USUAL, HIGHEST = 0.3, 3.0

starts_late = pytest.mark.skipif(
    not hasattr(nodes_easycache.EasyCacheHolder, "can_apply_cache_diff"),
    reason="this core's EasyCache looks for the past of a prompt that has none",
)


@dataclass
class Loaded:
    """What samplers are given."""

    model: object
    positive: list
    negative: list


@dataclass
class Sampled:
    """Both streams of a finished latent; noise level and prompts (0 positive, 1 negative) of each
    forward.
    """

    video: torch.Tensor = None
    audio: torch.Tensor = None
    forwards: list[tuple[float, list[int]]] = field(default_factory=list)

    @property
    def levels(self) -> list[float]:
        return sorted({sigma for sigma, _ in self.forwards}, reverse=True)


@pytest.fixture(scope="module")
def loaded(runtime, model_folder) -> Loaded:
    """A model whose velocity changes slowly over the noise levels."""
    sizes = OviSizes(dim=128, ffn_dim=192, layers=2)
    save_file(slow_weights(sizes, torch.float32, seed=1), model_folder / "ovi_slow.safetensors")
    graph = Graph()
    model, text = graph.model("ovi_slow.safetensors"), graph.text()
    graph.show(model, text, output(text, 1))
    result = runtime.run(graph.prompt)
    assert result.ok, result.error
    return Loaded(result.value(model[0]), result.value(text[0]), result.value(text[0], 1))


def cached(model, name: str, threshold: float):
    node = getattr(nodes_easycache, f"{name}Node")
    return node.execute(model, threshold, START, END, False).result[0]


def guided(model, skip_layer: int = 1, cfg_range: tuple[float, float] = (0.0, 1.0)):
    return guidance.guide(model, AUDIO_CFG, skip_layer, 0.0, 1.0, cfg_range)


def noting(model, noted: Sampled):
    """A copy of a MODEL that notes its forwards; added last, it is behind the caches."""

    def note(executor, *args, **kwargs):
        (options,) = [
            value
            for value in (*args, *kwargs.values())
            if isinstance(value, dict) and "sigmas" in value
        ]
        noted.forwards.append((float(options["sigmas"][0]), list(options["cond_or_uncond"])))
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "note", note)
    return model


def sample(loaded, model, latent=None, cfg=CFG, sampler=EULER, noise=None) -> Sampled:
    """Both streams must come out finite and in their own shape."""
    latent = latent or latents.empty(64, 64, 9, 1)
    sampled, empty = Sampled(), latent["samples"]
    noise = noise or comfy.sample.prepare_noise(empty, SEED)
    given = (cfg, sampler, SIGMAS, loaded.positive, loaded.negative, empty)
    options = {"noise_mask": latent.get("noise_mask"), "disable_pbar": True, "seed": SEED}
    with torch.inference_mode():
        result = comfy.sample.sample_custom(noting(model, sampled), noise, *given, **options)
    sampled.video, sampled.audio = result.unbind()
    for stream, expected in zip((sampled.video, sampled.audio), empty.unbind(), strict=True):
        assert stream.shape == expected.shape
        assert stream.isfinite().all()
    return sampled


def errors(actual: Sampled, expected: Sampled) -> tuple[float, float]:
    """Relative errors of picture and sound."""
    return relative_error(actual.video, expected.video), relative_error(
        actual.audio, expected.audio
    )


def assert_equal(actual: Sampled, expected: Sampled) -> None:
    assert actual.forwards == expected.forwards
    assert torch.equal(actual.video, expected.video)
    assert torch.equal(actual.audio, expected.audio)


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_that_skips_nothing_changes_nothing(loaded, name):
    model = guided(loaded.model)
    assert_equal(sample(loaded, cached(model, name, 0.0)), sample(loaded, model))


@pytest.mark.parametrize(("name", "learning"), [("EasyCache", 2), ("LazyCache", 1)])
def test_a_skipped_step_runs_no_forward(loaded, name, learning):
    """Every step outside the range runs, and those in it from which the rate is learnt; LazyCache
    learns before it.
    """
    sampling = loaded.model.get_model_object("model_sampling")
    first, last = sampling.percent_to_sigma(START), sampling.percent_to_sigma(END)
    levels = [float(sigma) for sigma in SIGMAS[:-1]]
    before, within = [s for s in levels if s > first], [s for s in levels if last < s <= first]
    after = [s for s in levels if s <= last]
    assert before
    assert after

    sampled = sample(loaded, cached(guided(loaded.model), name, HIGHEST))
    assert sampled.forwards == [(sigma, [1, 0]) for sigma in sampled.levels]
    needed = before + within[:learning]
    assert sampled.levels[: len(needed)] == needed
    assert sampled.levels[-1:] == after
    assert len(sampled.levels) <= len(needed + after) + 1


def hold_change(velocity, x, _sigma):
    """EasyCache: the difference of what the model gave from what it was given stays."""
    change = velocity - x
    return lambda x, _sigma: x + change


def hold_clean_change(velocity, _x, sigma):
    """LazyCache: the difference of the clean latent from the noisy one, -sigma v, stays."""
    return lambda _x, later: velocity * sigma / later


def sample_by_hand(loaded: Loaded, levels: list[float], hold) -> list[torch.Tensor]:
    """Euler's method, written down for each stream alone; the model runs at these noise levels
    only.
    """
    network = loaded.model.model.diffusion_model
    ((text, _),) = loaded.positive
    noise = comfy.sample.prepare_noise(latents.empty(64, 64, 9, 1)["samples"], SEED)
    streams = [SIGMAS[0] * stream for stream in noise.unbind()]
    for sigma, following in pairwise(SIGMAS):
        if float(sigma) in levels:
            velocities = network(streams, (1000 * sigma).reshape(1), text, text)
            held = [hold(v, x, sigma) for v, x in zip(velocities, streams, strict=True)]
        else:
            velocities = [reuse(x, sigma) for reuse, x in zip(held, streams, strict=True)]
        streams = [x + (following - sigma) * v for x, v in zip(streams, velocities, strict=True)]
    return loaded.model.model.process_latent_out(NestedTensor(streams)).unbind()


@pytest.mark.parametrize(
    ("name", "hold"), [("EasyCache", hold_change), ("LazyCache", hold_clean_change)]
)
def test_a_skipped_step_reuses_the_past_of_each_stream(loaded, name, hold):
    """EasyCache adds to the tensor it is given: were that the sampler's own, every later step would
    start elsewhere.
    """
    actual = sample(loaded, cached(loaded.model, name, USUAL), cfg=1.0)
    assert 3 < len(actual.levels) < 9
    with torch.inference_mode():
        video, audio = sample_by_hand(loaded, actual.levels, hold)
    assert relative_error(actual.video, video) < 1e-5
    assert relative_error(actual.audio, audio) < 1e-5


@pytest.mark.parametrize("sampler", [EULER, UNIPC], ids=["euler", "unipc"])
@pytest.mark.parametrize("name", CACHES)
def test_the_sound_stays_as_near_as_the_picture(loaded, name, sampler):
    model = guided(loaded.model)
    expected = sample(loaded, model, sampler=sampler)
    for threshold in (USUAL, 0.6):
        actual = sample(loaded, cached(model, name, threshold), sampler=sampler)
        assert len(actual.levels) < len(expected.levels)
        video, audio = errors(actual, expected)
        assert 0 < audio < 2 * video
        assert 0 < video < 0.4


@pytest.mark.parametrize("name", CACHES)
def test_nothing_of_a_run_reaches_the_next(loaded, name):
    model = cached(guided(loaded.model), name, USUAL)
    larger = latents.empty(96, 64, 17, 1)
    first, other, again = (sample(loaded, model, latent) for latent in (None, larger, None))
    assert_equal(again, first)
    assert_equal(other, sample(loaded, cached(guided(loaded.model), name, USUAL), larger))
    assert len(other.levels) < len(SIGMAS) - 1


@pytest.mark.parametrize("name", CACHES)
def test_each_clip_of_a_batch_is_the_clip_made_alone(loaded, name):
    model = cached(guided(loaded.model), name, USUAL)
    alone, batch = sample(loaded, model), latents.empty(64, 64, 9, 2)
    both = sample(
        loaded, model, batch, noise=comfy.sample.prepare_noise(batch["samples"], SEED, [0, 0])
    )
    assert both.forwards == alone.forwards
    torch.testing.assert_close(both.video, alone.video.expand_as(both.video), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.audio, alone.audio.expand_as(both.audio), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CACHES)
def test_prompts_in_forwards_of_their_own_give_the_same(loaded, name, monkeypatch):
    model = cached(guided(loaded.model), name, USUAL)
    together = sample(loaded, model)
    monkeypatch.setattr(loaded.model.model, "memory_usage_factor", 2.0**40)
    apart = sample(loaded, model)
    assert [kinds for _, kinds in apart.forwards] == [[1], [0]] * len(together.forwards)
    assert apart.levels == together.levels
    assert max(errors(apart, together)) < 1e-5


@pytest.mark.parametrize("name", CACHES)
def test_guidance_may_come_before_a_cache_or_after_it(loaded, name):
    before, after = (
        cached(guided(loaded.model), name, USUAL),
        guided(cached(loaded.model, name, USUAL)),
    )
    expected = sample(loaded, before)
    assert len(expected.levels) < len(SIGMAS) - 1
    assert_equal(sample(loaded, after), expected)


EARLY, LATE = (0.0, 0.5), (0.3, 1.0)
RANGES = [
    ("EasyCache", EARLY),
    pytest.param("EasyCache", LATE, marks=starts_late),
    *(("LazyCache", r) for r in (EARLY, LATE)),
]


@pytest.mark.parametrize(("name", "cfg_range"), RANGES)
def test_guidance_within_a_range_can_be_cached(loaded, name, cfg_range):
    model = guided(loaded.model, cfg_range=cfg_range)
    expected, actual = sample(loaded, model), sample(loaded, cached(model, name, USUAL))
    assert len(actual.forwards) < len(expected.forwards)
    assert all(forward in expected.forwards for forward in actual.forwards)
    video, audio = errors(actual, expected)
    assert 0 < audio < 2 * video


def from_image() -> dict:
    """A latent whose first frame is given."""
    latent = latents.empty(64, 64, 9, 1)
    video, audio = latent["samples"].unbind()
    video[:, :, 0] = torch.randn(video[:, :, 0].shape, generator=torch.Generator().manual_seed(3))
    video_mask = torch.ones(1, 1, *video.shape[2:])
    video_mask[:, :, 0] = 0
    return {
        "samples": NestedTensor([video, audio]),
        "noise_mask": NestedTensor([video_mask, torch.ones_like(audio)]),
    }


@pytest.mark.parametrize("name", CACHES)
def test_the_image_that_starts_a_clip_stays(loaded, name):
    model, latent = guided(loaded.model), from_image()
    expected, actual = (
        sample(loaded, model, latent),
        sample(loaded, cached(model, name, USUAL), latent),
    )
    assert len(actual.levels) < len(SIGMAS) - 1
    given = latent["samples"].unbind()[0][:, :, 0]
    torch.testing.assert_close(actual.video[:, :, 0], given, rtol=1e-5, atol=1e-5)
    video, audio = errors(actual, expected)
    assert 0 < audio < 2 * video < 0.8
