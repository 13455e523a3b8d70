"""Rows `golden`: the small model with recorded weights on the card, against the reference."""

from __future__ import annotations

import torch

from .machine import Machine
from .networks import DTYPES, check_layout, quantise
from .rows import Row

# How far from the reference in float32 a result may be, as a share of its size: twice what the
# processor was measured at, but for fp32, where a card's convolutions may round to TF32.
LIMITS = {"fp32": 1e-3, "bf16": 3e-2, "float8_e4m3fn": 0.2, "int8_tensorwise": 0.1}


def measure(row: Row, machine: Machine) -> dict:
    """Return the error of picture and sound, the larger, and whether it is within its limit."""
    import goldens

    tensors, about = goldens.load("fusion_t32_t2av")
    dtype = DTYPES.get(row.precision, torch.bfloat16)
    network = small_network(row.precision, dtype).to(machine.device)

    def given(name: str, dtype: torch.dtype = dtype) -> torch.Tensor:
        return tensors[name].to(machine.device, dtype)

    length = about["config"]["video"]["text_len"]
    texts = [
        torch.nn.functional.pad(text, (0, 0, 0, length - len(text))).unsqueeze(0)
        for text in (given("vid_context"), given("audio_context"))
    ]
    latents = [given("video").unsqueeze(0), given("audio").unsqueeze(0).mT]
    with torch.inference_mode():
        video, audio = network(latents, given("t", torch.float32), *texts)
    pairs = ((video[0], "pred_video"), (audio[0].mT, "pred_audio"))
    error = max(goldens.relative_error(made.cpu(), tensors[name]) for made, name in pairs)
    limit = LIMITS[row.precision]
    if not error <= limit:
        raise ArithmeticError(f"differs from the reference by {error:.1e}, more than {limit:.0e}")
    return {"error": error}


def small_network(precision: str, dtype: torch.dtype) -> torch.nn.Module:
    """The model of the goldens; a layout is given to the blocks' layers."""
    import comfy.ops
    import goldens
    from comfyui_ovi.ovi_model.network.model import OviModel

    check_layout(precision)
    is_quantised = precision not in DTYPES
    operations = (
        comfy.ops.mixed_precision_ops({}, dtype) if is_quantised else comfy.ops.disable_weight_init
    )
    network = OviModel(*goldens.small_configs(), dtype=dtype, operations=operations)
    network.load_state_dict(goldens.small_weights())
    if is_quantised:
        for name, layer in network.named_modules():
            if "blocks." in name and isinstance(layer, operations.Linear):
                quantise(layer, precision)
    return network.eval().requires_grad_(False)
