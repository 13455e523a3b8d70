"""Workers of a real Ray that is told of cards this machine has not; a stub stands for ComfyUI."""

import json

import batch_runs
import pytest
import stub_comfyui

pytestmark = pytest.mark.graph

JOBS = 6


def test_each_worker_has_cards_of_its_own(tmp_path):
    """Of five cards two workers get two each; the fifth stays free."""
    # All jobs wait for the second worker.
    rows = [{"Say.text": f"job {n}", "Say.together": 2, "Say.seconds": 0.5} for n in range(JOBS)]
    table = batch_runs.write_table(tmp_path / "jobs.jsonl", rows)
    workflow = stub_comfyui.write_workflow(tmp_path / "workflow.json")
    comfyui = stub_comfyui.install(tmp_path / "comfyui")
    out, flags = tmp_path / "out", ["--workflow", str(workflow), "--cards-per-clip", "2"]
    cards = {"RAY_OVERRIDE_RESOURCES": '{"GPU": 5}'}
    process = batch_runs.start(comfyui, table, out, "auto", *flags, **cards)
    assert batch_runs.ended(process) == 0, out.with_suffix(".log").read_text()
    said = [json.loads(path.read_text()) for path in (out / "clips").iterdir()]
    assert len(said) == JOBS
    assert {one["cards"] for one in said} == {"0,1", "2,3"}
    assert not any("--cpu" in one["flags"] for one in said)
