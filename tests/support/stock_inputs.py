"""Inputs for any node of core that takes a MODEL or prompts, from what the node says of itself: the
miniature and a short clip, defaults of widgets, and a table of values where a default would change
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stock_parts
import torch
from comfyui_ovi.ovi_model.load.miniature import load_miniature
from safetensors.torch import save_file
from small_graph import TEST_NODES, WINDOWS, Graph, Link, output
from stock_parts import WIDTH
from weights import seeded

# What the miniature knows, as short as it goes.
PROMPT = "A red ball bounces twice. Audio: two low knocks."
OTHER_PROMPT = "A blue ball bounces once. Audio: a high knock."
SIZE, SEED, CFG = 64, 7, 4.0
LORA, HYPERNETWORK, CONTROLNET = "stock_lora.safetensors", "stock.pt", "stock_control.safetensors"
GROWING = "COMFY_AUTOGROW_V3"  # as many inputs as are connected, named after the first dot
WIDGETS = ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN")


@dataclass(frozen=True)
class Clip:
    """What a clip is sampled from and how long."""

    steps: int = 2
    frames: int = 5
    is_masked: bool = False  # half of the picture's noise is held


@dataclass(frozen=True)
class Part:
    """Stands for an object of `stock_parts`, which no node of core makes out of nothing."""

    name: str


# Where two steps of five frames show nothing.
CLIPS = {
    "ContextWindowsManual": Clip(frames=17),
    "WanContextWindowsManual": Clip(frames=17),
    "LTXVContextWindows": Clip(frames=17),
    "DifferentialDiffusion": Clip(steps=6, is_masked=True),
    "EasyCache": Clip(steps=10),
    "LazyCache": Clip(steps=10),
}
SAMPLED = {"steps": 2, "seed": SEED, "noise_seed": SEED, "cfg": CFG, "end_at_step": 10000}
LAYER = {"double_layers": "1", "layers": "1", "single_layers": "", "start_percent": 0.0}
LAYER |= {"end_percent": 1.0}
TWICE = dict.fromkeys(("q", "k", "v", "out"), 2.0)
FIRST_STEP = 0.25  # of the steps' times: the first of two
SMALL = {"width": SIZE, "height": SIZE, "length": 5}
LOADED = {"lora_name": LORA}
CACHED = {"reuse_threshold": 3.0, "start_percent": 0.0}
# By node: what is given it in place of a default. Sockets that it can do without too.
VALUES: dict[str, dict[str, Any]] = {
    "ARVideoI2V": SMALL,
    "AnimaLLLiteApply": {"model_patch": Part("lllite")},
    "BasicScheduler": SAMPLED,
    "BetaSamplingScheduler": SAMPLED,
    "CFGGuider": SAMPLED,
    "CFGOverride": {"cfg": 2.0},
    "ChromaRadianceOptions": {"nerf_tile_size": 16},
    "ConditioningAverage": {
        "conditioning_from": Part("other prompt"),
        "conditioning_to_strength": 0.5,
    },
    "ConditioningCombine": {"conditioning_2": Part("other prompt")},
    "ConditioningConcat": {"conditioning_from": Part("other prompt")},
    "ConditioningMultiply": {"multiplier": 0.5},
    "ConditioningSetAreaPercentage": {"width": 0.5},
    "ConditioningSetAreaPercentageVideo": {"width": 0.5},
    "ConditioningSetDefaultCombine": {
        "cond": Part("prompt of the first step"),
        "cond_DEFAULT": Part("other prompt"),
    },
    "ConditioningSetProperties": {"timesteps": Part("first step")},
    "ConditioningSetPropertiesAndCombine": {"cond_NEW": Part("other prompt")},
    "ConditioningSetTimestepRange": {"end": FIRST_STEP},
    "ContextWindowsManual": {**WINDOWS, "context_length": 3, "context_overlap": 1, "dim": 2},
    "DiffControlNetLoader": {"control_net_name": CONTROLNET},
    "DualModelGuider": {
        **SAMPLED,
        "model_negative": Part("other model"),
        "negative": Part("negative prompt"),
    },
    "EasyCache": CACHED,
    "FreSca": {"scale_low": 1.5},
    "HiDreamO1PatchSeamSmoothing": {"start_percent": 0.0},
    "HiDreamO1ReferenceImages": {"images.image_1": Part("image")},
    "HypernetworkLoader": {"hypernetwork_name": HYPERNETWORK},
    "KSampler": SAMPLED,
    "KSamplerAdvanced": SAMPLED,
    "LTXVContextWindows": {**WINDOWS, "context_length": 9},
    "LTXVDualCFGGuider": {"video_cfg": CFG, "audio_cfg": 2.0},
    "LTXVDurationPredictor": {"duration_head": Part("duration head")},
    "LTXVReferenceAudio": {"audio_vae": Part("audio VAE")},
    "LTXVSpatioTemporalGuidance": {"blocks": "1"},
    "LazyCache": CACHED,
    "LoraLoader": LOADED,
    "LoraLoaderBypass": LOADED,
    "LoraLoaderBypassModelOnly": LOADED,
    "LoraLoaderModelOnly": LOADED,
    "LoraSave": {"model_diff": Part("other model")},
    "ModelComputeDtype": {"dtype": "bf16"},
    "ModelNoiseScale": {"noise_scale": 2.0},
    "PairConditioningCombine": {"positive_B": Part("other prompt")},
    "PairConditioningSetDefaultCombine": {
        "positive": Part("prompt of the first step"),
        "positive_DEFAULT": Part("other prompt"),
    },
    "PairConditioningSetProperties": {"timesteps": Part("first step")},
    "PairConditioningSetPropertiesAndCombine": {"positive_NEW": Part("other prompt")},
    "QwenImageDiffsynthControlnet": {"model_patch": Part("control of Qwen-Image")},
    "ReferenceLatent": {"latent": Part("picture")},
    "SAM3_Detect": {"conditioning": Part("prompt")},
    "SAM3_VideoTrack": {"conditioning": Part("prompt")},
    "SDTurboScheduler": SAMPLED,
    "SUPIRApply": {"model_patch": Part("SUPIR")},
    "SamplerCustom": SAMPLED,
    "ScaleROPE": {"scale_x": 1.5, "shift_y": 2.0},
    "SeedVR2Conditioning": {"vae_conditioning": Part("latent of SeedVR2")},
    "SkipLayerGuidanceDiT": LAYER,
    "SkipLayerGuidanceDiTSimple": LAYER,
    "SkipLayerGuidanceSD3": LAYER,
    "TorchCompileModel": {"backend": Part("backend")},
    "TrainLoraNode": {"steps": 1},
    "UNetCrossAttentionMultiply": TWICE,
    "UNetSelfAttentionMultiply": TWICE,
    "UNetTemporalAttentionMultiply": {
        f"{kind}_{part}": 2.0 for kind in ("self", "cross") for part in ("structural", "temporal")
    },
    "USOStyleReference": {"model_patch": Part("style of USO")},
    "WanContextWindowsManual": {**WINDOWS, "context_length": 9},
    "WanInfiniteTalkToVideo": {
        **SMALL,
        "mode": "single_speaker",
        "model_patch": Part("InfiniteTalk"),
        "start_image": Part("image"),
    },
    "WanUni3CControlnetApply": {"model_patch": Part("Uni3C")},
    "ZImageFunControlnet": {"model_patch": Part("control of Z-Image"), "image": Part("image")},
}


class OtherWeights:
    """The miniature once more, every weight a tenth smaller. A model of its own: copies that core
    makes of one cannot run side by side.
    """

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self):
        model = load_miniature()[0]
        for weight in model.model.parameters():
            weight.data *= 0.9
        return (model,)


class AnyType(str):
    """A type that older cores, which compare, take for every type."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __ne__(self, _other):
        return False


