"""What a folder of clips keeps holds after a crash, and its page asks for nothing outside."""

import json
import re

import pytest
from comfyui_ovi.batch import ledger, page
from comfyui_ovi.batch.job import Job
from comfyui_ovi.batch.progress import Progress, as_time
from comfyui_ovi.batch.workflow import Workflow

FIGURES = {"seconds": 1.5, "attempts": 1, "host": "one"}


def a_job(name, row=1, **values):
    return Job(name, row, values, Workflow({}), {})


def test_a_finished_job_is_done_in_the_next_run(tmp_path):
    with ledger.Ledger(tmp_path) as kept:
        kept.finish(a_job("aa", prompt="x"), [(".mp4", b"clip"), (".png", b"picture")], FIGURES)
    with ledger.Ledger(tmp_path) as kept:
        assert kept.done["aa"]["files"] == ["clips/aa.mp4", "clips/aa-2.png"]
    assert (tmp_path / "clips/aa.mp4").read_bytes() == b"clip"


def test_a_lost_clip_and_a_line_cut_off_are_not_done(tmp_path):
    with ledger.Ledger(tmp_path) as kept:
        for name in ("aa", "bb"):
            kept.finish(a_job(name), [(".mp4", b"clip")], FIGURES)
    (tmp_path / "clips/aa.mp4").unlink()
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"id": "cc", "fi')
    (tmp_path / "clips/.dd.mp4.partial").write_bytes(b"begun")
    with ledger.Ledger(tmp_path) as kept:
        assert set(kept.done) == {"bb"}
        kept.finish(a_job("cc"), [(".mp4", b"clip")], FIGURES)
    assert {path.name for path in (tmp_path / "clips").iterdir()} == {"bb.mp4", "cc.mp4"}
    assert [one["id"] for one in ledger.read_lines(tmp_path / "results.jsonl")] == ["bb", "cc"]


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    with ledger.Ledger(tmp_path), pytest.raises(ledger.LedgerError, match="another run writes"):
        ledger.Ledger(tmp_path).__enter__()


def test_failures_are_of_the_last_run(tmp_path):
    for error in ("first", "second"):
        with ledger.Ledger(tmp_path) as kept:
            kept.fail(a_job("aa", row=7), error, 2)
    (line,) = ledger.read_lines(tmp_path / "failed.jsonl")
    assert (line["row"], line["error"], line["attempts"]) == (7, "second", 2)


def test_the_page_shows_every_clip_and_asks_for_nothing_outside(tmp_path):
    values = {"prompt": "<S>Hello & goodbye<E>"}
    records = [
        {"id": "aa", "row": 2, "files": ["clips/a b.mp4", "clips/a.flac"], "values": values},
        {"id": "bb", "row": 1, "files": ["clips/b.xyz"], "values": {}},
    ]
    failures = [{"row": 3, "error": "it has <none>"}]
    page.write_page(tmp_path, [one | FIGURES for one in records], failures)
    text = (tmp_path / "index.html").read_text()
    assert "&lt;S&gt;Hello &amp; goodbye&lt;E&gt;" in text
    assert "row 3: it has &lt;none&gt;" in text
    assert text.index("clips/b.xyz") < text.index("clips/a%20b.mp4")
    links = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert sorted(links) == ["clips/a%20b.mp4", "clips/a.flac", "clips/b.xyz"]
    assert not re.search(r"https?:|//|@import|url\(", text.replace("</", ""))


def test_progress_tells_rate_and_time_left():
    now = [0.0]
    progress = Progress(10, 5, lambda: now[0])
    progress.failed = 1
    now[0] = 50.0
    progress.begin()
    now[0] = 110.0
    progress.done = 3
    assert progress.line() == "8 of 15 done, 1 failed; 3.0 a minute, 0:02:00 left"
    assert as_time(3725) == "1:02:05"


def test_every_line_is_json(tmp_path):
    with ledger.Ledger(tmp_path) as kept:
        kept.note("attempts.jsonl", {"error": "two\nlines \u2026"})
    assert json.loads((tmp_path / "attempts.jsonl").read_text())["error"] == "two\nlines \u2026"
