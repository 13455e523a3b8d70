"""Rows `clip`: seconds of sampling and of decoding the picture, through ComfyUI's own sampler.

50 steps are reckoned: fewer are measured, with guidance as published. 8 and 6 steps are measured,
with one prompt, as a few-step LoRA runs. The text encoder and the sound's decoding, both short, are
left out.
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import torch
from floor import PROMPT, list_floor

from . import decoding, forwards
from .machine import Machine
from .networks import random_text
from .rows import Row

CFG, AUDIO_CFG, SKIPPED_LAYER, SHIFT = 4.0, 3.0, 11, 5.0
MEASURED_STEPS = 4


def measure(row: Row, machine: Machine) -> dict:
    """Return seconds of the whole clip, of a step and of decoding; floors reckoned from FLOP."""
    clip = machine.clip(row.clip)
    towers, shapes = clip.towers(), clip.shapes()
    with torch.inference_mode():
        patcher = forwards.load(row, machine, towers, shapes)
        sample(patcher, machine, row, shapes, 1)  # loads, and fills the pools of allocators
        steps = MEASURED_STEPS if row.is_reckoned else row.steps
        peak, stamps = machine.peak_of(lambda: sample(patcher, machine, row, shapes, steps))
        step = statistics.median(later - earlier for earlier, later in pairwise(stamps[:-1]))
        sampling = step * row.steps if row.is_reckoned else stamps[-1] - stamps[0]
        decoded = decoding.measure(Row("decode", row.clip, how="whole"), machine)
    prompts = 2 if row.is_reckoned else 1
    flop = sum(product.flop for product in list_floor(towers, shapes)) * prompts * row.steps
    return {
        "seconds": sampling + decoded["seconds"],
        "floor": flop / machine.product_rate() + decoded["floor"],
        "floor_is_reckoned": True,
        "is_reckoned": row.is_reckoned,
        "tflop": flop / 1e12 + decoded["tflop"],
        "peak_gib": None if peak is None else max(peak, decoded["peak_gib"]),
        "note": f"{step:.3f} s a step, {decoded['seconds']:.2f} s decoding",
    }


def sample(patcher, machine: Machine, row: Row, shapes: list, steps: int) -> list[float]:
    """Return the times at which sampling began, each step ended, and all was over."""
    import comfy.sample
    import comfy.samplers
    from comfy.nested_tensor import NestedTensor
    from comfyui_ovi.ovi_model.sample import guidance, solver

    config = patcher.model.diffusion_model.config
    cfg = CFG if row.is_reckoned else 1.0
    layer = min(SKIPPED_LAYER, config.num_layers - 1)
    scales = (AUDIO_CFG, layer) if row.is_reckoned else (1.0, -1)
    model = guidance.guide(patcher, *scales, 0.0, 1.0)
    override = {"optimized_attention_override": forwards.find_attention(row.kernel)}
    model.model_options["transformer_options"].update(override)
    text = random_text(config, PROMPT, torch.device("cpu"))
    positive, negative = [[text, {}]], [[text.flip(-1), {}]]
    empty = NestedTensor([torch.zeros(shape) for shape in shapes])
    noise = comfy.sample.prepare_noise(empty, 0)
    sampler = comfy.samplers.KSAMPLER(solver.sample_flow_unipc)
    sigmas = solver.shifted_sigmas(steps, SHIFT)
    stamps: list[float] = []

    def note(*_step) -> None:
        machine.wait()
        stamps.append(time.perf_counter())

    note()
    given = (cfg, sampler, sigmas, positive, negative, empty)
    comfy.sample.sample_custom(model, noise, *given, callback=note, disable_pbar=True, seed=0)
    note()
    return stamps
