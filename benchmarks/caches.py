"""What EasyCache and LazyCache save, and what they cost picture and sound, against the same run
without a cache.

Usage: python benchmarks/caches.py --comfyui PATH [--steps 50] [--thresholds 0.05 0.1 0.2]
       python benchmarks/caches.py --comfyui PATH --model FILE --text-encoder FILE --vae FILE
       --audio-vae FILE [--vocoder FILE] [--width 960] [--height 960] [--length 121]

Run it with ComfyUI's python. Without files, random weights are made, whose velocity changes slowly
over the noise levels. They show that a cache reuses each stream's own past, how the error of the
sound compares to that of the picture, and how much time a skipped step saves. They cannot show
which threshold is good: how much a trained model's velocity changes from step to step, and how much
of that ears and eyes notice, is in its weights. The row 'other seed' tells how far apart two
unrelated clips are, which is the scale of every other figure, those after a random decoder above
all.

A cache decides by all numbers at once, of which the sound is 0.1 % at full size. If the sound
changes faster than the picture its error is the larger one; --fast-sound makes such a model, and
the change of either stream is printed.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from command_line import command, machine, positive
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / folder) for folder in ("tools", "tests/support")]

import make_small_checkpoints  # noqa: E402
from find_comfyui import import_comfy, import_extension  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from slow_weights import slow_weights  # noqa: E402
from small_weights import OviSizes  # noqa: E402

PROMPT = "A man at a window says <S>Hello there.<E> Audio: rain on glass"
NEGATIVES = ("jitter, bad hands, blur, distortion", "robotic, muffled, echo, distorted")
SEED = 100
CFG, AUDIO_CFG, SKIPPED_LAYER, SHIFT = 4.0, 3.0, 11, 5.0
POSITIVE = 0  # core's index of the positive prompt
FILES = ("model", "text_encoder", "vae", "audio_vae")


@dataclass
class Parts:
    """Everything a run needs, loaded."""

    model: object
    positive: list
    negative: list
    vae: object
    audio_vae: object
    latent: dict
    sigmas: Tensor


@dataclass
class Run:
    """What one run made, how long its sampling took, and what the model was asked for."""

    video: Tensor = None
    audio: Tensor = None
    frames: Tensor = None
    sound: Tensor = None
    seconds: float = 0.0
    forwards: int = 0
    velocities: list[list[Tensor]] = field(
        default_factory=list
    )  # of the positive prompt, a pair of streams a step


def make_files(folder: Path, sizes: OviSizes, fast_sound: bool) -> dict[str, Path]:
    """Write random checkpoints; return the paths by the names of this command's options."""
    make_small_checkpoints.write_all(folder, torch.float32, seed=0)
    model = (
        folder
        / f"random_{sizes.dim}x{sizes.layers}{'_fast_sound' if fast_sound else ''}.safetensors"
    )
    save_file(slow_weights(sizes, torch.float32, seed=0, fast_sound=fast_sound), model)
    return {
        "model": model,
        "text_encoder": folder / "text_encoders" / "umt5_small.safetensors",
        "vae": folder / "vae" / "wan22_tiny_small.safetensors",
        "audio_vae": folder / "vae" / "mmaudio_small.safetensors",
        "vocoder": None,
    }


def load(files: dict[str, Path], width: int, height: int, length: int, steps: int) -> Parts:
    """Load the files, encode the prompt and make an empty latent."""
    import comfy.sd
    import comfy.utils
    from comfyui_ovi.ovi_model import core_patches
    from comfyui_ovi.ovi_model.latent import latents
    from comfyui_ovi.ovi_model.load import audio_vae, diffusion_model, text_encoder
    from comfyui_ovi.ovi_model.sample import guidance, solver
    from comfyui_ovi.ovi_model.text import encode

    core_patches.install()
    model = diffusion_model.load_model(str(files["model"]), None, "default")
    clip = text_encoder.load_text_encoder(files["text_encoder"])
    positive, negative = encode.encode_prompts(clip, PROMPT, *NEGATIVES)
    return Parts(
        model=guidance.guide(model, AUDIO_CFG, SKIPPED_LAYER, 0.0, 1.0),
        positive=positive,
        negative=negative,
        vae=comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(files["vae"]))),
        audio_vae=audio_vae.load_audio_vae(files["audio_vae"], files["vocoder"]),
        latent=latents.empty(width, height, length, 1),
        sigmas=solver.shifted_sigmas(steps, SHIFT),
    )


def with_cache(model, name: str, threshold: float):
    """Return a copy of a MODEL behind core's node of that name, else with its defaults."""
    from comfy_extras import nodes_easycache

    node = getattr(nodes_easycache, f"{name}Node")
    return node.execute(
        model, threshold, start_percent=0.15, end_percent=0.95, verbose=False
    ).result[0]


def recording(model, made: Run):
    """Return a copy of a MODEL that notes its forwards, behind every cache."""
    import comfy.patcher_extension
    import comfy.utils

    def record(executor, *args, shapes, **kwargs):
        velocity = executor(*args, shapes=shapes, **kwargs)
        (kinds,) = [
            value["cond_or_uncond"]
            for value in (*args, *kwargs.values())
            if isinstance(value, dict)
        ]
        made.forwards += 1
        if POSITIVE in kinds:
            positive = velocity.chunk(len(kinds))[kinds.index(POSITIVE)]
            made.velocities.append(
                [x.to("cpu", copy=True) for x in comfy.utils.unpack_latents(positive, shapes)]
            )
        return velocity

    model = model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "record", record)
    return model


