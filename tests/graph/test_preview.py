"""OviPreview in ComfyUI's own executor: a sheet for each clip, shown in the node, handed on."""

import math
from pathlib import Path

import pytest
import torch
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


def test_a_clip_without_sound_has_a_sheet(runtime, clips):
    result = runtime.run(clips | {"2": preview(["1", 0])})
    assert result.ok, result.error
    assert len(result.outputs["2"]["images"]) == 1


def test_what_cannot_be_shown_is_named(runtime, clips):
    clips["4"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 32, "batch_size": 5, "color": 0},
    }
    result = runtime.run(clips | {"2": preview(["4", 0], ["1", 1])})
    assert "do not divide into clips" in result.error
