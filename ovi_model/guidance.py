"""Classifier-free guidance with a scale for each tower, and skip-layer guidance, as patches of a MODEL."""

from __future__ import annotations

import math

import comfy.patcher_extension

from .network import network_of

KEY = "ovi_guidance"


def guide(model, audio_cfg: float, layer: int, start_percent: float, end_percent: float):
    """Return a copy of a MODEL with both kinds of guidance.

    Raises ValueError if the model is no Ovi or has no such layer.
    """
    model = model.clone()
    network = network_of(model)
    if layer >= len(network.blocks):
        raise ValueError(f"skip_layer is {layer}, but this model has 1 to {len(network.blocks) - 1}; -1 or 0 is off.")
    guide_audio(model, audio_cfg)
    skip_layer(model, layer, start_percent, end_percent)
    return model


def guide_audio(model, audio_cfg: float) -> None:
    """Let the sampler's cfg guide the picture and `audio_cfg` the sound: negative + scale * (positive - negative).

    A cfg function that the model already has goes on to guide the picture.
    """
    previous = model.model_options.get("sampler_cfg_function")

    def guided(args: dict):
        positive, negative = args["cond"], args["uncond"]
        result = previous(args) if previous else negative + args["cond_scale"] * (positive - negative)
        sound = slice(_audio_start(args), None)
        result[..., sound] = negative[..., sound] + audio_cfg * (positive[..., sound] - negative[..., sound])
        return result

    # At cfg 1 core drops the negative pass, which the sound needs unless its scale is 1 too.
    model.set_model_sampler_cfg_function(guided, disable_cfg1_optimization=not math.isclose(audio_cfg, 1.0))


def _audio_start(args: dict) -> int:
    """Return where the sound begins in the sampler's packed latent [B, 1, N]; N if there is no sound."""
    shapes = args["input_cond"][0]["model_conds"].get("latent_shapes")
    return args["cond"].shape[-1] if shapes is None else math.prod(shapes.cond[0][1:])


def skip_layer(model, layer: int, start_percent: float, end_percent: float) -> None:
    """Leave one block out of the negative pass while the noise level is between two points of the schedule, 0 to 1."""
    sampling = model.get_model_object("model_sampling")
    # Rounding can put the first noise level of a schedule a little above the highest there is.
    highest = sampling.percent_to_sigma(start_percent) if start_percent > 0 else math.inf
    lowest = sampling.percent_to_sigma(end_percent)

    def with_layer(executor, x, sigma, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        if lowest <= float(sigma.max()) <= highest:
            transformer_options = {**transformer_options, "ovi_skip_layer": layer}
        return executor(x, sigma, c_concat, c_crossattn, control, transformer_options, **kwargs)

    model.remove_wrappers_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, KEY)
    if layer > 0:
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, KEY, with_layer)
