"""Flow UniPC and its schedule: the sampler that Ovi's published settings are made for.

UniPC (arXiv 2302.04867), multistep, order 2, B2(h) = e^h - 1, predicting the clean latent, with
time measured as lambda = log((1 - sigma) / sigma).
Source: diffusers, FlowUniPCMultistepScheduler as used by character-ai/Ovi.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from comfy.k_diffusion.sampling import trange  # this core's bar: steps done, seconds a step
from torch import Tensor

# The first sigma before the shift; training never saw pure noise.
START = 0.999


def shifted_sigmas(steps: int, shift: float, denoise: float = 1.0) -> Tensor:
    """Return steps + 1 noise levels, float32, from nearly 1 down to 0.

    denoise < 1 keeps only the last part of a schedule with more steps, as ComfyUI's schedulers do.
    """
    total = int(steps / denoise)
    # The reference's start is a float32 number, and its arithmetic float64.
    sigmas = np.linspace(float(np.float32(START)), 0, total + 1)[:-1]
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    return torch.from_numpy(np.append(sigmas, 0.0)[-(steps + 1) :].astype(np.float32))


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
    levels = [float(sigma) for sigma in sigmas]
    for level, following in pairwise(levels):
        if following >= level:
            raise ValueError(
                f"The sigmas must fall at every step, but there is {following:g} after {level:g}."
            )
    batch = x.new_ones([x.shape[0]])
    if levels[0] >= START:
        # ComfyUI scales the first noise by the first sigma; the reference starts from noise as
        # drawn.
        x = x + (1 - levels[0]) * model.noise
    predictions: list[_Prediction] = []  # the last two, the newest last
    step_start, step_order = x, 1
    for i in trange(len(levels) - 1, disable=disable):
        denoised = model(x, levels[i] * batch, **(extra_args or {}))
        predictions.append(_Prediction(levels[i], denoised))
        if i > 0:
            x = _correct(step_start, predictions[-step_order - 1 :])
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
