"""What other nodes ask of a block in `transformer_options`, under the names that core's own models
read there.

`attn1` is self-attention and `attn2` the read of the prompt and of the other tower. A patch is
called once for each tower: `transformer_options` then has its `tower`, "video" or "audio", and its
`grid_sizes` in tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core_facts import node_of
from . import past

# Core's names of a U-Net's middle, which stands here for the middle block: nodes for any model use
# it.
MIDDLE = (("middle", 0), ("middle", 0, 0))


# Nodes whose patch of attn1's output is meant for the read of the prompt: models in which prompt
# and picture attend in one have it there. What NAG does on Ovi: miniature/training/RESULTS.md.
FOR_TEXT = ("NAGuidance",)


def find(name: str, transformer_options: dict) -> list[Callable]:
    """Return the patches of this name."""
    return transformer_options.get("patches", {}).get(name, [])


def with_tower(transformer_options: dict, tower: str, grid: tuple[int, int, int]) -> dict:
    """Tell patches, and the past, whose block calls them; without either nobody asks."""
    if not {"patches", "patches_replace", past.KEY} & transformer_options.keys():
        return transformer_options
    return {**transformer_options, "tower": tower, "grid_sizes": grid}


def skips_attention(transformer_options: dict) -> bool:
    """Whether self-attention of this block hands on its values unread.

    Source: LTX-2's spatio-temporal guidance, core's `stg_self_attn_blocks`.
    """
    blocks = transformer_options.get("stg_self_attn_blocks")
    return bool(blocks) and transformer_options["block_index"] in blocks


def find_replacement(kind: str, transformer_options: dict) -> Callable | None:
    """Return what takes the place of an attention, "attn1" or "attn2", in this block."""
    replacements = transformer_options.get("patches_replace", {}).get(kind)
    if not replacements:
        return None
    index = transformer_options["block_index"]
    keys = [("double_block", index)]
    if index == transformer_options["total_blocks"] // 2:
        keys += MIDDLE
    return next((replacements[key] for key in keys if key in replacements), None)


def change_output(kind: str, read: Tensor, layer: nn.Module, transformer_options: dict) -> Tensor:
    """Return what an attention read, [B, L, D], as patches of its output leave it.

    kind: "attn1", "attn2", or "text" for what attn2 reads of the prompt alone.
    """
    name = "attn2_output_patch" if kind == "attn2" else "attn1_output_patch"
    for patch in find(name, transformer_options):
        is_for_text = kind != "attn2" and node_of(patch) in FOR_TEXT
        if is_for_text == (kind == "text"):
            read = patch(read, about(layer, transformer_options))
    return read


def change_self_attention(
    read: Tensor,
    query: Tensor | None,
    key: Tensor | None,
    layer: nn.Module,
    transformer_options: dict,
) -> Tensor:
    """The same for self-attention, whose patches, as in core's Wan, see query and key [B, L, D] by
    head too.
    """
    by_head = (layer.num_heads, layer.head_dim)
    for patch in find("attn1_patch", transformer_options) if query is not None else ():
        read = patch(
            {
                "x": read,
                "q": query.unflatten(2, by_head),
                "k": key.unflatten(2, by_head),
                "transformer_options": transformer_options,
            }
        )
    return change_output("attn1", read, layer, transformer_options)


def change_state(x: Tensor, transformer_options: dict) -> Tensor:
    """Return a hidden state [B, L, D] as patches leave it that core's Wan calls before the FFN."""
    before_ffn = find("attn2_patch", transformer_options)
    for patch in before_ffn:
        x = patch({"x": x, "transformer_options": transformer_options})
    # The FFN writes over it, and a patch may keep what it returned.
    return x.clone(memory_format=torch.contiguous_format) if before_ffn else x


def about(layer: nn.Module, transformer_options: dict) -> dict:
    """What a patch is told of an attention, as in core's U-Nets."""
    sizes = {"n_heads": layer.num_heads, "dim_head": layer.head_dim, "attn_precision": None}
    return {**transformer_options, **sizes}
