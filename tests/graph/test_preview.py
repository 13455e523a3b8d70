"""OviPreview in ComfyUI's own executor: a sheet for each clip, shown in the node, handed on."""

import math
import sys
from pathlib import Path

import comfy.utils
import numpy as np
import pytest
import torch
from media import decode
from PIL import Image

pytestmark = pytest.mark.graph


class ClipWithAVoice:
    """Two clips of twelve frames; in the second somebody speaks."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
    RETURN_TYPES = ("IMAGE", "AUDIO")
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self):
        time = torch.arange(8000) / 16000
        voice = sum(torch.sin(2 * math.pi * 200 * n * time) / n for n in range(1, 20)) / 3
        waveform = torch.stack([torch.zeros(8000), voice])[:, None]
        return torch.rand(24, 48, 64, 3), {"waveform": waveform, "sample_rate": 16000}


@pytest.fixture
def clips(runtime, monkeypatch):
    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "ClipWithAVoice", ClipWithAVoice)
    return {"1": {"class_type": "ClipWithAVoice", "inputs": {}}}


def preview(images, audio=None, fps=24.0):
    inputs = {"images": images, "fps": fps} | ({"audio": audio} if audio else {})
    return {"class_type": "OviPreview", "inputs": inputs}


def test_each_clip_has_a_sheet_and_speech_is_marked(runtime, clips):
    result = runtime.run(
        clips
        | {
            "2": preview(["1", 0], ["1", 1]),
            "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
        }
    )
    assert result.ok, result.error
    shown = result.outputs["2"]["images"]
    assert len(shown) == 2
    assert len(result.outputs["3"]["images"]) == 2
    folder = Path(runtime.folder_paths.get_temp_directory())
    silent, spoken = (
        Image.open(folder / entry["subfolder"] / entry["filename"]) for entry in shown
    )
    assert silent.size == spoken.size
    speech = (0xE0, 0xA0, 0x30)
    colours = [{pixel for _, pixel in sheet.getcolors(2**22)} for sheet in (silent, spoken)]
    assert [speech in found for found in colours] == [False, True]


def test_each_clip_can_be_played_and_the_pictures_are_told_as_ever(runtime, clips):
    result = runtime.run(clips | {"2": preview(["1", 0], ["1", 1], fps=12.0)})
    assert result.ok, result.error
    told = result.outputs["2"]
    assert set(told) == {"images", "animated", "ovi_clips"}
    assert all(set(entry) == {"filename", "subfolder", "type"} for entry in told["images"])
    assert len(told["ovi_clips"]) == len(told["images"]) == 2
    folder = Path(runtime.folder_paths.get_temp_directory())
    for entry in told["ovi_clips"]:
        found = decode(folder / entry["subfolder"] / entry["filename"])
        assert (entry["type"], entry["seconds"]) == ("temp", 1.0)
        assert found.frames.shape[:3] == (12, 48, 64)
        assert found.sound is not None


def test_a_clip_has_no_name_that_one_before_the_last_start_had(runtime, clips, monkeypatch):
    module = sys.modules[f"{runtime.package.__name__}.nodes.output_folder"]
    folder = Path(runtime.folder_paths.get_temp_directory())
    names = []
    for start in ("earlier", "later"):
        monkeypatch.setattr(module, "THIS_START", start)
        result = runtime.run(clips | {"2": preview(["1", 0], ["1", 1])})
        names += [entry["filename"] for entry in result.outputs["2"]["ovi_clips"]]
        for name in names:
            (folder / name).unlink(missing_ok=True)
        clips["1"]["inputs"] = {"start": start}  # run again
    assert len(set(names)) == 4


def test_a_clip_that_cannot_be_played_is_a_picture(runtime, clips, monkeypatch, caplog):
    module = sys.modules[f"{runtime.package.__name__}.nodes.preview"]

    def fail(*_given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_for_page", fail)
    result = runtime.run(clips | {"2": preview(["1", 0], ["1", 1])})
    assert result.ok, result.error
    assert len(result.outputs["2"]["images"]) == 2
    assert result.outputs["2"]["ovi_clips"] == []
    assert caplog.text.count("cannot play the clip: [Errno 28] No space left on device") == 1


def test_a_clip_without_sound_has_a_sheet(runtime, clips):
    result = runtime.run(clips | {"2": preview(["1", 0])})
    assert result.ok, result.error
    assert len(result.outputs["2"]["images"]) == len(result.outputs["2"]["ovi_clips"]) == 1


class LongSound:
    """A voice, or no sample, at a rate that divides badly, on one to eight channels."""

    INPUT_TYPES = classmethod(
        lambda cls: {  # noqa: ARG005
            "required": {"seconds": ("INT", {"max": 10**6}), "channels": ("INT", {})}
        }
    )
    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, seconds, channels):
        rate = 22051
        time = torch.arange(min(seconds, 1) * rate) / rate
        voice = sum(torch.sin(2 * math.pi * 200 * n * time) / n for n in range(1, 20)) / 3
        waveform = voice.repeat(max(seconds, 1)).expand(1, channels, -1)
        return ({"waveform": waveform, "sample_rate": rate},)


def long_preview(clips, seconds, channels=1, frames=24, fps=24.0):
    images = {"width": 64, "height": 32, "batch_size": frames, "color": 0}
    return clips | {
        "4": {"class_type": "EmptyImage", "inputs": images},
        "5": {"class_type": "LongSound", "inputs": {"seconds": seconds, "channels": channels}},
        "2": preview(["4", 0], ["5", 0], fps),
    }


@pytest.fixture
def long_sounds(runtime, monkeypatch):
    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "LongSound", LongSound)
    return {}


def drawn(runtime, result):
    """The sheet below its header, which tells the sound's length."""
    (shown,) = result.outputs["2"]["images"]
    folder = Path(runtime.folder_paths.get_temp_directory())
    sheet = Image.open(folder / shown["subfolder"] / shown["filename"])
    return torch.from_numpy(np.asarray(sheet).copy())[60:]


