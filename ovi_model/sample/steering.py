"""Steers sound that is made for a held picture by how badly the sound predicts that picture.

The video tower reads the sound, the audio tower hardly reads a noised picture: left alone, sound
misses what is seen. The model predicts the held picture at every step anyway; the error of that
prediction says whether the sound fits, and its gradient how to make it fit.
Source: arXiv 2204.03458, reconstruction guidance, here from one stream to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.model_management
import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.utils._pytree import tree_map

from ..core_facts import compute_dtype
from ..log import log
from ..network.differentiable import attend_with_gradient, copied, differentiable
from ..network.memory import gradient_memory_required
from ..network.model import diffusion_model
from .nested_latents import pack_masks
from .steered_spans import HeldPicture, find_held_picture

KEY = "ovi_steering"
# Noise levels between which the times of sounds are decided: a few steered steps are taken here.
DECIDING = (0.85, 0.97)
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Steering:
    """How much, how long and how often."""

    strength: float  # of a step, as a share of the sound's size
    until: float  # noise level, 1 to 0
    steps: int  # 0: all above that level


def steer(model, steering: Steering, tell: Callable[[str], None]):
    """Return a copy of a MODEL that steers sound by a picture wherever a latent holds one.

    tell: is given a sentence and a curve of the errors after each run.
    Raises ValueError if the model is no Ovi.
    """
    diffusion_model(model)
    model = model.clone()
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE):
        model.remove_wrappers_with_key(kind, KEY)
    if steering.strength > 0:
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _reserve_memory)
        model.add_wrapper_with_key(
            WrappersMP.SAMPLER_SAMPLE,
            KEY,
            lambda executor, *args: _sample(steering, tell, executor, *args),
        )
    return model


def _reserve_memory(
    executor,
    noise: Tensor,
    latent: Tensor,
    sampler,
    sigmas,
    denoise_mask=None,
    *rest,
    latent_shapes=None,
    **kwargs,
):
    """Have core free the memory that a gradient takes before it loads the model, if sound will be
    steered.
    """
    patcher, shapes = executor.class_obj.model_patcher, latent_shapes or []
    mask = pack_masks(denoise_mask, latent, shapes, patcher.load_device)
    if find_held_picture(mask, shapes) is not None:
        needed = gradient_memory(patcher.model, noise.shape)
        check_memory(needed, patcher.load_device)
        patcher.model.memory_floor = needed
    kwargs["latent_shapes"] = latent_shapes
    try:
        return executor(noise, latent, sampler, sigmas, denoise_mask, *rest, **kwargs)
    finally:
        patcher.model.memory_floor = 0.0


def gradient_memory(model, shape: torch.Size) -> float:
    """Return the bytes of a forward and its gradient for a pack of this shape [B, 1, N]."""
    network = model.diffusion_model
    dtype = compute_dtype(model)
    configs = network.config, network.audio_model.config
    return model.memory_usage_factor * gradient_memory_required(*configs, shape, dtype)


def check_memory(needed: float, device: torch.device) -> None:
    """Raise ValueError if a device does not have so many bytes."""
    there = comfy.model_management.get_total_memory(device)
    if needed > there:
        raise ValueError(
            f"'Ovi Steer' needs {needed / 2**30:.1f} GiB beside the model for a clip of this size, "
            f"and {device} has {there / 2**30:.1f} GiB in all. Make the clip smaller or shorter, "
            "make fewer clips at once, or set the strength of 'Ovi Steer' to 0."
        )


def _sample(steering: Steering, tell, executor, guider, sigmas: Tensor, extra_args: dict, *rest):
    """Run a sampler with steering, or as it is if no picture is held.

    rest: callback, noise, latent_image, denoise_mask, disable_pbar.
    """
    model = guider.inner_model
    model.memory_floor = 0.0
    _, _, latent, mask, *_ = rest
    held = find_held_picture(mask, model.latent_shapes)
    if held is None or steering.strength == 0:
        return executor(guider, sigmas, extra_args, *rest)
    refuse_what_does_not_go(model.diffusion_model, extra_args["model_options"])
    run = Run(steering, held, latent, choose_steps(sigmas.tolist(), steering), sigmas.tolist())
    made = executor(guider, sigmas, run.install(extra_args), *rest)
    log.info(run.describe())
    tell(run.describe())
    return made


def choose_steps(sigmas: list[float], steering: Steering) -> set[int]:
    """Return which steps of a schedule are steered: all above the noise level, or a few of them.

    A few are spread over the levels at which times are decided, if there are as many steps.
    """
    above = [index for index, sigma in enumerate(sigmas[:-1]) if sigma > steering.until]
    if not steering.steps or steering.steps >= len(above):
        return set(above)
    low, high = DECIDING
    deciding = [index for index in above if low <= sigmas[index] <= high]
    among = deciding if len(deciding) >= steering.steps else above
    spread = torch.linspace(0, len(among) - 1, steering.steps).round().int()
    return {among[place] for place in spread}


def refuse_what_does_not_go(network, model_options: dict) -> None:
    """Raise ValueError for what would make steering wrong, or be wrong with it."""
    options = model_options.get("transformer_options", {})
    is_compiled = any(hasattr(module, "_orig_mod") for module in network.modules())
    found = [
        ("easycache" in options, "'EasyCache' or 'LazyCache' reuses predictions"),
        ("context_handler" in model_options, "context windows cut the held picture"),
        (
            is_compiled or "torch_compile_kwargs" in model_options,
            "a compiled model has no gradient for weights that ComfyUI moves",
        ),
        ("multigpu_clones" in model_options, "work is split over several cards"),
    ]
    for is_there, why in found:
        if is_there:
            raise ValueError(
                f"'Ovi Steer' does not go with this workflow: {why}. Remove that node from the way "
                "of the model, or set the strength of 'Ovi Steer' to 0."
            )


@dataclass
class Run:
    """One run of a sampler whose sound is steered."""

    steering: Steering
    held: HeldPicture
    picture: Tensor  # [B, 1, N], the pack that holds it
    steered: set[int]
    sigmas: list[float]
    gradient: Tensor | None = None  # of this step's error, [B, 1, N]
    errors: dict[float, float] = field(default_factory=dict)  # by noise level, mean of the batch

    def install(self, extra_args: dict) -> dict:
        """Return a sampler's arguments with this run at work in every step, after all else."""
        options = extra_args["model_options"]
        inner = dict(options.get("transformer_options", {}))
        inner["wrappers"] = {kind: dict(by_key) for kind, by_key in inner["wrappers"].items()}
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.CALC_COND_BATCH, KEY, self.predict, inner
        )
        after = [*options.get("sampler_post_cfg_function", []), self.step]
        options = {**options, "transformer_options": inner, "sampler_post_cfg_function": after}
        return {**extra_args, "model_options": options}

    def predict(self, executor, model, conds: list, x: Tensor, sigma: Tensor, options: dict):
        """Predict from both prompts; from the positive one, where a step is steered, with the
        gradient of the picture's error.
        """
        if len(conds) > 2:
            raise ValueError(
                f"'Ovi Steer' was given a guider of {len(conds)} prompts; it goes with a positive "
                "and a negative one, or a positive one alone ('KSampler', 'CFGGuider', "
                "'BasicGuider')."
            )
        if len(conds) != 2 or conds[0] is None or not self.steers(sigma):
            return executor(model, conds, x, sigma, options)
        positive, negative = executor(model, [conds[0], None], x, sigma, self.differing(options))
        if conds[1] is not None:
            negative = executor(model, [None, conds[1]], x, sigma, options)[1]
        return [positive, negative]

    def steers(self, sigma: Tensor) -> bool:
        """Whether a noise level [B] lies in a step that is steered."""
        level = float(sigma.max()) * (1 - 1e-6)
        return sum(step > level for step in self.sigmas) - 1 in self.steered

    def differing(self, options: dict) -> dict:
        """Return model options by which the model's forward leaves its gradient here."""
        inner = dict(options["transformer_options"])
        inner["wrappers"] = {kind: dict(by_key) for kind, by_key in inner["wrappers"].items()}
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, KEY, self.differentiate, inner
        )
        self.gradient = None
        return {**options, "transformer_options": inner}

    def differentiate(
        self, executor, x: Tensor, t: Tensor, c_concat, text, control, options: dict, **conds
    ) -> Tensor:
        """Predict from x [B, 1, N], and keep the gradient of the picture's error; with several
        positive prompts, their sum.
        """
        network = executor.class_obj.diffusion_model
        # Of kernels only this one is sure to have a gradient.
        options = {**options, "optimized_attention_override": attend_with_gradient}
        count = x.shape[0] // self.picture.shape[0]
        with torch.inference_mode(False), torch.enable_grad(), differentiable(network):
            x = x.clone().requires_grad_()
            given = tree_map(copied, (t, c_concat, text, control))
            predicted = executor(x, *given, options, **tree_map(copied, conds))
            # A sum: a mean would be too small for float16.
            error = self.squares(predicted, count).sum()
            (gradient,) = torch.autograd.grad(error, x)
        gradient = sum(gradient.chunk(count)) * self.held.sound
        self.gradient = gradient if self.gradient is None else self.gradient + gradient
        return predicted.detach()

    def squares(self, predicted: Tensor, count: int = 1) -> Tensor:
        """Return squared errors [B, 1, N] of the held picture in a prediction, 0 elsewhere."""
        picture, frames = (x.clone().repeat(count, 1, 1) for x in (self.picture, self.held.frames))
        return (predicted - picture).square() * frames

    def step(self, args: dict) -> Tensor:
        """Move the predicted sound against the gradient, by a share of its own size."""
        denoised = args["denoised"]
        self.note(args)
        if self.gradient is None:
            return denoised
        gradient, self.gradient = self.gradient, None
        length = gradient.norm(dim=-1, keepdim=True)
        if not (length.isfinite().all() and length.any()):
            raise ValueError(
                "The sound has no gradient, so 'Ovi Steer' cannot steer it: something in the way "
                "of the model cuts it. Remove nodes that replace parts of the model, one by one."
            )
        size = (denoised * self.held.sound).norm(dim=-1, keepdim=True)
        return denoised - self.steering.strength * size * gradient / length.clamp_min(1e-30)

    def note(self, args: dict) -> None:
        """Keep the picture's error in the positive prediction, while the noise is high."""
        sigma = float(args["sigma"].max())
        if sigma > self.steering.until:
            count = self.held.frames.sum(dim=-1).clamp_min(1)
            errors = self.squares(args["cond_denoised"]).sum(dim=-1) / count
            self.errors.setdefault(sigma, float(errors.mean()))

    def describe(self) -> str:
        """Say how often the sound was steered, and how well it predicted the picture."""
        steps = f"Sound steered in {len(self.steered)} of {len(self.sigmas) - 1} steps"
        if not self.errors:
            return f"{steps}."
        levels, errors = list(self.errors), list(self.errors.values())
        return (
            f"{steps}. Error of the held picture: {errors[0]:.3f} at noise level {levels[0]:.2f}, "
            f"{errors[-1]:.3f} at {levels[-1]:.2f} {draw_curve(errors)}"
        )


def draw_curve(values: list[float]) -> str:
    """Draw values as a row of bars, the highest full."""
    highest = max(values) or 1.0
    return "".join(BARS[round(value / highest * (len(BARS) - 1))] for value in values)
