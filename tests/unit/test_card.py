"""The measuring of a card: every row is planned, some are run small on the processor, and whatever
a worker does, the run goes on.
"""

import json
import subprocess
import sys
import zipfile

import find_comfyui
import pytest
import torch

find_comfyui.import_extension()

from card import absent, pack, report, runner, worker  # noqa: E402
from card.machine import Machine  # noqa: E402
from card.rows import Row, all_rows, short_rows  # noqa: E402

ROWS = {row.name: row for row in all_rows()}
# One of each kind and way, the quickest; all are run by `tools/card.sh --cpu --small`.
RUN = [
    "golden, fp32",
    "golden, float8_e4m3fn",
    "golden, int8_tensorwise",
    "forward, 704x704 5 s, bf16",
    "forward, 960x960 5 s, bf16, attention flash",
    "forward, 960x960 5 s, bf16, in 8 GB",
    "forward, 960x960 5 s, float8_e4m3fn",
    "forward, 960x960 5 s, nvfp4",
    "clip, 704x704 5 s, 50 steps, bf16",
    "decode, 704x704 5 s, tiled",
    "decode, 704x704 5 s, tiny",
]


@pytest.mark.parametrize(
    "part",
    [
        *(f"golden, {kind}" for kind in ("fp32", "bf16", "float8_e4m3fn", "int8_tensorwise")),
        *(
            f"forward, {clip}, bf16{ending}"
            for clip in ("704x704 5 s", "704x704 10 s", "960x960 5 s", "960x960 10 s")
            for ending in ("", ", compiled")
        ),
        *(f"forward, 960x960 5 s, bf16, in {size} GB" for size in (8, 12, 16)),
        *(f"forward, 960x960 5 s, bf16, attention {name}" for name in ("flash", "sage")),
        *(f"forward, 960x960 5 s, {name}" for name in ("mxfp8", "nvfp4", "int8_tensorwise")),
        *(f"decode, 960x960 5 s, {how}" for how in ("whole", "tiled", "tiny")),
        *(f"clip, 704x704 5 s, {steps} steps, bf16" for steps in (50, 8, 6)),
    ],
)
def test_every_row_is_planned(part):
    assert part in ROWS


def test_no_two_rows_have_one_name_and_the_short_list_has_every_kind():
    assert len(ROWS) == len(all_rows())
    assert set(short_rows()) < set(all_rows())
    assert {row.kind for row in short_rows()} == {row.kind for row in all_rows()}


def test_every_layout_of_core_has_a_row():
    import comfy.quant_ops

    known = getattr(comfy.quant_ops, "QUANT_ALGOS", {})
    assert {row.precision for row in ROWS.values()} >= set(known)


@pytest.fixture(scope="module")
def machine():
    machine = Machine(torch.device("cpu"), small=True)
    yield machine
    machine.free()


@pytest.mark.parametrize("name", RUN)
def test_a_row_is_measured_or_says_why_not(name, machine):
    row = ROWS[name]
    result = worker.measure(row, machine)
    if "failed" in result:
        may_lack = ("flash", "int8_tensorwise", "nvfp4")
        assert name.endswith(may_lack)
        assert "this ComfyUI" in result["failed"] or "swizzle" in result["failed"]
    elif row.kind == "golden":
        assert 0 < result["error"] < 0.2
    else:
        assert result["seconds"] > 0
        assert result["floor"] > 0
        assert result["tflop"] > 0
        assert bool(result.get("is_reckoned")) == (row.steps == 50)


def test_what_a_row_ends_with_is_one_line_for_a_table(machine, monkeypatch):
    def fail(_row, _machine):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory | tried 9 GiB\nmore\n")

    monkeypatch.setattr(worker, "measures", lambda: {"forward": fail})
    result = worker.measure(Row("forward"), machine)
    assert result == {"failed": "OutOfMemoryError: CUDA out of memory / tried 9 GiB"}


# Plays a worker: measures rows, but ends at one named 'die' and waits at one named 'wait'.
WORKER = """
import json, os, sys, time
with open(sys.argv[1], "a") as lines:
    def write(line):
        print(json.dumps(line), file=lines, flush=True)
    write({"about": {"machine": "a card"}})
    for name in json.load(sys.stdin):
        write({"begun": name})
        if "die" in name:
            print("killed by the driver", file=sys.stderr, flush=True)
            os._exit(9)
        if "wait" in name:
            time.sleep(60)
        write({"row": name, "seconds": 1.5})
"""


