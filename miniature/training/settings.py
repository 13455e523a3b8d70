"""Every number of the miniature's training."""

from __future__ import annotations

from dataclasses import dataclass

# Clips in training are of seeds below this; every other seed was never seen.
TRAINING_SEEDS = 10_000_000


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one part is trained."""

    steps: int
    batch: int
    rate: float  # of AdamW, at its highest
    muon: float = 0.0  # rate of Muon for the matrices of blocks; 0: AdamW for all
    decay: float = 0.01
    ema: float = 0.995
    clip: float = 1.0
    seed: int = 0


# One after the other, each with its own rise and fall of the learning rate.
Schedules = tuple[Schedule, ...]


@dataclass(frozen=True)
class VideoVAESettings:
    """Wan 2.2's video VAE."""

    dim: int = 16
    clips: int = 600  # rendered once and kept
    window: int = 9  # frames
    thing: float = 10.0  # weight of the thing's pixels, added to the 1 of all
    noise: float = 0.1  # width of the posterior, fixed
    prior: float = 1e-4  # weight of mean(mu^2)
    schedule: Schedule = Schedule(steps=900, batch=16, rate=2e-3, muon=3e-3)


@dataclass(frozen=True)
class AudioVAESettings:
    """MMAudio's VAE of mel bands."""

    hidden_dim: int = 32
    clips: int = 1500
    audible: float = 20.0  # weight of bands within 40 dB of the loudest, added to the 1 of all
    noise: float = 0.1
    prior: float = 1e-4
    schedules: Schedules = (
        Schedule(steps=1500, batch=16, rate=2e-3),
        Schedule(steps=2000, batch=16, rate=2e-3, seed=1_000_000),
        Schedule(steps=4000, batch=16, rate=2e-3, seed=2_000_000),
    )


@dataclass(frozen=True)
class VocoderSettings:
    """BigVGAN."""

    channels: int = 128
    window: int = 20  # mel frames
    noise: float = 0.02  # width of what is added to mel bands, log10
    quieter: float = 0.5  # what sounds are turned down by at most, log10
    schedules: Schedules = (
        Schedule(steps=850, batch=8, rate=2e-3, muon=4e-3),
        Schedule(steps=600, batch=8, rate=1.5e-3, muon=3e-3, seed=1_000_000),
        Schedule(steps=1500, batch=8, rate=2e-3, muon=4e-3, seed=2_000_000),
        Schedule(steps=800, batch=8, rate=2e-3, muon=4e-3, seed=3_000_000),
    )


@dataclass(frozen=True)
class TextSettings:
    """umT5, trained to guess hidden words of captions."""

    vocabulary: int = 400
    width: int = 64
    ffn: int = 128
    head: int = 16
    heads: int = 4
    layers: int = 2
    hidden: float = 0.25  # share of tokens
    schedule: Schedule = Schedule(steps=600, batch=64, rate=3e-3)


@dataclass(frozen=True)
class TowersSettings:
    """The twin DiT: each tower alone, then both."""

    dim: int = 256
    ffn: int = 384
    layers: int = 4
    patch_hidden: int = 104
    clips: int = 3240
    shift: float = 3.0  # of the timestep, towards noise
    drop_text: float = 0.15
    first_frame: float = 0.35  # share of clips whose first frame is given
    audio: Schedule = Schedule(steps=900, batch=64, rate=1e-3, muon=1e-3, ema=0.998)
    video: Schedule = Schedule(steps=600, batch=64, rate=1e-3, muon=1e-3, ema=0.998)
    joint: Schedules = (
        Schedule(steps=1150, batch=64, rate=1e-3, muon=1e-3, ema=0.998),
        Schedule(steps=650, batch=64, rate=1e-3, muon=1.5e-3, ema=0.998, seed=1_000_000),
        Schedule(steps=3800, batch=64, rate=1e-3, muon=1e-3, ema=0.998, seed=2_000_000),
        Schedule(steps=1800, batch=64, rate=1e-3, muon=1e-3, ema=0.998, seed=3_000_000),
        Schedule(steps=700, batch=64, rate=6e-4, muon=6e-4, ema=0.998, seed=4_000_000),
    )


@dataclass(frozen=True)
class ReferencesSettings:
    """A LoRA by which the twin DiT reads references."""

    rank: int = 32
    clips: int = 1620
    each: int = 64  # references of a thing with a colour, or a pitch
    dropped: float = 0.15  # share of each that is zeros, for guidance
    cut: float = 0.75  # share of the pictures that are cut to the thing
    schedules: Schedules = (
        Schedule(steps=1197, batch=32, rate=2e-3, decay=0.0, ema=0.99),
        Schedule(steps=1300, batch=32, rate=2e-3, decay=0.0, ema=0.99, seed=1_000_000),
    )


VIDEO_VAE, AUDIO_VAE, VOCODER = VideoVAESettings(), AudioVAESettings(), VocoderSettings()
TEXT, TOWERS, REFERENCES = TextSettings(), TowersSettings(), ReferencesSettings()
