"""Has a miniature with a LoRA read references, of which the caption says nothing, and counts how
often it does.

Usage: python miniature/training/reference_figures.py --comfyui PATH [--lora FILE] [--clips 64]
[--seed 1000] [--steps 20] [--only NAME ...]

Run it with ComfyUI's python. Prints a table with Wilson's intervals of 95 %. The clips are of
held-out scenes; their captions say neither colour nor pitch. A picture of the thing at another
place and time has the colour, a second of its sound in another clip the pitch, both of seeds that
training never saw, by the nodes and at the scales of a workflow. The picture is
cut to the thing, as the node wants it cut to a face.

swapped: the picture, or the voice, is of another colour, or pitch, and nothing else is changed; a
clip counts where it follows it. zeroed: zeros in place of it, as in the guidance; a clip counts
where it has what is not shown, as it would by chance: a quarter of the colours, a third of the
pitches. after the codecs: the voice as a clip of the miniature would have it, which was encoded and
decoded.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))

from find_comfyui import import_comfy, import_extension  # noqa: E402

import_extension()
from comfyui_ovi.miniature.training import figures, generate, world  # noqa: E402
from comfyui_ovi.miniature.training.evaluate import FIRST_SEED, STRIDE  # noqa: E402
from comfyui_ovi.miniature.training.guidance_figures import share_with_interval  # noqa: E402
from comfyui_ovi.miniature.training.judge import Verdict, judge  # noqa: E402
from comfyui_ovi.miniature.training.teach_references import (  # noqa: E402
    UNSAID,
    take_start,
    take_still,
)

NOISE_SEED = 1000
WORDS = {"colour": tuple(world.COLOURS), "pitch": tuple(world.PITCHES), "count": world.COUNTS}
COLUMNS = {
    "colour": "colour as referenced",
    "pitch": "pitch as referenced",
    "count_both": "as many seen and heard as asked",
    "sync": "heard within a frame of one seen",
    "all_right": "all of these",
}


@dataclass(frozen=True)
class Variant:
    """A row of the table: what is done to the references of every clip, by UNSAID's names."""

    swapped: str = ""
    zeroed: str = ""
    is_cut: bool = True
    is_decoded: bool = False  # the voice
    has_lora: bool = True


VARIANTS = {
    "given": Variant(),
    "picture swapped": Variant(swapped="colour"),
    "voice swapped": Variant(swapped="pitch"),
    "picture zeroed": Variant(zeroed="colour"),
    "voice zeroed": Variant(zeroed="pitch"),
    "picture not cut": Variant(is_cut=False),
    "voice after the codecs": Variant(is_decoded=True),
    "given, without the LoRA": Variant(has_lora=False),
}


@dataclass(frozen=True)
class Ask:
    """A clip to be made: a scene whose colour and pitch are those of its references."""

    number: int
    form: int  # of the caption
    scene: world.Scene

    def film(self, **changed) -> world.Clip:
        """Return a clip that shares with the scene what is not changed."""
        return world.film(replace(self.scene, **changed), FIRST_SEED + self.number)

    def picture(self, is_cut: bool = True) -> torch.Tensor:
        """Return a picture of the thing in its colour, of another scene."""
        clip = self.film(count=self._other("count"), pitch=self._any("pitch"))
        return take_still(clip, random.Random(self.number), is_cut)

    def heard(self) -> world.Clip:
        """Return the clip whose sound is the voice."""
        return self.film(count=self._other("count"), colour=self._any("colour"))

    def voice(self) -> tuple[dict, float]:
        """Return a sound of the thing at its pitch, of another scene, and where to begin."""
        clip = self.heard()
        audio = {"waveform": clip.sound[None, None], "sample_rate": world.SAMPLE_RATE}
        return audio, take_start(clip, random.Random(self.number))

    def swapped(self, name: str) -> Ask:
        """Return the same with another colour or pitch."""
        return replace(self, scene=replace(self.scene, **{name: self._other(name)}))

    def _any(self, name: str):
        return WORDS[name][self.number % len(WORDS[name])]

    def _other(self, name: str):
        words = WORDS[name]
        step = 1 + self.number % (len(words) - 1)
        return words[(words.index(getattr(self.scene, name)) + step) % len(words)]


