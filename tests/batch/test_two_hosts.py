"""A table on two hosts of a real Ray, one of which is taken away in the middle; a stub stands for
ComfyUI, and benchmarks/host_runs.py does the same with ComfyUI itself.
"""

import batch_runs
import host_runs
import pytest
import stub_comfyui
from batch_runs import read_lines
from namespaces import NoNamespaceError

pytestmark = pytest.mark.graph

JOBS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    rows = [{"Say.text": f"job {n}", "Say.together": 2, "Say.seconds": 1} for n in range(JOBS)]
    table = batch_runs.write_table(folder / "jobs.jsonl", rows)
    workflow = stub_comfyui.write_workflow(folder / "workflow.json")
    comfyui = stub_comfyui.install(folder / "comfyui")
    try:
        status = host_runs.run_and_lose(comfyui, table, folder / "out", "--workflow", str(workflow))
    except (NoNamespaceError, host_runs.NoRayError) as problem:
        pytest.skip(f"no hosts can be made here: {problem}")
    return folder / "out", status, (folder / "out.log").read_text()


def test_every_row_is_done_once_though_a_host_is_taken_away(run):
    out, status, log = run
    assert status == 0, log
    done = read_lines(out / "results.jsonl")
    assert sorted(one["row"] for one in done) == list(range(1, JOBS + 1))
    assert {path.name for path in (out / "clips").iterdir()} == {
        f"{one['id']}.json" for one in done
    }


def test_both_hosts_had_work_and_what_was_lost_went_to_the_other(run):
    out, _, log = run
    attempts = read_lines(out / "attempts.jsonl")
    (lost,) = (one for one in attempts if one["error"])
    assert batch_runs.LOST in lost["error"], log
    assert lost["host"] == "second"
    (made,) = (one for one in attempts if one["id"] == lost["id"] and not one["error"])
    assert (made["host"], made["attempt"]) == ("first", 2)
    assert {one["host"] for one in read_lines(out / "results.jsonl")} == {"first", "second"}
