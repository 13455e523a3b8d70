"""The loop every part is trained with: it can be stopped and started again, averages weights and
draws its losses.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .settings import Schedule, Schedules

# Losses by name; the first is the one that is minimised.
Losses = dict[str, Tensor]
# Computes them for a batch of a size, drawn from a generator.
LossesOf = Callable[[torch.Generator, int], Losses]
Matrices = list[tuple[nn.Parameter, nn.Parameter]]
# Matrices and convolutions between the first and the last layers of transformers and of the video
# VAE.
INNER = re.compile(r"(blocks\.\d+\.|residual\.\d+\.).*weight$")
SAVE_EVERY = 60.0  # seconds


def train(
    name: str, folder: Path, part: nn.Module, schedule: Schedule, losses_of: LossesOf
) -> nn.Module:
    """Train a part and return it with its averaged weights; start from the last save in the folder
    if there is one.
    """
    optimisers, matrices = make_optimisers(part, schedule)
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            [group["lr"] for group in optimiser.param_groups],
            schedule.steps,
            pct_start=0.05,
        )
        for optimiser in optimisers
    ]
    average = AveragedModel(part, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema))
    saved = folder / f"{name}.pt"
    history: list[dict[str, float]] = []
    parts = {"part": part, "average": average}
    parts |= {f"optimiser{i}": optimiser for i, optimiser in enumerate(optimisers)}
    parts |= {f"scheduler{i}": scheduler for i, scheduler in enumerate(schedulers)}
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        history = state.pop("history")
        for key, value in state.items():
            parts[key].load_state_dict(value)

    def save() -> None:
        write_whole(
            saved, {key: part.state_dict() for key, part in parts.items()} | {"history": history}
        )
        draw_losses(folder / f"{name}.png", name, history)

    last_save = time.monotonic()
    part.train()
    for step in range(len(history), schedule.steps):
        losses = losses_of(torch.Generator().manual_seed(schedule.seed + step), schedule.batch)
        next(iter(losses.values())).backward()
        nn.utils.clip_grad_norm_(part.parameters(), schedule.clip)
        for weight, matrix in matrices:
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimiser, scheduler in zip(optimisers, schedulers, strict=True):
            optimiser.step()
            scheduler.step()
        part.zero_grad(set_to_none=True)
        average.update_parameters(part)
        history.append({key: float(value.detach()) for key, value in losses.items()})
        if step % 50 == 49 or step == schedule.steps - 1:
            report(name, step + 1, schedule.steps, history)
        if time.monotonic() - last_save > SAVE_EVERY or step == schedule.steps - 1:
            save()
            last_save = time.monotonic()
    part.load_state_dict(average.module.state_dict())
    return part.eval()


def train_repeatedly(
    name: str, folder: Path, part: nn.Module, schedules: Schedules, losses_of: LossesOf
) -> nn.Module:
    """Train a part by one schedule after the other; what each saves and draws has its number in its
    name.
    """
    for number, schedule in enumerate(schedules, start=1):
        part = train(numbered(name, number), folder, part, schedule, losses_of)
    return part


def numbered(name: str, number: int) -> str:
    return f"{name}_{number}"


def make_optimisers(
    part: nn.Module, schedule: Schedule
) -> tuple[list[torch.optim.Optimizer], Matrices]:
    """Return AdamW for all weights; or, if there is a rate for it, Muon for the inner matrices and
    AdamW for the rest.

    Muon knows matrices alone, so that a convolution is one to it, in the same memory: its weight,
    and how Muon sees it.
    """
    named = [(name, weight) for name, weight in part.named_parameters() if weight.requires_grad]
    inner = {
        name for name, weight in named if schedule.muon and weight.ndim > 1 and INNER.search(name)
    }
    matrices = [
        (weight, nn.Parameter(weight.detach().flatten(1)))
        for name, weight in named
        if name in inner
    ]
    others = [weight for name, weight in named if name not in inner]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            others, schedule.rate, betas=(0.9, 0.99), weight_decay=schedule.decay, fused=True
        )
    ]
    if matrices:
        seen = [matrix for _, matrix in matrices]
        optimisers.append(
            torch.optim.Muon(
                seen, schedule.muon, weight_decay=schedule.decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimisers, matrices


def write_whole(path: Path, content: dict) -> None:
    """Save under a temporary name and rename, so that a stop in between loses nothing."""
    temporary = path.with_suffix(".part")
    torch.save(content, temporary)
    os.replace(temporary, path)


def report(name: str, step: int, steps: int, history: list[dict[str, float]]) -> None:
    """Print one line with the mean of the last losses."""
    recent = history[-50:]
    means = ", ".join(
        f"{key} {sum(entry[key] for entry in recent) / len(recent):.4f}" for key in recent[0]
    )
    print(
        f"{time.strftime('%H:%M:%S')} {name} {step}/{steps}: {means}", file=sys.stderr, flush=True
    )


def draw_losses(
    path: Path, name: str, history: list[dict[str, float]], size: tuple[int, int] = (720, 300)
) -> None:
    """Draw each loss over the steps on a logarithmic scale, smoothed over a hundredth of its
    length.
    """
    width, height = size
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    if len(history) < 2:
        return
    for index, key in enumerate(history[0]):
        values = torch.tensor([entry[key] for entry in history]).clamp(min=1e-8).log10()
        window = max(1, len(values) // 100)
        smooth = values.unfold(0, window, max(1, len(values) // width)).mean(-1)
        low, high = smooth.min(), smooth.max() + 1e-6
        colour = ("#1f5fbf", "#c0392b", "#2e8b57", "#8e6c1f")[index % 4]
        across = torch.linspace(50, width - 10, len(smooth))
        down = 40 + (height - 60) * (high - smooth) / (high - low)
        pen.line(list(zip(across.tolist(), down.tolist(), strict=True)), fill=colour, width=2)
        first, least, last = (10 ** float(value) for value in (high, low, smooth[-1]))
        text = f"{key}: {first:.3g} to {least:.3g}, last {last:.3g}"
        pen.text((60 + 220 * index, 8), text, fill=colour)
    pen.text(
        (10, height - 14),
        f"{name}: {len(history)} steps; each curve on its own logarithmic scale",
        fill="black",
    )
    picture.save(path)
