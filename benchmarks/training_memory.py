"""Memory of a training step at full size, counted: our trainer's, and what the checkpoints of
core's own trainer leave of Ovi and, beside it, of core's Wan 2.2 5B.

Usage: python benchmarks/training_memory.py --comfyui PATH [--only ours beside]

Run it with ComfyUI's python. Counted on the meta device, which needs neither a card nor weights:
bf16, one clip, a LoRA of rank 16 beside every linear layer, its gradients within; weights, the LoRA
and its optimiser apart. Attention counts as one kernel. Every further pair of blocks adds the same,
to the byte, so that networks of 2 and 4 are counted and the released 30 reckoned from them.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from clips import Clip
from torch import nn

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / folder) for folder in ("tools", "tests/support")]

from count_bytes import attention_with_gradient, training_bytes  # noqa: E402
from find_comfyui import import_comfy, import_extension  # noqa: E402

GIB = 2**30
BF16 = torch.bfloat16
RANK = 16
SIZES = ((512, 512, 49), (512, 512, 121), (704, 704, 121), (960, 960, 121), (960, 960, 241))
BESIDE = SIZES[:1]
FEW, MORE = 2, 4  # blocks that are counted
LAYERS = 30  # of the released model and of Wan 2.2 5B

Bytes = tuple[int, int]  # held before the backward pass, and at the peak


@dataclass(frozen=True)
class Subject:
    """A network on the meta device, and its loss of a clip."""

    network: nn.Module
    loss: Callable[[], torch.Tensor]


def make_ovi(clip: Clip, layers: int) -> Subject:
    """Return Ovi, with the errors of both streams."""
    import comfy.ops
    from comfyui_ovi.ovi_model.network.model import OviModel

    operations = comfy.ops.disable_weight_init
    network = OviModel(*clip.towers(layers), operations=operations, dtype=BF16, device="meta")
    config = network.config
    latents = [torch.zeros(shape, dtype=BF16, device="meta") for shape in clip.shapes()]
    text = torch.zeros(1, config.text_length, config.text_dim, dtype=BF16, device="meta")
    time = torch.zeros(1, device="meta")

    def loss() -> torch.Tensor:
        made = network(latents, time, text, text, transformer_options=_options())
        return sum(velocity.float().square().mean() for velocity in made)

    return Subject(network.requires_grad_(False), loss)


def make_wan(clip: Clip, layers: int) -> Subject:
    """Return core's Wan 2.2 5B, which is Ovi's video tower alone."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    video, _ = clip.towers(layers)
    names = ("dim", "ffn_dim", "freq_dim", "text_dim", "num_heads", "num_layers")
    sizes = {name: getattr(video, name) for name in (*names, "in_dim", "out_dim")}
    operations = comfy.ops.disable_weight_init
    network = WanModel(**sizes, operations=operations, dtype=BF16, device="meta")
    latent = torch.zeros(clip.shapes()[0], dtype=BF16, device="meta")
    text = torch.zeros(1, video.text_length, video.text_dim, dtype=BF16, device="meta")
    time = torch.zeros(1, device="meta")

    def loss() -> torch.Tensor:
        made = network(latent, time, text, transformer_options=_options())
        return made.float().square().mean()

    return Subject(network.requires_grad_(False), loss)


def _options() -> dict:
    return {"optimized_attention_override": attention_with_gradient}


def count_ours(subject: Subject, recompute: bool) -> Bytes:
    """Return bytes held and at the peak in 'Ovi Train LoRA'."""
    from comfyui_ovi.ovi_model.network.differentiable import differentiable
    from comfyui_ovi.ovi_model.train.lora import Lora

    with torch.device("meta"):
        lora = Lora(subject.network, "all", RANK, seed=0)
    with differentiable(subject.network, lora.by_layer(), recompute):
        return training_bytes(subject.loss)


def count_core(subject: Subject, depth: int | None) -> Bytes:
    """Return bytes held and at the peak with core's checkpoints at a depth, None for none of them.

    The LoRA is ours, beside the layers, also of core's Wan, so that checkpoints alone differ.
    """
    from comfyui_ovi.ovi_model.train.lora import Addition

    generator = torch.Generator()
    for layer in list(subject.network.modules()):
        if isinstance(layer, nn.Linear):
            with torch.device("meta"):
                addition = Addition(layer, RANK, generator)
            layer.register_forward_hook(_adding(addition))
    if depth is not None:
        train = importlib.import_module("comfy_extras.nodes_train")
        for module in checkpointed(train, subject.network, depth):
            train.patch(module)
    with _core_trains():
        return training_bytes(subject.loss)


@contextmanager
def _core_trains() -> Iterator[None]:
    """Let core's models take what has a gradient, as its trainer does."""
    from comfy import model_management

    before = getattr(model_management, "in_training", False)
    model_management.in_training = True
    try:
        yield
    finally:
        model_management.in_training = before


def _adding(addition: nn.Module) -> Callable:
    return lambda _layer, inputs, made: made + addition(inputs[0])


def checkpointed(train, network: nn.Module, depth: int) -> list[nn.Module]:
    """Return the modules that core's trainer wraps; before it had a depth, those of depth 2."""
    if hasattr(train, "find_modules_at_depth"):
        return train.find_modules_at_depth(network, depth=depth)
    return train.find_all_highest_child_module_with_forward(network)


def reckon(count: Callable[[int], Bytes]) -> Bytes:
    """Return the bytes at full depth of a count by number of blocks."""
    few, more = count(FEW), count(MORE)
    held, peak = (
        a + (LAYERS - FEW) * (b - a) // (MORE - FEW) for a, b in zip(few, more, strict=True)
    )
    return held, peak


def print_ours() -> None:
    """Print what 'Ovi Train LoRA' takes by size."""
    print(
        "| clip | held before the backward pass | peak | without *recompute*: held | peak |\n"
        "|---|---|---|---|---|"
    )
    for clip in (Clip(*size) for size in SIZES):
        ways = [
            reckon(lambda layers, how=how, clip=clip: count_ours(make_ovi(clip, layers), how))
            for how in (True, False)
        ]
        print(f"| {_name(clip)} | {_cells(ways[0] + ways[1])} |", flush=True)


def print_beside() -> None:
    """Print what is held of Ovi and of core's Wan, each trained the same way."""
    train = importlib.import_module("comfy_extras.nodes_train")
    depths = (2, 1) if hasattr(train, "find_modules_at_depth") else (2,)
    print("| clip | model | checkpoints | held before the backward pass | peak |")
    print("|---|---|---|---|---|")
    for clip in (Clip(*size) for size in BESIDE):
        for name, make in (("Ovi", make_ovi), ("core's Wan 2.2 5B", make_wan)):
            for depth in (None, *depths):
                found = reckon(
                    lambda layers, depth=depth, clip=clip, make=make: count_core(
                        make(clip, layers), depth
                    )
                )
                how = "none" if depth is None else f"core's, depth {depth}"
                print(f"| {_name(clip)} | {name} | {how} | {_cells(found)} |", flush=True)


def _name(clip: Clip) -> str:
    return f"{clip.width} x {clip.height}, {clip.frames} frames"


def _cells(sizes: tuple[int, ...]) -> str:
    return " | ".join(f"{size / GIB:.2f} GiB" for size in sizes)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    tables = {"ours": print_ours, "beside": print_beside}
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables))
    options = parser.parse_args()
    import_comfy(options.comfyui)
    from comfy.cli_args import args

    args.cpu = True
    import_extension()
    for name in options.only:
        tables[name]()


if __name__ == "__main__":
    main()
