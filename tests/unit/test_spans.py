"""Seconds to latent frames and audio steps: half-open, rounded inward, by one rule for both."""

import random

import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model.latent import geometry, spans, time_mask
from comfyui_ovi.ovi_model.latent.hold import CLEAN

LENGTH = 31
STEPS = geometry.audio_steps(LENGTH)
CLIP = spans.seconds_of(LENGTH)


def test_latent_frames_and_frames_are_of_each_other():
    frames = [list(spans.frames_in(index)) for index in range(4)]
    assert frames == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert [spans.holding(frame) for frame in range(10)] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert spans.frames_of(LENGTH) == 121
    assert CLIP == 121 / 24


@pytest.mark.parametrize(
    ("start", "end", "picture", "sound"),
    [
        (0, CLIP, range(31), range(157)),
        (0, 1 / 24, range(1), range(1)),
        (1 / 24, 5 / 24, range(1, 2), range(2, 6)),
        (0.042, 0.208, range(1, 2), range(2, 6)),  # the same, as typed
        (1, 2, range(7, 12), range(32, 62)),
        (1, 1.04, range(7, 7), range(32, 32)),
        (5, CLIP, range(31, 31), range(157, 157)),
        (4.9, CLIP, range(31, 31), range(154, 157)),
        (4.87, CLIP, range(30, 31), range(153, 157)),
    ],
)
def test_what_lies_in_a_span(start, end, picture, sound):
    assert list(spans.picture_within(start, end, LENGTH)) == list(picture)
    assert list(spans.sound_within(start, end, LENGTH, STEPS)) == list(sound)


def test_all_that_lies_in_any_span_and_nothing_else():
    """Against times of latent frames and steps, told in another way: in samples."""
    draw = random.Random(3)
    pictures = [(max(0, 4 * k - 3) / 24, (4 * k + 1) / 24) for k in range(LENGTH)]
    sounds = [(512 * k / 16000, 512 * (k + 1) / 16000) for k in range(STEPS)]
    for _ in range(200):
        start, end = sorted(round(draw.uniform(0, CLIP), 3) for _ in range(2))
        slack = spans.TOLERANCE
        for parts, found in (
            (pictures, spans.picture_within(start, end, LENGTH)),
            (sounds, spans.sound_within(start, end, LENGTH, STEPS)),
        ):
            inside = [
                k for k, (a, b) in enumerate(parts) if start - slack <= a and b <= end + slack
            ]
            assert list(found)[: len(inside)] == inside
            # The last step of sound ends with the clip.
            assert set(found) - set(inside) <= ({STEPS - 1} if end > CLIP - slack else set())


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (2, 1, r"starts at 2 s and ends at 1 s: start must be before end"),
        (1, 1, r"starts at 1 s and ends at 1 s: start must be before end"),
        (0, 6, r"from 0 to 6 s is outside the clip, which lasts 5\.042 s"),
        (5.5, 0, r"from 5\.5 to 0 s is outside the clip"),
        (-1, 2, r"from -1 to 2 s is outside the clip"),
        (float("nan"), 2, "is outside the clip"),
    ],
)
def test_a_span_that_is_none_is_said(start, end, message):
    with pytest.raises(ValueError, match=message):
        spans.check_span(start, end, LENGTH)


def clip(masks=None):
    latent = {"samples": NestedTensor([torch.randn(2, 48, 7, 4, 4), torch.randn(2, 20, 31)])}
    return latent | ({} if masks is None else {"noise_mask": NestedTensor(masks)})


def opened(latent, *span, kind="picture and sound", ramp=0.0):
    """Masks of the first clip over latent frames and over steps."""
    masks = time_mask.open_span(latent, *span, kind, ramp)["noise_mask"].unbind()
    assert masks[0].shape == (2, 1, 7, 4, 4)
    assert masks[1].shape == (2, 1, 31)
    assert (masks[0] == masks[0][:1, :, :, :1, :1]).all()
    return masks[0][0, 0, :, 0, 0].tolist(), masks[1][0, 0].tolist()


def test_a_span_is_opened_and_the_rest_is_held():
    picture, sound = opened(clip(), 0.2, 0.71)
    assert picture == [0, 0, 1, 1, 1, 0, 0]
    assert sound == [float(7 <= step < 22) for step in range(31)]


@pytest.mark.parametrize(("kind", "whole"), [("picture", 1), ("sound", 0)])
def test_one_stream_alone(kind, whole):
    masks = opened(clip(), 0.2, 0.71, kind=kind)
    assert set(masks[whole]) == {1.0}
    assert set(masks[1 - whole]) == {0.0, 1.0}


def test_masks_multiply_and_marks_stay():
    video, audio = torch.ones(1, 1, 7, 4, 4), torch.full((1, 1, 31), 0.5)
    video[:, :, 3], video[:, :, 6], video[:, :, 2] = 0, CLEAN, 0.25
    picture, sound = opened(clip([video, audio]), 0.2, 0.71)
    assert picture == [0, 0, 0.25, 0, 1, 0, CLEAN]
    assert sound == [0.5 * (7 <= step < 22) for step in range(31)]


def test_a_mask_as_set_latent_noise_mask_leaves_it_is_of_the_picture():
    latent = clip() | {"noise_mask": torch.zeros(1, 1, 64, 64)}
    picture, sound = opened(latent, 0.2, 0.71)
    assert set(picture) == {0.0}
    assert sound == [float(7 <= step < 22) for step in range(31)]


def test_a_ramp_lies_inside_and_only_at_edges_that_are_not_the_clips():
    _, sound = opened(clip(), 0.32, 0.64, ramp=0.16)
    expected = [0.1, 0.3, 0.5, 0.7, 0.9, 0.9, 0.7, 0.5, 0.3, 0.1]
    assert sound[:10] == [0] * 10
    assert sound[20:] == [0] * 11
    assert sound[10:20] == pytest.approx(expected, abs=1e-6)
    _, sound = opened(clip(), 0.0, 0.64, ramp=0.16)
    assert sound[:15] == [1] * 15
    assert sound[15:20] == pytest.approx(expected[5:], abs=1e-6)
    _, sound = opened(clip(), 0.64, 0.0, ramp=0.16)
    assert sound[25:] == [1] * 6


def test_a_span_without_a_whole_latent_frame_is_said():
    with pytest.raises(ValueError, match=r"From 0\.3 to 0\.4 s .* no whole part of the picture"):
        time_mask.open_span(clip(), 0.3, 0.4, "picture and sound", 0.0)
    with pytest.raises(ValueError, match=r"From 0\.3 to 0\.31 s .* no whole part of the sound"):
        time_mask.open_span(clip(), 0.3, 0.31, "sound", 0.0)
