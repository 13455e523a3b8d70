"""The file formats a clip is saved in, and the encoders that fill them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import av

# Hz.
AAC_RATES = (
    96000,
    88200,
    64000,
    48000,
    44100,
    32000,
    24000,
    22050,
    16000,
    12000,
    11025,
    8000,
    7350,
)
FALLBACK_RATE = 48000
# ComfyUI's page reads a dropped file's first 2 MB.
KEEP_WORKFLOW_IN_FRONT = {"movflags": "use_metadata_tags+faststart"}


def _crf(worst: int, best: int, quality: int) -> str:
    return str(round(worst + (best - worst) * quality / 100))


def _x264_options(quality: int) -> dict[str, str]:
    return {"crf": _crf(50, 10, quality)}


def _quick_x264_options(quality: int) -> dict[str, str]:
    return {**_x264_options(quality), "preset": "veryfast"}


def _vp9_options(quality: int) -> dict[str, str]:
    return {"crf": _crf(60, 15, quality), "deadline": "good", "cpu-used": "5", "row-mt": "1"}


def _prores_options(quality: int) -> dict[str, str]:
    """Four profiles: Proxy from 0, LT from 25, Standard from 50, HQ from 75."""
    return {"profile": str(min(quality // 25, 3)), "vendor": "apl0"}


@dataclass(frozen=True)
class Container:
    """One file format and the encoders that fill it.

    video_options: quality 0 (smallest) to 100 (best) -> encoder options.
    picture_format: the RGB layout handed to the converter.
    size_step: width and height must be multiples, in pixels.
    audio_rates: Hz the audio encoder keeps; any other is resampled to 48,000 (empty: keeps all).
    is_streamable: browsers play it and stock video nodes repack it.
    longest_side: of a picture, in pixels, which is made smaller, and even (None: stays as it is).
    """

    suffix: str
    video_codec: str
    pixel_format: str
    video_options: Callable[[int], dict[str, str]]
    audio_codec: str
    sample_format: str
    audio_rates: tuple[int, ...] = ()
    picture_format: str = "rgb24"
    size_step: int = 1
    is_streamable: bool = True
    longest_side: int | None = None
    file_options: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.suffix[1:]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width in pixels at which a picture is stored."""
        if self.longest_side is None:
            return height, width
        scale = min(1, self.longest_side / max(height, width))
        return max(2, 2 * round(scale * height / 2)), max(2, 2 * round(scale * width / 2))

    def audio_rate(self, sample_rate: int) -> int:
        """Return the Hz at which a sound of a sample rate is stored."""
        keeps = not self.audio_rates or sample_rate in self.audio_rates
        return sample_rate if keeps else FALLBACK_RATE


CONTAINERS = {
    "mp4": Container(
        ".mp4",
        "libx264",
        "yuv420p",
        _x264_options,
        "aac",
        "fltp",
        AAC_RATES,
        size_step=2,
        file_options=KEEP_WORKFLOW_IN_FRONT,
    ),
    "webm": Container(".webm", "libvpx-vp9", "yuv420p", _vp9_options, "libopus", "flt", (48000,)),
    "mov": Container(
        ".mov",
        "prores_ks",
        "yuv422p10le",
        _prores_options,
        "pcm_s24le",
        "s32",
        picture_format="rgb48le",
        is_streamable=False,
        file_options=KEEP_WORKFLOW_IN_FRONT,
    ),
}

# What a page plays in a node, not what is kept: of any size, small and soon written.
FOR_PAGE = replace(
    CONTAINERS["mp4"], video_options=_quick_x264_options, size_step=1, longest_side=512
)


def check_encoders(container: Container, with_sound: bool) -> None:
    """Raise RuntimeError naming an encoder that PyAV lacks, and the formats it can write."""
    missing = _missing_encoders(container, with_sound)
    if missing:
        others = [
            name for name, other in CONTAINERS.items() if not _missing_encoders(other, with_sound)
        ]
        advice = (
            f"choose format {' or '.join(others)}"
            if others
            else "reinstall it with 'pip install av'"
        )
        raise RuntimeError(
            f"format {container.name} needs the encoder {missing[0]}, which this PyAV lacks: "
            f"{advice}."
        )


def _missing_encoders(container: Container, with_sound: bool) -> list[str]:
    names = [container.video_codec] + [container.audio_codec] * with_sound
    return [name for name in names if not _has_encoder(name)]


def _has_encoder(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except ValueError:
        return False
    return True
