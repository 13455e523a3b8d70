"""Classifier-free guidance with a scale for each tower and a range, and skip-layer guidance, as
patches of a MODEL.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..network.model import diffusion_model

SKIP_KEY, RANGE_KEY = "ovi_skip_layer", "ovi_guidance_range"
WHOLE = (0.0, 1.0)


def guide(
    model, audio_cfg: float, layer: int, start_percent: float, end_percent: float, cfg_range=WHOLE
):
    """Return a copy of a MODEL with both kinds of guidance.

    start_percent, end_percent: where the layer is skipped, cfg_range: where there is guidance at
    all; points of the schedule, 0 to 1.
    Raises ValueError if the model is no Ovi or has no such layer, or if cfg_range ends before it
    starts.
    """
    model = model.clone()
    network = diffusion_model(model)
    if layer >= len(network.blocks):
        raise ValueError(
            f"skip_layer is {layer}, but this model has 1 to {len(network.blocks) - 1}; -1 or 0 is "
            "off."
        )
    guide_audio(model, audio_cfg)
    skip_layer(model, layer, start_percent, end_percent)
    limit_guidance(model, *cfg_range)
    return model


def guide_audio(model, audio_cfg: float) -> None:
    """Let the sampler's cfg guide the picture and `audio_cfg` the sound: negative + scale *
    (positive - negative).

    A cfg function that the model already has goes on to guide the picture. A guider with one prompt
    has nothing to guide away from.
    """
    previous = model.model_options.get("sampler_cfg_function")

    def guided(args: dict):
        positive, negative = args["cond"], args["uncond"]
        if args["input_uncond"] is None:  # then core's negative is zeros
            return previous(args) if previous else positive
        result = (
            previous(args) if previous else negative + args["cond_scale"] * (positive - negative)
        )
        sound = slice(_audio_start(args), None)
        result[..., sound] = negative[..., sound] + audio_cfg * (
            positive[..., sound] - negative[..., sound]
        )
        return result

    # At cfg 1 core drops the negative pass, which the sound needs unless its scale is 1 too.
    model.set_model_sampler_cfg_function(
        guided, disable_cfg1_optimization=not math.isclose(audio_cfg, 1.0)
    )


def _audio_start(args: dict) -> int:
    """Return where the sound begins in the sampler's packed latent [B, 1, N]; N if there is no
    sound.
    """
    shapes = args["input_cond"][0]["model_conds"].get("latent_shapes")
    return args["cond"].shape[-1] if shapes is None else math.prod(shapes.cond[0][1:])


def skip_layer(model, layer: int, start_percent: float, end_percent: float) -> None:
    """Leave one block out of the negative pass while the noise level is between two points of the
    schedule, 0 to 1.

    Guiders with three prompts are left alone: which of them is the negative one is theirs to know.
    """
    is_within = _tell_range(model, start_percent, end_percent)

    def with_layer(
        executor, inner_model, conds: list, x: Tensor, sigma: Tensor, model_options: dict
    ) -> list[Tensor]:
        if len(conds) == 2 and is_within(sigma):
            options = {**model_options.get("transformer_options", {}), "ovi_skip_layer": layer}
            model_options = {**model_options, "transformer_options": options}
        return executor(inner_model, conds, x, sigma, model_options)

    model.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, SKIP_KEY)
    if layer > 0:
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, SKIP_KEY, with_layer)


def limit_guidance(model, start_percent: float, end_percent: float) -> None:
    """Predict from the positive prompt alone while the noise level is not between two points of the
    schedule, 0 to 1.

    There a guider is handed that prediction as the negative one too, so whatever its scales are,
    the result is the prediction itself. Guiders that ask for other predictions than a positive and
    a negative one are left alone.
    Raises ValueError if the range ends before it starts.
    Source: arXiv 2404.07724, guidance in a limited interval.
    """
    if start_percent > end_percent:
        raise ValueError(
            f"cfg_start_percent is {start_percent:g} and cfg_end_percent {end_percent:g}: guidance "
            "would end before it starts. Choose a start that is not above the end; to switch "
            "guidance off set cfg and audio_cfg to 1."
        )
    is_within = _tell_range(model, start_percent, end_percent)

    def limited(
        executor, inner_model, conds: list, x: Tensor, sigma: Tensor, model_options: dict
    ) -> list[Tensor]:
        if len(conds) != 2 or any(cond is None for cond in conds) or is_within(sigma):
            return executor(inner_model, conds, x, sigma, model_options)
        prediction, _ = executor(inner_model, [conds[0], None], x, sigma, model_options)
        # Two tensors, since other nodes may change one of them in place.
        return [prediction, prediction.clone()]

    model.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, RANGE_KEY)
    if (start_percent, end_percent) != WHOLE:
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, RANGE_KEY, limited)


def _tell_range(model, start_percent: float, end_percent: float) -> Callable[[Tensor], bool]:
    """Return what tells whether noise levels [B] lie between two points of the schedule, 0 to 1."""
    if (start_percent, end_percent) == WHOLE:
        return lambda _sigma: True  # without waiting for the device
    sampling = model.get_model_object("model_sampling")
    # Rounding can put the first noise level of a schedule a little above the highest there is.
    highest = sampling.percent_to_sigma(start_percent) if start_percent > 0 else math.inf
    lowest = sampling.percent_to_sigma(end_percent)
    return lambda sigma: lowest <= float(sigma.max()) <= highest
