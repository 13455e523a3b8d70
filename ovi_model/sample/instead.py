"""What nodes made for other models do, and what does the like on Ovi: the words in which they are
refused.
"""

from __future__ import annotations

STEPS_SAVED = "To save time use 'EasyCache', or fewer steps with a few-step LoRA."
DETAIL = "Use 'Perturbed-Attention Guidance', or skip_layer of 'Ovi Guidance'."
SCALES = "Use cfg of the sampler and audio_cfg of 'Ovi Guidance', or 'RenormCFG' and 'APG'."
FIRST_FRAME = "To begin with a picture use start_image of 'Ovi Latent'."
FLOW = (
    "Ovi predicts a flow, at times from 0 to 1000: for another shift use 'ModelSamplingSD3', or "
    "'Ovi Scheduler'."
)
ONE_PICTURE = "expects the four dimensions of one picture, and Ovi's latent is picture and sound."

# By the class of the node.
INSTEAD = {
    "FreeU": f"weighs the skip connections of a U-Net. {DETAIL}",
    "FreeU_V2": f"weighs the skip connections of a U-Net. {DETAIL}",
    "SelfAttentionGuidance": f"blurs what the middle of a U-Net looks at. {DETAIL}",
    "HyperTile": f"cuts a U-Net's attention into tiles of one picture. {STEPS_SAVED}",
    "TomePatchModel": f"merges like tokens in a U-Net's attention. {STEPS_SAVED}",
    "PatchModelAddDownscale": "makes a U-Net's inner picture smaller for the first steps. Sample "
    "small and then upscale: the workflow 'Ovi_08_Two_passes_larger' does.",
    "HypernetworkLoader": "loads a hypernetwork, made for a U-Net's layers. Use a LoRA.",
    "QwenImageDiffsynthControlnet": f"adds what a model made for Qwen-Image gives. {FIRST_FRAME}",
    "ZImageFunControlnet": f"adds what a model made for Z-Image gives. {FIRST_FRAME}",
    "USOStyleReference": f"puts tokens of a picture before a prompt of Flux. {FIRST_FRAME}",
    "SUPIRApply": f"adds what a model made for SDXL gives. {FIRST_FRAME}",
    "AnimaLLLiteApply": f"adds what a model made for Anima gives. {FIRST_FRAME}",
    "WanVideoNAG": "replaces the read of the prompt by Wan's. Use ComfyUI's 'Normalized Attention "
    "Guidance' (since 0.33), which acts on both towers.",
    "FluxKVCache": f"keeps what Flux reads of reference pictures. {STEPS_SAVED}",
    "WanInfiniteTalkToVideo": "lets Wan 2.1 speak to a recording. On Ovi use 'Ovi Hold "
    "Sound', as the workflow 'Ovi_04_Voice_recording_to_video' does.",
    "HiDreamO1PatchSeamSmoothing": f"moves a picture over a grid of patches; it {ONE_PICTURE}",
    "LatentApplyOperationCFG": f"changes latents between steps; it {ONE_PICTURE} {SCALES}",
    "VideoLinearCFGGuidance": "gives every frame of Stable Video Diffusion, one sample each, a "
    f"scale of its own. {SCALES}",
    "VideoTriangleCFGGuidance": "gives every frame of Stable Video Diffusion, one sample each, a "
    f"scale of its own. {SCALES}",
    "PerpNeg": "asks for a third prediction without the shapes of picture and sound. Use "
    "'PerpNegGuider'.",
    "RescaleCFG": f"{ONE_PICTURE} Update ComfyUI (0.33 takes any latent). {SCALES}",
    "ModelSamplingAuraFlow": f"tells the model times from 0 to 1. {FLOW}",
    "ModelSamplingFlux": f"tells the model times from 0 to 1. {FLOW}",
    "ModelSamplingLTXV": f"tells the model times from 0 to 1. {FLOW}",
    "ModelSamplingDiscrete": f"is for models that predict noise or a picture. {FLOW}",
    "ModelSamplingContinuousEDM": f"is for models that predict noise or a picture. {FLOW}",
    "ModelSamplingContinuousV": f"is for models that predict noise or a picture. {FLOW}",
    "ModelSamplingStableCascade": f"is for models that predict noise or a picture. {FLOW}",
}
# Functions whose name is not that of the node which sets them.
SET_BY = {
    "load_hypernetwork_patch": "HypernetworkLoader",
    "DiffSynthCnetPatch": "QwenImageDiffsynthControlnet",
    "ZImageControlPatch": "ZImageFunControlnet",
    "UsoStyleProjectorPatch": "USOStyleReference",
    "SUPIRPatch": "SUPIRApply",
    "AnimaLLLitePatch": "AnimaLLLiteApply",
    "AnimaLLLiteAttentionPatch": "AnimaLLLiteApply",
    "AnimaLLLiteMLPPatch": "AnimaLLLiteApply",
    "KV_Attn_Input": "FluxKVCache",
    "WanCrossAttentionPatch": "WanVideoNAG",
    "MultiTalkCrossAttnPatch": "WanInfiniteTalkToVideo",
    "MultiTalkGetAttnMapPatch": "WanInfiniteTalkToVideo",
}
# Options that other models read, by their key, and the node that sets them.
FOREIGN = {
    "chroma_radiance_options": "'ChromaRadianceOptions' sets options of Chroma Radiance",
    "animate2_cache": "'Wan Animate 2 Cache' keeps the reference frames of Wan Animate 2",
    "ar_config": "'ARVideoI2V' starts a clip of a model that makes one frame after the other",
    "minimax_h3_sigma_shift_audio": "'ModelSamplingMiniMaxH3' gives MiniMax H3's sound other times",
    "rel_l1_thresh": "TeaCache's thresholds were measured on other models",
}
