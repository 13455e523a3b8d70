"""How the miniature is evaluated: clips from the nodes of a workflow, with the fusion of its towers
and without.
"""

import json

import pytest
import torch
from comfyui_ovi.miniature.training import evaluate, figures, generate, judge, settings, world

pytestmark = pytest.mark.graph
SCENE = world.HELD_OUT_SCENES[0]
QUICK = {"steps": 2, "skip_layer": 1}


@pytest.fixture(scope="module")
def parts(runtime):  # noqa: ARG001
    return generate.load(evaluate.REPOSITORY / "miniature")


def make(parts, first_frame=None, **guidance):
    with torch.inference_mode():
        latent = generate.empty(parts, first_frame)
        return generate.make_clip(
            parts, SCENE.caption(), 3, generate.Guidance(**QUICK | guidance), latent
        )


def test_without_fusion_the_sound_knows_nothing_of_the_picture(parts):
    images = [
        world.film(scene, evaluate.FIRST_SEED).frames[0] for scene in world.HELD_OUT_SCENES[:2]
    ]
    apart = generate.without_fusion(parts)

    (picture, sound), (other_picture, other_sound) = (make(apart, image) for image in images)
    assert picture.shape == (world.FRAMES, world.SIZE, world.SIZE, 3)
    assert not torch.equal(picture, other_picture)
    assert torch.equal(sound, other_sound)

    sounds = [make(parts, image)[1] for image in images]
    assert not torch.equal(*sounds)


def test_audio_cfg_changes_the_sound_alone_where_there_is_no_fusion(parts):
    apart = generate.without_fusion(parts)
    (picture, sound), (same_picture, other_sound) = (
        make(apart, audio_cfg=scale) for scale in (1.0, 3.0)
    )

    torch.testing.assert_close(picture, same_picture)
    assert (sound - other_sound).abs().max() > 1e-3


@pytest.mark.parametrize("stream", generate.STREAMS)
def test_a_stream_that_is_held_is_that_of_the_clip(parts, stream):
    clip = world.film(SCENE, evaluate.FIRST_SEED)
    with torch.inference_mode():
        expected = dict(zip(generate.STREAMS, generate.through_codecs(parts, clip), strict=True))
        held = generate.hold(parts, clip, stream, generate.empty(parts))
        made = generate.make_clip(parts, SCENE.caption(), 3, generate.Guidance(**QUICK), held)
    for name, actual in zip(generate.STREAMS, made, strict=True):
        assert torch.allclose(actual, expected[name], atol=1e-3) == (name == stream)


def test_both_codecs_give_a_clip_back_in_its_length(parts):
    with torch.inference_mode():
        frames, sound = generate.through_codecs(parts, world.film(SCENE, evaluate.FIRST_SEED))

    assert frames.shape == (world.FRAMES, world.SIZE, world.SIZE, 3)
    assert len(sound) == round(world.FRAMES / world.FRAME_RATE * world.SAMPLE_RATE)


def test_the_codecs_keep_every_pitch_and_how_loud_a_sound_is(parts):
    scenes = [
        world.Scene(thing, "red", 2, pitch) for thing in world.THINGS for pitch in world.PITCHES
    ]
    heard = []
    for seed, scene in enumerate(scenes):
        clip = world.film(scene, evaluate.FIRST_SEED + seed)
        with torch.inference_mode():
            frames, sound = generate.through_codecs(parts, clip)
        made, true = judge.judge(frames, sound, scene), judge.judge(clip.frames, clip.sound, scene)
        assert made.pitch == scene.pitch
        heard.append((made.loudness, true.loudness))
    assert figures.correlation(heard) > 0.5


def test_the_worlds_own_clips_are_judged_without_fault(tmp_path):
    found, judged = evaluate.evaluate(
        lambda clip, _caption, _seed: (clip.frames, clip.sound), 9, image=True
    )
    evaluate.write(tmp_path, {"clips": "9"}, found, judged)
    written = json.loads((tmp_path / evaluate.FIGURES).read_text())

    perfect = (
        "sync",
        "sync_seen",
        "colour",
        "count_seen",
        "count_heard",
        "count_both",
        "pitch",
        "carried_on",
    )
    assert [found[name] for name in perfect] == [1.0] * len(perfect)
    assert {scene.thing for _, _, _, verdict in judged for scene in [verdict.asked]} == set(
        world.THINGS
    )
    assert evaluate.read_figures(tmp_path)["sync"] == 1.0
    assert [len(clip["seen"]) for clip in written["clips"]] == [
        clip["asked"]["count"] for clip in written["clips"]
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [evaluate.FIGURES, evaluate.PICTURE]
    )


def test_no_seed_and_no_scene_was_trained_on():
    assert evaluate.FIRST_SEED >= settings.TRAINING_SEEDS
    with_strides = {
        evaluate.STRIDE * index % len(world.HELD_OUT_SCENES)
        for index in range(len(world.HELD_OUT_SCENES))
    }
    assert len(with_strides) == len(world.HELD_OUT_SCENES)
