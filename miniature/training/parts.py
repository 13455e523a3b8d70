"""The parts of Ovi at the miniature's widths: ComfyUI's own classes and this project's own model,
ready to train.
"""

from __future__ import annotations

from functools import partial

import torch
from comfy import ops
from comfy.ldm.wan.vae import CausalConv3d
from comfy.ldm.wan.vae2_2 import WanVAE
from comfy.text_encoders.t5 import T5, T5LayerNorm
from comfyui_ovi.ovi_model.config import (
    AUDIO_CHANNELS,
    VIDEO_CHANNELS,
    AudioTowerConfig,
    VideoTowerConfig,
)
from comfyui_ovi.ovi_model.load.audio_vae import SizedAutoencoder, mel_basis, unit_length
from comfyui_ovi.ovi_model.network.model import OviModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from .settings import TEXT, TOWERS, AudioVAESettings, VideoVAESettings, VocoderSettings

# ComfyUI's layers leave their weights as they find them, for a checkpoint fills them; these know
# how to.
LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.Embedding,
    nn.LayerNorm,
    nn.RMSNorm,
)
# What lies outside of layers starts here; the time of a block is added to its modulation.
LOOSE = {"alpha": 0.0, "beta": 0.0, "learnable_gain": 0.0, "gamma": 1.0}


def initialise(part: nn.Module) -> nn.Module:
    """Fill every weight with a value to start from, and return the part."""
    for module in part.modules():
        for layer in LAYERS:
            if isinstance(module, layer):
                layer.reset_parameters(module)
        if isinstance(module, T5LayerNorm):
            nn.init.ones_(module.weight)
    for name, weight in part.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf in LOOSE:
            nn.init.constant_(weight, LOOSE[leaf])
        elif leaf == "modulation":
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return part


def video_vae(settings: VideoVAESettings) -> nn.Module:
    """ComfyUI's Wan 2.2 VAE at a small width, in which frames mix only where time is made coarser
    or finer.

    All other weights for frames before are zero. That is a third of the work, and makes a frame
    depend on so few before it that training on short windows is enough.
    """
    width = settings.dim
    vae = initialise(
        WanVAE(
            dim=width, dec_dim=width, z_dim=VIDEO_CHANNELS, temperal_downsample=[False, True, True]
        )
    )
    for name, layer in vae.named_modules():
        if isinstance(layer, CausalConv3d) and layer.kernel_size == (3, 3, 3):
            layer.weight.data[:, :, :-1] = 0
            if name.endswith("residual.6"):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
            layer.forward = partial(_each_frame, layer)
    return vae


def _each_frame(layer: nn.Conv3d, frames: Tensor, *_past, **_cache) -> Tensor:
    """Run a convolution on [B, C, F, H, W] whose weights for frames before are zero."""
    apart = frames.transpose(1, 2)
    made = functional.conv2d(apart.flatten(0, 1), layer.weight[:, :, -1], layer.bias, padding=1)
    return made.unflatten(0, apart.shape[:2]).transpose(1, 2)


class UnitLength(nn.Module):
    """A convolution's weight as the VAE uses it: each output channel has length 1."""

    def forward(self, weight: Tensor) -> Tensor:
        return unit_length(weight)


def audio_autoencoder(vae: AudioVAESettings, vocoder: VocoderSettings) -> SizedAutoencoder:
    """Sound to mel bands, MMAudio's VAE of them and BigVGAN, all ComfyUI's; the VAE's weights are
    kept at length 1.
    """
    model = initialise(SizedAutoencoder(vae.hidden_dim, vocoder.channels))
    model.mel_converter.mel_basis.copy_(mel_basis())
    for name, weight in model.vocoder.named_parameters():
        if ".convs2." in name:
            weight.data *= 0.1  # what a block adds is small at first
    for layer in model.vae.modules():
        if isinstance(layer, nn.Conv1d):
            parametrize.register_parametrization(layer, "weight", UnitLength())
    return model


def text_encoder(vocabulary: int) -> nn.Module:
    """ComfyUI's umT5 at a small width."""
    sizes = {"d_model": TEXT.width, "d_ff": TEXT.ffn, "d_kv": TEXT.head, "num_heads": TEXT.heads}
    sizes |= {"num_layers": TEXT.layers, "vocab_size": vocabulary, "model_type": "umt5"}
    sizes |= {"dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True}
    encoder = initialise(T5(sizes, torch.float32, "cpu", ops.disable_weight_init))
    for name, weight in encoder.named_parameters():
        if name.endswith("SelfAttention.q.weight"):
            weight.data /= TEXT.head**0.5  # T5's attention has no other scale
    return encoder


def twin_dit(text_length: int) -> OviModel:
    """This project's model at a small width, with room for so many tokens of text."""
    same = {
        "dim": TOWERS.dim,
        "ffn_dim": TOWERS.ffn,
        "num_layers": TOWERS.layers,
        "text_dim": TEXT.width,
    }
    same |= {"freq_dim": 256, "num_heads": TOWERS.dim // 128, "text_length": text_length}
    video = VideoTowerConfig(in_dim=VIDEO_CHANNELS, out_dim=VIDEO_CHANNELS, **same)
    audio = AudioTowerConfig(
        in_dim=AUDIO_CHANNELS, out_dim=AUDIO_CHANNELS, patch_hidden=TOWERS.patch_hidden, **same
    )
    model = initialise(
        OviModel(video, audio, operations=ops.disable_weight_init, dtype=torch.float32)
    )
    for tower in (model, model.audio_model):
        # The first velocity is zero, as usual for diffusion transformers.
        nn.init.zeros_(tower.head.head.weight)
        nn.init.zeros_(tower.head.head.bias)
    return model
