"""The judges of the miniature: right about every scene of the world, also where saving blurs it;
and not deceived.
"""

import math
from dataclasses import replace

import media
import pytest
import torch
from comfyui_ovi.miniature.training import figures, judge, plots, world
from comfyui_ovi.miniature.training.judge import Verdict
from torch.nn.functional import conv2d, pad

SCENE = world.Scene("lamp", "red", 3, "middle")
CRF_23 = 68  # quality of a saved mp4


def judged(clip: world.Clip, asked: world.Scene | None = None) -> Verdict:
    return judge.judge(clip.frames, clip.sound, asked or clip.scene)


def is_right(verdict: Verdict, clip: world.Clip) -> bool:
    scene = clip.scene
    places = (verdict.places[0] - torch.tensor(clip.place)).abs().max() < 2
    said = (verdict.colour, verdict.seen, len(verdict.heard), verdict.pitch)
    right = said == (scene.colour, clip.events, scene.count, scene.pitch)
    return bool(right and places and max(verdict.errors) <= judge.IN_SYNC)


def one_of_each(seed: int) -> list[world.Clip]:
    return [world.film(scene, seed + index) for index, scene in enumerate(world.every_scene())]


def blurred(frames: torch.Tensor, sigma: float = 1.0) -> torch.Tensor:
    line = torch.exp(-(torch.arange(-3, 4) ** 2) / (2 * sigma**2))
    kernel = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 7, 7)
    return conv2d(pad(frames.movedim(-1, 1), (3, 3, 3, 3), "replicate"), kernel, groups=3).movedim(
        1, -1
    )


def worn(clip: world.Clip, folder) -> world.Clip:
    """A clip blurred, with noise in picture and sound, as h264 and AAC, its sound in 8 bits."""
    generator = torch.Generator().manual_seed(0)
    frames = blurred(clip.frames) + 0.02 * torch.randn(clip.frames.shape, generator=generator)
    sound = clip.sound + 0.01 * torch.randn(clip.sound.shape, generator=generator)
    audio = {"waveform": sound[None, None], "sample_rate": world.SAMPLE_RATE}
    file = media.save(folder, "mp4", frames.clamp(0, 1), audio=audio, quality=CRF_23)
    saved = media.decode(file)
    file.unlink()
    heard = torch.from_numpy(saved.sound).mean(0)
    return replace(
        clip, frames=torch.from_numpy(saved.frames).float(), sound=(heard * 127).round() / 127
    )


@pytest.fixture(scope="module")
def clip() -> world.Clip:
    return world.film(SCENE, 1)


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    return [judged(clip) for clip in one_of_each(40)]


def test_every_scene_of_the_world_is_judged_right():
    wrong = [clip.scene for clip in one_of_each(0) if not is_right(judged(clip), clip)]

    assert not wrong


def test_what_saving_does_to_a_clip_hardly_matters(tmp_path):
    clips = one_of_each(200)[::2]
    wrong = [clip.scene for clip in clips if not is_right(judged(worn(clip, tmp_path)), clip)]

    assert len(wrong) <= 0.03 * len(clips), wrong


@pytest.mark.parametrize("thing", world.THINGS)
@pytest.mark.parametrize(("colour", "other"), [("red", "yellow"), ("green", "blue")])
def test_another_colour_is_seen(thing, colour, other):
    scene = world.Scene(thing, colour, 2, "low")

    assert judged(world.film(replace(scene, colour=other), 3), scene).colour == other


@pytest.mark.parametrize("thing", world.THINGS)
def test_other_counts_are_seen_and_heard(thing):
    scene = world.Scene(thing, "blue", 3, "high")
    verdict = judged(world.film(replace(scene, count=2), 3), scene)
    found = figures.summarise([verdict])

    assert (len(verdict.seen), len(verdict.heard)) == (2, 2)
    assert (found["count_seen"], found["count_heard"], found["count_both"]) == (0, 0, 0)