@pytest.fixture
def run(tmp_path):
    """Run a played worker over rows of these kinds; returns what is left and the state.

    over: once the worker has written this, time flies.
    """
    script, results = tmp_path / "worker.py", tmp_path / "worker.jsonl"
    script.write_text(WORKER)

    def run(*kinds, over=None, limit=9999.0, row_limit=9999.0):
        seconds = 0.0

        def clock():
            nonlocal seconds
            flies = over and results.is_file() and over in results.read_text()
            seconds += 100.0 if flies else 0.0
            return seconds

        state = runner.State.read(tmp_path / "state.json")
        command = [sys.executable, str(script)]
        made = runner.Runner(state, command, limit, row_limit, lambda _line: None, clock)
        return made.run([Row(kind) for kind in kinds]), runner.State.read(state.path)

    return run


def test_a_worker_that_ends_costs_one_row(run):
    left, state = run("a", "die", "b")
    assert left == []
    assert state.about == {"machine": "a card"}
    assert state.rows["die, bf16"] == {"failed": "the process ended: killed by the driver"}
    assert state.rows["a, bf16"] == state.rows["b, bf16"] == {"seconds": 1.5}


def test_a_row_that_takes_too_long_costs_itself(run):
    left, state = run("wait", "b", over='"begun": "wait', row_limit=300.0)
    assert left == []
    assert state.rows["wait, bf16"] == {"failed": "took longer than 300 s"}
    assert state.rows["b, bf16"] == {"seconds": 1.5}


def test_a_call_stops_at_its_limit_and_the_next_goes_on(run):
    left, state = run("a", "wait", "b", over='"begun": "wait', limit=600.0)
    assert left == ["wait, bf16", "b, bf16"]
    assert list(state.rows) == ["a, bf16"]
    left, state = run("a", "b")
    assert (left, list(state.rows)) == ([], ["a, bf16", "b, bf16"])


def test_the_table_has_a_line_for_every_row_and_marks_what_was_reckoned():
    rows = [Row("forward"), Row("clip", steps=50), Row("decode"), Row("golden")]
    names = [row.name for row in rows]
    results = {
        names[0]: {"seconds": 2.0, "floor": 1.0, "tflop": 100.0, "peak_gib": 23.456},
        names[1]: {"seconds": 90.0, "floor": 60.0, "floor_is_reckoned": True, "is_reckoned": True},
        names[2]: {"failed": "no room"},
    }
    lines = report.table(rows, results).splitlines()[2:]
    assert lines == [
        "| forward, bf16 | 2.000 | 1.000 | 2.00 | 100 | 50 | 23.46 |  |",
        "| clip, 50 steps, bf16 | ~90.000 | ~60.000 | 1.50 |  |  |  | "
        "seconds reckoned from fewer steps |",
        "| decode |  |  |  |  |  |  | no room |",
        "| golden, bf16 |  |  |  |  |  |  | not reached |",
    ]
    parsed = json.loads(report.as_json(rows, {"card": "X"}, results))
    assert (parsed["version"], parsed["about"]) == (1, {"card": "X"})
    assert parsed["rows"] == results


def test_a_pack_holds_python_and_wheels_and_comes_out_as_it_went_in(tmp_path):
    core = tmp_path / "core"
    for name in ("main.py", "comfy/sd.py", "comfy/tokenizer.json", "web/page.py"):
        (core / name).parent.mkdir(parents=True, exist_ok=True)
        (core / name).write_text(name)
    laid_out, folder = tmp_path / "laid out", tmp_path / "pack"
    pack.copy_python(core, laid_out / "ComfyUI")
    (laid_out / "wheels").mkdir()
    with zipfile.ZipFile(laid_out / "wheels" / "some-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some/__init__.py", "here = True")
    pack.lay_out(laid_out / "wheels", laid_out / "site")
    folder.mkdir()
    assert 0 < pack.compress(laid_out, folder / pack.ARCHIVE) < 1
    pack.unpack(folder)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py"))
    assert found == ["ComfyUI/comfy/sd.py", "ComfyUI/main.py", "site/some/__init__.py"]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match="holds something else"):
        pack.gather(tmp_path, tmp_path, "3.12")
    with pytest.raises(SystemExit, match="is no folder that --pack has filled"):
        pack.unpack(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_neither_pytorchs_own_packages_nor_the_unused_are_packed():
    wanted = pack.needed_distributions(["torch", "sympy", "numpy", "safetensors", "scipy", "PIL"])
    assert wanted.keys() == {"numpy", "safetensors"}


def test_what_starts_workers_does_not_import_pytorch_which_looks_for_numpy_once():
    code = "import sys, card.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=runner.BENCHMARKS, check=True)


def test_a_package_that_is_not_there_can_be_imported_but_not_used():
    module = absent._AbsentModule("absent")

    class Derived(module.Base, module.other.Base):
        pass

    @module.decorator
    def kept():
        return 3

    assert (kept(), isinstance(Derived(), absent.Absent)) == (3, True)
    assert absent._AbsentPackages(absent.UNUSED).find_spec("torch") is None
