"""Every name that a file takes from another file here is there, also where it is taken late."""

import ast
import importlib.util
import subprocess
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "comfyui_ovi"


def python_files():
    listed = subprocess.check_output(["git", "ls-files", "*.py"], cwd=REPOSITORY, text=True)
    return [Path(name) for name in listed.splitlines()]


def module_of(path):
    parts = path.with_suffix("").parts
    return ".".join([PACKAGE, *parts[: -1 if path.stem == "__init__" else None]])


def package_of(path):
    return module_of(path) if path.stem == "__init__" else module_of(path).rpartition(".")[0]


FILES = {module_of(path): path for path in python_files()} if (REPOSITORY / ".git").exists() else {}


@cache
def names_in(module):
    """What a module binds anywhere, and the modules inside it."""
    tree = ast.parse((REPOSITORY / FILES[module]).read_text())
    names = {other.rpartition(".")[2] for other in FILES if other.rpartition(".")[0] == module}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
    return names


def missing_in(path):
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        dotted = "." * node.level + (node.module or "")
        module = importlib.util.resolve_name(dotted, package_of(path)) if node.level else dotted
        if module in FILES:
            absent = {alias.name for alias in node.names} - names_in(module) - {"*"}
            yield from (f"{path}:{node.lineno}: {module} has no {name}" for name in absent)
        elif module.split(".")[0] == PACKAGE:
            yield f"{path}:{node.lineno}: there is no {module}"


@pytest.mark.skipif(not FILES, reason="git lists the files, and this is no clone")
def test_every_name_that_is_imported_is_there():
    assert [fault for path in FILES.values() for fault in missing_in(path)] == []


def test_a_name_that_is_not_there_is_told(monkeypatch, tmp_path):
    (tmp_path / "one.py").write_text("from .two import there, gone\n")
    (tmp_path / "two.py").write_text("there = 1\n")
    monkeypatch.setattr(f"{__name__}.REPOSITORY", tmp_path)
    monkeypatch.setattr(
        f"{__name__}.FILES", {f"{PACKAGE}.{name}": Path(f"{name}.py") for name in ("one", "two")}
    )
    names_in.cache_clear()
    assert list(missing_in(Path("one.py"))) == ["one.py:1: comfyui_ovi.two has no gone"]
    names_in.cache_clear()
