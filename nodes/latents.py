"""Latents: how large, how long, from which image; and the two streams apart and together."""

from comfy_api.latest import io

from ..ovi_model.config import PIXEL_STEP, VARIANTS
from ..ovi_model.core_facts import answer, choose, search_aliases
from ..ovi_model.latent import geometry, latents
from ..ovi_model.latent.pictures import check_pictures

MOST_PIXELS, MOST_FRAMES = 8192, 8193
AREAS = {name.split("_")[0]: variant.area for name, variant in VARIANTS.items()}


class OviImageSize(io.ComfyNode):
    """An image to the size the reference would generate at."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviImageSize",
            display_name="Ovi Image Size",
            category="Ovi/latent",
            description="Picks width and height for an image as Ovi does: the model's area, the "
            "image's proportions.",
            inputs=[
                io.Image.Input(
                    "image", tooltip="The image that starts the clip. Only its size is used."
                ),
                io.Combo.Input(
                    "model_area",
                    options=list(AREAS),
                    default="960x960",
                    tooltip="Area in pixels the model was trained at: 720x720 for model 1.0, "
                    "960x960 for models 1.1.",
                ),
            ],
            outputs=[
                io.Int.Output("width", display_name="width", tooltip="Pixels, a multiple of 32."),
                io.Int.Output("height", display_name="height", tooltip="Pixels, a multiple of 32."),
            ],
        )

    @classmethod
    def execute(cls, image, model_area: str) -> io.NodeOutput:
        """Return width and height in pixels."""
        check_pictures("image", image)
        height, width = image.shape[1:3]
        return io.NodeOutput(
            *geometry.size_for_area(width, height, choose("model_area", model_area, AREAS))
        )


class OviLatent(io.ComfyNode):
    """Size and length to a latent of picture and sound."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str, says: str) -> io.Int.Input:
            how = (
                f"{says} in pixels, a multiple of 32. Trained at an area of 960 x 960 (1.1) or "
                "720 x 720 (1.0)."
            )
            return io.Int.Input(name, default=960, min=32, max=MOST_PIXELS, step=32, tooltip=how)

        return io.Schema(
            node_id="OviLatent",
            display_name="Ovi Latent",
            category="Ovi/latent",
            **search_aliases(
                "empty latent video and audio",
                "text to video with sound",
                "image to video with sound",
                "talking",
            ),
            description="An empty latent of picture and sound of one length. With an image and the "
            "Wan 2.2 VAE, the clip starts from that image.",
            inputs=[
                side("width", "Width"),
                side("height", "Height"),
                io.Int.Input(
                    "length",
                    default=121,
                    min=1,
                    max=MOST_FRAMES,
                    step=4,
                    tooltip="Length in frames at 24 frames a second, 4n + 1: 121 is 5 s, 241 is 10 "
                    "s (the 10 s model).",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Number of clips made at once; memory grows with it.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Wan 2.2 video VAE (48 channels). Needed only with a start image.",
                ),
                io.Image.Input(
                    "start_image",
                    optional=True,
                    tooltip="First frame of the clip, scaled to width x height and cut at the "
                    "centre. One image for all clips, or one for each.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="latent", tooltip="Picture and sound, for any sampler."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, width=None, height=None, length=None) -> bool | str:
        """Say what is wrong with typed numbers before anything is loaded; None comes by a link."""
        return answer(_check_typed, width=width, height=height, length=length)

    @classmethod
    def execute(
        cls, width, height, length, batch_size, vae=None, start_image=None
    ) -> io.NodeOutput:
        """Return a nested latent, with a nested mask if there is an image."""
        geometry.check_size(width, height, length)
        if start_image is None:
            return io.NodeOutput(latents.empty(width, height, length, batch_size))
        if vae is None:
            raise ValueError(
                "start_image is connected but vae is not: connect the Wan 2.2 video VAE from 'Load "
                "VAE'."
            )
        return io.NodeOutput(
            latents.from_image(vae, start_image, width, height, length, batch_size)
        )


def _check_typed(width: int | None, height: int | None, length: int | None) -> None:
    """Check sizes, also against the most, which core leaves to nodes that have a check."""
    typed = {"width": width, "height": height, "length": length}
    most = {"width": MOST_PIXELS, "height": MOST_PIXELS, "length": MOST_FRAMES}
    for name, value in typed.items():
        if value is not None and value > most[name]:
            raise ValueError(f"The {name} is {value}; the most is {most[name]}.")
    geometry.check_size(
        PIXEL_STEP if width is None else width,
        PIXEL_STEP if height is None else height,
        1 if length is None else length,
    )


class OviSeparateLatent(io.ComfyNode):
    """A latent of picture and sound to its two streams."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviSeparateLatent",
            display_name="Ovi Separate Latent",
            category="Ovi/latent",
            description="Takes picture and sound apart, for nodes that work on one of them. Masks "
            "go along.",
            inputs=[
                io.Latent.Input(
                    "latent", tooltip="Latent of picture and sound, from 'Ovi Latent' or a sampler."
                )
            ],
            outputs=[
                io.Latent.Output(
                    "video_latent",
                    display_name="video_latent",
                    tooltip="Of the picture: for 'VAE Decode' and the like.",
                ),
                io.Latent.Output(
                    "audio_latent",
                    display_name="audio_latent",
                    tooltip="Of the sound: for 'VAE Decode Audio'.",
                ),
            ],
        )

    @classmethod
    def execute(cls, latent) -> io.NodeOutput:
        """Return the video latent and the audio latent."""
        return io.NodeOutput(*latents.separate(latent))


class OviConcatLatent(io.ComfyNode):
    """Two streams to a latent of picture and sound."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviConcatLatent",
            display_name="Ovi Concat Latent",
            category="Ovi/latent",
            description="Puts a video latent and an audio latent of one length together. Masks go "
            "along; a stream without one is sampled as a whole.",
            inputs=[
                io.Latent.Input("video_latent", tooltip="Wan 2.2 video latent, 48 channels."),
                io.Latent.Input(
                    "audio_latent",
                    tooltip="Audio latent of the same length, 20 channels, 31.4 steps a second.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent", display_name="latent", tooltip="For samplers and 'Ovi Decode'."
                )
            ],
        )

    @classmethod
    def execute(cls, video_latent, audio_latent) -> io.NodeOutput:
        """Return the nested latent."""
        return io.NodeOutput(latents.concat(video_latent, audio_latent))
