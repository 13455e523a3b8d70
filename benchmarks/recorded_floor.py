"""The recorded floor of a forward: the matrix products, convolutions and attention that it calls,
recorded once and run again. What it multiplies in vain is in it; floor.py lists what it must.

Each call comes with the model's own weights; what the model computed is replaced by random numbers
of the same shape, strides and precision, one buffer for all arguments that agree in these and in
their place among the others.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

MULTIPLYING = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "cudnn_convolution",
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "matmul",
)


class RecordedFloor:
    """What a model multiplies, as calls that can be run again."""

    def __init__(self, weights: nn.Module):
        self.calls: list[tuple[Callable, tuple, dict]] = []
        self.buffers: dict[tuple, Tensor] = {}
        self.weights = {parameter.untyped_storage()._cdata for parameter in weights.parameters()}

    def add(self, function: Callable, args: tuple, kwargs: dict) -> None:
        """Keep a call whose tensors are weights or buffers."""
        leaves, structure = tree_flatten((args, kwargs))
        leaves = [
            self._stand_in(leaf, place) if isinstance(leaf, Tensor) else leaf
            for place, leaf in enumerate(leaves)
        ]
        self.calls.append((function, *tree_unflatten(leaves, structure)))

    def _stand_in(self, tensor: Tensor, place: int) -> Tensor:
        if tensor.untyped_storage()._cdata in self.weights:
            return tensor.detach()
        key = tensor.shape, tensor.stride(), tensor.dtype, place
        if key not in self.buffers:
            buffer = torch.empty_strided(*key[:2], dtype=tensor.dtype, device=tensor.device)
            # Eight bits have no random numbers of their own.
            self.buffers[key] = buffer.copy_(torch.randn(tensor.shape, device=tensor.device))
        return self.buffers[key]

    def __call__(self) -> None:
        """Run every call; each result is thrown away before the next."""
        for function, args, kwargs in self.calls:
            function(*args, **kwargs)


class _Recorder(TorchFunctionMode):
    """Hands what multiplies to a floor, and runs it."""

    def __init__(self, floor: RecordedFloor):
        super().__init__()
        self.floor = floor

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in MULTIPLYING:
            self.floor.add(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def attend(self, _original: Callable, *args, **kwargs) -> Tensor:
        """Record PyTorch's attention; a value for core's
        `transformer_options["optimized_attention_override"]`.
        """
        from comfy.ldm.modules.attention import attention_pytorch

        options = {name: value for name, value in kwargs.items() if name != "transformer_options"}
        self.floor.add(attention_pytorch, args, options)
        return attention_pytorch(*args, **kwargs)


def record_floor(model: nn.Module, forward: Callable[[dict], object]) -> RecordedFloor:
    """Return the floor of a forward, run once; it must hand the transformer_options it is given to
    the model.
    """
    floor = RecordedFloor(model)
    recorder = _Recorder(floor)
    with recorder:
        forward({"optimized_attention_override": recorder.attend})
    return floor