def test_an_event_without_sound_is_told_from_one_with_it(clip):
    sound = clip.sound.clone()
    sound[round(clip.events[-1] * world.SAMPLE_RATE / world.FRAME_RATE) :] = 0
    found = figures.summarise([judged(replace(clip, sound=sound))])

    assert (found["count_seen"], found["count_heard"], found["count_both"]) == (1, 0, 0)
    assert (found["sync"], found["sync_seen"]) == (1, pytest.approx(2 / 3))


@pytest.mark.parametrize("thing", world.THINGS)
def test_another_pitch_is_heard(thing):
    scene = world.Scene(thing, "green", 2, "low")

    for pitch in ("middle", "high"):
        assert judged(world.film(replace(scene, pitch=pitch), 3), scene).pitch == pitch


def test_late_sound_is_not_in_sync(clip):
    late = pad(clip.sound, (1600, 0))[: world.SAMPLES]
    verdict = judged(replace(clip, sound=late))

    assert verdict.errors == pytest.approx([0.1] * 3, abs=0.01)
    assert figures.summarise([verdict])["sync"] == 0


def test_a_frame_late_is_in_sync_and_two_are_not():
    errors = judge.sync_errors((11 / 24, 18 / 24), (10, 20))

    assert [error <= judge.IN_SYNC for error in errors] == [True, False]


def test_sound_of_other_clips_is_in_sync_by_chance_alone(verdicts):
    found = figures.summarise(verdicts)
    # Neighbours differ in pitch alone, so that their counts are equal.
    shuffled = [
        replace(a, heard=b.heard)
        for a, b in zip(verdicts, verdicts[1:] + verdicts[:1], strict=True)
    ]

    assert found["sync"] == 1
    assert found["sync_chance"] < 0.6
    assert figures.summarise(shuffled)["sync"] < 0.6


def test_one_event_seen_serves_one_event_heard():
    assert judge.sync_errors((0.5, 0.51), (12,)) == [0.0, math.inf]
    assert judge.sync_errors((0.0, 0.5), (12, 24)) == [1.0, 0.0]
    assert judge.sync_errors((0.5,), ()) == [math.inf]


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_silence_has_no_events(clip, noise):
    sound = noise * torch.randn(world.SAMPLES, generator=torch.Generator().manual_seed(0))
    verdict = judged(replace(clip, sound=sound))
    found = figures.summarise([verdict])

    assert (verdict.heard, verdict.pitch, verdict.snr, verdict.loudness) == ((), None, None, 0.0)
    assert math.isnan(found["sync"])
    assert (found["count_seen"], found["count_heard"], found["pitch"], found["sync_seen"]) == (
        1,
        0,
        0,
        0,
    )


def test_noise_has_no_pitch():
    noise = torch.randn(world.SAMPLES, generator=torch.Generator().manual_seed(0))

    assert judge.find_pitch(0.3 * noise, 0.5) is None


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("thing", world.THINGS)
def test_an_empty_picture_has_no_events(clip, thing, value):
    verdict = judged(
        replace(clip, frames=torch.full_like(clip.frames, value)), replace(SCENE, thing=thing)
    )
    found = figures.summarise([verdict])

    assert (verdict.colour, verdict.seen, verdict.radius) == (None, (), 0.0)
    assert (found["colour"], found["count_seen"], found["sync"], found["count_heard"]) == (
        0,
        0,
        0,
        1,
    )


@pytest.mark.parametrize("thing", world.THINGS)
def test_noise_and_what_is_there_for_a_moment_are_no_events(clip, thing):
    scene = replace(SCENE, thing=thing)
    noise = torch.rand(clip.frames.shape, generator=torch.Generator().manual_seed(0))
    moment = clip.frames.clone()
    moment[1:] = 0.5

    for frames in (noise, moment):
        assert judged(replace(clip, frames=frames), scene).seen == ()


@pytest.mark.parametrize("thing", world.THINGS)
def test_what_does_not_change_is_no_event(thing):
    """Neither a ball that lies there, nor a lamp that is on, nor an open mouth."""
    clip = world.film(replace(SCENE, thing=thing), 2)
    still = clip.frames[clip.events[-1]].expand_as(clip.frames)

    assert judged(replace(clip, frames=still)).seen == ()


