"""What a workflow asks the miniature for, and whether the clip it saved shows that."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from contact_sheet import read_sound
from torch import Tensor

from .judge import IN_SYNC, Verdict, judge
from .world import COLOURS, COUNTS, FRAME_RATE, PITCHES, SAMPLE_RATE, THINGS, Scene, every_scene

SCENES = {scene.caption(form): scene for scene in every_scene() for form in (0, 1)}
SEEDS = ("seed", "noise_seed")


def uses_miniature(prompt: dict) -> bool:
    """Whether an API-format workflow loads the miniature."""
    return any(node["class_type"] == "OviMiniature" for node in prompt.values())


def parse_scene(text: str) -> Scene:
    """Read a scene such as "ball,red,3,low"; raises ValueError with the words there are."""
    words = [word.strip() for word in text.split(",")]
    for scene in every_scene():
        if words == [scene.thing, scene.colour, str(scene.count), scene.pitch]:
            return scene
    known = ", ".join("|".join(map(str, choices)) for choices in (THINGS, COLOURS, COUNTS, PITCHES))
    raise ValueError(
        f"'{text}' is no scene of the miniature's world; give one word of each: {known}"
    )


def asked_scene(prompt: dict) -> Scene | None:
    """Return the scene whose caption a workflow holds, None if it is in other words."""
    texts = [
        node["inputs"]["prompt"]
        for node in prompt.values()
        if node["class_type"] == "OviTextEncode"
    ]
    return SCENES.get(texts[0]) if texts and isinstance(texts[0], str) else None


def with_request(prompt: dict, scene: Scene | None, seed: int | None) -> dict:
    """Return a copy of a workflow that asks for another scene and has another seed; None leaves
    either as it is.
    """
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        if scene and node["class_type"] == "OviTextEncode":
            node["inputs"]["prompt"] = scene.caption()
        if seed is not None:
            node["inputs"] |= {name: seed for name in SEEDS if name in node["inputs"]}
    return prompt


def judge_file(path: Path, asked: Scene) -> Verdict:
    """Return what is seen and heard in a saved clip of 64 x 64 pixels with sound of 16 kHz."""
    sound, _ = read_sound(path)
    if sound.sample_rate != SAMPLE_RATE:
        raise ValueError(
            f"{path.name} has sound of {sound.sample_rate} Hz, and the judge hears {SAMPLE_RATE} "
            "Hz: save it as mp4."
        )
    return judge(read_frames(path), torch.from_numpy(sound.samples), asked)


def read_frames(path: Path) -> Tensor:
    """Return a clip's pictures [F, H, W, 3], 0 to 1."""
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(pictures)) / 255


def describe(verdict: Verdict) -> list[str]:
    """Return what was asked for and what was judged, a line each."""
    moments = [frame / FRAME_RATE for frame in verdict.seen]
    pitches = ", ".join(f"{pitch:.0f} Hz" if pitch else "noise" for pitch in verdict.pitches)
    errors = ", ".join(f"{1000 * error:.0f} ms" for error in verdict.errors if error < math.inf)
    return [
        f"asked: {verdict.asked.caption()}",
        f"seen:  {verdict.colour or 'no colour'}, {_times(moments)}",
        f"heard: {verdict.pitch or 'no'} pitch ({pitches or 'nothing'}), {_times(verdict.heard)}",
        f"sync:  {_in_sync(verdict)} of {len(verdict.heard)} sounds within a frame of what is seen "
        f"({errors or '-'})",
    ]


def _times(moments: Sequence[float]) -> str:
    at = ", ".join(f"{moment:.2f}" for moment in moments)
    return (
        f"{len(moments)} event{'s' if len(moments) > 1 else ''} at {at} s"
        if moments
        else "no events"
    )


def _in_sync(verdict: Verdict) -> int:
    return sum(error <= IN_SYNC for error in verdict.errors)


def faults(verdict: Verdict) -> list[str]:
    """Return in what a clip differs from what was asked for; nothing if it is right."""
    asked = verdict.asked
    found = {
        "colour": (verdict.colour, asked.colour),
        "number of events seen": (len(verdict.seen), asked.count),
        "number of sounds": (len(verdict.heard), asked.count),
        "pitch": (verdict.pitch, asked.pitch),
        "number of sounds in sync": (_in_sync(verdict), asked.count),
    }
    return [
        f"{what} is {is_}, expected {wanted}"
        for what, (is_, wanted) in found.items()
        if is_ != wanted
    ]
