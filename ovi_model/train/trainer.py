"""The training of a LoRA: clips, noised, a step at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import torch
from torch import Tensor, nn

from ..core_facts import compute_dtype
from ..network.differentiable import differentiable
from ..network.memory import gradient_memory_required
from ..network.model import diffusion_model
from . import state
from .clips import Clip
from .error import mean_errors
from .lora import Lora

WARM_UP = 0.05  # share of the steps in which the learning rate rises
MOST_GRADIENT = 1.0  # norm to which a step's gradient is cut
# Counted at full size, over what the gradient of a latent alone takes: what a LoRA's layers read is
# held too; and of every pair of blocks, not of one, where none is computed again.
WITH_LORA, OF_EVERY_PAIR = 1.25, 0.7


@dataclass(frozen=True)
class Recipe:
    """What a training is asked for."""

    parts: str = "all"  # of lora.PARTS
    rank: int = 16
    steps: int = 1000
    learning_rate: float = 3e-4  # the highest, of AdamW
    batch_size: int = 1  # clips a step
    sound_weight: float = 1.0  # of the sound's error beside the picture's
    seed: int = 0
    recompute: bool = True  # pairs of blocks, in the backward pass

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0 on: it rises, then falls as a cosine does."""
        rise = max(1, round(WARM_UP * self.steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        done = (step - rise) / max(1, self.steps - rise)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


@dataclass
class Training:
    """A LoRA and how far its training is."""

    lora: Lora
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)  # one a step

    @classmethod
    def begin(cls, network: nn.Module, recipe: Recipe) -> Training:
        """Return a training before its first step."""
        lora = Lora(network, recipe.parts, recipe.rank, recipe.seed)
        weights = [weight for _, weight in lora.named_weights()]
        return cls(lora, torch.optim.AdamW(weights, lr=recipe.learning_rate))


def train(
    model,
    clips: Sequence[Clip],
    recipe: Recipe,
    folder: Path | None = None,
    save_every: int = 0,
    tell: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Training:
    """Train a LoRA on a MODEL, which stays as it is.

    folder: where the training is kept, every so many steps, at its end and when it is interrupted;
    one of the same recipe and clips that is there goes on. tell: is given each step and its loss.
    Raises ValueError if the model is no Ovi, another training is in the folder, or the loss is no
    number.
    """
    network = diffusion_model(model)
    with torch.inference_mode(False), torch.enable_grad():
        training = Training.begin(network, recipe)
        about = {**dataclasses.asdict(recipe), "clips": state.fingerprint(clips)}
        if folder is not None:
            state.resume(folder, training, about)
        with _loaded(model, clips, recipe):
            training.lora.to(model.load_device)
            _move(training.optimizer, model.load_device)
            with differentiable(network, training.lora.by_layer(), recipe.recompute):
                try:
                    for step in range(len(training.losses), recipe.steps):
                        comfy.model_management.throw_exception_if_processing_interrupted()
                        loss = _step(model, training, clips, recipe, step)
                        training.losses.append(loss)
                        tell(step, loss)
                        if folder is not None and save_every and (step + 1) % save_every == 0:
                            state.save(folder, training, about)
                finally:
                    if folder is not None and training.losses:
                        state.save(folder, training, about)
    return training


@contextmanager
def _loaded(model, clips: Sequence[Clip], recipe: Recipe) -> Iterator[None]:
    """Load a MODEL, with as much memory left as its gradient takes."""
    comfy.model_management.load_models_gpu([model], memory_required=_memory(model, clips, recipe))
    model.pre_run()
    try:
        yield
    finally:
        model.cleanup()


def _memory(model, clips: Sequence[Clip], recipe: Recipe) -> float:
    """Return the bytes of the largest batch's gradient and of the LoRA with its moments."""
    network, base = model.model.diffusion_model, model.model
    most = max(clip.video.numel() + clip.audio.numel() for clip in clips)
    shape = torch.Size([min(recipe.batch_size, len(clips)), 1, most])
    dtype = compute_dtype(base)
    gradient = gradient_memory_required(network.config, network.audio_model.config, shape, dtype)
    with torch.device("meta"):
        lora = Lora(network, recipe.parts, recipe.rank, 0)
    count = sum(weight.numel() for weight in lora.parameters())
    pairs = WITH_LORA if recipe.recompute else max(WITH_LORA, OF_EVERY_PAIR * len(network.blocks))
    return pairs * gradient + 4 * 4 * count  # weight, gradient and two moments, in float32


def _step(model, training: Training, clips: Sequence[Clip], recipe: Recipe, step: int) -> float:
    """Take a step, which depends on its number and the seed alone; return its loss."""
    generator = torch.Generator().manual_seed(recipe.seed + step)
    chosen = draw(len(clips), recipe.batch_size, step, recipe.seed)
    levels = noise_levels(model, len(chosen), generator)
    video, audio = mean_errors(
        model.model.diffusion_model,
        [clips[number] for number in chosen],
        levels,
        generator,
        model.load_device,
        compute_dtype(model.model),
    )
    loss = weighed(video, audio, recipe.sound_weight)
    if not loss.isfinite():
        raise ValueError(
            f"The training failed in step {step + 1}: its error is no number. Lower the learning "
            "rate; of a model in float16, take one in bf16."
        )
    loss.backward()
    nn.utils.clip_grad_norm_(training.lora.parameters(), MOST_GRADIENT)
    for group in training.optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def draw(count: int, size: int, step: int, seed: int) -> list[int]:
    """Return the clips of a step: all come in turn, in an order that each round draws anew."""
    size = min(size, count)
    places = range(step * size, (step + 1) * size)
    orders = {
        its: torch.randperm(count, generator=torch.Generator().manual_seed(seed + its)).tolist()
        for its in {place // count for place in places}
    }
    return [orders[place // count][place % count] for place in places]


def noise_levels(model, count: int, generator: torch.Generator) -> Tensor:
    """Draw noise levels [B], as even as the model's steps lie: its shift moves them to noise."""
    sampling = model.get_model_object("model_sampling")
    return torch.tensor(
        [sampling.percent_to_sigma(x) for x in torch.rand(count, generator=generator).tolist()]
    )


def weighed(video: Tensor, audio: Tensor, sound_weight: float) -> Tensor:
    """Return the mean of both errors, the sound's with its weight."""
    return (video + sound_weight * audio) / (1 + sound_weight)


def _move(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Move what an optimizer keeps; its count of steps stays."""
    for kept in optimizer.state.values():
        for name in state.MOMENTS:
            kept[name] = kept[name].to(device)
