"""A folder of clips with captions as latents and conditionings: what is trained on.

Latents are kept in the folder, by the content of their files, so that each is encoded once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import safetensors.torch
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ..config import (
    FRAME_RATE,
    SAMPLE_RATE,
    SAMPLES_PER_STEP,
    SPATIAL_COMPRESSION,
    TEMPORAL_COMPRESSION,
)
from ..file_digest import file_digest
from ..latent.geometry import audio_steps, latent_frames
from ..latent.held_sound import rate_of
from ..latent.latents import with_steps
from ..load.video_vae import check_video_vae
from ..log import log
from ..save.sound import resample
from ..save.whole_file import write_over
from ..text.encode import encode_caption
from ..text.prompt import write_sound
from . import media
from .clips import CAPTION_DROPOUT, FIRST_FRAME, NO_CAPTION

CACHE = ".ovi_latents"  # folder beside the clips
FEWEST = 1 + TEMPORAL_COMPRESSION  # frames in which something can move
NODE = "Ovi Training Clips"


@dataclass(frozen=True)
class Source:
    """A clip in a folder: its picture, its sound, its caption."""

    picture: Path
    sound: Path  # the same file, if it has its own
    caption: Path

    @property
    def is_still(self) -> bool:
        return self.picture.suffix.lower() in media.PICTURES


@dataclass(frozen=True)
class Wanted:
    """What clips of a folder are made into."""

    area: int  # pixels of a frame
    length: int  # frames at most, 4n + 1
    sound_tag: str  # of prompt.SOUND_FORMS
    negatives: tuple[str, str]  # prompts for picture and sound that guidance leads away from
    caption_dropout: float = 0.0  # share of the steps
    first_frame: float = 0.0  # share of the steps


@dataclass
class Dataset:
    """What a folder gave."""

    latents: list[dict] = field(default_factory=list)
    positive: list[list] = field(default_factory=list)
    told: list[str] = field(default_factory=list)  # of single files

    def report(self, folder: Path) -> str:
        """Say what there is, and what of each file is to be known."""
        sizes: dict[str, int] = {}
        for latent in self.latents:
            _, _, frames, height, width = latent["samples"].unbind()[0].shape
            wide, tall = SPATIAL_COMPRESSION * width, SPATIAL_COMPRESSION * height
            size = f"{wide} x {tall} x {(frames - 1) * TEMPORAL_COMPRESSION + 1}"
            sizes[size] = sizes.get(size, 0) + 1
        counts = ", ".join(f"{count} of {size}" for size, count in sorted(sizes.items()))
        first = f"{folder.name}: {len(self.latents)} clips ({counts})"
        return "\n".join([first, *self.told])


def find_sources(folder: Path) -> list[Source]:
    """Return the clips of a folder in the order of their names."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    known = (*media.VIDEOS, *media.PICTURES)
    return [
        Source(path, _sound_of(path), path.with_suffix(".txt"))
        for path in files
        if path.suffix.lower() in known and not path.name.startswith(".")
    ]


def _sound_of(path: Path) -> Path:
    beside = [path.with_suffix(suffix) for suffix in media.SOUNDS]
    return next((sound for sound in beside if sound.is_file()), path)


def read_folder(
    folder: Path, clip, vae, audio_vae, wanted: Wanted, tell: Callable[[int, int], None]
) -> Dataset:
    """Return the clips of a folder; a file that cannot be used is told, and the others stay.

    tell: is given how many of how many files are done.
    Raises ValueError if no file can be used, or a VAE is of another model.
    """
    check_video_vae(vae, NODE)
    rate_of(audio_vae, NODE)
    made, sources = Dataset(), find_sources(folder)
    made.told += _without_clip(folder, sources)
    no_caption = _without_caption(clip, wanted) if wanted.caption_dropout else ()
    of_vaes = _fingerprint(vae) + _fingerprint(audio_vae)
    for number, source in enumerate(sources, start=1):
        try:
            prompt = write_sound(_read_caption(source), wanted.sound_tag)
            latent, told = _encode_once(folder, source, vae, audio_vae, wanted, of_vaes)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            made.told.append(f"{source.picture.name}: left out: {_words(error)}")
        else:
            made.told += [f"{source.picture.name}: {note}" for note in told]
            made.latents.append(latent)
            made.positive.append(_conditioning(clip, prompt, no_caption, wanted))
        tell(number, len(sources))
    for note in made.told:
        log.warning("%s", note)
    if not made.latents:
        found = "; ".join(made.told) or "it is empty"
        raise ValueError(
            f"The folder {folder.name} has no clip that can be trained on: {found}. Put videos "
            f"({', '.join(media.VIDEOS)}), or pictures with sound ({', '.join(media.SOUNDS)}), "
            "there, each with its caption in a .txt of the same name."
        )
    return made


def _without_clip(folder: Path, sources: list[Source]) -> Iterator[str]:
    """Say which captions have no clip."""
    used = {source.caption.name for source in sources}
    for path in sorted(folder.glob("*.txt")):
        if path.name not in used:
            yield f"{path.name}: a caption without a clip"


def _words(error: Exception) -> str:
    if isinstance(error, av.error.FFmpegError):
        return f"it cannot be read ({error.strerror}); copy or export it again"
    return str(error)


def _read_caption(source: Source) -> str:
    if not source.caption.is_file():
        raise ValueError(f"it has no caption; write one into {source.caption.name}")
    try:
        return source.caption.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source.caption.name} is no text in UTF-8; save it as such") from error


