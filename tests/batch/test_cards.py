"""Workers of a real Ray that is told of cards this machine has not; a stub stands for ComfyUI."""

import json

import batch_runs
import pytest
import stub_comfyui

pytestmark = pytest.mark.graph

JOBS = 6


def run(folder, cards, cards_per_clip):
    """Run jobs that wait for a second worker; return the exit status and the folder."""
    rows = [{"Say.text": f"job {n}", "Say.together": 2, "Say.seconds": 0.5} for n in range(JOBS)]
    table = batch_runs.write_table(folder / "jobs.jsonl", rows)
    workflow = stub_comfyui.write_workflow(folder / "workflow.json")
    comfyui = stub_comfyui.install(folder / "comfyui")
    flags = ["--workflow", str(workflow), "--cards-per-clip", str(cards_per_clip)]
    variables = {"RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": cards})}
    process = batch_runs.start(comfyui, table, folder / "out", "auto", *flags, **variables)
    return batch_runs.ended(process), folder / "out"


def test_each_worker_has_cards_of_its_own(tmp_path):
    """Of five cards two workers get two each; the fifth stays free."""
    status, out = run(tmp_path, cards=5, cards_per_clip=2)
    assert status == 0, out.with_suffix(".log").read_text()
    said = [json.loads(path.read_text()) for path in (out / "clips").iterdir()]
    assert len(said) == JOBS
    assert {one["cards"] for one in said} == {"0,1", "2,3"}
    assert not any("--cpu" in one["flags"] for one in said)


def test_too_few_cards_for_one_clip_are_told(tmp_path):
    status, out = run(tmp_path, cards=1, cards_per_clip=2)
    assert status == 2
    assert "--cards-per-clip 2: too many, cards here: 1" in out.with_suffix(".log").read_text()
    assert not any((out / "clips").iterdir())
