"""What cannot be saved is said in a sentence; nothing is lost, replaced or left half-written."""

import pytest
import torch
from comfyui_ovi.ovi_model.save import containers, mux
from media import decode, make_audio, save

FORMATS = list(containers.CONTAINERS)


@pytest.mark.parametrize("failing_call", [1, 5, 10])
@pytest.mark.parametrize("format_name", FORMATS)
def test_an_interrupt_leaves_no_file_and_the_next_run_works(tmp_path, format_name, failing_call):
    class Interrupted(BaseException):
        pass

    calls = []

    def on_frame():
        calls.append(None)
        if len(calls) == failing_call:
            raise Interrupted

    images = torch.rand(10, 32, 32, 3)
    with pytest.raises(Interrupted):
        save(tmp_path, format_name, images, on_frame=on_frame)
    assert len(calls) == failing_call
    assert list(tmp_path.iterdir()) == []
    assert len(decode(save(tmp_path, format_name, images)).frames) == 10


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match=r"the video could not be saved: .*absent.clip\.mp4"):
        save(tmp_path / "absent", "mp4", torch.zeros(2, 32, 32, 3))


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, format_name):
    resource = pytest.importorskip(
        "resource", reason="file size limits stand in for a full disk where there are any"
    )
    images = torch.rand(24, 128, 128, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard))
    try:
        with pytest.raises(OSError, match=r"the video could not be saved: .*clip\."):
            save(tmp_path, format_name, images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("height", [33, 64])
def test_odd_sizes(tmp_path, height):
    images = torch.zeros(2, height, 97 - height, 3)
    for format_name in ("webm", "mov"):
        assert decode(save(tmp_path, format_name, images)).frames.shape == (
            2,
            height,
            97 - height,
            3,
        )
    side, size = ("height", 33) if height == 33 else ("width", 33)
    message = (
        f"{side} of {size} pixels, and mp4 holds even sizes only: scale or crop it to 32 or 34, or "
        "save as webm or mov"
    )
    with pytest.raises(ValueError, match=message):
        save(tmp_path, "mp4", images)


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        (
            {"libx264"},
            "format mp4 needs the encoder libx264, which this PyAV lacks: choose format webm or "
            "mov",
        ),
        (
            {"aac", "prores_ks"},
            "format mp4 needs the encoder aac, which this PyAV lacks: choose format webm",
        ),
        (
            {"libx264", "libvpx-vp9", "prores_ks"},
            "encoder libx264, which this PyAV lacks: reinstall it with 'pip install av'",
        ),
    ],
)
def test_a_missing_encoder_is_named_with_a_way_out(tmp_path, monkeypatch, lacking, message):
    has_encoder = containers._has_encoder
    monkeypatch.setattr(
        containers, "_has_encoder", lambda name: name not in lacking and has_encoder(name)
    )
    with pytest.raises(RuntimeError, match=message):
        save(tmp_path, "mp4", torch.zeros(2, 32, 32, 3), audio=make_audio(100))
    assert list(tmp_path.iterdir()) == []


def test_encoders_are_looked_up_in_pyav():
    assert containers._has_encoder("libx264")
    assert not containers._has_encoder("no_such_encoder")


def test_frames_that_are_not_numbers(tmp_path):
    images = torch.zeros(4, 32, 32, 3)
    images[2, 0, 0, 1] = float("nan")
    with pytest.raises(ValueError, match="frame 2 of images holds NaN or infinite values"):
        save(tmp_path, "mp4", images)
    assert list(tmp_path.iterdir()) == []


FRAMES = torch.zeros(4, 32, 32, 3)


@pytest.mark.parametrize(
    ("images", "fps", "audio", "message"),
    [
        (
            torch.zeros(0, 32, 32, 3),
            24,
            None,
            r"images has shape \[0, 32, 32, 3\], which is empty: connect",
        ),
        (
            torch.zeros(32, 32, 3),
            24,
            None,
            r"images has shape \[32, 32, 3\]: expected \[frames, height",
        ),
        (torch.zeros(4, 32, 32, 2), 24, None, r"images has shape \[4, 32, 32, 2\]: expected"),
        (FRAMES, 0, None, "fps is 0: expected a number of frames a second above 0"),
        (FRAMES, float("nan"), None, "fps is nan: expected"),
        (
            FRAMES,
            24,
            make_audio(100, channels=9),
            r"audio has shape \[1, 9, 100\]: expected .* 1 to 8 channels.* Mix surround sound",
        ),
        (FRAMES, 24, make_audio(100, channels=0), r"audio has shape \[1, 0, 100\]: expected"),
        (
            FRAMES,
            24,
            {"waveform": torch.zeros(1, 100), "sample_rate": 16000},
            r"audio has shape \[1, 100\]: expected",
        ),
        (FRAMES, 24, make_audio(100, sample_rate=2**31), "audio has a sample rate of 2147483648"),
        (FRAMES, 24, make_audio(100, batch=0), r"audio has shape \[0, 1, 100\]: expected"),
        (FRAMES, 24, make_audio(100, sample_rate=0), "audio has a sample rate of 0 Hz"),
        (
            FRAMES,
            24,
            make_audio(100, batch=3),
            "images has 4 frames and audio a batch of 3 sounds: the frames do not",
        ),
        (
            FRAMES,
            24,
            {"waveform": torch.full((1, 1, 9), float("inf")), "sample_rate": 16000},
            "audio holds NaN or inf",
        ),
    ],
)
def test_what_cannot_be_saved_is_said(images, fps, audio, message):
    with pytest.raises(ValueError, match=message):
        mux.split_clips(images, fps, audio)
