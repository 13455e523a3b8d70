"""Decoding: the sampler's latent to frames and sound."""

from comfy_api.latest import io

from ..ovi_model.core_facts import advanced, search_aliases
from ..ovi_model.decode.clip import HELD, TILINGS, decode


class OviDecode(io.ComfyNode):
    """Latent to IMAGE and AUDIO of one length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviDecode",
            display_name="Ovi Decode",
            category="Ovi/decode",
            **search_aliases("sound", "VAE decode audio and video"),
            description="Decodes an Ovi latent to frames (24 a second) and sound (16 kHz) of "
            "exactly the same length.",
            inputs=[
                io.Latent.Input(
                    "samples",
                    tooltip="Video and audio latent, as the sampler gives it (its first output).",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="The Wan 2.2 video VAE, 48 channels: 'Load VAE' with "
                    "wan2.2_vae.safetensors.",
                ),
                io.Vae.Input(
                    "audio_vae", tooltip="The audio VAE of 'Ovi Audio VAE Loader', 16 kHz."
                ),
                io.Combo.Input(
                    "tiling",
                    options=list(TILINGS),
                    default="auto",
                    tooltip="Decode the picture in overlapping tiles: as large as free memory "
                    "allows, whole if it can be (auto); of at most 512 pixels (on); whole, smaller "
                    "only if memory runs out (off).",
                    **advanced(),
                ),
                io.Combo.Input(
                    "held",
                    options=list(HELD),
                    default="as given",
                    optional=True,
                    tooltip="Pictures of 'Ovi Hold Pictures' and the sound of 'Ovi Hold Sound': "
                    "put back as they were given, where the latent still holds them (as given), "
                    "or decoded like everything else (decoded).",
                    **advanced(),
                ),
            ],
            outputs=[
                io.Image.Output(
                    "images",
                    display_name="images",
                    tooltip="All frames; the clips of a batch follow one another.",
                ),
                io.Audio.Output(
                    "audio",
                    display_name="audio",
                    tooltip="Mono, 16 kHz, cut or filled with silence to the length of the frames.",
                ),
            ],
        )

    @classmethod
    def execute(cls, samples, vae, audio_vae, tiling: str, held: str = "as given") -> io.NodeOutput:
        """Return the frames [B * F, H, W, 3] and the sound [B, 1, samples]."""
        return io.NodeOutput(*decode(samples, vae, audio_vae, tiling, held))
