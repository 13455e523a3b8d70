"""What ComfyUI needs to know of Ovi: how to recognise, build, condition and mask it, and how much
memory it takes.
"""

from __future__ import annotations

from typing import ClassVar

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.quant_ops
import comfy.supported_models
import comfy.utils
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from . import core_facts
from .latent.given import check_is_joint, check_noise, check_streams
from .latent.hold import clean_frames, undo_rounding
from .load import checkpoint, quantization, quanto
from .load.state_dict import StateDict
from .log import log
from .network import fused_ops, memory
from .network.model import OviModel
from .preview.live import middle_frame
from .sample import other_conds, other_nodes, references, windows
from .text import conds

IMAGE_MODEL = "ovi"


class OviLatentFormat(comfy.latent_formats.Wan22):
    """The video latent of Wan 2.2; previews show a frame of the picture, not the first, which
    image-to-video holds from the start.
    """

    def __init__(self):
        super().__init__()
        self.latent_rgb_factors_reshape = middle_frame


class OviBase(comfy.model_base.BaseModel):
    """Ovi as the sampler sees it: one latent [B, 1, N] that packs a video [B, 48, F, H, W] and an
    audio [B, 20, L].
    """

    def __init__(self, model_config, device=None):
        super().__init__(
            model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=OviModel
        )
        self.latent_shapes: list[torch.Size] = []  # set by the sampler
        self.windows_are_anchored = False  # set by each step of context windows
        self.clean_frames: Tensor | None = None  # [B, 1, F, 1, 1] of the run, set by extra_conds
        self.denoise_mask: Tensor | None = None  # of the run, set by extra_conds
        self.given: Tensor | None = None  # the latent that a run starts from, as it came
        self.memory_floor = 0.0  # bytes; what a run needs at least, set while core loads for it

    @property
    def current_patcher(self):
        """The MODEL that runs; core sets it as a run begins, and takes it away as the run ends."""
        return self._patcher

    @current_patcher.setter
    def current_patcher(self, patcher) -> None:
        self._patcher = patcher
        if patcher is not None:  # core hands over no latent of zeros: it must not find an old one
            self.given = self.denoise_mask = self.clean_frames = None
            return
        self.clean_frames = None
        # Asked for once more, for 'denoised_output'. Core sets None before there are any, too.
        kept = (getattr(self, name, None) for name in ("given", "denoise_mask"))
        self.given, self.denoise_mask = (x if x is None else x.cpu() for x in kept)

    def process_latent_in(self, latent):
        # The mask comes after it, with the prompts of a run; 'AddNoise' asks here outside of one.
        self.given, self.denoise_mask = latent, None
        return self._on_video(self.latent_format.process_in, latent)

    def process_latent_out(self, latent):
        """Return a sampled latent for other nodes; what was held is what it was, to the bit."""
        made = self._on_video(self.latent_format.process_out, latent)
        if not getattr(made, "is_nested", False):
            return undo_rounding(made, self.given, self.denoise_mask)
        packed, shapes = comfy.utils.pack_latents(made.unbind())  # of 'denoised_output'
        packed = undo_rounding(packed, self.given, self.denoise_mask)
        return NestedTensor(core_facts.unpack_latents(packed, shapes))

    def extra_conds(self, **kwargs) -> dict:
        """Prompts of both towers, shapes, rotations, clean frames."""
        noise, shapes = kwargs.get("noise"), kwargs.get("latent_shapes")
        check_is_joint(noise, shapes)
        if noise is not None and shapes is not None and len(shapes) > 1:
            check_noise(noise, shapes)
            check_streams(shapes)
        out = super().extra_conds(**kwargs)
        if kwargs.get("cross_attn") is not None:
            out |= self._text_conds(**kwargs)
        if shapes is not None and len(shapes) > 1:
            out["latent_shapes"] = comfy.conds.CONDConstant(shapes)
        given = references.reference_conds(self.latent_format, shapes, *_references_in(kwargs))
        if given and kwargs.get("prompt_type") == "positive":
            references.say_if_untrained(self.current_patcher)
        out |= given
        if "latent_shapes" in out and noise is not None:
            places = references.places_of(out)
            tables = self.diffusion_model.prepare_rotations(shapes, noise.device, *places)
            out["freqs_cis"] = conds.CONDTables(tables)
        self.denoise_mask = kwargs.get("denoise_mask")
        self.clean_frames = clean_frames(self.denoise_mask, shapes)
        if self.clean_frames is not None:
            out["clean_frames"] = comfy.conds.CONDRegular(self.clean_frames)
        return out

    def _text_conds(self, cross_attn, audio_context=None, device=None, hooks=None, **_unused):
        """Text of both towers, embedded once for the run unless its weights may change in it."""
        audio_context = cross_attn if audio_context is None else audio_context
        config = self.diffusion_model.config
        texts = [conds.trim(text, config) for text in (cross_attn, audio_context)]
        is_embedded = device is not None and hooks is None and not torch.is_grad_enabled()
        if is_embedded:
            dtype = core_facts.compute_dtype(self)
            texts = self.diffusion_model.preprocess_text_embeds(
                *(text.to(device, dtype) for text in texts)
            )
        else:
            texts = [conds.with_padding(text, config) for text in texts]
        names = ("c_crossattn", "audio_context")
        out = {name: conds.CONDText(text) for name, text in zip(names, texts, strict=True)}
        return {**out, "is_embedded": comfy.conds.CONDConstant(is_embedded)}

    def apply_model(
        self,
        x,
        t,
        c_concat=None,
        c_crossattn=None,
        control=None,
        transformer_options={},
        **kwargs,
    ):
        """Run one step, after a look at what nodes made for other models ask of it."""
        if c_crossattn is None:
            raise ValueError(
                "A guider asks for a prediction without a prompt, which Ovi was not trained for: "
                "connect its input 'negative' with 'Ovi Text Encode', an empty text if need be."
            )
        other_conds.check({"control": control}, is_joint=x.ndim == 3)
        other_nodes.check(self.diffusion_model, self.current_patcher, transformer_options)
        other_nodes.say_where_guidance_is_split(transformer_options)
        return super().apply_model(
            x, t, c_concat, c_crossattn, control, transformer_options, **kwargs
        )

    def process_timestep(
        self,
        timestep: Tensor,
        x: Tensor,
        clean_frames: Tensor | None = None,
        finished_steps: int = 0,
        latent_shapes=None,
        **_unused,
    ):
        """0 for frames that are clean and for sound that is finished, the same for all else."""
        if finished_steps:
            by_step = timestep.unsqueeze(1).repeat(1, latent_shapes[1][2])
            by_step[:, :finished_steps] = 0
            return [timestep, by_step]
        if clean_frames is None:
            return timestep
        by_frame = timestep.unsqueeze(1) * (1 - clean_frames[:, 0, :, 0, 0].to(timestep.dtype))
        return [by_frame, timestep] if x.ndim == 3 else by_frame

    def scale_latent_inpaint(
        self, sigma: Tensor, noise: Tensor, latent_image: Tensor, **_mask
    ) -> Tensor:
        """Return what is held, for this noise level: clean frames as they are, all else with its
        noise put back.

        Newer cores hand over the mask of the step, which nodes such as Differential Diffusion
        change; the times that the model is told are of the whole run, so its mask decides here too.
        """
        held = super().scale_latent_inpaint(sigma=sigma, noise=noise, latent_image=latent_image)
        clean = self.clean_frames
        if clean is None:
            return held
        clean = clean.to(held.device) > 0
        if held.ndim == 5:
            return torch.where(clean, latent_image, held)
        video, *rest = core_facts.unpack_latents(held, self.latent_shapes)
        given = core_facts.unpack_latents(latent_image, self.latent_shapes)[0]
        return comfy.utils.pack_latents([torch.where(clean, given, video), *rest])[0]

    def extra_conds_shapes(self, **kwargs) -> dict:
        """Shapes of references, before there are conds of them."""
        return references.shapes_of(*_references_in(kwargs))

    def memory_required(self, input_shape, cond_shapes=None, **_unused) -> float:
        if len(input_shape) == 3:
            batch, channels, size = input_shape
            input_shape = [batch, channels, size + references.size_of(cond_shapes)]
        model, core = self.diffusion_model, comfy.model_management
        attention = core.xformers_enabled() or core.pytorch_attention_flash_attention()
        fused = memory.Fused(attention, fused_ops.FUSED_RMS_NORM and core.is_nvidia())
        dtype = core_facts.compute_dtype(self)
        copies = self.manual_cast_dtype is not None
        needed = memory.memory_required(
            model.config, model.audio_model.config, input_shape, dtype, copies, fused
        )
        return max(needed * self.memory_usage_factor, self.memory_floor)

    def map_context_window_to_modalities(
        self, primary_indices: list[int], latent_shapes, dim: int
    ) -> list[list[int]]:
        """Give each video window the steps of sound that were trained with as many frames."""
        if len(latent_shapes) < 2:
            return [primary_indices]
        frames, steps = latent_shapes[0][dim], latent_shapes[1][dim]
        sound = windows.sound_of(primary_indices, frames, steps, self.windows_are_anchored)
        return [primary_indices, list(sound)]

    def resize_cond_for_context_window(
        self, cond_key, cond_value, window, _x_in, device, *_args, **_unused
    ):
        """Cut the clean frames as the window is cut, and no reference; core cuts the rest."""
        if cond_key in (references.MODEL_IMAGES, references.MODEL_VOICES):
            return cond_value
        if cond_key == "clean_frames":
            return cond_value._copy_with(window.get_tensor(cond_value.cond, device, dim=2))
        return None

    def _on_video(self, process, latent):
        """Apply a function of the video latent to a nested latent, a pack, or a video; sound alone
        stays as it is.
        """
        if getattr(latent, "is_nested", False):
            video, *rest = latent.unbind()
            return NestedTensor([process(video), *rest])
        if latent.ndim == 5:
            return process(latent)
        # A guider of two models tells the shapes to one of them alone.
        if latent.shape[1] != 1 or not self.latent_shapes:
            return latent
        video, *rest = core_facts.unpack_latents(latent, self.latent_shapes)
        return comfy.utils.pack_latents([process(video), *rest])[0]


