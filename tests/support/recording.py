"""A recording, a video and a folder of clips for workflows that load one."""

import wave
from pathlib import Path

import av
import numpy as np

RATE = 22050  # Hz


def write_tone(path: Path, hertz: float, seconds: float, channels: int = 1) -> None:
    """Write a tone, the same in all channels, 16 bits wide."""
    tone = np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((0.5 * 32767 * tone).astype("<i2").repeat(channels).tobytes())


def write_video(path: Path, shape: tuple[int, int, int]) -> None:
    """Write frames [F, H, W] of a gradient that moves, 24 a second, without sound."""
    frames, height, width = shape
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            columns = (np.arange(width) + 4 * index) % width * (200 // width)
            picture = np.broadcast_to(columns[None, :, None], (height, width, 3)).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def write_training_clips(folder: Path, frames: int = 25, side: int = 64) -> None:
    """Write two clips of a picture, a sound and a caption to a folder that is made."""
    folder.mkdir(parents=True)
    for name, hertz in (("low", 220), ("high", 880)):
        write_video(folder / f"{name}.mp4", (frames, side, side))
        write_tone(folder / f"{name}.wav", hertz, seconds=frames / 24)
        caption = f"Stripes move to the left. Audio: a {name} tone."
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
