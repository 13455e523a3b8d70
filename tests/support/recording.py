"""A recording for workflows that load one."""

import wave
from pathlib import Path

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
