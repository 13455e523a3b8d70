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
FUSED_ROPE = compiled_kernel("apply_rope1", LIBRARY)
FUSED_RMS_NORM = has_fused_rms_norm()


def overwrites() -> bool:
    """Whether operations may write over what they read."""
    return not torch.is_grad_enabled()


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, in dtype, else x's.

    x [B, L, D]; shift, scale [B, T, D], each for L / T tokens in a row.
    """
    grouped, shift, scale = by_timestep(x, shift), shift.unsqueeze(2), scale.unsqueeze(2)
    dtype = dtype or x.dtype
    if FUSED_NORM and dtype == x.dtype and uses_device_kernels(x):
        # This kernel reads all that it is given in one precision.
        return FUSED_NORM(grouped, scale.to(dtype), shift.to(dtype), eps).flatten(1, 2)
    normed = functional.layer_norm(grouped, grouped.shape[-1:], eps=eps)
    return _multiply_add(normed, 1 + scale, shift, dtype, out=normed).flatten(1, 2)


def rms_norm(norm, x: Tensor) -> Tensor:
    """Run one of core's RMSNorm layers on x [B, L, D]; it overwrites x where no kernel fuses it."""
    is_fused = (
        FUSED_RMS_NORM and x.device.type in ("cuda", "meta")
    ) or torch.compiler.is_compiling()
    is_precise = x.device.type in PRECISE_DEVICES
    if is_fused or not is_precise or not overwrites() or not _is_plain(norm):
        return norm(x)
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
    return x.mul_(square.div_(x.shape[-1]).add_(norm.eps).rsqrt_()).mul_(norm.weight)


def _is_plain(layer) -> bool:
    """Whether the weight of one of core's layers is used as it is: not cast, moved or patched on
    its way.
    """
    return not (getattr(layer, "comfy_cast_weights", True) or layer.weight_function)


def add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update * gate, over x; x, update [B, L, D]; gate [B, T, D], each for L / T tokens."""
    grouped = by_timestep(x, gate)
    update = by_timestep(update, gate)
    return _multiply_add(update, gate.unsqueeze(2), grouped, x.dtype, out=grouped).flatten(1, 2)


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


def apply_rope(x: Tensor, freqs_cis: Tensor, num_heads: int) -> Tensor:
    """Turn every head of x [B, L, D] by freqs_cis [1, L, 1, d / 2, 2, 2]; x stays as it is."""
    if FUSED_ROPE and uses_device_kernels(x) and x.dtype != freqs_cis.dtype:
        return FUSED_ROPE(x.unflatten(2, (num_heads, -1)), freqs_cis).flatten(2)
    pairs = x.unflatten(2, (num_heads, -1, 2))
    if torch.compiler.is_compiling() or not overwrites() or x.device.type not in PRECISE_DEVICES:
        turned = _turn(pairs, freqs_cis)
    elif x.dtype == freqs_cis.dtype:
        turned = _turn_complex(pairs, freqs_cis)
    else:
        turned = _turn_rounded(pairs, freqs_cis)
    return turned.flatten(2)


def _turn(pairs: Tensor, freqs_cis: Tensor) -> Tensor:
    """Turn pairs [B, L, H, d / 2, 2] in operations that a compiler and autograd see through."""
    cosine, sine = freqs_cis[..., 0, 0], freqs_cis[..., 1, 0]
    first, second = pairs.to(freqs_cis.dtype).unbind(-1)
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return turned.to(pairs.dtype)


def _turn_complex(pairs: Tensor, freqs_cis: Tensor) -> Tensor:
    """Turn pairs of the same precision as freqs_cis: one product of complex numbers."""
    phases = torch.view_as_complex(freqs_cis[..., 0].contiguous())
    return torch.view_as_real(torch.view_as_complex(pairs) * phases)


def _turn_rounded(pairs: Tensor, freqs_cis: Tensor) -> Tensor:
    """Turn pairs in half precision: rounds twice, for a third of the traffic of a float32 copy."""
    cosine, sine = freqs_cis[..., 0, 0], freqs_cis[..., 1, 0]
    turned = torch.mul(pairs, cosine.unsqueeze(-1), out=torch.empty_like(pairs))
    turned[..., 0].addcmul_(pairs[..., 1], sine, value=-1)
    turned[..., 1].addcmul_(pairs[..., 0], sine)
    return turned


def by_timestep(x: Tensor, modulation: Tensor) -> Tensor:
    """Group x [B, L, D] by the timesteps of modulation [B, T, D] -> [B, T, L / T, D]."""
    return x.unflatten(1, (modulation.shape[1], -1))


def uses_device_kernels(x: Tensor) -> bool:
    """Whether core's compiled kernels may be called: they know no gradients and no compiler."""
    is_traced = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return x.device.type in ("cuda", "meta") and not is_traced


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
