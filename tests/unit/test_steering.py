"""Sound steered by a held picture, on the small model: the step against one computed by hand, and
where steering stays off.
"""

import inspect
import itertools
import sys
import types

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model.latent import geometry
from comfyui_ovi.ovi_model.sample import solver, steered_spans, steering
from comfyui_ovi.ovi_model.sample.steering import Steering, choose_steps, steer
from goldens import relative_error, small_model, small_patcher, wan_patcher

FRAMES = 3
SHAPES = [(1, 48, FRAMES, 4, 4), (1, 20, 10)]
SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
STEERING = Steering(strength=0.7, until=0.6, steps=0)
CFG = 4.0
HELD = (0, 1, 2)


@pytest.fixture(scope="module")
def patcher():
    return small_patcher()


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


NOISE, LATENT = (
    [random(seed + index, *shape) for index, shape in enumerate(SHAPES)] for seed in (1, 5)
)
POSITIVE, NEGATIVE = random(8, 1, 16, 32), random(9, 1, 16, 32)


def masks(frames=HELD, steps=()):
    """1 where something is made, 0 for these frames and steps of sound, which are held."""
    video, audio = torch.ones(SHAPES[0]), torch.ones(SHAPES[1])
    video[:, :, list(frames)] = 0
    audio[:, :, list(steps)] = 0
    return [video, audio]


def sample(model, mask=None, sigmas=SIGMAS, guider=None):
    """The sound that core's Euler makes."""
    if guider is None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds([[POSITIVE, {}]], [[NEGATIVE, {}]])
        guider.set_cfg(CFG)
    made = guider.sample(
        NestedTensor(NOISE),
        NestedTensor(LATENT),
        comfy.samplers.sampler_object("euler"),
        sigmas,
        denoise_mask=NestedTensor(mask or masks()),
        disable_pbar=True,
    )
    return made.unbind()[1]


def steered(patcher, settings=STEERING, **where):
    return sample(steer(patcher, settings, lambda _text: None), **where)


def by_hand(patcher):
    """The same from the network alone, all frames held: Euler, guidance and step written out."""
    base = patcher.model
    network = base.diffusion_model
    picture = base.process_latent_in(LATENT[0])

    def predict(sound, sigma, text):
        video = sigma * NOISE[0] + (1 - sigma) * picture
        video[:, :, 0] = picture[:, :, 0]  # the first frame is given clean, at time 0
        times = 1000 * sigma * torch.ones(1, FRAMES)
        times[:, 0] = 0
        velocities = network([video, sound], [times, times[:, 1]], text, text)
        return [x - sigma * v for x, v in zip((video, sound), velocities, strict=True)]

    sound = NOISE[1].clone()
    for sigma, following in itertools.pairwise(SIGMAS):
        with torch.enable_grad():
            asked = sound.clone().requires_grad_()
            seen, positive = predict(asked, sigma, POSITIVE)
            error = (seen - picture)[:, :, 1:].square().mean()
            (gradient,) = torch.autograd.grad(error, asked)
        negative = predict(sound, sigma, NEGATIVE)[1].detach()
        guided = negative + CFG * (positive.detach() - negative)
        if sigma > STEERING.until:
            unit = gradient / gradient.norm()
            guided = guided - STEERING.strength * guided.norm() * unit
        sound = sound + (sound - guided) / sigma * (following - sigma)
    return sound


def test_a_steered_step_is_the_one_written_out(patcher):
    assert relative_error(steered(patcher), by_hand(patcher)) < 1e-5


def test_the_same_in_inference_mode():
    with torch.inference_mode():
        patcher = small_patcher()
        made = steered(patcher)
    assert relative_error(made, by_hand(small_patcher())) < 1e-5


