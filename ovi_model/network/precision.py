"""In what precision small weights are kept, and small layers run."""

from __future__ import annotations

import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor


def norm_factory(factory: dict) -> dict:
    """Where and in what precision to keep norms and modulations: not in eight bits, which save
    nothing there.
    """
    dtype = factory["dtype"]
    if dtype is not None and dtype.itemsize == 1:
        dtype = torch.bfloat16
    return {**factory, "dtype": dtype}


def precisely(layer, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Run one of core's layers in the precision of x, or in dtype if its weights are quantised:
    cores need that.
    """
    weight = layer.weight
    if isinstance(weight, QuantizedTensor) or weight.dtype.itemsize == 1:
        return layer(x.to(dtype)).to(x.dtype)
    return layer(x) if weight.dtype == x.dtype else layer.forward_comfy_cast_weights(x)
