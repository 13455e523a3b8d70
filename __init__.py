"""Ovi for ComfyUI: joint video and audio generation as a native model family."""

from .nodes import OviExtension
from .ovi_model import blueprints, core_patches, template_links
from .ovi_model.load import miniature

WEB_DIRECTORY = "./web"

core_patches.install()
template_links.install()
blueprints.install()
miniature.list_lora()


async def comfy_entrypoint() -> OviExtension:
    """Give ComfyUI the nodes."""
    return OviExtension()
