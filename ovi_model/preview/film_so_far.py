"""A clip that is made in blocks, shown from its begin to its last finished block while the next one
is made.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

from ..config import (
    AUDIO_CHANNELS,
    FRAME_RATE,
    SAMPLE_RATE,
    SAMPLES_PER_STEP,
    TEMPORAL_COMPRESSION,
)
from ..decode.audio import decode_16k
from ..decode.clip import fit_length
from ..decode.tiled_video import decode_tiled, tile_memory_required
from ..latent.geometry import video_samples
from ..log import log
from ..save.mux import Clip

# Latent frames before a block that are decoded once more, since the decoder looks back, and
# dropped.
FRAMES_BEFORE = 2


@dataclass(frozen=True)
class Player:
    """Decodes finished blocks, and hands the clip so far to a function, which shows it."""

    vae: comfy.sd.VAE
    audio_vae: comfy.sd.VAE | None  # None: a silent film
    show: Callable[[Clip], None]  # runs in a thread of its own

    @property
    def patchers(self) -> list:
        """Return the models that are to be loaded with the one that samples."""
        return [vae.patcher for vae in (self.vae, self.audio_vae) if vae is not None]

    def memory_required(self, shape: torch.Size, frames_per_block: int) -> float:
        """Return the bytes that decoding a block takes besides weights.

        shape: of the latent of the whole picture [B, 48, F, H, W].
        """
        frames = min(shape[2], frames_per_block + FRAMES_BEFORE)
        needed = tile_memory_required(self.vae, (1, shape[1], frames, *shape[3:]))
        if self.audio_vae is not None:
            steps = video_samples(TEMPORAL_COMPRESSION * shape[2]) // SAMPLES_PER_STEP
            latent = (1, AUDIO_CHANNELS, steps)
            sound = self.audio_vae.memory_used_decode(latent, self.audio_vae.vae_dtype)
            needed = max(needed, sound)
        return needed

    def start(self) -> FilmSoFar:
        """Begin a clip."""
        return FilmSoFar(self)


class FilmSoFar:
    """One clip; a context that ends when all of it that was handed on is shown."""

    def __init__(self, player: Player):
        self.player = player
        self.frames: list[Tensor] = []  # [F, H, W, 3], by block
        self.worker = ThreadPoolExecutor(max_workers=1)
        self.showing: Future | None = None
        self.is_over = False

    def __enter__(self) -> FilmSoFar:
        return self

    def __exit__(self, *_error) -> None:
        self._wait()
        self.worker.shutdown()

    def add(self, video: Tensor, audio: Tensor) -> None:
        """Decode what is new, and have all that there is shown once the block before is.

        video [B, 48, F, H, W], as a VAE takes it, and audio [B, 20, L]: what is finished. Of a
        batch, the first clip is shown. A failure is logged, and ends the showing, not the clip.
        """
        self._wait()
        if self.is_over:
            return
        try:
            clip = self._decode(video[:1], audio[:1])
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # noqa: BLE001
            self._give_up(error)
        else:
            self.showing = self.worker.submit(self.player.show, clip)

    def _decode(self, video: Tensor, audio: Tensor) -> Clip:
        frames = TEMPORAL_COMPRESSION * (video.shape[2] - 1) + 1
        there = sum(map(len, self.frames))
        before = -(-there // TEMPORAL_COMPRESSION)  # latent frames
        window = video[:, :, max(0, before - FRAMES_BEFORE) :]
        self.frames.append(decode_tiled(self.player.vae, window, False)[0, there - frames :].cpu())
        rate, pictures = Fraction(FRAME_RATE), torch.cat(self.frames)
        if self.player.audio_vae is None:
            return Clip(pictures, rate)
        waveform = decode_16k(self.player.audio_vae, audio, False)[0]
        return Clip(pictures, rate, fit_length(waveform, video_samples(frames)), SAMPLE_RATE)

    def _wait(self) -> None:
        """Wait until what was handed on is shown."""
        showing, self.showing = self.showing, None
        error = showing.exception() if showing else None
        if error is not None:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        self.is_over = True
        log.warning(
            "Finished blocks are shown no more, the clip goes on: %s", error.__cause__ or error
        )
