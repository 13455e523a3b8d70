"""film.yaml to jobs, shots to files without loss, and files to a film in sync to the sample."""

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from comfyui_ovi.batch import film, shot_file
from comfyui_ovi.batch.workflow import Workflow

REPOSITORY = Path(__file__).resolve().parents[2]
WORKFLOW = REPOSITORY / "workflows" / "api" / "Ovi_13_All_nodes_miniature.json"
BLUEPRINT = REPOSITORY / "subgraphs" / "Ovi continue the clip.json"
RATE = 16000


def write_film(folder, *shots, **others):
    path = folder / "film.yaml"
    path.write_text(yaml.safe_dump({"workflow": str(WORKFLOW), "shots": list(shots), **others}))
    return path


def a_shot(seed, transition="cut", **others):
    return {"prompt": "A lamp. Audio: hum.", "seed": seed, "transition": transition, **others}


def test_a_shot_that_continues_has_the_wires_of_the_blueprint():
    (drawn,) = json.loads(BLUEPRINT.read_text())["definitions"]["subgraphs"]
    kinds = {node["id"]: node["type"] for node in drawn["nodes"]}
    inputs = {node["id"]: [one["name"] for one in node["inputs"]] for node in drawn["nodes"]}
    made = {"OviContinue", "OviJoin", "OviDecode", "SamplerCustomAdvanced"}
    expected = {
        (
            kinds[link["origin_id"]],
            kinds[link["target_id"]],
            inputs[link["target_id"]][link["target_slot"]],
        )
        for link in drawn["links"]
        if {kinds.get(link["origin_id"]), kinds.get(link["target_id"])} <= made
    }
    nodes = film.continuing(film.saving_all(Workflow.read(WORKFLOW)), "end.mkv").nodes
    wires = {
        (nodes[value[0]]["class_type"], node["class_type"], name)
        for node in nodes.values()
        for name, value in node["inputs"].items()
        if isinstance(value, list)
    }
    assert {wire for wire in wires if set(wire[:2]) <= made} == expected
    parts = {
        ("GetVideoComponents", kind, name)
        for kind in ("OviContinue", "OviJoin")
        for name in ("images", "audio")
    }
    assert parts <= wires
    assert {("OviJoin", "SaveImage", "images"), ("OviJoin", "SaveAudio", "audio")} <= wires


def test_seconds_seed_and_values_reach_their_inputs(tmp_path):
    values = {"Ovi Scheduler.steps": 3, "Ovi Latent.width": 96}
    path = write_film(
        tmp_path, a_shot(7, seconds=1), a_shot(8, "continue", seconds=0.5), values=values
    )
    first, second = (shot.job.prompt for shot in film.read_film(path))
    assert first["6"]["inputs"] == {"batch_size": 1, "height": 64, "width": 96, "length": 25}
    assert second["6"]["inputs"]["seconds"] == 0.5
    assert [each["11"]["inputs"]["noise_seed"] for each in (first, second)] == [7, 8]
    assert [each["9"]["inputs"]["steps"] for each in (first, second)] == [3, 3]
    assert [each["5"]["inputs"]["prompt"] for each in (first, second)] == [
        "A lamp. Audio: hum."
    ] * 2


def test_a_changed_shot_changes_itself_and_what_continues_it(tmp_path):
    cuts = ["cut", "cut", "continue", "continue", "cut"]
    shots = [a_shot(seed, cut) for seed, cut in enumerate(cuts)]
    before = [shot.job.id for shot in film.read_film(write_film(tmp_path, *shots))]
    shots[1]["prompt"] = "A ball. Audio: knock."
    after = film.read_film(write_film(tmp_path, *shots))
    assert [a == b.job.id for a, b in zip(before, after, strict=True)] == [
        *(True, False, False, False, True)
    ]
    assert [shot.lead for shot in after] == [0, 0, 25, 25, 0]
    assert [shot.job.after for shot in after[2:4]] == [after[1].job.id, after[2].job.id]
    assert len({shot.job.group for shot in after}) == 3


def test_a_first_frame_starts_the_latent(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    (shot,) = film.read_film(write_film(tmp_path, a_shot(1, first_frame="a.png")))
    nodes = shot.job.prompt
    assert nodes["6"]["inputs"]["start_image"] == ["film_first", 0]
    assert nodes["6"]["inputs"]["vae"] == nodes["14"]["inputs"]["vae"]
    assert shot.job.files[nodes["film_first"]["inputs"]["image"]].name == "a.png"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (a_shot(1, "fade"), "transition is 'fade': expected cut or continue"),
        (a_shot(1, second=5), "it has no key 'second'"),
        (a_shot(1, "continue", first_frame="a.png"), "leave first_frame out"),
        (a_shot(1, first_frame="absent.png"), "does not exist"),
        (a_shot(1, seconds=0), "seconds is 0"),
        (a_shot(1, voice="a.wav"), "0 nodes of LoadAudio"),
        (a_shot(1, values={"Ovi Latent.size": 1}), "has no input 'size'"),
        ("A lamp.", "no list of keys and values"),
    ],
)
def test_a_fault_names_its_shot(tmp_path, entry, words):
    with pytest.raises(film.FilmError, match=r"^shot 2: ") as caught:
        film.read_film(write_film(tmp_path, a_shot(0), entry))
    assert words in str(caught.value)


