"""Sampling: the attention kernel, guidance for two streams, the reference's schedules and its
solvers.
"""

import comfy.samplers
from comfy_api.latest import io

from ..ovi_model.core_facts import advanced, choose, search_aliases
from ..ovi_model.sample import guidance
from ..ovi_model.sample.attention_kernel import KERNELS, choose_attention
from ..ovi_model.sample.solver import SOLVERS, shifted_sigmas


class OviAttention(io.ComfyNode):
    """A kernel for a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviAttention",
            display_name="Ovi Attention",
            category="Ovi/sample",
            description="Chooses the attention kernel of an Ovi model, and says which are "
            "installed. Where a kernel cannot run, the workflow runs all the same, with ComfyUI's "
            "own choice.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An Ovi model, before or after LoRA loaders and 'Ovi Guidance'.",
                ),
                io.Combo.Input(
                    "kernel",
                    options=list(KERNELS),
                    default="auto",
                    tooltip="auto: ComfyUI's own choice. pytorch: on every device, exact. "
                    "flash-attn, xformers: exact, on CUDA cards, from the packages of these names. "
                    "sage: CUDA cards, package sageattention; rounds the attention within the "
                    "picture to 8 bits, a small loss of exactness. sage3, int8: the like, from the "
                    "packages sageattn3 and comfy-kitchen.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "patched_model",
                    display_name="model",
                    tooltip="For samplers and further model nodes.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="Which kernel runs, which are installed, and why the chosen one does "
                    "not run if so.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, kernel: str) -> io.NodeOutput:
        """Return a patched copy of the model, and the report."""
        return io.NodeOutput(*choose_attention(model, kernel))


class OviGuidance(io.ComfyNode):
    """A scale for the sound and a skipped layer for a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def point(name: str, default: float, what: str, optional: bool = False) -> io.Float.Input:
            how = f"Point of the schedule, 0 to 1, {what}."
            return io.Float.Input(
                name,
                default=default,
                min=0.0,
                max=1.0,
                step=0.001,
                optional=optional,
                tooltip=how,
                **advanced(),
            )

        return io.Schema(
            node_id="OviGuidance",
            display_name="Ovi Guidance",
            category="Ovi/sample",
            **search_aliases("audio cfg", "skip layer guidance", "slg"),
            description="Guides sound and picture separately: the sampler's cfg is for the picture "
            "(the reference uses 4.0), audio_cfg for the sound. Works with every sampler. Place it "
            "after LoRA loaders.",
            inputs=[
                io.Model.Input("model", tooltip="An Ovi model."),
                io.Float.Input(
                    "audio_cfg",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale of the sound: higher follows the prompt more closely. "
                    "The reference uses 3.0; 1.0 is off.",
                ),
                io.Int.Input(
                    "skip_layer",
                    default=11,
                    min=-1,
                    max=1000,
                    tooltip="Block left out when the negative prompt is predicted (skip-layer "
                    "guidance), 1 to 29 for the released models; the result is led away from that "
                    "worse prediction. The reference uses 11. -1 or 0: off.",
                ),
                point("start_percent", 0.0, "from which the layer is skipped"),
                point("end_percent", 1.0, "to which the layer is skipped"),
                # Optional, since API-format workflows from before lack them.
                point(
                    "cfg_start_percent",
                    0.0,
                    "from which there is guidance; a step before it costs half",
                    optional=True,
                ),
                point(
                    "cfg_end_percent",
                    1.0,
                    "to which there is guidance; a step after it costs half",
                    optional=True,
                ),
            ],
            outputs=[
                io.Model.Output(
                    "guided_model", display_name="model", tooltip="For any sampler or guider."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        audio_cfg: float,
        skip_layer: int,
        start_percent: float,
        end_percent: float,
        cfg_start_percent: float = 0.0,
        cfg_end_percent: float = 1.0,
    ) -> io.NodeOutput:
        """Return a patched copy of the model."""
        cfg_range = (cfg_start_percent, cfg_end_percent)
        return io.NodeOutput(
            guidance.guide(model, audio_cfg, skip_layer, start_percent, end_percent, cfg_range)
        )


def _solver_input(tooltip: str) -> io.Combo.Input:
    # Optional, since API-format workflows from before lack it.
    return io.Combo.Input(
        "solver", options=list(SOLVERS), default="unipc", optional=True, tooltip=tooltip
    )


class OviScheduler(io.ComfyNode):
    """Steps and shift to SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviScheduler",
            display_name="Ovi Scheduler",
            category="Ovi/sample",
            description="The noise levels of the reference's schedules, one for each of its "
            "solvers.",
            inputs=[
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=10000,
                    tooltip="Number of steps; time grows with it. More is more exact: the "
                    "reference uses 50, few-step LoRAs 6 to 10.",
                ),
                io.Float.Input(
                    "shift",
                    default=5.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="How much of the schedule is spent at high noise, where layout and "
                    "timing are decided; lower leaves more for detail. The reference uses 5.0; 1.0 "
                    "is even.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the schedule that is run, from its end. Below 1.0 the given "
                    "latent is changed only so far.",
                ),
                _solver_input(
                    "Whose schedule it is; choose the same in 'Ovi Sampler'. unipc starts just "
                    "below 1, dpm++ at 1; euler starts at 1 and is almost at 0 one step before the "
                    "end."
                ),
            ],
            outputs=[
                io.Sigmas.Output(
                    "sigmas",
                    display_name="sigmas",
                    tooltip="For 'SamplerCustomAdvanced' and its like.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, steps: int, shift: float, denoise: float, solver: str = "unipc"
    ) -> io.NodeOutput:
        """Return steps + 1 noise levels."""
        choose("solver", solver, SOLVERS)
        return io.NodeOutput(shifted_sigmas(steps, shift, denoise, solver))


class OviSamplerUniPC(io.ComfyNode):
    """The reference's solvers as SAMPLER; the id is from when there was one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviSamplerUniPC",
            display_name="Ovi Sampler",
            category="Ovi/sample",
            **search_aliases("unipc", "euler", "dpm++"),
            description="The reference's solvers, one model call a step: flow UniPC of order 2 "
            "with a corrector, DPM++, Euler.",
            inputs=[
                _solver_input(
                    "How a step is made; choose the same in 'Ovi Scheduler'. unipc: order 2 with a "
                    "corrector, the reference's default. dpm++: order 2 without a corrector. "
                    "euler: order 1, ComfyUI's own."
                )
            ],
            outputs=[
                io.Sampler.Output(
                    "sampler",
                    display_name="sampler",
                    tooltip="For 'SamplerCustomAdvanced' and its like.",
                )
            ],
        )

    @classmethod
    def execute(cls, solver: str = "unipc") -> io.NodeOutput:
        """Return the sampler."""
        return io.NodeOutput(comfy.samplers.KSAMPLER(choose("solver", solver, SOLVERS)))
