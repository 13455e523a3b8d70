"""Has the miniature carry clips on and join them, and judges the joins.

Usage: python miniature/training/continuation_figures.py --comfyui PATH [--joins 48] [--chains 3]
[--in-a-row 20] [--steps 20] [--last-frame] [--seed 1000] [--out FILE]

Run it with ComfyUI's python. Every clip is the miniature's, of scenes that training never saw;
seeds are 1000 and up, or those after --seed. Half of the joins cut the film in the middle of a
note, half in the silence between two. Then chains: one clip and so many joins after it. Prints
Markdown tables with Wilson intervals (95 %) and the resident memory. --last-frame starts the next
clip from the film's last frame alone, as image-to-video does, for comparison. --out writes every
join as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))

from find_comfyui import import_comfy, import_extension  # noqa: E402

import_extension()
from comfyui_ovi.miniature.training import generate, world  # noqa: E402
from comfyui_ovi.miniature.training.batches import BATCH, Ask, make_clips  # noqa: E402
from comfyui_ovi.miniature.training.figures import wilson  # noqa: E402
from comfyui_ovi.miniature.training.judge import (  # noqa: E402
    IN_SYNC,
    Verdict,
    find_pitch,
    judge,
    sync_errors,
)
from comfyui_ovi.ovi_model.latent.overlap import HELD_FRAMES, heard_until, sample_at  # noqa: E402
from comfyui_ovi.ovi_model.save.join import FADE  # noqa: E402

FIRST_SEED = 1000  # of the clips before a join
NEXT = 1000  # by which the seeds of clips after it are higher
# Where the film is cut: so many frames after an event begins. The shortest note lasts three frames,
# the longest six, and events are seven or more apart.
IN_NOTE = "in a note"
CUTS = {IN_NOTE: 2, "in silence": 6}
LEFT = 2  # frames of the film after a cut, with which the seam is compared
LEVEL = round(0.04 * world.SAMPLE_RATE)  # samples on each side whose levels are compared
DOUBLED = 0.2  # seconds; two events of the world are at least 0.29 s apart
WINDOW = 24  # frames of a film before a seam that are judged with the new clip


@dataclass(frozen=True)
class Film:
    """Pictures [N, H, W, 3] and mono sound [samples] of a scene."""

    scene: world.Scene
    frames: Tensor
    sound: Tensor


@dataclass(frozen=True)
class Join:
    """What became of one join. Times in seconds, levels in dB."""

    kind: str
    caption: str
    asked: int  # new events
    seen: int
    heard: int
    in_step: int  # of the heard, those within a frame of one seen
    doubled: int
    is_colour_kept: bool
    pitch: float | None  # of the new sounds, median, as a share of the film's
    loudness: float | None  # of the new sounds over the film's, dB
    jump: float | None  # level after the fade over before it, less the same of the uncut film
    step: float | None  # largest step between samples around the fade, over the uncut film's
    samples_off: int

    @property
    def is_as_asked(self) -> bool:
        """Whether as many are seen, heard and in step as were asked for, in the film's colour."""
        return self.asked == self.seen == self.heard == self.in_step and self.is_colour_kept


def audio(sound: Tensor) -> dict:
    return {"waveform": sound[None, None], "sample_rate": world.SAMPLE_RATE}


def run(node, **inputs) -> tuple:
    return node.execute(**inputs).result


def start(parts, film: Film, options) -> dict:
    """Return the latent of a new clip after a film."""
    if options.last_frame:
        return generate.empty(parts, film.frames[-1])
    given = {"images": film.frames, "audio": audio(film.sound)}
    vaes = {"vae": parts.vae, "audio_vae": parts.audio_vae}
    return run(generate.import_nodes().OviContinue, **given, **vaes, seconds=1.0)[0]


def join(film: Film, frames: Tensor, sound: Tensor, options) -> Film:
    """Return a film with a new clip after it."""
    if options.last_frame:
        whole = torch.cat([film.frames, frames[1:]])
        heard = torch.cat([film.sound, sound])[: sample_at(len(whole), world.SAMPLE_RATE)]
        return replace(film, frames=whole, sound=heard)
    given = {"images": film.frames, "audio": audio(film.sound)}
    new = {"new_images": frames, "new_audio": audio(sound), "frames": options.frames}
    images, joined = run(generate.import_nodes().OviJoin, **given, **new)
    return replace(film, frames=images, sound=joined["waveform"][0, 0])


