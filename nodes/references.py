"""References: faces and voices for a clip, and guidance by them."""

import torch
from comfy_api.latest import io
from node_helpers import conditioning_set_values

from ..ovi_model.config import SAMPLE_RATE
from ..ovi_model.latent import references
from ..ovi_model.latent.latents import streams
from ..ovi_model.sample import reference_guidance
from ..ovi_model.sample.references import IMAGES, VOICES
from ..ovi_model.save.sound import read_sound, resample

MOST_SECONDS = 36000.0


class OviReferences(io.ComfyNode):
    """Pictures and voices of one or two people for CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def picture(name: str, whose: str, tag: str) -> io.Image.Input:
            how = (
                f"One picture of {whose}, who is {tag} in the prompt. Fitted into the clip's size "
                "with white around it: cut it to head and shoulders."
            )
            return io.Image.Input(name, optional=True, tooltip=how)

        def voice(name: str, whose: str) -> io.Audio.Input:
            how = (
                f"A recording in which {whose} speaks, any sample rate, mixed down to mono. One "
                "second of it is used."
            )
            return io.Audio.Input(name, optional=True, tooltip=how)

        def start(name: str, what: str) -> io.Float.Input:
            return io.Float.Input(
                name,
                default=1.0,
                min=0.0,
                max=MOST_SECONDS,
                step=0.01,
                round=False,
                tooltip=f"Where the second that is used of {what} begins, in seconds. The "
                "reference takes 1.0; choose a second full of speech.",
            )

        return io.Schema(
            node_id="OviReferences",
            display_name="Ovi References",
            category="Ovi/latent",
            description="Gives a model that was trained for it (DreamID-Omni) the face and the "
            "voice of one or two people. A picture alone or a voice alone is possible too; the "
            "model was trained with both.",
            inputs=[
                io.Conditioning.Input(
                    "positive", tooltip="From 'Ovi Text Encode': what the clip should be."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="From 'Ovi Text Encode': what it should not be."
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="The latent that is sampled, from 'Ovi Latent': pictures are brought "
                    "to its size.",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Wan 2.2 video VAE (48 channels), for pictures."
                ),
                io.Vae.Input(
                    "audio_vae",
                    optional=True,
                    tooltip="The VAE of 'Ovi Audio VAE Loader', for voices.",
                ),
                picture("image", "the first person", "<img1>"),
                voice("voice", "the first person"),
                picture("image_2", "a second person", "<img2>"),
                voice("voice_2", "a second person"),
                start("voice_start", "voice"),
                start("voice_2_start", "voice_2"),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive_with",
                    display_name="positive",
                    tooltip="With the references, for samplers and guiders.",
                ),
                io.Conditioning.Output(
                    "negative_with",
                    display_name="negative",
                    tooltip="With the references, which the negative prediction sees too.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive,
        negative,
        latent,
        vae=None,
        audio_vae=None,
        image=None,
        voice=None,
        image_2=None,
        voice_2=None,
        voice_start: float = 1.0,
        voice_2_start: float = 1.0,
    ) -> io.NodeOutput:
        """Return both CONDITIONINGs with latents of what is connected."""
        video, _ = streams(latent, "latent")
        images = _connected("image", image, image_2, "vae", vae)
        voices = _connected("voice", voice, voice_2, "audio_vae", audio_vae)
        if not images and not voices:
            raise ValueError("Nothing is referred to: connect 'image', 'voice' or both.")
        starts = {"voice": voice_start, "voice_2": voice_2_start}
        values = {
            IMAGES: [references.encode_image(vae, *image, video) for image in images.items()],
            VOICES: [
                references.encode_voice(
                    audio_vae, name, references.cut_voice(name, _mono(name, sound), starts[name])
                )
                for name, sound in voices.items()
            ],
        }
        values = {name: latents for name, latents in values.items() if latents}
        return io.NodeOutput(
            conditioning_set_values(positive, values), conditioning_set_values(negative, values)
        )


def _connected(name: str, first, second, vae_name: str, vae) -> dict:
    """Return what is connected by the names of the sockets.

    Raises ValueError for a second one without the first, whose place on the clock is the first
    one's then; or if the VAE is not there.
    """
    if first is None and second is not None:
        raise ValueError(
            f"'{name}_2' is connected and '{name}' is not: the model takes the only one for the "
            f"first person's. Connect it to '{name}', or the first person's too."
        )
    given = {name: first, f"{name}_2": second}
    given = {name: value for name, value in given.items() if value is not None}
    if given and vae is None:
        raise ValueError(f"'{next(iter(given))}' is connected, but '{vae_name}' is not.")
    return given


def _mono(name: str, audio: dict) -> torch.Tensor:
    """Return a recording [1, samples] at 16 kHz."""
    heard, rate = read_sound(name, audio)
    samples = -(-heard.shape[1] * SAMPLE_RATE // rate)
    return resample(heard.mean(dim=0, keepdim=True), rate, SAMPLE_RATE, samples)


def _scale(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip
    )


def _scales() -> list[io.Float.Input]:
    return [
        _scale(
            "audio_cfg",
            4.0,
            "Guidance scale of the sound away from the negative prompt. The reference uses 4.0; "
            "1.0 is off.",
        ),
        _scale(
            "image_cfg",
            1.5,
            "Scale away from the picture made without faces. The reference uses 1.5. 0 is off, "
            "and saves a quarter of each step.",
        ),
        _scale(
            "voice_cfg",
            2.0,
            "Scale away from the sound made without voices. The reference uses 2.0. 0 is off, and "
            "saves a quarter of each step.",
        ),
    ]


class OviReferenceGuidance(io.ComfyNode):
    """Guidance by references for a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviReferenceGuidance",
            display_name="Ovi Reference Guidance",
            category="Ovi/sample",
            description="Leads a clip by its references, with four predictions a step that share "
            "one forward where memory allows it. The sampler's cfg is for the picture (the "
            "reference uses 3.0). Works with KSampler and every other sampler, in place of 'Ovi "
            "Guidance'. Place it after LoRA loaders.",
            inputs=[io.Model.Input("model", tooltip="An Ovi model."), *_scales()],
            outputs=[
                io.Model.Output(
                    "guided_model", display_name="model", tooltip="For any sampler or guider."
                )
            ],
        )

    @classmethod
    def execute(cls, model, audio_cfg: float, image_cfg: float, voice_cfg: float) -> io.NodeOutput:
        """Return a patched copy of the model."""
        scales = (audio_cfg, image_cfg, voice_cfg)
        return io.NodeOutput(reference_guidance.guide_references(model, *scales))


class OviReferenceGuider(io.ComfyNode):
    """The same as GUIDER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviReferenceGuider",
            display_name="Ovi Reference Guider",
            category="Ovi/sample",
            description="'Ovi Reference Guidance' and a guider in one, for "
            "'SamplerCustomAdvanced'.",
            inputs=[
                io.Model.Input("model", tooltip="An Ovi model, after LoRA loaders."),
                io.Conditioning.Input("positive", tooltip="From 'Ovi References'."),
                io.Conditioning.Input("negative", tooltip="From 'Ovi References'."),
                _scale(
                    "video_cfg",
                    3.0,
                    "Guidance scale of the picture away from the negative prompt. The reference "
                    "uses 3.0; 1.0 is off.",
                ),
                *_scales(),
            ],
            outputs=[
                io.Guider.Output(
                    "guider", display_name="guider", tooltip="For 'SamplerCustomAdvanced'."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        video_cfg: float,
        audio_cfg: float,
        image_cfg: float,
        voice_cfg: float,
    ) -> io.NodeOutput:
        """Return the guider."""
        scales = (audio_cfg, image_cfg, voice_cfg)
        return io.NodeOutput(
            reference_guidance.reference_guider(model, positive, negative, video_cfg, scales)
        )
