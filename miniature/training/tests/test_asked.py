"""What a workflow asks the miniature for, and the judgement of the clip it saved."""

import json
from pathlib import Path

import pytest
import torch
from comfyui_ovi.miniature.training import asked, world
from media import make_audio, save

WORKFLOW = (
    Path(__file__).resolve().parents[3] / "workflows" / "api" / "Ovi_13_All_nodes_miniature.json"
)
SCENE = world.Scene("lamp", "blue", 2, "high")


@pytest.fixture
def prompt():
    return json.loads(WORKFLOW.read_text(encoding="utf-8"))


def test_the_shared_workflow_asks_for_a_scene_of_the_world(prompt):
    assert asked.uses_miniature(prompt)
    assert asked.asked_scene(prompt) in world.every_scene()


@pytest.mark.parametrize("scene", world.every_scene()[::5], ids=lambda scene: scene.caption())
def test_a_scene_is_put_into_a_workflow_and_found_there(prompt, scene):
    other = asked.with_request(prompt, scene, 12)
    assert asked.asked_scene(other) == scene
    assert [
        node["inputs"]["noise_seed"]
        for node in other.values()
        if node["class_type"] == "RandomNoise"
    ] == [12]
    assert asked.with_request(prompt, None, None) == prompt


def test_other_words_ask_for_no_scene(prompt):
    for node in prompt.values():
        if node["class_type"] == "OviTextEncode":
            node["inputs"]["prompt"] = "A dog barks. Audio: a dog."
    assert asked.asked_scene(prompt) is None
    assert asked.asked_scene({}) is None


def test_a_scene_is_read_from_words():
    assert asked.parse_scene("lamp, blue,2,high") == SCENE
    for text in ("lamp,blue,2", "lamp,pink,2,high", "lamp,blue,4,high", ""):
        with pytest.raises(
            ValueError, match=r"no scene of the miniature's world.*ball\|lamp\|face, red\|green"
        ):
            asked.parse_scene(text)


def saved(folder, clip, sound=None, form="mp4"):
    audio = make_audio(1) | {"waveform": (clip.sound if sound is None else sound)[None, None]}
    return save(folder, form, clip.frames, audio=audio)


@pytest.mark.parametrize("thing", world.THINGS)
def test_a_saved_clip_of_the_world_is_right(tmp_path, thing):
    """Neither the picture's code nor the sound's moves an event."""
    scene = world.Scene(thing, "green", 2, "low")
    verdict = asked.judge_file(saved(tmp_path, world.film(scene, seed=3)), scene)
    assert asked.faults(verdict) == []
    assert asked.describe(verdict)[0] == f"asked: {scene.caption()}"
    assert "2 of 2 sounds within a frame" in asked.describe(verdict)[3]


def test_every_fault_is_told(tmp_path):
    path = saved(tmp_path, world.film(SCENE, seed=3))
    other = world.Scene("lamp", "red", 3, "low")
    text = "; ".join(asked.faults(asked.judge_file(path, other)))
    for fault in (
        "colour is blue, expected red",
        "seen is 2, expected 3",
        "sounds is 2, expected 3",
        "high, expected low",
    ):
        assert fault in text


def test_sound_too_late_or_absent_is_told(tmp_path):
    clip = world.film(SCENE, seed=3)
    late = asked.judge_file(saved(tmp_path, clip, clip.sound.roll(world.SAMPLE_RATE // 10)), SCENE)
    assert asked.faults(late) == ["number of sounds in sync is 0, expected 2"]
    silent = asked.judge_file(saved(tmp_path, clip, torch.zeros(world.SAMPLES), "mov"), SCENE)
    assert asked.faults(silent)[0] == "number of sounds is 0, expected 2"
    assert "no pitch" in asked.describe(silent)[2]


def test_sound_of_another_rate_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sound of 48000 Hz, and the judge hears 16000 Hz"):
        asked.judge_file(saved(tmp_path, world.film(SCENE, seed=3), form="webm"), SCENE)
