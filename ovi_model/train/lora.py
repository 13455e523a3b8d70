"""A LoRA in training: two thin matrices and a bias beside each linear layer of the parts chosen.

They are added to what a layer makes, not to its weight, so that the model may be kept in any
layout: fp8, GGUF, in memory of the processor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..load.lora import GROUPS, group_of
from ..load.state_dict import DIFFUSION_MODEL, StateDict

# What is trained, by the choice of a node: the groups of 'Ovi LoRA Loader'.
PARTS = {"all": GROUPS, **{group: (group,) for group in GROUPS}}


class Addition(nn.Module):
    """What a LoRA adds to a linear layer; its scale is 1, as alpha is the rank."""

    def __init__(self, layer: nn.Module, rank: int, generator: torch.Generator):
        super().__init__()
        wide, tall = layer.in_features, layer.out_features
        down = torch.empty(rank, wide)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        self.lora_down = nn.Parameter(down)
        self.lora_up = nn.Parameter(torch.zeros(tall, rank))
        has_bias = getattr(layer, "bias", None) is not None
        self.diff_b = nn.Parameter(torch.zeros(tall)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, width of the layer], in the precision of x."""
        down, up = self.lora_down.to(x.dtype), self.lora_up.to(x.dtype)
        bias = None if self.diff_b is None else self.diff_b.to(x.dtype)
        return linear(linear(x, down), up, bias)


class Lora(nn.Module):
    """All additions to a network."""

    def __init__(self, network: nn.Module, parts: str, rank: int, seed: int):
        """parts: one of PARTS; rank: of the matrices, no more than a layer is wide."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = dict(_layers_of(network, PARTS[parts]))
        self.additions = nn.ModuleList(
            Addition(layer, min(rank, layer.in_features, layer.out_features), generator)
            for layer in self.layers.values()
        )

    def by_layer(self) -> dict[nn.Module, Addition]:
        """Return what is added to each layer."""
        return dict(zip(self.layers.values(), self.additions, strict=True))

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every weight with its name in the file, as core's trainer names it."""
        for name, addition in zip(self.layers, self.additions, strict=True):
            for part, weight in addition.named_parameters():
                ending = part if part == "diff_b" else f"{part}.weight"
                yield f"{DIFFUSION_MODEL}{name}.{ending}", weight

    def export(self) -> StateDict:
        """Return the LoRA as its file holds it, in float32 on the processor."""
        made = {name: weight.detach().cpu().clone() for name, weight in self.named_weights()}
        ranks = {name: float(len(x)) for name, x in made.items() if name.endswith("down.weight")}
        alphas = {
            name.replace("lora_down.weight", "alpha"): torch.tensor(rank)
            for name, rank in ranks.items()
        }
        return made | alphas


def _layers_of(network: nn.Module, groups: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the linear layers of some groups by name; of other extensions' too, by what they
    have.
    """
    for name, layer in network.named_modules():
        is_linear = hasattr(layer, "in_features") and hasattr(layer, "out_features")
        if is_linear and group_of(f"{DIFFUSION_MODEL}{name}.") in groups:
            yield name, layer
