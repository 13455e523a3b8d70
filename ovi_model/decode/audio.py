"""Audio latents to sound: core's VAE, then its vocoder in chunks, each with its receptive field."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.model_management
import comfy.sd
import torch
from comfy.ldm.mmaudio.vae.alias_free_torch import Activation1d
from comfy.ldm.mmaudio.vae.bigvgan import BigVGANVocoder
from comfy.utils import ProgressBar
from torch import Tensor, nn

from ..config import AUDIO_CHANNELS
from ..core_facts import on_device

MEL_FRAMES_PER_STEP = 2
# Mel frames, 62.5 a second: half a minute. The released vocoder holds 240 KiB for each, 460 MiB in
# all.
MAX_CHUNK = 1875


@torch.no_grad()
@on_device
def decode_16k(vae: comfy.sd.VAE, latents: Tensor, has_bar: bool = True) -> Tensor:
    """Return the sound [B, 1, 512 L] of latents [B, 20, L] at 16 kHz, as the vocoder makes it.

    ComfyUI's own decode resamples the same sound to 44.1 kHz. The VAE's attention spans the clip,
    so it runs at once, at 2.5 MiB a second; the vocoder, at 15 MiB a second, runs in chunks.
    has_bar: whether the page shows how far it is.
    """
    steps = min(latents.shape[-1], MAX_CHUNK // MEL_FRAMES_PER_STEP)
    memory = vae.memory_used_decode((1, AUDIO_CHANNELS, steps), vae.vae_dtype)
    comfy.model_management.load_models_gpu(
        [vae.patcher], memory_required=memory, force_full_load=vae.disable_offload
    )
    model = vae.first_stage_model
    clips = []
    for latent in latents.split(1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        mel = model.vae.decode(latent.to(device=vae.device, dtype=vae.vae_dtype))
        clips.append(vocode(model.vocoder, mel, vae.output_device, has_bar))
    return torch.cat(clips)


def vocode(
    vocoder: BigVGANVocoder, mel: Tensor, device: torch.device, has_bar: bool = True
) -> Tensor:
    """Return the sound [1, 1, 256 N] of mel bands [1, 80, N], on a device; as if made at once."""
    context = receptive_field(vocoder)
    chunks = list(split(mel.shape[-1], MAX_CHUNK))
    bar = ProgressBar(len(chunks)) if has_bar else None
    sounds = []
    for start, stop in chunks:
        comfy.model_management.throw_exception_if_processing_interrupted()
        first = max(0, start - context)
        window = mel[..., first : stop + context]
        sound = vocoder(window)
        samples = sound.shape[-1] // window.shape[-1]
        own = sound[..., (start - first) * samples : (stop - first) * samples]
        sounds.append(own.float().to(device))
        if bar:
            bar.update(1)
    return torch.cat(sounds, dim=-1)


def split(length: int, longest: int) -> Iterator[tuple[int, int]]:
    """Yield starts and stops of the fewest equal chunks, none longer than the longest."""
    count = -(-length // longest)
    for chunk in range(count):
        yield chunk * length // count, (chunk + 1) * length // count


def receptive_field(vocoder: BigVGANVocoder) -> int:
    """Return on how many mel frames to each side of its own a sample depends.

    Walks from the samples back to the mel bands, and counts in steps of each layer's input.
    """
    steps = _field_of(vocoder.conv_post) + _field_of(vocoder.activation_post)
    kernels = vocoder.num_kernels
    for number in reversed(range(vocoder.num_upsamples)):
        blocks = vocoder.resblocks[number * kernels : (number + 1) * kernels]
        steps += max(_field_of(block) for block in blocks)
        (upsample,) = vocoder.ups[number]
        kernel, stride = upsample.kernel_size[0], upsample.stride[0]
        steps = (steps + kernel - 1 - upsample.padding[0]) // stride
    return steps + _field_of(vocoder.conv_pre)


def _field_of(layers: nn.Module) -> int:
    """The same of convolutions and anti-aliased activations in a row, which keep the length."""
    if isinstance(layers, nn.Conv1d):
        return layers.dilation[0] * (layers.kernel_size[0] - 1) // 2
    if isinstance(layers, Activation1d):
        # Up to twice the rate and back, through a filter each.
        filters = layers.upsample.kernel_size + layers.downsample.lowpass.kernel_size
        return (filters - 2) // (2 * layers.up_ratio)
    return sum(_field_of(layer) for layer in layers.children())
