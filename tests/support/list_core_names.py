"""Makes docs/compatibility.md: which ComfyUI was tried; what of core is changed, asked and used.

All of it is read from the code, so that the page is the same whichever ComfyUI runs this.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

import list_stock_nodes
from core_names import REPOSITORY, CoreNames, read_core_names

PAGE = REPOSITORY / "docs" / "compatibility.md"
FACT = re.compile(r'((?:# .+\n)+)([A-Z_]+) = hasattr\((\S+), "(\w+)"\)\n')
SINCE = re.compile(r"\bsince ([\d.]+)")
FROM = re.compile(r"\bFrom ([\d.]+) on\b")

HEAD = """# Which ComfyUI, and what of it is used

This extension needs ComfyUI 0.3.75 or later. It asks what the running ComfyUI has, never which
version it is. The numbers below are for readers.

| ComfyUI | what was tried |
|---|---|
| 0.3.75, the oldest | every test, at every change |
| 0.33.0, the newest that was tried by hand | the unit and parity tests |
| the newest release | every test, at every change, where `.github/workflows/test.yml` runs |
| its main branch | the same each night; it may fail |

Further down: [which of core's nodes work on Ovi](#which-of-cores-nodes-work-on-ovi).

*Core* is ComfyUI's own code. This page is written by `python tests/support/write_pages.py`, and
`tests/unit/test_compatibility.py` fails where it is not current or the running core lacks a name
that it lists.

"""

PATCHED = """## What is changed

One list in [`ovi_model/core_patches.py`](../ovi_model/core_patches.py) holds every change. Each
calls what was there before. All but those of `NestedTensor`, which only add what it lacks, act on
Ovi alone. None is made where core, or another copy of this extension, has registered Ovi
before.{briefly}
No change of core, but between its server and the page: `blueprints.py` takes ours out of the list
of blueprints where core lacks a node of them.

| name of core | on | why | newer core |
|---|---|---|---|
"""
REGISTERED = (
    "`comfy.supported_models.models`",
    "every core",
    "One entry is added, the last: core finds models in this list.",
    "would need an entry for Ovi",
)

# As long as a file changes something of core outside the list.
BRIEFLY = {
    "load/core_vae.py": "one class of core is another while core builds one VAE around it, and is "
    "put back at once",
}

FACTS = """
## What core is asked

From [`ovi_model/core_facts.py`](../ovi_model/core_facts.py): what a core lacks is done by this
extension, or refused in words.

| fact | core has it if there is | since | what it means |
|---|---|---|---|
"""

PROBED = """
These names are asked for with `hasattr`, `getattr` or `except ImportError` and may be absent:

| name | asked in |
|---|---|
"""

OVERRIDDEN = """
## What core calls

Members of core's classes that classes of this extension replace. If core gives one of them another
name, it calls its own, and nobody says so: the test looks for each of them in core. Not every core
knows all of them.

| class of core | members | in |
|---|---|---|
"""

USED = """
## What is used

Every name of core in `__init__.py`, `nodes/` and `ovi_model/`. What an object of core can do that
is handed over (a MODEL, a CLIP, a VAE) is not in it: the tests in `tests/graph` use that.

| module | names | used in |
|---|---|---|
"""


def page() -> str:
    """Return the whole page; core's modules must be importable."""
    names = read_core_names()
    probed = [(code(name), files(names.probed[name])) for name in sorted(names.probed)]
    sections = (
        (PATCHED.format(briefly=brief_changes()), patch_rows()),
        (FACTS, fact_rows()),
        (PROBED, probed),
        (OVERRIDDEN, overridden_rows(names)),
        (USED, used_rows(names)),
    )
    named = "".join(head + table(rows) for head, rows in sections)
    return HEAD + named + list_stock_nodes.section()


def patch_rows() -> Iterator[tuple[str, ...]]:
    """One row a change: what, on which cores, why, what a newer core does."""
    from comfyui_ovi.ovi_model.core_patches import PATCHES

    yield REGISTERED
    for patch in PATCHES:
        yield code(patch.place), cores_of(patch), patch.why, patch.newer


def brief_changes() -> str:
    """Say what is changed for a moment, outside the list."""
    model = REPOSITORY / "ovi_model"
    told = ""
    for file, what in BRIEFLY.items():
        if (model / file).is_file() and "setattr(" in (model / file).read_text(encoding="utf-8"):
            told += f" Beside the list, in {code(file)}: {what}."
    return told


def cores_of(patch) -> str:
    """Say on which cores a change is made, by what is said of it and of newer ones."""
    since, first = SINCE.search(patch.newer), FROM.search(patch.why)
    if since:
        return f"before {since[1]}"
    return f"from {first[1]} on" if first else "every core"


def fact_rows() -> Iterator[tuple[str, ...]]:
    """One row a fact, told by the comment above it: `# 0.8.0: what that core can do`."""
    source = (REPOSITORY / "ovi_model" / "core_facts.py").read_text(encoding="utf-8")
    for comment, fact, home, name in FACT.findall(source):
        since, _, meaning = re.sub(r"\s*# ", " ", f"\n{comment}").strip().partition(": ")
        yield code(fact), code(f"{home}.{name}"), since, meaning[:1].upper() + meaning[1:]


def overridden_rows(names: CoreNames) -> Iterator[tuple[str, ...]]:
    """One row a class of core."""
    members, users = defaultdict(list), defaultdict(set)
    for name in sorted(names.overridden):
        home, _, member = name.rpartition(".")
        members[home].append(member)
        users[home] |= names.overridden[name]
    for home, own in members.items():
        yield code(home), ", ".join(map(code, own)), files(users[home])


def used_rows(names: CoreNames) -> Iterator[tuple[str, ...]]:
    """One row a module of core; a name that only leads to others is left out."""
    groups, users = defaultdict(list), defaultdict(set)
    for name in sorted(names.used):
        module = names.module_of(name)
        users[module] |= names.used[name]
        is_on_the_way = any(other.startswith(f"{name}.") for other in names.used)
        if not is_on_the_way and name != module:
            groups[module].append(name.removeprefix(f"{module}."))
    for module in sorted(groups):
        yield code(module), ", ".join(map(code, groups[module])), files(users[module])


def code(name: str) -> str:
    """Set a name as code."""
    return f"`{name}`"


def files(paths: Iterable[str]) -> str:
    """List the files of this extension, short: without the folder of the model."""
    return ", ".join(code(path.removeprefix("ovi_model/")) for path in sorted(paths))


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows in Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
