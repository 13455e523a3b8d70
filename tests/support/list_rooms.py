"""Reads which room of the extension imports which, and writes these arrows into
docs/architecture.md.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from core_names import REPOSITORY, shipped_files

PAGE = REPOSITORY / "docs" / "architecture.md"
GROUND = ("config", "log", "core_facts", "file_digest")
ROOMS = ("load", "network", "text", "latent", "sample", "decode", "save", "preview", "train")
ROOF = ("family", "core_patches", "template_links", "blueprints")
ARROW = re.compile(r"^ +(\w+) --> (\w+)$", re.MULTILINE)
BLOCK = re.compile(r"(?<=%% arrows begin\n).*?(?=    %% arrows end)", re.DOTALL)


def page() -> str:
    """Return the page with the arrows that the code has."""
    arrows = "".join(f"    {one} --> {other}\n" for one, other in sorted(read_arrows()))
    return BLOCK.sub(arrows, PAGE.read_text(encoding="utf-8"))


def drawn_arrows() -> set[tuple[str, str]]:
    """Return the arrows of the page's picture of rooms."""
    picture = PAGE.read_text(encoding="utf-8").partition("```mermaid")[2].partition("```")[0]
    return set(ARROW.findall(picture))


def read_arrows() -> set[tuple[str, str]]:
    """Return (room, room that it imports) but for what a room imports of itself."""
    arrows = {(room_of(one), room_of(other)) for one, other in read_imports()}
    return {(one, other) for one, other in arrows if one != other}


def read_imports() -> Iterator[tuple[str, str]]:
    """Yield (module, module that it imports), by full name below the repository."""
    modules = {module_name(path): path for path in shipped_files()}
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                yield from ((module, name) for name in _imported(node, package, modules))


def _imported(node: ast.ImportFrom, package: str, modules: dict[str, Path]) -> set[str]:
    """Return the modules that one `from ... import ...` loads: what it names, and from where."""
    parts = package.split(".") if package else []
    home = parts[: len(parts) - node.level + 1] + (node.module.split(".") if node.module else [])
    names = {".".join([*home, alias.name]) for alias in node.names}
    found = {name if name in modules else ".".join(home) for name in names}
    if missing := found - modules.keys():
        raise ImportError(f"{package} imports {missing}, which is not there")
    return found


def module_name(path: Path) -> str:
    """Return a file's module below the repository, `ovi_model.load.lora`; "" is the root."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """Return the box of the picture that a module is in.

    Raises ValueError for a module that is in none.
    """
    top, *inner = module.split(".")
    if top in ("", "nodes"):
        return top or "entry"
    name = inner[0] if inner else ""
    if name in (*ROOMS, *ROOF):
        return name
    if name in GROUND:
        return "ground"
    raise ValueError(f"{module} is in no room: see docs/architecture.md")
