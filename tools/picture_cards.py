"""Makes the moving picture of every template's card: its own graph, run with the miniature.

The released files are too large to be at hand everywhere. So the miniature takes the place of the
loaders, its sizes and prompts the place of the template's; LoRAs and model upscalers are left out.
A template that is made for the miniature is asked for a clip, and runs as it is.
"""

import argparse
import copy
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from comfy_server import REPOSITORY, Server, ServerError, running_server
from contact_sheet import read_sound
from PIL import Image, ImageDraw

WORKFLOWS = REPOSITORY / "workflows"
# Type of a loader, and the output of Ovi Miniature that takes its place.
LOADERS = {"UNETLoader": 0, "OviTextEncoderLoader": 1, "VAELoader": 2, "OviAudioVAELoader": 3}
# Nodes that are left out, by the input that is handed on.
LEFT_OUT = {
    "LoraLoaderModelOnly": "model",
    "OviLoraLoader": "model",
    "MultiGPU_WorkUnits": "model",
    "ImageUpscaleWithModel": "image",
}
# What the miniature was trained at.
SETTINGS = {
    "width": 64,
    "height": 64,
    "length": 37,
    "seconds": 1.0,
    "steps": 20,
    "skip_layer": -1,
    "cfg": 4.0,
    "audio_cfg": 3.0,
}
SET_ON = (
    "OviLatent",
    "ImageFromBatch",
    "ImageScale",
    "OviContinue",
    "OviScheduler",
    "KSampler",
    "OviGuidance",
    "CFGGuider",
)


@dataclass
class Card:
    """What is asked for one card. prompts: one of each shot. given: what a node loads, taken from
    the clip of another card.
    """

    prompts: list[str]
    seed: int = 5
    given: str = ""
    side: int = 64  # of the picture that is sampled first, in pixels


FACE = "A {} face says <S>{}<E>. Audio: a {} voice."
BALL = "A {} ball bounces {}. Audio: {} {} knocks."
LAMP = "A {} lamp flashes {}. Audio: {} {} beeps."
CARDS = {
    "Ovi_01_Miniature_no_download": Card([FACE.format("yellow", "ba ba ba", "middle")]),
    "Ovi_02_Text_to_talking_video": Card([FACE.format("red", "ba ba", "low")]),
    "Ovi_03_Picture_to_talking_video": Card(
        [FACE.format("yellow", "ba ba", "high")], given="Ovi_01_Miniature_no_download"
    ),
    "Ovi_04_Voice_recording_to_video": Card(
        [FACE.format("red", "ba ba", "low")], given="Ovi_02_Text_to_talking_video"
    ),
    "Ovi_05_Sound_for_a_video": Card(
        [BALL.format("blue", "three times", "three", "low")], given="Ovi_11_One_KSampler"
    ),
    "Ovi_06_Film_of_three_shots": Card([FACE.format("green", "ba ba", "middle")] * 3),
    "Ovi_07_Fast_in_six_steps": Card([BALL.format("yellow", "twice", "two", "high")]),
    "Ovi_08_Two_passes_larger": Card([FACE.format("blue", "ba ba ba", "high")], side=32),
    "Ovi_09_Upscaled_by_a_model": Card([LAMP.format("green", "three times", "three", "high")]),
    "Ovi_10_LoRA_and_upscaler": Card([LAMP.format("red", "twice", "two", "low")]),
    "Ovi_11_One_KSampler": Card([BALL.format("blue", "three times", "three", "low")]),
    "Ovi_12_Two_graphics_cards": Card([BALL.format("blue", "three times", "three", "low")]),
    "Ovi_13_All_nodes_miniature": Card([FACE.format("yellow", "ba ba ba", "middle")]),
    "Ovi_14_All_nodes_text": Card([FACE.format("red", "ba ba", "low")]),
    "Ovi_15_All_nodes_picture": Card(
        [FACE.format("red", "ba ba ba", "low")], given="Ovi_02_Text_to_talking_video"
    ),
    "Ovi_18_References_miniature": Card(
        [FACE.format("yellow", "ba", "high"), "A face says <S>ba ba<E>. Audio: a voice."], seed=8
    ),
}
# What the miniature cannot show, which knows no people, and what takes long and clips of one's own.
# These cards are pictures of their graphs.
NOT_SHOWN = ("Ovi_16_A_face_and_a_voice", "Ovi_17_Train_a_LoRA", "Ovi_19_Two_people")
# Pixels.
SIDE = 320
STRIP = 56  # height of the sound, over the picture's lower edge
# Frames a second of the card, and how the picture is packed.
RATE = 12
QUALITY = 70
BACK, WAVE, PLAYED, CURSOR = "#101418", "#5a6a74", "#4fd1c5", "#ffffff"


