"""A sound that was cut off goes on for a moment, as far as its own waves tell."""

from __future__ import annotations

import torch
from torch import Tensor

# Samples at 16 kHz: the waves of the last eighth of a second, 64 at most, go on for as long.
ORDER, HEARD, GOES_ON = 128, 2048, 2048
SILENT = 1e-12  # energy


def go_on(sound: Tensor) -> Tensor:
    """Return a sound [samples] and GOES_ON samples that follow from its end by linear prediction.

    Source: Kauppinen and Roth 2002, audio signal extrapolation, with Burg's filter.
    """
    heard = sound[-HEARD:].double()
    coefficients = burg(heard, ORDER)
    order = len(coefficients)
    made = torch.cat([heard, heard.new_zeros(GOES_ON)])
    for index in range(len(heard), len(made)):
        made[index] = coefficients @ made[index - order : index]
    return torch.cat([sound, made[len(heard) :].to(sound)])


def burg(sound: Tensor, order: int) -> Tensor:
    """Return the weights [order] of the samples before one, oldest first, that predict it; fewer
    where they do so without fault. What they predict never grows.

    Source: Burg 1975, maximum entropy spectral analysis.
    """
    errors = sound.new_ones(1)  # of prediction, as weights of a sample and of those before it
    forward, backward = sound[1:], sound[:-1]
    for _ in range(min(order, len(sound) - 1)):
        energy = forward @ forward + backward @ backward
        if energy < SILENT:
            break
        reflection = -2 * (forward @ backward) / energy
        errors = torch.nn.functional.pad(errors, (0, 1))
        errors = errors + reflection * errors.flip(0)
        forward, backward = (
            (forward + reflection * backward)[1:],
            (backward + reflection * forward)[:-1],
        )
    return -errors[1:].flip(0)
