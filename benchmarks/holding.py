"""What holding, steering and carrying on cost at the released size: forwards, arithmetic, memory,
and from these the seconds of named cards.

Usage: python benchmarks/holding.py --comfyui PATH [--steps 50]

Run it with ComfyUI's python; needs neither a card nor weights. Nothing is timed: seconds are the
counted arithmetic at half of what the maker says a card multiplies. Decoding is not in them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from clips import Clip
from floor import Attention, Product, list_floor

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tools"))

from find_comfyui import import_comfy, import_extension  # noqa: E402

GIB, TERA = 2**30, 1e12
# TFLOP a second, bfloat16 with float32 sums, dense. Source: NVIDIA's papers on GA102, AD102,
# Blackwell RTX and H100 (SXM).
CARDS = {"RTX 3090": 71, "RTX 4090": 165, "RTX 5090": 210, "H100": 989}
REACHED = 0.5
# Of a forward's arithmetic: the forward, the same again where a pair of blocks was not kept, and
# the gradient, which multiplies once for a layer (weights have none) and, in attention, whose
# scores are made again, five products for two.
OF_LAYER, OF_ATTENTION = 3.0, 4.5
SHIFT = 5.0
CLIPS = {
    "704 x 704": Clip(704, 704, 121),
    "960 x 960": Clip(960, 960, 121),
    "960 x 960, 10 s": Clip(960, 960, 241),
}


def gradient_flop(products: Iterable[Product]) -> float:
    """Return the arithmetic of a forward and the gradient of its latents."""
    return sum(
        (OF_ATTENTION if isinstance(product, Attention) else OF_LAYER) * product.flop
        for product in products
    )


def steered_steps(steps: int, few: int) -> int:
    """Return how many steps of a schedule 'Ovi Steer' steers; few: its steered_steps."""
    from comfyui_ovi.ovi_model.sample.solver import shifted_sigmas
    from comfyui_ovi.ovi_model.sample.steering import Steering, choose_steps

    return len(choose_steps(shifted_sigmas(steps, SHIFT).tolist(), Steering(1.0, 0.6, few)))


def rows(name: str, clip: Clip, steps: int) -> Iterable[str]:
    """Yield the table's rows of a clip."""
    from comfyui_ovi.ovi_model.latent.overlap import HELD_FRAMES
    from comfyui_ovi.ovi_model.network.memory import (
        Fused,
        gradient_memory_required,
        memory_required,
    )

    products = list_floor(clip.towers(), clip.shapes())
    plain, steered = sum(product.flop for product in products), gradient_flop(products)
    pack = 1, 1, sum(torch.Size(shape[1:]).numel() for shape in clip.shapes())
    sizes = *clip.towers(), pack
    fused = Fused(attention=True, norm=True)
    memory = memory_required(*sizes, torch.bfloat16, False, fused) / GIB
    with_gradient = gradient_memory_required(*sizes, torch.bfloat16) / GIB
    new = (clip.frames - HELD_FRAMES) / 24
    ways = {
        "plain, and anything held": (0, memory),
        "steered, all steps to 0.6": (steered_steps(steps, 0), with_gradient),
        "steered, four steps": (steered_steps(steps, 4), with_gradient),
    }
    for way, (count, bytes_) in ways.items():
        flop = (2 * steps - count) * plain + count * steered
        times = [seconds(flop, card) for card in CARDS.values()]
        yield _row(name, way, f"{2 * steps}", f"{count}", flop, bytes_, times)
    flop = 2 * steps * plain / new
    times = [seconds(flop, card) for card in CARDS.values()]
    yield _row(
        name, "carried on, each new second", f"{2 * steps / new:.1f}", "0", flop, memory, times
    )


def seconds(flop: float, card: float) -> float:
    """Return how long a card takes, from what it multiplies, TFLOP a second."""
    return flop / (card * TERA * REACHED)


def _row(name, way, forwards, gradients, flop, memory, times) -> str:
    numbers = [f"{flop / TERA:,.0f}", f"{memory:.1f}", *(f"{time:,.0f}" for time in times)]
    return f"| {name} | {way} | {forwards} | {gradients} | {' | '.join(numbers)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    import_comfy(options.comfyui)
    import_extension()
    cards = " | ".join(f"{card} s" for card in CARDS)
    print(
        "| clip | way | forwards | of them with a gradient | TFLOP | "
        f"GiB beside the weights, as ComfyUI is told | {cards} |\n|{'---|' * (6 + len(CARDS))}"
    )
    for name, clip in CLIPS.items():
        for row in rows(name, clip, options.steps):
            print(row)


if __name__ == "__main__":
    main()
