"""Teaches the miniature references: a picture tells the colour and a voice the pitch, of which the
caption says nothing.

Usage: python miniature/training/teach_references.py FOLDER --comfyui PATH [--threads 1]
[--compile] [--only clips train file]

Run it with ComfyUI's python. FOLDER keeps the encoded clips and the training, which goes on where
it was stopped; what is learned is a LoRA on the miniature's files, which stay as they are. A
reference is of another clip than the one it is given for: of the same thing in the same colour, at
another place and time, or of the same sound as high. Held-out scenes are in neither.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))

from find_comfyui import import_comfy, import_extension  # noqa: E402

import_extension()
from comfyui_ovi.miniature.training import world  # noqa: E402
from comfyui_ovi.miniature.training.judge import find_colour, find_places  # noqa: E402
from comfyui_ovi.miniature.training.settings import REFERENCES  # noqa: E402

NAMES = ("clips", "train", "file")
UNSAID = ("colour", "pitch")
# Of the references' clips; those that are learned have seeds from 0 on.
FIRST_SEED = 1_000_000
AROUND = (1.2, 2.5)  # radii of a thing from its middle to where its picture is cut
CLIPS, STAGE = "reference_clips.pt", "references"


@dataclass(frozen=True)
class Shelf:
    """References to choose from."""

    latents: Tensor  # [kinds, N, ...]
    kinds: Tensor  # [scenes], which of them goes with a scene

    def draw(self, scenes: Tensor, dropped: float, generator: torch.Generator) -> Tensor:
        """Return one for each scene [B, ...]; zeros for a share of them."""
        size = len(scenes)
        which = torch.randint(self.latents.shape[1], (size,), generator=generator)
        drawn = self.latents[self.kinds[scenes], which].float()
        kept = torch.rand(size, generator=generator) >= dropped
        return drawn * kept.view(-1, *[1] * (drawn.ndim - 1))


def kinds_of(name: str) -> tuple[list[tuple[str, str]], Tensor]:
    """Return every thing with every colour, or pitch, and which of them each training scene is."""
    every = [(scene.thing, getattr(scene, name)) for scene in world.TRAINING_SCENES]
    kinds = sorted(set(every))
    return kinds, torch.tensor([kinds.index(kind) for kind in every])


def films_of(name: str, kind: tuple[str, str], count: int) -> list[world.Clip]:
    """Return clips of training scenes that have a thing and a colour, or a pitch."""
    scenes = [
        scene for scene in world.TRAINING_SCENES if (scene.thing, getattr(scene, name)) == kind
    ]
    return [world.film(scenes[i % len(scenes)], FIRST_SEED + i) for i in range(count)]


def take_still(clip: world.Clip, chance: random.Random, is_cut: bool = True) -> Tensor:
    """Return a frame [1, H, W, 3] of a clip, cut to the thing as the node wants a face cut to head
    and shoulders, if it is.
    """
    frame = clip.frames[chance.randrange(world.FRAMES)][None]
    if not is_cut:
        return frame
    places, areas = find_places(find_colour(frame)[1])
    half = chance.uniform(*AROUND) * math.sqrt(float(areas[0]) / math.pi)
    (left, right), (top, bottom) = (
        (max(0, round(middle - half)), round(middle + half)) for middle in places[0].tolist()
    )
    return frame[:, top:bottom, left:right]


def take_start(clip: world.Clip, chance: random.Random) -> float:
    """Return where a second of a clip begins that has its first event in it whole."""
    most = len(clip.sound) / world.SAMPLE_RATE - 1.0
    return chance.uniform(0.0, min(most, clip.events[0] / world.FRAME_RATE))


def prepare_still(clip: world.Clip, chance: random.Random) -> Tensor:
    """Return a picture [1, H, W, 3] of a clip as the node makes it of what it is given."""
    from comfyui_ovi.ovi_model.latent.references import letterbox

    is_cut = chance.random() < REFERENCES.cut
    return letterbox("image", take_still(clip, chance, is_cut), world.SIZE, world.SIZE)


def prepare_second(clip: world.Clip, chance: random.Random) -> Tensor:
    """Return a second [1, samples] of a clip as the node makes it of what it is given."""
    from comfyui_ovi.ovi_model.latent.references import cut_voice

    return cut_voice("voice", clip.sound[None], take_start(clip, chance))


@dataclass(frozen=True)
class Encoders:
    """The miniature's VAEs."""

    vae: nn.Module
    hearing: nn.Module

    @classmethod
    def load(cls, files: Path) -> Encoders:
        """Read both files."""
        from comfy.utils import load_torch_file
        from comfyui_ovi.miniature.training import parts
        from comfyui_ovi.miniature.training.settings import VIDEO_VAE
        from comfyui_ovi.ovi_model.load import miniature
        from comfyui_ovi.ovi_model.load.audio_vae import load_audio_vae

        vae = parts.video_vae(VIDEO_VAE)
        vae.load_state_dict(load_torch_file(str(files / miniature.VIDEO_VAE)))
        return cls(vae, load_audio_vae(files / miniature.AUDIO_VAE).first_stage_model.float())

    def see(self, stills: list[Tensor]) -> Tensor:
        """Return the latents [N, 48, 1, h, w] of pictures [1, H, W, 3]."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.vae.encode(torch.cat(stills).movedim(-1, 1)[:, :, None] * 2 - 1).float()

    def hear(self, sounds: Tensor) -> Tensor:
        """Return the latents [N, 20, steps] of sounds [N, samples]."""
        from comfyui_ovi.miniature.training.latents import ENCODED_AT_ONCE

        parts = sounds.split(ENCODED_AT_ONCE)
        return torch.cat([self.hearing.encode_audio(part).mode() for part in parts])


@torch.no_grad()
def encode(folder: Path, files: Path) -> None:
    """Encode clips, references and captions with the miniature's files."""
    from comfy.latent_formats import Wan22
    from comfyui_ovi.miniature.training import autoencoders, latents
    from comfyui_ovi.miniature.training.loop import write_whole
    from comfyui_ovi.ovi_model.load import miniature

    chance, encoders, normalise = random.Random(0), Encoders.load(files), Wan22().process_in
    count, each = REFERENCES.clips, REFERENCES.each
    images = [
        encoders.see([prepare_still(clip, chance) for clip in films_of("colour", kind, each)])
        for kind in kinds_of("colour")[0]
    ]
    seconds = [
        torch.cat([prepare_second(clip, chance) for clip in films_of("pitch", kind, each)])
        for kind in kinds_of("pitch")[0]
    ]
    texts = latents.encode_texts(files / miniature.TEXT_ENCODER, UNSAID)
    content = {
        "images": torch.stack([normalise(image) for image in images]).half(),
        "voices": torch.stack([encoders.hear(second) for second in seconds]).half(),
        "audio": encoders.hear(autoencoders.draw_sounds(count)).half(),
        "video": normalise(latents.encode_pictures(encoders.vae, count)).half(),
    }
    write_whole(folder / CLIPS, content | vars(texts) | {"negatives": list(texts.negatives)})


