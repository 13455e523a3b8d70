"""One input of several layers, quantised once for those that would each quantise it alike."""

from __future__ import annotations

import comfy.quant_ops
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn


class SharedInput:
    """Runs layers on one input; what they return is the same, to the bit, as without it.

    A layer takes the quantised input where it would make the same itself: not with patched weights
    or a forward that is not core's, nor in training. Plain layers get the input as it is.
    """

    def __init__(self, x: Tensor, *layers: nn.Module):
        """x [B, L, D]; layers: those that will read it."""
        self._x = x
        self._layout, self._quantised = None, None
        layouts = [_layout_of_input(layer) for layer in layers]
        layout = next((its for its in layouts if its is not None and layouts.count(its) > 1), None)
        if layout is not None and not x.requires_grad:
            # Rows of tokens, for core's products have two dimensions.
            self._quantised = QuantizedTensor.from_float(x.flatten(0, -2), layout, scale=None)
            self._layout = layout

    def __call__(self, layer: nn.Module) -> Tensor:
        """Return what one of the layers makes of the input, [B, L, its width]."""
        if self._quantised is None or _layout_of_input(layer) != self._layout:
            return layer(self._x)
        made = layer(self._quantised)
        return made.unflatten(0, self._x.shape[:-1])


def _layout_of_input(layer: nn.Module) -> str | None:
    """Return the layout in which core's layer quantises whatever it reads, or None.

    Source: ComfyUI, comfy/ops.py, MixedPrecisionOps.Linear.forward. Layers of 0.3.75, which have no
    quant_format, quantise only what has a scale of its own; int8 layers quantise inside of their
    product.
    """
    quant_format = getattr(layer, "quant_format", None)
    if quant_format is None:
        return None
    if not comfy.quant_ops.QUANT_ALGOS[quant_format].get("quantize_input", True):
        return None
    if layer._full_precision_mm or getattr(layer, "comfy_force_cast_weights", False):
        return None
    if layer.weight_function or layer.bias_function or _is_wrapped(layer):
        return None
    # Scales of a file are each layer's own; to compare them, a card would have to be waited for.
    if any(getattr(layer, name, None) is not None for name in ("input_scale", "pre_quant_scale")):
        return None
    return layer.layout_type


def _is_wrapped(layer: nn.Module) -> bool:
    """Whether something else reads the input, or has taken the place of core's forward."""
    return bool("forward" in vars(layer) or layer._forward_pre_hooks or layer._forward_hooks)