# What is taken out of the equations, and from where.
MUTATIONS = {
    "the picture": (steering, "(predicted - picture)", "predicted"),
    "the frames": (steering, ".square() * frames", ".square()"),
    "the first frame": (steered_spans, "judged[:, 0] = False", "judged[:, 0] = True"),
    "the sound in the gradient": (
        steering,
        "gradient.chunk(count)) * self.held.sound",
        "gradient.chunk(count))",
    ),
    "the sound in the size": (steering, "(denoised * self.held.sound)", "denoised"),
    "the size": (steering, "self.steering.strength * size *", "self.steering.strength *"),
    "the length": (steering, "/ length.clamp_min(1e-30)", ""),
    "the strength": (steering, "self.steering.strength * size", "size"),
    "the sign": (steering, "return denoised - self", "return denoised + self"),
    "the noise level": (steering, "if sigma > steering.until", "if sigma > 0"),
    "the positive prompt alone": (
        steering,
        "executor(model, [conds[0], None]",
        "executor(model, [conds[1], None]",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_term_taken_out_shows(patcher, monkeypatch, mutation):
    module, old, new = MUTATIONS[mutation]
    changed = mutated(module, old, new, monkeypatch)
    if module is steered_spans:
        monkeypatch.setattr(steering, "find_held_picture", changed.find_held_picture)
        changed = steering
    model = changed.steer(patcher, changed.Steering(0.7, 0.6, 0), lambda _text: None)
    assert relative_error(sample(model), by_hand(patcher)) > 1e-4


def mutated(module, old, new, monkeypatch):
    """The module with one place of its source changed."""
    source = inspect.getsource(module)
    assert source.count(old) == 1
    changed = types.ModuleType(f"{module.__name__}_changed")
    changed.__package__ = module.__package__
    monkeypatch.setitem(sys.modules, changed.__name__, changed)
    exec(compile(source.replace(old, new), module.__file__, "exec"), changed.__dict__)  # noqa: S102
    return changed


OFF = {
    "nothing held": masks(frames=()),
    "the first frame": masks(frames=(0,)),
    "the sound, too": masks(steps=range(10)),
    "the sound alone": masks(frames=(), steps=range(10)),
    "a half of each frame": [
        torch.cat([torch.zeros(1, 48, 3, 4, 2), torch.ones(1, 48, 3, 4, 2)], 4),
        torch.ones(SHAPES[1]),
    ],
}


@pytest.mark.parametrize("held", OFF)
def test_nothing_changes_where_no_picture_is_held_for_free_sound(patcher, held):
    assert torch.equal(steered(patcher, mask=OFF[held]), sample(patcher, mask=OFF[held]))


def test_nothing_changes_at_strength_0(patcher):
    assert torch.equal(steered(patcher, Steering(0.0, 0.6, 0)), sample(patcher))


def test_the_last_of_two_counts(patcher):
    twice = steer(steer(patcher, Steering(3.0, 0.0, 0), print), STEERING, lambda _text: None)
    assert torch.equal(sample(twice), steered(patcher))


def test_each_clip_of_a_batch_is_steered_by_its_own_picture(patcher):
    """As it is alone."""
    model = steer(patcher, STEERING, lambda _text: None)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[POSITIVE, {}]], [[NEGATIVE, {}]])
    guider.set_cfg(CFG)
    other = [random(20 + index, *shape) for index, shape in enumerate(SHAPES)]
    latent = NestedTensor([torch.cat(pair) for pair in zip(LATENT, other, strict=True)])
    noise = NestedTensor([torch.cat([stream, stream]) for stream in NOISE])
    made = guider.sample(
        noise,
        latent,
        comfy.samplers.sampler_object("euler"),
        SIGMAS,
        denoise_mask=NestedTensor(masks()),
        disable_pbar=True,
    ).unbind()[1]
    assert relative_error(made[:1], steered(patcher)) < 1e-5
    assert relative_error(made[1:], made[:1]) > 1e-3


def test_both_prompts_or_one_are_guided_as_before(patcher):
    """BasicGuider has a positive prompt alone."""
    guider = comfy.samplers.CFGGuider(steer(patcher, STEERING, lambda _text: None))
    guider.inner_set_conds({"positive": [[POSITIVE, {}]]})
    alone = sample(None, guider=guider)
    assert alone.isfinite().all()
    assert relative_error(alone, steered(patcher)) > 1e-3


def test_it_says_how_the_error_fell(patcher):
    told = []
    sample(steer(patcher, STEERING, told.append))
    (text,) = told
    assert text.startswith("Sound steered in 2 of 4 steps. Error of the held picture: ")
    assert text[-2:] in {a + b for a in steering.BARS for b in steering.BARS}


def test_which_steps_are_steered():
    sigmas = solver.shifted_sigmas(20, 5.0).tolist()
    assert choose_steps(sigmas, Steering(1.0, 0.6, 0)) == set(range(16))
    assert choose_steps(sigmas, Steering(1.0, 0.6, 4)) == {3, 5, 7, 9}
    assert choose_steps(sigmas, Steering(1.0, 0.6, 99)) == set(range(16))
    assert choose_steps(sigmas, Steering(1.0, 1.0, 0)) == set()
    assert len(choose_steps(sigmas[:9:2], Steering(1.0, 0.6, 3))) == 3


# Frames of the latent and steps of sound that are held, of 31 and 157; which frames then judge, and
# which steps they move.
SPANS = {
    "all": (range(31), (), range(1, 31), range(157)),
    "the end": (range(20, 31), (), range(20, 31), range(101, 157)),
    "one frame": ((10,), (), (10,), range(49, 53)),
    "the start with its sound": (range(4), range(16), (), ()),
    "the start with half of its sound": (range(4), range(8), range(2, 4), range(8, 16)),
}


