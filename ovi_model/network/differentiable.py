"""Lets a gradient pass through the twin DiT to its latents, whatever its weights are.

ComfyUI loads and runs models in inference mode, whose tensors autograd refuses. Weights need no
gradient, so autograd never gets them here: a layer runs as it does without gradients, and its
backward asks for the weight anew. That is exact for every layout, for patched weights, and for
weights that core moves or casts into a buffer which the next layer uses again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import comfy.ops
import comfy.rmsnorm
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.nn.grad import conv1d_input, conv3d_input
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ..core_facts import module_of

# How core's layers are called: as modules, and past them, where the precision is asked for.
ENTRIES = ("forward", "forward_comfy_cast_weights")


def attend_with_gradient(_chosen, *args, **kwargs) -> Tensor:
    """Attention for core's override: of its kernels, only PyTorch's is sure to have a gradient."""
    return attention_pytorch(*args, **kwargs)


# What is added to the output of a layer, by its input.
Additions = Mapping[nn.Module, Callable[[Tensor], Tensor]]


@contextmanager
def differentiable(
    network, additions: Additions | None = None, recompute: bool = True
) -> Iterator[None]:
    """Run a network so that a gradient reaches its latents; its weights get none.

    network: an OviModel. additions: what a training adds to layers, whose own weights do get one.
    recompute: each pair of blocks is computed again in the backward pass, so that one pair's
    intermediate results are held at a time.
    """
    additions = additions or {}
    changed = [module for module in network.modules() if _has_weights(module)]
    kept = [(module, {name: vars(module).get(name) for name in ENTRIES}) for module in changed]
    blocks = network.blocks if recompute else ()
    kept += [(block, {"forward": vars(block).get("forward")}) for block in blocks]
    try:
        for layer in changed:
            for name in ENTRIES:
                if hasattr(layer, name):
                    run = partial(_run_layer, layer, additions.get(layer), getattr(layer, name))
                    setattr(layer, name, run)
        for block in blocks:
            block.forward = partial(_run_again, block.forward)
        yield
    finally:
        for module, entries in kept:
            for name, own in entries.items():
                if own is not None:
                    setattr(module, name, own)
                elif name in vars(module):
                    delattr(module, name)


def copied(value):
    """Return a tensor that autograd may keep, a copy if need be; anything else as it is."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _has_weights(module: nn.Module) -> bool:
    return isinstance(module, comfy.ops.CastWeightBiasOp)


def _run_again(forward: Callable, hidden, inputs, transformer_options: dict, *partner):
    """Run a pair of blocks, and run it again when its gradient is asked for."""
    # The dictionary names the block that runs, and by then it names the last one.
    options = dict(transformer_options)
    return checkpoint(
        forward, hidden, inputs, options, *partner, use_reentrant=False, preserve_rng_state=False
    )


def _run_layer(
    layer: nn.Module, addition: Callable | None, forward: Callable, x: Tensor, *args, **kwargs
) -> Tensor:
    """Run one of core's layers, as a function whose gradient autograd knows."""
    if torch.is_inference_mode_enabled():  # called by the layer itself
        return forward(x, *args, **kwargs)
    made = _run_alone(layer, forward, x)
    return made if addition is None else made + addition(x)


def _run_alone(layer: nn.Module, forward: Callable, x: Tensor) -> Tensor:
    if not x.requires_grad:
        return _without_graph(forward, x)
    if hasattr(layer, "normalized_shape"):
        return _normalise(layer, x)
    return _Layer.apply(x, layer, forward)


def _without_graph(forward: Callable, x: Tensor) -> Tensor:
    # In inference mode, since the buffers into which core casts weights were made in it.
    with torch.inference_mode():
        y = forward(x)
    return y.clone()


def _normalise(layer: nn.Module, x: Tensor) -> Tensor:
    """Run a norm on x [B, L, D], with a copy of its few weights."""
    with torch.inference_mode():
        weight, bias = _weights(layer, x)
    weight, bias = copied(weight), copied(bias)
    if isinstance(layer, nn.LayerNorm):
        return nn.functional.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    return comfy.rmsnorm.rms_norm(x, weight, layer.eps)


class _Layer(torch.autograd.Function):
    """A matrix product or a convolution: linear, so that the gradient needs the weight alone."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.Module, forward: Callable) -> Tensor:
        ctx.layer, ctx.run, ctx.shape = layer, forward, x.shape
        return _without_graph(forward, x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        if module_of(type(ctx.layer).forward) != comfy.ops.__name__:
            return _ask_layer(ctx.run, gradient, ctx.shape), None, None
        with torch.inference_mode():
            weight, _ = _weights(ctx.layer, gradient)
            found = _transposed(ctx.layer, weight, gradient, ctx.shape)
        return found.clone(), None, None


def _ask_layer(forward: Callable, gradient: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of the input of a layer of others (of GGUF files): it runs again, on zeros."""
    with torch.enable_grad(), _CopiedWeights():
        x = gradient.new_zeros(shape).requires_grad_()
        (found,) = torch.autograd.grad(forward(x), x, gradient)
    return found


class _CopiedWeights(TorchFunctionMode):
    """Hands matrix products copies of weights that autograd would refuse."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            args = [copied(value) for value in args]
        return func(*args, **(kwargs or {}))


def _transposed(layer: nn.Module, weight: Tensor, gradient: Tensor, shape: torch.Size) -> Tensor:
    """Return the gradient of a layer's input, of this shape, from that of its output."""
    if isinstance(layer, nn.Conv1d | nn.Conv3d):
        how = (layer.stride, layer.padding, layer.dilation, layer.groups)
        of_input = conv1d_input if isinstance(layer, nn.Conv1d) else conv3d_input
        return of_input(shape, weight, gradient, *how)
    found = gradient @ weight
    smoothing = getattr(layer, "pre_quant_scale", None)  # NVFP4 files scale the input, too
    return found if smoothing is None else found * smoothing.to(found)


def _weights(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a layer, on the device and in the precision of a tensor."""
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    if isinstance(weight, QuantizedTensor):
        weight = weight.dequantize()
    comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
    return weight, bias
