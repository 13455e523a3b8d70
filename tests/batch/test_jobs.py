"""Rows of every kind of table become jobs, or are refused in words with their number."""

import json

import pytest
from comfyui_ovi.batch import job, job_table, order
from comfyui_ovi.batch.job_table import Row
from comfyui_ovi.batch.workflow import Workflow

NODES = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "a.safetensors"}},
    "2": {
        "class_type": "OviTextEncode",
        "inputs": {"prompt": "A ball. Audio: knock.", "clip": ["9", 0]},
        "_meta": {"title": "The prompt"},
    },
    "3": {"class_type": "OviLatent", "inputs": {"length": 121, "tiled": False}},
    "4": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "5": {"class_type": "LoadAudio", "inputs": {"audio": "example.wav"}},
    "9": {"class_type": "CLIPLoader", "inputs": {"name": "t5"}, "_meta": {"title": "Twice"}},
    "10": {"class_type": "CLIPLoader", "inputs": {"name": "t5"}, "_meta": {"title": "Twice"}},
}


@pytest.fixture
def workflow():
    return Workflow(NODES)


def made(workflow, folder, *rows):
    numbered = [Row(number, values) for number, values in enumerate(rows, start=1)]
    return job.make_jobs(numbered, workflow, folder)


def test_a_csv_sets_inputs_by_title_and_by_id(workflow, tmp_path):
    table = tmp_path / "jobs.csv"
    table.write_text('The prompt.prompt,3.length,3.tiled\n"One, two",9,true\nThree,,\n')
    jobs, refusals = job.make_jobs(job_table.read_rows(table), workflow, tmp_path)
    assert not refusals
    assert [one.prompt["2"]["inputs"]["prompt"] for one in jobs] == ["One, two", "Three"]
    assert [one.prompt["3"]["inputs"]["length"] for one in jobs] == [9, 121]
    assert [one.prompt["3"]["inputs"]["tiled"] for one in jobs] == [True, False]
    assert jobs[0].prompt["2"]["inputs"]["clip"] == ["9", 0]


def test_json_lines_say_what_their_line_is(workflow, tmp_path):
    table = tmp_path / "jobs.jsonl"
    table.write_text('{"3.length": 9}\n{"3.length": }\n\n[1]\n')
    rows = job_table.read_rows(table)
    jobs, refusals = job.make_jobs(rows, workflow, tmp_path)
    assert [one.row for one in jobs] == [1]
    assert [(one.row, one.error.split(":")[0]) for one in refusals] == [
        (2, "it is no JSON"),
        (3, "it is no JSON object"),
    ]


def test_files_of_a_folder_with_one_stem_are_one_job(workflow, tmp_path):
    for name in ("a.png", "a.wav", "b.png", "ignored.zip"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "a.txt").write_text("A lamp. Audio: hum.\n")
    first, second = job.make_jobs(job_table.read_rows(tmp_path), workflow, tmp_path)[0]
    assert first.prompt["2"]["inputs"]["prompt"] == "A lamp. Audio: hum."
    names = [first.prompt["4"]["inputs"]["image"], first.prompt["5"]["inputs"]["audio"]]
    assert {first.files[name].name for name in names} == {"a.png", "a.wav"}
    assert second.prompt["5"]["inputs"]["audio"] == "example.wav"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"Nobody.length": 9}, "has no node 'Nobody'"),
        ({"3.lenght": 9}, "has no input 'lenght' with a value in this workflow, only length"),
        ({"2.clip": "x"}, "'clip' is connected to node 9 ('Twice')"),
        ({"Twice.name": "x"}, "2 nodes are called 'Twice'; write the id of one in its place: 9"),
        ({"length": 9}, "names no input: write 'node_title.input'"),
        ({"3.length": "long"}, "is 'long': expected a number"),
        ({"3.length": "inf"}, "expected a finite number"),
        ({"3.length": True}, "expected a number"),
        ({"3.tiled": "perhaps"}, "expected true or false"),
        ({"The prompt.prompt": 5}, "is 5: expected text"),
        ({"4.image": "absent.png"}, "does not exist"),
        ({"3.length": 9, "OviLatent.length": 10}, "sets an input that another column sets too"),
    ],
)
def test_a_bad_row_is_refused_and_the_others_are_jobs(workflow, tmp_path, values, words):
    jobs, (refusal,) = made(workflow, tmp_path, {"3.length": 5}, values, {"3.length": 9})
    assert [one.row for one in jobs] == [1, 3]
    assert refusal.row == 2
    assert words in refusal.error


