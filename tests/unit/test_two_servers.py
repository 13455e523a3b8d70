"""The count of what two servers saved names every kind of loss."""

import json

import pytest
import torch
import two_servers
from media import save

WORKFLOW = json.loads(two_servers.WORKFLOW.read_text(encoding="utf-8"))
WELL = {"prompts": 2, "files": 2}


def put(folder, name, seed):
    """Save a clip that holds the prompt of a seed."""
    prompt = json.dumps(two_servers.with_seed(WORKFLOW, seed))
    images = torch.zeros(two_servers.SHORT["length"], 32, 32, 3)
    save(folder, "mp4", images, metadata={"prompt": prompt}).rename(folder / name)


def record(*names, status="success"):
    images = [{"filename": name, "type": "output"} for name in names]
    return {"status": {"status_str": status}, "outputs": {"15": {"images": images}}}


def two_files(folder):
    put(folder, "a.mp4", 0)
    put(folder, "b.mp4", 1)
    return [record("a.mp4"), record("b.mp4")]


def cut(folder):
    records = two_files(folder)
    (folder / "b.mp4").write_bytes((folder / "b.mp4").read_bytes()[:500])
    return records


def lost(folder):
    records = two_files(folder)
    (folder / "b.mp4").unlink()
    return records


def doubled(folder):
    records = two_files(folder)
    put(folder, "b.mp4", 0)
    return records


def left_over(folder):
    (folder / ".b.partial.mp4").write_bytes(b"begun")
    return two_files(folder)


def failed(folder):
    return [two_files(folder)[0], record("b.mp4", status="error")]


@pytest.mark.parametrize(
    ("saved", "faults"),
    [
        (two_files, {}),
        (cut, {"files damaged": 1, "prompts lost": 1}),
        (lost, {"files": 1, "files lost": 1, "prompts lost": 1}),
        (doubled, {"prompts lost": 1, "prompts doubled": 1}),
        (left_over, {"files": 3, "files nobody named": 1, "files damaged": 1}),
        (failed, {"prompts that failed": 1, "files nobody named": 1}),
    ],
)
def test_every_fault_is_counted(tmp_path, saved, faults):
    counted = two_servers.count(2, saved(tmp_path), tmp_path)
    assert {name: n for name, n in counted.items() if n} == WELL | faults
