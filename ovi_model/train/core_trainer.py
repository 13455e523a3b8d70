"""Core's own 'Train LoRA' on clips of picture and sound.

Its node takes latents of one tensor. Ours stand in for them as a small joint latent of as many
clips, so that core makes the LoRA, its optimiser and its loop; the error of each step is taken of
the clips themselves: of any sizes, each with its own caption, both streams equal in weight.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType

import torch
from comfy.nested_tensor import NestedTensor

from ..config import AUDIO_CHANNELS, VIDEO_CHANNELS
from ..core_facts import compute_dtype
from ..latent.geometry import audio_steps
from ..log import log
from ..network.model import diffusion_model
from .clips import read_clips
from .error import mean_errors
from .trainer import weighed

KEY = "ovi_training_clips"  # in transformer_options, a tuple of Clip
STAND_IN = 2  # latent frames, height and width


def find_trainer() -> ModuleType | None:
    """Return the module of core's node, None where there is none; ComfyUI loads its nodes by their
    paths, so that an import would give a second one.
    """
    known = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    node = known.get("TrainLoraNode")
    if node is not None:
        return sys.modules.get(node.__module__)
    try:
        return importlib.import_module("comfy_extras.nodes_train")
    except Exception as error:  # noqa: BLE001
        # Whatever keeps core's file from loading keeps no node of ours from it.
        log.warning("ComfyUI's 'Train LoRA' cannot be read (%s); it stays as it is.", error)
        return None


def take_clips(original, is_ours, takes_nested: bool):
    """Wrap `TrainLoraNode.execute`, whose every input is a list."""
    function = original.__func__

    @functools.wraps(function)
    def execute(cls, *args, **kwargs):
        models, latents = kwargs.get("model"), kwargs.get("latents") or []
        is_joint = any(getattr(latent["samples"], "is_nested", False) for latent in latents)
        if not is_joint or not models or not is_ours(models[0].model):
            return function(cls, *args, **kwargs)
        if not takes_nested:
            raise ValueError(
                "'Train LoRA' of this ComfyUI takes no latents of picture and sound; it does from "
                "0.33 on. Use 'Ovi Train LoRA', which needs no newer ComfyUI."
            )
        return function(cls, *args, **kwargs | _stand_in(models[0], latents, kwargs["positive"]))

    return classmethod(execute)


def _stand_in(model, latents: list[dict], positive: list[list]) -> dict:
    """Return the inputs of core's node that stand in for clips, which go with the model."""
    clips = tuple(read_clips(latents, positive, diffusion_model(model).config))
    model = model.clone()
    model.model_options.setdefault("transformer_options", {})[KEY] = clips
    entries = [entry for conditioning in positive for entry in conditioning]
    entries = entries * len(clips) if len(entries) == 1 else entries
    video = torch.zeros(len(clips), VIDEO_CHANNELS, *[STAND_IN] * 3)
    audio = torch.zeros(len(clips), AUDIO_CHANNELS, audio_steps(STAND_IN))
    return {
        "model": [model],
        "latents": [{"samples": NestedTensor([video, audio])}],
        "positive": [entries],
        "bucket_mode": [False],
    }


def count_clips(original):
    """Wrap `_prepare_latents_and_count`, which knows tensors and lists of them."""

    @functools.wraps(original)
    def prepare(latents, *args, **kwargs):
        if getattr(latents, "is_nested", False):
            return latents, len(latents.unbind()[0]), False
        return original(latents, *args, **kwargs)

    return prepare


def measure_clips(original):
    """Wrap `TrainSampler.fwd_bwd`: one step's error, and its gradient unless it is summed up first.

    Core's own gives every clip of a batch to every caption.
    """

    @functools.wraps(original)
    def fwd_bwd(
        self,
        model_wrap,
        batch_sigmas,
        batch_noise,
        batch_latent,
        cond,
        indicies,
        extra_args,
        dataset_size,
        bwd=True,
    ):
        clips = extra_args["model_options"].get("transformer_options", {}).get(KEY)
        if clips is None:
            given = (batch_sigmas, batch_noise, batch_latent, cond, indicies, extra_args)
            return original(self, model_wrap, *given, dataset_size, bwd=bwd)
        model, device = model_wrap.inner_model, batch_latent.device
        with torch.autocast(device.type, dtype=self.training_dtype):
            video, audio = mean_errors(
                model.diffusion_model,
                [clips[index] for index in indicies],
                batch_sigmas.detach().cpu().float(),
                None,  # core seeds torch's own generator in every step
                device,
                compute_dtype(model),
                type(self.loss_fn)(reduction="none"),
            )
        loss = weighed(video, audio, 1.0)
        if bwd:
            share = loss / self.grad_acc
            scaler = getattr(self, "grad_scaler", None)
            (share if scaler is None else scaler.scale(share)).backward()
        return loss

    return fwd_bwd


def go_on(original, is_ours):
    """Wrap `_setup_lora_adapters` and its like: an existing LoRA goes on with its biases, and at
    its own alpha, which core looks for under another name.
    """

    @functools.wraps(original)
    def setup(mp, existing_weights, *args, **kwargs):
        if not is_ours(mp.model):
            return original(mp, existing_weights, *args, **kwargs)
        alphas = {
            f"{name.removesuffix('.alpha')}.weight.alpha": value
            for name, value in existing_weights.items()
            if name.endswith(".alpha")
        }
        made = original(mp, existing_weights | alphas, *args, **kwargs)
        for name, weight in made[0].items():
            if name.endswith((".diff", ".diff_b")) and name in existing_weights:
                weight.data.copy_(existing_weights[name])
        return made

    return setup