def first_clips(parts, asked: list[tuple[world.Scene, int]], options) -> list[Film]:
    """Return a film of each scene and seed."""
    guidance, empty = generate.Guidance(steps=options.steps), generate.empty(parts)
    asks = [Ask(scene.caption(), seed, empty) for scene, seed in asked]
    made = make_clips(parts, asks, guidance)
    return [Film(scene, *clip) for (scene, _), clip in zip(asked, made, strict=True)]


def cut(film: Film, frames: int) -> Film:
    """Return the first frames of a film and their sound."""
    samples = sample_at(frames, world.SAMPLE_RATE)
    return replace(film, frames=film.frames[:frames], sound=film.sound[:samples])


def cut_after_event(film: Film, after: int) -> Film | None:
    """Return a film up to so many frames after an event that is seen and heard, the last one that
    leaves enough before and after the cut; None without one.
    """
    verdict = judge(film.frames, film.sound, film.scene)
    for event in reversed(verdict.seen):
        heard = any(abs(time - event / world.FRAME_RATE) <= IN_SYNC for time in verdict.heard)
        # A ball that has come to rest bounces no more, in the world that the miniature knows.
        goes_on = film.scene.thing != "ball" or any(other > event for other in verdict.seen)
        if heard and goes_on and HELD_FRAMES <= event + after <= len(film.frames) - LEFT:
            return cut(film, event + after)
    return None


def next_caption(film: Film, new_events: int) -> tuple[str, int]:
    """Return what to ask the next clip for: the events that its first frames show and new ones; and
    how many are new.
    """
    verdict = judge(film.frames[-WINDOW:], film.sound[-_samples(WINDOW) :], film.scene)
    # The first event of every clip of the world is in frames 5 to 11, which are held: none is
    # counted before, and one where there is none.
    first = min(WINDOW, len(film.frames)) - HELD_FRAMES + world.FIRST_EVENT[0]
    held = max(1, sum(event >= first for event in verdict.seen))
    count = min(max(world.COUNTS), held + new_events)
    return replace(film.scene, count=count).caption(), count - held


def _samples(frames: int) -> int:
    return sample_at(frames, world.SAMPLE_RATE)


def look(film: Film, joined: Film, uncut: Film | None, **said) -> Join:
    """Judge what is new in a joined film, and its seam; uncut: the film before it was cut."""
    seam = min(WINDOW, len(film.frames))
    start = len(film.frames) - seam
    window, before = joined.frames[start:], film.frames[start:]
    sound = joined.sound[_samples(start) :]
    verdict = judge(window, sound, film.scene)
    was = judge(before, film.sound[_samples(start) :], film.scene)
    new = _new(verdict, seam)
    seen = [frame for frame in verdict.seen if frame >= seam]
    gaps = [b - a for a, b in zip(verdict.heard, verdict.heard[1:], strict=False)]
    return Join(
        **said,
        seen=len(seen),
        heard=len(new),
        in_step=sum(error <= IN_SYNC for error in sync_errors(new, verdict.seen)),
        doubled=sum(gap < DOUBLED for gap in gaps),
        is_colour_kept=judge(window[seam:], sound[_samples(seam) :], film.scene).colour
        == film.scene.colour,
        pitch=_pitch_kept(sound, new, was, film.sound[_samples(start) :]),
        loudness=_louder(sound, new, was.heard),
        samples_off=len(joined.sound) - round(len(joined.frames) * 16000 / 24),
        **_seam(film, joined, uncut),
    )


def _new(verdict: Verdict, seam: int) -> tuple[float, ...]:
    """Return when what is heard after a seam begins; half a frame before it counts."""
    return tuple(time for time in verdict.heard if time >= (seam - 0.5) / world.FRAME_RATE)


def _pitch_kept(sound: Tensor, new, was: Verdict, before: Tensor) -> float | None:
    """Return the pitch of new notes over that of the film's, medians."""
    now = [pitch for time in new if (pitch := find_pitch(sound, time))]
    then = [pitch for time in was.heard if (pitch := find_pitch(before, time))]
    return statistics.median(now) / statistics.median(then) if now and then else None


def _louder(sound: Tensor, new, old) -> float | None:
    """Return by how many dB new notes are louder than the film's, medians of their peaks."""

    def peak(time: float) -> float:
        start = round(time * world.SAMPLE_RATE)
        return float(sound[start : start + 1600].square().mean().sqrt())

    if not new or not old:
        return None
    return decibels(statistics.median(map(peak, new)), statistics.median(map(peak, old)))


