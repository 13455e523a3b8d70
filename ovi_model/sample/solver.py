"""The reference's schedules and solvers: flow UniPC, for which Ovi's published settings are made,
DPM++ and Euler.

UniPC (arXiv 2302.04867), multistep, order 2, B2(h) = e^h - 1, predicting the clean latent, with
time measured as lambda = log((1 - sigma) / sigma). DPM-Solver++ 2M (arXiv 2211.01095) is the same
without its corrector, and Euler is core's.
Source: diffusers, FlowUniPCMultistepScheduler, DPMSolverMultistepScheduler and
FlowMatchEulerDiscreteScheduler as used by character-ai/Ovi.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from comfy.k_diffusion.sampling import (
    sample_euler,
    trange,  # this core's bar: steps done, seconds a step
)
from torch import Tensor

from ..network.model import WHOLE_TIMESTEPS

# UniPC's first sigma before the shift; training never saw pure noise.
START = 0.999
# Euler's last one but 0, before both of its shifts: the first of 1000 timesteps.
LAST = 0.001


def shifted_sigmas(steps: int, shift: float, denoise: float = 1.0, solver: str = "unipc") -> Tensor:
    """Return the steps + 1 noise levels of a solver of SOLVERS, float32, from 1 or nearly 1 to 0.

    denoise < 1 keeps only the last part of a schedule with more steps, as ComfyUI's schedulers do.
    """
    sigmas = _shift(_even_sigmas(int(steps / denoise), shift, solver), shift)
    return torch.from_numpy(np.append(sigmas, 0.0)[-(steps + 1) :].astype(np.float32))


def _even_sigmas(steps: int, shift: float, solver: str) -> np.ndarray:
    """Return the noise levels before the shift, without the 0 at the end."""
    # Some of the reference's ends are float32 numbers, and its arithmetic is float64.
    if solver == "euler":
        last = _shift(torch.tensor(LAST, dtype=torch.float32), shift)
        return np.linspace(1.0, last.item(), steps)
    start = float(np.float32(START)) if solver == "unipc" else 1.0
    return np.linspace(start, 0, steps + 1)[:-1]


def _shift(sigmas, shift: float):
    return shift * sigmas / (1 + (shift - 1) * sigmas)


class _Prediction(NamedTuple):
    """The clean latent predicted at a noise level."""

    sigma: float
    denoised: Tensor


@torch.no_grad()
def sample_flow_unipc(
    model, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, callback=None, disable=None
):
    """Sample with ComfyUI's sampler interface; x [B, ...] keeps its shape, one model call a step.

    model: ComfyUI's denoiser; called with x and noise levels [B] it returns the clean latent it
    predicts, and it holds the `noise` of this run.
    disable: True hides the bar of steps in the log, None hides it where the log is no terminal.
    Raises ValueError unless every noise level is below the last.
    """
    denoise = functools.partial(model, **_at_whole_timesteps(extra_args))
    x = _unscaled(model, x, sigmas)
    return _sample(denoise, x, sigmas, _correct, callback, disable)


@torch.no_grad()
def sample_flow_dpmpp(
    model, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, callback=None, disable=None
):
    """Sample with DPM-Solver++ 2M; all else is as in `sample_flow_unipc`."""
    denoise = functools.partial(model, **_at_whole_timesteps(extra_args))
    x = _unscaled(model, x, sigmas)
    return _sample(denoise, x, sigmas, None, callback, disable)


# The reference's Euler is core's: it gives the model timesteps as they are.
SOLVERS = {"unipc": sample_flow_unipc, "dpm++": sample_flow_dpmpp, "euler": sample_euler}


def _at_whole_timesteps(extra_args: dict | None) -> dict:
    """Return a copy of a sampler's extra arguments that has the model cut its timesteps, as the
    reference does for these solvers; the noise levels stay as they are.
    """
    extra_args = extra_args or {}
    model_options = extra_args.get("model_options", {})
    options = {**model_options.get("transformer_options", {}), WHOLE_TIMESTEPS: True}
    return {**extra_args, "model_options": {**model_options, "transformer_options": options}}


def _unscaled(model, x: Tensor, sigmas: Tensor) -> Tensor:
    """Return the start of a run: ComfyUI scales the first noise by the first sigma; the reference
    starts from noise as drawn.
    """
    first = float(sigmas[0])
    return x + (1 - first) * model.noise if first >= START else x


def _sample(
    denoise: Callable, x: Tensor, sigmas: Tensor, correct: Callable | None, callback, disable
) -> Tensor:
    """Go down the noise levels, with or without correcting each step once its end is predicted."""
    levels = [float(sigma) for sigma in sigmas]
    for level, following in pairwise(levels):
        if following >= level:
            raise ValueError(
                f"The sigmas must fall at every step, but there is {following:g} after {level:g}."
            )
    batch = x.new_ones([x.shape[0]])
    predictions: list[_Prediction] = []  # the last two, the newest last
    step_start, step_order = x, 1
    for i in trange(len(levels) - 1, disable=disable):
        denoised = denoise(x, levels[i] * batch)
        predictions.append(_Prediction(levels[i], denoised))
        if correct is not None and i > 0:
            x = correct(step_start, predictions[-step_order - 1 :])
        if callback is not None:
            callback(
                {"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised}
            )
        predictions = predictions[-2:]
        is_last = i == len(levels) - 2
        step_start, step_order = x, 1 if is_last else len(predictions)
        x = _predict(x, predictions[-step_order:], levels[i + 1])
    return x


def _predict(x: Tensor, predictions: list[_Prediction], sigma: float) -> Tensor:
    """UniP: go from the newest of one or two predictions to a noise level; their number is the
    order.
    """
    *earlier, last = predictions
    keep, step, growth = _step(last.sigma, sigma)
    x = keep * x - growth * last.denoised
    if not earlier:
        return x
    ratio = _ratio(last, earlier[0], step)
    return x - 0.5 * growth * (earlier[0].denoised - last.denoised) / ratio


def _correct(x: Tensor, predictions: list[_Prediction]) -> Tensor:
    """UniC: redo the step that began at x, now that the prediction at its end is known.

    predictions: at an earlier level where the order is 2, at the step's beginning, at its end.
    """
    *earlier, last, here = predictions
    keep, step, growth = _step(last.sigma, here.sigma)
    x = keep * x - growth * last.denoised
    change = here.denoised - last.denoised
    if not earlier:
        return x - 0.5 * growth * change
    ratio = _ratio(last, earlier[0], step)
    # The paper's linear system [[1, 1], [ratio, 1]] w = (b1, b2), where h is -step, B is e^h - 1.
    b1 = (math.expm1(-step) / -step - 1) / math.expm1(-step)
    b2 = 2 * ((math.expm1(-step) / -step - 1) / -step - 0.5) / math.expm1(-step)
    weight = (b1 - b2) / (1 - ratio)
    return x - growth * (
        weight * (earlier[0].denoised - last.denoised) / ratio + (b1 - weight) * change
    )


def _step(start: float, end: float) -> tuple[float, float, float]:
    """Return what the state keeps, the step in lambda, and (1 - end) (e^-step - 1), for noise
    levels start > end.
    """
    step = _lambda(end) - _lambda(start)
    return end / start, step, (1 - end) * math.expm1(-step)


def _ratio(last: _Prediction, earlier: _Prediction, step: float) -> float:
    """Place of the earlier level relative to the step, negative."""
    return (_lambda(earlier.sigma) - _lambda(last.sigma)) / step


def _lambda(sigma: float) -> float:
    """Half the log of the signal-to-noise ratio."""
    if sigma == 0:
        return math.inf
    return math.log1p(-sigma) - math.log(sigma) if sigma < 1 else -math.inf
