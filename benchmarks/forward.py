"""Times a forward of the model against its floor and, where checkouts are given, against the
reference and other implementations.

Usage: python benchmarks/forward.py --comfyui PATH [--reference PATH] [--peer NAME=PATH ...] [--clip
NAME] [--dtype
fp32|bf16|fp8] [--layers N] [--batch N] [--compile] [--processor-time] [--repeats N]

Run it with ComfyUI's python; ComfyUI is found as make_small_checkpoints.py finds it. The floor does
what floor.py lists: what must be multiplied, from the same weights, and nothing else. The recorded
floor does what our forward multiplies. Ours embeds the prompt before, as in a run. All of them
attend with PyTorch's attention as core calls it, on a CUDA card where there is one. They run in
turn, so that what else the machine does hits them alike: a ratio is the median of the ratios within
a turn. Weights are random; the others get the same, and the reference's output must agree with
ours. At full size all blocks need 22 GiB in bfloat16; --layers cuts the depth. Peak memory is of a
card alone, and without what lies there at rest, such as weights, inputs and the floor's buffers.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from clips import CLIPS
from command_line import command, machine, positive
from floor import PROMPT, Floor, list_floor
from peers import add_arguments
from recorded_floor import record_floor
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / folder) for folder in ("tools", "tests/support")]

from find_comfyui import import_comfy, import_extension  # noqa: E402

GIB = 2**30
# Precision of the activations, and of the weights where it is another.
PRECISIONS = {
    "fp32": (torch.float32, None),
    "bf16": (torch.bfloat16, None),
    "fp8": (torch.bfloat16, torch.float8_e4m3fn),
}
# How far the reference's output may be from ours, as a share of its size.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
TIME = 500.0


@dataclass
class Contender:
    """Something timed: seconds of each of its turns, and the most memory of a card the last took,
    in bytes.
    """

    name: str
    run: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    peak: int = 0

    def take_turn(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        resting = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            resting = torch.cuda.memory_allocated(device)
        wait(device)
        start = clock()
        self.run()
        wait(device)
        self.seconds.append(clock() - start)
        if device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(device) - resting


def wait(device: torch.device) -> None:
    """Let a card finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_model(
    towers: tuple, dtype: torch.dtype, weights: torch.dtype | None, device: torch.device
) -> nn.Module:
    """Return an OviModel of random weights, made on the device."""
    import comfy.ops
    from comfyui_ovi.ovi_model.network.model import OviModel

    operations = comfy.ops.manual_cast if weights else comfy.ops.disable_weight_init
    model = OviModel(*towers, operations=operations, dtype=weights or dtype, device="meta")
    model.requires_grad_(False).eval().to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.copy_(random_weight(name, parameter.shape, device))
    return model


def random_weight(name: str, shape: torch.Size, device: torch.device) -> Tensor:
    """Numbers that keep the size of what passes through: matrices by their inputs, norms near one,
    all else small.
    """
    numbers = torch.randn(shape, device=device)
    if len(shape) > 1 and "modulation" not in name:
        return numbers / shape[1:].numel() ** 0.5
    return numbers / 10 + ("norm" in name and name.endswith("weight"))


def make_inputs(
    config, shapes: list, dtype: torch.dtype, device: torch.device, prompt: int = PROMPT
) -> tuple:
    """Return latents, time and text [B, prompt, text_dim], the same at every run."""
    torch.manual_seed(1)
    batch = shapes[0][0]
    latents = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    length = min(prompt, config.text_length)
    text = torch.randn(batch, length, config.text_dim, device=device).to(dtype)
    return latents, torch.full((batch,), TIME, device=device), text


def prepare_run(model: nn.Module, latents: list[Tensor], text: Tensor) -> dict:
    """Return what the sampler makes once a run and hands to every forward."""
    embedded = model.preprocess_text_embeds(text, text)
    tables = model.prepare_rotations([latent.shape for latent in latents], text.device)
    names = ("context", "audio_context")
    return {**dict(zip(names, embedded, strict=True)), "is_embedded": True, "freqs_cis": tables}


def compare(ours: list[Tensor], theirs: tuple) -> list[float]:
    """Return how far our picture and sound are from another's, each as a share of its size."""
    pictures, sounds = (torch.stack(list(parts)) for parts in theirs)
    return [
        ((mine.double() - other.double()).norm() / other.double().norm()).item()
        for mine, other in zip(ours, (pictures, sounds.transpose(1, 2)), strict=True)
    ]


