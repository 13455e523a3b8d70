"""Bytes read and written by a forward of the released model, and its kernel launches, by kind of
operation; the floor's and other implementations' beside them.

Usage: python benchmarks/traffic.py --comfyui PATH [--reference PATH] [--peer NAME=PATH ...]
[--clip NAME ...] [--batch N] [--prompt N] [--kernels]

Run it with ComfyUI's python; ComfyUI is found as make_small_checkpoints.py finds it. Counted on the
meta device at full size: neither a card nor weights are needed. What is counted as one operation is
said in tests/support/count_traffic.py.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from clips import CLIPS, Clip
from command_line import positive
from floor import PROMPT, by_kind, list_floor
from peers import Peer, add_arguments

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / folder) for folder in ("tools", "tests/support")]

from count_traffic import COMPUTE, CountTraffic, forward_traffic  # noqa: E402
from find_comfyui import import_comfy, import_extension  # noqa: E402
from forward import make_inputs, prepare_run  # noqa: E402

GB = 10**9
DTYPE = torch.bfloat16
META = torch.device("meta")


def count_ours(clip: Clip, batch: int, prompt: int) -> CountTraffic:
    """Traffic of our forward in bfloat16, as a step of a run has it."""
    import comfy.ops
    from comfyui_ovi.ovi_model.network.model import OviModel

    model = OviModel(
        *clip.towers(), operations=comfy.ops.disable_weight_init, dtype=DTYPE, device="meta"
    )
    model.eval().requires_grad_(False)
    latents, _, text = make_inputs(model.config, clip.shapes(batch), DTYPE, META, prompt)
    with torch.no_grad():
        prepared = prepare_run(model, latents, text)
    return forward_traffic(model, clip.shapes(batch), DTYPE, prepared)


def use_kernels() -> None:
    """Let our forward call core's own kernels, which it does by itself where core has compiled them
    for the machine.
    """
    import comfy.quant_ops
    from comfyui_ovi.ovi_model.network import fused_ops

    library = getattr(comfy.quant_ops, "ck", None)
    for name in ("adaln", "apply_rope1"):
        if not hasattr(library, name):
            raise SystemExit(
                f"This ComfyUI has no kernel '{name}': leave --kernels out, or take a newer "
                "ComfyUI."
            )
    fused_ops.FUSED_NORM, fused_ops.FUSED_ROPE = library.adaln, library.apply_rope1


def count_peer(peer: Peer, clip: Clip, batch: int, prompt: int) -> CountTraffic:
    """Traffic of another implementation's forward."""
    model = peer.build(clip.towers(), DTYPE)
    inputs = make_inputs(clip.towers()[0], clip.shapes(batch), DTYPE, META, prompt)
    count = CountTraffic("meta")
    with torch.no_grad(), count.by_part(model), count:
        peer.run(model, *inputs)
    return count


def state_floor(clip: Clip, batch: int, prompt: int) -> Counted:
    """What must be moved at least."""
    products = list_floor(clip.towers(), clip.shapes(batch), prompt)
    return Counted(*by_kind(products, DTYPE.itemsize))


@dataclass
class Counted:
    """Bytes moved and launches, by kind of operation, and how often the host waited."""

    moved: Counter
    launches: Counter
    syncs: int = 0

    @classmethod
    def of(cls, count: CountTraffic) -> Counted:
        return cls(count.moved, count.launches, count.syncs)

    def sums(self, kinds: Iterable[str]) -> tuple[float, int]:
        """Gigabytes and launches of some kinds."""
        kinds = list(kinds)
        moved = sum(self.moved[kind] for kind in kinds) / GB
        return moved, sum(self.launches[kind] for kind in kinds)


def rows(counts: list[Counted]) -> list[list]:
    """Name and, for each count, gigabytes and launches: every kind, then the sums."""
    kinds = sorted(
        set().union(*(count.moved for count in counts)), key=lambda kind: (kind in COMPUTE, kind)
    )
    sums = {kind: [kind] for kind in kinds} | {
        "**elementwise**": [kind for kind in kinds if kind not in COMPUTE],
        "**multiplying**": [kind for kind in kinds if kind in COMPUTE],
        "**all**": kinds,
    }
    return [[name, *(count.sums(of) for count in counts)] for name, of in sums.items()]


def print_table(clip: str, batch: int, prompt: int, counts: dict[str, Counted]) -> None:
    """Print gigabytes and launches of all that was counted, and ours against each of them."""
    import comfyui_version

    print(
        f"\n{clip}, batch {batch}, a prompt of {prompt} tokens, bfloat16, ComfyUI "
        f"{comfyui_version.__version__}, torch {torch.__version__}\n"
    )
    header = ["kind", *(part for name in counts for part in (f"{name} GB", "launches"))]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    table = rows(list(counts.values()))
    for name, *numbers in table:
        cells = [f"{size:.1f} | {launches}" for size, launches in numbers]
        print(f"| {name} | " + " | ".join(cells) + " |")
    ours, *_ = everything = table[-1][1:]
    ratios = [_ratio(ours[i], theirs[i]) for theirs in everything for i in (0, 1)]
    print("| ours / this | " + " | ".join(ratios) + " |")
    waits = ", ".join(f"{name} {count.syncs}" for name, count in counts.items())
    print(f"\nwaits of the host for the device: {waits}")


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.3f}" if theirs else "-"


def main() -> None:
    """Parse the command line and print a table for each clip."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    add_arguments(parser)
    parser.add_argument(
        "--clip", nargs="+", choices=CLIPS, default=["960x960 5 s"], help="which clips"
    )
    parser.add_argument("--batch", type=positive, default=1, help="clips at once")
    parser.add_argument(
        "--prompt", type=positive, default=PROMPT, help="tokens of the prompt, padding not counted"
    )
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="count with the kernels that recent cores have for a card",
    )
    options = parser.parse_args()
    import_comfy(options.comfyui)
    import_extension()
    if options.kernels:
        use_kernels()
    for name in options.clip:
        asked = CLIPS[name], options.batch, options.prompt
        counts = {"ours": Counted.of(count_ours(*asked)), "floor": state_floor(*asked)}
        for peer in options.peer or []:
            counts[peer.name] = Counted.of(count_peer(peer, *asked))
        print_table(name, options.batch, options.prompt, counts)


if __name__ == "__main__":
    main()
