"""OviSaveVideo in ComfyUI's own executor: files, previews, tags, batches, chains and interrupts."""

import json
import re
import sys
from pathlib import Path

import av
import pytest
import torch

pytestmark = pytest.mark.graph


class BatchOfSounds:
    """Stands in for OviDecode, which is tested elsewhere: two clips of three frames, each with its
    own sound.
    """

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
    RETURN_TYPES = ("IMAGE", "AUDIO")
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self):
        images = torch.cat([torch.zeros(3, 32, 64, 3), torch.ones(3, 32, 64, 3)])
        waveform = torch.tensor([0.25, 0.5]).view(2, 1, 1).expand(2, 1, 2000)
        return images, {"waveform": waveform, "sample_rate": 16000}


@pytest.fixture
def folder(runtime, request) -> Path:
    """A folder of this test's own in ComfyUI's output folder, not made yet."""
    return runtime.output / "video" / re.sub(r"\W+", "_", request.node.name)


def workflow(folder, frames=6, seconds=0.25, width=64, silent=False, **inputs):
    prompt = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": width, "height": 32, "batch_size": frames, "color": 255},
        },
        "2": {
            "class_type": "EmptyAudio",
            "inputs": {"duration": seconds, "sample_rate": 16000, "channels": 1},
        },
        "3": {
            "class_type": "OviSaveVideo",
            "inputs": {
                "images": ["1", 0],
                "fps": 24.0,
                "filename_prefix": f"video/{folder.name}/Ovi",
                "format": "mp4",
            }
            | {"quality": 80}
            | ({} if silent else {"audio": ["2", 0]})
            | inputs,
        },
    }
    return prompt


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def streams(path):
    with av.open(str(path)) as file:
        return [stream.codec_context.name for stream in file.streams], len(
            list(file.decode(video=0))
        )


@pytest.mark.parametrize(
    ("format_name", "codecs", "kind", "preview"),
    [
        ("mp4", ["h264", "aac"], "output", "Ovi_00001_.mp4"),
        ("webm", ["vp9", "opus"], "output", "Ovi_00001_.webm"),
        ("mov", ["prores", "pcm_s24le"], "temp", "Ovi_00001_.webm"),
    ],
)
def test_every_format_is_saved_shown_and_handed_on(
    runtime, folder, format_name, codecs, kind, preview
):
    result = runtime.run(workflow(folder, format=format_name))
    assert result.ok, result.error
    assert names(folder) == [f"Ovi_00001_.{format_name}"]
    saved, frames = streams(folder / f"Ovi_00001_.{format_name}")
    assert [
        {"libdav1d": "av1", "libvpx-vp9": "vp9", "libopus": "opus"}.get(name, name)
        for name in saved
    ] == codecs
    assert frames == 6

    assert result.outputs["3"]["animated"][0] is True
    (shown,) = result.outputs["3"]["images"]
    assert shown == {
        "filename": preview,
        "subfolder": str(Path("video", folder.name)),
        "type": kind,
    }
    root = Path(runtime.folder_paths.get_directory_by_type(kind))
    assert streams(root / shown["subfolder"] / shown["filename"])[1] == 6

    components = result.value("3").get_components()
    assert components.images.shape == (6, 32, 64, 3)
    assert components.frame_rate == 24
    assert components.audio["waveform"].shape[:2] == (1, 1)
    assert result.named("progress")[-1]["value"] == result.named("progress")[-1]["max"]


def test_numbers_go_on_over_all_formats_and_nothing_is_replaced(runtime, folder):
    for format_name in ("mp4", "webm", "mov", "mp4"):
        result = runtime.run(workflow(folder, format=format_name))
        assert result.ok, result.error
    assert names(folder) == [
        "Ovi_00001_.mp4",
        "Ovi_00002_.webm",
        "Ovi_00003_.mov",
        "Ovi_00004_.mp4",
    ]


def test_silent_frames_are_enough(runtime, folder):
    result = runtime.run(workflow(folder, silent=True))
    assert result.ok, result.error
    assert streams(folder / "Ovi_00001_.mp4") == (["h264"], 6)


def test_a_batch_becomes_one_file_a_clip(runtime, folder, monkeypatch):
    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "BatchOfSounds", BatchOfSounds)
    prompt = workflow(folder, images=["4", 0], audio=["4", 1], format="mov")
    prompt["4"] = {"class_type": "BatchOfSounds", "inputs": {}}
    result = runtime.run(prompt)
    assert result.ok, result.error
    assert names(folder) == ["Ovi_00001_.mov", "Ovi_00002_.mov"]
    assert len(result.outputs["3"]["images"]) == 2
    for number, loudness, brightness in ((1, 0.25, 0), (2, 0.5, 255)):
        with av.open(str(folder / f"Ovi_0000{number}_.mov")) as file:
            pictures = [
                picture.to_ndarray(format="rgb24").mean() for picture in file.decode(video=0)
            ]
            assert pictures == pytest.approx([brightness] * 3, abs=3)
            file.seek(0)
            assert next(file.decode(audio=0)).to_ndarray().mean() / 2**31 == pytest.approx(
                loudness, abs=1e-6
            )
    assert result.value("3").get_components().images.max() == 0


