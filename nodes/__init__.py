"""The nodes, in the order of a workflow."""

from comfy_api.latest import ComfyExtension, io

from .decode import OviDecode
from .film import OviContinue, OviJoin
from .hold import OviHoldPictures, OviHoldSound, OviTimeMask
from .latent_files import OviLoadLatent, OviSaveLatent
from .latents import OviConcatLatent, OviImageSize, OviLatent, OviSeparateLatent
from .load import (
    OviAudioVAELoader,
    OviLoraLoader,
    OviMiniature,
    OviModelLoader,
    OviTextEncoderLoader,
)
from .preview import OviPreview
from .references import OviReferenceGuidance, OviReferenceGuider, OviReferences
from .sampling import OviAttention, OviGuidance, OviSamplerUniPC, OviScheduler
from .steering import OviSteer
from .streaming import OviStreamingSampler
from .text import OviMendPrompt, OviTextEncode
from .training import OviTrainingClips, OviTrainLora
from .video import OviSaveVideo

NODES = [
    OviModelLoader,
    OviLoraLoader,
    OviTextEncoderLoader,
    OviAudioVAELoader,
    OviMiniature,
    OviMendPrompt,
    OviTextEncode,
    OviImageSize,
    OviLatent,
    OviHoldPictures,
    OviHoldSound,
    OviTimeMask,
    OviContinue,
    OviReferences,
    OviAttention,
    OviGuidance,
    OviReferenceGuidance,
    OviReferenceGuider,
    OviSteer,
    OviScheduler,
    OviSamplerUniPC,
    OviStreamingSampler,
    OviSeparateLatent,
    OviConcatLatent,
    OviSaveLatent,
    OviLoadLatent,
    OviDecode,
    OviJoin,
    OviPreview,
    OviSaveVideo,
    OviTrainingClips,
    OviTrainLora,
]


class OviExtension(ComfyExtension):
    """What ComfyUI asks for nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return every node."""
        return NODES
