"""What ComfyUI needs to know of Ovi: how to recognise, build, condition and mask it, and how much memory it takes."""

from __future__ import annotations

import functools
from typing import ClassVar

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.quant_ops
import comfy.supported_models
import comfy.utils
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from . import checkpoint, compat, layer_formats, lora_names, memory, pointwise, quanto
from .config import AUDIO_STEPS_PER_INTERVAL
from .log import log
from .model import OviModel
from .weight_file import find_tensors

IMAGE_MODEL = "ovi"


class OviLatent(comfy.latent_formats.Wan22):
    """The video latent of Wan 2.2; previews show a frame of the picture."""

    def __init__(self):
        super().__init__()
        self.latent_rgb_factors_reshape = _middle_frame
        if not compat.NESTED_CALLBACKS:
            self.taesd_decoder_name = None  # the previewer of those cores cannot take a nested latent


class OviBase(comfy.model_base.BaseModel):
    """Ovi as the sampler sees it: one latent [B, 1, N] that packs a video [B, 48, F, H, W] and an audio [B, 20, L]."""

    def __init__(self, model_config, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=OviModel)
        self.latent_shapes: list[torch.Size] = []  # set by the sampler
        self.clean_frames = None  # set for each run by extra_conds, [B, 1, F, 1, 1]

    def process_latent_in(self, latent):
        return self._on_video(self.latent_format.process_in, latent)

    def process_latent_out(self, latent):
        return self._on_video(self.latent_format.process_out, latent)

    def extra_conds(self, **kwargs) -> dict:
        """Prompts of both towers, padded alike so that positive and negative form a batch; shapes; clean frames."""
        _check_latent(kwargs.get("noise"))
        out = super().extra_conds(**kwargs)
        text = kwargs.get("cross_attn")
        if text is not None:
            out["c_crossattn"] = comfy.conds.CONDRegular(self._pad_text(text))
            out["audio_context"] = comfy.conds.CONDRegular(self._pad_text(kwargs.get("audio_context", text)))
        shapes = kwargs.get("latent_shapes")
        if shapes is not None and len(shapes) > 1:
            out["latent_shapes"] = comfy.conds.CONDConstant(shapes)
        self.clean_frames = clean_frames(kwargs.get("denoise_mask"), shapes)
        if self.clean_frames is not None:
            out["clean_frames"] = comfy.conds.CONDRegular(self.clean_frames)
        return out

    def process_timestep(self, timestep: Tensor, x: Tensor, clean_frames: Tensor | None = None, **_unused):
        """Whole timesteps, as the reference gives the model; 0 for frames that are clean, the same for all else."""
        timestep = timestep.floor()
        if clean_frames is None:
            return timestep
        by_frame = timestep.unsqueeze(1) * (1 - clean_frames[:, 0, :, 0, 0].to(timestep.dtype))
        return [by_frame, timestep] if x.ndim == 3 else by_frame

    def scale_latent_inpaint(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, **_unused) -> Tensor:
        """Return what is held, for this noise level: clean frames as they are, all else with its noise put back."""
        held = super().scale_latent_inpaint(sigma=sigma, noise=noise, latent_image=latent_image)
        if self.clean_frames is None:
            return held
        clean = self.clean_frames.to(held.device) > 0
        if held.ndim == 5:
            return torch.where(clean, latent_image, held)
        video, *rest = compat.unpack_latents(held, self.latent_shapes)
        given = compat.unpack_latents(latent_image, self.latent_shapes)[0]
        return comfy.utils.pack_latents([torch.where(clean, given, video), *rest])[0]

    def memory_required(self, input_shape, *_args, **_unused) -> float:
        model, core = self.diffusion_model, comfy.model_management
        attention = core.xformers_enabled() or core.pytorch_attention_flash_attention()
        fused = memory.Fused(attention, pointwise.FUSED_RMS_NORM and core.is_nvidia())
        dtype, copies = self.manual_cast_dtype or self.get_dtype(), self.manual_cast_dtype is not None
        needed = memory.memory_required(model.config, model.audio_model.config, input_shape, dtype, copies, fused)
        return needed * self.memory_usage_factor

    def map_context_window_to_modalities(self, primary_indices: list[int], latent_shapes, dim: int) -> list[list[int]]:
        """Give each video window the steps of sound that last from its cells to the next ones."""
        if len(latent_shapes) < 2:
            return [primary_indices]
        total = latent_shapes[1][dim]
        edges = [min(total - 1, round(i * AUDIO_STEPS_PER_INTERVAL)) for i in range(latent_shapes[0][dim])] + [total]
        return [primary_indices, [step for i in primary_indices for step in range(edges[i], edges[i + 1])]]

    def resize_cond_for_context_window(self, cond_key, cond_value, window, _x_in, device, *_args, **_unused):
        """Cut the clean frames as the window is cut; core cuts the rest."""
        if cond_key == "clean_frames":
            return cond_value._copy_with(window.get_tensor(cond_value.cond, device, dim=2))
        return None

    def _pad_text(self, text: Tensor) -> Tensor:
        """[B, T, text_dim] -> [B, text length, text_dim], zeros after the text or the texts put together."""
        config = self.diffusion_model.config
        if text.shape[2] != config.text_dim:
            raise ValueError(
                f"The prompt was encoded {text.shape[2]} wide, but this Ovi reads {config.text_dim}: use umT5, with "
                "'Ovi Text Encoder Loader', or 'Load CLIP' with type 'wan'."
            )
        if text.shape[1] > config.text_length:
            text = _joined(text, config.text_length)
        return torch.nn.functional.pad(text, (0, 0, 0, config.text_length - text.shape[1]))

    def _on_video(self, process, latent):
        """Apply a function of the video latent to a nested latent, a pack, or a video; sound alone stays as it is."""
        if getattr(latent, "is_nested", False):
            video, *rest = latent.unbind()
            return NestedTensor([process(video), *rest])
        if latent.ndim == 5:
            return process(latent)
        if latent.shape[1] != 1:
            return latent
        video, *rest = comfy.utils.unpack_latents(latent, self.latent_shapes)
        return comfy.utils.pack_latents([process(video), *rest])[0]


