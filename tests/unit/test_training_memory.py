"""What a training holds for its backward pass, counted: with checkpoints, the hidden state before
each pair of blocks, and nothing of what is inside; as of core's Wan.
"""

import find_comfyui
import pytest
import training_memory
from clips import Clip

find_comfyui.import_extension()
SIZES = {"dim": 64, "ffn_dim": 96, "num_layers": 2, "text_dim": 32, "freq_dim": 16, "num_heads": 2}
CLIP = Clip(64, 64, 5, SIZES)
DEPTH = 2  # of core's newer trainer: blocks
BYTES = 2  # of a number in bf16


def ours(layers):
    return training_memory.count_ours(training_memory.make_ovi(CLIP, layers), recompute=True)


def ours_by_core(layers):
    return training_memory.count_core(training_memory.make_ovi(CLIP, layers), DEPTH)


def wan_by_core(layers):
    return training_memory.count_core(training_memory.make_wan(CLIP, layers), DEPTH)


def state(with_sound):
    """Bytes of the hidden states of a clip."""
    (_, _, frames, height, width), (_, _, steps) = CLIP.shapes()
    tokens = frames * height * width // 4 + with_sound * steps
    return tokens * SIZES["dim"] * BYTES


@pytest.mark.parametrize("count", [ours, ours_by_core, wan_by_core])
def test_a_pair_of_blocks_holds_its_state_alone(count):
    (held, _), (more_held, _) = count(3), count(4)
    assert more_held - held == state(with_sound=count is not wan_by_core)


@pytest.mark.parametrize("make", [training_memory.make_ovi, training_memory.make_wan])
def test_without_them_all_is_held(make):
    held = [training_memory.count_core(make(CLIP, layers), None)[0] for layers in (3, 4)]
    assert held[1] - held[0] > 10 * state(with_sound=True)


def test_full_depth_is_reckoned_as_it_is_counted(monkeypatch):
    monkeypatch.setattr(training_memory, "LAYERS", 6)
    for count in (ours, lambda layers: training_memory.count_core(
        training_memory.make_ovi(CLIP, layers), None
    )):  # fmt: skip
        assert training_memory.reckon(count) == count(6)
