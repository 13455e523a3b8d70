"""A clip block by block, shown while it is made."""

import functools

import comfy.samplers
from comfy_api.latest import io, ui

from ..ovi_model.core_facts import advanced, choose, find_server
from ..ovi_model.load.audio_vae import is_audio_vae
from ..ovi_model.load.video_vae import check_video_vae
from ..ovi_model.preview.film_so_far import Player
from ..ovi_model.sample.streaming import sample_streaming
from ..ovi_model.sample.streaming_memory import KEEP
from ..ovi_model.save.mux import Clip
from .output_folder import write_for_page

NODE = "Ovi Streaming Sampler"


class OviStreamingSampler(io.ComfyNode):
    """A clip block by block as SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviStreamingSampler",
            display_name="Ovi Streaming Sampler",
            category="Ovi/sample",
            description="Makes a clip in blocks of a second, four steps each and without a "
            "negative prompt, with a model that was trained for it (Hallo-Live). Give it the "
            "sigmas of 'BasicScheduler', simple, 4 steps.",
            inputs=[
                io.Int.Input(
                    "frames_per_block",
                    default=6,
                    min=1,
                    max=1000,
                    tooltip="Latent frames that are made at once, 4 frames each. The model was "
                    "trained with 6, a second.",
                    **advanced(),
                ),
                io.Combo.Input(
                    "keep",
                    options=list(KEEP),
                    default="on the card",
                    tooltip="Where keys and values of finished blocks are kept: 8.8 GB for a clip "
                    "of 992 x 512 pixels and 117 frames in bf16, half of it in fp8. In main "
                    "memory they are copied at every step. The log says how much it is.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes finished blocks, which this node then shows as a film that "
                    "grows while the next block is made: Wan 2.2's video VAE, or its tiny decoder, "
                    "which is faster. Each block is decoded with 2 latent frames before it.",
                ),
                io.Vae.Input(
                    "audio_vae",
                    optional=True,
                    tooltip="The VAE of 'Ovi Audio VAE Loader', for the sound of that film.",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    "sampler",
                    display_name="sampler",
                    tooltip="For 'SamplerCustomAdvanced' with 'BasicGuider'.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, frames_per_block: int, keep: str, vae=None, audio_vae=None) -> io.NodeOutput:
        """Return the sampler."""
        choose("keep", keep, KEEP)
        options = {"frames_per_block": frames_per_block, "keep": keep}
        if vae is not None or audio_vae is not None:
            check_vaes(vae, audio_vae)
            node = cls.hidden.unique_id if cls.hidden else None
            options["player"] = Player(vae, audio_vae, functools.partial(_show, node))
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_streaming, options))


def check_vaes(vae, audio_vae) -> None:
    """Raise ValueError unless there is a VAE for the picture, and the other one is for sound."""
    if vae is None:
        raise ValueError(
            f"'audio_vae' of {NODE} is connected, and 'vae' is not: connect 'Load VAE' with "
            "wan2.2_vae.safetensors, or disconnect 'audio_vae'."
        )
    check_video_vae(vae, NODE)
    if audio_vae is not None and not is_audio_vae(audio_vae):
        raise ValueError(
            f"'audio_vae' of {NODE} is no audio VAE of Ovi. Connect the one of 'Ovi Audio VAE "
            "Loader'."
        )


def _show(node: str | None, clip: Clip) -> None:
    """Show a clip in a node of the page, by what ComfyUI sends when a node that shows one ends."""
    server = find_server()
    if server is None or node is None:
        return
    saved = write_for_page("Ovi_so_far", clip, lambda: None)
    shown = ui.PreviewVideo([saved]).as_dict()
    prompt = getattr(server, "last_prompt_id", None)
    message = {"node": node, "display_node": node, "output": shown, "prompt_id": prompt}
    server.send_sync("executed", message, server.client_id)
