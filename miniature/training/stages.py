"""The stages of training: what each needs from those before, and what it leaves in the working
folder.
"""

from __future__ import annotations

from pathlib import Path

import torch
from comfyui_ovi.ovi_model.load import miniature
from torch import Tensor, nn

from . import autoencoders, export, latents, parts, text, towers
from .loop import numbered, write_whole
from .settings import AUDIO_VAE, TOWERS, VIDEO_VAE, VOCODER


def video_vae(work: Path, _files: Path) -> None:
    autoencoders.train_video_vae(work)


def audio_vae(work: Path, _files: Path) -> None:
    autoencoders.train_audio_vae(work)


def vocoder(work: Path, _files: Path) -> None:
    autoencoders.train_vocoder(work, trained_audio(work))


def text_encoder(work: Path, files: Path) -> None:
    """Train umT5, write its file, and encode every caption with it."""
    encoder = text.train_text_encoder(work)
    export.write_text_encoder(files / miniature.TEXT_ENCODER, encoder, text.tokenizer())
    encoded = latents.encode_texts(files / miniature.TEXT_ENCODER)
    write_whole(work / "texts.pt", {**vars(encoded), "negatives": list(encoded.negatives)})


def sounds(work: Path, _files: Path) -> None:
    """Encode the sounds of all clips; their deviation becomes 1, as written to the file."""
    encoded = latents.encode_sounds(trained_audio(work), TOWERS.clips)
    size = (encoded - encoded.mean((0, 2), keepdim=True)).square().mean().sqrt()
    write_whole(work / "sounds.pt", {"latents": (encoded / size).half(), "size": size})


def pictures(work: Path, _files: Path) -> None:
    """Encode the pictures of all clips; their means become 0 and their deviation 1, as written to
    the file.
    """
    encoded = latents.encode_pictures(
        trained(work, "video_vae", parts.video_vae(VIDEO_VAE)), TOWERS.clips
    )
    means = encoded.mean((0, 2, 3, 4))
    encoded -= means.view(1, -1, 1, 1, 1)
    size = encoded.square().mean().sqrt()
    write_whole(
        work / "pictures.pt", {"latents": (encoded / size).half(), "size": size, "means": means}
    )


def audio_tower(work: Path, _files: Path) -> None:
    towers.train_alone("audio_tower", work, TOWERS.audio, *_encoded(work))


def video_tower(work: Path, _files: Path) -> None:
    towers.train_alone("video_tower", work, TOWERS.video, *_encoded(work))


def both_towers(work: Path, _files: Path) -> None:
    """Train both towers together from what each became alone."""
    clips, texts = _encoded(work)
    length = len(texts.nothing)
    video, audio = (
        trained(work, name, parts.twin_dit(length)) for name in ("video_tower", "audio_tower")
    )
    towers.train_jointly(work, towers.join(video, audio), clips, texts)


def files(work: Path, files: Path) -> None:
    """Write what is trained in the published layouts; the text encoder's file was written when it
    was trained.
    """
    texts = torch.load(work / "texts.pt", weights_only=True)
    seen, heard = (
        torch.load(work / f"{name}.pt", weights_only=True) for name in ("pictures", "sounds")
    )
    vae = trained(work, "video_vae", parts.video_vae(VIDEO_VAE))
    sound = trained_audio(work)
    speaker = trained(work, numbered("vocoder", len(VOCODER.schedules)), sound.vocoder)
    export.write_video_vae(files / miniature.VIDEO_VAE, vae, seen["means"], float(seen["size"]))
    export.write_audio_vae(files / miniature.AUDIO_VAE, sound.vae, speaker, float(heard["size"]))
    export.write_towers(
        files / miniature.MODEL,
        trained(
            work, numbered("both_towers", len(TOWERS.joint)), parts.twin_dit(len(texts["nothing"]))
        ),
    )


def trained(work: Path, name: str, part: nn.Module) -> nn.Module:
    """Fill a part with the averaged weights of a stage, which may still go on."""
    average = torch.load(work / f"{name}.pt", weights_only=True, mmap=True)["average"]
    part.load_state_dict(
        {key.removeprefix("module."): x for key, x in average.items() if key != "n_averaged"}
    )
    return part.eval()


def trained_audio(work: Path) -> nn.Module:
    """Return sound to mel bands to latents and back, with a vocoder that is not trained."""
    model = parts.audio_autoencoder(AUDIO_VAE, VOCODER)
    trained(work, numbered("audio_vae", len(AUDIO_VAE.schedules)), model.vae)
    return model


def _encoded(work: Path) -> tuple[towers.Latents, towers.Texts]:
    def read(name: str) -> dict[str, Tensor]:
        return torch.load(work / f"{name}.pt", weights_only=True)

    texts, heard = read("texts"), read("sounds")["latents"]
    # The audio tower can be trained before there are pictures.
    seen = (
        read("pictures")["latents"]
        if (work / "pictures.pt").exists()
        else heard.new_zeros(len(heard), 1, 1, 1, 1)
    )
    clips = towers.Latents(seen, heard[: len(seen)], latents.scene_numbers(len(seen)))
    return clips, towers.Texts(texts["captions"], texts["nothing"], tuple(texts["negatives"]))