class OviConfig(comfy.supported_models.WAN22_T2V):
    """Core's entry for the family: sampling, dtypes and text encoder are Wan's."""

    unet_config: ClassVar[dict] = {"image_model": IMAGE_MODEL}
    sampling_settings: ClassVar[dict] = {"shift": 5.0}
    latent_format = OviLatent

    def __init__(self, unet_config):
        super().__init__(unet_config)
        self.memory_usage_factor = 1.0  # by which nodes of others correct an estimate
        self._tell_layer_formats()

    def set_inference_dtype(self, dtype, manual_cast_dtype, **kwargs):
        """Name the precision to compute in also where it is that of the weights: quantised layers ask for it."""
        super().set_inference_dtype(dtype, manual_cast_dtype or (self._layer_formats() and dtype) or None, **kwargs)

    def get_model(self, state_dict, _prefix="", device=None) -> OviBase:
        self._tell_layer_formats()  # again, for core put what the metadata says in its place
        log.info(self._summary(state_dict))
        return OviBase(self, device=device)

    def _summary(self, weights: checkpoint.Weights) -> str:
        """Say in one line what is loaded."""
        towers = ((name, self.unet_config[name]) for name in ("video", "audio"))
        sizes = ", ".join(f"{name} tower {tower.num_layers} blocks {tower.dim} wide" for name, tower in towers)
        gigabytes = sum(weight.nbytes for weight in weights.values()) / 1e9
        return f"{sizes}; weights {comfy.utils.weight_dtype(weights)}, {gigabytes:.2f} GB".replace("torch.", "")

    def process_unet_state_dict(self, state_dict: checkpoint.Weights) -> checkpoint.Weights:
        weights = checkpoint.convert_keys(state_dict)
        layer_formats.check(self._layer_formats(), weights, comfy.quant_ops.QUANT_ALGOS)
        if not compat.LAYER_FORMATS:
            weights = {key: x for key, x in weights.items() if not key.endswith(layer_formats.LAYER_FORMAT)}
        checkpoint.check_weights(weights, self.unet_config["video"], self.unet_config["audio"])
        return weights

    def _layer_formats(self) -> layer_formats.Formats:
        """How each quantised layer is stored, by our names."""
        found = self.unet_config.get("layer_formats", {})
        return {checkpoint.convert_key(layer): how for layer, how in found.items()}

    def _tell_layer_formats(self) -> None:
        """Cores before 0.8 do not look for it in the weights."""
        if not compat.LAYER_FORMATS and self._layer_formats():
            self.layer_quant_config = self._layer_formats()


