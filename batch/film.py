"""film.yaml: shots in order, each a job; what continues a shot depends on it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from .job import Job, make_job
from .job_table import Row
from .workflow import Workflow

FRAME_RATE = 24
# Frames that go from a shot to the one that continues it: the 13 that 'Ovi Continue' holds, and
# half a second before them, which it reads the sound of.
TAIL_FRAMES = 25
TRANSITIONS = ("cut", "continue")
KEYS = {"prompt", "seconds", "seed", "first_frame", "voice", "transition", "values"}
COLUMNS = {"prompt": "prompt", "first_frame": "picture", "voice": "sound"}
SEEDS = ("noise_seed", "seed")


class FilmError(Exception):
    """A film.yaml that no film can be made of."""


@dataclass(frozen=True)
class Shot:
    """One shot: its job, and how many of its frames are the end of the shot before."""

    job: Job
    lead: int


def read_film(path: Path) -> list[Shot]:
    """Return the shots of a film.yaml; raises FilmError with every fault, by the shot's number.

    A shot sets `values` by name, as a table does, and the film's own `values` are for all shots.
    A job's id holds that of the shot it continues: another shot 5 is another shot 6 too, where 6
    continues it.
    """
    try:
        film = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise FilmError(f"{path} cannot be read: {error}") from error
    if not isinstance(film, dict) or not isinstance(film.get("shots"), list) or not film["shots"]:
        raise FilmError(f"{path} has no list 'shots': write one entry a shot.")
    if not isinstance(film.get("workflow"), str):
        raise FilmError(f"{path} has no 'workflow': name a workflow in API format.")
    base = Workflow.read(path.parent / film["workflow"])
    shots: list[Shot] = []
    faults = []
    for number, entry in enumerate(film["shots"], start=1):
        try:
            shots.append(_shot(number, entry, film.get("values") or {}, base, path.parent, shots))
        except ValueError as error:
            faults.append(f"shot {number}: {error}")
            shots.append(shots[-1] if shots else Shot(Job("", 0, {}, base, {}), 0))
    if faults:
        raise FilmError("\n".join(faults))
    return shots


def _shot(
    number: int, entry: Any, common: dict, base: Workflow, folder: Path, before: list[Shot]
) -> Shot:
    transition = _transition(entry, is_first=not before)
    # What is set by name is set first: a shot that continues has no 'Ovi Latent' any more.
    values = {**common, **(entry.get("values") or {})}
    named = make_job(Row(number, values), base, folder)
    workflow, after = saving_all(Workflow(named.prompt)), ""
    if transition == "continue":
        after = before[-1].job.id
        workflow = continuing(workflow, f"{after}.mkv")
    if "first_frame" in entry:
        workflow = starting_from_a_picture(workflow)
    own = {column: entry[key] for key, column in COLUMNS.items() if key in entry}
    if "seed" in entry:
        own[_seed(workflow)] = entry["seed"]
    if "seconds" in entry:
        own |= _length(workflow, transition, entry["seconds"])
    job = make_job(Row(number, own), workflow, folder, after)
    chain = before[-1].job.group if after else ("chain", number)
    job = replace(job, values=entry, files={**named.files, **job.files}, group=chain)
    return Shot(job, TAIL_FRAMES if after else 0)


def _transition(entry: Any, is_first: bool) -> str:
    """Check what a shot says of itself; return how it begins."""
    if not isinstance(entry, dict):
        raise ValueError("it is no list of keys and values: write 'prompt: ...'.")
    if unknown := entry.keys() - KEYS:
        known = ", ".join(sorted(KEYS))
        raise ValueError(f"it has no key '{sorted(unknown)[0]}', only {known}.")
    transition = entry.get("transition", "cut")
    if transition not in TRANSITIONS:
        raise ValueError(f"transition is '{transition}': expected cut or continue.")
    if transition == "continue" and is_first:
        raise ValueError("the first shot has none to continue: write 'transition: cut'.")
    if transition == "continue" and "first_frame" in entry:
        raise ValueError("it begins with the end of the shot before: leave first_frame out.")
    return transition


def saving_all(workflow: Workflow) -> Workflow:
    """Return the workflow with its 'Ovi Save Video' replaced: frames and sound without loss."""
    saver = _one(workflow, "OviSaveVideo")
    nodes = copy.deepcopy(workflow.nodes)
    links = nodes[saver]["inputs"]
    if not isinstance(links.get("audio"), list):
        raise ValueError("its 'Ovi Save Video' gets no sound: connect audio.")
    nodes[saver] = _node("SaveImage", images=links["images"], filename_prefix="shot")
    nodes["film_sound"] = _node("SaveAudio", audio=links["audio"], filename_prefix="shot")
    return Workflow(nodes)


def continuing(workflow: Workflow, end: str) -> Workflow:
    """Return the workflow as the blueprint 'Ovi continue the clip' has it: the latent comes from
    'Ovi Continue', and 'Ovi Join' puts what is made behind the end of the shot before.

    end: the file of that end, in ComfyUI's input folder.
    """
    latent, decode = _one(workflow, "OviLatent"), _one(workflow, "OviDecode")
    nodes = copy.deepcopy(workflow.nodes)
    decoded = nodes[decode]["inputs"]
    length = nodes[latent]["inputs"]["length"]
    if isinstance(length, list):
        raise ValueError("the length of its 'Ovi Latent' is connected: write it there.")
    for node in nodes.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == decode:
                node["inputs"][name] = ["film_join", value[1]]
    nodes["film_end"] = _node("LoadVideo", file=end)
    nodes["film_parts"] = _node("GetVideoComponents", video=["film_end", 0])
    parts = {"images": ["film_parts", 0], "audio": ["film_parts", 1]}
    models = {"vae": decoded["vae"], "audio_vae": decoded["audio_vae"]}
    nodes[latent] = _node(
        "OviContinue", **parts, **models, seconds=length / FRAME_RATE, fps=["film_parts", 2]
    )
    new = {"new_images": [decode, 0], "new_audio": [decode, 1]}
    nodes["film_join"] = _node("OviJoin", **parts, **new, frames="in memory")
    return Workflow(nodes)


def starting_from_a_picture(workflow: Workflow) -> Workflow:
    """Return the workflow with a picture as first frame, unless it loads one already."""
    if any(node["class_type"] == "LoadImage" for node in workflow.nodes.values()):
        return workflow
    latent, decode = _one(workflow, "OviLatent"), _one(workflow, "OviDecode")
    nodes = copy.deepcopy(workflow.nodes)
    nodes["film_first"] = _node("LoadImage", image="example.png")
    vae = nodes[decode]["inputs"]["vae"]
    nodes[latent]["inputs"] |= {"start_image": ["film_first", 0], "vae": vae}
    return Workflow(nodes)


def _length(workflow: Workflow, transition: str, seconds: Any) -> dict[str, Any]:
    """Return the value that makes a shot of so many seconds."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(f"seconds is {seconds!r}: expected a number above 0.")
    if transition == "continue":
        return {f"{_one(workflow, 'OviContinue')}.seconds": seconds}
    return {f"{_one(workflow, 'OviLatent')}.length": 4 * round((seconds * FRAME_RATE - 1) / 4) + 1}


def _seed(workflow: Workflow) -> str:
    places = [
        f"{node}.{name}"
        for node, what in workflow.nodes.items()
        for name in SEEDS
        if isinstance(what["inputs"].get(name), int)
    ]
    if len(places) != 1:
        raise ValueError(f"the workflow has {len(places)} seeds: set them under 'values'.")
    return places[0]


def _one(workflow: Workflow, kind: str) -> str:
    nodes = [node for node, what in workflow.nodes.items() if what["class_type"] == kind]
    if len(nodes) != 1:
        raise ValueError(f"a film needs a workflow with one {kind}; this one has {len(nodes)}.")
    return nodes[0]


def _node(kind: str, **inputs: Any) -> dict:
    return {"class_type": kind, "inputs": inputs}
