"""Frames of a growing film in a file: tensors that other nodes take, of which the computer's memory
holds no more than is looked at.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor

from ..latent.pictures import to_rgb

# Attribute of a tensor that shows all frames of a file.
FILE = "ovi_frames_file"


def join_on_disk(film: Tensor, own: Tensor, folder: Path) -> Tensor:
    """Return frames [N + M, H, W, C] of a film [N, ...] and what comes after it, in a file of a
    folder.

    A film that this function returned before grows in its file, unless another clip was joined to
    it there; it stays as it is. Files go when nothing shows them any more.
    Raises OSError with the file where it cannot be written.
    """
    file = getattr(film, FILE, None)
    if file is None or file.frames != len(film):
        file = _FramesFile(folder, film.shape[1:3])
        file.append(film)
    file.append(own)
    return file.show()


class _FramesFile:
    """Frames one after the other, RGB in float32."""

    def __init__(self, folder: Path, shape: torch.Size) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=folder, prefix="ovi_", suffix=".f32", delete=False
        ) as file:
            self.path = Path(file.name)
        self.shape, self.frames = (*shape, 3), 0
        weakref.finalize(self, _remove, self.path)

    def append(self, frames: Tensor) -> None:
        size = 4 * math.prod(self.shape)
        try:
            with self.path.open("r+b") as file:
                file.seek(self.frames * size)
                for frame in frames:
                    file.write(to_rgb(frame).detach().cpu().contiguous().numpy())
        except OSError as error:
            gibibytes = (self.frames + len(frames)) * size / 2**30
            raise OSError(
                error.errno,
                f"the film's frames, {gibibytes:.1f} GiB, could not be written: {error.strerror}. "
                "Free room on that disk, start ComfyUI with another --temp-directory, or choose "
                "'in memory'",
                str(self.path),
            ) from error
        self.frames += len(frames)

    def show(self) -> Tensor:
        """Return all frames; what is written to them stays in memory."""
        count = self.frames * math.prod(self.shape)
        shown = torch.from_file(str(self.path), shared=False, size=count, dtype=torch.float32)
        shown = shown.view(self.frames, *self.shape)
        setattr(shown, FILE, self)
        return shown


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps what is still shown; core empties the folder
        path.unlink(missing_ok=True)