@pytest.mark.parametrize("format_name", ["mp4", "webm", "mov"])
def test_stock_nodes_take_the_video(runtime, folder, format_name):
    prompt = workflow(folder, format=format_name)
    stock = {
        "video": ["3", 0],
        "filename_prefix": f"video/{folder.name}/stock",
        "format": "auto",
        "codec": "auto",
    }
    prompt["4"] = {"class_type": "SaveVideo", "inputs": stock}
    prompt["5"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["3", 0]}}
    prompt["6"] = {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}}
    prompt["7"] = {"class_type": "PreviewAudio", "inputs": {"audio": ["5", 1]}}
    result = runtime.run(prompt)
    assert result.ok, result.error
    (copy,) = folder.glob("stock_*")
    assert streams(copy)[1] == 6
    assert len(result.outputs["6"]["images"]) == 6
    assert result.value("5", 1)["waveform"].abs().max() < 1e-3


@pytest.mark.parametrize("format_name", ["mp4", "webm", "mov"])
def test_the_workflow_travels_in_the_file(runtime, folder, format_name):
    prompt = workflow(folder, format=format_name)
    drawn = {"nodes": [{"id": 1}], "note": "ü"}
    result = runtime.run(prompt, extra_data={"extra_pnginfo": {"workflow": drawn}})
    assert result.ok, result.error
    with av.open(str(folder / f"Ovi_00001_.{format_name}")) as file:
        tags = {name.lower(): text for name, text in file.metadata.items()}
    assert json.loads(tags["workflow"]) == drawn
    assert json.loads(tags["prompt"])["3"]["class_type"] == "OviSaveVideo"


def test_disable_metadata_is_honoured(runtime, folder, monkeypatch):
    monkeypatch.setattr(runtime.args, "disable_metadata", True)
    result = runtime.run(
        workflow(folder), extra_data={"extra_pnginfo": {"workflow": {"nodes": []}}}
    )
    assert result.ok, result.error
    with av.open(str(folder / "Ovi_00001_.mp4")) as file:
        assert not {"workflow", "prompt"} & set(file.metadata)


@pytest.mark.parametrize("format_name", ["mp4", "mov"])
def test_an_interrupt_stops_within_a_frame_and_the_next_run_works(runtime, folder, format_name):
    def stop_at_the_first_frame(event, data):
        if event == "progress" and data["node"] == "3":
            runtime.interrupt()

    prompt = workflow(folder, frames=20, format=format_name)
    result = runtime.run(prompt, on_event=stop_at_the_first_frame)
    assert result.interrupted
    assert [data["value"] for data in result.named("progress")] == [1]
    assert names(folder) == []

    result = runtime.run(prompt)
    assert result.ok, result.error
    assert names(folder) == [f"Ovi_00001_.{format_name}"]


def test_names_are_filled_in_and_stay_inside_the_output_folder(runtime, folder):
    result = runtime.run(workflow(folder, filename_prefix=f"video/{folder.name}/%width%x%height%"))
    assert result.ok, result.error
    assert names(folder) == ["64x32_00001_.mp4"]

    result = runtime.run(workflow(folder, filename_prefix="../../outside"))
    assert "leads out of ComfyUI's output folder" in result.error


def test_a_prefix_that_is_a_folder_gets_a_name_and_a_number(runtime, folder):
    for _ in range(3):
        result = runtime.run(workflow(folder, filename_prefix=f"video/{folder.name}/"))
        assert result.ok, result.error
    assert names(folder) == ["Ovi_00001_.mp4", "Ovi_00002_.mp4", "Ovi_00003_.mp4"]
    (shown,) = result.outputs["3"]["images"]
    assert shown["filename"] == "Ovi_00003_.mp4"
    assert shown["subfolder"] == str(Path("video", folder.name))