def test_only_the_clips_part_of_a_sound_is_looked_at(runtime, long_sounds, monkeypatch):
    listened = []
    module = sys.modules[f"{runtime.package.__name__}.nodes.preview"]
    find_speech = module.find_speech

    def listen(waveform, *rest):
        listened.append(waveform.shape)
        return find_speech(waveform, *rest)

    monkeypatch.setattr(module, "find_speech", listen)
    sounds = ((1,), (600,), (30, 6))
    short, long, _ = (runtime.run(long_preview(long_sounds, *sound)) for sound in sounds)
    assert listened == [(1, 22051), (1, 22051), (2, 22051)]
    assert torch.equal(drawn(runtime, short), drawn(runtime, long))


def test_progress_is_told_and_an_interrupt_stops_it(runtime, long_sounds, monkeypatch):
    told = []
    update = comfy.utils.ProgressBar.update_absolute

    def stop_in_the_middle(self, value, *rest):
        told.append(value)
        if 20 < value < 50 and stops:
            runtime.interrupt()
        update(self, value, *rest)

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", stop_in_the_middle)
    stops = False
    result = runtime.run(long_preview(long_sounds, 4, frames=96))
    assert result.ok, result.error
    assert told[0] == 0
    assert told == sorted(told)
    assert len(set(told)) > 6
    assert told[-1] == 100

    told.clear()
    stops = True
    result = runtime.run(long_preview(long_sounds, 4, frames=96))
    assert result.interrupted
    assert 20 < told[-1] < 50


def test_no_sample_is_no_sound(runtime, long_sounds, caplog):
    with caplog.at_level("INFO"):
        silent = runtime.run(long_preview(long_sounds, 0))
    assert silent.ok, silent.error
    assert caplog.text.count("audio has 0 samples: it counts as no sound") == 1


def test_what_cannot_be_shown_is_named(runtime, clips):
    clips["4"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 32, "batch_size": 5, "color": 0},
    }
    result = runtime.run(clips | {"2": preview(["4", 0], ["1", 1])})
    assert "do not divide into clips" in result.error