@pytest.mark.parametrize("span", SPANS)
def test_frames_move_the_sound_of_their_time(span):
    frames, steps, judging, moved = SPANS[span]
    video, audio = torch.ones(1, 48, 31, 2, 2), torch.ones(1, 20, 157)
    video[:, :, list(frames)] = 0
    audio[:, :, list(steps)] = 0
    shapes = [video.shape, audio.shape]
    pack = comfy.utils.pack_latents([video, audio])[0]
    held = steered_spans.find_held_picture(pack, shapes)
    if not judging:
        assert held is None
        return
    video, _ = comfy.utils.unpack_latents(held.frames, shapes)
    _, audio = comfy.utils.unpack_latents(held.sound, shapes)
    assert video.amax(dim=(0, 1, 3, 4)).nonzero().flatten().tolist() == list(judging)
    assert audio.amax(dim=(0, 1)).nonzero().flatten().tolist() == list(moved)


def test_a_clip_s_sound_is_moved_whole():
    for frames in (2, 3, 10, 31, 61):
        shapes = [(1, 48, frames, 2, 2), (1, 20, geometry.audio_steps(frames))]
        pack = comfy.utils.pack_latents([torch.zeros(shapes[0]), torch.ones(shapes[1])])[0]
        held = steered_spans.find_held_picture(pack, shapes)
        assert comfy.utils.unpack_latents(held.sound, shapes)[1].all()


@pytest.mark.parametrize(
    ("where", "key", "words"),
    [
        ("transformer_options", "easycache", "'EasyCache' or 'LazyCache' reuses predictions"),
        (None, "context_handler", "context windows cut the held picture"),
        (None, "torch_compile_kwargs", "a compiled model has no gradient"),
        (None, "multigpu_clones", "work is split over several cards"),
    ],
)
def test_what_does_not_go_with_it_is_refused(where, key, words):
    options = {where: {key: object()}} if where else {key: object()}
    with pytest.raises(ValueError, match=words):
        steering.refuse_what_does_not_go(small_model(), options)


def test_a_compiled_block_is_refused():
    network = small_model()
    network.blocks[0]._orig_mod = torch.nn.Identity()  # as what torch.compile returns holds it
    with pytest.raises(ValueError, match="a compiled model has no gradient"):
        steering.refuse_what_does_not_go(network, {})


def test_guiders_of_three_prompts_are_refused(patcher):
    class Three(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options, seed):  # noqa: ARG002
            conds = [self.conds["positive"], self.conds["negative"], self.conds["negative"]]
            return comfy.samplers.calc_cond_batch(
                self.inner_model, conds, x, timestep, model_options
            )[0]

    guider = Three(steer(patcher, STEERING, lambda _text: None))
    guider.set_conds([[POSITIVE, {}]], [[NEGATIVE, {}]])
    with pytest.raises(ValueError, match="a guider of 3 prompts"):
        sample(None, guider=guider)


def test_a_gradient_that_something_cut_is_refused(patcher):
    model = steer(patcher, STEERING, lambda _text: None)
    model.set_model_patch_replace(
        lambda args, extra: {
            "img": tuple(x.detach() for x in extra["original_block"](args)["img"])
        },
        "dit",
        "double_block",
        1,
    )
    with pytest.raises(ValueError, match="The sound has no gradient"):
        sample(model)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="not an Ovi"):
        steer(wan_patcher(), STEERING, print)


@pytest.mark.parametrize(
    "mask", [masks(), masks(frames=(0,)), None], ids=["held", "first frame", "nothing held"]
)
def test_core_frees_memory_for_the_gradient_while_it_loads(patcher, monkeypatch, mask):
    asked = []
    original = comfy.model_management.load_models_gpu

    def watch(models, *args, memory_required, **kwargs):
        asked.append(memory_required)
        return original(models, *args, memory_required=memory_required, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", watch)
    monkeypatch.setattr(steering, "gradient_memory", lambda _model, _shape: 1e9)
    model = steer(patcher, STEERING, lambda _text: None)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[POSITIVE, {}]], [[NEGATIVE, {}]])
    guider.sample(
        NestedTensor(NOISE),
        NestedTensor(LATENT),
        comfy.samplers.sampler_object("euler"),
        SIGMAS,
        denoise_mask=mask and NestedTensor(mask),
        disable_pbar=True,
    )
    assert (max(asked) >= 1e9) == (mask is not None and not mask[0][:, :, 1:].any())
    assert patcher.model.memory_floor == 0


def test_a_clip_that_cannot_fit_is_refused(patcher, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda _device: 2**17)
    with pytest.raises(ValueError, match=r"needs 0\.\d GiB beside the model for a clip of this"):
        steered(patcher)