def test_a_name_that_another_server_takes_meanwhile(runtime, folder):
    def take(event, data):
        if event == "progress" and data["node"] == "3" and data["value"] < 6:
            (folder / "Ovi_00001_.mp4").write_bytes(b"theirs")

    result = runtime.run(workflow(folder), on_event=take)
    assert result.ok, result.error
    assert names(folder) == ["Ovi_00001_.mp4", "Ovi_00002_.mp4"]
    assert (folder / "Ovi_00001_.mp4").read_bytes() == b"theirs"
    assert streams(folder / "Ovi_00002_.mp4") == (["h264", "aac"], 6)
    (shown,) = result.outputs["3"]["images"]
    assert shown["filename"] == "Ovi_00002_.mp4"
    assert result.value("3").get_components().images.shape[0] == 6


def test_a_preview_that_fails_does_not_fail_what_is_saved(runtime, folder, monkeypatch, caplog):
    in_the_way = runtime.base / "in_the_way"
    in_the_way.write_text("a file where the temp folder should be")
    monkeypatch.setattr(runtime.folder_paths, "temp_directory", str(in_the_way))
    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "BatchOfSounds", BatchOfSounds)
    prompt = workflow(folder, images=["4", 0], audio=["4", 1], format="mov")
    prompt["4"] = {"class_type": "BatchOfSounds", "inputs": {}}
    result = runtime.run(prompt)
    assert result.ok, result.error
    assert names(folder) == ["Ovi_00001_.mov", "Ovi_00002_.mov"]
    assert result.outputs["3"]["images"] == []
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [
        f"Ovi_0000{number}_.mov is saved, but cannot be shown in the node" in warning
        for number, warning in enumerate(warnings, 1)
    ] == [True, True]
    caplog.clear()


def test_an_interrupt_of_the_preview_is_no_failure_of_it(runtime, folder, monkeypatch):
    module = sys.modules[f"{runtime.package.__name__}.nodes.video"]
    write_clip = module.write_clip

    def stop_in_the_preview(path, clip, container, *rest):
        if container.suffix == ".webm":
            runtime.interrupt()
        return write_clip(path, clip, container, *rest)

    monkeypatch.setattr(module, "write_clip", stop_in_the_preview)
    result = runtime.run(workflow(folder, format="mov"))
    assert result.interrupted
    assert names(folder) == ["Ovi_00001_.mov"]


def test_a_file_in_the_way_of_the_folder_is_named(runtime, folder):
    folder.mkdir(parents=True)
    (folder / "file").touch()
    result = runtime.run(workflow(folder, filename_prefix=f"video/{folder.name}/file/Ovi"))
    assert "the video could not be saved: Not a directory" in result.error
    assert names(folder) == ["file"]


class Surround:
    """A sound of any shape: 600 s of 5.1 at a rate that divides badly, or none."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"samples": ("INT", {"max": 2**31})}}  # noqa: ARG005
    )
    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, samples):
        waveform = torch.zeros(1, 6, samples)
        waveform[:, 2] = 0.5
        return ({"waveform": waveform, "sample_rate": 22051},)


@pytest.mark.parametrize(
    ("samples", "line", "codecs"),
    [
        (600 * 22051, "audio has 6 channels, taken as 5.1: mixed down", ["h264", "aac"]),
        (0, "audio has 0 samples: it counts as no sound", ["h264"]),
    ],
)
def test_surround_and_no_sound_are_saved_with_a_word(
    runtime, folder, monkeypatch, caplog, samples, line, codecs
):
    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "Surround", Surround)
    prompt = workflow(folder, audio=["4", 0])
    prompt["4"] = {"class_type": "Surround", "inputs": {"samples": samples}}
    with caplog.at_level("INFO"):
        result = runtime.run(prompt)
    assert result.ok, result.error
    assert streams(folder / "Ovi_00001_.mp4") == (codecs, 6)
    assert caplog.text.count(line) == 1
    if samples:
        with av.open(str(folder / "Ovi_00001_.mp4")) as file:
            heard = next(file.decode(audio=0)).to_ndarray()
        assert heard.shape[0] == 2
        middle = heard[:, heard.shape[1] // 2 :]
        assert abs(middle).mean() == pytest.approx(0.5 * 0.7071, abs=0.02)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"width": 63}, "images has a width of 63 pixels, and mp4 holds even sizes only"),
        ({"quality": 101}, "quality"),
        ({"fps": 0.0}, "fps"),
        ({"format": "avi"}, "format"),
    ],
)
def test_bad_input_is_answered_by_name(runtime, folder, inputs, message):
    result = runtime.run(workflow(folder, **inputs))
    assert not result.ok
    assert message in result.error
    assert not folder.exists() or names(folder) == []


def test_every_input_has_a_tooltip(runtime):
    schema = runtime.nodes.NODE_CLASS_MAPPINGS["OviSaveVideo"].define_schema()
    assert schema.description
    assert all(field.tooltip for field in [*schema.inputs, *schema.outputs])
