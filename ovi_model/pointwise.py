"""What lies between matrix products: norms, gates, rotations, each in as few passes over memory as the device allows.

Hidden states are overwritten where no gradient is asked for: at full size one of them fills 0.1 to 0.3 GB.
"""

from __future__ import annotations

import comfy.quant_ops
import torch
from torch import Tensor
from torch.nn import functional

# Devices known to have float64 and complex numbers, and to mix precisions in one operation; "meta" counts for a card.
PRECISE_DEVICES = ("cpu", "cuda", "meta")


def compiled_kernel(*names: str, library=getattr(comfy.quant_ops, "ck", None)):
    """Return the first of these functions that core's kernel library (0.8.0 on) has compiled for this machine."""
    if library is None:
        return None
    backends = [b for name, b in library.list_backends().items() if name != "eager" and b["available"]]
    known = {name for b in backends if not b["disabled"] for name in b["capabilities"]}
    return next((getattr(library, name) for name in names if name in known), None)


# layer_norm(x) * (1 + scale) + shift, and rotation, in one pass each; None where core has no such kernel.
FUSED_NORM = compiled_kernel("adaln")
FUSED_ROTATION = compiled_kernel("apply_rope1_", "apply_rope1")
# Whether torch has RMSNorm as one kernel of a CUDA card (2.9 on); that operator also returns the norms.
FUSED_RMS_NORM = len(torch.ops.aten._fused_rms_norm.default._schema.returns) == 2


def overwrites() -> bool:
    """Whether operations may write over what they read."""
    return not torch.is_grad_enabled()


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift; x [B, L, D], rows [B, T, D], each row for L / T tokens; in dtype, else x's."""
    steps, shift, scale = by_row(x, shift), shift.unsqueeze(2), scale.unsqueeze(2)
    dtype = dtype or x.dtype
    if FUSED_NORM and dtype == x.dtype and on_card(x):
        # This kernel reads all that it is given in one precision.
        return FUSED_NORM(steps, scale.to(dtype), shift.to(dtype), eps).flatten(1, 2)
    normed = functional.layer_norm(steps, steps.shape[-1:], eps=eps)
    return _multiply_add(normed, 1 + scale, shift, dtype, out=normed).flatten(1, 2)


def add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update * gate, over x; x and update [B, L, D], gate [B, T, D], each row for L / T tokens in a row."""
    steps = by_row(x, gate)
    return _multiply_add(by_row(update, gate), gate.unsqueeze(2), steps, x.dtype, out=steps).flatten(1, 2)


def add(x: Tensor, update: Tensor) -> Tensor:
    """x + update, over x."""
    return x.add_(update) if overwrites() else x + update


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU, over x."""
    return torch.ops.aten.gelu_(x, approximate="tanh") if overwrites() else functional.gelu(x, approximate="tanh")


def rotate(x: Tensor, rotations: Tensor, num_heads: int) -> Tensor:
    """Turn every head of x [B, L, D] by rotations [1, L, 1, d / 2, 2, 2] of its pairs (2i, 2i + 1), over x."""
    if FUSED_ROTATION and on_card(x) and overwrites():
        return FUSED_ROTATION(x.unflatten(2, (num_heads, -1)), rotations).flatten(2)
    pairs = x.unflatten(2, (num_heads, -1, 2))
    if torch.compiler.is_compiling() or not overwrites():
        cosine, sine = rotations[..., 0, 0], rotations[..., 1, 0]
        first, second = pairs.unbind(-1)
        turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
        return turned.to(x.dtype).flatten(2)
    if x.dtype == rotations.dtype and x.device.type in PRECISE_DEVICES:
        torch.view_as_complex(pairs).mul_(torch.view_as_complex(rotations[..., 0].contiguous()))
        return x
    return _rotated_by_parts(pairs, rotations).flatten(2)


def _rotated_by_parts(pairs: Tensor, rotations: Tensor) -> Tensor:
    """Rotations in a precision of their own, without a copy of pairs [B, L, heads, d / 2, 2] in it."""
    cosine, sine = rotations[..., 0, :1], rotations[..., 1, 0]
    turned = torch.mul(pairs, cosine, out=torch.empty_like(pairs))
    turned[..., 0].addcmul_(pairs[..., 1], sine, value=-1)
    turned[..., 1].addcmul_(pairs[..., 0], sine)
    return turned


def by_row(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, L, D] -> [B, T, L / T, D]."""
    return x.unflatten(1, (rows.shape[1], -1))


def on_card(x: Tensor) -> bool:
    """Whether core's compiled kernels may be called here; a compiler fuses better what it can look into."""
    return x.device.type in ("cuda", "meta") and not torch.compiler.is_compiling()


def _multiply_add(x: Tensor, factor: Tensor, addend: Tensor, dtype: torch.dtype, out: Tensor) -> Tensor:
    """x * factor + addend in the widest precision of the three, rounded once, in one pass; over `out` if it fits."""
    if not overwrites():
        return torch.addcmul(addend, x, factor).to(dtype)
    if out.dtype != dtype:
        out = torch.empty_like(x, dtype=dtype)
    return torch.addcmul(addend, x, factor, out=out)
