"""Walks every node of core that takes a MODEL: what each changes of an Ovi clip, or says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from small_graph import CountForwards, Graph, output

ACTS, REFUSES, LISTED, ABSENT = "acts", "refuses", "listed", "absent"
STEPS = 2


@dataclass(frozen=True)
class Row:
    """What a node did to a clip of two steps."""

    node: str
    verdict: str
    video: float = 0.0  # largest change of the picture's latent, in standard deviations
    audio: float = 0.0  # and of the sound's
    forwards: float = 0.0  # conds run a step, on average
    says: str = ""


# Widgets whose defaults leave any model as it is, and texts that name what Ovi has.
VALUES = {
    "ScaleROPE": {"scale_x": 1.5, "scale_t": 1.2},
    "LTXVSpatioTemporalGuidance": {"blocks": "1"},
    "SkipLayerGuidanceSD3": {"layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiT": {"double_layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    "CFGOverride": {"cfg": 2.0},
    "FreSca": {"scale_high": 2.0},
    "Epsilon Scaling": {"scaling_factor": 1.05},
    "ModelNoiseScale": {"noise_scale": 2.0},
    "ModelSamplingSD3": {"shift": 9.0},
    "UNetSelfAttentionMultiply": {"q": 2.0},
    "UNetCrossAttentionMultiply": {"q": 2.0},
    "UNetTemporalAttentionMultiply": {"self_structural": 2.0},
    "EasyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0},
    "LazyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0},
    "RescaleCFG": {"multiplier": 0.7},
    "RenormCFG": {"renorm_cfg": 0.5},
    "LatentApplyOperationCFG": {},
    "ModelComputeDtype": {"dtype": "bf16"},
    "DifferentialDiffusion": {"strength": 1.0},
}


def walk(runtime, graph_of, executor) -> list[Row]:
    """Try every node that takes a MODEL, in the order of its name."""
    names = [name for name, cls in runtime.nodes.NODE_CLASS_MAPPINGS.items() if takes_model(cls)]
    ...


def inputs_of(cls) -> dict:
    given = cls.INPUT_TYPES()
    return {**given.get("required", {}), **given.get("optional", {})}


def takes_model(cls) -> bool:
    return any(spec and spec[0] == "MODEL" for spec in inputs_of(cls).values())
