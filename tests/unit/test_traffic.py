"""Bytes and launches as counted by hand; and the forward's traffic, which must not grow."""

import comfy.ops
import pytest
import torch
from comfyui_ovi.ovi_model.config import AudioTowerConfig, VideoTowerConfig
from comfyui_ovi.ovi_model.network.model import OviModel
from count_traffic import CountTraffic, forward_traffic
from torch import nn

# Elementwise bytes of one block of both towers at 960 x 960 and 5 s, in hidden states [L, D] of the
# video: what the forward needs without core's kernels. It may fall; if it rises, something is
# copied or read again that was not before.
STATES = 63
RELEASED = {"dim": 3072, "ffn_dim": 14336, "text_dim": 4096, "freq_dim": 256, "num_heads": 24}
SHAPES = [(1, 48, 31, 60, 60), (1, 20, 157)]


def on_meta(layers):
    sizes = {**RELEASED, "num_layers": layers}
    configs = (
        VideoTowerConfig(**sizes, in_dim=48, out_dim=48),
        AudioTowerConfig(**sizes, in_dim=20, out_dim=20),
    )
    model = OviModel(
        *configs, operations=comfy.ops.disable_weight_init, dtype=torch.bfloat16, device="meta"
    )
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def forwards():
    """Counts of forwards of one and of two blocks."""
    return [forward_traffic(on_meta(layers), SHAPES, torch.bfloat16) for layers in (1, 2)]


def counted(function, *tensors):
    with torch.no_grad(), CountTraffic(tensors[0].device) as count:
        function(*tensors)
    return count


def floats(*shape):
    return torch.zeros(shape, device="meta")


X, ROW = floats(4, 8), floats(1, 8)
ALL = X.nbytes
OUT = floats(4, 8)
CASES = {
    "new": (lambda: X + X, "arithmetic", 2 * ALL, ALL),
    "in-place": (lambda: X.mul_(2), "arithmetic", ALL, ALL),
    "row": (lambda: X * ROW, "arithmetic", ALL + ROW.nbytes, ALL),
    "repeated row": (lambda: X * ROW.expand(4, 8), "arithmetic", ALL + ROW.nbytes, ALL),
    "over another": (lambda: torch.mul(X, ROW, out=OUT), "arithmetic", ALL + ROW.nbytes, ALL),
    "copied over": (lambda: OUT.copy_(X), "copy", ALL, ALL),
    "zeros": (lambda: floats(4, 8), "copy", 0, ALL),
    "joined": (lambda: torch.cat([X, ROW]), "copy", ALL + ROW.nbytes, ALL + ROW.nbytes),
    "part": (lambda: X[:, :2] + 1, "arithmetic", ALL // 4, ALL // 4),
    "narrower": (lambda: X.bfloat16(), "copy", ALL, ALL // 2),
    "transposed copy": (lambda: X.t().contiguous(), "copy", ALL, ALL),
    "matrix": (lambda: X @ OUT.t(), "matmul", 2 * ALL, 4 * 4 * 4),
    "activation": (lambda: nn.functional.gelu(X), "activation", ALL, ALL),
    "RMSNorm": (
        lambda: nn.functional.rms_norm(X, (8,), ROW[0]),
        "normalisation",
        ALL + ROW.nbytes,
        ALL,
    ),
    "equality": (lambda: torch.equal(X, OUT), "comparison", 2 * ALL, 0),
    "other device": (lambda: X + torch.tensor(2.0), "arithmetic", ALL, ALL),
}


@pytest.mark.parametrize("case", CASES)
def test_one_operation_as_counted_by_hand(case):
    function, kind, read, written = CASES[case]
    count = counted(lambda _x: function(), X)
    assert (dict(count.read), dict(count.written)) == ({kind: read}, {kind: written})
    assert count.launches == {kind: 1}
    assert count.elementwise == (0 if kind == "matmul" else read + written)


@pytest.mark.parametrize(
    "view",
    [torch.t, lambda x: x.view(-1), lambda x: x[1:], lambda x: x.expand(3, 4, 8), torch.empty_like],
)
def test_a_view_or_a_bare_allocation_costs_nothing(view):
    assert not counted(view, X).launches


def test_what_another_device_does_is_not_counted():
    assert not counted(lambda _x: torch.ones(3) + 1, X).launches


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_one_operation_that_reads_three_and_writes_one(device):
    query, key = torch.zeros(1, 2, 6, 8, device=device), torch.zeros(1, 2, 3, 8, device=device)
    count = counted(nn.functional.scaled_dot_product_attention, query, key, key)
    assert count.moved == {"attention": 2 * query.nbytes + 2 * key.nbytes}
    assert (count.launches.total(), count.elementwise) == (1, 0)


def test_the_host_waits_for_a_number_and_for_a_comparison():
    one = torch.ones(1)
    assert counted(lambda x: x.item() and torch.equal(x, x), one).syncs == 2


def test_the_real_result_comes_back():
    x = torch.randn(3, 8)
    with CountTraffic("cpu"):
        normed, same = nn.functional.rms_norm(x, (8,), eps=1e-6), torch.equal(x, x.clone())
    torch.testing.assert_close(normed, x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())
    assert same


class PlainNorm(nn.Module):
    def forward(self, x):
        return x / x.abs().mean()


def test_the_parts_of_a_norm_count_as_one_kind():
    norm, count = PlainNorm(), CountTraffic("cpu")
    x = torch.ones(2, 4)
    with count.by_part(norm), count:
        norm(x)
        x.exp()
    assert count.launches == {"normalisation": 3, "arithmetic": 1}


def test_every_block_costs_the_same(forwards):
    three = forward_traffic(on_meta(3), SHAPES, torch.bfloat16)
    one, two = forwards
    assert three.elementwise - two.elementwise == two.elementwise - one.elementwise
    assert (
        three.launches.total() - two.launches.total() == two.launches.total() - one.launches.total()
    )


def test_elementwise_traffic_of_a_block_does_not_grow(forwards):
    one, two = forwards
    state = 27900 * 3072 * 2
    assert (two.elementwise - one.elementwise) / state <= STATES


def test_rotations_are_counted_apart_and_nothing_waits(forwards):
    assert forwards[1].moved["rotation"] > 0
    assert not forwards[1].syncs