def _seam(film: Film, joined: Film, uncut: Film | None) -> dict[str, float | None]:
    """Compare a joined film with the uncut one: levels before and after the fade, and the largest
    step between samples in it.
    """
    if uncut is None:
        return {"jump": None, "step": None}
    stop, fade = heard_until(film.sound[None], world.SAMPLE_RATE), round(FADE * world.SAMPLE_RATE)
    jumps = [_jump(sound, stop - fade, stop) for sound in (joined.sound, uncut.sound)]
    steps = [
        float(x[stop - fade - 32 : stop + 32].diff().abs().max())
        for x in (joined.sound, uncut.sound)
    ]
    return {"jump": jumps[0] - jumps[1], "step": steps[0] / max(steps[1], 1e-6)}


def _jump(sound: Tensor, before: int, after: int) -> float:
    """Return by how many dB a sound is louder after one sample than before another."""
    levels = [
        float(part.square().mean().sqrt())
        for part in (sound[after : after + LEVEL], sound[before - LEVEL : before])
    ]
    return decibels(*levels)


def decibels(level: float, than: float) -> float:
    return 20 * math.log10(max(level, 1e-5) / max(than, 1e-5))


def make_films(parts, options) -> list[tuple[str, Film, Film]]:
    """Return where each film is cut, the film, and what it was before; both kinds in turn. Scenes
    whose only event is too early for a cut are passed over.
    """
    scenes = [scene for scene in world.HELD_OUT_SCENES if scene.count > 1]
    found: dict[str, list] = {kind: [] for kind in CUTS}
    each = -(-options.joins // len(CUTS))
    for first in itertools.count(step=BATCH):
        if min(map(len, found.values())) >= each:
            break
        numbers = range(first, first + BATCH)
        asked = [(scenes[index % len(scenes)], options.seed + index) for index in numbers]
        for uncut in first_clips(parts, asked, options):
            for kind, after in CUTS.items():
                film = cut_after_event(uncut, after)
                if film and len(found[kind]) < each:
                    found[kind].append((kind, film, uncut))
    in_turn = zip(*found.values(), strict=True)
    return list(itertools.chain.from_iterable(in_turn))[: options.joins]


def make_joins(parts, options) -> list[Join]:
    """Return joins of both kinds in turn."""
    films = make_films(parts, options)
    captions = [
        next_caption(film, 1 + number // 2 % 2) for number, (_, film, _) in enumerate(films)
    ]
    seed = options.seed + NEXT
    asks = (
        Ask(caption, seed + number, start(parts, film, options))
        for number, ((_, film, _), (caption, _)) in enumerate(zip(films, captions, strict=True))
    )
    made = make_clips(parts, asks, generate.Guidance(steps=options.steps))
    joins = []
    for (kind, film, uncut), (caption, asked), clip in zip(films, captions, made, strict=True):
        joined = join(film, *clip, options)
        joins.append(look(film, joined, uncut, kind=kind, caption=caption, asked=asked))
    write(options.out, joins)
    return joins


def make_chain(parts, number: int, options) -> tuple[list[Join], dict]:
    """Return the joins of one film, each after the last, and what is left of its first clip's
    colours.
    """
    # No ball: once at rest it bounces no more, in the world that the miniature knows.
    scenes = [s for s in world.HELD_OUT_SCENES if s.count == 2 and s.thing != "ball"]
    scene = scenes[number * (len(scenes) // 2 + 1) % len(scenes)]
    (film,) = first_clips(parts, [(scene, options.seed + number)], options)
    walls, joins = [_wall(film.frames)], []
    for shot in range(options.in_a_row):
        caption, asked = next_caption(film, 2)
        seed = options.seed + NEXT + 100 * number + shot
        ask = Ask(caption, seed, start(parts, film, options))
        ((frames, sound),) = make_clips(parts, [ask], generate.Guidance(steps=options.steps))
        joined = join(film, frames, sound, options)
        joins.append(look(film, joined, None, kind=scene.thing, caption=caption, asked=asked))
        walls.append(_wall(frames[HELD_FRAMES:]))
        film = joined
        print(f"chain {number + 1}, join {shot + 1}: {joins[-1]}", file=sys.stderr, flush=True)
        write(options.out, joins)
    return joins, {
        "scene": scene.caption(),
        "frames": len(film.frames),
        "samples": len(film.sound),
        "wall": max(float((wall - walls[0]).abs().max()) for wall in walls),
    }


def _wall(frames: Tensor) -> Tensor:
    """Return the mean colour of the room's wall, where nothing comes."""
    return frames[:, :4, :4].mean((0, 1, 2))


def share(good: int, count: int) -> str:
    """Return a share with Wilson's interval of 95 %."""
    if not count:
        return "-"
    low, high = (100 * edge for edge in wilson(good, count))
    return f"{100 * good / count:.1f} % ({low:.0f}-{high:.0f}; {good} of {count})"


def in_notes(joins: list[Join]) -> list[Join]:
    """Return those whose seam is in a sound."""
    return [join for join in joins if join.kind == IN_NOTE]


ROWS = {
    "joins": lambda joins: str(len(joins)),
    "new sounds in step with what is seen": lambda joins: share(
        sum(join.in_step for join in joins), sum(join.heard for join in joins)
    ),
    "joins as asked: count seen, heard, in step, colour": lambda joins: share(
        sum(join.is_as_asked for join in joins), len(joins)
    ),
    "events asked, seen, heard, doubled": lambda joins: ", ".join(
        str(sum(getattr(join, name) for join in joins))
        for name in ("asked", "seen", "heard", "doubled")
    ),
    "joins in the film's colour": lambda joins: share(
        sum(join.is_colour_kept for join in joins), len(joins)
    ),
    "pitch within 6 % of the film's": lambda joins: share(
        sum(abs(join.pitch - 1) < 0.06 for join in joins if join.pitch),
        sum(join.pitch is not None for join in joins),
    ),
    "new sounds over the film's, median, dB": lambda joins: _median(joins, "loudness", abs_=False),
    "level jump at the fade in a note, median, dB": lambda joins: _median(in_notes(joins), "jump"),
    "largest step of the waveform there, over the uncut film's, median": lambda joins: _median(
        in_notes(joins), "step"
    ),
    "joins with samples other than round(frames x 16000 / 24)": lambda joins: str(
        sum(join.samples_off != 0 for join in joins)
    ),
}


def _median(joins: list[Join], name: str, abs_: bool = True) -> str:
    values = [getattr(join, name) for join in joins if getattr(join, name) is not None]
    return f"{statistics.median(map(abs, values) if abs_ else values):.2f}" if values else "-"


def table(columns: dict[str, list[Join]]) -> str:
    """Return a Markdown table of joins by what a column says of them."""
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [
        f"| {meaning} | {' | '.join(of(joins) for joins in columns.values())} |"
        for meaning, of in ROWS.items()
    ]
    return "\n".join(lines)


def write(path: Path | None, joins: list[Join]) -> None:
    """Write joins to a file, if there is one."""
    if path:
        path.write_text(json.dumps([asdict(join) for join in joins], indent=1) + "\n")


def resident() -> str:
    """Return the process's largest resident memory so far, and what of it is resident now without
    pages of files, in MiB.
    """
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    now = [int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon")]
    return f"{largest} largest, {now[0] if now else '?'} now"


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument("--joins", type=int, default=48)
    parser.add_argument("--chains", type=int, default=3)
    parser.add_argument("--in-a-row", type=int, default=20, help="joins of a chain")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help="of the first clip")
    parser.add_argument("--frames", choices=("on disk", "in memory"), default="on disk")
    parser.add_argument("--last-frame", action="store_true", help="hold the last frame alone")
    parser.add_argument("--out", type=Path, help="file for every join, as JSON")
    return parser.parse_args()


def main() -> None:
    """Make, judge, print."""
    options = parse_options()
    import_comfy(options.comfyui)
    with torch.inference_mode():
        parts = generate.load(REPOSITORY / "miniature")
        joins = make_joins(parts, options)
        after_joins = resident()
        chains = [make_chain(parts, number, options) for number in range(options.chains)]
    if joins:
        columns = {kind: [join for join in joins if join.kind == kind] for kind in CUTS}
        print(table(columns | {"both": joins}))
    if chains:
        print()
        print(table({found["scene"]: in_a_row for in_a_row, found in chains}))
        for _, found in chains:
            print(found)
    print(f"\nresident memory, MiB: after single joins {after_joins}; after chains {resident()}")
    write(options.out, [*joins, *(join for in_a_row, _ in chains for join in in_a_row)])


if __name__ == "__main__":
    main()
