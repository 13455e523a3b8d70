"""Every place where ComfyUI is changed, in one list, but for load/core_vae.py, which changes a
class for the length of one call. This file only installs; what core lacks is done in the rooms.

All changes act on Ovi alone, but for those of a nested tensor, which only add what it lacks. Those
for older cores pass through what is already as it should be, so that on a core that needs none they
change nothing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import comfy.context_windows
import comfy.lora
import comfy.model_detection
import comfy.samplers
import comfy.sd
import comfy.supported_models
import latent_preview
from comfy.nested_tensor import NestedTensor

from . import core_facts
from .family import IMAGE_MODEL, OviBase, OviConfig, OviLatentFormat, read_unet_config
from .latent import nested_methods
from .latent.latents import stream_for
from .load import checkpoint, lora_names
from .load.state_dict import DIFFUSION_MODEL, SHARDED
from .load.weight_file import find_tensors
from .log import log
from .preview import live
from .sample import nested_latents, other_conds, streaming_memory, windows
from .sample.streaming import sample_streaming
from .train import core_trainer


class Patch(NamedTuple):
    """One name of core that is replaced by a function which calls what was there."""

    home: object
    name: str
    wrap: Callable
    why: str
    newer: str  # what a newer core does instead
    is_needed: bool = True

    def install(self) -> None:
        setattr(self.home, self.name, self.wrap(getattr(self.home, self.name, None)))

    @property
    def place(self) -> str:
        """What is replaced, by its full name."""
        module = f"{self.home.__module__}." if isinstance(self.home, type) else ""
        # ComfyUI names the modules of its nodes by their paths.
        home = ".".join(Path(f"{module}{self.home.__name__}").parts[-2:])
        return f"{home}.{self.name}"


def install() -> None:
    """Make stock loaders, LoRA loaders and samplers know Ovi.

    Once, and not where core, or another copy of this extension, does already.
    """
    entries = comfy.supported_models.models
    known = [entry for entry in entries if entry.unet_config.get("image_model") == IMAGE_MODEL]
    if not known:
        entries.append(OviConfig)
        for patch in PATCHES:
            if patch.is_needed:
                patch.install()
    elif known[0] is not OviConfig:
        log.warning(_say_who_else(known[0]))


def _say_who_else(known: type) -> str:
    """Say who registered Ovi before this extension, and what to do."""
    if known.__module__.startswith("comfy."):
        return (
            f"This ComfyUI knows Ovi itself ({known.__module__}.{known.__name__}) and goes on to "
            "load and sample it. The nodes of this extension are made for its own model: update "
            "the extension, or remove it."
        )
    return _say_which_copies(known.__module__, __name__)


def _warn_of_other_nodes() -> None:
    """A copy that was loaded later may be too old to say that its nodes took the place of ours."""
    registered = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    node = registered.get("OviLatent")
    if node and core_facts.folder_of(node.__module__) != core_facts.folder_of(__name__):
        log.warning(_say_which_copies(__name__, node.__module__))


def _say_which_copies(of_models: str, of_nodes: str) -> str:
    models, nodes = core_facts.folder_of(of_models), core_facts.folder_of(of_nodes)
    return (
        "Two extensions for Ovi, or two copies of this one, are installed: models are loaded and "
        f"sampled by the one in {models}, and nodes may be those of the one in {nodes}. Remove one "
        "of the two folders, then restart ComfyUI."
    )


def _is_ours(model) -> bool:
    return isinstance(model, OviBase)


def _is_our_latent(latent_format) -> bool:
    return isinstance(latent_format, OviLatentFormat)


def _detect_ovi(original):
    @functools.wraps(original)
    def detect_unet_config(state_dict, key_prefix, metadata=None, **kwargs):
        config = read_unet_config(state_dict, key_prefix, metadata)
        if config is not None:
            return config
        return original(state_dict, key_prefix, metadata=metadata, **kwargs)

    return detect_unet_config


def _read_ovi(original):
    """Read checkpoints of training runs, and make sure that Ovi is taken for Ovi: another extension
    may have replaced the detection.
    """

    @functools.wraps(original)
    def load_diffusion_model_state_dict(sd, *args, **kwargs):
        is_nested = any(isinstance(value, dict) for value in sd.values())
        tensors = find_tensors(sd) if is_nested else sd
        if any(SHARDED in key for key in tensors):
            tensors = {key.replace(SHARDED, ""): tensor for key, tensor in tensors.items()}
        names = [key for key in tensors if key.endswith(checkpoint.FUSION_KEY)]
        if not names:
            return original(sd, *args, **kwargs)
        patcher = original(tensors, *args, **kwargs)
        if patcher is None or not _is_ours(patcher.model):
            raise ValueError(_say_why_not(patcher, min(names, key=len)))
        _warn_of_other_nodes()
        return patcher

    return load_diffusion_model_state_dict


def _say_why_not(patcher, name: str) -> str:
    """Say what keeps ComfyUI from taking Ovi's weights for Ovi: a prefix, or another extension."""
    module = core_facts.module_of(comfy.model_detection.detect_unet_config)
    if module == __name__:
        prefix = name.removesuffix(checkpoint.FUSION_KEY)
        prefix = prefix.removesuffix(checkpoint.VIDEO).removesuffix(checkpoint.AUDIO)
        return (
            f"This is an Ovi model, but its names begin with '{prefix}', which ComfyUI does not "
            "know. Load it with 'Ovi Model Loader', or save its weights without that prefix."
        )
    taken_for = "nothing it knows" if patcher is None else f"a {type(patcher.model).__name__}"
    return (
        f"This is an Ovi model, but ComfyUI took it for {taken_for}: '{module}' replaced "
        "comfy.model_detection.detect_unet_config and does not ask what was there before it. "
        "Update or remove that extension, then restart ComfyUI."
    )