def check_outputs(ours: list[Tensor], theirs: tuple, dtype: torch.dtype) -> list[float]:
    """Return how far our picture and sound are from the reference's, each as a share of its size.

    Raises SystemExit when it is more than rounding.
    """
    errors = compare(ours, theirs)
    for error in errors:
        if not error <= TOLERANCES[dtype]:
            raise SystemExit(
                f"Our output differs from the reference's by {error:.1e} of its size, more "
                f"than {TOLERANCES[dtype]:.0e}: the two do not compute the same, so no time was "
                "compared."
            )
    return errors


def contenders(options: argparse.Namespace, device: torch.device) -> list[Contender]:
    """Return what is to be timed, ours first, then the floor; prints how far ours is from the
    reference.
    """
    clip = CLIPS[options.clip]
    dtype, weights = PRECISIONS[options.dtype]
    towers = clip.towers(options.layers)
    model = make_model(towers, dtype, weights, device)
    shapes = clip.shapes(options.batch)
    latents, times, text = make_inputs(towers[0], shapes, dtype, device, options.prompt)
    prepared = prepare_run(model, latents, text)

    def forward(transformer_options: dict, model: Callable = model) -> list[Tensor]:
        return model(latents, times, **prepared, transformer_options=transformer_options)

    floor = Floor(list_floor(towers, shapes, options.prompt), dtype, device, model.parameters())
    found = [
        Contender("ours", lambda: forward({})),
        Contender("floor", floor),
        Contender("recorded floor", record_floor(model, forward)),
    ]
    if options.compile:
        compiled = torch.compile(model, backend="inductor")
        found.insert(1, Contender("ours, compiled", lambda: forward({}, compiled)))
    for peer in options.peer or []:
        theirs = peer.build_with_weights(towers, model)
        run = partial(peer.run, theirs, latents, times, text)
        found.append(Contender(peer.name, run))
        for ours in (its for its in found if its.name.startswith("ours")):
            judge = check_outputs if peer.name == "reference" else compare
            given = (ours.run(), run()) + (dtype,) * (judge is check_outputs)
            picture, sound = judge(*given)
            print(
                f"{ours.name} differs from {peer.name} by {picture:.1e} (picture), {sound:.1e} "
                "(sound)"
            )
    return found


def ratio(one: Contender, other: Contender | None) -> str:
    """The median of the ratios within a turn."""
    if other is None:
        return "not measured"
    return (
        f"{statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True)):.3f}"
    )


def print_table(timed: list[Contender], device: torch.device) -> None:
    """Print seconds, ratios and peak memory of all."""
    named = {contender.name: contender for contender in timed}
    print(
        "\n| | seconds | ratio to the floor | ratio to the reference | peak GiB besides weights |"
    )
    print("|---|---|---|---|---|")
    for contender in timed:
        peak = f"{contender.peak / GIB:.2f}" if device.type == "cuda" else "not measured"
        ratios = f"{ratio(contender, named['floor'])} | {ratio(contender, named.get('reference'))}"
        print(
            f"| {contender.name} | {statistics.median(contender.seconds):.3f} | {ratios} | {peak} |"
        )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    add_arguments(parser)
    parser.add_argument("--clip", choices=CLIPS, default="small", help="which size")
    parser.add_argument(
        "--dtype", choices=PRECISIONS, default="fp32", help="precision; fp8: of the weights alone"
    )
    parser.add_argument("--layers", type=positive, help="how many blocks, else all")
    parser.add_argument("--batch", type=positive, default=1, help="clips at once")
    parser.add_argument(
        "--prompt", type=positive, default=PROMPT, help="tokens of the prompt, padding not counted"
    )
    parser.add_argument(
        "--compile", action="store_true", help="also our model compiled, by inductor"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count seconds of the processor, all threads together, where other work shares it",
    )
    parser.add_argument(
        "--repeats", type=positive, default=5, help="how many turns, after one to warm up"
    )
    options = parser.parse_args()
    if options.peer and options.dtype == "fp8":
        parser.error("peers have no fp8 weights here: leave them or --dtype fp8 out")
    return options


def main() -> None:
    """Parse the command line, time all in turn, and print the table."""
    options = parse()
    import_comfy(options.comfyui)
    import comfyui_version
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.use_pytorch_cross_attention = True
    import_extension()
    device = torch.device("cpu" if args.cpu else "cuda")
    clock = time.process_time if options.processor_time else time.perf_counter
    with torch.inference_mode():
        timed = contenders(options, device)
        for _ in range(1 + options.repeats):
            for contender in timed:
                contender.take_turn(device, clock)
    for contender in timed:
        del contender.seconds[0]
    print(
        f"\n{options.clip}, batch {options.batch}, {options.dtype}, {options.layers or 'all'} "
        "blocks"
    )
    print(f"{machine()}, ComfyUI {comfyui_version.__version__}\n{command()}")
    print_table(timed, device)


if __name__ == "__main__":
    main()
