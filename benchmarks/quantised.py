"""What each target of the converter costs the miniature: bytes, a forward's error, what judges say.

Usage: python benchmarks/quantised.py --comfyui PATH --work FOLDER [--to fp8-product int8 ...]
[--clips 48]

Run it with ComfyUI's python. Layers multiply as they are stored, as a card does that can: a
processor has such products of fp8 and int8; of mxfp8 and nvfp4 it has none, so there both factors
are quantised and multiplied as numbers. The error is of one forward, relative, without and with
quantised inputs. Clips are made and judged by miniature/training/evaluate.py; what is in FOLDER
already is not made again. Behind each share stands its Wilson interval of 95 %.
"""

import argparse
import logging
import shutil
import sys
from pathlib import Path

import torch
from command_line import command, machine, positive
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / folder) for folder in ("tools", "miniature/training")]

from find_comfyui import import_comfy, import_extension  # noqa: E402

MODEL = Path("diffusion_models/ovi_miniature.safetensors")
PLAIN = "as published"
TARGETS = ("fp8", "fp8-product", "int8", "int8-convrot", "mxfp8", "nvfp4")
ABILITIES = ("supports_fp8_compute", "supports_mxfp8_compute", "supports_nvfp4_compute")
SHAPES = (1, 48, 10, 4, 4), (1, 20, 40), (1, 40)  # of the latents, and tokens of the text


def set_products(allowed: bool) -> None:
    """Have layers that are loaded from now on multiply as they are stored, or in full."""
    import comfy.model_management

    for name in ABILITIES:
        setattr(comfy.model_management, name, lambda *_, **__: allowed)


def multiply_as_numbers() -> None:
    """Have products that no processor has fail, upon which the layouts multiply what they hold."""
    import comfy_kitchen

    def fail(*_, **__):
        raise RuntimeError("a processor has no such product")

    comfy_kitchen.scaled_mm_mxfp8 = comfy_kitchen.scaled_mm_nvfp4 = fail
    logging.getLogger("comfy_kitchen").setLevel(logging.ERROR)


def convert(folder: Path, target: str) -> Path:
    """Lay a miniature out in a folder, its model in a target, and return the model's file."""
    from convert_checkpoint import convert

    source, output = REPOSITORY / "miniature", folder / MODEL
    if not output.exists():
        for part in ("text_encoders", "vae"):
            shutil.copytree(source / part, folder / part, dirs_exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        if target == PLAIN:
            shutil.copy(source / MODEL, output)
        else:
            convert([source / MODEL], output, target)
    return output


def forward(model: Path, products: bool) -> Tensor:
    """Return picture and sound of one forward, flat."""
    import comfy.model_management
    from comfyui_ovi.ovi_model.load.diffusion_model import load_model

    set_products(products)
    patcher = load_model(str(model), None, "default")
    comfy.model_management.load_models_gpu([patcher])
    network, draw = patcher.model.diffusion_model, torch.Generator().manual_seed(0)
    video, audio, text = SHAPES
    latents = [torch.randn(shape, generator=draw) for shape in (video, audio)]
    prompt = torch.randn(*text, network.text_embedding[0].weight.shape[1], generator=draw)
    made = network(latents, torch.tensor([500.0]), prompt)
    return torch.cat([stream.flatten() for stream in made])


def judged(folder: Path, clips: int) -> dict[str, float]:
    """Return the figures of a miniature, made now or before."""
    import evaluate
    from comfyui_ovi.miniature.training import generate

    if not (folder / evaluate.FIGURES).exists():
        set_products(True)
        parts = generate.load(folder)

        def source(_clip, caption, seed):
            return generate.make_clip(parts, caption, seed, generate.Guidance())

        evaluate.write(folder, {"clips": str(clips)}, *evaluate.evaluate(source, clips, False))
    return evaluate.read_figures(folder)


def row(target: str, folder: Path, clips: int, plain: Tensor) -> list[str]:
    """Return one line of the table."""
    from comfyui_ovi.miniature.training.figures import wilson

    model = convert(folder, target)
    errors = [
        (forward(model, products) - plain).norm() / plain.norm() for products in (False, True)
    ]
    found = judged(folder, clips) if clips else {}
    cells = [target, f"{model.stat().st_size / 1e6:.2f}", *(f"{error:.2%}" for error in errors)]
    for name, count in (("sync", "events_heard"), ("colour", "clips"), ("pitch", "clips")):
        if found:
            low, high = wilson(round(found[name] * found[count]), int(found[count]))
            cells.append(f"{found[name]:.1%} ({low:.0%} to {high:.0%} of {found[count]})")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--work", type=Path, required=True, help="folder for files and figures")
    parser.add_argument("--to", nargs="+", choices=TARGETS, default=TARGETS, metavar="TARGET")
    parser.add_argument("--clips", type=positive, help="clips to be judged; without, none are")
    options = parser.parse_args()
    import_comfy(options.comfyui)
    import_extension()
    from comfyui_ovi.ovi_model import core_patches

    core_patches.install()
    multiply_as_numbers()
    print(f"`{command()}`\n\n{machine()}\n")
    heads = ["target", "MB", "error", "error, products too"]
    heads += ["in sync", "colour", "pitch"] if options.clips else []
    with torch.inference_mode():
        plain = forward(convert(options.work / "plain", PLAIN), False)
        rows = [
            row(target, options.work / folder, options.clips, plain)
            for target, folder in [(PLAIN, "plain"), *((to, to) for to in options.to)]
        ]
    for cells in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