def with_miniature(prompt: dict, card: Card) -> dict:
    """Return an API-format workflow with the miniature for its loaders, and what a card asks."""
    prompt = copy.deepcopy(prompt)
    types = {name: node["class_type"] for name, node in prompt.items()}
    if "OviMiniature" in types.values():
        _ask(prompt, card)
        return prompt
    instead = {
        (name, 0): ["miniature", LOADERS[kind]] for name, kind in types.items() if kind in LOADERS
    }
    instead |= {
        (name, 0): prompt[name]["inputs"][LEFT_OUT[kind]]
        for name, kind in types.items()
        if kind in LEFT_OUT
    }
    instead |= {
        (name, slot): SETTINGS["width"]
        for name, kind in types.items()
        if kind == "OviImageSize"
        for slot in (0, 1)
    }
    for node in prompt.values():
        for name, value in node["inputs"].items():
            while isinstance(value, list) and tuple(value) in instead:
                value = instead[tuple(value)]
            node["inputs"][name] = value
    _ask(prompt, card)
    _set_widgets(prompt, card)
    prompt["miniature"] = {"class_type": "OviMiniature", "inputs": {}}
    gone = {*LOADERS, *LEFT_OUT, "OviImageSize", "UpscaleModelLoader"}
    return {name: node for name, node in prompt.items() if node["class_type"] not in gone}


def _ask(prompt: dict, card: Card) -> None:
    shots = iter(card.prompts)
    for name in sorted(prompt, key=lambda name: [int(part) for part in name.split(":")]):
        inputs = prompt[name]["inputs"]
        if prompt[name]["class_type"] == "OviTextEncode":
            inputs["prompt"] = next(shots)
        inputs |= {key: card.seed for key in ("seed", "noise_seed") if key in inputs}


def _set_widgets(prompt: dict, card: Card) -> None:
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"] in SET_ON:
            inputs |= {
                key: value
                for key, value in (SETTINGS | {"width": card.side, "height": card.side}).items()
                if key in inputs and not isinstance(inputs[key], list)
            }


def run(server: Server, base: Path, name: str) -> Path:
    """Make the clip of one card; return its file."""
    card = CARDS[name]
    prompt = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    outputs = server.run(with_miniature(prompt, card), seconds=600)
    (entry,) = (
        entry
        for node in outputs.values()
        for entry in node.get("images", [])
        if entry["filename"].endswith(".mp4")
    )
    return base / "output" / entry["subfolder"] / entry["filename"]


def give(clip: Path, inputs: Path) -> None:
    """Put a clip, its first frame and its sound where the templates load them."""
    (inputs / "clip.mp4").write_bytes(clip.read_bytes())
    Image.fromarray(read_frames(clip)[0]).save(inputs / "example.png")
    with av.open(str(clip)) as source, av.open(str(inputs / "recording.wav"), "w") as target:
        stream = target.add_stream("pcm_s16le", rate=source.streams.audio[0].rate, layout="mono")
        to_mono = av.AudioResampler("s16", "mono")
        for frame in source.decode(audio=0):
            for block in to_mono.resample(frame):
                target.mux(stream.encode(block))
        target.mux(stream.encode(None))


def read_frames(clip: Path) -> np.ndarray:
    """Return a clip's pictures [F, H, W, 3] in 8 bits."""
    with av.open(str(clip)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def draw(clip: Path) -> list[Image.Image]:
    """Return the card's pictures: the clip, its sound below, and how far it has been played."""
    sound, _ = read_sound(clip)
    frames = read_frames(clip)
    loudness = np.array([np.abs(part).max() for part in np.array_split(sound.samples, SIDE // 4)])
    heights = np.maximum(loudness / max(loudness.max(), 1e-6) * (STRIP - 16), 2)
    step = round(24 / RATE)
    return [
        _draw_frame(frames[index], heights, index / (len(frames) - 1))
        for index in range(0, len(frames), step)
    ]


def _draw_frame(frame: np.ndarray, heights: np.ndarray, played: float) -> Image.Image:
    card = Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(card)
    pen.rectangle((0, SIDE - STRIP, SIDE, SIDE), fill=BACK)
    middle = SIDE - STRIP // 2
    for bar, height in enumerate(heights):
        left = bar * 4
        colour = PLAYED if left <= played * SIDE else WAVE
        pen.rectangle((left, middle - height / 2, left + 2, middle + height / 2), fill=colour)
    pen.line((played * SIDE, SIDE - STRIP + 4, played * SIDE, SIDE - 4), fill=CURSOR, width=2)
    return card


def save(pictures: list[Image.Image], path: Path) -> None:
    """Write an animated WebP; the page asks for it under a name that ends in .jpg."""
    first, *others = pictures
    first.save(
        path,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=round(1000 / RATE),
        loop=0,
        quality=QUALITY,
        method=6,
    )
    print(f"{path.name}: {len(pictures)} frames, {path.stat().st_size} bytes")


def picture_cards(comfyui: Path, names: list[str]) -> None:
    """Make the cards of these templates in one server; clips that they load are made first."""
    clips = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        with running_server(comfyui, base) as server:

            def clip_of(name: str) -> Path:
                if name not in clips:
                    if CARDS[name].given:
                        give(clip_of(CARDS[name].given), base / "input")
                    clips[name] = run(server, base, name)
                return clips[name]

            for name in names:
                save(draw(clip_of(name)), WORKFLOWS / f"{name}.jpg")


def main() -> int:
    """Make the cards of all templates, or of those named; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("names", nargs="*", metavar="TEMPLATE", help="default: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(CARDS):
        parser.error(f"{', '.join(sorted(unknown))}: not in CARDS; add there what it asks for")
    try:
        picture_cards(arguments.comfyui.resolve(), arguments.names or list(CARDS))
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
