"""Audio latents to sound: core's VAE, then its vocoder in pieces of bounded memory, each with all
that it depends on.
"""

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
# Mel frames, 62.5 a second: pieces of up to half a minute. The released vocoder holds 240 KiB for
# each, 460 MiB in all.
LONGEST = 1875


@torch.no_grad()
@on_device
def decode_16k(vae: comfy.sd.VAE, latents: Tensor) -> Tensor:
    """Return the sound [B, 1, 512 L] of latents [B, 20, L] at 16 kHz, as the vocoder makes it.

    ComfyUI's own decode resamples the same sound to 44.1 kHz. The VAE's attention spans the clip,
    so it runs in one piece, at 2.5 MiB a second; the vocoder, at 15 MiB a second, runs in several.
    """
    steps = min(latents.shape[-1], LONGEST // MEL_FRAMES_PER_STEP)
    memory = vae.memory_used_decode((1, AUDIO_CHANNELS, steps), vae.vae_dtype)
    comfy.model_management.load_models_gpu(
        [vae.patcher], memory_required=memory, force_full_load=vae.disable_offload
    )
    model = vae.first_stage_model
    clips = []
    for latent in latents.split(1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        mel = model.vae.decode(latent.to(device=vae.device, dtype=vae.vae_dtype))
        clips.append(vocode(model.vocoder, mel, vae.output_device))
    return torch.cat(clips)


def vocode(vocoder: BigVGANVocoder, mel: Tensor, device: torch.device) -> Tensor:
    """Return the sound [1, 1, 256 N] of mel bands [1, 80, N], on a device, as the vocoder makes it
    of them at once.
    """
    context = reach(vocoder)
    pieces = list(split(mel.shape[-1], LONGEST))
    bar = ProgressBar(len(pieces))
    sounds = []
    for start, stop in pieces:
        comfy.model_management.throw_exception_if_processing_interrupted()
        first, last = max(0, start - context), stop + context
        sound = vocoder(mel[..., first:last])
        samples = sound.shape[-1] // mel[..., first:last].shape[-1]
        sounds.append(
            sound[..., (start - first) * samples :][..., : (stop - start) * samples]
            .float()
            .to(device)
        )
        bar.update(1)
    return torch.cat(sounds, dim=-1)


def split(length: int, longest: int) -> Iterator[tuple[int, int]]:
    """Yield starts and stops of the fewest equal pieces, none longer than the longest."""
    count = -(-length // longest)
    for piece in range(count):
        yield piece * length // count, (piece + 1) * length // count


def reach(vocoder: BigVGANVocoder) -> int:
    """Return how many mel frames away a mel frame still has a part in a sample: the sum of what its
    layers look aside.

    Walks from the samples back to the mel bands, from layer to layer in steps of their input.
    """
    steps = _reach_of(vocoder.conv_post) + _reach_of(vocoder.activation_post)
    kernels = vocoder.num_kernels
    for number in reversed(range(vocoder.num_upsamples)):
        blocks = vocoder.resblocks[number * kernels : (number + 1) * kernels]
        steps += max(_reach_of(block) for block in blocks)
        (up,) = vocoder.ups[number]
        # The last input with a part in a sample so many steps away.
        steps = (steps + up.kernel_size[0] - 1 - up.padding[0]) // up.stride[0]
    return steps + _reach_of(vocoder.conv_pre)


def _reach_of(layers: nn.Module) -> int:
    """Sum over convolutions and anti-aliased activations, which lie one behind the other; all keep
    the length.
    """
    if isinstance(layers, nn.Conv1d):
        return layers.dilation[0] * (layers.kernel_size[0] - 1) // 2
    if isinstance(layers, Activation1d):
        # Up to two steps a step, there and back through a filter each.
        filters = layers.upsample.kernel_size + layers.downsample.lowpass.kernel_size
        return (filters - 2) // (2 * layers.up_ratio)
    return sum(_reach_of(layer) for layer in layers.children())
