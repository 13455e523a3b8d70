"""Ovi for ComfyUI: joint video and audio generation as a native model family."""

from .nodes import OviExtension
from .ovi_model.family import register

WEB_DIRECTORY = "./web"

register()


async def comfy_entrypoint() -> OviExtension:
    """Give ComfyUI the nodes."""
    return OviExtension()
