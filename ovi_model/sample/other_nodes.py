"""Nodes made for other models: what they ask of Ovi acts (`network/patches.py`), or is refused here
in words, before each forward.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator

import torch
from comfy.model_sampling import CONST

from ..core_facts import module_of, node_of
from ..log import log
from ..network.lock_step import NEGATIVE
from ..network.patches import MIDDLE
from .instead import FLOW, FOREIGN, INSTEAD, SET_BY

# Patches that act, with what each is given: as many arguments as core's Wan, Flux and U-Nets give.
ACTING = {
    "attn1_patch": 1,
    "attn2_patch": 1,
    "attn1_output_patch": 2,
    "attn2_output_patch": 2,
    "double_block": 1,
}
SAMPLER_FUNCTIONS = (
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "model_function_wrapper",
)
# What the model is told at the first of all noise levels.
TIMES = 1000.0
# Self-attention may be replaced by Wan's, and layers by any of their kind.
REPLACED_FORWARD = re.compile(
    r"diffusion_model\..*blocks\.\d+\.(cross_attn|ffn|forward)(\.forward)?"
)


def check(network, patcher, transformer_options: dict) -> None:
    """Raise ValueError where a node would change nothing, or end in an error that is not its own.

    network: the twin DiT; patcher: the MODEL that runs, or None; transformer_options: of this step.
    """
    for name, function in _patches(transformer_options):
        if name not in ACTING or made_by(function) in INSTEAD:
            raise ValueError(_refuse(function, f"changes '{name}', which Ovi does not have"))
        if not _takes(function, ACTING[name]):
            raise ValueError(_refuse(function, f"sets '{name}' in the form of another model"))
    for wrappers in transformer_options.get("wrappers", {}).values():
        for wrapper in (wrapper for of_key in wrappers.values() for wrapper in of_key):
            if made_by(wrapper) in INSTEAD:
                raise ValueError(_refuse(wrapper, "wraps a forward"))
    for kind, replacements in transformer_options.get("patches_replace", {}).items():
        _check_replacements(kind, replacements, len(network.blocks))
    _check_options(transformer_options, len(network.blocks))
    if patcher is not None:
        _check_patcher(patcher)
    if "forward_orig" in vars(network):
        raise ValueError(
            _refuse(network.forward_orig, "replaces a model's inner forward by that of another one")
        )


def say_where_guidance_is_split(transformer_options: dict) -> None:
    """Warn, at the first step, where patches of attention wait for both prompts and see one.

    Core splits a batch of prompts that does not fit into memory, or shares it among cards; core's
    'Normalized Attention Guidance' then does nothing.
    """
    kinds = transformer_options.get("cond_or_uncond", [])
    patches = transformer_options.get("patches", {})
    waiting = patches.get("attn1_output_patch", []) + patches.get("attn2_output_patch", [])
    is_negative_alone = NEGATIVE in kinds and set(kinds) == {NEGATIVE}
    if not (waiting and is_negative_alone and _is_first_step(transformer_options)):
        return
    log.warning(
        "'%s' needs the positive and the negative prompt in one batch, but memory holds one at a "
        "time (or each has a card of its own), so it changes nothing. Make the clip smaller or "
        "shorter, or free memory.",
        node_of(waiting[0]),
    )


def _patches(transformer_options: dict) -> Iterator[tuple[str, Callable]]:
    for name, functions in transformer_options.get("patches", {}).items():
        for function in functions:
            yield name, function


def _takes(function: Callable, count: int) -> bool:
    """Whether a function can be called with so many arguments and no more is asked of it."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a builtin, which has no signature
        return True
    return True


