"""rookiestar28/ComfyUI-WanVideoWrapper (of kijai's): clips one by one, as its sampler runs them.

Both towers are one class; its loader adds the layers of fusion, and its sampler hangs the blocks of
sound under those of the picture. Attention is its default, PyTorch's.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import reference
import torch
from torch import Tensor, nn

from .checkout import Checkout, stand_in

REPOSITORY = "rookiestar28/ComfyUI-WanVideoWrapper"
PROOF = "Ovi/nodes_ovi.py"
PACKAGE = "peer_wanvideowrapper"


def build(checkout: Path, video, audio, dtype: torch.dtype) -> nn.Module:
    def change(text: str) -> str:
        # Sizes that it reads back from the device; the meta device could not tell them.
        kept = "u.shape[2:], device='cpu' if x[0].is_meta else device, dtype=torch.long"
        return text.replace("u.shape[2:], device=device, dtype=torch.long", kept)

    Checkout(PACKAGE, checkout, change).install()
    with reference.replaced(stand_in("accelerate", init_empty_weights=None)):
        network = import_module(f"{PACKAGE}.wanvideo.modules.model")

    def tower(config, patch_size) -> nn.Module:
        names = ("dim", "ffn_dim", "freq_dim", "text_dim", "num_heads", "num_layers", "eps")
        sizes = {name: getattr(config, name) for name in (*names, "in_dim", "out_dim")}
        made = network.WanModel(
            **sizes,
            in_features=config.dim,
            out_features=config.dim,
            ffn2_dim=config.ffn_dim,
            patch_size=patch_size,
            text_len=config.text_length,
            model_type="t2v",
            attention_mode="sdpa",
            rope_func="default",  # what its sampler sets for Ovi
            dtype=dtype,
        )
        for block in made.blocks:
            _add_fusion(block.cross_attn, block.dim, config.eps, network)
        return made

    with torch.device("meta"):
        model = tower(video, video.patch_size)
        model.audio_model = tower(audio, [1])
    model.base_dtype = dtype
    model.to(dtype)
    for made in (model, model.audio_model):
        made.patch_embedding.float()  # as its loader keeps it
    return model


def released_key(key: str) -> str:
    """The published name of a weight; it keeps its patch embedding under two more."""
    return key.replace("original_patch", "patch").replace("expanded_patch", "patch")


def _add_fusion(attention: nn.Module, dim: int, eps: float, network) -> None:
    # Its constructor takes a switch for the width of the prompt; its loader assigns whole weights.
    attention.k, attention.v = nn.Linear(dim, dim), nn.Linear(dim, dim)
    attention.k_fusion, attention.v_fusion = nn.Linear(dim, dim), nn.Linear(dim, dim)
    attention.pre_attn_norm_fusion = network.WanLayerNorm(dim, elementwise_affine=True)
    attention.norm_k_fusion = network.WanRMSNorm(dim, eps=eps)


def _rotations(model: nn.Module) -> Tensor:
    """The table that its sampler makes once a run."""
    network = import_module(f"{PACKAGE}.wanvideo.modules.model")
    head = model.dim // model.num_heads
    space = 2 * (head // 6)
    axes = (head - 2 * space, space, space)
    return torch.cat([network.rope_params(1024, axis) for axis in axes], dim=1)


def run(model: nn.Module, latents: list, time: Tensor, text: Tensor) -> tuple:
    video, audio = latents
    model.main_device = model.offload_device = video.device
    model.audio_model.main_device = video.device
    for block, of_sound in zip(model.blocks, model.audio_model.blocks, strict=True):
        object.__setattr__(block, "audio_block", of_sound)
    freqs = _rotations(model).to(video.device)
    pictures, sounds = [], []
    for clip, sound, when, prompt in zip(
        video, audio.transpose(1, 2), time.unsqueeze(1), text, strict=True
    ):
        picture, heard, _ = model(
            x=[clip],
            t=when,
            context=[prompt],
            seq_len=clip.shape[1:].numel() // torch.Size(model.patch_size).numel(),
            x_ovi=[sound],
            seq_len_ovi=len(sound),
            device=video.device,
            freqs=freqs,
        )
        pictures.append(picture[0])
        sounds.append(heard[0])
    return pictures, sounds