def _check_latent(noise: Tensor | None) -> None:
    """Raise ValueError unless a sampler was given a pack of picture and sound, or a video without sound."""
    if noise is None or noise.ndim == 5 or (noise.ndim == 3 and noise.shape[1] == 1):
        return
    found = "sound without a picture" if noise.ndim == 3 else f"a latent of shape {list(noise.shape)}"
    raise ValueError(
        f"The sampler was given {found}; Ovi samples both together. Connect 'Ovi Latent', or put a video latent and an "
        "audio latent together with 'Ovi Concat Latent'."
    )


def _joined(text: Tensor, length: int) -> Tensor:
    """[B, T, D] -> [B, length, D]: what 'Conditioning (Concat)' put together, without the zeros between."""
    is_padding = (text == 0).all(-1)
    order = is_padding.int().argsort(dim=1, stable=True)
    if (~is_padding).sum(1).max() > length:
        log.warning("The prompts put together have more than %d tokens: what is above is cut.", length)
    return text.gather(1, order[..., None].expand_as(text))[:, :length]


def clean_frames(denoise_mask: Tensor | None, shapes) -> Tensor | None:
    """Say which frames the model gets clean, at time 0: the first, where all of it is held; [B, 1, F, 1, 1] or None.

    Only the first, for only that is what image-to-video was trained on. Every other held part is noised to the
    level of the run: a model with one clock for both towers loses their sync when one of them is given clean.
    denoise_mask: the sampler's, in the shape of the latent or of the pack; 0 is held.
    """
    if denoise_mask is None:
        return None
    video_mask = compat.unpack_latents(denoise_mask, shapes)[0] if denoise_mask.ndim == 3 else denoise_mask
    frames = video_mask.new_zeros(video_mask.shape[0], 1, video_mask.shape[2], 1, 1)
    frames[:, 0, 0, 0, 0] = (video_mask[:, :, 0].flatten(1).amax(dim=1) == 0).to(frames.dtype)
    return frames


def register() -> None:
    """Make stock loaders, LoRA loaders and samplers know Ovi; does nothing if core, or another copy of this, does."""
    known = comfy.supported_models.models
    if any(entry.unet_config.get("image_model") == IMAGE_MODEL for entry in known):
        return
    known.append(OviConfig)
    detection = comfy.model_detection
    detection.unet_prefix_from_state_dict = _unwrapping_ovi(detection.unet_prefix_from_state_dict)
    comfy.model_detection.detect_unet_config = _detecting_ovi(comfy.model_detection.detect_unet_config)
    lora_names.install(lambda model: isinstance(model, OviBase))
    compat.install(lambda model: isinstance(model, OviBase))


def _unwrapping_ovi(original):
    """Checkpoints of training runs hold the weights below other names; core asks for the prefix first of all."""

    @functools.wraps(original)
    def unet_prefix_from_state_dict(state_dict):
        if any(isinstance(value, dict) for value in state_dict.values()):
            tensors = find_tensors(state_dict)
            if checkpoint.has_video_tower(tensors):
                state_dict.clear()
                state_dict.update(tensors)
        return original(state_dict)

    return unet_prefix_from_state_dict


def _detecting_ovi(original):
    @functools.wraps(original)
    def detect_unet_config(state_dict, key_prefix, metadata=None, **kwargs):
        video = checkpoint.has_video_tower(state_dict, key_prefix)
        audio = checkpoint.has_audio_tower(state_dict, key_prefix)
        if not (video or audio):
            return original(state_dict, key_prefix, metadata=metadata, **kwargs)
        if not (video and audio):
            raise ValueError(checkpoint.missing_half(video))
        own = {key.removeprefix(key_prefix): tensor for key, tensor in state_dict.items() if key.startswith(key_prefix)}
        if quanto.is_quantised(own):
            raise ValueError(
                "This file was quantised by optimum-quanto. Use the node 'Ovi Model Loader', which reads such files."
            )
        video_config, audio_config = checkpoint.read_config(checkpoint.convert_keys(own))
        formats = layer_formats.unify(state_dict, metadata, key_prefix)
        return {"image_model": IMAGE_MODEL, "video": video_config, "audio": audio_config, "layer_formats": formats}

    return detect_unet_config


def _middle_frame(latent):
    """The picture in what a previewer is given; not the first, which image-to-video holds from the start."""
    video = latent.unbind()[0] if getattr(latent, "is_nested", False) else latent
    middle = video.shape[2] // 2
    return video[:, :, middle : middle + 1]
