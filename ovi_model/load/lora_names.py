"""The names LoRA trainers give Ovi's layers, for every loader that asks core for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .checkpoint import AUDIO, VIDEO
from .state_dict import DIFFUSION_MODEL

# What trainers put before a layer's name; and what some do whose names have an underscore for every
# dot.
PREFIXES = (
    "",
    DIFFUSION_MODEL,
    "transformer.",
    "base_model.model.",
    f"model.{DIFFUSION_MODEL}",
)
UNDERSCORED_PREFIXES = ("lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_")

# Our names to those of diffusers, where they differ: of a tower's ends, and of a block's layers.
# Source: huggingface/diffusers, scripts/convert_wan_to_diffusers.py, TRANSFORMER_KEYS_RENAME_DICT.
DIFFUSERS_ENDS = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation.modulation": "scale_shift_table",
}
DIFFUSERS_ATTENTION = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
DIFFUSERS_BLOCK = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in DIFFUSERS_ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in DIFFUSERS_ATTENTION.items()},
    # diffusers counts norms in the order of use; our norm2, its norm3, has no weights.
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation.modulation": "scale_shift_table",
}


def names_of(keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each name of a layer's weight or modulation with its key, our own spelling of every
    layer first.

    Biases have no names: a LoRA gives them as `.diff_b` of their layer.
    """
    layers = {
        key.removesuffix(".weight"): key for key in keys if key.endswith((".weight", ".modulation"))
    }
    for spell in (str, _as_in_wan, _as_in_diffusers):
        for layer, key in layers.items():
            name = spell(layer)
            for spelled in (name,) if name.startswith(AUDIO) else (name, VIDEO + name):
                yield from ((prefix + spelled, key) for prefix in PREFIXES)
                yield from (
                    (prefix + spelled.replace(".", "_"), key) for prefix in UNDERSCORED_PREFIXES
                )


def _as_in_wan(layer: str) -> str:
    """Wan's modulations are no modules; checkpoint.convert_key is the way back."""
    return layer.replace(".modulation.modulation", ".modulation")


def _as_in_diffusers(layer: str) -> str:
    tower, block, name = re.fullmatch(rf"({AUDIO})?(blocks\.\d+\.)?(.*)", layer).groups("")
    return tower + block + (DIFFUSERS_BLOCK if block else DIFFUSERS_ENDS).get(name, name)