@pytest.mark.parametrize("thing", world.THINGS)
def test_pitch_is_exact(thing):
    for name, expected in world.PITCHES.items():
        clip = world.film(world.Scene(thing, "red", 3, name), 7)
        for pitch in judged(clip).pitches:
            assert pitch == pytest.approx(expected, rel=0.05)  # each event's own is up to 3 % off


def test_larger_balls_are_louder(verdicts):
    assert figures.summarise(verdicts)["loudness_by_size"] > 0.9


def test_noise_between_events_lowers_the_snr(clip):
    noise = torch.randn(world.SAMPLES, generator=torch.Generator().manual_seed(0))
    quiet, loud = (
        judged(replace(clip, sound=clip.sound + level * noise)).snr for level in (0.001, 0.01)
    )

    assert quiet - loud == pytest.approx(20, abs=1)


@pytest.mark.parametrize(
    ("frames", "sound"),
    [((3, 32, 64, 3), (100,)), ((64, 64, 3), (100,)), ((3, 64, 64, 3), (1, 100))],
)
def test_other_shapes_are_refused(frames, sound):
    with pytest.raises(ValueError, match=r"frames are .* and the sound is .*Give one clip"):
        judge.judge(torch.zeros(frames), torch.zeros(sound), SCENE)


def test_spread_is_over_clips_of_one_scene(verdicts):
    twice = [judged(world.film(SCENE, seed)) for seed in (1, 2)]
    first = [verdict.seen[0] for verdict in twice]
    found = figures.summarise([*verdicts, *twice])

    assert math.isnan(figures.summarise(verdicts)["time_spread"])
    same = next(verdict for verdict in verdicts if verdict.asked == SCENE).seen[0]
    assert found["time_spread"] == pytest.approx(torch.tensor([*first, same]).double().std().item())


@pytest.mark.parametrize("thing", world.THINGS)
def test_a_clip_carries_on_its_own_first_frame_and_no_other(thing):
    scene = replace(SCENE, thing=thing)
    clips = [world.film(scene, seed) for seed in range(8)]
    left, right = (
        min(clips, key=lambda clip: clip.place[0]),
        max(clips, key=lambda clip: clip.place[0]),
    )
    blue = world.film(replace(scene, colour="blue"), 0)

    assert figures.carried_on(judged(left), left.frames[0]) == (True, True)
    assert figures.carried_on(judged(left), right.frames[0]) == (True, False)
    assert figures.carried_on(judged(left), blue.frames[0])[0] is False
    vanished = torch.cat([left.frames[:1], torch.ones_like(left.frames[1:])])
    assert figures.carried_on(judged(replace(left, frames=vanished)), left.frames[0])[1] is False


def test_the_table_has_a_column_for_each_evaluation(verdicts):
    lines = figures.table({"a": figures.summarise(verdicts), "b": {"colour": 0.5}}).splitlines()

    assert lines[:2] == ["| | a | b |", "|---|---|---|"]
    assert "| colour as asked | 100.0% | 50.0% |" in lines
    assert any(line.startswith("| where it is") and line.endswith("| - | - |") for line in lines)
    assert not any("first frame carried on" in line for line in lines)


def test_clips_are_drawn_with_their_events_marked(clip):
    verdict = judged(clip)
    rows = plots.draw_clips([(SCENE.caption(), clip.frames, clip.sound, verdict)] * 2)
    silent = judge.judge(torch.zeros_like(clip.frames), torch.zeros_like(clip.sound), SCENE)
    bare = plots.draw_clip("", torch.zeros_like(clip.frames), torch.zeros_like(clip.sound), silent)

    marks = {tuple(bytes.fromhex(mark[1:])) for mark in (plots.SEEN, plots.HEARD)}
    assert marks <= {colour for _, colour in rows.getcolors(maxcolors=2**24)}
    assert not marks & {colour for _, colour in bare.getcolors(maxcolors=2**24)}
    assert "3 seen, 3 heard" in plots.describe(verdict)