def asked(clips: int) -> list[Ask]:
    """Return clips of held-out scenes."""
    scenes = world.HELD_OUT_SCENES
    return [
        Ask(number, number // len(scenes) % 2, scenes[STRIDE * number % len(scenes)])
        for number in range(clips)
    ]


def refer(nodes, parts: generate.Parts, ask: Ask, variant: Variant, latent: dict) -> list[list]:
    """Return both CONDITIONINGs of a clip, with its references."""
    run, default = generate._run, generate._default
    names = ("video_negative", "audio_negative")
    negatives = {name: default(nodes.OviTextEncode, name) for name in names}
    caption = ask.scene.caption(ask.form, UNSAID)
    positive, negative = run(
        nodes.OviTextEncode, clip=parts.clip, prompt=caption, sound_tag="Audio:", **negatives
    )
    voice, start = ask.voice()
    if variant.is_decoded:
        _, sound = generate.through_codecs(parts, ask.heard())
        voice |= {"waveform": sound[None, None]}
    given = {"image": ask.picture(variant.is_cut), "voice": voice, "voice_start": start}
    vaes = {"vae": parts.vae, "audio_vae": parts.audio_vae}
    referred = run(
        nodes.OviReferences, positive=positive, negative=negative, latent=latent, **vaes, **given
    )
    return [zeroed(conditioning, variant.zeroed) for conditioning in referred]


def make(parts: generate.Parts, ask: Ask, variant: Variant, seed: int, steps: int) -> Verdict:
    """Make a clip through the nodes of a workflow, and judge it by its references."""
    nodes, run = generate.import_nodes(), generate._run
    if variant.swapped:
        ask = ask.swapped(variant.swapped)
    latent = generate.empty(parts)
    positive, negative = refer(nodes, parts, ask, variant, latent)
    names = ("video_cfg", "audio_cfg", "image_cfg", "voice_cfg")
    scales = {name: generate._default(nodes.OviReferenceGuider, name) for name in names}
    (guider,) = run(
        nodes.OviReferenceGuider, model=parts.model, positive=positive, negative=negative, **scales
    )
    (sigmas,) = run(nodes.OviScheduler, steps=steps, shift=generate.SHIFT, denoise=1.0)
    (sampler,) = run(nodes.OviSamplerUniPC)
    (noise,) = run(nodes.RandomNoise, noise_seed=seed + ask.number)
    how = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas}
    sampled, _ = run(nodes.SamplerCustomAdvanced, latent_image=latent, **how)
    return judge(*generate._decode(nodes, parts, sampled), ask.scene)


def zeroed(conditioning: list, name: str) -> list:
    """Return a CONDITIONING whose picture or voice the model reads as zeros; name: of UNSAID."""
    from comfy.latent_formats import Wan22
    from comfyui_ovi.ovi_model.sample.references import IMAGES, VOICES
    from node_helpers import conditioning_set_values

    if not name:
        return conditioning
    key = IMAGES if name == "colour" else VOICES
    (latent,) = conditioning[0][1][key]
    nothing = torch.zeros_like(latent)
    if name == "colour":
        nothing = Wan22().process_out(nothing)  # the model reads it normalised
    return conditioning_set_values(conditioning, {key: [nothing]})


def row(name: str, verdicts: list[Verdict]) -> str:
    """Return a row of the table."""
    answers = figures.answers(verdicts)
    cells = [
        f"{share_with_interval(answers[column])}, {sum(answers[column])} of {len(answers[column])}"
        for column in COLUMNS
    ]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print a row of the table for each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--files", type=Path, default=REPOSITORY / "miniature")
    parser.add_argument("--lora", type=Path, help="in place of the one that lies there")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seed", type=int, default=NOISE_SEED, help="of the first clip's noise")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    import_comfy(options.comfyui)
    from comfyui_ovi.ovi_model.load import miniature

    torch.set_num_threads(1)
    print(f"| references | {' | '.join(COLUMNS.values())} |\n{'|---' * (len(COLUMNS) + 1)}|")
    with torch.inference_mode():
        plain = generate.load(options.files)
        lora = options.lora or options.files / miniature.REFERENCES_LORA
        taught = generate.with_lora(plain, lora)
        for name in options.only:
            variant = VARIANTS[name]
            parts = taught if variant.has_lora else plain
            verdicts = [
                make(parts, ask, variant, options.seed, options.steps)
                for ask in asked(options.clips)
            ]
            print(row(name, verdicts), flush=True)


if __name__ == "__main__":
    main()
