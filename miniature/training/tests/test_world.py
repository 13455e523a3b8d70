"""The miniature's world: what it says of a clip is true of it, and what is held out can be known
from the rest.
"""

import itertools
from dataclasses import astuple

import pytest
import torch
from comfyui_ovi.miniature.training import world

SCENES = world.every_scene()
WALL = torch.tensor(world.WALL)


@pytest.fixture(scope="module")
def clips():
    """One clip of every scene."""
    return [world.film(scene, seed) for seed, scene in enumerate(SCENES)]


def sample_of(frame):
    return round(frame * world.SAMPLE_RATE / world.FRAME_RATE)


@pytest.mark.parametrize("scene", SCENES[::17], ids=lambda scene: scene.caption())
def test_a_seed_makes_one_clip(scene):
    clip, same, other = world.film(scene, 5), world.film(scene, 5), world.film(scene, 6)

    assert torch.equal(clip.frames, same.frames)
    assert torch.equal(clip.sound, same.sound)
    assert (clip.events, clip.place) == (same.events, same.place)
    assert not torch.equal(clip.frames, other.frames)
    assert not torch.equal(clip.sound, other.sound)


@pytest.mark.parametrize("form", [0, 1])
def test_a_caption_says_all_of_its_scene(form):
    captions = [scene.caption(form) for scene in SCENES]

    assert len(set(captions)) == len(SCENES)
    for scene, caption in zip(SCENES, captions, strict=True):
        assert f" {scene.colour} {scene.thing}" in caption
        assert f" {scene.pitch} " in caption.partition("Audio: ")[2]
        if scene.thing == "face":
            assert caption.partition("<S>")[2].partition("<E>")[0].split() == ["ba"] * scene.count
        else:
            assert world.TIMES[scene.count] in caption
            assert world.NUMBERS[scene.count] in caption


def test_events_are_as_many_as_the_scene_says_and_apart(clips):
    for clip in clips:
        assert len(clip.events) == clip.scene.count
        assert world.FIRST_EVENT[0] <= clip.events[0] <= world.FIRST_EVENT[1]
        gaps = [later - earlier for earlier, later in itertools.pairwise(clip.events)]
        assert all(world.GAP[0] <= gap <= world.GAP[1] for gap in gaps)
        assert clip.events[-1] < world.FRAMES


def test_values_are_in_range(clips):
    for clip in clips:
        assert clip.frames.shape == (world.FRAMES, world.SIZE, world.SIZE, 3)
        assert 0 <= clip.frames.min() <= clip.frames.max() <= 1
        assert clip.sound.shape == (world.SAMPLES,)
        assert 0.15 < clip.sound.abs().max() <= 1


def test_sound_begins_at_the_sample_of_its_event(clips):
    for clip in clips:
        for event in clip.events:
            start = sample_of(event)
            assert not clip.sound[start - 160 : start].any()
            assert clip.sound[start : start + 160].square().mean() > 1e-3
        assert not clip.sound[: sample_of(clip.events[0])].any()


def test_every_event_is_seen_at_its_frame(clips):
    for clip in clips:
        changes = (clip.frames[1:] - clip.frames[:-1]).abs().amax((1, 2, 3))
        assert all(changes[event - 1] > 0.2 for event in clip.events)
        if clip.scene.thing != "ball":
            lasts = {"lamp": world.LIT, "face": world.OPEN}[clip.scene.thing]
            expected = {
                frame
                for event in clip.events
                for frame in (event, event + lasts)
                if frame < world.FRAMES
            }
            assert {index + 1 for index in changes.nonzero().flatten().tolist()} == expected


def test_a_ball_is_on_the_ground_at_its_events_and_after_the_last(clips):
    for clip in clips:
        if clip.scene.thing == "ball":
            lowest = (clip.frames[:, int(world.GROUND_Y) - 1] - WALL).abs().amax((1, 2)) > 0.1
            rest = range(clip.events[-1], world.FRAMES)
            assert set(lowest.nonzero().flatten().tolist()) == {*clip.events, *rest}


def test_held_out_scenes_are_new_but_no_pair_of_their_words_is():
    training, held_out = set(world.TRAINING_SCENES), set(world.HELD_OUT_SCENES)

    assert not training & held_out
    assert training | held_out == set(SCENES)
    assert len(held_out) == len(SCENES) / 4

    def pairs(scene):
        return set(itertools.combinations(enumerate(astuple(scene)), 2))

    known = set().union(*map(pairs, training))
    assert all(pairs(scene) <= known for scene in held_out)
