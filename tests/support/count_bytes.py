"""Counts the bytes a forward holds at its peak on any device; on the meta device that takes no
memory, whatever size.

What the package's own modules are called differs between tests and scripts, so the model is given,
not imported.
"""

import weakref
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountBytes(TorchDispatchMode):
    """Follows every storage that operations inside the context make; what was there before, such as
    weights, is free.

    live: bytes held now. peak: the most held at once, without what one operation needs inside
    itself.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.followed: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, Tensor)
                and tensor.untyped_storage()._cdata not in given | self.followed
            ):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        self.followed.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, identity: int, size: int) -> None:
        self.followed.discard(identity)
        self.live -= size


def fused_attention(
    _original, query: Tensor, _key: Tensor, _value: Tensor, heads: int, **_options
) -> Tensor:
    """Hold what a fused kernel holds, its output and one logarithm for each row and head; computes
    nothing.

    A value for core's `transformer_options["optimized_attention_override"]`.
    """
    logarithms = query.new_empty(query.shape[0], heads, query.shape[1], dtype=torch.float32)
    output = torch.empty_like(query)
    del logarithms
    return output


class FusedNorms(TorchFunctionMode):
    """RMSNorm as the one kernel it is on a CUDA card from torch 2.9 on, where other devices take it
    apart.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.rms_norm, torch.nn.functional.rms_norm):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def forward_peak(
    model,
    shapes: list,
    dtype: torch.dtype,
    *,
    by_frame=False,
    fuse_attention=True,
    fuse_norm=True,
    **options,
):
    """Return the bytes a forward of an OviModel holds at its peak, besides its weights and inputs.

    shapes: of the latents given, the video's first. dtype: of the activations. by_frame: one time
    for each frame, as image-to-video has it. fuse_attention, fuse_norm: count attention and RMSNorm
    as the one kernel each is on a recent card. options: more transformer_options.
    """
    device = next(model.parameters()).device
    latents = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    batch = shapes[0][0]
    time = torch.zeros(batch, device=device)
    times = (
        [torch.zeros(batch, shapes[0][2], device=device), time][: len(shapes)] if by_frame else time
    )
    text = torch.zeros(
        batch, model.config.text_length, model.config.text_dim, dtype=dtype, device=device
    )
    if fuse_attention:
        options["optimized_attention_override"] = fused_attention
    with torch.no_grad(), FusedNorms() if fuse_norm else nullcontext(), CountBytes() as count:
        model(
            latents if len(latents) > 1 else latents[0],
            times,
            text,
            text,
            transformer_options=options,
        )
    return count.peak


class FusedAttentionWithGradient(torch.autograd.Function):
    """Holds what a fused kernel holds for its gradient: what it was given, its output and one
    logarithm for each row and head; computes nothing.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        logarithms = query.new_empty(query.shape[0], heads, query.shape[1], dtype=torch.float32)
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, logarithms)
        return output

    @staticmethod
    def backward(ctx, _gradient: Tensor):
        return *(torch.empty_like(given) for given in ctx.saved_tensors[:3]), None


def attention_with_gradient(
    _original, query: Tensor, key: Tensor, value: Tensor, heads: int, **_options
) -> Tensor:
    """Hold what a fused kernel holds whose gradient is asked for; computes nothing.

    A value for core's `transformer_options["optimized_attention_override"]`.
    """
    return FusedAttentionWithGradient.apply(query, key, value, heads)


def gradient_peak(model, differentiable, shapes: list, dtype: torch.dtype) -> int:
    """Return the bytes a forward of an OviModel and the gradient of its latents hold at their peak.

    differentiable: the package's context. shapes: of both latents, the video's first.
    """
    device = next(model.parameters()).device
    latents = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    text = torch.zeros(
        shapes[0][0], model.config.text_length, model.config.text_dim, dtype=dtype, device=device
    )
    options = {"optimized_attention_override": attention_with_gradient}
    with CountBytes() as count, differentiable(model):
        latents = [latent.requires_grad_() for latent in latents]
        time = torch.zeros(shapes[0][0], device=device)
        picture, _ = model(latents, time, text, text, transformer_options=options)
        torch.autograd.grad(picture.float().square().sum(), latents)
    return count.peak


def training_bytes(forward) -> tuple[int, int]:
    """Return the bytes that a forward holds for its backward, and the most at once in both.

    forward: returns a loss. Gradients that the backward leaves count; what was there before does
    not.
    """
    with CountBytes() as count:
        loss = forward()
        held = count.live
        loss.backward()
    return held, count.peak