class StockPart:
    """An object of `stock_parts` by its name."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"name": ("STRING",)}})  # noqa: ARG005
    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, name):
        return (stock_parts.MAKERS[name](),)


NODES = {**TEST_NODES, "OtherWeights": OtherWeights, "StockPart": StockPart}


class Materials(Graph):
    """A workflow that begins with a source of every type; a node under test comes behind it."""

    def __init__(self, clip: Clip = Clip()) -> None:
        super().__init__()
        self.clip = clip
        loaded = self.add("OviMiniature")
        self.plain_model = self.add("CountForwards", model=loaded)
        text = self.text(output(loaded, 1), PROMPT)
        self.negative = output(text, 1)
        self.other_model = self.add("OtherWeights")
        self.audio_vae = output(loaded, 3)
        sampler = {"model": self.plain_model, "scheduler": "simple", "steps": clip.steps}
        self.links: dict[str, Link] = {
            "MODEL": self.plain_model,
            "CLIP": output(loaded, 1),
            "VAE": output(loaded, 2),
            "CONDITIONING": text,
            "LATENT": self._latent(),
            "IMAGE": self.add("EmptyImage", width=SIZE, height=SIZE, batch_size=1, color=8355711),
            "NOISE": self.add("RandomNoise", noise_seed=SEED),
            "SAMPLER": self.add("KSamplerSelect", sampler_name="euler"),
            "SIGMAS": self.add("BasicScheduler", **sampler, denoise=1.0),
            "LATENT_OPERATION": self.add("LatentOperationTonemapReinhard", multiplier=1.0),
            "MASK": self.add("SolidMask", value=0.5, width=SIZE, height=SIZE),
        }
        self.parts: dict[str, Link] = {
            "other model": self.other_model,
            "audio VAE": self.audio_vae,
            "image": self.links["IMAGE"],
            "prompt": text,
            "negative prompt": self.negative,
            "other prompt": self.text(output(loaded, 1), OTHER_PROMPT),
            **self._first_step(text),
            "picture": self.add("OviSeparateLatent", latent=self.latent(SIZE, SIZE, 1)),
        }

    def _first_step(self, text: Link) -> dict[str, Link]:
        """The first of two steps, and a prompt for it alone."""
        steps = {"start_percent": 0.0, "end_percent": FIRST_STEP}
        times = {"start": 0.0, "end": FIRST_STEP}
        return {
            "first step": self.add("ConditioningTimestepsRange", **steps),
            "prompt of the first step": self.add(
                "ConditioningSetTimestepRange", conditioning=text, **times
            ),
        }

    def _latent(self) -> Link:
        latent = self.latent(SIZE, SIZE, self.clip.frames)
        if not self.clip.is_masked:
            return latent
        half = self.add("SolidMask", value=0.5, width=SIZE, height=SIZE)
        return self.add("SetLatentNoiseMask", samples=latent, mask=half)

    def inputs_of(self, name: str, node: type) -> dict[str, Any]:
        """Return what the node is given, by the names of its inputs.

        Raises KeyError naming an input of a type that nothing here is of.
        """
        asked = node.INPUT_TYPES()
        required, optional = (asked.get(group, {}) for group in ("required", "optional"))
        values = VALUES.get(name, {})
        given: dict[str, Any] = {}
        for key, spec in {**required, **optional}.items():
            if key in values:
                given[key] = self._value(values[key])
            elif spec[0] == GROWING:
                grown = [one for one in values if one.startswith(f"{key}.")]
                given |= {one: self._value(values[one]) for one in grown}
            elif is_widget(spec):
                given[key] = default_of(name, spec)
            elif key in required:
                given[key] = self._link(name, key, spec[0])
        return given

    def _value(self, value: Any) -> Any:
        if not isinstance(value, Part):
            return value
        return self.parts.get(value.name) or self._part(value.name)

    def _part(self, name: str) -> Link:
        return self.add("StockPart", name=name)

    def _link(self, name: str, key: str, kind: str) -> Link:
        if kind == "MODEL" and key == "model2":
            return self.other_model
        if kind == "CONDITIONING" and "negative" in key:
            return self.negative
        if kind in self.links:
            return self.links[kind]
        if kind in stock_parts.MAKERS:
            return self._part(kind)
        raise KeyError(
            f"'{name}' asks for {key}, a {kind}: add an object to tests/support/stock_parts.py, "
            "and, where its type does not say enough, a Part to VALUES in stock_inputs.py"
        )


def takes_a_model(node: type) -> bool:
    """Whether a node has an input for a MODEL."""
    asked = node.INPUT_TYPES()
    specs = [*asked.get("required", {}).values(), *asked.get("optional", {}).values()]
    return any(isinstance(spec[0], str) and "MODEL" in spec[0].split(",") for spec in specs)


def changes_prompts(node: type) -> bool:
    """Whether a node takes prompts and gives prompts alone."""
    asked, gives = node.INPUT_TYPES(), {*getattr(node, "RETURN_TYPES", ())}
    specs = [*asked.get("required", {}).values(), *asked.get("optional", {}).values()]
    return gives == {"CONDITIONING"} and any(spec[0] == "CONDITIONING" for spec in specs)


def is_widget(spec: tuple) -> bool:
    """Whether an input is typed or chosen, not connected."""
    return isinstance(spec[0], list) or spec[0] in WIDGETS


def default_of(name: str, spec: tuple) -> Any:
    """Return the default of a widget, or the first of its choices; half of each model in a merge,
    whose default is the first model alone.
    """
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if name.startswith("ModelMerge") and kind == "FLOAT":
        return 0.5
    choices = kind if isinstance(kind, list) else options.get("options", [])
    return options.get("default", choices[0] if choices else "")


def write_files(models: Path) -> list[Path]:
    """Write, below a models folder, what loaders among the nodes load; return the files."""
    layers = {"linear.weight": seeded("layer", (WIDTH, WIDTH)), "linear.bias": torch.zeros(WIDTH)}
    files = {
        models / "loras" / LORA: stock_parts.lora(),
        models / "controlnet" / CONTROLNET: {"nothing": torch.zeros(1)},
        models / "hypernetworks" / HYPERNETWORK: {WIDTH: [layers, layers]},
    }
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        save = save_file if file.suffix == ".safetensors" else torch.save
        save(content, file)
    return list(files)
