"""What lies between matrix products: norms, gates, rotations, each in as few passes over memory as
the device allows.

Hidden states are overwritten where no gradient is asked for: at full size one of them fills 0.1 to
0.3 GB.
"""

from __future__ import annotations

import comfy.quant_ops
import torch
from torch import Tensor
from torch.nn import functional

# Devices known to have float64 and complex numbers, and to mix precisions in one operation; "meta"
# counts for a card.
PRECISE_DEVICES = ("cpu", "cuda", "meta")


def compiled_kernel(name: str, library):
    """Return this function of core's kernel library, if there is one, if it is compiled for this
    machine; else None.
    """
    if library is None:
        return None
    backends = [backend for kind, backend in library.list_backends().items() if kind != "eager"]
    working = [backend for backend in backends if backend["available"] and not backend["disabled"]]
    return (
        getattr(library, name)
        if any(name in backend["capabilities"] for backend in working)
        else None
    )


def has_fused_rms_norm(operators=torch.ops.aten) -> bool:
    """Whether torch has RMSNorm as one kernel of a CUDA card (2.9 on); there the operator also
    returns the norms.
    """
    operator = getattr(operators, "_fused_rms_norm", None)
    return operator is not None and len(operator.default._schema.returns) == 2


# Cores before 0.8.0 have none.
LIBRARY = getattr(comfy.quant_ops, "ck", None)
# layer_norm(x) * (1 + scale) + shift, and rotation of half precision, in one pass each; None where
# core lacks them.
FUSED_NORM = compiled_kernel("adaln", LIBRARY)
FUSED_ROTATION = compiled_kernel("apply_rope1", LIBRARY)
FUSED_RMS_NORM = has_fused_rms_norm()


def overwrites() -> bool:
    """Whether operations may write over what they read."""
    return not torch.is_grad_enabled()


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift; x [B, L, D], rows [B, T, D], each for L / T tokens; in
    dtype, else x's.
    """
    steps, shift, scale = by_row(x, shift), shift.unsqueeze(2), scale.unsqueeze(2)
    dtype = dtype or x.dtype
    if FUSED_NORM and dtype == x.dtype and on_card(x):
        # This kernel reads all that it is given in one precision.
        return FUSED_NORM(steps, scale.to(dtype), shift.to(dtype), eps).flatten(1, 2)
    normed = functional.layer_norm(steps, steps.shape[-1:], eps=eps)
    return _multiply_add(normed, 1 + scale, shift, dtype, out=normed).flatten(1, 2)


def rms_norm(norm, x: Tensor) -> Tensor:
    """One of core's RMSNorm layers on x [B, L, D], over x where it would else be taken apart, step
    by step.
    """
    in_one = (FUSED_RMS_NORM and x.device.type in ("cuda", "meta")) or torch.compiler.is_compiling()
    if in_one or not overwrites() or x.device.type not in PRECISE_DEVICES or not _is_plain(norm):
        return norm(x)
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
    return x.mul_(square.div_(x.shape[-1]).add_(norm.eps).rsqrt_()).mul_(norm.weight)


def _is_plain(layer) -> bool:
    """Whether the weight of one of core's layers is used as it is: not cast, moved or patched on
    its way.
    """
    return not (getattr(layer, "comfy_cast_weights", True) or layer.weight_function)


def add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update * gate, over x; x and update [B, L, D], gate [B, T, D], each row for L / T tokens
    in a row.
    """
    steps = by_row(x, gate)
    return _multiply_add(
        by_row(update, gate), gate.unsqueeze(2), steps, x.dtype, out=steps
    ).flatten(1, 2)


def add(x: Tensor, update: Tensor) -> Tensor:
    """x + update, over x."""
    return x.add_(update) if overwrites() else x + update


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU, over x."""
    return (
        torch.ops.aten.gelu_(x, approximate="tanh")
        if overwrites()
        else functional.gelu(x, approximate="tanh")
    )


def rotate(x: Tensor, rotations: Tensor, num_heads: int) -> Tensor:
    """Turn every head of x [B, L, D] by rotations [1, L, 1, d / 2, 2, 2] of its pairs (2i, 2i + 1);
    x stays.

    Half precision without core's kernel rounds twice, for a third of the traffic of a copy in
    float32.
    """
    if FUSED_ROTATION and on_card(x) and x.dtype != rotations.dtype:
        return FUSED_ROTATION(x.unflatten(2, (num_heads, -1)), rotations).flatten(2)
    pairs = x.unflatten(2, (num_heads, -1, 2))
    cosine, sine = rotations[..., 0, 0], rotations[..., 1, 0]
    if (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or x.device.type not in PRECISE_DEVICES
    ):
        first, second = pairs.to(rotations.dtype).unbind(-1)
        turned = torch.stack(
            [first * cosine - second * sine, first * sine + second * cosine], dim=-1
        )
        return turned.to(x.dtype).flatten(2)
    if x.dtype == rotations.dtype:
        phases = torch.view_as_complex(rotations[..., 0].contiguous())
        return torch.view_as_real(torch.view_as_complex(pairs) * phases).flatten(2)
    turned = torch.mul(pairs, cosine.unsqueeze(-1), out=torch.empty_like(pairs))
    turned[..., 0].addcmul_(pairs[..., 1], sine, value=-1)
    turned[..., 1].addcmul_(pairs[..., 0], sine)
    return turned.flatten(2)


def by_row(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, L, D] -> [B, T, L / T, D]."""
    return x.unflatten(1, (rows.shape[1], -1))


def on_card(x: Tensor) -> bool:
    """Whether core's compiled kernels may be called: they know no gradients, and a compiler fuses
    what it can see.
    """
    return x.device.type in ("cuda", "meta") and not (
        torch.is_grad_enabled() or torch.compiler.is_compiling()
    )


def _multiply_add(
    x: Tensor, factor: Tensor, addend: Tensor, dtype: torch.dtype, out: Tensor
) -> Tensor:
    """x * factor + addend in the widest precision of the three, rounded once, in one pass; over
    `out` if it fits.
    """
    if not overwrites():
        return torch.addcmul(addend, x, factor).to(dtype)
    if out.dtype != dtype:
        out = torch.empty_like(x, dtype=dtype)
    return torch.addcmul(addend, x, factor, out=out)
