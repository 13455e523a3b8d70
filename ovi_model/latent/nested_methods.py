"""What core's latent nodes ask of a nested tensor, and it lacks: clips of a batch are repeated,
picked and joined in every stream alike; whatever else is asked ends in a sentence.

Functions of this file become methods of core's `NestedTensor`, for streams of any model: the batch
is the first dimension of all of them, and no other is the same in two.
"""

from __future__ import annotations

import functools

import torch
from comfy.nested_tensor import NestedTensor, cat_nested

from .geometry import is_pair

ADVICE = (
    " This node works on one tensor, and this latent holds two, picture and sound: take it apart "
    "with 'Ovi Separate Latent', use the node on one of them, and put both together with 'Ovi "
    "Concat Latent'. 'Ovi Save Latent' keeps both in a file."
)

# Core's nodes that turn, mirror or cut latents count dimensions as an image has them.
IMAGE_ADVICE = (
    " This node was made for latents of images; of a video it turns or cuts frames. Use nodes for "
    "images on the frames of 'Ovi Decode'."
)
FOR_IMAGES = (torch.flip, torch.rot90)


def clone(self: NestedTensor) -> NestedTensor:
    """Copy every stream."""
    return NestedTensor([stream.clone() for stream in self.unbind()])


def repeat(self: NestedTensor, *sizes: int) -> NestedTensor:
    """Repeat the clips, as sizes of the first stream ask; raise ValueError if they ask for more."""
    times, *others = sizes if isinstance(sizes[0], int) else sizes[0]
    if any(size != 1 for size in others):
        raise ValueError("Streams repeat along the batch alone." + _advice(self))
    streams = self.unbind()
    return NestedTensor([stream.repeat(times, *[1] * (stream.ndim - 1)) for stream in streams])


def narrow(self: NestedTensor, dim: int, start: int, length: int) -> NestedTensor:
    """Return some of the clips; raise ValueError along any other dimension than the batch."""
    if dim != 0:
        raise ValueError("Streams are cut along the batch alone." + _advice(self))
    return NestedTensor([stream.narrow(0, start, length) for stream in self.unbind()])


def call_torch(_cls, function, _types, args=(), kwargs=None):
    """Join the clips of several latents; raise TypeError for any other function of PyTorch's."""
    if function is torch.cat:
        return _join(*args, **(kwargs or {}))
    nested = next((value for value in args if isinstance(value, NestedTensor)), None)
    name = getattr(function, "__name__", function)
    advice = IMAGE_ADVICE if function in FOR_IMAGES else ADVICE
    raise TypeError(f"{name}() takes a Tensor, not a NestedTensor." + _advice(nested, advice))


def _join(tensors, dim: int = 0) -> NestedTensor:
    """Raise ValueError unless all are nested, alike but for their number of clips, and joined along
    the batch.
    """
    first = next(value for value in tensors if isinstance(value, NestedTensor))
    if dim != 0:
        raise ValueError("Streams are joined along the batch alone." + _advice(first))
    if not all(isinstance(value, NestedTensor) for value in tensors):
        raise TypeError("A NestedTensor and a Tensor cannot be joined." + _advice(first))
    shapes = [[list(stream.shape[1:]) for stream in value.unbind()] for value in tensors]
    if any(shape != shapes[0] for shape in shapes):
        found = ", ".join(map(str, shapes))
        raise ValueError(f"Latents of different size or length cannot form a batch: {found}.")
    return cat_nested(tensors, dim=0)


def refuse_assignment(self: NestedTensor, _key, _value) -> None:
    """Raise TypeError, as without this."""
    raise TypeError("'NestedTensor' object does not support item assignment." + _advice(self))


def refuse_attribute(self: NestedTensor, name: str):
    """Raise AttributeError, as without this; who asks whether there is one goes on."""
    advice = "" if name.startswith("__") else _advice(self)
    raise AttributeError(f"'NestedTensor' object has no attribute '{name}'.{advice}")


def explain_index(original):
    """Say why a part that only one stream has cannot be cut out of all."""

    @functools.wraps(original)
    def getitem(self, *args, **kwargs):
        try:
            return original(self, *args, **kwargs)
        except IndexError as error:
            raise IndexError(f"{error}.{_advice(self, IMAGE_ADVICE)}") from error

    return getitem


def _advice(nested: NestedTensor | None, advice: str = ADVICE) -> str:
    """Return what to do with a pair of Ovi's; nothing for streams of other models and for masks."""
    # Not nested.tensors: an object that is being copied has none yet.
    streams = vars(nested).get("tensors", []) if nested is not None else []
    return advice if is_pair([stream.shape for stream in streams]) else ""


METHODS = {
    "clone": clone,
    "repeat": repeat,
    "narrow": narrow,
    "__torch_function__": classmethod(call_torch),
    "__setitem__": refuse_assignment,
    "__getattr__": refuse_attribute,
}