def run(parts: Parts, model, seed: int = SEED) -> Run:
    """Sample with the reference's solver, schedule and guidance; clip."""
    import comfy.sample
    import comfy.samplers
    from comfyui_ovi.ovi_model.decode import clip
    from comfyui_ovi.ovi_model.sample import solver

    made = Run()
    empty = parts.latent["samples"]
    noise = comfy.sample.prepare_noise(empty, seed)
    sampler = comfy.samplers.KSAMPLER(solver.sample_flow_unipc)
    given = (CFG, sampler, parts.sigmas, parts.positive, parts.negative, empty)
    model = recording(model, made)
    start = time.perf_counter()
    latent = comfy.sample.sample_custom(model, noise, *given, disable_pbar=True, seed=seed)
    made.seconds = time.perf_counter() - start
    made.video, made.audio = latent.unbind()
    made.frames, sound = clip.decode({"samples": latent}, parts.vae, parts.audio_vae, "auto")
    made.sound = sound["waveform"]
    return made


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """L2 distance relative to the expected tensor."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def decibels(signal: Tensor, expected: Tensor, loudest: float | None = None) -> float:
    """Ratio of power to that of the difference: the power of `loudest`, as PSNR has it, else of
    what was expected.
    """
    difference = float((signal.double() - expected.double()).square().mean())
    power = loudest**2 if loudest else float(expected.double().square().mean())
    return 10 * math.log10(power / difference) if difference else math.inf


def change(run: Run, stream: int) -> float:
    """Median change of one stream's velocity from a step to the next, relative to the velocity."""
    return statistics.median(
        relative_error(b[stream], a[stream]) for a, b in pairwise(run.velocities)
    )


def row(name: str, threshold: str, made: Run, plain: Run) -> str:
    """One line of the table."""
    errors = [
        relative_error(a, b) for a, b in ((made.video, plain.video), (made.audio, plain.audio))
    ]
    decoded = decibels(made.frames, plain.frames, 1.0), decibels(made.sound, plain.sound)
    cells = [name, threshold, f"{made.forwards} of {plain.forwards}", f"{made.seconds:.2f}"]
    cells += [f"{error:.2e}" for error in errors] + [f"{value:.1f}" for value in decoded]
    return f"| {' | '.join(cells)} |"


def print_table(parts: Parts, thresholds: list[float]) -> None:
    """Run without a cache and with each; print what came of it."""
    run(parts, parts.model)  # the first run loads, and fills the pools of allocators
    plain = run(parts, parts.model)
    shapes = " and ".join(str(list(stream.shape)) for stream in (plain.video, plain.audio))
    print(f"Latents {shapes}; {len(parts.sigmas) - 1} steps.")
    print(
        f"The velocity changes from step to step by {change(plain, 0):.1%} (picture), "
        f"{change(plain, 1):.1%} (sound)."
    )
    print(
        "\n| cache | threshold | forwards | seconds | picture rel-L2 | sound rel-L2 | PSNR dB | "
        "SNR dB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print(row("none", "", plain, plain))
    print(row("none, other seed", "", run(parts, parts.model, SEED + 1), plain))
    for name in ("EasyCache", "LazyCache"):
        for threshold in thresholds:
            print(
                row(
                    name,
                    f"{threshold:g}",
                    run(parts, with_cache(parts.model, name, threshold)),
                    plain,
                ),
                flush=True,
            )
    print("\nSeconds: sampling alone, one run each, on this machine.")


def parse_options() -> argparse.Namespace:
    """Read the command line; either all real files are named, or none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    for name in (*FILES, "vocoder"):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=Path, help="a file of your own; random if left out"
        )
    parser.add_argument("--width", type=positive, default=128, help="pixels")
    parser.add_argument("--height", type=positive, default=128, help="pixels")
    parser.add_argument("--length", type=positive, default=25, help="frames, 4n + 1")
    parser.add_argument("--steps", type=positive, default=50)
    parser.add_argument(
        "--thresholds", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4], help="reuse_threshold"
    )
    parser.add_argument(
        "--dim", type=positive, default=256, help="width of the random model, a multiple of 128"
    )
    parser.add_argument(
        "--layers", type=positive, default=12, help="blocks of the random model, 12 at least"
    )
    parser.add_argument(
        "--fast-sound",
        action="store_true",
        help="random sound that changes faster than the picture",
    )
    options = parser.parse_args()
    given = [getattr(options, name) is not None for name in FILES]
    if any(given) and not all(given):
        parser.error("name all of --model, --text-encoder, --vae and --audio-vae, or none of them")
    return options


def main() -> None:
    """Load real files or random ones and print the table."""
    options = parse_options()
    import_comfy(options.comfyui)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    import_extension()
    sizes = OviSizes(dim=options.dim, ffn_dim=options.dim * 3 // 2, layers=options.layers)
    with torch.inference_mode(), tempfile.TemporaryDirectory(prefix="ovi-caches-") as folder:
        files = {name: getattr(options, name) for name in (*FILES, "vocoder")}
        if files["model"] is None:
            files = make_files(Path(folder), sizes, options.fast_sound)
        print(f"{command()}\n\n{machine()}, {files['model'].name}")
        print_table(
            load(files, options.width, options.height, options.length, options.steps),
            options.thresholds,
        )


if __name__ == "__main__":
    main()
