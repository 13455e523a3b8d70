"""Fits a shared workflow to the small checkpoints and to two CPU cores: other files, a smaller
picture.
"""

import copy
import subprocess
import sys
from pathlib import Path

# Loader and input, then the file make_small_checkpoints.py writes for it.
SMALL_FILES = {
    ("OviModelLoader", "model"): "ovi_small.safetensors",
    ("UNETLoader", "unet_name"): "ovi_small.safetensors",
    ("OviTextEncoderLoader", "text_encoder"): "umt5_small.safetensors",
    ("CLIPLoader", "clip_name"): "umt5_small.safetensors",
    ("VAELoader", "vae_name"): "wan22_tiny_small.safetensors",
    ("OviAudioVAELoader", "vae"): "mmaudio_vae_small.pth",
    ("OviAudioVAELoader", "vocoder"): "bigvgan_small.pt",
    ("LoraLoaderModelOnly", "lora_name"): "ovi_small_lora.safetensors",
    ("OviLoraLoader", "lora_name"): "ovi_small_lora.safetensors",
    ("UpscaleModelLoader", "model_name"): "small_2x.safetensors",
}
# What comes with the extension, which is small as it is.
SHIPPED = {path.name for path in (Path(__file__).parents[2] / "miniature").rglob("*.safetensors")}
SIZE = {"width": 128, "height": 96}
SCRIPT = Path(__file__).with_name("make_small_checkpoints.py")


def write_small_files(comfyui: Path, models: Path) -> None:
    """Write the small checkpoints below a models folder, in a process of its own.

    Raises RuntimeError with the script's words when it fails.
    """
    command = [sys.executable, str(SCRIPT), "--comfyui", str(comfyui), str(models)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"{SCRIPT.name} failed:\n{made.stdout}{made.stderr}")


def with_small_files(prompt: dict) -> dict:
    """Return a copy of an API-format workflow that loads the small files; nothing but the files it
    names changes, of which those of the miniature stay.
    """
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        for name in node["inputs"]:
            small = SMALL_FILES.get((node["class_type"], name))
            if small and node["inputs"][name] not in SHIPPED:
                node["inputs"][name] = small
    return prompt


def with_small_picture(prompt: dict) -> dict:
    """Return a copy of an API-format workflow whose OviLatent is small; its length and every other
    setting stay.
    """
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        if node["class_type"] == "OviLatent":
            node["inputs"] |= SIZE
    return prompt
