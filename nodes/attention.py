"""Attention: which kernel multiplies queries, keys and values."""

from comfy_api.latest import io

from ..ovi_model.sample.attention_kernel import KERNELS, choose_attention


class OviAttention(io.ComfyNode):
    """A kernel for a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviAttention",
            display_name="Ovi Attention",
            category="Ovi",
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
                    "picture to 8 bits, a small loss of exactness.",
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
