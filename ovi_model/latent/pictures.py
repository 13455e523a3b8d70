"""Pictures that come from other nodes, looked at before they are used."""

import torch
from torch import Tensor


def check_pictures(name: str, pictures: Tensor) -> None:
    """Raise ValueError, with the input's name, unless there are pictures [N, H, W, C] that are
    gray, RGB, or RGB with an alpha.
    """
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{name} has shape {list(pictures.shape)}: expected [frames, height, width, 1, 3 or 4 "
            "colours]."
        )
    if 0 in pictures.shape:
        raise ValueError(
            f"{name} has shape {list(pictures.shape)}, which is empty: connect at least one frame."
        )


def to_rgb(pictures: Tensor) -> Tensor:
    """Pictures [..., 1, 3 or 4] in float32 as RGB: gray three times, without an alpha."""
    return pictures[..., :3].float().expand(*pictures.shape[:-1], 3)


def is_finite(pictures: Tensor) -> bool:
    """Whether no number is infinite or undefined."""
    return bool(torch.isfinite(pictures).all())
