"""Seconds of a clip to the latent frames and audio steps that lie in them."""

from __future__ import annotations

import math

from ..config import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_STEP, TEMPORAL_COMPRESSION

# Seconds, half of what the inputs of nodes step by: 1.042 means frame 25, which begins at 1.04167.
TOLERANCE = 0.0005


def frames_of(latent_length: int) -> int:
    """Latent frames of a clip -> its frames."""
    return (latent_length - 1) * TEMPORAL_COMPRESSION + 1


def seconds_of(latent_length: int) -> float:
    """Latent frames of a clip -> the seconds that its picture lasts."""
    return frames_of(latent_length) / FRAME_RATE


def frames_in(latent_frame: int) -> range:
    """Return the frames that one latent frame stands for: the first is one frame, others are four.

    Source: Wan 2.2's causal VAE.
    """
    stop = frames_of(latent_frame + 1)
    return range(max(0, stop - TEMPORAL_COMPRESSION), stop)


def holding(frame: int) -> int:
    """Return the latent frame that a frame is part of."""
    return -(-frame // TEMPORAL_COMPRESSION)


def latent_frames_within(start: int, stop: int) -> range:
    """Return the latent frames whose frames all lie in [start, stop), counted in frames."""
    first = holding(start)
    first += frames_in(first).start < start
    last = holding(max(0, stop - 1))
    last -= frames_in(last).stop > stop
    return range(first, max(first, last + 1))


def picture_within(start: float, end: float, latent_length: int) -> range:
    """Return the latent frames that lie as a whole in the seconds [start, end)."""
    first = math.ceil((start - TOLERANCE) * FRAME_RATE)
    stop = math.floor((end + TOLERANCE) * FRAME_RATE)
    return latent_frames_within(max(0, first), min(frames_of(latent_length), stop))


def sound_within(start: float, end: float, latent_length: int, steps: int) -> range:
    """Return the audio steps that lie as a whole in the seconds [start, end).

    The last step ends with the clip, from which it differs by less than its own length.
    """
    rate = SAMPLE_RATE / SAMPLES_PER_STEP
    first = max(0, math.ceil((start - TOLERANCE) * rate))
    is_to_the_end = end + TOLERANCE >= seconds_of(latent_length)
    stop = steps if is_to_the_end else min(steps, math.floor((end + TOLERANCE) * rate))
    return range(first, max(first, stop))


def check_span(start: float, end: float, latent_length: int) -> float:
    """Return where a span in seconds ends; an end of 0 is the clip's.

    Raises ValueError unless 0 <= start < end and both lie in the clip.
    """
    seconds = seconds_of(latent_length)
    numbers = math.isfinite(start) and math.isfinite(end)
    if not numbers or start < 0 or max(start, end) > seconds + TOLERANCE:
        raise ValueError(
            f"The span from {start:g} to {end:g} s is outside the clip, which lasts {seconds:.3f} "
            "s. Choose start and end between 0 and that; an end of 0 is the end of the clip."
        )
    stop = seconds if end == 0 else min(end, seconds)
    if start >= stop:
        raise ValueError(
            f"The span starts at {start:g} s and ends at {stop:g} s: start must be before end. An "
            f"end of 0 is the end of the clip, {seconds:.3f} s."
        )
    return stop
