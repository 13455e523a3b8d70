"""Guidance by references: away from what the model predicts with pictures, or voices, of zeros.

Prediction of a step, with P from the positive prompt, N from the negative one, I and A from the
positive one with pictures, or voices, of zeros, for the picture and for the sound:
N + cfg (P - N) + image_cfg (P - I) and N + audio_cfg (P - N) + voice_cfg (P - A).
Source: Guoxu1233/DreamID-Omni, its engine.
"""

from __future__ import annotations

import math
import uuid

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..network.model import diffusion_model
from .guidance import guide_audio
from .references import MODEL_IMAGES, MODEL_VOICES

KEY = "ovi_reference_guidance"


def guide_references(model, audio_cfg: float, image_cfg: float, voice_cfg: float):
    """Return a copy of a MODEL that is led by references; the sampler's cfg is for the picture.

    Raises ValueError if the model is no Ovi.
    """
    diffusion_model(model)
    model = model.clone()
    guide_audio(model, audio_cfg)
    model.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY)
    scales = {MODEL_IMAGES: image_cfg, MODEL_VOICES: voice_cfg}

    def led(
        executor, inner_model, conds: list, x: Tensor, sigma: Tensor, model_options: dict
    ) -> list[Tensor]:
        if len(conds) > 2 or conds[0] is None:
            return executor(inner_model, conds, x, sigma, model_options)
        names = [name for name, scale in scales.items() if scale and _has(conds[0], name)]
        # The second place is the negative prompt's, whoever asks.
        asked = [*conds, None][:2] + [without(conds[0], name) for name in names]
        predictions = executor(inner_model, asked, x, sigma, model_options)
        made, lacking = predictions[: len(conds)], predictions[2:]
        # Both predictions move by one term, which every guidance then keeps as it is.
        parts = [_part(name, conds[0]) for name in names]
        terms = [
            scales[name] * (made[0] - other)[..., part]
            for name, other, part in zip(names, lacking, parts, strict=True)
        ]
        for prediction, cond in zip(made, conds, strict=True):
            for part, term in zip(parts, terms, strict=True):
                if cond is not None:
                    prediction[..., part] += term
        return made

    if image_cfg or voice_cfg:
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, led)
    return model


def reference_guider(model, positive, negative, cfg: float, scales: tuple[float, float, float]):
    """Return a GUIDER; scales: of sound, of pictures, of voices."""
    guider = comfy.samplers.CFGGuider(guide_references(model, *scales))
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def _has(conds: list[dict], name: str) -> bool:
    return any(name in cond["model_conds"] for cond in conds)


def without(conds: list[dict], name: str) -> list[dict]:
    """Return conds in which these references are zeros, at the places they have."""
    return [_without(cond, name) if name in cond["model_conds"] else cond for cond in conds]


def _without(cond: dict, name: str) -> dict:
    given = cond["model_conds"]
    zeros = given[name]._copy_with(torch.zeros_like(given[name].cond))
    made = {**cond, "model_conds": {**given, name: zeros}}
    if "uuid" in cond:
        made["uuid"] = uuid.uuid5(cond["uuid"], name)  # by which caches tell prompts apart
    return made


def _part(name: str, conds: list[dict]) -> slice:
    """Return where the stream that these references lead lies in a pack [B, 1, N], which may be one
    of a context window.
    """
    begin_of_sound = math.prod(conds[0]["model_conds"]["latent_shapes"].cond[0][1:])
    return slice(begin_of_sound) if name == MODEL_IMAGES else slice(begin_of_sound, None)
