"""Video decoding: bytes by kind of operation, counted at full size, and what the order of memory
makes of its time, measured on a narrow decoder.

Usage: python benchmarks/decode_traffic.py --comfyui PATH [--clip WIDTHxHEIGHT] [--frames 121]
[--time] [--width 64] [--cells 6] [--repeats 7]

Run it with ComfyUI's python. Counted on the meta device in bfloat16: neither a card nor weights are
needed. What is counted as one operation is said in tests/support/count_traffic.py; what a
convolution brings into another order inside itself is not counted.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from command_line import command, machine, positive
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / folder) for folder in ("tools", "tests/support")]

from count_traffic import COMPUTE, CountTraffic  # noqa: E402
from decode import WAN, narrow_vae, on_meta  # noqa: E402
from find_comfyui import import_comfy, import_extension  # noqa: E402

GB, TFLOP = 10**9, 10**12
SPATIAL, TEMPORAL = 16, 4
KINDS = {"copy": "copy, join, pad", "arithmetic": "other elementwise"}


def count(model: torch.nn.Module, decode: Callable[[], object]) -> tuple[CountTraffic, float]:
    """Return the traffic of a decode on the meta device, and its floating point operations."""
    counted = CountTraffic("meta")
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as operations,
        counted.by_part(model),
        counted,
    ):
        decode()
    return counted, operations.get_total_flops()


def count_all(latent: Tensor) -> dict[str, tuple[CountTraffic, float]]:
    """Count core's decoder with its own layers and as Ovi Decode runs it, and the tiny decoder."""
    import comfy.model_management
    from comfy.ldm.modules.diffusionmodules.model import pytorch_attention
    from comfy.ldm.wan.vae2_2 import WanVAE
    from comfy.taesd.taehv import TAEHV
    from comfyui_ovi.ovi_model.decode import lean_layers
    from comfyui_ovi.ovi_model.decode.streaming import decode_streaming

    wan = on_meta(lambda: WanVAE(dim=8, dec_dim=256, **WAN), latent.dtype)
    # The others ask how much of a device is free.
    wan.decoder.middle[1].optimized_attention = pytorch_attention
    tiny = on_meta(lambda: TAEHV(latent_channels=48), latent.dtype)
    tiny.show_progress_bar = False
    if not lean_layers.is_lean(wan.decoder):
        raise SystemExit("Ovi Decode does not know the layers of this ComfyUI's decoder.")
    counts = {}
    with patch.object(lean_layers, "is_lean", lambda _: False):
        counts["core's layers"] = count(wan, lambda: decode_streaming(wan, latent, lambda _: None))
    counts["Ovi Decode"] = count(wan, lambda: decode_streaming(wan, latent, lambda _: None))
    with patch.object(comfy.model_management, "intermediate_device", lambda: latent.device):
        counts["tiny decoder"] = count(tiny, lambda: tiny.decode(latent))
    return counts


def print_traffic(counts: dict[str, tuple[CountTraffic, float]]) -> None:
    """Print gigabytes and launches by kind, then what is not multiplying, and all."""
    kinds = sorted(
        set().union(*(counted.moved for counted, _ in counts.values())),
        key=lambda kind: (kind in COMPUTE, kind),
    )
    print("| kind | " + " | ".join(f"{name} GB | launches" for name in counts) + " |")
    print("|---" * (1 + 2 * len(counts)) + "|")
    rows = [
        (KINDS.get(kind, kind), [(c.moved[kind], c.launches[kind]) for c, _ in counts.values()])
        for kind in kinds
    ]
    between = [
        (c.elementwise, sum(n for kind, n in c.launches.items() if kind not in COMPUTE))
        for c, _ in counts.values()
    ]
    rows.append(("**between convolutions**", between))
    rows.append(("**all**", [(c.moved.total(), c.launches.total()) for c, _ in counts.values()]))
    for name, cells in rows:
        print(f"| {name} | " + " | ".join(f"{size / GB:.1f} | {n}" for size, n in cells) + " |")
    flops = " | ".join(f"{operations / TFLOP:.1f} | " for _, operations in counts.values())
    print(f"| TFLOP | {flops} |")


def print_times(width: int, cells: int, repeats: int) -> None:
    """Print seconds of a narrow decoder: core's layers, and ours in two orders of memory."""
    from comfyui_ovi.ovi_model.decode import lean_layers

    model = narrow_vae(width).first_stage_model
    print(f"\n{machine()}; decoder of width {width}, 9 frames of {16 * cells} x {16 * cells}\n")
    print("| precision | core's layers s | ours, as they come | ratio | channels last | ratio |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        latent = torch.randn(1, 48, 3, cells, cells).to(dtype)

        def decode(order: torch.memory_format | None, latent=latent) -> None:
            layers = lean_layers.lean_layers(model.decoder) if order else nullcontext()
            with patch.object(lean_layers, "memory_order", lambda _: order), layers:
                model.decode(latent)

        orders = (None, torch.contiguous_format, torch.channels_last_3d)
        turns = [[_seconds(decode, order) for order in orders] for _ in range(repeats + 1)][1:]
        core, plain, last = (statistics.median(column) for column in zip(*turns, strict=True))
        ratios = [statistics.median(turn[place] / turn[0] for turn in turns) for place in (1, 2)]
        name = str(dtype).removeprefix("torch.")
        print(
            f"| {name} | {core:.2f} | {plain:.2f} | {ratios[0]:.3f} | {last:.2f} | "
            f"{ratios[1]:.3f} |"
        )


def _seconds(decode: Callable, order) -> float:
    start = time.perf_counter()
    decode(order)
    return time.perf_counter() - start


def size(text: str) -> tuple[int, int]:
    """Read a width and a height that the latent divides, for argparse."""
    sides = [int(side) for side in text.split("x") if side.isdecimal()]
    if len(sides) != 2 or not all(sides) or any(side % SPATIAL for side in sides):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not two multiples of {SPATIAL} such as 704x704"
        )
    return sides[0], sides[1]


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--clip", type=size, default=(704, 704), help="pixels, such as 704x704")
    parser.add_argument("--frames", type=positive, default=121, help="24 a second and one")
    parser.add_argument("--time", action="store_true", help="measure a narrow decoder as well")
    parser.add_argument("--width", type=positive, default=64, help="its channels; released 256")
    parser.add_argument("--cells", type=positive, default=6, help="its picture's side, 16 pixels")
    parser.add_argument("--repeats", type=positive, default=7, help="turns that are measured")
    arguments = parser.parse_args()
    import_comfy(arguments.comfyui)
    import_extension()
    import comfyui_version

    (width, height), steps = arguments.clip, (arguments.frames - 1) // TEMPORAL + 1
    shape = 1, 48, steps, height // SPATIAL, width // SPATIAL
    print(
        f"{command()}\n\n{width} x {height}, {TEMPORAL * steps - 3} frames, bfloat16, ComfyUI "
        f"{comfyui_version.__version__}, torch {torch.__version__}\n"
    )
    print_traffic(count_all(torch.zeros(shape, dtype=torch.bfloat16, device="meta")))
    if arguments.time:
        with torch.inference_mode():
            print_times(arguments.width, arguments.cells, arguments.repeats)


if __name__ == "__main__":
    main()