def _references_in(options: dict) -> tuple:
    """Return the pictures and the voices of a CONDITIONING's options, or None."""
    return options.get(references.IMAGES), options.get(references.VOICES)


class OviConfig(comfy.supported_models.WAN22_T2V):
    """Core's entry for the family: sampling, dtypes and text encoder are Wan's."""

    unet_config: ClassVar[dict] = {"image_model": IMAGE_MODEL}
    sampling_settings: ClassVar[dict] = {"shift": 5.0}
    latent_format = OviLatentFormat

    def __init__(self, unet_config):
        formats = unet_config.get("layer_formats", {})
        self._formats = {checkpoint.convert_key(layer): how for layer, how in formats.items()}
        super().__init__(unet_config)
        self.memory_usage_factor = 1.0  # by which nodes of others correct an estimate

    # What core finds of quantised layers it finds by names of its own; how ours are stored, the
    # detection has read. Cores from 0.8 on ask for the first, older ones for the other two.
    quant_config = property(
        lambda self: {"mixed_ops": True} if self._formats else None, lambda _self, _found: None
    )
    layer_quant_config = property(lambda self: self._formats or None, lambda _self, _found: None)
    scaled_fp8 = property(lambda _self: None, lambda _self, _found: None)

    def set_inference_dtype(self, dtype, manual_cast_dtype, **kwargs):
        """Name the precision to compute in also where it is that of the weights: quantised layers
        ask for it.
        """
        if manual_cast_dtype is None and self._formats:
            manual_cast_dtype = dtype
        super().set_inference_dtype(dtype, manual_cast_dtype, **kwargs)

    def get_model(self, state_dict, _prefix="", device=None) -> OviBase:
        log.info(self._summary(state_dict))
        return OviBase(self, device=device)

    def _summary(self, state_dict: StateDict) -> str:
        """Say in one line what is loaded."""
        towers = ((name, self.unet_config[name]) for name in ("video", "audio"))
        sizes = ", ".join(
            f"{name} tower {tower.num_layers} blocks {tower.dim} wide" for name, tower in towers
        )
        dtype = str(comfy.utils.weight_dtype(state_dict)).removeprefix("torch.")
        gigabytes = sum(tensor.nbytes for tensor in state_dict.values()) / 1e9
        return f"{sizes}; weights {dtype}, {gigabytes:.2f} GB"

    def process_unet_state_dict(self, state_dict: StateDict) -> StateDict:
        own = quantization.store(checkpoint.convert_keys(state_dict), self._formats)
        quantization.check(self._formats, own, comfy.quant_ops.QUANT_ALGOS)
        if not core_facts.LAYER_FORMATS:
            own = {key: x for key, x in own.items() if not key.endswith(quantization.LAYER_FORMAT)}
        checkpoint.check_weights(own, self.unet_config["video"], self.unet_config["audio"])
        return own


def read_unet_config(state_dict: StateDict, prefix: str, metadata: dict | None) -> dict | None:
    """Return core's description of an Ovi model below a prefix, which changes nothing there, or
    None if it is no Ovi.

    Raises ValueError if it is half of one, stored in a way that only 'Ovi Model Loader' reads, or
    damaged.
    """
    video = checkpoint.has_video_tower(state_dict, prefix)
    audio = checkpoint.has_audio_tower(state_dict, prefix)
    if not (video or audio):
        return None
    if not (video and audio):
        raise ValueError(checkpoint.missing_half(video))
    own = {
        key.removeprefix(prefix): tensor
        for key, tensor in state_dict.items()
        if key.startswith(prefix)
    }
    if quanto.is_quantised(own):
        raise ValueError(
            "This file was quantised by optimum-quanto. Use the node 'Ovi Model Loader', which "
            "reads such files."
        )
    formats = quantization.read(own, metadata, prefix)
    video_config, audio_config = checkpoint.read_config(checkpoint.convert_keys(own))
    return {
        "image_model": IMAGE_MODEL,
        "video": video_config,
        "audio": audio_config,
        "layer_formats": formats,
        "model_channels": video_config.dim,  # nodes made for U-Nets read it before anything else
    }
