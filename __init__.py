"""Ovi for ComfyUI: joint video and audio generation as a native model family."""

from .nodes import OviExtension
from .ovi_model import core_patches

WEB_DIRECTORY = "./web"

core_patches.install()


async def comfy_entrypoint() -> OviExtension:
    """Give ComfyUI the nodes."""
    return OviExtension()
