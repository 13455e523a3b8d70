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