def test_the_first_shot_cannot_continue(tmp_path):
    with pytest.raises(film.FilmError, match="shot 1: the first shot has none to continue"):
        film.read_film(write_film(tmp_path, a_shot(0, "continue")))


def pictures_of(first, count, size=(32, 48)):
    """Frames that tell their number."""
    random = np.random.default_rng(first)
    return [random.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


def sound_of(number, samples):
    """A constant that tells the shot's number."""
    return np.full(samples, number / 100, np.float32)


def written(folder, name, pictures, sound):
    path = folder / f"{name}.mkv"
    shot_file.write_shot(path, pictures, sound, RATE)
    return path


def frames_of(path):
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def assembled(path, *parts):
    script = REPOSITORY / "batch" / "assemble.py"
    given = json.dumps([{"path": str(part), "lead": lead} for part, lead in parts])
    done = subprocess.run(
        [sys.executable, script, path], input=given, capture_output=True, text=True
    )
    return done, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_shot_is_kept_without_loss_and_its_end_too(tmp_path):
    pictures, sound = pictures_of(0, 30), np.linspace(-1, 1, 20000, dtype=np.float32)
    saved = []
    for index, picture in enumerate(pictures):
        saved.append(tmp_path / f"shot_{index:05}_.png")
        with av.open(str(saved[-1]), "w", format="image2") as file:
            stream = file.add_stream("png", rate=1)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "rgb24"
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            file.mux([*stream.encode(frame), *stream.encode(None)])
    saved.append(written(tmp_path, "sound", pictures[:1], sound).rename(tmp_path / "s.wav"))
    subprocess.run(
        [sys.executable, REPOSITORY / "batch/shot_file.py", tmp_path, "25"],
        input=json.dumps([str(path) for path in saved]),
        text=True,
        check=True,
    )
    np.testing.assert_array_equal(frames_of(tmp_path / "1.mkv"), pictures)
    np.testing.assert_array_equal(frames_of(tmp_path / "2.mkv"), pictures[5:])
    np.testing.assert_array_equal(shot_file.read_sound(tmp_path / "1.mkv")[0], sound)
    np.testing.assert_array_equal(shot_file.read_sound(tmp_path / "2.mkv")[0], sound[3333:])


def test_short_sound_does_not_add_up_to_a_delay(tmp_path):
    """Each sound is 17.7 ms short of its picture, as 5 s of Ovi's are, or as much too long."""
    frames, off = 24, round(0.0177 * RATE)
    parts = [
        (
            written(
                tmp_path, n, pictures_of(n, frames), sound_of(n, RATE - off + 2 * off * (n % 2))
            ),
            0,
        )
        for n in range(1, 7)
    ]
    done, told = assembled(tmp_path / "film.mkv", *parts)
    assert not done.returncode, done.stderr
    sound, _ = shot_file.read_sound(tmp_path / "film.mkv")
    assert len(sound) == 6 * RATE
    for n in range(1, 7):
        second = sound[(n - 1) * RATE : n * RATE]
        assert (second[: RATE - off] == np.float32(n / 100)).all()
        assert (second[RATE - off :] == np.float32(n / 100 if n % 2 else 0)).all()
    np.testing.assert_array_equal(
        frames_of(tmp_path / "film.mkv"), np.concatenate([pictures_of(n, 24) for n in range(1, 7)])
    )
    assert [one["frames"] for one in told] == [24, 48, 72, 96, 120, 144]


def test_a_shot_that_continues_shows_its_own_frames_and_replaces_the_sound_of_its_lead(tmp_path):
    first, second = pictures_of(1, 30), pictures_of(2, 12)
    joined = [*first[-25:], *second]
    parts = [
        (written(tmp_path, "a", first, sound_of(1, 20000)), 0),
        (written(tmp_path, "b", joined, sound_of(2, round(37 * RATE / 24))), 25),
    ]
    assert not assembled(tmp_path / "film.mkv", *parts)[0].returncode
    np.testing.assert_array_equal(frames_of(tmp_path / "film.mkv"), [*first, *second])
    sound, _ = shot_file.read_sound(tmp_path / "film.mkv")
    assert len(sound) == round(42 * RATE / 24)
    start = round(5 * RATE / 24)
    assert (sound[:start] == np.float32(0.01)).all()
    assert (sound[start:] == np.float32(0.02)).all()


def test_memory_does_not_grow_with_the_film(tmp_path):
    """From shot 3 on within 50 MB, where the frames alone would be 80 MB."""
    grey = [np.full((256, 256, 3), 5 * n, np.uint8) for n in range(24)]
    part = written(tmp_path, "a", grey, sound_of(1, RATE))
    done, told = assembled(tmp_path / "film.mp4", *[(part, 0)] * 20)
    assert not done.returncode, done.stderr
    assert told[-1]["frames"] == 480
    assert told[-1]["megabytes"] - told[2]["megabytes"] < 50


def test_shots_of_two_sizes_are_refused(tmp_path):
    parts = [
        (written(tmp_path, "a", pictures_of(1, 3), sound_of(1, 2000)), 0),
        (written(tmp_path, "b", pictures_of(2, 3, (32, 32)), sound_of(2, 2000)), 0),
    ]
    done, _ = assembled(tmp_path / "film.mp4", *parts)
    assert done.returncode == 1
    assert "shot 2 has 32 x 32 pixels, shot 1 48 x 32" in done.stderr
