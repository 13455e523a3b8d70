"""Write small random checkpoints in the published layouts: they make noise, but run every line of
the real path.

Usage: python tests/support/make_small_checkpoints.py OUT_DIR [--comfyui PATH] [--dtype bfloat16]
[--seed 0]

Run it with ComfyUI's python. ComfyUI is found at --comfyui, at the environment variable
COMFYUI_PATH, or around this extension where it is installed in one.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

import small_weights as small
from find_comfyui import import_comfy


def write_all(out_dir: Path, dtype: torch.dtype, seed: int) -> list[tuple[Path, str]]:
    """Write every file below out_dir; return each path with what it stands for."""
    text_sizes, ovi_sizes = small.TextSizes(), small.OviSizes()
    tokenizer = small.tokenizer_model(text_sizes.vocab_size)
    text = small.text_encoder_weights(text_sizes, torch.bfloat16, seed)
    audio_vae, vocoder = small.audio_vae_weights(seed), small.vocoder_weights(seed)
    normed_vocoder = small.with_weight_norm(vocoder)
    files: list[tuple[str, dict, Callable[..., None], str]] = [
        (
            "diffusion_models/ovi_small.safetensors",
            small.ovi_weights(ovi_sizes, dtype, seed),
            save_file,
            "Ovi, both towers",
        ),
        (
            "text_encoders/umt5_small.safetensors",
            text | {"spiece_model": tokenizer},
            save_file,
            "umT5 with tokenizer",
        ),
        (
            "text_encoders/models_t5_umt5-small-enc.pth",
            small.in_wan_naming(text),
            torch.save,
            "the same umT5, Wan's naming",
        ),
        (
            "vae/wan22_tiny_small.safetensors",
            small.video_decoder_weights(seed),
            save_file,
            "tiny Wan 2.2 video decoder",
        ),
        (
            "vae/wan22_encoder_small.safetensors",
            small.video_vae_weights(seed),
            save_file,
            "Wan 2.2 video VAE, width 16",
        ),
        ("vae/mmaudio_vae_small.pth", audio_vae, torch.save, "audio VAE (v1-16.pth)"),
        (
            "vae/bigvgan_small.pt",
            {"generator": normed_vocoder},
            torch.save,
            "vocoder (best_netG.pt)",
        ),
        (
            "vae/mmaudio_small.safetensors",
            small.merged_audio_weights(audio_vae, vocoder),
            save_file,
            "audio VAE and vocoder",
        ),
        (
            "loras/ovi_small_lora.safetensors",
            small.lora_weights(ovi_sizes, seed),
            save_file,
            "LoRA on both towers",
        ),
        (
            "upscale_models/small_2x.safetensors",
            small.upscaler_weights(seed),
            save_file,
            "2x image upscaler",
        ),
    ]
    for name, content, write, _ in files:
        path = out_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write({key: _plain(value) for key, value in content.items()}, str(path))
    return [(out_dir / name, meaning) for name, _, _, meaning in files]


def _plain(value: Tensor | dict) -> Tensor | dict:
    return value.contiguous() if isinstance(value, Tensor) else value


def main() -> None:
    """Parse the command line, write the files and list them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "out_dir", type=Path, help="models folder to write to; sub-folders are made"
    )
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float16", "float32"),
        help="of the Ovi file",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import_comfy(options.comfyui)
    with torch.no_grad():
        written = write_all(options.out_dir, getattr(torch, options.dtype), options.seed)
    for path, meaning in written:
        print(f"{path.stat().st_size / 2**20:7.2f} MB  {path}  ({meaning})")


if __name__ == "__main__":
    main()
