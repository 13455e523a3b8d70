"""Prompts and what goes with them as core's samplers carry them from step to step."""

from __future__ import annotations

import comfy.conds
import torch
from torch import Tensor

from ..config import TowerConfig
from ..network.attention import extend
from .encode import without_padding


class CONDText(comfy.conds.CONDRegular):
    """Rows of a prompt, the last for all after it, so that prompts of any length form a batch."""

    def can_concat(self, other) -> bool:
        return self._kind() == other._kind()

    def concat(self, others) -> Tensor:
        texts = [self.cond, *(other.cond for other in others)]
        longest = max(text.shape[1] for text in texts)
        return torch.cat([extend(text, longest) for text in texts])

    def _kind(self) -> tuple[int, torch.device]:
        return self.cond.shape[2], self.cond.device


class CONDTables(comfy.conds.CONDConstant):
    """Tensors that all prompts of a run share."""

    def can_concat(self, other) -> bool:
        return [table.shape for table in self.cond] == [table.shape for table in other.cond]


def trim(text: Tensor, config: TowerConfig) -> Tensor:
    """[B, T, text_dim] -> [B, n, text_dim]: the text, or texts put together, without the zeros
    after it.

    Raises ValueError if another text encoder made it.
    """
    if text.shape[2] != config.text_dim:
        raise ValueError(
            f"The prompt was encoded {text.shape[2]} wide, but this Ovi reads {config.text_dim}: "
            "use umT5, with 'Ovi Text Encoder Loader', or 'Load CLIP' with type 'wan'."
        )
    if text.shape[1] > config.text_length:
        text = without_padding(text, config.text_length)
    rows = text.ne(0).any(-1).any(0).nonzero()
    count = int(rows[-1]) + 1 if len(rows) else 0
    return text[:, :count]


def with_padding(text: Tensor, config: TowerConfig) -> Tensor:
    """Add one of the rows of zeros that fill a text [B, n, text_dim] up, unless it is full."""
    return torch.nn.functional.pad(text, (0, 0, 0, 1))[:, : config.text_length]
