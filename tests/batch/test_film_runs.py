"""What a film's runs left is counted, and a sound that is late is heard."""

import json
import subprocess
import sys

import film_runs
import pytest
from batch_runs import REPOSITORY, write_table
from comfyui_ovi.batch import shot_file
from comfyui_ovi.miniature.training import world


def left(out, alone):
    """What two films leave when all is well, one of them killed and taken up."""
    for folder in (out, alone):
        (folder / "clips").mkdir(parents=True)
        (folder / "clips/aa.mkv").write_bytes(b"shot")
        (folder / film_runs.FILM).write_bytes(b"film")
        rows = [{"row": row, "error": ""} for row in range(1, film_runs.SHOTS + 1)]
        write_table(folder / "attempts.jsonl", [*rows, {"row": 7, "error": "it ended"}])


def another_film(out):
    (out / film_runs.FILM).write_bytes(b"another")


def another_shot(out):
    (out / "clips/aa.mkv").write_bytes(b"another")


def one_shot_more(out):
    (out / "clips/bb.mkv").write_bytes(b"more")


def one_made_twice_and_one_not(out):
    rows = [1, *range(1, film_runs.SHOTS)]
    write_table(out / "attempts.jsonl", [{"row": row, "error": ""} for row in rows])


@pytest.mark.parametrize(
    ("fault", "faults"),
    [
        (lambda _: None, {}),
        (another_film, {"films unlike the one left alone": 1}),
        (another_shot, {"files of shots unlike": 1}),
        (one_shot_more, {"files of shots unlike": 1}),
        (one_made_twice_and_one_not, {"shots made twice": 1, "shots not made": 1}),
    ],
)
def test_every_difference_is_counted(tmp_path, fault, faults):
    out, alone = tmp_path / "killed", tmp_path / "alone"
    left(out, alone)
    fault(out)
    counted = film_runs.compare(out, alone)
    assert {name: n for name, n in counted.items() if n} == faults


@pytest.mark.parametrize(
    ("made", "without_need", "not_made"),
    [([5, 6, 7], 0, 0), ([5, 6, 7, 8], 1, 0), ([5, 7], 0, 1), ([5, 5, 6, 7], 1, 0)],
)
def test_a_changed_shot_and_its_followers_are_wanted(made, without_need, not_made):
    counted = film_runs.compare_changed([1, 2], [1, 2, *made])
    assert list(counted.values()) == [without_need, not_made]


def test_memory_is_counted_from_shot_three_on():
    told = [{"megabytes": 10 * n, "frames": n} for n in (1, 5, 20, 30)]
    assert film_runs.memory(told)[0] == 50
    assert film_runs.memory([*told[:3], told[2]])[0] == 0


def test_sounds_of_the_world_are_in_step_in_a_film_and_two_frames_late_they_are_not(tmp_path):
    """The clips are the world's own; shots of one take are the same clip again."""
    parts = []
    for take in film_runs.takes():
        clip = world.film(take.scene, seed=take.shots[0])
        shot = tmp_path / f"{take.shots[0]}.mkv"
        pictures = (255 * clip.frames).round().byte().numpy()
        shot_file.write_shot(shot, list(pictures), clip.sound.numpy(), world.SAMPLE_RATE)
        parts += [{"path": str(shot), "lead": 0}] * len(take.shots)
    done = subprocess.run(
        [sys.executable, REPOSITORY / "batch/assemble.py", tmp_path / film_runs.FILM],
        input=json.dumps(parts),
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "assembly.jsonl").write_text(done.stdout)
    events = sum(take.scene.count * len(take.shots) for take in film_runs.takes())
    assert film_runs.in_step(film_runs.judge_takes(tmp_path)) == (events, events)
    assert film_runs.in_step(film_runs.judge_takes(tmp_path, late=2)) == (0, events)
