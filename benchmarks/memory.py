"""Peak memory of a forward of the released model: counted, estimated, and with a CUDA card
measured.

Usage: python benchmarks/memory.py --comfyui PATH

Run it with ComfyUI's python; ComfyUI is found as make_small_checkpoints.py finds it. Counting needs
neither a card nor weights; measuring makes random weights of full size: 26 GiB of card memory, 16
GiB of RAM.
"""

import argparse
import gc
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from clips import Clip

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / folder) for folder in ("tools", "tests/support")]

from count_bytes import forward_peak  # noqa: E402
from find_comfyui import import_comfy, import_extension  # noqa: E402

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """One row: size of the clip, clips at once, precisions of activations and weights, and what
    else is asked.
    """

    width: int
    height: int
    seconds: int
    batch: int = 1
    dtype: torch.dtype = BF16
    weights: torch.dtype | None = None
    by_frame: bool = False
    skip: bool = False

    @property
    def clip(self) -> Clip:
        return Clip(self.width, self.height, 24 * self.seconds + 1)

    @property
    def name(self) -> str:
        notes = [str(self.dtype).removeprefix("torch.")]
        notes += [f"weights {str(self.weights).removeprefix('torch.')}"] if self.weights else []
        notes += ["image-to-video"] if self.by_frame else []
        notes += ["skipped layer"] if self.skip else []
        return f"{self.width} x {self.height}, {self.seconds} s | {self.batch} | {', '.join(notes)}"


COUNTED = [
    *(
        Case(*size, batch)
        for size in ((704, 704, 5), (960, 960, 5), (960, 960, 10))
        for batch in (1, 2)
    ),
    Case(512, 512, 5),
    Case(512, 512, 1),
    Case(256, 256, 1),
    Case(704, 704, 5, by_frame=True),
    Case(704, 704, 5, batch=2, skip=True),
    Case(704, 704, 5, dtype=FP16),
    Case(704, 704, 5, dtype=FP32),
    Case(704, 704, 5, weights=FP8),
    Case(256, 256, 1, weights=FP8),
]
# Name, precision of the weights, and how much of them may lie on the card: None for all.
MEASURED = [
    ("bfloat16", BF16, None),
    ("float8_e4m3fn", FP8, None),
    ("float8_e4m3fn, 4 GiB on the card", FP8, 4 * GIB),
]


def estimate(case: Case) -> float:
    """What the family tells ComfyUI of a case on a card with fused attention."""
    from comfyui_ovi.ovi_model.network.memory import Fused, memory_required

    numbers = sum(torch.Size(shape[1:]).numel() for shape in case.clip.shapes())
    given = (case.batch, 1, numbers), case.dtype, case.weights is not None
    return memory_required(*case.clip.towers(), *given, Fused(attention=True, norm=True))


def count(case: Case) -> int:
    """The bytes alive at the peak of a forward on the meta device; more blocks than four take no
    more.
    """
    import comfy.ops
    from comfyui_ovi.ovi_model.network.model import OviModel

    operations = comfy.ops.manual_cast if case.weights else comfy.ops.disable_weight_init
    model = OviModel(
        *case.clip.towers(4), operations=operations, dtype=case.weights or case.dtype, device="meta"
    )
    options = {"ovi_skip_layer": 2, "cond_or_uncond": [1, 0]} if case.skip else {}
    return forward_peak(
        model.requires_grad_(False),
        case.clip.shapes(case.batch),
        case.dtype,
        by_frame=case.by_frame,
        **options,
    )


def make_patcher(configs: tuple, weights: torch.dtype, device: torch.device, weights_there: bool):
    """Return a ModelPatcher of random weights, made where they stay: on the device or beside it."""
    import comfy.model_patcher
    from comfyui_ovi.ovi_model.family import IMAGE_MODEL, OviConfig

    home = device if weights_there else torch.device("cpu")
    entry = OviConfig({"image_model": IMAGE_MODEL, "video": configs[0], "audio": configs[1]})
    entry.set_inference_dtype(weights, BF16 if weights != BF16 else None)
    base = entry.get_model({}, device=home).eval().requires_grad_(False)
    for parameter in base.parameters():
        # So that neither sums of thousands nor eight bits overflow.
        parameter.copy_(torch.randn(parameter.shape, dtype=BF16, device=home) * 0.02)
    return comfy.model_patcher.ModelPatcher(
        base, load_device=device, offload_device=torch.device("cpu")
    )


def run_forward(patcher, shapes: list[tuple[int, ...]], budget: int | None) -> list[float]:
    """Load as much as the budget allows, run three forwards; seconds of each."""
    patcher.load(patcher.load_device, lowvram_model_memory=budget or 0, full_load=budget is None)
    model, device = patcher.model.diffusion_model, patcher.load_device
    text = torch.randn(
        1, model.config.text_length, model.config.text_dim, dtype=BF16, device=device
    )
    latents = [torch.randn(shape, dtype=BF16, device=device) for shape in shapes]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        velocities = model(latents, torch.full((1,), 500.0, device=device), text, text)
        if not all(velocity.isfinite().all() for velocity in velocities):
            raise SystemExit(
                "the forward gave numbers that are not finite: the measurement says nothing"
            )
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(weights: torch.dtype, budget: int | None) -> tuple[float, float, float]:
    """Peak of everything and of what is not weights, in bytes, and seconds of a forward, at 704 x
    704 and 5 s.
    """
    device = torch.device("cuda")
    clip = Case(704, 704, 5).clip
    patcher = make_patcher(clip.towers(), weights, device, weights_there=budget is None)
    run_forward(patcher, clip.shapes(), budget)
    resting = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    seconds = statistics.median(run_forward(patcher, clip.shapes(), budget))
    peak = torch.cuda.max_memory_allocated(device)
    del patcher
    gc.collect()
    torch.cuda.empty_cache()
    return peak, peak - resting, seconds


def print_counted() -> None:
    """Print the table of counted and estimated peaks."""
    print("| clip | batch | how | tokens | counted GiB | estimated GiB | ratio |")
    print("|---|---|---|---|---|---|---|")
    for case in COUNTED:
        counted, estimated = count(case) / GIB, estimate(case) / GIB
        print(
            f"| {case.name} | {case.clip.tokens} | {counted:.3f} | {estimated:.3f} | "
            f"{estimated / counted:.2f} |"
        )


def print_measured() -> None:
    """Print the table of what the card held and how long a forward took."""
    print(
        f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, 704 x 704, 5 s, one clip\n"
    )
    print("| weights | peak GiB | of that not weights | estimated GiB | seconds a forward |")
    print("|---|---|---|---|---|")
    for name, weights, budget in MEASURED:
        peak, rest, seconds = measure(weights, budget)
        estimated = estimate(Case(704, 704, 5)) / GIB
        print(f"| {name} | {peak / GIB:.2f} | {rest / GIB:.2f} | {estimated:.2f} | {seconds:.2f} |")


def main() -> None:
    """Parse the command line and print the tables this machine can make."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    import_comfy(parser.parse_args().comfyui)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    import_extension()
    with torch.no_grad():
        print_counted()
        if args.cpu:
            print("\nNo CUDA card: nothing was measured on one.")
        else:
            print_measured()


if __name__ == "__main__":
    main()
