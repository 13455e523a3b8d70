"""Which sound a context window takes, and which windows are refused."""

import functools
from types import SimpleNamespace

import pytest
import torch
from comfyui_ovi.ovi_model.latent.geometry import audio_steps
from comfyui_ovi.ovi_model.network.rope import window_offset
from comfyui_ovi.ovi_model.sample import windows


@pytest.mark.parametrize(("frames", "steps"), [(31, 157), (61, 314)])
@pytest.mark.parametrize("total", [62, 76, 91, 92, 120])
def test_a_window_has_the_sound_that_was_trained_with_its_frames(frames, steps, total):
    for first in range(total - frames + 1):
        window = list(range(first, first + frames))
        sound = windows.sound_of(window, total, audio_steps(total), is_anchored=False)
        assert len(sound) == steps
        assert abs(sound.start - first * 157 / 30) <= 1
        assert (sound.stop == audio_steps(total)) == (first == total - frames)


@pytest.mark.parametrize("length", [2, 5, 10, 31])
@pytest.mark.parametrize(("overlap", "is_anchored"), [(1, False), (0, True), (3, False), (3, True)])
def test_windows_leave_no_step_out(length, overlap, is_anchored):
    total = 91
    firsts = [*range(0, total - length, max(1, length - overlap)), total - length]
    sounds = [
        windows.sound_of(list(range(i, i + length)), total, audio_steps(total), is_anchored)
        for i in firsts
    ]
    assert {step for sound in sounds for step in sound} == set(range(audio_steps(total)))


def test_an_anchor_brings_its_sound():
    total = 61
    sound = windows.sound_of(list(range(31, 61)), total, audio_steps(total), is_anchored=True)
    assert sound == range(157, 314)
    window = SimpleNamespace(
        index_list=list(range(31, 61)),
        modality_windows={1: SimpleNamespace(index_list=list(sound))},
        causal_anchor_index=30,
    )
    assert window_offset(window) == pytest.approx(0)


def test_one_frame_has_a_step_of_its_clip():
    assert windows.sound_of([0], 30, 152, is_anchored=False) == range(1)
    assert windows.sound_of([29], 30, 152, is_anchored=False) == range(151, 152)


def test_the_first_window_has_no_frame_before_it():
    anchored, bare = (windows.sound_of(list(range(10)), 30, 152, its) for its in (True, False))
    assert anchored == bare == range(47)


@pytest.mark.parametrize("frames", [[28, 29, 0, 1], [0, 2, 4], [3, 2, 1]])
def test_sound_is_not_cut_where_frames_do_not_follow_one_another(frames):
    with pytest.raises(ValueError, match=r"turns around.*'standard_static'.*context_stride 1"):
        windows.sound_of(frames, 30, 152, is_anchored=True)


def handler(schedule="standard_static", overlap=1, is_anchored=False):
    return SimpleNamespace(
        context_schedule=SimpleNamespace(name=schedule),
        context_overlap=overlap,
        causal_window_fix=is_anchored,
    )


def test_windows_apart_need_an_anchor():
    windows.check_overlap(handler())
    windows.check_overlap(handler(overlap=0, is_anchored=True))
    windows.check_overlap(handler("batched", is_anchored=True))
    for apart in (handler(overlap=0), handler("batched", 8)):
        with pytest.raises(ValueError, match=r"0.17 s of sound.*context_overlap to 4 frames"):
            windows.check_overlap(apart)


def test_only_ours_is_changed():
    """A model of another family gets what core gave: its timesteps and its function."""
    seen = []

    def original(_self, calc_cond_batch, _model, _x, _conds, timestep, *args, **kwargs):
        seen.append((calc_cond_batch, timestep, args, kwargs))

    ours, calc = SimpleNamespace(), functools.partial(lambda *given: given)
    evaluate = windows.anchor_both(original, is_ours=lambda model: model is ours)
    timestep = torch.tensor([0.5, 0.5])
    evaluate(handler(), calc, "other", None, [], timestep, [1], options=2)
    assert seen[0] == (calc, timestep, ([1],), {"options": 2})

    evaluate(handler(is_anchored=True), calc, ours, None, [], timestep, [1], options=2)
    for_every_clip, first, *rest = seen[1]
    assert ours.windows_are_anchored
    assert first.tolist() == [0.5]
    assert rest == [([1],), {"options": 2}]
    assert for_every_clip(ours, [], torch.zeros(3, 1, 4), first, {})[3].tolist() == [0.5] * 3
