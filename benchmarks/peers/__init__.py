"""Other implementations of the forward, each run from a checkout of its repository with our
weights.

A peer is a module of this package with
- `REPOSITORY`, where it is published, and `PROOF`, a file by which its checkout is known;
- `build(checkout, video, audio, dtype)`: its model of our configs' sizes, on the meta device;
- `run(model, latents, time, text)`: a forward; latents as ours, time [B], text [B, T, D] without
  padding; returns pictures [48, F, H, W] and sounds [L, 20];
- `released_key(key)`, where its names of weights are not the published ones.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn

NAMES = ("reference", "snicolast", "wan2gp", "wanvideowrapper")


class Peer(NamedTuple):
    """A peer and where its checkout lies."""

    name: str
    checkout: Path

    @property
    def module(self) -> ModuleType:
        return import_module(f"peers.{self.name}")

    def build(self, towers: tuple, dtype: torch.dtype) -> nn.Module:
        """Return its model on the meta device; dtype: float32 or bfloat16."""
        model = self.module.build(self.checkout, *towers, dtype)
        return model.eval().requires_grad_(False)

    def build_with_weights(self, towers: tuple, ours: nn.Module) -> nn.Module:
        """Return its model on the weights of ours, which both then use.

        Raises KeyError when it has a weight that ours has not.
        """
        from comfyui_ovi.ovi_model.load.checkpoint import convert_key

        model = self.build(towers, next(ours.parameters()).dtype)
        released_key = getattr(self.module, "released_key", str)
        weights = ours.state_dict()
        model.load_state_dict(
            {
                key: weights[convert_key(released_key(key))].to(parameter.dtype)
                for key, parameter in model.state_dict().items()
            },
            assign=True,
        )
        if hasattr(model, "set_rope_params"):
            model.set_rope_params()  # those of the meta device hold no numbers
        return model

    def run(self, *args) -> tuple:
        return self.module.run(*args)


def parse_peer(text: str) -> Peer:
    """Read NAME=PATH, for argparse."""
    name, _, path = text.partition("=")
    if name not in NAMES or not path:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not NAME=PATH with a NAME of {', '.join(NAMES)}"
        )
    peer = Peer(name, Path(path))
    if not (peer.checkout / peer.module.PROOF).is_file():
        raise argparse.ArgumentTypeError(
            f"{path} holds no {peer.module.PROOF}: give the folder of a checkout of "
            f"https://github.com/{peer.module.REPOSITORY}"
        )
    return peer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a command line take peers, and the reference under a name of its own."""
    parser.add_argument(
        "--reference",
        dest="peer",
        action="append",
        metavar="PATH",
        type=lambda path: parse_peer(f"reference={path}"),
        help="a checkout of character-ai/Ovi, to measure it as well",
    )
    parser.add_argument(
        "--peer",
        action="append",
        metavar="NAME=PATH",
        type=parse_peer,
        help=f"the same of another implementation; NAME: {', '.join(NAMES)}",
    )
