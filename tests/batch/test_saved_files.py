"""Which files of ComfyUI's output folder are a job's."""

from comfyui_ovi.batch.comfy_worker import files_in, saved_files


def record_of(*names, kind="output"):
    entries = [{"filename": name, "subfolder": "video", "type": kind} for name in names]
    return {"outputs": {"15": {"images": entries}}}


def put(folder, *names):
    (folder / "video").mkdir(exist_ok=True)
    for name in names:
        (folder / "video" / name).write_bytes(b"x")


def names_of(paths):
    return [path.name for path in paths]


def test_shown_files_come_first_in_the_order_of_nodes_then_what_is_not_shown(tmp_path):
    put(tmp_path, "a.mov", "b.mp4", "c.mp4")
    assert names_of(saved_files(record_of("c.mp4", "b.mp4"), tmp_path, [])) == [
        "c.mp4",
        "b.mp4",
        "a.mov",
    ]


def test_a_preview_is_not_saved_and_a_file_of_an_earlier_job_is_not_this_ones(tmp_path):
    put(tmp_path, "early.mov")
    before = files_in(tmp_path)
    put(tmp_path, "late.mov")
    assert names_of(saved_files(record_of("shown.mp4", kind="temp"), tmp_path, before)) == [
        "late.mov"
    ]


def test_a_file_that_comfyui_shows_again_is_this_jobs_too(tmp_path):
    put(tmp_path, "same.png")
    before = files_in(tmp_path)
    assert names_of(saved_files(record_of("same.png"), tmp_path, before)) == ["same.png"]


def test_a_file_that_is_shown_and_gone_is_left_out(tmp_path):
    assert saved_files(record_of("gone.png"), tmp_path, []) == []
