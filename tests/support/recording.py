"""A recording for workflows that load one."""

import wave
from pathlib import Path

import numpy as np

RATE = 22050  # Hz


def write_tone(path: Path, hertz: float, seconds: float) -> None:
    """Write a tone, mono and 16 bits wide."""
    tone = np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((0.5 * 32767 * tone).astype("<i2").tobytes())
