"""Numbers drawn from a name, as the goldens were recorded with."""

import hashlib

import torch
from torch import Tensor


def seeded(name: str, shape) -> Tensor:
    """Normal numbers, float32, whose seed is the name's hash."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") % 2**63
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