def _check_replacements(kind: str, replacements: dict, count: int) -> None:
    """Raise ValueError unless an attention, or at least one block, has the place of these."""
    blocks = {("double_block", index) for index in range(count)}
    places = {"dit": blocks, "attn1": blocks | {*MIDDLE}, "attn2": blocks | {*MIDDLE}}
    fit = {key for key in replacements if key in places.get(kind, ())}
    missing = [key for key in replacements if key not in fit]
    refused = [key for key, function in replacements.items() if made_by(function) in INSTEAD]
    if not refused and (not missing or (kind == "dit" and fit)):
        return
    key = (refused or missing)[0]
    what = f"replaces '{kind}' of {' '.join(map(str, key))}, but Ovi has double_block 0 to"
    raise ValueError(_refuse(replacements[key], f"{what} {count - 1}"))


def _check_options(transformer_options: dict, count: int) -> None:
    for key, what in FOREIGN.items():
        if key in transformer_options:
            raise ValueError(f"{what}, which Ovi does not read: remove that node.")
    skipped = transformer_options.get("stg_self_attn_blocks") or ()
    if skipped and not any(index < count for index in skipped):
        raise ValueError(
            f"Spatio-temporal guidance names the blocks {sorted(skipped)}, but this model has 0 to "
            f"{count - 1}."
        )


def _check_patcher(patcher) -> None:
    """Raise ValueError for functions of the sampler and for replaced forwards that do not fit."""
    for name in SAMPLER_FUNCTIONS:
        functions = patcher.model_options.get(name) or []
        for function in functions if isinstance(functions, list) else [functions]:
            if made_by(function) in INSTEAD and not _takes_packs(function):
                raise ValueError(_refuse(function, "is made for other models"))
    _check_sampling(patcher.object_patches.get("model_sampling"))
    for key, function in patcher.object_patches.items():
        if REPLACED_FORWARD.fullmatch(key):
            raise ValueError(
                _refuse(function, f"replaces '{key.removeprefix('diffusion_model.')}' by Wan's")
            )


def _takes_packs(function: Callable) -> bool:
    """Whether a function of core's 'RescaleCFG', the only one that tells, takes Ovi's latent."""
    if made_by(function) != "RescaleCFG":
        return False
    names = ("cond", "uncond", "input", "cond_denoised", "uncond_denoised")
    packed = {name: torch.ones(1, 1, 2) for name in names}
    try:
        function({**packed, "cond_scale": 1.0, "sigma": torch.ones(1), "timestep": torch.ones(1)})
    except IndexError:  # it asks for a fourth dimension
        return False
    except KeyError:  # it asks for the model, to tell flows from others
        return True
    return True


def _check_sampling(sampling) -> None:
    """Raise ValueError where a node made the sampler read another kind of prediction, or tell
    other times.
    """
    if sampling is None:
        return
    is_flow = isinstance(sampling, CONST)
    if not is_flow or float(sampling.timestep(torch.ones(1))) != TIMES:
        node = made_by(sampling)
        # 'ModelSamplingAuraFlow' is made from this one, which itself tells the right times.
        node = "ModelSamplingAuraFlow" if node == "ModelSamplingSD3" else node
        what = INSTEAD.get(node, f"sets other times or another prediction. {FLOW}")
        raise ValueError(f"'{node}' {what} Remove it: on Ovi it would make noise of the clip.")


def _is_first_step(transformer_options: dict) -> bool:
    sigmas, now = (transformer_options.get(key) for key in ("sample_sigmas", "sigmas"))
    return sigmas is None or now is None or float(now.max()) >= float(sigmas[0])


def _refuse(function: Callable, what: str) -> str:
    """Say which node cannot act, why, and what to use."""
    node = made_by(function)
    instead = INSTEAD.get(node)
    if instead:
        return f"'{node}' {instead} Remove it: on Ovi it has no place."
    file = module_of(function).replace("\\", "/").rpartition("/")[2]
    return f"'{node}' (of {file}) {what}. Remove it: it is made for another model."


def made_by(function: Callable) -> str:
    """Return the class of the node that set a function."""
    return SET_BY.get(node_of(function), node_of(function))
