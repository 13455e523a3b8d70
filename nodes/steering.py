"""Sound for a held picture, steered to what is seen."""

from comfy_api.latest import io

from ..ovi_model.core_facts import advanced, find_server, search_aliases
from ..ovi_model.sample.steering import Steering, steer


class OviSteer(io.ComfyNode):
    """A MODEL whose sound follows a held picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviSteer",
            display_name="Ovi Steer",
            category="Ovi/sample",
            **search_aliases("video to audio", "foley", "sound for video", "lip sync"),
            description="Makes sound in step with a held picture: a video in a latent whose noise "
            "mask is 0. Acts on 'KSampler' and 'SamplerCustomAdvanced'; changes nothing "
            "where no picture is held beyond its first frame, or where the sound is held too. "
            "Does not go with EasyCache, context windows, torch.compile and several cards.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An Ovi model, before or after LoRA loaders and 'Ovi Guidance'.",
                ),
                io.Float.Input(
                    "strength",
                    default=2.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How far each steered step moves the predicted sound, as a multiple of "
                    "its size. 2.0 if all steps are steered, 4.0 for four of them; 0.0 is off.",
                ),
                io.Float.Input(
                    "until",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise level, from 1.0 at the start to 0.0 at the end, down to which "
                    "steps are steered. When a sound happens is decided above 0.8; the rest is "
                    "detail.",
                    **advanced(),
                ),
                io.Int.Input(
                    "steered_steps",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="How many steps are steered; each takes two to three times as long. "
                    "0: all above the noise level 'until'. 4 with strength 4.0 is a cheap choice.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "steered_model",
                    display_name="model",
                    tooltip="For 'KSampler', or a guider with one or two prompts.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, strength: float, until: float, steered_steps: int) -> io.NodeOutput:
        """Return a patched copy of the model; how well sound and picture fit is told later."""
        node = cls.hidden.unique_id if cls.hidden else None
        steering = Steering(strength, until, steered_steps)
        return io.NodeOutput(steer(model, steering, lambda text: _show(text, node)))


def _show(text: str, node: str | None) -> None:
    """Show a text under a node of the page, if there is a server that has one."""
    server = find_server()
    if server is not None and node is not None:
        server.send_progress_text(text, node)