def _name_ovi_layers(original):
    @functools.wraps(original)
    def model_lora_keys_unet(model, key_map=None):
        key_map = original(model, {} if key_map is None else key_map)
        if _is_ours(model):
            for name, key in lora_names.names_of(model.diffusion_model.state_dict()):
                key_map.setdefault(name, DIFFUSION_MODEL + key)
        return key_map

    return model_lora_keys_unet


def _take_stream(original):
    @functools.wraps(original)
    def decode(self, samples, *args, **kwargs):
        return original(self, stream_for(self, samples), *args, **kwargs)

    return decode


def _move_to_cpu(_none):
    return lambda self: self.to("cpu")


def _add(method):
    return lambda _none: method


def _patches_of_trainer() -> Iterator[Patch]:
    """Yield the changes of core's 'Train LoRA', where there is one."""
    trainer = core_trainer.find_trainer()
    if trainer is None:
        return
    takes = core_facts.NESTED_LATENTS and hasattr(trainer, "_prepare_latents_and_count")
    newer = "would need to take joint latents"
    yield Patch(
        trainer.TrainLoraNode,
        "execute",
        partial(core_trainer.take_clips, is_ours=_is_ours, takes_nested=takes),
        "It takes latents of one tensor; before 0.33 a sentence says so.",
        newer,
    )
    yield Patch(
        trainer.TrainSampler,
        "fwd_bwd",
        core_trainer.measure_clips,
        "From 0.33 on it gives every clip of a batch to every caption; a sound has few numbers.",
        newer,
        takes,
    )
    yield Patch(
        trainer,
        "_prepare_latents_and_count",
        core_trainer.count_clips,
        "From 0.33 on it counts tensors.",
        newer,
        takes,
    )
    for name in ("_setup_lora_adapters", "_setup_lora_adapters_bypass"):
        yield Patch(
            trainer,
            name,
            partial(core_trainer.go_on, is_ours=_is_ours),
            "From 0.33 on a LoRA that goes on begins without its biases, at another alpha.",
            "would need both",
            takes and hasattr(trainer, name),
        )


