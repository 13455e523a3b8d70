"""snicolast/ComfyUI-Ovi: the reference's modules, with an attention that is chosen.

It attends through flash-attn, whose place the function takes that the others are measured with.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import reference
import torch
from reference import run
from torch import nn

from .checkout import Checkout

__all__ = ["PROOF", "REPOSITORY", "build", "run"]

REPOSITORY = "snicolast/ComfyUI-Ovi"
PROOF = "ovi/modules/fusion.py"
PACKAGE = "peer_snicolast"


def build(checkout: Path, video, audio, dtype: torch.dtype) -> nn.Module:
    def change(text: str) -> str:
        # As in the reference, whose decorator names the card; this one's name is newly deprecated.
        text = text.replace(
            "@amp.autocast(enabled=False)", "@torch.autocast('cuda', enabled=False)"
        )
        if dtype == torch.float32:
            text = re.sub(r"\bbfloat16\b", "float32", text.replace(".bfloat16()", ".float()"))
        return text

    Checkout(PACKAGE, checkout, change).install()
    with reference.replaced(reference.stand_ins()):
        fusion = import_module(f"{PACKAGE}.ovi.modules.fusion")
        attention = import_module(f"{PACKAGE}.ovi.modules.attention")
    attention.set_attention_backend("flash_attn_2")
    return reference.build(fusion.FusionModel, video, audio).to(dtype)
