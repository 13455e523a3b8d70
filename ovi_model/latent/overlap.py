"""What a film and the clip after it have in common, in frames, audio steps and samples."""

from __future__ import annotations

from torch import Tensor

from ..config import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_STEP, TEMPORAL_COMPRESSION

# The end of the film that both clips show: 4 latent frames, and the 16 audio steps that they last.
# Measured on the miniature: 5 frames continue a third of what 13 do.
HELD_FRAMES, HELD_LATENT_FRAMES, HELD_STEPS = 13, 4, 16
# Audio steps of the film that are encoded before those: half a second, for the VAE's receptive
# field.
STEPS_BEFORE = 16
SECONDS_BEFORE = STEPS_BEFORE * SAMPLES_PER_STEP / SAMPLE_RATE
# Seconds by which the sound that Ovi makes may end before its picture, and a level that is silence
# then, also where it was saved and loaded.
MOST_SHORT, SILENCE = 0.056, 0.001


def sample_at(frame: int, rate: int) -> int:
    """Return the sample that a frame of a film begins with, in a sound of a rate in Hz: the nearest
    one, later where two are.
    """
    return (2 * frame * rate + FRAME_RATE) // (2 * FRAME_RATE)


def length_of(seconds: float) -> int:
    """Return the frames of a clip that adds so many seconds to a film, to the nearest sixth of one.

    Raises ValueError for less than that.
    """
    intervals = round(seconds * FRAME_RATE / TEMPORAL_COMPRESSION)
    if intervals < 1:
        raise ValueError(
            f"seconds is {seconds:g}; a clip goes on for at least {TEMPORAL_COMPRESSION} frames, "
            f"{TEMPORAL_COMPRESSION / FRAME_RATE:.3f} s."
        )
    return HELD_FRAMES + intervals * TEMPORAL_COMPRESSION


def heard_until(sound: Tensor, rate: int) -> int:
    """Return where a film's sound [C, samples] ends: before its silence, of MOST_SHORT at most."""
    earliest = max(0, sound.shape[1] - round(MOST_SHORT * rate))
    loud = (sound[:, earliest:].abs().amax(dim=0) > SILENCE).nonzero()
    return earliest + (int(loud.max()) + 1 if len(loud) else 0)
