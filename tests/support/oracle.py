"""A model that needs no training: the exact denoiser of a few known clips.

If clips z_k are equally likely and a token i of x is (1 - s_i) z_ki + s_i noise, then the best
guess of the clip is the mean of all z_k, weighed by how likely x is under each:
    w_k = exp(-sum_i |x_i - (1 - s_i) z_ki|^2 / (2 s_i^2)),   velocity = (x - mean) / s.
It knows of x and of the noise levels s_i only what the sampler tells it. So it ends in the clip
that was held if, and only if, the held tokens are where and as its times say.
"""

import comfy.sample
import comfy.samplers
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model import core_facts
from comfyui_ovi.ovi_model.sample import solver
from goldens import small_patcher

CLEAN_LEVEL = 0.02  # stands for 0 in the division by s^2
STEPS = 12


class Clips:
    """Known clips, [K, 48, F, H, W] and [K, 20, L], as the model sees them."""

    def __init__(self, video, audio):
        self.streams = [video, audio]

    def velocity(self, latents, times):
        """[B, ...] of both streams, at times [B] or [B, T] of 0 to 1000."""
        levels = [
            (time / 1000).reshape(len(x), 1, -1, *[1] * (x.ndim - 3)).expand_as(x)
            for x, time in zip(latents, times, strict=True)
        ]
        scores = 0
        for x, level, known in zip(latents, levels, self.streams, strict=True):
            missed = x[:, None] - (1 - level[:, None]) * known[None]
            scores = scores - (missed / level[:, None].clamp(min=CLEAN_LEVEL)).flatten(
                2
            ).square().sum(2)
        weights = (scores / 2).double().softmax(dim=1).float()
        means = [torch.einsum("bk,k...->b...", weights, known) for known in self.streams]
        return [
            torch.where(level > 0, (x - mean) / level.clamp(min=1e-6), 0)
            for x, mean, level in zip(latents, means, levels, strict=True)
        ]


def patcher(clips: Clips):
    """A MODEL whose network is the oracle."""
    model = small_patcher()

    def forward(packed, timestep, _context, _audio, _options, shapes, **_unused):
        times = timestep if isinstance(timestep, list | tuple) else [timestep] * len(shapes)
        latents = core_facts.unpack_latents(packed, shapes)
        return comfy.utils.pack_latents(clips.velocity(latents, times))[0]

    model.model.diffusion_model._forward = forward
    return model


def sample(model, latent: dict, seed: int = 0, solver_name: str = "euler") -> list[torch.Tensor]:
    """Sample as a sampler node does; returns both streams as nodes get them."""
    noise = comfy.sample.prepare_noise(latent["samples"], seed)
    text = [[torch.zeros(1, 1, 32), {}]]
    made = comfy.sample.sample_custom(
        model,
        noise,
        1.0,
        comfy.samplers.KSAMPLER(solver.SOLVERS[solver_name]),
        solver.shifted_sigmas(STEPS, 5.0, solver=solver_name),
        text,
        text,
        latent["samples"],
        noise_mask=latent.get("noise_mask"),
        disable_pbar=True,
    )
    assert isinstance(made, NestedTensor)
    return list(made.unbind())
