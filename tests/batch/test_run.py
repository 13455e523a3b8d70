"""Clips by a table and a film, in real ComfyUI servers under a real Ray: what dies is replaced,
what is bad is named, and what is done stays done.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import batch_runs
import pytest
import yaml
from batch_runs import read_lines, wait_for
from comfy_server import running_server
from comfyui_ovi.batch.comfy_worker import files_in
from comfyui_ovi.batch.workflow import Workflow

pytestmark = pytest.mark.graph

JOBS, BAD = 8, 6
COMFYUI = Path(os.environ["COMFYUI_PATH"]).resolve()
SHOT = {"prompt": "A lamp. Audio: hum.", "values": batch_runs.SHORT | {"Ovi Latent.length": 25}}


def is_running(process):
    path = Path(f"/proc/{process}/cmdline")
    return path.exists() and bool(path.read_bytes())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in which first ComfyUI of one worker is killed, and then the other worker itself."""
    folder = tmp_path_factory.mktemp("batch")
    rows = batch_runs.good_rows(JOBS) + [row for row, _ in batch_runs.bad_rows(BAD)]
    table = batch_runs.write_table(folder / "jobs.jsonl", rows)
    process = batch_runs.start(COMFYUI, table, folder / "out", 2)
    try:
        up = batch_runs.kill_both(process, folder / "out", JOBS)
    finally:
        status = batch_runs.ended(process)
    return folder, status, up, (folder / "out.log").read_text()


def test_every_good_row_is_done_once_and_every_bad_one_named(run):
    folder, status, _, log = run
    assert status == 1, log
    done = read_lines(folder / "out/results.jsonl")
    assert sorted(one["row"] for one in done) == list(range(1, JOBS + 1))
    clips = {path.name for path in (folder / "out/clips").iterdir()}
    assert clips == {f"{one['id']}.mov" for one in done}
    failed = {one["row"]: one["error"] for one in read_lines(folder / "out/failed.jsonl")}
    assert set(failed) == set(range(JOBS + 1, JOBS + BAD + 1))
    for row, (_, words) in enumerate(batch_runs.bad_rows(BAD), start=JOBS + 1):
        assert words in failed[row]
        assert f"row {row}: " in log


def test_what_was_killed_was_replaced_and_its_attempt_is_told(run):
    folder, _, up, log = run
    attempts = read_lines(folder / "out/attempts.jsonl")
    assert sum(not one["error"] for one in attempts) == JOBS
    assert 1 <= sum(batch_runs.LOST in one["error"] for one in attempts) <= 2, log
    killed = {worker["comfyui_process"] for worker in up}
    assert {one["comfyui_process"] for one in attempts} - killed - {0}
    assert not any(is_running(one) for worker in up for one in killed | {worker["worker_process"]})


def test_a_job_whose_node_fails_is_tried_twice(run):
    folder, *_ = run
    last = JOBS + BAD
    attempts = read_lines(folder / "out/attempts.jsonl")
    errors = [one["error"] for one in attempts if one["row"] == last]
    tries = [error for error in errors if batch_runs.LOST not in error]
    assert len(tries) == 2
    assert all(error.startswith("OviSaveVideo (node 15): ") for error in tries)
    (failed,) = (one for one in read_lines(folder / "out/failed.jsonl") if one["row"] == last)
    assert failed["attempts"] == len(errors)


def test_the_same_command_makes_none_again(run):
    folder, *_ = run
    before = {path: path.stat().st_mtime_ns for path in (folder / "out/clips").iterdir()}
    table = batch_runs.write_table(folder / "good.jsonl", batch_runs.good_rows(JOBS))
    assert batch_runs.ended(batch_runs.start(COMFYUI, table, folder / "out", 2)) == 0
    assert f"{JOBS} done before, 0 to do" in (folder / "out.log").read_text()
    assert {path: path.stat().st_mtime_ns for path in (folder / "out/clips").iterdir()} == before
    assert 'src="clips/' in (folder / "out/index.html").read_text()


def test_clips_are_those_of_one_comfyui_byte_by_byte(run, tmp_path):
    folder, *_ = run
    workflow = Workflow.read(batch_runs.WORKFLOW)
    with running_server(COMFYUI, tmp_path) as server:
        for one in read_lines(folder / "out/results.jsonl")[::2]:
            changes = {workflow.find(name): value for name, value in one["values"].items()}
            server.run(workflow.patched(changes))
            alone = files_in(tmp_path / "output")[-1]
            assert (folder / "out" / one["files"][0]).read_bytes() == alone.read_bytes()


def film_of(folder, *shots):
    path = folder / "film.yaml"
    path.write_text(yaml.safe_dump({"workflow": str(batch_runs.WORKFLOW), "shots": list(shots)}))
    return path


def test_a_film_is_taken_up_where_it_was_killed_and_a_changed_shot_alone_is_made(tmp_path):
    shots = [SHOT | {"seed": 1}, SHOT | {"seed": 2, "transition": "continue", "seconds": 0.5}]
    shots.append(SHOT | {"seed": 3})
    table, out = film_of(tmp_path, *shots), tmp_path / "out"
    process = batch_runs.start(COMFYUI, table, out, 1)
    wait_for(process, out / "results.jsonl", lambda lines: len(lines) == 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "film.mp4").exists()
    first = read_lines(out / "results.jsonl")[0]

    assert batch_runs.ended(batch_runs.start(COMFYUI, table, out, 1)) == 0
    made = read_lines(out / "results.jsonl")
    assert made[0] == first
    assert len(made) == 3
    assert read_lines(out / "assembly.jsonl")[-1]["frames"] == 25 + 12 + 25
    film = (out / "film.mp4").read_bytes()

    shots[2]["seed"] = 4
    assert batch_runs.ended(batch_runs.start(COMFYUI, film_of(tmp_path, *shots), out, 1)) == 0
    assert [one["row"] for one in read_lines(out / "results.jsonl")[3:]] == [3]
    assert (out / "film.mp4").read_bytes() != film


def test_a_program_ends_with_the_process_that_started_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    starter = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE)\n"
        "print('begun', flush=True)\n"
        "time.sleep(600)\n"
    )
    tied = batch_runs.REPOSITORY / "tools" / "tied_program.py"
    parent = subprocess.Popen(
        [sys.executable, "-c", starter, tied, program], stdout=subprocess.PIPE, text=True
    )
    assert {parent.stdout.readline() for _ in range(2)} == {"begun\n", "up\n"}
    parent.kill()
    parent.wait()
    assert parent.stdout.read() == ""  # ends when nobody holds its other end: not the child either
