"""Rows `forward`: one forward of the twin DiT, loaded by ComfyUI, and its floor in the same run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from floor import PROMPT, Floor, list_floor

from .machine import Machine
from .networks import DTYPES, UnavailableError, make_patcher
from .rows import Row


def measure(row: Row, machine: Machine) -> dict:
    """Return seconds of a forward and of its floor, the FLOP of the floor, and peak memory."""
    from forward import make_inputs, prepare_run

    clip = machine.clip(row.clip)
    towers, shapes = clip.towers(), clip.shapes()
    dtype = DTYPES.get(row.precision, torch.bfloat16)
    attend = find_attention(row.kernel)
    products = list_floor(towers, shapes)
    with torch.inference_mode(), machine.limited_to(row.gigabytes):
        patcher = load(row, machine, towers, shapes)
        network = patcher.model.diffusion_model
        latents, times, text = make_inputs(towers[0], shapes, dtype, machine.device, PROMPT)
        prepared = prepare_run(network, latents, text)
        options = {"optimized_attention_override": attend}

        def forward() -> list:
            return network(latents, times, **prepared, transformer_options=options)

        with compiled(network, row.compiled, machine.is_card):
            peak, made = machine.peak_of(forward)
            if not all(part.isfinite().all() for part in made):
                raise ArithmeticError("the result holds numbers that are not finite")
            # A floor has room for weights of its own, one of a shape, where these are not plain or
            # not all on the card.
            is_plain = row.precision in DTYPES and not row.gigabytes
            weights = [x for x in network.parameters() if x.device.type == machine.device.type]
            floor = Floor(products, dtype, machine.device, weights if is_plain else ())
            floor()
            seconds, floor_seconds = machine.medians(forward, floor)
    result = {
        "seconds": seconds,
        "floor": floor_seconds,
        "tflop": sum(product.flop for product in products) / 1e12,
        "peak_gib": peak,
    }
    # Core decides by the card whether quantised layers multiply as they are stored.
    if getattr(network.blocks[0].ffn[0], "_full_precision_mm", False):
        result["note"] = "stored so, multiplied in bf16"
    return result


def load(row: Row, machine: Machine, towers: tuple, shapes: list):
    """Return the MODEL, as much of it on the card as ComfyUI puts there."""
    import comfy.model_management

    key = row.precision, towers
    if row.gigabytes:
        machine.give_back()
    patcher = machine.keep(
        "network", key, lambda: make_patcher(towers, row.precision, machine.device)
    )
    packed = [1, 1, sum(torch.Size(shape).numel() for shape in shapes)]
    patcher.model.latent_shapes = [torch.Size(shape) for shape in shapes]
    needed = patcher.model.memory_required(packed)
    comfy.model_management.load_models_gpu([patcher], memory_required=needed)
    return patcher


def find_attention(name: str):
    """Return core's function of this name as an override; raise UnavailableError if it has none."""
    from comfy.ldm.modules import attention

    function = attention.get_attention_function(name, None)
    if function is None:
        raise UnavailableError(f"this ComfyUI found no attention '{name}' on this machine")
    return lambda _own, *args, **kwargs: function(*args, **kwargs)


@contextmanager
def compiled(network: torch.nn.Module, wanted: bool, is_card: bool) -> Iterator[None]:
    """Compile each block, alone since all are alike: one graph serves them."""
    if not wanted:
        yield
        return
    for block in network.blocks:
        block.compile(backend="inductor" if is_card else "aot_eager")
    try:
        yield
    finally:
        for block in network.blocks:
            block._compiled_call_impl = None
        torch.compiler.reset()
