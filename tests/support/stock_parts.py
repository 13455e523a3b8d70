"""Small objects that some nodes of core ask for beside a MODEL: weights of other models, what other
encoders give. Core's own classes where a node looks at them.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.controlnet
import comfy.gligen
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from torch import Tensor, nn
from weights import seeded

# The miniature's towers.
WIDTH, LAYERS, CHANNELS, TEXT_WIDTH = 256, 4, 48, 64
FACTORY = {"device": "cpu", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}


def lora() -> dict[str, Tensor]:
    """A LoRA of one layer of each tower, in core's names."""
    layers = ("blocks.0.self_attn.q", "audio_model.blocks.0.self_attn.q")
    shapes = {"lora_A": (4, WIDTH), "lora_B": (WIDTH, 4)}
    return {
        f"diffusion_model.{layer}.{name}.weight": 0.1 * seeded(layer + name, shape)
        for layer in layers
        for name, shape in shapes.items()
    }


def patcher(module: nn.Module) -> comfy.model_patcher.ModelPatcher:
    """What 'Load Model Patch' makes of a module, its weights drawn."""
    for name, weight in module.named_parameters():
        weight.data = 0.05 * seeded(name, weight.shape)
        weight.requires_grad = False
    return comfy.model_patcher.ModelPatcher(module, torch.device("cpu"), torch.device("cpu"))


def bare(**attributes: Any) -> comfy.model_patcher.ModelPatcher:
    """Weights of another model that are asked for no more than these attributes."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(1))
    for name, value in attributes.items():
        setattr(module, name, value)
    return patcher(module)


def control_of_qwen_image():
    kind = importlib.import_module("comfy_extras.nodes_model_patch").QwenImageBlockWiseControlNet
    return patcher(kind(num_layers=LAYERS, in_dim=4 * CHANNELS, dim=WIDTH, **FACTORY))


def control_of_z_image():
    kind = importlib.import_module("comfy.ldm.lumina.controlnet").ZImage_Control
    sizes = {"dim": 16, "n_heads": 2, "n_kv_heads": 2, "multiple_of": 16, "n_control_layers": 1}
    return patcher(kind(**sizes, **FACTORY))


def uni3c():
    kind = importlib.import_module("comfy.ldm.wan.uni3c").WanUni3CControlnet
    sizes = {"conv_out_dim": 16, "dim": 16, "ffn_dim": 16, "num_heads": 2, "num_layers": 1}
    widths = {"time_embed_dim": WIDTH, "out_proj_dim": WIDTH, "mid_channels": 16}
    return patcher(kind(**sizes, **widths, **FACTORY))


def duration_head():
    return patcher(importlib.import_module("comfy.ldm.lightricks.duration_head").DurationHead())


def infinite_talk():
    multitalk = importlib.import_module("comfy.ldm.wan.model_multitalk")
    sizes = {"blocks": 2, "channels": 16, "intermediate_dim": 16, "out_dim": 16}
    module = nn.Module()
    module.audio_proj = multitalk.MultiTalkAudioProjModel(
        seq_len=5, seq_len_vf=8, context_tokens=2, **sizes, **FACTORY
    )
    blocks = [multitalk.WanMultiTalkAttentionBlock(WIDTH, 16, **FACTORY) for _ in range(LAYERS)]
    module.blocks = nn.ModuleList(blocks)
    return patcher(module)


def clip_vision():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14, "num_channels": 3}
    words = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 16}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({**sizes, **words, "model_type": "clip_vision_model"}))
        return comfy.clip_vision.ClipVisionModel(str(config))


def clip_vision_output():
    output = comfy.clip_vision.Output()
    output["all_hidden_states"] = torch.zeros(1, 27, 8, 16)
    output["penultimate_hidden_states"] = torch.zeros(1, 8, 16)
    output["last_hidden_state"] = torch.zeros(1, 8, 16)
    return output


class Residuals(nn.Module):
    """A ControlNet's model: the same residual for one layer, whatever is asked."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.residual = nn.Parameter(torch.ones(1, 1, 1, 1))

    def forward(self, x, **_asked):
        return {"output": [self.residual.expand(len(x), -1, -1, -1).clone()]}


def control_net():
    module = patcher(Residuals()).model
    return comfy.controlnet.ControlNet(module, load_device=torch.device("cpu"))


def gligen():
    return patcher(comfy.gligen.Gligen([], nn.Linear(1, 1), 768))


def style_model():
    return comfy.sd.StyleModel(patcher(nn.Linear(16, TEXT_WIDTH)).model)


def audio():
    return {"waveform": 0.1 * seeded("sound", (1, 1, 16000)), "sample_rate": 16000}


def audio_encoder_output():
    return {"encoded_audio_all_layers": [seeded(str(i), (1, 50, 16)) for i in range(3)]}


# By the name of a Part, or of a type of socket.
MAKERS: dict[str, Callable[[], Any]] = {
    "AUDIO": audio,
    "AUDIO_ENCODER_OUTPUT": audio_encoder_output,
    "CLIP_VISION": clip_vision,
    "CLIP_VISION_OUTPUT": clip_vision_output,
    "CONTROL_NET": control_net,
    "GLIGEN": gligen,
    "InfiniteTalk": infinite_talk,
    "LORA_MODEL": lambda: lora(),
    "STYLE_MODEL": style_model,
    "SUPIR": lambda: bare(project_modules=nn.ModuleList()),
    "Uni3C": uni3c,
    "backend": lambda: "eager",
    "control of Qwen-Image": control_of_qwen_image,
    "control of Z-Image": control_of_z_image,
    "duration head": duration_head,
    "latent of SeedVR2": lambda: {"samples": torch.zeros(1, 16, 1, 8, 8)},
    "lllite": lambda: bare(cond_in_channels=3),
    "style of USO": lambda: bare(),
}
