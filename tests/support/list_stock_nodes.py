"""The table of core's nodes that take a MODEL or prompts, in docs/compatibility.md. Its figures
are in docs/stock_nodes.json, which `write_stock_nodes.py` measures.
"""

import json
from collections import Counter
from dataclasses import asdict

from core_names import REPOSITORY
from stock_outcomes import WORDS, Outcome

FILE = REPOSITORY / "docs" / "stock_nodes.json"
Core = dict[str, Outcome]

HEAD = """
## Which of core's nodes work on Ovi

Every node of core with an input for a MODEL, and every one that makes prompts of prompts and
nothing else, run on the miniature: a clip of 64 x 64 and 5 frames, 2 steps of *euler*, cfg 4
(longer where a node needs more to show). *Picture* and *sound* are the
changes of the clip against the plain one, relative to its size; *forwards* are those of a step,
where each prompt counts one: plainly 2. Settings that would change nothing are set to others, see
`tests/support/stock_inputs.py`. Nodes that merge models by the names of another one let their first
number stand for every weight that they do not name.

`python tests/support/write_stock_nodes.py` measures this table, `tests/graph/test_stock_nodes.py`
holds it to the code.

"""


def read() -> dict[str, Core]:
    """Return what was measured: for each version of core, each node's outcome."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        core: {node: Outcome(**fields) for node, fields in nodes.items()}
        for core, nodes in found.items()
    }


def write(cores: dict[str, Core]) -> None:
    """Store what was measured, the oldest core first."""
    stored = {
        core: {node: _fields(outcome) for node, outcome in sorted(cores[core].items())}
        for core in sorted(cores, key=_version)
    }
    FILE.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def section() -> str:
    """Return this part of the page."""
    cores = read()
    versions = sorted(cores, key=_version, reverse=True)
    return HEAD + _counts(cores, versions) + "\n" + _table(cores, versions)


def _counts(cores: dict[str, Core], versions: list[str]) -> str:
    counted = [Counter(each.outcome for each in cores[core].values()) for core in versions]
    rows = [["outcome", *versions, "means"], ["---"] * (len(versions) + 2)]
    rows += [[kind, *(count[kind] for count in counted), words] for kind, words in WORDS.items()]
    rows += [["in all", *(count.total() for count in counted), ""]]
    return "".join(map(_row, rows))


def _table(cores: dict[str, Core], versions: list[str]) -> str:
    head = ["node", *versions, "picture", "sound", "forwards", "says, or why"]
    nodes = {node: newest(cores, versions, node) for core in versions for node in cores[core]}
    order = list(WORDS)
    names = sorted(nodes, key=lambda node: (order.index(nodes[node].outcome), node.lower()))
    rows = [head, ["---"] * len(head)]
    for name in names:
        outcomes = [cores[core].get(name) for core in versions]
        kinds = [outcome.outcome if outcome else "absent" for outcome in outcomes]
        figures = [nodes[name].picture, nodes[name].sound, nodes[name].forwards]
        figures = ["" if figure is None else f"{figure:g}" for figure in figures]
        rows.append([f"`{name}`", *kinds, *figures, _says(outcomes, versions)])
    return "".join(map(_row, rows))


def newest(cores: dict[str, Core], versions: list[str], node: str) -> Outcome:
    """Return the outcome of a node on the newest core that has it."""
    return next(cores[core][node] for core in versions if node in cores[core])


def _says(outcomes: list[Outcome | None], versions: list[str]) -> str:
    """What is said, with the core that says it where another one says something else."""
    said = {
        version: outcome.says if outcome else None
        for version, outcome in zip(versions, outcomes, strict=True)
    }
    different = {says for says in said.values() if says is not None}
    if len(different) == 1:
        return different.pop()
    return " ".join(f"{version}: {says}" for version, says in said.items() if says)


def _row(cells: list) -> str:
    return (
        "| "
        + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
        + " |\n"
    )


def _fields(outcome: Outcome) -> dict:
    return {name: value for name, value in asdict(outcome).items() if value not in (None, "")}


def _version(core: str) -> list[int]:
    return [int(part) for part in core.split(".")]
