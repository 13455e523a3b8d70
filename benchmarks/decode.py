"""Decoding: memory of the released decoders, counted, and what is left to be seen of tiles,
measured.

Usage: python benchmarks/decode.py --comfyui PATH [--cells 32] [--steps 2] [--width 8]

Run it with ComfyUI's python; ComfyUI is found as make_small_checkpoints.py finds it. Counting needs
neither a card nor weights. Tiles are compared with the whole on a narrow Wan 2.2 VAE of random
weights, which decodes the latent it makes of a moving picture itself. That shows what the layers'
reach and the attention over the picture do; how far a trained decoder makes use of its reach, it
does not show.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from command_line import positive
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / folder) for folder in ("tools", "tests/support")]

import small_weights  # noqa: E402
from count_bytes import CountBytes  # noqa: E402
from find_comfyui import import_comfy, import_extension  # noqa: E402

GIB, MIB = 2**30, 2**20
CLIPS = [
    (width, height, seconds)
    for width, height in ((704, 704), (960, 960), (1280, 704))
    for seconds in (5, 10)
]
SECONDS_OF_SOUND = (5, 10, 60)
WAN = {"z_dim": 48, "temperal_downsample": [False, True, True]}
# Cells of overlap, and cells at a tile's edge that are left out of it.
OVERLAPS = [(4, 0), (4, 1), (8, 0), (8, 2), (8, 3), (12, 0), (12, 3), (12, 5)]


def count(function, *arguments) -> int:
    """The bytes alive at the peak of a call, besides what its arguments hold."""
    with torch.no_grad(), CountBytes() as counted:
        function(*arguments)
    return counted.peak


def on_meta(make, dtype=torch.float32):
    """Build a model without weights."""
    with torch.device("meta"):
        return make().to(dtype).requires_grad_(False)


def print_video_memory() -> None:
    """Print what core's decoder holds, whole and in tiles, and what is said of it."""
    from comfy.ldm.modules.diffusionmodules.model import pytorch_attention
    from comfy.ldm.wan.vae2_2 import WanVAE
    from comfyui_ovi.ovi_model.decode.streaming import bytes_held, decode_streaming
    from comfyui_ovi.ovi_model.decode.tiles import least_work
    from comfyui_ovi.ovi_model.latent.geometry import latent_frames

    model = on_meta(lambda: WanVAE(dim=8, dec_dim=256, **WAN), torch.bfloat16)
    model.decoder.middle[
        1
    ].optimized_attention = pytorch_attention  # the others ask how much of a device is free
    with torch.inference_mode():
        stock_asks = narrow_vae(8).memory_used_decode  # the width makes no difference to it
    print(
        "| clip, bfloat16 | stock, whole | whole | tiles of 512 | asked for whole | asked for "
        "tiles | stock asks |"
    )
    print("|---|---|---|---|---|---|---|")
    for width, height, seconds in CLIPS:
        rows, columns, steps = height // 16, width // 16, latent_frames(24 * seconds + 1)
        latent = torch.zeros(1, 48, steps, rows, columns, dtype=torch.bfloat16, device="meta")
        grid = least_work(rows, columns, lambda *sides: max(sides) <= 32)
        tile = latent[..., : grid.height.tile, : grid.width.tile]
        streamed = [
            count(decode_streaming, model, part, lambda _: None, ()) for part in (latent, tile)
        ]
        said = [
            bytes_held(model, cells, rows * columns, torch.bfloat16)
            for cells in (rows * columns, grid.area)
        ]
        figures = [
            count(model.decode, latent),
            *streamed,
            *said,
            stock_asks(latent.shape, torch.bfloat16),
        ]
        cells = " | ".join(f"{figure / GIB:.2f}" for figure in figures)
        print(f"| {width} x {height}, {seconds} s | {cells} |", flush=True)


def print_sound_memory() -> None:
    """Print what the audio VAE and the vocoder hold, in one piece and in several."""
    from comfy.ldm.modules.diffusionmodules.model import pytorch_attention
    from comfyui_ovi.ovi_model.decode import audio
    from comfyui_ovi.ovi_model.load.audio_vae import SizedAutoencoder

    model = on_meta(lambda: SizedAutoencoder(384, 1536))
    model.vae.decoder.mid.attn_1.optimized_attention = pytorch_attention
    print(
        f"\nContext of a chunk: {audio.receptive_field(model.vocoder)} mel frames on each side.\n"
    )
    print("| sound, float32 | VAE, MiB | vocoder in one piece | vocoder in pieces |")
    print("|---|---|---|---|")
    for seconds in SECONDS_OF_SOUND:
        latent = torch.zeros(1, 20, math.ceil(seconds * 31.25), device="meta")
        mel = torch.zeros(1, 80, 2 * latent.shape[-1], device="meta")
        calls = [
            (model.vae.decode, latent),
            (model.vocoder, mel),
            (audio.vocode, model.vocoder, mel, mel.device),
        ]
        print(
            f"| {seconds} s | {' | '.join(f'{count(*call) / MIB:.0f}' for call in calls)} |",
            flush=True,
        )


