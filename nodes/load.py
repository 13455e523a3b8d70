"""Loading: files to MODEL, CLIP and VAE."""

import folder_paths
from comfy_api.latest import io

from ..ovi_model.core_facts import advanced, search_aliases
from ..ovi_model.load.audio_vae import load_audio_vae
from ..ovi_model.load.diffusion_model import WEIGHT_DTYPES, load_model
from ..ovi_model.load.lora import apply_lora
from ..ovi_model.load.miniature import load_miniature
from ..ovi_model.load.text_encoder import load_text_encoder

SAME_FILE = "in the same file"


class OviModelLoader(io.ComfyNode):
    """One or two Ovi files to MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folder_paths.get_filename_list("diffusion_models")
        return io.Schema(
            node_id="OviModelLoader",
            display_name="Ovi Model Loader",
            category="Ovi/load",
            **search_aliases("talking video", "speech", "text to video with sound"),
            description="Loads Ovi from one file, or from a video file and an audio file. 'Load "
            "Diffusion Model' loads single files just as well.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=files,
                    tooltip="Ovi file in models/diffusion_models, or the video file of two.",
                ),
                io.Combo.Input(
                    "audio_model",
                    options=[SAME_FILE, *files],
                    default=SAME_FILE,
                    tooltip="File of the audio tower, if the release has two files.",
                    **advanced(),
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="How the weights are kept in memory. default: as in the file. fp8: "
                    "half the size of bf16, a little less exact; fast also computes in fp8 on "
                    "cards that can.",
                    **advanced(),
                ),
            ],
            outputs=[
                io.Model.Output(
                    "loaded_model", display_name="model", tooltip="For LoRA loaders and samplers."
                )
            ],
        )

    @classmethod
    def execute(cls, model: str, audio_model: str, weight_dtype: str) -> io.NodeOutput:
        """Return the twin DiT as MODEL."""
        audio_path = (
            None
            if audio_model == SAME_FILE
            else folder_paths.get_full_path_or_raise("diffusion_models", audio_model)
        )
        path = folder_paths.get_full_path_or_raise("diffusion_models", model)
        return io.NodeOutput(load_model(path, audio_path, weight_dtype))


class OviLoraLoader(io.ComfyNode):
    """A LoRA file on a MODEL, with a strength for each part of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def strength(name: str, what: str) -> io.Float.Input:
            how = (
                f"How strongly the LoRA changes {what}, -100 to 100. 0: not at all, 1: as it was "
                "trained."
            )
            return io.Float.Input(name, default=1.0, min=-100.0, max=100.0, step=0.01, tooltip=how)

        return io.Schema(
            node_id="OviLoraLoader",
            display_name="Ovi LoRA Loader",
            category="Ovi/load",
            description="Adds a LoRA of Ovi or of Wan 2.2 5B to an Ovi model, with one strength "
            "each for the picture, the sound and the layers that join them, and says what it "
            "changed. Place several in a row to stack LoRAs. Stock LoRA loaders work too; they "
            "have one strength for all.",
            inputs=[
                io.Model.Input("model", tooltip="An Ovi model, from any loader."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="LoRA file in models/loras, in the naming of any trainer.",
                ),
                strength("strength_video", "the video tower"),
                strength("strength_audio", "the audio tower"),
                strength("strength_fusion", "the layers with which each tower reads the other"),
            ],
            outputs=[
                io.Model.Output(
                    "changed_model",
                    display_name="model",
                    tooltip="For samplers and further LoRA loaders.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="How many weights were changed in each part, and which names of the "
                    "file fit none.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        lora_name: str,
        strength_video: float,
        strength_audio: float,
        strength_fusion: float,
    ) -> io.NodeOutput:
        """Return a patched copy of the model, and the report."""
        strengths = {"video": strength_video, "audio": strength_audio, "fusion": strength_fusion}
        path = folder_paths.get_full_path_or_raise("loras", lora_name)
        return io.NodeOutput(*apply_lora(model, path, strengths))


class OviTextEncoderLoader(io.ComfyNode):
    """A umT5 file to CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviTextEncoderLoader",
            display_name="Ovi Text Encoder Loader",
            category="Ovi/load",
            description="Loads umT5, Ovi's text encoder, from ComfyUI's or Wan's own files. "
            "'Load CLIP' with type 'wan' does the same for ComfyUI's files.",
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=folder_paths.get_filename_list("text_encoders"),
                    tooltip="umT5 file in models/text_encoders: "
                    "umt5_xxl_fp8_e4m3fn_scaled.safetensors (6.7 GB), umt5_xxl_fp16.safetensors "
                    "(11.4 GB) or Wan's models_t5_umt5-xxl-enc-bf16.pth. A file without a "
                    "tokenizer takes it from another umT5 file in the folder.",
                ),
            ],
            outputs=[io.Clip.Output("clip", tooltip="For 'Ovi Text Encode'.")],
        )

    @classmethod
    def execute(cls, text_encoder: str) -> io.NodeOutput:
        """Return the text encoder as CLIP."""
        names = folder_paths.get_filename_list("text_encoders")
        # A link that leads nowhere is listed, but has no path.
        paths = [
            path for name in names if (path := folder_paths.get_full_path("text_encoders", name))
        ]
        path = folder_paths.get_full_path_or_raise("text_encoders", text_encoder)
        return io.NodeOutput(
            load_text_encoder(path, paths, folder_paths.get_folder_paths("embeddings"))
        )


class OviAudioVAELoader(io.ComfyNode):
    """MMAudio's VAE and vocoder to VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folder_paths.get_filename_list("vae")
        return io.Schema(
            node_id="OviAudioVAELoader",
            display_name="Ovi Audio VAE Loader",
            category="Ovi/load",
            description="Loads Ovi's 16 kHz audio VAE and its vocoder, from the two published "
            "files or from one file.",
            inputs=[
                io.Combo.Input(
                    "vae",
                    options=files,
                    tooltip="MMAudio's 16 kHz VAE in models/vae: mmaudio_vae_16k or v1-16, or one "
                    "file that holds VAE and vocoder.",
                ),
                io.Combo.Input(
                    "vocoder",
                    options=[SAME_FILE, *files],
                    default=SAME_FILE,
                    tooltip="BigVGAN, 16 kHz, in models/vae: mmaudio_vocoder_bigvgan or best_netG. "
                    "Leave it if the VAE file holds it too.",
                ),
            ],
            outputs=[
                io.Vae.Output(
                    "audio_vae",
                    tooltip="For 'Ovi Decode', 'VAE Decode Audio' and 'VAE Encode Audio'.",
                )
            ],
        )

    @classmethod
    def execute(cls, vae: str, vocoder: str) -> io.NodeOutput:
        """Return the audio VAE."""
        vocoder_path = (
            None if vocoder == SAME_FILE else folder_paths.get_full_path_or_raise("vae", vocoder)
        )
        return io.NodeOutput(
            load_audio_vae(folder_paths.get_full_path_or_raise("vae", vae), vocoder_path)
        )


class OviMiniature(io.ComfyNode):
    """The miniature in this extension to MODEL, CLIP and two VAEs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviMiniature",
            display_name="Ovi Miniature",
            category="Ovi/load",
            **search_aliases("demo", "test", "small", "talking video", "text to video with sound"),
            description="A tiny Ovi of 30 MB that comes with this extension: no download, and a "
            "clip in seconds on any computer. It was trained on a drawn world of balls that "
            "bounce, lamps that flash and faces that say 'ba', at 64 x 64 pixels and 37 frames, "
            "and knows prompts such as 'A red ball bounces twice. Audio: two low knocks.' Made to "
            "try every node and to see how they work together, not to make films.",
            inputs=[],
            outputs=[
                io.Model.Output(
                    "model",
                    display_name="model",
                    tooltip="For 'Ovi Guidance', LoRA loaders and samplers.",
                ),
                io.Clip.Output("clip", display_name="clip", tooltip="For 'Ovi Text Encode'."),
                io.Vae.Output(
                    "vae",
                    display_name="vae",
                    tooltip="The picture's, for 'Ovi Latent' and 'Ovi Decode'.",
                ),
                io.Vae.Output(
                    "audio_vae", display_name="audio_vae", tooltip="The sound's, for 'Ovi Decode'."
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Return the four parts."""
        return io.NodeOutput(*load_miniature())
