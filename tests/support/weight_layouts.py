"""Every layout in which people have Ovi's weights: who publishes it, what loads it, and how to
write a small one.

The tests load a file of each; list_weights.py makes docs/weights.md of the same list.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import layout_writers as write
import torch

STOCK = "Load Diffusion Model"
OURS = "Ovi Model Loader"
GGUF = "Unet Loader (GGUF)"


@dataclass(frozen=True)
class Layout:
    """One way to store the twin DiT.

    names: the files people have, `a + b` for two that belong together. loaders: display names of
    the nodes.
    write: one of layout_writers. rounding: how far a value can be from its weight, relative. since:
    the version of
    this extension that read it first.
    """

    name: str
    what: str
    source: str
    names: tuple[str, ...]
    loaders: tuple[str, ...]
    write: Callable[[write.Weights, Path], write.Written]
    rounding: float = 0.0
    since: str = "0.1.0"


# Half a unit in the last place: bfloat16 keeps 8 bits, float16 11, fp8 e4m3 4. A row of int8, or a
# block of GGUF,
# has 127 steps up to its largest weight, five bits have 15, four bits 7; half a step is relative to
# that one.
BF16, FP16, FP8_E4M3, INT8 = 2**-8, 2**-11, 2**-4, 1 / 254
INT5, INT4 = 1 / 30, 1 / 14

LAYOUTS = (
    Layout(
        "fused_bf16",
        "one file, bf16",
        "chetwinlow1/Ovi; renamed by wrappers",
        (
            "model.safetensors",
            "model_960x960.safetensors",
            "model_960x960_10s.safetensors",
            "Ovi-11B-bf16.safetensors",
        ),
        (STOCK, OURS),
        partial(write.fused, dtype=torch.bfloat16),
        BF16,
    ),
    Layout(
        "fused_fp16",
        "one file, fp16",
        "made by users",
        ("any name",),
        (STOCK, OURS),
        partial(write.fused, dtype=torch.float16),
        FP16,
    ),
    Layout(
        "fused_fp32",
        "one file, fp32",
        "made by users",
        ("any name",),
        (STOCK, OURS),
        partial(write.fused, dtype=torch.float32),
    ),
    Layout(
        "plain_fp8",
        "one file, fp8",
        "rkfg/Ovi-fp8_quantized; renamed by wrappers",
        ("model_fp8_e4m3fn.safetensors", "Ovi-11B-fp8.safetensors"),
        (STOCK, OURS),
        write.plain_fp8,
        FP8_E4M3,
    ),
    Layout(
        "two_files",
        "two files, bf16",
        "Kijai/WanVideo_comfy, Ovi",
        (
            "Wan_2_2_Ovi_video_model_bf16.safetensors + Wan_2_2_Ovi_audio_model_bf16.safetensors",
            "Wan_2_1_Ovi_video_model_bf16.safetensors + Wan_2_1_Ovi_audio_model_bf16.safetensors",
        ),
        (OURS,),
        partial(write.two_files, audio_prefix="audio_model."),
        BF16,
    ),
    Layout(
        "two_files_bare",
        "two files, bf16",
        "DeepBeepMeep/Wan2.2",
        (
            "wan2.2_ovi_video_10B_bf16.safetensors + wan2.2_ovi_audio_10B_bf16.safetensors",
            "wan2.2_ovi1_1_video_10B_bf16.safetensors + wan2.2_ovi1_1_audio_10B_bf16.safetensors",
            "wan2.2_ovi1_1_10s_video_10B_bf16.safetensors + "
            "wan2.2_ovi1_1_10s_audio_10B_bf16.safetensors",
        ),
        (OURS,),
        partial(write.two_files, nested=True),
        BF16,
    ),
    Layout(
        "two_files_prefixed",
        "two files, bf16",
        "the fused file, cut in two",
        ("any names",),
        (OURS,),
        partial(
            write.two_files, video_prefix="video_model.", audio_prefix="audio_model.", nested=True
        ),
        BF16,
    ),
    Layout(
        "scaled_fp8",
        "one file, scaled fp8",
        "Kijai/WanVideo_comfy_fp8_scaled, TI2V/Ovi",
        (
            "Wan2_2-5B-Ovi_960x960_fp8_e4m3fn_scaled_KJ.safetensors",
            "Wan2_2-5B-Ovi_960x960_10s_fp8_e4m3fn_scaled_KJ.safetensors",
        ),
        (STOCK, OURS),
        partial(write.scaled_fp8, files=1),
        FP8_E4M3,
    ),
    Layout(
        "scaled_fp8_two_files",
        "two files, scaled fp8",
        "Kijai/WanVideo_comfy_fp8_scaled, TI2V/Ovi",
        (
            "Wan2_2_Ovi_Video_fp8_e4m3fn_scaled_KJ.safetensors + "
            "Wan2_2_Ovi_Audio_fp8_e4m3fn_scaled_KJ.safetensors",
        ),
        (OURS,),
        partial(write.scaled_fp8, files=2),
        FP8_E4M3,
    ),
    Layout(
        "listed_fp8",
        "one file, scaled fp8",
        "ComfyUI 0.3.75's own",
        ("any name",),
        (STOCK, OURS),
        partial(write.listed_fp8, files=1),
        FP8_E4M3,
    ),
    Layout(
        "listed_fp8_two_files",
        "two files, scaled fp8",
        "the same in two",
        ("any names",),
        (OURS,),
        partial(write.listed_fp8, files=2),
        FP8_E4M3,
    ),
    Layout(
        "marked_fp8",
        "one file, scaled fp8",
        "later ComfyUI's own",
        ("any name",),
        (STOCK, OURS),
        partial(write.marked_fp8, files=1),
        FP8_E4M3,
        "0.2.0",
    ),
    Layout(
        "quanto_int8",
        "two files, int8",
        "DeepBeepMeep/Wan2.2",
        (
            "wan2.2_ovi_video_10B_quanto_bf16_int8.safetensors + "
            "wan2.2_ovi_audio_10B_quanto_bf16_int8.safetensors",
            "wan2.2_ovi1_1_video_10B_quanto_bf16_int8.safetensors + "
            "wan2.2_ovi1_1_audio_10B_quanto_bf16_int8.safetensors",
            "wan2.2_ovi1_1_10s_video_10B_quanto_bf16_int8.safetensors + "
            "wan2.2_ovi1_1_10s_audio_10B_quanto_bf16_int8.safetensors",
        ),
        (OURS,),
        write.quanto_int8,
        INT8,
        "0.2.0",
    ),
    Layout(
        "module_pt",
        "one pickle, weights under `module`",
        "training runs",
        ("any name .pt",),
        (STOCK, OURS),
        lambda weights, path: write.training_checkpoint(weights, path, "module"),
        BF16,
        "0.2.0",
    ),
    Layout(
        "app_model_pt",
        "one pickle, weights under `app`, `model`",
        "training runs",
        ("any name .pt",),
        (STOCK, OURS),
        lambda weights, path: write.training_checkpoint(weights, path, "app", "model"),
        BF16,
        "0.2.0",
    ),
    Layout(
        "generator_pt",
        "one pickle, weights under `generator_ema` or `generator`",
        "Hallo-Live",
        ("hallolive_dit.pt",),
        (STOCK, OURS),
        lambda weights, path: write.training_checkpoint(
            weights, path, "generator_ema", sharded=True
        ),
        BF16,
        "0.7.0",
    ),
    Layout(
        "gguf_q8_0",
        "GGUF Q8_0",
        "made by tools/convert_checkpoint.py",
        ("any name .gguf",),
        (GGUF,),
        partial(write.gguf, kind="q8_0"),
        INT8,
        "0.2.0",
    ),
    Layout(
        "gguf_q5_0",
        "GGUF Q5_0",
        "made by tools/convert_checkpoint.py",
        ("any name .gguf",),
        (GGUF,),
        partial(write.gguf, kind="q5_0"),
        INT5,
        "0.2.0",
    ),
    Layout(
        "gguf_q4_0",
        "GGUF Q4_0",
        "made by tools/convert_checkpoint.py",
        ("any name .gguf",),
        (GGUF,),
        partial(write.gguf, kind="q4_0"),
        INT4,
        "0.2.0",
    ),
    Layout(
        "saved",
        "one file, any precision",
        "ComfyUI's Save Model",
        ("any name",),
        (STOCK, OURS),
        write.saved_by_comfyui,
        BF16,
    ),
)
