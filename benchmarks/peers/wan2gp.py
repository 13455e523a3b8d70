"""deepbeepmeep/Wan2GP: clips one by one, as its engine runs them.

It attends through its own `pay_attention`, whose place the function takes that the others are
measured with.
"""

from __future__ import annotations

import contextlib
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import reference
import torch
from torch import Tensor, nn

from .checkout import Checkout, stand_in

REPOSITORY = "deepbeepmeep/Wan2GP"
PROOF = "models/wan/ovi/modules/fusion.py"
PACKAGE = "peer_wan2gp"
# What its loop over blocks asks whether to stop.
PIPELINE = SimpleNamespace(_interrupt=False)


def pay_attention(qkv_list: list[Tensor]) -> Tensor:
    """PyTorch's attention as core calls it; query, key and value [B, L, H, d]; empties the list."""
    query, key, value = (x.transpose(1, 2) for x in qkv_list)
    qkv_list.clear()
    return reference.attend_by_head(query, key, value).transpose(1, 2)


def build(checkout: Path, video, audio, dtype: torch.dtype) -> nn.Module:
    def change(text: str) -> str:
        text = text.replace('device = "cuda"', "device = t.device")
        if dtype == torch.float32:
            text = re.sub(r"\bbfloat16\b", "float32", text.replace(".bfloat16()", ".float()"))
        return text

    Checkout(PACKAGE, checkout, change).install()
    with reference.replaced(
        {
            **reference.stand_ins(),
            **stand_in("shared"),
            **stand_in("shared.attention", pay_attention=pay_attention),
        }
    ):
        fusion = import_module(f"{PACKAGE}.models.wan.ovi.modules.fusion")
        import_module(f"{PACKAGE}.models.wan.modules.posemb_layers")
    return reference.build(fusion.FusionModel, video, audio).to(dtype)


def run(model: nn.Module, latents: list, time: Tensor, text: Tensor) -> tuple:
    rotations = import_module(f"{PACKAGE}.models.wan.modules.posemb_layers")
    video, audio = latents
    _, height, width = model.video_model.patch_size
    frames, rows, columns = video.shape[2], video.shape[3] // height, video.shape[4] // width
    shared = {
        "vid_seq_len": frames * rows * columns,
        "audio_seq_len": audio.shape[2],
        "pipeline": PIPELINE,
        "x_id_list": [0],
        "video_freqs": rotations.get_nd_rotary_pos_embed((0, 0, 0), (frames, rows, columns)),
        "audio_freqs": model.audio_model.get_audio_rope_params(),
    }
    mixed = text.dtype != torch.float32
    precise = reference.AutocastOfACard() if video.is_meta and mixed else contextlib.nullcontext()
    pictures, sounds = [], []
    with precise, torch.autocast("cuda", text.dtype, enabled=video.is_cuda and mixed):
        for clip, sound, when, prompt in zip(
            video, audio.transpose(1, 2), time.unsqueeze(1), text, strict=True
        ):
            picture, heard = model(
                vid=clip,
                audio=sound,
                t=when,
                vid_context=[prompt],
                audio_context=[prompt],
                **shared,
            )
            pictures.append(picture)
            sounds.append(heard)
    return pictures, sounds
