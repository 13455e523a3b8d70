"""Training: a folder of clips to latents with captions, and these to a LoRA."""

import hashlib
from pathlib import Path

import folder_paths
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..ovi_model.config import PIXEL_STEP
from ..ovi_model.core_facts import advanced, answer, choose
from ..ovi_model.latent.geometry import check_size
from ..ovi_model.network.model import diffusion_model
from ..ovi_model.text.prompt import SOUND_FORMS
from ..ovi_model.train import dataset
from ..ovi_model.train.clips import read_clips
from ..ovi_model.train.lora import PARTS
from ..ovi_model.train.trainer import Recipe, train
from .latents import MOST_FRAMES, MOST_PIXELS
from .text import AUDIO_NEGATIVE, VIDEO_NEGATIVE

FOLDER = "ovi_training"  # in the output folder, where trainings are kept by their names


class OviTrainingClips(io.ComfyNode):
    """A folder of clips with captions to lists of LATENT and CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def share(name: str, default: float, tooltip: str) -> io.Float.Input:
            return io.Float.Input(
                name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip
            )

        return io.Schema(
            node_id="OviTrainingClips",
            display_name="Ovi Training Clips",
            category="Ovi/train",
            description="Reads a folder of clips to train on: videos with sound, or pictures with "
            "a sound of the same name, each with its caption in a .txt of the same name. They are "
            "brought to 24 frames a second and 16 kHz, cut to the length and to the size that is "
            "nearest to their proportions, and encoded once: latents are kept in the folder. A "
            "file that cannot be used is told, and the others stay.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=_folders(),
                    tooltip="Folder in ComfyUI's input folder with the clips and their captions.",
                ),
                io.Clip.Input("clip", tooltip="umT5, from 'Ovi Text Encoder Loader'."),
                io.Vae.Input(
                    "vae",
                    tooltip="Wan 2.2 video VAE (48 channels): 'Load VAE' with "
                    "wan2.2_vae.safetensors.",
                ),
                io.Vae.Input("audio_vae", tooltip="The VAE of 'Ovi Audio VAE Loader'."),
                io.Int.Input(
                    "size",
                    default=512,
                    min=PIXEL_STEP,
                    max=MOST_PIXELS,
                    step=PIXEL_STEP,
                    tooltip="Side in pixels of a square with the area that frames are scaled to, "
                    "each in its own proportions. 960 is what the models 1.1 were trained at and "
                    "takes the most memory.",
                ),
                io.Int.Input(
                    "length",
                    default=121,
                    min=5,
                    max=MOST_FRAMES,
                    step=4,
                    tooltip="Frames at 24 a second that are used of a clip at most, from its "
                    "start, 4n + 1: 121 is 5 s. Shorter clips keep their length.",
                ),
                io.Combo.Input(
                    "sound_tag",
                    options=list(SOUND_FORMS),
                    default="Audio:",
                    tooltip="How the model reads sound: 'Audio:' for the 960x960 models (1.1), "
                    "'<AUDCAP>' for the 720x720 model (1.0). Captions may be in either form.",
                    **advanced(),
                ),
                share(
                    "caption_dropout",
                    0.1,
                    "Share of the steps, 0 to 1, in which a clip is shown without its caption: "
                    "half of them with none, half with the negative prompts that 'Ovi Text Encode' "
                    "suggests. So guidance does not lead away from what was learned.",
                ),
                share(
                    "first_frame",
                    0.0,
                    "Share of the steps, 0 to 1, in which the first frame is given, as for image "
                    "to video. 0: text to video alone.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latents",
                    display_name="latents",
                    is_output_list=True,
                    tooltip="One of picture and sound for each clip.",
                ),
                io.Conditioning.Output(
                    "positive",
                    display_name="positive",
                    is_output_list=True,
                    tooltip="One caption for each clip, in the same order.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="How many clips of which size, and what is to be known of single "
                    "files.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder=None, size=None, length=None, sound_tag=None) -> bool | str:
        """Say what is wrong with typed inputs before anything is loaded."""
        return answer(_check, folder=folder, size=size, length=length, sound_tag=sound_tag)

    @classmethod
    def fingerprint_inputs(cls, folder, **_others) -> str:
        """Return what changes with the files of the folder."""
        digest = hashlib.sha256()
        for path in sorted(_path_of(folder).iterdir()):
            about = path.stat()
            if path.is_file():
                digest.update(f"{path.name} {about.st_size} {about.st_mtime_ns}".encode())
        return digest.hexdigest()

    @classmethod
    def execute(
        cls,
        folder: str,
        clip,
        vae,
        audio_vae,
        size: int,
        length: int,
        sound_tag: str,
        caption_dropout: float,
        first_frame: float,
    ) -> io.NodeOutput:
        """Return latents, captions and the report."""
        _check(folder, size, length, sound_tag)
        negatives = VIDEO_NEGATIVE, AUDIO_NEGATIVE
        wanted = dataset.Wanted(
            size * size, length, sound_tag, negatives, caption_dropout, first_frame
        )
        path, bar = _path_of(folder), ProgressBar(1)
        made = dataset.read_folder(path, clip, vae, audio_vae, wanted, bar.update_absolute)
        return io.NodeOutput(made.latents, made.positive, made.report(path))


class OviTrainLora(io.ComfyNode):
    """Clips with captions to a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviTrainLora",
            display_name="Ovi Train LoRA",
            category="Ovi/train",
            description="Trains a LoRA on clips with their sound: both towers and the layers that "
            "join them, or one of these. The model stays as it is and may be of any kind: bf16, "
            "fp8, GGUF. 'Save LoRA Weights' saves the result, 'Load LoRA Model' tries it at once, "
            "'Plot Loss Graph' draws its course.",
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An Ovi model, from any loader. 'ModelSamplingSD3' before it sets "
                    "which noise levels are trained most; without it that is the model's 5.",
                ),
                io.Latent.Input(
                    "latents",
                    tooltip="Clips of picture and sound, of any sizes, from 'Ovi Training Clips' "
                    "or encoded otherwise. A first frame that is held is trained as given.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="A caption for each clip, in the same order, or one for all.",
                ),
                io.Combo.Input(
                    "parts",
                    options=list(PARTS),
                    default="all",
                    tooltip="What is trained: all, the video tower, the audio tower, or the layers "
                    "with which each tower reads the other (fusion).",
                    **advanced(),
                ),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=512,
                    tooltip="Width of the LoRA's matrices: how much it can learn, and how large "
                    "its file is. Alpha is the same.",
                ),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=1000000,
                    tooltip="How many steps are trained. The learning rate rises over the first 5 "
                    "% and falls to 0 at the last.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0003,
                    min=0.0,
                    max=1.0,
                    step=0.00001,
                    round=False,
                    tooltip="The highest of the course, of AdamW.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=256,
                    tooltip="Clips in a step. Those of one size run together; memory grows with "
                    "it.",
                ),
                io.Float.Input(
                    "sound_weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Weight of the sound's error, where the picture's is 1. 1: both count "
                    "the same, though a sound has far fewer numbers.",
                    **advanced(),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFF,
                    tooltip="Decides the LoRA's beginning, the order of clips, and all noise.",
                ),
                io.Boolean.Input(
                    "recompute",
                    default=True,
                    tooltip="Computes each pair of blocks again in the backward pass: far less "
                    "memory, a third more time. The result is the same.",
                    **advanced(),
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Keeps the training in output/ovi_training under this name, every "
                    "'save_every' steps and when it is cancelled: queued again, it goes on. "
                    "Empty: nothing is kept.",
                ),
                io.Int.Input(
                    "save_every",
                    default=250,
                    min=1,
                    max=1000000,
                    tooltip="Steps after which the training and its LoRA are kept, if it has a "
                    "name.",
                    **advanced(),
                ),
            ],
            outputs=[
                io.Custom("LORA_MODEL").Output(
                    "lora",
                    display_name="lora",
                    tooltip="For 'Save LoRA Weights' and 'Load LoRA Model'.",
                ),
                io.Custom("LOSS_MAP").Output(
                    "loss", display_name="loss_map", tooltip="For 'Plot Loss Graph'."
                ),
                io.Int.Output(
                    "trained", display_name="steps", tooltip="Steps that were trained in all."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, latents, positive, name, save_every, sound_weight, **settings
    ) -> io.NodeOutput:
        """Return the LoRA, its losses and its steps; every input is a list."""
        recipe = Recipe(
            sound_weight=sound_weight[0], **{key: given[0] for key, given in settings.items()}
        )
        choose("parts", recipe.parts, PARTS)
        clips = read_clips(latents, positive, diffusion_model(model[0]).config)
        bar = ProgressBar(recipe.steps)
        training = train(
            model[0],
            clips,
            recipe,
            _kept_in(name[0]),
            save_every[0],
            lambda step, _loss: bar.update_absolute(step + 1, recipe.steps),
        )
        losses = {"loss": training.losses}
        return io.NodeOutput(training.lora.export(), losses, len(training.losses))


def _folders() -> list[str]:
    """Name the folders in the input folder."""
    root = Path(folder_paths.get_input_directory())
    if not root.is_dir():
        return []
    return sorted(
        path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _path_of(folder: str) -> Path:
    """Return a listed folder's path; raise ValueError if there is none."""
    if folder not in _folders():
        raise ValueError(
            f"There is no folder {str(folder)[:100]!a} in ComfyUI's input folder. Put clips and "
            "captions into a folder there, and reload the page (R) to see it."
        )
    return Path(folder_paths.get_input_directory(), folder)


def _check(folder: str | None, size: int | None, length: int | None, sound_tag: str | None) -> None:
    """Check what is typed; None is made by another node."""
    if folder is not None:
        _path_of(folder)
    if sound_tag is not None:
        choose("sound_tag", sound_tag, SOUND_FORMS)
    size = PIXEL_STEP if size is None else size
    check_size(size, size, 5 if length is None else length)


def _kept_in(name: str) -> Path | None:
    """Return the folder of a training of this name, None for no name.

    Raises ValueError for a name that is no folder's.
    """
    name = name.strip()
    if not name:
        return None
    if Path(name).name != name or name.startswith(".") or "\\" in name or ":" in name:
        raise ValueError(
            f"The name {name[:100]!a} is no name of a folder: leave out / \\ : and a first dot."
        )
    return Path(folder_paths.get_output_directory(), FOLDER, name)
