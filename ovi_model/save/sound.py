"""A sound of any rate and up to eight channels becomes mono or stereo at another rate, in sync to
the sample.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import torch
from av.filter import Graph
from torch import Tensor

from ..log import log

HIGHEST_RATE = 10_000_000  # Hz

HALF_POWER = math.sqrt(0.5)  # -3 dB
# Name -> what of it is heard left and right. Source: ITU-R BS.775, downward mixing; a single back
# speaker is divided between both sides, as swresample does.
SPEAKERS = {
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (HALF_POWER, HALF_POWER),
    "LFE": (0.0, 0.0),
    "BL": (HALF_POWER, 0.0),
    "BR": (0.0, HALF_POWER),
    "SL": (HALF_POWER, 0.0),
    "SR": (0.0, HALF_POWER),
    "BC": (0.5, 0.5),
}
# By the number of channels, for AUDIO names no speakers. Source: RFC 9639 (FLAC), section 9.1.3.
LAYOUTS = {
    3: ("3.0", ("FL", "FR", "FC")),
    4: ("quad", ("FL", "FR", "BL", "BR")),
    5: ("5.0", ("FL", "FR", "FC", "BL", "BR")),
    6: ("5.1", ("FL", "FR", "FC", "LFE", "BL", "BR")),
    7: ("6.1", ("FL", "FR", "FC", "LFE", "BC", "SL", "SR")),
    8: ("7.1", ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR")),
}

# Samples of the lower rate that the filter spans: flat to 90 % of what both rates hold.
FILTER_LENGTH = 64
BLOCK = 65536


def is_heard(audio: dict | None) -> bool:
    """Whether there is a sound; one of 0 samples is none, and the log says so."""
    if audio is None:
        return False
    shape = audio["waveform"].shape
    if len(shape) == 3 and shape[2] == 0:
        log.info("audio has 0 samples: it counts as no sound.")
        return False
    return True


def check_sound(waveform: Tensor, sample_rate: int) -> None:
    """Raise ValueError unless a sound [B, C, L] of a rate in Hz can be heard."""
    if waveform.ndim != 3 or 0 in waveform.shape or waveform.shape[1] not in (1, 2, *LAYOUTS):
        raise ValueError(
            f"audio has shape {list(waveform.shape)}: expected [batch, 1 to 8 channels, samples]. "
            "Mix surround sound of more channels down to stereo first."
        )
    if not 0 < sample_rate <= HIGHEST_RATE:
        raise ValueError(
            f"audio has a sample rate of {sample_rate} Hz: expected a number above 0 and up to "
            f"{HIGHEST_RATE}, for example 16000."
        )
    if not all(bound.isfinite() for bound in waveform.aminmax()):
        raise ValueError(
            "audio holds NaN or infinite samples: the audio VAE or the sampler failed; check their "
            "inputs."
        )


def to_stereo(waveform: Tensor) -> Tensor:
    """Mix surround sound [B, C, L] down to [B, 2, L], and say so in the log; mono and stereo stay.

    It is turned down as far as it would be louder than a file can hold.
    """
    if waveform.shape[1] <= 2:
        return waveform
    name, speakers = LAYOUTS[waveform.shape[1]]
    shares = torch.tensor([SPEAKERS[speaker] for speaker in speakers])
    stereo = torch.einsum("cs,bcl->bsl", shares, waveform.detach().cpu().float())
    loudest = float(stereo.abs().max())
    log.info(
        "audio has %d channels, taken as %s: mixed down to stereo, centre and surrounds at -3 dB, "
        "LFE left out%s.",
        len(speakers),
        name,
        f", then turned down by {20 * math.log10(loudest):.1f} dB" if loudest > 1 else "",
    )
    return stereo / max(1.0, loudest)


class Sound(NamedTuple):
    """One sound, mono or stereo."""

    waveform: Tensor  # [1 or 2, samples], -1 to 1
    rate: int  # Hz


def read_sound(name: str, audio: dict | None) -> Sound:
    """Return the one sound of an AUDIO, mixed down to stereo where it has more channels.

    Raises ValueError, with the input's name, unless there is one that can be heard.
    """
    if audio is None:
        raise ValueError(
            f"{name} is empty: the video that was loaded may have no sound. Connect 'Empty Audio' "
            "of the same length in its place."
        )
    waveform, rate = audio["waveform"], int(audio["sample_rate"])
    check_sound(waveform, rate)
    if len(waveform) > 1:
        raise ValueError(
            f"{name} holds {len(waveform)} sounds: give one. Of a batch of clips, take one out of "
            "pictures and sounds first."
        )
    return Sound(to_stereo(waveform)[0].detach().cpu().float(), rate)


def resample(waveform: Tensor, rate: int, new_rate: int, length: int) -> Tensor:
    """Return the first samples of a sound [1 or 2, L] at another rate in Hz: length of them, or
    fewer where it ends.

    No more is read than is heard, and time and memory do not depend on how the rates divide.
    """
    if rate == new_rate:
        return waveform[:, :length].detach().cpu().float()
    ahead = FILTER_LENGTH * math.ceil(max(1, rate / new_rate))
    begin = waveform[:, : math.ceil(length * rate / new_rate) + ahead].detach().cpu().float()
    heard = min(length, math.ceil(waveform.shape[1] * new_rate / rate))
    # Silence behind it brings out what the filter would keep.
    filled = torch.nn.functional.pad(begin, (0, 2 * ahead))
    return torch.cat(list(_resampled(filled, rate, new_rate)), dim=1)[:, :heard]


def _resampled(waveform: Tensor, rate: int, new_rate: int) -> Iterator[Tensor]:
    layout = "stereo" if len(waveform) == 2 else "mono"
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=rate, format="fltp", layout=layout, time_base=Fraction(1, rate)
    )
    filter_ = graph.add("aresample", f"{new_rate}:linear_interp=1:filter_size={FILTER_LENGTH}")
    sink = graph.add("abuffersink")
    source.link_to(filter_)
    filter_.link_to(sink)
    graph.configure()
    for block in [*waveform.split(BLOCK, dim=1), None]:
        graph.push(None if block is None else _audio_frame(block, rate, layout))
        yield from _pulled(graph)


def _audio_frame(block: Tensor, rate: int, layout: str) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(block.contiguous().numpy(), "fltp", layout)
    frame.sample_rate = rate
    return frame


def _pulled(graph: Graph) -> Iterator[Tensor]:
    """What a graph has ready."""
    while True:
        try:
            yield torch.from_numpy(graph.pull().to_ndarray())
        except (BlockingIOError, EOFError):  # wants more; has given all
            return
