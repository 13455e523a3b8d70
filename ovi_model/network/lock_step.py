"""Both towers go through their blocks together, pair by pair; what may come between two pairs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..core_facts import model_prefetch
from . import patches
from .blocks import Block, Hidden, TowerInputs
from .fused_ops import overwrites

# Core's index of the negative prompt in `transformer_options["cond_or_uncond"]`.
NEGATIVE = 1
# The blocks of one place in their towers; one where a tower runs alone.
Pair = tuple[Block, ...]


def run_blocks(
    pairs: list[Pair],
    hidden: Hidden,
    inputs: tuple[TowerInputs, ...],
    transformer_options: dict,
    about: list[dict],
) -> Hidden:
    """Run all pairs of blocks on the hidden states of the towers.

    about: for each tower, what patches between two blocks are told of the forward.
    """
    transformer_options["total_blocks"] = len(pairs)
    transformer_options["block_type"] = "double"
    fetched = fetch_ahead(pairs, hidden[0].device, transformer_options)
    for index, pair in enumerate(fetched):
        transformer_options["block_index"] = index
        hidden = run_or_replace(pair, hidden, inputs, transformer_options)
        hidden = change_between(hidden, inputs, transformer_options, about)
    return hidden


def fetch_ahead(
    pairs: list[Pair], device: torch.device, transformer_options: dict
) -> Iterator[Pair]:
    """Yield the pairs; where core streams weights, it fetches a pair while the one before runs."""
    if model_prefetch is None:
        yield from pairs
        return
    modules = [nn.ModuleList(pair) for pair in pairs]
    queue = model_prefetch.make_prefetch_queue(modules, device, transformer_options)
    for pair, module in zip(pairs, modules, strict=True):
        model_prefetch.prefetch_queue_pop(queue, device, module)
        yield pair
    model_prefetch.prefetch_queue_pop(queue, device, None)


def run_or_replace(
    pair: Pair, hidden: Hidden, inputs: tuple[TowerInputs, ...], transformer_options: dict
) -> Hidden:
    """Run a pair, or what a node put in its place under ("dit", ("double_block", index)).

    A replacement is given what core's Wan gives it, each a tuple with one entry for each tower.
    """
    index = transformer_options["block_index"]
    skipped = transformer_options.get("ovi_skip_layer")
    run = run_skipping_negative if index == skipped else run_pair
    replacements = transformer_options.get("patches_replace", {}).get("dit", {})
    replace = replacements.get(("double_block", index))
    if replace is None:
        return run(pair, hidden, inputs, transformer_options)

    def run_this(args: dict) -> dict:
        names = ("txt", "vec", "pe")
        given = zip(inputs, *(args.get(name, own[name]) for name in names), strict=True)
        changed = tuple(
            its._replace(text=text, time=time, freqs_cis=freqs_cis)
            for its, text, time, freqs_cis in given
        )
        options = args.get("transformer_options", transformer_options)
        return {"img": run(pair, copy_states(args["img"]), changed, options)}

    own = {
        "txt": tuple(its.text for its in inputs),
        "vec": tuple(its.time for its in inputs),
        "pe": tuple(its.freqs_cis for its in inputs),
    }
    args = {"img": hidden, **own, "transformer_options": transformer_options}
    # Blocks write over what they are given, and a replacement may keep what it gives and returns.
    return copy_states(replace(args, {"original_block": run_this})["img"])


def run_pair(
    pair: Pair, hidden: Hidden, inputs: tuple[TowerInputs, ...], transformer_options: dict
) -> Hidden:
    """Run the blocks of a pair through the first one's forward."""
    first, *partner = pair
    return first(hidden, inputs, transformer_options, *partner)


def run_skipping_negative(
    pair: Pair, hidden: Hidden, inputs: tuple[TowerInputs, ...], transformer_options: dict
) -> Hidden:
    """Skip-layer guidance: samples of the negative prompt pass by this pair, and cost nothing."""
    kinds = transformer_options.get("cond_or_uncond", [0])
    count = len(kinds)
    parts = [list(states) for states in zip(*(x.chunk(count) for x in hidden), strict=True)]
    for i, kind in enumerate(kinds):
        if kind != NEGATIVE:
            own = tuple(
                its._replace(time=its.time.chunk(count)[i], text=its.text.chunk(count)[i])
                for its in inputs
            )
            # Patches tell prompts apart by this.
            options = {**transformer_options, "cond_or_uncond": [kind]}
            parts[i] = run_pair(pair, tuple(parts[i]), own, options)
    if overwrites() and not patches.find("attn2_patch", transformer_options):
        return hidden  # its parts are views of it, and the block wrote over them
    return tuple(torch.cat(of_tower) for of_tower in zip(*parts, strict=True))


def change_between(
    hidden: Hidden,
    inputs: tuple[TowerInputs, ...],
    transformer_options: dict,
    about: list[dict],
) -> Hidden:
    """Return hidden states as patches leave them that core's Wan calls after each block."""
    after = patches.find("double_block", transformer_options)
    for patch in after:
        hidden = tuple(
            _call(patch, x, its, transformer_options, told)
            for x, its, told in zip(hidden, inputs, about, strict=True)
        )
    return copy_states(hidden) if after else hidden


def _call(patch, x: Tensor, its: TowerInputs, transformer_options: dict, about: dict) -> Tensor:
    index = transformer_options["block_index"]
    options = patches.with_tower(transformer_options, its.tower, its.grid)
    args = {"img": x, **about, "block_index": index, "img_offset": 0}
    return patch({**args, "transformer_options": options})["img"]


def copy_states(hidden: Hidden) -> Hidden:
    """Return hidden states that nobody else holds."""
    return tuple(x.clone(memory_format=torch.contiguous_format) for x in hidden)
