"""The floor of a forward: a list of what must be multiplied, from the sizes alone and not from our
forward.

In it are every matrix product, convolution and attention of both towers, each weight read once,
each input and output of a product moved once. A prompt of n tokens has n + 1 rows, for all padding
rows are one. Its embedding is not in it: that is made once a run, for all steps.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

# Tokens of a prompt where nothing else is said; the prompts of the templates have about as many.
PROMPT = 128


@dataclass(frozen=True)
class Linear:
    """A matrix product with its bias: rows of `inputs` numbers become rows of `outputs`."""

    name: str
    rows: int
    inputs: int
    outputs: int
    kind = "matmul"

    @property
    def flop(self) -> int:
        return 2 * self.rows * self.inputs * self.outputs

    @property
    def activations(self) -> list[tuple[int, ...]]:
        return [(self.rows, self.inputs)]

    @property
    def weights(self) -> list[tuple[int, ...]]:
        return [(self.outputs, self.inputs), (self.outputs,)]

    @property
    def result(self) -> tuple[int, ...]:
        return self.rows, self.outputs

    @staticmethod
    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.linear(x, weight, bias)


@dataclass(frozen=True)
class Convolution:
    """A convolution over time that keeps its length."""

    name: str
    batch: int
    steps: int
    inputs: int
    outputs: int
    width: int
    has_bias: bool
    kind = "convolution"

    @property
    def flop(self) -> int:
        return 2 * self.batch * self.steps * self.inputs * self.outputs * self.width

    @property
    def activations(self) -> list[tuple[int, ...]]:
        return [(self.batch, self.inputs, self.steps)]

    @property
    def weights(self) -> list[tuple[int, ...]]:
        kernel = (self.outputs, self.inputs, self.width)
        return [kernel, (self.outputs,)] if self.has_bias else [kernel]

    @property
    def result(self) -> tuple[int, ...]:
        return self.batch, self.outputs, self.steps

    @staticmethod
    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.conv1d(x, weight, bias, padding=weight.shape[2] // 2)


@dataclass(frozen=True)
class Attention:
    """Tokens read others: one call of a fused kernel."""

    name: str
    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    kind = "attention"

    @property
    def flop(self) -> int:
        return 4 * self.batch * self.heads * self.queries * self.keys * self.head_dim

    @property
    def activations(self) -> list[tuple[int, ...]]:
        width = self.heads * self.head_dim
        lengths = (self.queries, self.keys, self.keys)
        return [(self.batch, length, width) for length in lengths]

    @property
    def weights(self) -> list[tuple[int, ...]]:
        return []

    @property
    def result(self) -> tuple[int, ...]:
        return self.activations[0]

    def run(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        by_head = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        return nn.functional.scaled_dot_product_attention(*by_head)


Product = Linear | Convolution | Attention


@dataclass(frozen=True)
class Side:
    """One tower as the list sees it: its config and its tokens."""

    name: str
    config: object
    tokens: int

    @property
    def linear(self):
        """A product of this tower, width to width where nothing else is said."""
        width = self.config.dim

        def product(name: str, rows: int, inputs: int = width, outputs: int = width) -> Linear:
            return Linear(f"{self.name} {name}", rows, inputs, outputs)

        return product


def list_floor(towers: tuple, shapes: list, prompt: int = PROMPT) -> list[Product]:
    """Return what a forward must multiply.

    towers: configs of the video and the audio tower; shapes: of their latents, [B, 48, F, H, W] and
    [B, 20, L]; prompt: its tokens, padding not counted.
    """
    video, audio = towers
    (batch, _, *size), (_, _, steps) = shapes
    grid = [-(-length // side) for length, side in zip(size, video.patch_size, strict=True)]
    sides = Side("video", video, math.prod(grid)), Side("audio", audio, steps)
    rows = min(prompt + 1, video.text_length)
    products = [*embed_video(sides[0], batch), *embed_audio(sides[1], batch)]
    for side, other in (sides, sides[::-1]):
        products += around(side, batch)
        products += block(side, other, batch, rows) * side.config.num_layers
    return products


def embed_video(side: Side, batch: int) -> list[Product]:
    """Patches do not overlap, so that their convolution is a product of matrices."""
    config = side.config
    inputs = config.in_dim * math.prod(config.patch_size)
    outputs = config.out_dim * math.prod(config.patch_size)
    rows = batch * side.tokens
    return [
        side.linear("patch embedding", rows, inputs),
        side.linear("head", rows, outputs=outputs),
    ]


def embed_audio(side: Side, batch: int) -> list[Product]:
    """A convolution, then a gated MLP of three more."""
    config = side.config
    wide, narrow, width = config.patch_hidden, config.dim, config.patch_kernel
    channels = [(config.in_dim, narrow), (narrow, wide), (narrow, wide), (wide, narrow)]
    return [
        *(
            Convolution("audio patch embedding", batch, side.tokens, *pair, width, index == 0)
            for index, pair in enumerate(channels)
        ),
        side.linear("head", batch * side.tokens, outputs=config.out_dim),
    ]


def around(side: Side, batch: int) -> list[Product]:
    """The embedding of time, one row a clip."""
    config = side.config
    return [
        side.linear("time", batch, config.freq_dim),
        side.linear("time", batch),
        side.linear("time", batch, outputs=6 * config.dim),
    ]


def block(side: Side, other: Side, batch: int, text: int) -> list[Product]:
    """Self-attention, the reads of the prompt (`text` rows) and of the other tower, the FFN."""
    config, product = side.config, side.linear
    rows, theirs = batch * side.tokens, batch * other.tokens

    def attention(name: str, keys: int) -> Attention:
        name = f"{side.name} {name}"
        return Attention(name, batch, config.num_heads, side.tokens, keys, config.head_dim)

    return [
        *[product("query, key, value", rows)] * 3,
        attention("self-attention", side.tokens),
        product("output", rows),
        product("query of reads", rows),
        *[product("key, value of prompt", batch * text)] * 2,
        attention("read of prompt", text),
        *[product("key, value of other tower", theirs)] * 2,
        attention("read of other tower", other.tokens),
        product("output of reads", rows),
        product("FFN", rows, outputs=config.ffn_dim),
        product("FFN", rows, inputs=config.ffn_dim),
    ]


def count_numbers(product: Product) -> tuple[int, int]:
    """Numbers of activations that a product reads and writes, and numbers of its weights."""
    moved = sum(map(math.prod, [*product.activations, product.result]))
    return moved, sum(map(math.prod, product.weights))


def count_bytes(products: Iterable[Product], itemsize: int, of_weights: int | None = None) -> int:
    """Bytes moved by a list; itemsize: bytes of an activation, and of a weight if not said."""
    counts = [count_numbers(product) for product in products]
    moved, weights = (sum(column) for column in zip(*counts, strict=True))
    return moved * itemsize + weights * (of_weights or itemsize)


def by_kind(products: Iterable[Product], itemsize: int) -> tuple[Counter, Counter]:
    """Bytes and launches of a list, by kind of operation."""
    moved, launches = Counter(), Counter()
    for product in products:
        moved[product.kind] += count_bytes([product], itemsize)
        launches[product.kind] += 1
    return moved, launches


class Floor:
    """A list as calls that can be run.

    Products take the weights given, each shape's in turn, where they have that precision; else one
    buffer stands for all weights of a shape, as one does for all activations of a shape and place.
    """

    def __init__(
        self,
        products: list[Product],
        dtype: torch.dtype,
        device: torch.device,
        weights: Iterable[Tensor] = (),
    ):
        self.calls = []
        self._make = partial(torch.randn, dtype=dtype, device=device)
        self._buffers: dict[tuple, Tensor] = {}
        self._weights: dict[tuple, list[Tensor]] = defaultdict(list)
        for weight in weights:
            if weight.dtype == dtype:
                # The kernel of a patch embedding is a matrix here.
                weight = weight.detach().flatten(1) if weight.ndim == 5 else weight.detach()
                self._weights[tuple(weight.shape)].append(weight)
        for product in products:
            inputs = [self._buffer(shape, place) for place, shape in enumerate(product.activations)]
            self.calls.append((product.run, inputs + [self._weight(s) for s in product.weights]))

    def _buffer(self, shape: tuple[int, ...], place: int | str) -> Tensor:
        if (shape, place) not in self._buffers:
            self._buffers[shape, place] = self._make(shape)
        return self._buffers[shape, place]

    def _weight(self, shape: tuple[int, ...]) -> Tensor:
        of_this_shape = self._weights.get(shape)
        if not of_this_shape:
            return self._buffer(shape, "weight")
        of_this_shape.append(of_this_shape.pop(0))
        return of_this_shape[-1]

    def __call__(self) -> None:
        """Run every call; each result is thrown away before the next."""
        for function, tensors in self.calls:
            function(*tensors)
