"""Walks every node of core that takes a MODEL, or that makes prompts of prompts: what each changes
of an Ovi clip, or says.
"""

from __future__ import annotations

from pathlib import Path

from goldens import relative_error
from small_graph import CountForwards, Link, parts
from stock_inputs import (
    CFG,
    CLIPS,
    NODES,
    SEED,
    Clip,
    Materials,
    changes_prompts,
    takes_a_model,
    write_files,
)
from stock_outcomes import (
    ACTS,
    FAILS,
    GIVES,
    LISTED,
    LISTS,
    NOTES,
    REFUSES,
    SAME,
    SAMES,
    SAVES,
    SILENT,
    Outcome,
)

# A smaller relative change is rounding.
LEAST = 1e-5


def stock_nodes(mappings: dict) -> dict[str, type]:
    """Return the nodes of core that take a MODEL, or make prompts of prompts, by name."""
    return {
        name: node
        for name, node in sorted(mappings.items())
        if is_of_core(node) and (takes_a_model(node) or changes_prompts(node))
    }


def is_of_core(node: type) -> bool:
    """Whether ComfyUI brings a node itself, and it asks no server."""
    module = getattr(node, "RELATIVE_PYTHON_MODULE", node.__module__)
    return module == "nodes" or module.startswith("comfy_extras.")


class Walker:
    """Runs nodes of core on the miniature in one ComfyUI, through its own executor."""

    def __init__(self, runtime):
        self.runtime = runtime
        self.mappings = {**runtime.nodes.NODE_CLASS_MAPPINGS}
        self.executor = runtime.new_executor()
        self.plain: dict[Clip, tuple] = {}
        runtime.nodes.NODE_CLASS_MAPPINGS.update(NODES)
        self.files = write_files(runtime.models)

    def close(self) -> None:
        """Take away the test-only nodes and files."""
        self.runtime.nodes.NODE_CLASS_MAPPINGS.clear()
        self.runtime.nodes.NODE_CLASS_MAPPINGS.update(self.mappings)
        for file in self.files:
            file.unlink()

    def look(self, name: str) -> Outcome:
        """Return what comes of a node on an Ovi clip."""
        node = self.mappings[name]
        graph = Materials(CLIPS.get(name, Clip()))
        under_test = graph.add(name, **graph.inputs_of(name, node))
        kinds = list(getattr(node, "RETURN_TYPES", ()))
        clip = sample(graph, under_test, kinds)
        before = self._files()
        result = self._run(graph, clip, under_test if kinds else None)
        if not result.ok:
            return refusal(name, result)
        if clip is None:
            values = [result.value(under_test[0], slot) for slot in range(len(kinds))]
            return given(name, kinds, values, self._files() - before)
        return self._compare(name, graph.clip, parts(result.value(clip[0])))

    def _compare(self, name: str, clip: Clip, made: tuple) -> Outcome:
        forwards = sum(map(len, CountForwards.calls)) / clip.steps
        changes = list(map(relative_error, made, self._plain(clip)))
        figures = (*(round_figure(x) for x in changes), forwards)
        if max(changes) > LEAST:
            return Outcome(ACTS, *figures, NOTES.get(name, ""))
        if name in SAME:
            return Outcome(SAMES, *figures, SAME[name])
        if name in LISTED:
            return Outcome(LISTS, *figures, LISTED[name])
        return Outcome(SILENT, *figures)

    def _plain(self, clip: Clip) -> tuple:
        if clip not in self.plain:
            graph = Materials(clip)
            link = sample(graph, graph.plain_model, ["MODEL"])
            self.plain[clip] = parts(self._run(graph, link).value(link[0]))
        return self.plain[clip]

    def _run(self, graph: Materials, *links: Link | None):
        graph.show(*(link for link in links if link))
        CountForwards.calls.clear()
        return self.runtime.run(graph.prompt, executor=self.executor)

    def _files(self) -> set[Path]:
        return {path for path in self.runtime.output.rglob("*") if path.is_file()}


def sample(graph: Materials, link: Link, kinds: list[str]) -> Link | None:
    """Add a sampler behind a node; None if it has nothing to sample with."""
    latent = {"latent_image": graph.links["LATENT"]}
    if "MODEL" in kinds:
        text, steps = graph.links["CONDITIONING"], graph.clip.steps
        model = [link[0], kinds.index("MODEL")]
        return graph.sample(model, text, **latent, steps=steps, cfg=CFG, seed=SEED)
    if kinds[:1] == ["CONDITIONING"]:
        negative = [link[0], 1] if len(kinds) > 1 else graph.negative
        model, steps = graph.plain_model, graph.clip.steps
        return graph.sample(
            model, link, **latent, negative=negative, steps=steps, cfg=CFG, seed=SEED
        )
    if kinds[:1] == ["LATENT"]:
        return link
    names = {"GUIDER": "guider", "SAMPLER": "sampler", "SIGMAS": "sigmas"}
    if not kinds or kinds[0] not in names:
        return None
    graph.links["GUIDER"] = graph.add(
        "CFGGuider",
        model=graph.plain_model,
        positive=graph.links["CONDITIONING"],
        negative=graph.negative,
        cfg=CFG,
    )
    inputs = {name: graph.links[kind] for kind, name in names.items()} | {names[kinds[0]]: link}
    return graph.add("SamplerCustomAdvanced", noise=graph.links["NOISE"], **inputs, **latent)


def given(name: str, kinds: list[str], values: list, files: set[Path]) -> Outcome:
    """The outcome of a node behind which nothing samples."""
    if files:
        return Outcome(SAVES)
    if values and all(value is not None for value in values):
        return Outcome(GIVES, says=", ".join(kinds))
    return Outcome(LISTS, says=LISTED[name]) if name in LISTED else Outcome(SILENT)


def refusal(name: str, result) -> Outcome:
    """The outcome of a node whose run ended in an error."""
    if name in LISTED:
        return Outcome(LISTS, says=LISTED[name])
    if is_in_words(result.details.get("traceback", [])):
        return Outcome(REFUSES, says=result.error.partition("): ")[2])
    return Outcome(FAILS, says=result.error)


def is_in_words(traceback: list[str]) -> bool:
    """Whether an error was raised on purpose, by this extension or by a module of core."""
    if not traceback:
        return False
    where, _, code = traceback[-1].strip().partition("\n")
    return "site-packages" not in where and code.strip().startswith("raise ")


def round_figure(x: float) -> float:
    """Two digits, and nothing of rounding errors."""
    return float(f"{x:.2g}") if x > LEAST else 0.0
