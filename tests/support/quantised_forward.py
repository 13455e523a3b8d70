"""One forward of a small model, and the products of quantised layers where there is no card."""

import comfy.model_management
import torch

SHAPES = (1, 48, 2, 4, 4), (1, 20, 9), (1, 7, 64)
# What core asks of a card before it multiplies in a format.
ABILITIES = ("supports_fp8_compute", "supports_mxfp8_compute", "supports_nvfp4_compute")


def forward(patcher):
    """Picture and sound that a loaded model makes of something, flat."""
    generator = torch.Generator().manual_seed(5)
    video, audio, text = (torch.randn(shape, generator=generator) for shape in SHAPES)
    comfy.model_management.load_models_gpu([patcher])
    with torch.no_grad():
        made = patcher.model.diffusion_model([video, audio], torch.tensor([500.0]), text)
    return torch.cat([x.flatten() for x in made])


def allow_products(monkeypatch):
    """Let core multiply in fp8 on a processor, which can, as it does on a card."""
    for name in ABILITIES:
        monkeypatch.setattr(comfy.model_management, name, lambda *_, **__: True, raising=False)
