"""A finished clip is never lost: names that are taken, several servers, what killed ones left."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensor_file
import torch
from comfyui_ovi.ovi_model.save import whole_file
from media import decode, save

REPOSITORY = Path(__file__).resolve().parents[2]
TWO_DAYS, ONE_HOUR = 2 * 24 * 60 * 60, 60 * 60


def write(text):
    return lambda path: path.write_text(text)


def age(path, seconds):
    path.write_bytes(b"x")
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_file_is_never_replaced(tmp_path):
    first = save(tmp_path, "mp4", torch.zeros(2, 32, 32, 3))
    before = first.read_bytes()
    second = save(tmp_path, "mp4", torch.ones(5, 32, 32, 3))
    assert first.read_bytes() == before
    assert names(tmp_path) == [first.name, second.name] == ["clip.mp4", "clip_00001_.mp4"]
    assert len(decode(second).frames) == 5


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_taken_name_means_the_next_free_number(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError(errno.EPERM, "this disk has no hard links")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a_1_00009_.mp4").touch()
    (tmp_path / "a_1_00010_.mp4").mkdir()
    saved = whole_file.write_whole(tmp_path / "a_1_00009_.mp4", write("new"))
    assert saved == tmp_path / "a_1_00011_.mp4"
    assert saved.read_text() == "new"
    assert names(tmp_path) == ["a_1_00009_.mp4", "a_1_00010_.mp4", "a_1_00011_.mp4"]


def test_a_name_that_is_taken_meanwhile(tmp_path):
    def take(partial):
        partial.write_text("mine")
        (tmp_path / "k_00001_.mp4").write_text("theirs")

    assert whole_file.write_whole(tmp_path / "k_00001_.mp4", take).name == "k_00002_.mp4"
    assert (tmp_path / "k_00001_.mp4").read_text() == "theirs"
    assert (tmp_path / "k_00002_.mp4").read_text() == "mine"


SAVE_IN_STEP = """
import sys, time, types
from pathlib import Path
package = types.ModuleType("comfyui_ovi")
package.__path__ = [sys.argv[1]]
sys.modules["comfyui_ovi"] = package
import torch
from comfyui_ovi.ovi_model.save import containers, mux
folder, me, other, frames, kind = Path(sys.argv[2]), *sys.argv[3:5], int(sys.argv[5]), sys.argv[6]
def wait_for_the_other():
    (folder / me).touch()
    end = time.monotonic() + 300
    while not (folder / other).exists():
        assert time.monotonic() < end
        time.sleep(0.01)
clip = mux.Clip(torch.rand(frames, 64, 64, 3), mux.frame_rate(24))
path = folder / f"k_00001_.{kind}"
print(mux.write_clip(path, clip, containers.CONTAINERS[kind], 80, {}, wait_for_the_other))
"""


def test_two_servers_save_one_name_at_once(tmp_path):
    begin = [sys.executable, "-c", SAVE_IN_STEP, str(REPOSITORY), str(tmp_path)]
    servers = [
        subprocess.Popen([*begin, *rest], stdout=subprocess.PIPE, text=True)
        for rest in (("one", "two", "7", "mp4"), ("two", "one", "9", "mp4"))
    ]
    saved = [Path(server.communicate(timeout=600)[0].strip()) for server in servers]
    assert [server.returncode for server in servers] == [0, 0]
    assert sorted(path.name for path in saved) == ["k_00001_.mp4", "k_00002_.mp4"]
    assert [len(decode(path).frames) for path in saved] == [7, 9]
    assert names(tmp_path) == ["k_00001_.mp4", "k_00002_.mp4", "one", "two"]


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    for name in (
        ".k_00001_.partial.mp4",
        ".a b_00002_.0123456789ab.partial.webm",
        ".k_00001_.0123456789ab.partial.safetensors",
    ):
        age(tmp_path / name, TWO_DAYS)
    kept = [
        age(tmp_path / ".k_00002_.partial.mov", ONE_HOUR),
        age(tmp_path / "k_00001_.mp4", TWO_DAYS),
        age(tmp_path / ".partial.mp4", TWO_DAYS),
        age(tmp_path / "k.partial.mp4", TWO_DAYS),
        age(tmp_path / ".k.partial.zip", TWO_DAYS),
    ]
    folder = tmp_path / ".folder.partial.mp4"
    folder.mkdir()
    os.utime(folder, (0, 0))
    new = whole_file.write_whole(tmp_path / "new.mp4", write("new"))
    assert names(tmp_path) == sorted([*(path.name for path in [*kept, new]), folder.name])


def test_a_server_killed_while_it_saves_leaves_what_a_later_run_removes(tmp_path):
    # Of the three encoders, only this one writes as soon as it has a frame.
    arguments = [str(REPOSITORY), str(tmp_path), "one", "nobody", "5", "mov"]
    server = subprocess.Popen([sys.executable, "-c", SAVE_IN_STEP, *arguments])
    end = time.monotonic() + 300
    while not (tmp_path / "one").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    server.kill()
    server.wait()
    (left,) = tmp_path.glob(".*")
    save(tmp_path, "mp4", torch.zeros(1, 32, 32, 3))
    assert left.exists()
    age(left, TWO_DAYS)
    save(tmp_path, "mp4", torch.zeros(1, 32, 32, 3))
    assert names(tmp_path) == ["clip.mp4", "clip_00001_.mp4", "one"]


def test_unfinished_names_are_their_own_and_no_disk_finds_them_too_long(tmp_path):
    found = []

    def look(partial):
        partial.touch()
        found.append(partial.name)

    for name in (f"{'x' * 200}_00001_.webm", "k_00001_.mp4", "k_00001_.mp4"):
        whole_file.write_whole(tmp_path / name, look)
    assert len(set(found)) == 3
    assert max(map(len, found)) < 255


def test_parts_of_the_converter_too(tmp_path):
    for name in ("o.safetensors.4711.part", "other.gguf.ovi-0123456789ab.part"):
        age(tmp_path / name, TWO_DAYS)
    kept = [
        age(tmp_path / "o.safetensors.4712.part", ONE_HOUR),
        age(tmp_path / "x.safetensors.ovi-0123456789ac.part", ONE_HOUR),
        age(tmp_path / "another.safetensors.1.part", TWO_DAYS),
        age(tmp_path / "o.safetensors.part", TWO_DAYS),
        age(tmp_path / "o.safetensors", TWO_DAYS),
    ]
    parts = {tensor_file.part_of(tmp_path / "o.safetensors") for _ in range(3)}
    assert names(tmp_path) == sorted(path.name for path in kept)
    assert len(parts) == 3
    part = age(parts.pop(), TWO_DAYS)
    tensor_file.part_of(tmp_path / "q.safetensors")
    assert not part.exists()


def test_the_converter_removes_them(convert, source, tmp_path):
    left = age(tmp_path / "converted_same.safetensors.4711.part", TWO_DAYS)
    assert names(tmp_path) == [left.name]
    convert("same", source)
    assert names(tmp_path) == ["converted_same.safetensors"]
