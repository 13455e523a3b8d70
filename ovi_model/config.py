"""Every number of the model and of its published variants.

Source: character-ai/Ovi, ovi/configs/model/dit/{video,audio}.json and ovi/ovi_fusion_engine.py.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD_DIM = 128
TEXT_LENGTH = 512
ROPE_THETA = 10000

VIDEO_CHANNELS = 48
AUDIO_CHANNELS = 20

FRAME_RATE = 24
SAMPLE_RATE = 16000

# Samples of one audio step: 32 ms.
SAMPLES_PER_STEP = 512

# Pixels and frames for one of the Wan 2.2 video latent; the model's patches are 2 x 2 of these.
SPATIAL_COMPRESSION = 16
TEMPORAL_COMPRESSION = 4
PIXEL_STEP = 32

# A 5 s clip has 31 latent frames, so 30 intervals between them, and 157 audio steps.
AUDIO_STEPS_PER_INTERVAL = 157 / 30

# Audio positions times this are video positions: both towers turn on one clock.
AUDIO_ROPE_SCALE = 0.19676

# Latent frames from one reference to the next on that clock; the clip lies before the first.
# Source: Guoxu1233/DreamID-Omni.
REFERENCE_INTERVAL = 150

# Of clips that are made in blocks: audio positions times this are video positions, and the audio
# steps of each latent frame. Source: fudan-generative-vision/Hallo-Live.
STREAMING_ROPE_SCALE = 0.2
STREAMING_STEPS = 5


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of one diffusion transformer; all but the last two can be read from its weights."""

    dim: int
    ffn_dim: int
    num_layers: int
    in_dim: int
    out_dim: int
    text_dim: int
    freq_dim: int
    num_heads: int
    text_length: int = TEXT_LENGTH
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class VideoTowerConfig(TowerConfig):
    """The tower of Wan 2.2 TI2V-5B; `patch_size` is (frames, height, width) in the latent."""

    patch_size: tuple[int, int, int] = (1, 2, 2)


@dataclass(frozen=True)
class AudioTowerConfig(TowerConfig):
    """The audio tower; `patch_hidden` is the width inside its convolutional patch embedding."""

    patch_hidden: int = 8192
    patch_kernel: int = 7


@dataclass(frozen=True)
class Variant:
    """A published checkpoint: the area it was trained at in pixels, its longest clip in frames, how
    it marks sound.
    """

    file: str
    area: int
    frames: int
    sound_tag: str


VARIANTS = {
    "720x720_5s": Variant("model.safetensors", 720 * 720, 121, "<AUDCAP>"),
    "960x960_5s": Variant("model_960x960.safetensors", 960 * 960, 121, "Audio:"),
    "960x960_10s": Variant("model_960x960_10s.safetensors", 960 * 960, 241, "Audio:"),
}