def test_all_faults_of_a_row_are_told(workflow, tmp_path):
    _, (refusal,) = made(workflow, tmp_path, {"3.length": "long", "7.seed": 1})
    assert "expected a number" in refusal.error
    assert "no node '7'" in refusal.error


def test_an_id_is_of_workflow_values_and_files(workflow, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    rows = {"3.length": 9, "4.image": "a.png"}
    (first,), _ = made(workflow, tmp_path, rows)
    assert made(workflow, tmp_path, dict(reversed(rows.items())))[0][0].id == first.id
    assert made(workflow, tmp_path, rows | {"3.length": 10})[0][0].id != first.id
    other = Workflow(NODES | {"10": {"class_type": "CLIPLoader", "inputs": {"name": "t6"}}})
    assert made(other, tmp_path, rows)[0][0].id != first.id
    picture.write_bytes(b"another")
    assert made(workflow, tmp_path, rows)[0][0].id != first.id


def test_equal_rows_are_one_job(workflow, tmp_path):
    jobs, _ = made(workflow, tmp_path, {"3.length": 9}, {"OviLatent.length": "9"})
    assert [one.row for one in jobs] == [1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("jobs.txt", "x", "is no table of jobs"),
        ("jobs.csv", "a,b\n", "holds no jobs"),
        ("absent.csv", None, "does not exist"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(job_table.TableError, match=words):
        job_table.read_rows(tmp_path / name)


def test_a_workflow_of_the_page_is_refused(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps({"nodes": [], "links": []}))
    with pytest.raises(ValueError, match="Export \\(API\\)"):
        Workflow.read(tmp_path / "w.json")


def taken(queue, group=None, busy=()):
    job_ = queue.take(group, set(busy))
    return job_ and job_.row


def test_a_worker_stays_with_its_models_and_leaves_others_theirs(workflow, tmp_path):
    names = ["a.safetensors", "b.safetensors", "a.safetensors", "b.safetensors", "a.safetensors"]
    jobs, _ = made(
        workflow, tmp_path, *({"1.unet_name": name, "3.length": n} for n, name in enumerate(names))
    )
    jobs = [job.Job(**{**vars(one), "group": one.changes[("1", "unet_name")]}) for one in jobs]
    queue = order.Order(jobs, set())
    assert taken(queue) == 1
    assert taken(queue, None, {"a.safetensors"}) == 2
    assert taken(queue, "a.safetensors", {"b.safetensors"}) == 3
    assert taken(queue, "a.safetensors", {"b.safetensors"}) == 5
    assert taken(queue, "a.safetensors", {"b.safetensors"}) == 4
    assert taken(queue) is None


def test_groups_are_models_and_sizes(workflow, tmp_path):
    rows = [{"3.length": 9}, {"3.length": 9, "The prompt.prompt": "x"}, {"3.length": 5}]
    one, same, other = (each.group for each in made(workflow, tmp_path, *rows)[0])
    assert one == same != other


def test_a_job_waits_for_the_one_it_goes_on_from(workflow, tmp_path):
    first = job.make_job(Row(1, {"3.length": 9}), workflow, tmp_path)
    second = job.make_job(Row(2, {"3.length": 9}), workflow, tmp_path, after=first.id)
    third = job.make_job(Row(3, {"3.length": 9}), workflow, tmp_path, after=second.id)
    queue = order.Order([first, second, third], set())
    assert taken(queue) == 1
    assert taken(queue) is None
    queue.finish(first)
    assert taken(queue) == 2
    queue.give_back(second)
    assert len(queue) == 2
    assert queue.give_up(first) == [second, third]
    assert not len(queue)
