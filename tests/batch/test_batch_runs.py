"""The count of what a run with kills left names every kind of loss."""

import batch_runs
import pytest

WELL = {"clips": 2, "bad rows named": 2}
WORDS = ["has no input", "expected a number"]


def left(out, alone):
    """What two good rows and two bad ones leave when all is well."""
    for folder in (out, alone):
        (folder / "clips").mkdir(parents=True)
        for name in ("aa", "bb"):
            (folder / "clips" / f"{name}.mp4").write_bytes(name.encode())
    batch_runs.write_table(out / "results.jsonl", [{"id": "aa"}, {"id": "bb"}])
    failed = [{"row": row, "error": f"it {words}"} for row, words in enumerate(WORDS, start=3)]
    batch_runs.write_table(out / "failed.jsonl", failed)


def lost(out):
    batch_runs.write_table(out / "results.jsonl", [{"id": "aa"}])


def doubled(out):
    batch_runs.write_table(out / "results.jsonl", [{"id": "aa"}, {"id": "bb"}, {"id": "bb"}])


def different(out):
    (out / "clips/bb.mp4").write_bytes(b"another")


def good_row_failed(out):
    with (out / "failed.jsonl").open("a") as file:
        file.write('{"row": 2, "error": "it has no luck"}\n')


def unnamed(out):
    batch_runs.write_table(out / "failed.jsonl", [{"row": 3, "error": "it has no input"}])


@pytest.mark.parametrize(
    ("fault", "faults"),
    [
        (lambda _: None, {}),
        (lost, {"rows lost": 1}),
        (doubled, {"rows done twice": 1}),
        (different, {"clips unlike those of one ComfyUI": 1}),
        (good_row_failed, {"good rows that failed": 1}),
        (unnamed, {"bad rows named": 1, "bad rows not named": 1}),
    ],
)
def test_every_fault_is_counted(tmp_path, fault, faults):
    out, alone = tmp_path / "two", tmp_path / "one"
    left(out, alone)
    fault(out)
    failures = batch_runs.read_lines(out / "failed.jsonl")
    counted = batch_runs.count(out, alone, 2, [({}, words) for words in WORDS], failures)
    assert {name: n for name, n in counted.items() if n} == WELL | faults
