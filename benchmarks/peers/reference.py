"""character-ai/Ovi as a peer; how it is loaded and run is said in benchmarks/reference.py."""

from __future__ import annotations

from pathlib import Path

import reference
import torch
from reference import run
from torch import nn

__all__ = ["PROOF", "REPOSITORY", "build", "run"]

REPOSITORY = "character-ai/Ovi"
PROOF = "ovi/modules/fusion.py"


def build(checkout: Path, video, audio, dtype: torch.dtype) -> nn.Module:
    return reference.build(reference.load(checkout, dtype), video, audio).to(dtype)