_GUIDER = comfy.samplers.CFGGuider
_OLD = not core_facts.NESTED_LATENTS
_SINCE = "does it itself since 0.33"

PATCHES = (
    Patch(
        comfy.model_detection,
        "detect_unet_config",
        _detect_ovi,
        "Core tells models by their weights in one function, which knows its own models only.",
        "would need an entry for Ovi",
    ),
    Patch(
        comfy.sd,
        "load_diffusion_model_state_dict",
        _read_ovi,
        "A training run keeps its weights below other names and beside other entries; core wants "
        "tensors by name.",
        "would need to look below these names",
    ),
    Patch(
        comfy.lora,
        "model_lora_keys_unet",
        _name_ovi_layers,
        "LoRA trainers have more names for Wan's and Ovi's layers than core's list.",
        "would need these names",
    ),
    Patch(
        _GUIDER,
        "sample",
        partial(nested_latents.nest_noise_and_callback, is_ours=_is_ours),
        "Noise and previews know one stream.",
        _SINCE,
        _OLD,
    ),
    Patch(
        _GUIDER,
        "sample",
        partial(other_conds.check_all, is_ours=_is_ours),
        "ControlNets, areas and masks of prompts end in errors of a tensor's shape; a sentence "
        "says what to do.",
        "would need the sentence",
    ),
    Patch(
        _GUIDER,
        "outer_sample",
        partial(nested_latents.pack_mask, is_ours=_is_ours),
        "A mask is taken to be of the pack's shape.",
        _SINCE,
        _OLD,
    ),
    Patch(
        _GUIDER,
        "outer_sample",
        partial(
            streaming_memory.reserve_caches,
            sampler_function=sample_streaming,
            is_ours=_is_ours,
        ),
        "What a sampler keeps on the card, or decodes with, is not part of what core makes room "
        "for.",
        "would need to ask the sampler",
    ),
    Patch(
        _GUIDER,
        "inner_sample",
        partial(nested_latents.tell_shapes, is_ours=_is_ours),
        "The model is not told what the pack holds.",
        _SINCE,
        _OLD,
    ),
    Patch(
        comfy.context_windows.IndexListContextHandler,
        "evaluate_context_windows",
        partial(windows.anchor_both, is_ours=_is_ours),
        "From 0.26 on an anchor is put before a window's picture alone, and the timesteps of a "
        "batch are cut as if they were of frames.",
        "would need both",
        core_facts.NESTED_WINDOWS,
    ),
    Patch(
        latent_preview,
        "get_previewer",
        partial(live.use_tiny_decoder, is_ours=_is_our_latent),
        "Through a tiny decoder core shows the first frame, in one of the two scales there are.",
        "would need the middle of the clip and the file's scale",
    ),
    *(
        Patch(
            comfy.sd.VAE,
            name,
            _take_stream,
            "'VAE Decode' and its like hand over both streams.",
            "takes the stream in its nodes since 0.33",
            _OLD,
        )
        for name in ("decode", "decode_tiled")
    ),
    Patch(
        NestedTensor,
        "cpu",
        _move_to_cpu,
        "Nodes move latents with cpu().",
        _SINCE,
        not hasattr(NestedTensor, "cpu"),
    ),
    *(
        Patch(
            NestedTensor,
            name,
            _add(method),
            "Nodes for batches of latents ask for it; where it cannot be given, a sentence says "
            "what to do.",
            "would need it",
            not hasattr(NestedTensor, name),
        )
        for name, method in nested_methods.METHODS.items()
    ),
    Patch(
        NestedTensor,
        "__getitem__",
        nested_methods.explain_index,
        "A part that only one stream has cannot be cut out of both; the error says so.",
        "would need the sentence",
    ),
    *_patches_of_trainer(),
)