def train(folder: Path, files: Path):
    """Train, or go on; return the LoRA with its averaged weights."""
    from comfyui_ovi.miniature.training import latents, towers
    from comfyui_ovi.miniature.training.loop import Losses, train_repeatedly

    kept = torch.load(folder / CLIPS, weights_only=True)
    clips = towers.Latents(kept["video"], kept["audio"], latents.scene_numbers(REFERENCES.clips))
    texts = towers.Texts(kept["captions"], kept["nothing"], tuple(kept["negatives"]))
    images = Shelf(kept["images"], kinds_of("colour")[1])
    voices = Shelf(kept["voices"], kinds_of("pitch")[1])
    model, lora = with_lora(files, len(texts.nothing))
    predict = torch.compile(model, dynamic=False)

    def losses_of(generator: torch.Generator, size: int) -> Losses:
        batch = towers.draw(clips, texts, size, generator, first_frame=0.0)
        seen, heard, scenes = batch.video, batch.audio, clips.scenes[batch.chosen]
        voice = voices.draw(scenes, REFERENCES.dropped, generator)
        with torch.autocast("cpu", torch.bfloat16):
            made = predict(
                [seen.noisy, heard.noisy],
                [seen.time[:, 0], heard.time[:, 0]],
                seen.text,
                heard.text,
                transformer_options=towers.reads_padding(seen.text, heard.text),
                reference_images=images.draw(scenes, REFERENCES.dropped, generator),
                reference_voices=voice,
                voice_steps=(voice.shape[2],),
            )
        losses = {"video": seen.error(made[0]), "audio": heard.error(made[1])}
        return {"loss": losses["video"] + losses["audio"], **losses}

    return train_repeatedly(STAGE, folder, lora, REFERENCES.schedules, losses_of)


def with_lora(files: Path, text_length: int) -> tuple[nn.Module, nn.Module]:
    """Return the miniature's towers, whose weights stay, and the LoRA that is added to them."""
    from comfyui_ovi.miniature.training import parts
    from comfyui_ovi.ovi_model import core_patches
    from comfyui_ovi.ovi_model.load import miniature
    from comfyui_ovi.ovi_model.load.diffusion_model import load_model
    from comfyui_ovi.ovi_model.train.lora import Lora

    core_patches.install()
    loaded = load_model(str(files / miniature.MODEL), None, "default").model.diffusion_model
    model = parts.twin_dit(text_length)
    model.load_state_dict(loaded.state_dict())
    model.requires_grad_(False)
    lora = Lora(model, "all", REFERENCES.rank, 0)
    for layer, addition in lora.by_layer().items():
        layer.register_forward_hook(lambda _, read, made, add=addition: made + add(read[0]))
    return model, lora


def write(folder: Path, files: Path) -> None:
    """Write the LoRA as it is so far."""
    from comfyui_ovi.miniature.training import export, stages
    from comfyui_ovi.miniature.training.loop import numbered
    from comfyui_ovi.ovi_model.load import miniature

    length = len(torch.load(folder / CLIPS, weights_only=True, mmap=True)["nothing"])
    _, lora = with_lora(files, length)
    stages.trained(folder, numbered(STAGE, len(REFERENCES.schedules)), lora)
    export.write_file(folder / Path(miniature.REFERENCES_LORA).name, lora.export(), torch.float16)


def main() -> None:
    """Encode clips, train, write the LoRA's file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for clips and training")
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--files", type=Path, default=REPOSITORY / "miniature")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--compile", action="store_true", help="compile the towers")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    options = parser.parse_args()
    import_comfy(options.comfyui)
    torch.set_num_threads(options.threads)
    torch.compiler.set_stance("default" if options.compile else "force_eager")
    options.folder.mkdir(parents=True, exist_ok=True)
    ways: dict[str, Callable[[Path, Path], object]] = {
        "clips": encode,
        "train": train,
        "file": write,
    }
    for name in ways:
        if name in options.only:
            ways[name](options.folder, options.files)


if __name__ == "__main__":
    main()
