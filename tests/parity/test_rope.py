"""Rotations at the real head size against the reference's complex float64 ones."""

from types import SimpleNamespace

import pytest
import torch
from comfyui_ovi.ovi_model.network import fused_ops, rope
from goldens import load, relative_error
from weights import seeded

CASES = {
    "video": ((1, 366, 1, 128), rope.video_freqs_cis(61, 2, 3, 128, "cpu")),
    "audio": ((1, 314, 1, 128), rope.audio_freqs_cis(314, 128, "cpu")),
}


@pytest.mark.parametrize("stream", CASES)
def test_rotations_equal_the_reference(stream):
    shape, freqs_cis = CASES[stream]
    x = seeded(f"input.rope.{stream}", shape)
    turned = fused_ops.apply_rope(x.flatten(2).clone(), freqs_cis, 1).view(shape)
    assert relative_error(turned, load("rope_d128")[0][f"{stream}_out"]) <= 1e-6


def test_sound_turns_with_time_channels_alone():
    x = seeded("input.rope.audio", (1, 314, 1, 128))
    turned = fused_ops.apply_rope(x.flatten(2).clone(), CASES["audio"][1], 1).view(x.shape)
    assert torch.equal(turned[..., 44:], x[..., 44:])


def test_a_window_of_sound_keeps_its_place_on_the_clock():
    whole = rope.audio_freqs_cis(40, 128, "cpu")
    assert torch.allclose(
        rope.audio_freqs_cis(30, 128, "cpu", start=10.0), whole[:, 10:], atol=1e-6
    )


@pytest.mark.parametrize(
    ("anchor", "offset"), [(None, 84 - 16 * 157 / 30), (15, 84 - 15 * 157 / 30)]
)
def test_the_sound_of_a_window_starts_where_its_first_picture_does(anchor, offset):
    sound = SimpleNamespace(index_list=list(range(84, 157)))
    window = SimpleNamespace(
        index_list=list(range(16, 31)), modality_windows={1: sound}, causal_anchor_index=anchor
    )
    assert rope.window_offset(window) == pytest.approx(offset)
    assert rope.window_offset(None) == 0
