"""Bytes read and written by a forward of the released model, and its kernel launches, by kind of
operation.

Usage: python benchmarks/traffic.py --comfyui PATH [--reference PATH] [--clip NAME ...] [--batch N]
[--kernels]

Run it with ComfyUI's python; ComfyUI is found as make_small_checkpoints.py finds it. Counted on the
meta device at full size: neither a card nor weights are needed. What is counted as one operation is
said in tests/support/count_traffic.py.
"""

import argparse
import sys
from pathlib import Path

import torch
from clips import CLIPS, Clip
from command_line import positive

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / folder) for folder in ("tools", "tests/support")]

import reference  # noqa: E402
from count_traffic import COMPUTE, CountTraffic, forward_traffic  # noqa: E402
from find_comfyui import import_comfy, import_extension  # noqa: E402

GB = 10**9
DTYPE = torch.bfloat16


def count_ours(clip: Clip, batch: int) -> CountTraffic:
    """Traffic of our forward in bfloat16."""
    import comfy.ops
    from comfyui_ovi.ovi_model.network.model import OviModel

    model = OviModel(
        *clip.towers(), operations=comfy.ops.disable_weight_init, dtype=DTYPE, device="meta"
    )
    return forward_traffic(model.eval().requires_grad_(False), clip.shapes(batch), DTYPE)


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


def count_reference(checkout: Path, clip: Clip, batch: int) -> CountTraffic:
    """Traffic of the reference's forward, as its engine runs it."""
    video, audio = clip.towers()
    model = reference.build(reference.load(checkout, DTYPE), video, audio).to(DTYPE)
    latents = [torch.zeros(shape, dtype=DTYPE, device="meta") for shape in clip.shapes(batch)]
    text = torch.zeros(batch, video.text_length, video.text_dim, dtype=DTYPE, device="meta")
    count = CountTraffic("meta")
    with torch.no_grad(), count.by_part(model), count:
        reference.run(model, latents, torch.zeros(batch, device="meta"), text)
    return count


def rows(counts: list[CountTraffic]) -> list[list]:
    """Name and, for each count, gigabytes and launches: every kind, then the sums."""
    kinds = sorted(
        set().union(*(count.moved for count in counts)), key=lambda kind: (kind in COMPUTE, kind)
    )
    table = [
        [kind, *((count.moved[kind] / GB, count.launches[kind]) for count in counts)]
        for kind in kinds
    ]
    elementwise = [
        (
            count.elementwise / GB,
            sum(n for kind, n in count.launches.items() if kind not in COMPUTE),
        )
        for count in counts
    ]
    total = [(count.moved.total() / GB, count.launches.total()) for count in counts]
    return [*table, ["**elementwise**", *elementwise], ["**all**", *total]]


def print_table(clip: str, batch: int, counts: list[CountTraffic]) -> None:
    """Print gigabytes and launches of our forward, of the reference's if counted, and ratios."""
    import comfyui_version

    print(
        f"\n{clip}, batch {batch}, bfloat16, ComfyUI {comfyui_version.__version__}, torch "
        f"{torch.__version__}\n"
    )
    header = ["kind", "GB", "launches"] + [
        "reference GB",
        "launches",
        "GB ratio",
        "launches ratio",
    ] * (len(counts) - 1)
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for name, *numbers in rows(counts):
        cells = [f"{size:.1f} | {launches}" for size, launches in numbers]
        if len(numbers) > 1:
            cells += [_ratio(ours, theirs) for ours, theirs in zip(*numbers, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(
        "\nwaits of the host for the device: "
        + ", the reference's: ".join(str(count.syncs) for count in counts)
    )


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.3f}" if theirs else "-"


def main() -> None:
    """Parse the command line and print a table for each clip."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument(
        "--reference", type=Path, help="a checkout of character-ai/Ovi, to count it as well"
    )
    parser.add_argument(
        "--clip", nargs="+", choices=CLIPS, default=["960x960 5 s"], help="which clips"
    )
    parser.add_argument("--batch", type=positive, default=1, help="clips at once")
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
        counts = [count_ours(CLIPS[name], options.batch)]
        if options.reference:
            counts.append(count_reference(options.reference, CLIPS[name], options.batch))
        print_table(name, options.batch, counts)


if __name__ == "__main__":
    main()
