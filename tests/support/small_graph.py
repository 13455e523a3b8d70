"""Builds API-format workflows on the small checkpoints; and test-only nodes that count, repeat and
replace.
"""

from logging import LogRecord
from pathlib import Path
from typing import Any, ClassVar

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = "ovi_four_blocks.safetensors"
PROMPT = "A man at a window says <S>Hello there.<E> Audio: rain on glass"
Link = list
# Settings of core's node for context windows, without the length.
WINDOWS = {
    "context_overlap": 4,
    "context_schedule": "standard_static",
    "context_stride": 1,
    "closed_loop": False,
    "fuse_method": "pyramid",
    "freenoise": False,
    "retain_first_frame": False,
    "split_conds_to_windows": False,
}


class Graph:
    """A workflow under construction; a node is known by the link to its first output."""

    def __init__(self) -> None:
        self.prompt: dict[str, dict] = {}

    def add(self, class_type: str, **inputs: Any) -> Link:
        """Add a node and return the link to its first output."""
        name = str(len(self.prompt) + 1)
        self.prompt[name] = {"class_type": class_type, "inputs": inputs}
        return [name, 0]

    def show(self, *links: Link) -> None:
        """Make ComfyUI run the nodes behind these links."""
        for link in links:
            self.add("PreviewAny", source=link)

    def model(self, file: str = MODEL, weight_dtype: str = "default") -> Link:
        return self.add("UNETLoader", unet_name=file, weight_dtype=weight_dtype)

    def clip(self) -> Link:
        return self.add("OviTextEncoderLoader", text_encoder="umt5_small.safetensors")

    def text(self, clip: Link | None = None, prompt: str = PROMPT, **inputs: Any) -> Link:
        defaults = {"video_negative": "blur", "audio_negative": "echo", "sound_tag": "Audio:"}
        return self.add(
            "OviTextEncode", clip=clip or self.clip(), prompt=prompt, **defaults | inputs
        )

    def latent(
        self, width: int = 64, height: int = 64, length: int = 9, batch_size: int = 1, **inputs: Any
    ) -> Link:
        return self.add(
            "OviLatent", width=width, height=height, length=length, batch_size=batch_size, **inputs
        )

    def video_vae(self) -> Link:
        return self.add("VAELoader", vae_name="wan22_tiny_small.safetensors")

    def audio_vae(self) -> Link:
        return self.add(
            "OviAudioVAELoader", vae="mmaudio_small.safetensors", vocoder="in the same file"
        )

    def sample(self, model: Link | None = None, text: Link | None = None, **inputs: Any) -> Link:
        """Add stock KSampler: two steps of euler, cfg 4; inputs replaces any of its inputs."""
        text = text or self.text()
        defaults = {
            "seed": 7,
            "steps": 2,
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        }
        links = {"model": model or self.model(), "positive": text, "negative": output(text, 1)}
        return self.add(
            "KSampler", **{**defaults, **links, **inputs, "latent_image": self._latent_of(inputs)}
        )

    def sample_advanced(self, model: Link, text: Link, latent: Link, **inputs: Any) -> Link:
        """Add stock KSamplerAdvanced: all of four steps of euler, cfg 4; inputs replaces any of its
        inputs.
        """
        defaults = {
            "noise_seed": 7,
            "steps": 4,
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "simple",
        }
        defaults |= {
            "add_noise": "enable",
            "start_at_step": 0,
            "end_at_step": 4,
            "return_with_leftover_noise": "disable",
        }
        links = {
            "model": model,
            "positive": text,
            "negative": output(text, 1),
            "latent_image": latent,
        }
        return self.add("KSamplerAdvanced", **defaults | links | inputs)

    def sample_custom(
        self, model: Link, text: Link, latent: Link, sigmas: Link, **inputs: Any
    ) -> Link:
        """Add stock SamplerCustomAdvanced with CFGGuider at cfg 4 and euler; inputs replaces any of
        its inputs.
        """
        guider = self.add(
            "CFGGuider", model=model, positive=text, negative=output(text, 1), cfg=4.0
        )
        links = {
            "noise": inputs.get("noise") or self.add("RandomNoise", noise_seed=7),
            "sampler": inputs.get("sampler") or self.add("KSamplerSelect", sampler_name="euler"),
        }
        return self.add(
            "SamplerCustomAdvanced", guider=guider, sigmas=sigmas, latent_image=latent, **links
        )

    def _latent_of(self, inputs: dict) -> Link:
        return inputs.get("latent_image") or self.latent()


def output(link: Link, slot: int) -> Link:
    """The link to another output of the same node."""
    return [link[0], slot]


def parts(latent: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture and sound of a latent, which must be finite."""
    assert latent["samples"].is_nested
    video, audio = latent["samples"].unbind()
    assert video.isfinite().all()
    assert audio.isfinite().all()
    return video, audio


def sampled(result, *links: Link) -> list[torch.Tensor]:
    """The first output of these samplers, each as one row of numbers."""
    return [
        torch.cat([stream.flatten() for stream in parts(result.value(link[0]))]) for link in links
    ]


def is_ours(record: LogRecord) -> bool:
    """Whether a module of this repository wrote this line of the log."""
    return Path(record.pathname).resolve().is_relative_to(REPOSITORY)


class CountForwards:
    """Notes which prompts each call of the model serves: 0 positive, 1 negative."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})  # noqa: ARG005
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"
    calls: ClassVar[list[list[int]]] = []

    def patch(self, model):
        def count(executor, *args, **kwargs):
            (options,) = [
                arg
                for arg in (*args, *kwargs.values())
                if isinstance(arg, dict) and "sigmas" in arg
            ]
            self.calls.append(list(options["cond_or_uncond"]))
            return executor(*args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key("diffusion_model", "count", count)
        return (model,)


class SameNoiseForEveryClip:
    """Noise whose every clip is the first clip's of that seed; stock noise nodes draw a batch in
    one go.
    """

    INPUT_TYPES = classmethod(lambda cls: {"required": {"seed": ("INT", {"default": 0})}})  # noqa: ARG005
    RETURN_TYPES = ("NOISE",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, seed):
        self.seed = seed
        return (self,)

    def generate_noise(self, latent):
        generator = torch.Generator().manual_seed(self.seed)
        streams = latent["samples"].unbind()
        clips = [torch.randn(stream[:1].shape, generator=generator) for stream in streams]
        same = [
            clip.expand_as(stream).contiguous() for clip, stream in zip(clips, streams, strict=True)
        ]
        return type(latent["samples"])(same)


class HalvedGuidance:
    """A cfg function of another extension, as RescaleCFG sets one: half the scale."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})  # noqa: ARG005
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    def patch(self, model):
        model = model.clone()
        model.set_model_sampler_cfg_function(
            lambda args: args["uncond"] + args["cond_scale"] / 2 * (args["cond"] - args["uncond"])
        )
        return (model,)


TEST_NODES = {
    node.__name__: node for node in (CountForwards, SameNoiseForEveryClip, HalvedGuidance)
}
