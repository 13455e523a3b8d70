"""What can come of a node of core that takes a MODEL or prompts; and why some may leave an Ovi clip
as it is without a word at the first step, in the sentences that docs/compatibility.md prints.
"""

from __future__ import annotations

from dataclasses import dataclass

ACTS, SAMES, GIVES, SAVES, REFUSES, LISTS = "acts", "same", "gives", "saves", "refuses", "listed"
WORDS = {
    ACTS: "the clip changes as the node says, picture or sound or both",
    SAMES: "the same clip, and that is right",
    GIVES: "hands out a figure or an object, and leaves the model as it is",
    SAVES: "writes a file",
    REFUSES: "an error with a sentence that says why and what to use",
    LISTS: "does nothing, or ends in an error of its own, for the reason given",
}
# These two are faults: nothing changes and nobody says so; an error that is nobody's words.
SILENT, FAILS = "silent", "fails"


@dataclass(frozen=True)
class Outcome:
    """What came of a node."""

    outcome: str
    picture: float | None = None  # relative change of the clip
    sound: float | None = None
    forwards: float | None = None  # a step; each prompt counts one
    says: str = ""  # the words it refuses with, or the reason why it may


# It acts, but not quite as on other models.
PACK = "core hands over picture and sound as one row of numbers: {}"
NOTES = {
    "CFGNorm": PACK.format("norms are those of single numbers, not of channels"),
    "DualModelGuider": "with two files: copies of one share weights, and one LoRA holds for both",
    "FreSca": PACK.format("frequencies are those of the row, not of the picture"),
    "Mahiro": PACK.format("directions are those of single numbers, not of channels"),
    "ModelMergeBlocks": "the first number, since Ovi has no names of a U-Net",
    "ModelNoiseScale": "for models that were trained with louder noise; Ovi was not",
    "RenormCFG": PACK.format("the norm is that of both"),
    "RescaleCFG": PACK.format("the deviation is that of both"),
    "StyleModelApply": "adds what it gives to the words of the prompt; no style model was made for "
    "Ovi",
}
# The same clip is right.
SAME = {
    "BasicScheduler": "makes the noise levels that KSampler makes itself",
    "CFGGuider": "the guidance that KSampler uses itself",
    "ConditioningSetAreaStrength": "weighs prompts that are combined, and here is one",
    "KSampler": "the clip that the others are compared with",
    "KSamplerAdvanced": "all its steps are those of KSampler",
    "ModelAttentionBackend": "the kernel in use already; a processor has no other",
    "MultiGPU_WorkUnits": "shares prompts among cards, and here is one device",
    "SelectModelDevice": "the device in use already, here the only one",
    "SamplerCustom": "with KSampler's noise levels and sampler",
    "TorchCompileModel": "compiled (here by torch's backend 'eager'), it computes the same",
    "wanBlockSwap": "core made it do nothing, since it moves weights itself",
}
U_NET_NAMES = (
    "finds weights by the names of a U-Net, of which Ovi has none; nothing of it reaches a sampler"
)
OTHER_TASK = "asks a model of its own for {}, and ends in an error of its own on any other model"
OPTION = "sets an option of the prompt that only {} read"
# It does nothing, or ends in an error of its own before anything of Ovi is asked.
LISTED = {
    "CLIPTextEncodeControlnet": OPTION.format("ControlNets"),
    "ConditioningStableAudio": OPTION.format("models of Stable Audio"),
    "DiffControlNetLoader": "reads differences to the weights of Stable Diffusion; no such file is "
    "made for Ovi, and core logs what it cannot read",
    "FluxDisableGuidance": OPTION.format("Flux and models like it"),
    "FluxGuidance": OPTION.format("Flux and models like it"),
    "FluxKontextMultiReferenceLatentMethod": OPTION.format("models that edit pictures"),
    "LTXVConditioning": OPTION.format("models of LTX"),
    "LTXVDurationPredictor": OTHER_TASK.format("the length of a clip"),
    "LTXVReferenceAudio": "expects the spectrogram of LTX-2's audio VAE, and ends in an error of "
    "its own with another VAE; Ovi was not trained to copy a speaker",
    "MiniMaxH3AddGuide": "takes latents of MiniMax H3 alone, and says so",
    "PiDConditioning": OPTION.format("PiD's models"),
    "ReferenceTimbreAudio": OPTION.format("models of ACE-Step"),
    "RTDETR_detect": OTHER_TASK.format("objects in a picture"),
    "SAM3_Detect": OTHER_TASK.format("objects in a picture"),
    "SAM3_VideoTrack": OTHER_TASK.format("objects in a film"),
    "SUPIRApply": "takes pictures of Stable Diffusion XL: with a video VAE it ends in an error of "
    "its own; with restore_cfg 0 Ovi refuses it by name",
    "SeedVR2Conditioning": OTHER_TASK.format("its fixed prompts"),
    "StableCascade_StageB_Conditioning": OPTION.format("models of Stable Cascade"),
    "TripoSplatSamplingPreview": OTHER_TASK.format("a preview in three dimensions"),
    "UNetCrossAttentionMultiply": U_NET_NAMES,
    "UNetSelfAttentionMultiply": U_NET_NAMES,
    "UNetTemporalAttentionMultiply": U_NET_NAMES,
    "unCLIPConditioning": OPTION.format("unCLIP models"),
}
