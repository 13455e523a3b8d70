"""What the miniature is shown as references, and what captions leave unsaid then."""

import pytest
import torch
from comfyui_ovi.miniature.training import judge, teach_references, world
from comfyui_ovi.miniature.training.reference_figures import WORDS, asked

RATE = world.SAMPLE_RATE
SPOKEN = {word for name in teach_references.UNSAID for word in WORDS[name]}


@pytest.mark.parametrize("form", [0, 1])
def test_a_caption_leaves_out_what_references_tell(form):
    """And that alone: scenes of one thing and count have one caption left."""
    left = {
        (scene.thing, scene.count, scene.caption(form, teach_references.UNSAID))
        for scene in world.every_scene()
    }
    assert len(left) == len(world.THINGS) * len(world.COUNTS)
    assert not any(SPOKEN & set(caption.split()) for *_, caption in left)


@pytest.mark.parametrize("swapped", ["", "colour", "pitch"])
def test_references_have_the_colour_and_the_pitch(swapped):
    for plain in asked(12):
        ask = plain.swapped(swapped) if swapped else plain
        assert (ask.scene == plain.scene) == (not swapped)
        voice, start = ask.voice()
        second = voice["waveform"][0, 0, round(start * RATE) :][:RATE]
        true = judge.judge(ask.film().frames, second, ask.scene)
        assert true.pitch == ask.scene.pitch
        for is_cut in (True, False):
            assert judge.find_colour(ask.picture(is_cut))[0] == ask.scene.colour


def test_what_is_not_swapped_stays_to_the_pixel():
    for ask in asked(12):
        swapped = ask.swapped("pitch")
        assert torch.equal(swapped.picture(), ask.picture())
        voice, start = ask.swapped("colour").voice()
        assert torch.equal(voice["waveform"], ask.voice()[0]["waveform"])
        assert start == ask.voice()[1]


@pytest.mark.parametrize("name", teach_references.UNSAID)
def test_a_scene_of_training_gets_a_reference_of_its_kind(name):
    """Each row of the shelf has its own number; held-out scenes lend none."""
    kinds, numbers = teach_references.kinds_of(name)
    for scene, number in zip(world.TRAINING_SCENES, numbers.tolist(), strict=True):
        assert kinds[number] == (scene.thing, getattr(scene, name))
    clips = teach_references.films_of(name, kinds[0], 30)
    assert {(clip.scene.thing, getattr(clip.scene, name)) for clip in clips} == {kinds[0]}
    assert not any(world.is_held_out(clip.scene) for clip in clips)


def test_a_share_of_the_references_is_zeros():
    """All else is a reference of the scene's row."""
    shelf = teach_references.Shelf(torch.tensor([[[1.0]] * 3, [[2.0]] * 3]), torch.tensor([1, 0]))
    scenes = torch.arange(2).repeat(200)
    drawn = shelf.draw(scenes, 0.25, torch.Generator().manual_seed(0))
    expected = shelf.latents[shelf.kinds[scenes], 0]
    is_zero = (drawn == 0).flatten()
    assert torch.equal(drawn[~is_zero], expected[~is_zero])
    assert is_zero.float().mean() == pytest.approx(0.25, abs=0.06)
