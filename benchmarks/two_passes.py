"""What a second pass over a clip at twice the width and height costs: counted at full size, and
measured on the miniature.

Usage: python benchmarks/two_passes.py --comfyui PATH [--runs 3]

Run it with ComfyUI's python. Counted are multiplications and additions of the matrix products,
convolutions and attention of one forward, on the meta device; a step with guidance has two
forwards. The miniature makes 37 frames of 64 x 64 pixels in 20 steps, then, as in the workflow
Ovi_08_Two_passes_larger, 10 steps at 128 x 128 with a denoise of 0.5; and 20 steps at 128 x 128 in
one pass. Seconds are of the processor, one thread.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from clips import Clip
from command_line import machine, positive
from torch.utils.flop_counter import FlopCounterMode

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / folder) for folder in ("tools", "tests/support")]

from find_comfyui import import_comfy, import_extension  # noqa: E402

SMALL, LARGE = Clip(640, 352, 121), Clip(1280, 704, 121)
PROMPT = "A yellow face says <S>ba ba ba<E>. Audio: a middle voice."
STEPS, DENOISE = 20, 0.5


def count(clip: Clip) -> tuple[float, float]:
    """Return the operations of a forward at the released size, and those of its attention."""
    import comfy.ops
    from comfyui_ovi.ovi_model.network.model import OviModel

    model = OviModel(
        *clip.towers(),
        operations=comfy.ops.disable_weight_init,
        dtype=torch.bfloat16,
        device="meta",
    )
    latents = [torch.zeros(shape, dtype=torch.bfloat16, device="meta") for shape in clip.shapes()]
    text = torch.zeros(1, 512, model.config.text_dim, dtype=torch.bfloat16, device="meta")
    attention = []

    def attend(_original, query, key, _value, *_args, **_options):
        attention.append(4 * query.numel() * key.shape[1])
        return torch.empty_like(query)

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        options = {"optimized_attention_override": attend}
        model(latents, torch.zeros(1, device="meta"), text, text, transformer_options=options)
    return counter.get_total_flops() + sum(attention), sum(attention)


def measure(runs: int) -> list[list[float]]:
    """Return seconds of each run: first pass, second pass, one pass at the large size."""
    import comfy.utils
    from comfyui_ovi.nodes.latents import OviLatent
    from comfyui_ovi.nodes.load import OviMiniature
    from comfyui_ovi.nodes.sampling import OviGuidance
    from comfyui_ovi.nodes.text import OviTextEncode
    from comfyui_ovi.ovi_model import core_patches
    from comfyui_ovi.ovi_model.latent import latents

    core_patches.install()
    torch.set_num_threads(1)
    model, clip, *_ = OviMiniature.execute().args
    prompts = OviTextEncode.execute(clip, PROMPT, "", "", "Audio:").args
    (model,) = OviGuidance.execute(model, 3.0, -1, 0.0, 1.0).args
    small, large = (OviLatent.execute(size, size, 37, 1).args[0] for size in (64, 128))
    sample(model, prompts, small, 2, 1.0)
    times = []
    for _ in range(runs):
        first, seconds = sample(model, prompts, small, STEPS, 1.0)
        video, audio = latents.separate(first)
        wide = comfy.utils.common_upscale(video["samples"], 8, 8, "nearest-exact", "disabled")
        joined = latents.concat({"samples": wide}, audio)
        _, again = sample(model, prompts, joined, int(STEPS * DENOISE), DENOISE)
        times.append([seconds, again, sample(model, prompts, large, STEPS, 1.0)[1]])
    return times


def sample(model, prompts, latent: dict, steps: int, denoise: float) -> tuple[dict, float]:
    """Sample as the workflow does; return the latent and the seconds."""
    import comfy.sample
    from comfyui_ovi.nodes.sampling import OviSamplerUniPC, OviScheduler

    (sigmas,), (solver,) = (
        node.args for node in (OviScheduler.execute(steps, 5.0, denoise), OviSamplerUniPC.execute())
    )
    begin = time.process_time()
    noise = comfy.sample.prepare_noise(latent["samples"], 5)
    made = comfy.sample.sample_custom(
        model, noise, 4.0, solver, sigmas, *prompts, latent["samples"], disable_pbar=True
    )
    return {"samples": made}, time.process_time() - begin


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--runs", type=positive, default=3, help="of the miniature (default: 3)")
    arguments = parser.parse_args()
    import_comfy(arguments.comfyui)
    import_extension()
    print(machine())
    for clip in (SMALL, LARGE):
        total, attention = count(clip)
        print(
            f"{clip.width} x {clip.height}, {clip.frames} frames: {clip.tokens} tokens, "
            f"{total / 1e12:.1f} TFLOP a forward, {attention / 1e12:.1f} of them attention"
        )
    names = "first pass", "second pass", "one pass"
    for name, seconds in zip(names, zip(*measure(arguments.runs), strict=True), strict=True):
        print(f"miniature, {name}: {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
    main()
