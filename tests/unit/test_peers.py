"""Other implementations as peers of the benchmarks: how a checkout is named, found and imported,
and what is made of weights.
"""

import argparse
import sys
from importlib import import_module

import clips
import find_comfyui
import forward
import peers
import pytest
import torch
from peers.checkout import Checkout, stand_in
from torch import nn

find_comfyui.import_extension()
TINY = clips.Clip(
    64,
    64,
    5,
    {"dim": 64, "ffn_dim": 96, "num_layers": 1, "text_dim": 32, "freq_dim": 16, "num_heads": 2},
)


@pytest.mark.parametrize("text", ["reference", "reference=", "nobody=here", "=here"])
def test_a_peer_is_a_known_name_and_a_path(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not NAME=PATH with a NAME of ref"):
        peers.parse_peer(text)


@pytest.mark.parametrize("name", peers.NAMES)
def test_a_folder_that_is_no_checkout_is_refused_with_the_repository(name, tmp_path):
    module = import_module(f"peers.{name}")
    address = f"https://github.com/{module.REPOSITORY}"
    with pytest.raises(argparse.ArgumentTypeError, match=f"{module.PROOF}: .* {address}"):
        peers.parse_peer(f"{name}={tmp_path}")
    (tmp_path / module.PROOF).parent.mkdir(parents=True)
    (tmp_path / module.PROOF).touch()
    assert peers.parse_peer(f"{name}={tmp_path}") == peers.Peer(name, tmp_path)


def test_the_reference_has_an_option_of_its_own(tmp_path):
    (tmp_path / "ovi/modules").mkdir(parents=True)
    (tmp_path / "ovi/modules/fusion.py").touch()
    parser = argparse.ArgumentParser()
    peers.add_arguments(parser)
    place = str(tmp_path)
    given = parser.parse_args(["--reference", place, "--peer", f"snicolast={place}"])
    assert [peer.name for peer in given.peer] == ["reference", "snicolast"]


def test_files_are_imported_as_changed_and_never_written(tmp_path):
    for name, text in {
        "__init__": "raise RuntimeError('not what a forward needs')",
        "parts/__init__": "raise RuntimeError('nor this')",
        "parts/number": "FOUND = 'bfloat16'",
        "parts/deep/user": "from ..number import FOUND\nfrom absent_thing import given",
    }.items():
        (tmp_path / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    try:
        for dtype in ("float32", "float16"):
            Checkout(
                "peer_test", tmp_path, lambda text, to=dtype: text.replace("bfloat16", to)
            ).install()
            sys.modules.update(stand_in("absent_thing", given=3))
            user = import_module("peer_test.parts.deep.user")
            assert (user.FOUND, user.given) == (dtype, 3)
        with pytest.raises(ModuleNotFoundError):
            import_module("peer_test.parts.nothing")
    finally:
        sys.meta_path.remove(Checkout.installed.pop("peer_test"))
        del sys.modules["absent_thing"]
    assert sorted(tmp_path.rglob("*")) == before


class Theirs(nn.Module):
    """Two weights of Ovi's under names of its own, and one it keeps in float64."""

    def __init__(self):
        super().__init__()
        self.video_model = nn.Module()
        self.video_model.renamed = nn.Linear(64, 48 * 4)
        self.video_model.blocks = nn.ModuleList([nn.Module()])
        self.video_model.blocks[0].modulation = nn.Parameter(torch.empty(1, 6, 64).double())


def test_a_peer_takes_our_weights_in_its_own_precision(monkeypatch, tmp_path):
    class Module:
        @staticmethod
        def build(*_arguments):
            with torch.device("meta"):
                return Theirs()

        @staticmethod
        def released_key(key):
            return key.replace("renamed", "head.head")

    monkeypatch.setattr(peers.Peer, "module", Module)
    with torch.no_grad():
        ours = forward.make_model(TINY.towers(), torch.float32, None, torch.device("cpu"))
    model = peers.Peer("reference", tmp_path).build_with_weights(TINY.towers(), ours)
    assert model.video_model.renamed.weight.data_ptr() == ours.head.head.weight.data_ptr()
    kept = model.video_model.blocks[0].modulation
    assert kept.dtype == torch.float64
    assert torch.equal(kept.float(), ours.blocks[0].modulation.modulation)
