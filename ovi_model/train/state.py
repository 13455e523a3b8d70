"""A training on disk: kept between its steps, so that it can go on to the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

from ..log import log
from ..save.whole_file import write_over
from .clips import Clip

# What the folder of a training holds: where it is, and the LoRA of each time it was saved.
STATE, LORA = "training.safetensors", "step_{:06}.safetensors"
ABOUT = "ovi_training"  # entry of the header
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


def fingerprint(clips: Sequence[Clip]) -> str:
    """Return what changes with a clip or its caption."""
    digest = hashlib.sha256()
    for clip in clips:
        texts = chain(clip.texts, *clip.no_caption)
        for tensor in (clip.video, clip.audio, *texts):
            digest.update(tensor.contiguous().numpy().tobytes())
        digest.update(repr((clip.shape, clip.caption_dropout, clip.first_frame)).encode())
    return digest.hexdigest()


def save(folder: Path, training: Any, about: dict) -> None:
    """Write the LoRA as it is, and what its next step needs; each file is whole or as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, weight in training.lora.named_weights():
        kept = training.optimizer.state.get(weight, {})
        tensors[name] = weight
        tensors |= {f"{name}.{moment}": kept[moment] for moment in MOMENTS if moment in kept}
    steps = len(training.losses)
    header = {ABOUT: json.dumps({"about": about, "losses": training.losses})}
    own = {name: x.detach().cpu().clone() for name, x in tensors.items()}
    lora = safetensors.torch.save(training.lora.export(), {"ovi_steps": str(steps)})
    write_over(folder / LORA.format(steps), lora)
    write_over(folder / STATE, safetensors.torch.save(own, header))


def resume(folder: Path, training: Any, about: dict) -> None:
    """Take a training up where the folder's state is; without one it begins.

    Raises ValueError if the state is of another recipe or other clips, or damaged.
    """
    path = folder / STATE
    if not path.exists():
        return
    try:
        opened = safe_open(path, "pt")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}). Remove it to begin anew.") from error
    with opened as file:
        saved = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
        _check(path, saved.get("about", {}), about)
        training.losses[:] = saved["losses"]
        for name, weight in training.lora.named_weights():
            with torch.no_grad():
                weight.copy_(file.get_tensor(name))
            training.optimizer.state[weight] = {
                "step": torch.tensor(float(len(training.losses))),
                # Copies: a view keeps the file mapped, and Windows replaces no such file.
                **{moment: file.get_tensor(f"{name}.{moment}").clone() for moment in MOMENTS},
            }
    log.info("%s: the training goes on after step %d", folder.name, len(training.losses))


def _check(path: Path, saved: dict, about: dict) -> None:
    """Raise ValueError naming what differs; memory is no part of the result, nor is a longer
    training another one.
    """
    free = ("recompute", "steps")
    other = [key for key in about if key not in free and saved.get(key) != about[key]]
    if other:
        told = ", ".join(
            "the clips or their captions"
            if key == "clips"
            else f"{key} was {saved.get(key)}, now {about[key]}"
            for key in other
        )
        raise ValueError(
            f"{path} holds another training: {told}. Set it back to go on, or choose another name "
            "to begin anew."
        )
