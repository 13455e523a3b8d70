"""The twin DiT of full size with random weights, as a MODEL, in any precision or quantised layout.

Weights are made on the card one by one and kept in main memory, from which ComfyUI loads them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROTATED = "+convrot"


class UnavailableError(Exception):
    """This ComfyUI or this card lacks what a row asks for."""


def make_patcher(towers: tuple, precision: str, device: torch.device):
    """Return a ModelPatcher; precision: of DTYPES, or a layout of core's, which the blocks get.

    Raises UnavailableError when core has no such layout.
    """
    import comfy.model_patcher

    base = make_base(towers, precision)
    network = base.diffusion_model
    torch.manual_seed(0)
    for name, module in network.named_modules():
        fill(name, module, device)
        if precision not in DTYPES and isinstance(module, _linear_of(network)):
            if not name.startswith(("blocks.", "audio_model.blocks.")):
                module.weight = nn.Parameter(module.weight.cpu(), requires_grad=False)
                continue
            quantise(module, precision)
    base.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(base, device, torch.device("cpu"))


def make_base(towers: tuple, precision: str):
    """Return core's model around a network without numbers."""
    from comfyui_ovi.ovi_model.family import OviConfig

    check_layout(precision)
    config = {"image_model": "ovi", **dict(zip(("video", "audio"), towers, strict=True))}
    if precision not in DTYPES:
        config["layer_formats"] = {"blocks.0.ffn.0": {"format": precision}}
    entry = OviConfig(config)
    entry.set_inference_dtype(DTYPES.get(precision, torch.bfloat16), None)
    return entry.get_model({}, "", torch.device("meta"))


def check_layout(precision: str) -> None:
    import comfy.quant_ops

    layout = precision.removesuffix(ROTATED)
    known = getattr(comfy.quant_ops, "QUANT_ALGOS", {})
    if precision not in DTYPES and layout not in known:
        raise UnavailableError(
            f"this ComfyUI has no layout '{layout}', only {', '.join(known) or 'none'}"
        )


def _linear_of(network: nn.Module) -> type:
    return type(network.blocks[0].ffn[0])


def fill(name: str, module: nn.Module, device: torch.device) -> None:
    """Give a module's own parameters random numbers, made on the device."""
    from forward import random_weight

    for key, parameter in list(module.named_parameters(recurse=False)):
        numbers = random_weight(f"{name}.{key}", parameter.shape, device).to(parameter.dtype).cpu()
        setattr(module, key, nn.Parameter(numbers, requires_grad=False))
    # Core's quantised layers have no weight before one is loaded.
    if not hasattr(module, "weight") and hasattr(module, "in_features"):
        shape = torch.Size([module.out_features, module.in_features])
        numbers = random_weight(f"{name}.weight", shape, device).bfloat16()
        module.weight = nn.Parameter(numbers, requires_grad=False)


def quantise(layer: nn.Module, layout: str) -> None:
    """Store the weight of one of core's layers in a layout, and let it multiply in it."""
    import comfy.quant_ops as core

    name = core.QUANT_ALGOS[layout.removesuffix(ROTATED)]["comfy_tensor_layout"]
    asked = {"convrot": True, "per_channel": True} if layout.endswith(ROTATED) else {}
    if layout.startswith("float8"):
        asked["scale"] = "recalculate" if hasattr(core, "get_layout_class") else None
        # Activations as they are; cores before 0.8 multiply in fp8 only where there is a scale.
        layer.input_scale = nn.Parameter(torch.ones(()), requires_grad=False)
    stored = core.QuantizedTensor.from_float(layer.weight.detach(), name, **asked)
    layer.weight = nn.Parameter(stored.to("cpu"), requires_grad=False)
    layer.layout_type, layer.quant_format = name, layout.removesuffix(ROTATED)


def random_text(config, tokens: int, device: torch.device) -> Tensor:
    """A prompt of so many tokens, [1, text_length, text_dim], zeros after it."""
    text = torch.zeros(1, config.text_length, config.text_dim, device=device)
    text[:, :tokens].normal_()
    return text