def narrow_vae(width: int):
    """Core's VAE object around a narrow Wan 2.2 VAE of random weights whose frames spread by a
    quarter of the range.
    """
    import comfy.sd
    from comfy.ldm.wan import vae2_2

    def make(**_):
        return wan(dim=width, dec_dim=width, **WAN)

    wan = vae2_2.WanVAE
    weights = small_weights.random_weights(
        {name: tuple(x.shape) for name, x in make().state_dict().items()}, 0
    )
    with patch.object(vae2_2, "WanVAE", make):
        vae = comfy.sd.VAE(sd=weights, dtype=torch.float32)
    head = vae.first_stage_model.decoder.head[-1]
    spread = vae.first_stage_model.decode(torch.randn(1, 48, 2, 8, 8)).std()
    head.weight.data /= 2 * spread
    head.bias.data /= 2 * spread
    return vae


def moving_picture(frames: int, side: int) -> Tensor:
    """Waves, a disc and stripes, each moving on its way; [1, 3, F, side, side] in -1 to 1."""
    down, across = torch.meshgrid(
        torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij"
    )
    made = []
    for frame in range(frames):
        time = frame / 24
        waves = torch.sin(6 * across + 2 * down + 3 * time) * torch.cos(5 * down - 2 * time)
        stripes = torch.sin(40 * (across * math.cos(time) + down * math.sin(time)))
        centre = 0.5 * math.sin(3 * time), 0.4 * math.cos(2 * time)
        disc = torch.sigmoid(20 * (0.35 - torch.hypot(across - centre[0], down - centre[1])))
        made.append(
            torch.stack(
                [waves + disc * (stripes - waves), disc - 0.5 + 0.2 * waves, waves * (1 - disc)]
            )
        )
    return torch.stack(made, dim=1)[None].clamp(-1, 1)


@dataclass(frozen=True)
class Difference:
    """How tiled frames [1, F, H, W, 3] differ from those decoded whole."""

    tiled: Tensor
    whole: Tensor

    @property
    def noise_ratio(self) -> float:
        """PSNR of the worst frame, in decibels."""
        return -10 * (self.tiled - self.whole).square().mean((0, 2, 3, 4)).max().log10().item()

    @property
    def line(self) -> float:
        """The worst column's step beside the picture's own steps from column to column: a seam is a
        line of steps.
        """
        steps = (self.tiled - self.whole).diff(dim=-2).abs().mean((0, 1, 2, 4))
        return (steps.max() / self.whole.diff(dim=-2).abs().mean()).item()

    @property
    def flicker(self) -> float:
        """How much the changes from frame to frame differ, beside those changes."""
        return (
            (self.tiled - self.whole).diff(dim=1).abs().mean() / self.whole.diff(dim=1).abs().mean()
        ).item()

    def __str__(self) -> str:
        return f"{self.noise_ratio:.1f} | {100 * self.line:.2f} | {100 * self.flicker:.2f} |"


def print_seams(cells: int, steps: int, width: int) -> None:
    """Print how tiles of several overlaps, stock's and ours, differ from the whole."""
    from comfyui_ovi.ovi_model.decode import tiled_video, tiles

    vae = narrow_vae(width)
    latent = vae.first_stage_model.encode(moving_picture(4 * steps - 3, 16 * cells))
    latent = latent / latent.std()
    whole = tiled_video.decode_whole(vae, latent)
    print(
        f"\n{cells} x {cells} cells, {4 * steps - 3} frames, decoder of width {width} with random "
        "weights\n"
    )
    print("| tiles | cells decoded | PSNR of the worst frame, dB | worst line, % | flicker, % |")
    print("|---|---|---|---|---|")
    for overlap, edge in OVERLAPS:
        tiles.OVERLAP, tiles.EDGE = overlap, edge
        for count_of_tiles in (2, 3):
            axis = tiles.cut(cells, count_of_tiles)
            grid = tiles.Grid(axis, axis)
            work = f"{len(grid) * grid.area / cells**2:.2f}"
            name = (
                f"{count_of_tiles} x {count_of_tiles} of {16 * axis.tile} pixels, overlap {overlap}"
            )
            if edge == 0:
                stock = vae.decode_tiled(
                    latent, tile_x=axis.tile, tile_y=axis.tile, overlap=overlap
                )
                print(f"| stock, {name} | {work} | {Difference(stock, whole)}", flush=True)
            tiled = tiled_video._decode_tiles(vae, latent, grid)
            print(f"| ours, {name}, edge {edge} | {work} | {Difference(tiled, whole)}", flush=True)


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument(
        "--cells",
        type=positive,
        default=32,
        help="side of the picture whose tiles are compared, 16 pixels",
    )
    parser.add_argument(
        "--steps", type=positive, default=2, help="its length, 4 frames each but the first"
    )
    parser.add_argument(
        "--width",
        type=positive,
        default=8,
        help="channels of the narrow decoder; the released has 256",
    )
    arguments = parser.parse_args()
    import_comfy(arguments.comfyui)
    import_extension()
    print_video_memory()
    print_sound_memory()
    with torch.inference_mode():
        print_seams(arguments.cells, arguments.steps, arguments.width)


if __name__ == "__main__":
    main()