def _without_caption(clip, wanted: Wanted) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return what both towers may read in place of a caption: nothing, or their negatives."""
    nothing, *negatives = (encode_caption(clip, text)[0][0] for text in ("", *wanted.negatives))
    return (nothing, nothing), tuple(negatives)


def _conditioning(clip, prompt: str, no_caption: tuple, wanted: Wanted) -> list:
    """Return CONDITIONING of a caption, with what a training is to leave out of it."""
    about = {
        NO_CAPTION: no_caption,
        CAPTION_DROPOUT: wanted.caption_dropout,
        FIRST_FRAME: wanted.first_frame,
    }
    return [[text, {**options, **about}] for text, options in encode_caption(clip, prompt)]


def _encode_once(
    folder: Path, source: Source, vae, audio_vae, wanted: Wanted, of_vaes: str
) -> tuple[dict, list[str]]:
    """Return the latent of a clip, from the folder's cache if it is there, and what is to be known
    of it.
    """
    digest = hashlib.sha256(f"{of_vaes} {wanted.area} {wanted.length}".encode())
    for path in (source.picture, source.sound):
        digest.update(file_digest(path))
    kept = folder / CACHE / f"{digest.hexdigest()[:32]}.safetensors"
    found = _read_kept(kept)
    if found is None:
        found = _encode(source, vae, audio_vae, wanted)
        _keep(kept, *found)
    streams, told = found
    return {"samples": NestedTensor([streams["video"], streams["audio"]])}, told


def _read_kept(path: Path) -> tuple[dict[str, Tensor], list[str]] | None:
    """Return what the cache has of a clip, or None if it has nothing that can be read."""
    try:
        kept = safetensors.torch.load(path.read_bytes())
        told = bytes(kept["told"].tolist()).decode().splitlines()
        return {"video": kept["video"], "audio": kept["audio"]}, told
    except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError):
        return None


def _keep(path: Path, streams: dict[str, Tensor], told: list[str]) -> None:
    """Write a latent to the cache, which may be of no use: a folder that cannot be written."""
    notes = torch.tensor(list("\n".join(told).encode()), dtype=torch.uint8)
    try:
        path.parent.mkdir(exist_ok=True)
        write_over(path, safetensors.torch.save({**streams, "told": notes}))
    except OSError as error:
        log.warning("%s: latents are not kept (%s)", path.parent, error.strerror)


def _encode(source: Source, vae, audio_vae, wanted: Wanted) -> tuple[dict[str, Tensor], list[str]]:
    """Encode the picture and the sound of a clip of the length that both have."""
    most_seconds = wanted.length / FRAME_RATE
    frames, lasts = media.read_frames(source.picture, wanted.area, wanted.length)
    sound = media.read_audio(source.sound, most_seconds)
    told = []
    if source.is_still:
        if sound is None or source.sound == source.picture:
            raise ValueError(f"it is a picture without sound; put {source.picture.stem}.wav beside")
        seconds = sound.waveform.shape[1] / sound.rate
        frames = frames[:1].expand(max(1, round(seconds * FRAME_RATE)), -1, -1, -1)[: wanted.length]
    elif lasts > most_seconds + 1:
        told.append(
            f"it lasts {lasts:.1f} s: its first {most_seconds:.2f} s are used. Cut it into clips, "
            "each with its caption, to use more"
        )
    if len(frames) < FEWEST:
        raise ValueError(
            f"it has {len(frames)} frame{'s' * (len(frames) > 1)} at {FRAME_RATE} a second; a clip "
            f"needs at least {FEWEST}"
        )
    frames = frames[: (len(frames) - 1) // TEMPORAL_COMPRESSION * TEMPORAL_COMPRESSION + 1]
    steps = audio_steps(latent_frames(len(frames)))
    if sound is None:
        told.append("it has no sound: silence is trained")
        sound = media.Heard(torch.zeros(1, 1), SAMPLE_RATE, 1)
    elif not sound.waveform.any():
        told.append("its sound is silent all through")
    if sound.channels > 2:
        told.append(f"its sound of {sound.channels} channels is mixed down to one")
    waveform = _of_steps(sound.waveform, sound.rate, steps, rate_of(audio_vae, NODE))
    video = vae.encode(frames)
    audio = with_steps(audio_vae.encode(waveform[..., None]), steps)
    return {
        "video": video.detach().cpu().float().contiguous(),
        "audio": audio.detach().cpu().float().contiguous(),
    }, told


def _of_steps(waveform: Tensor, rate: int, steps: int, vae_rate: int) -> Tensor:
    """Return mono sound [1, samples] as long as so many steps, at the rate of a VAE: at first the
    model's own, which is all it knows.
    """
    wanted = steps * SAMPLES_PER_STEP
    known = resample(waveform, rate, SAMPLE_RATE, wanted)
    known = torch.nn.functional.pad(known, (0, wanted - known.shape[1]))
    return resample(known, SAMPLE_RATE, vae_rate, round(wanted * vae_rate / SAMPLE_RATE))


def _fingerprint(vae) -> str:
    """Return what tells the weights of one VAE from those of another."""
    digest = hashlib.sha256()
    for name, weight in vae.first_stage_model.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if weight.is_floating_point() and not weight.is_meta:
            digest.update(weight.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()
