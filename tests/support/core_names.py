"""Which names of ComfyUI this extension uses, read from its source text: nothing is imported."""

import ast
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = (
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass
class CoreNames:
    """Full names of core, each with the files that use it, as paths in the repository."""

    modules: set[str] = field(default_factory=set)  # that an import statement names
    used: dict[str, set[str]] = field(default_factory=dict)
    probed: dict[str, set[str]] = field(default_factory=dict)  # asked for: may be absent
    overridden: dict[str, set[str]] = field(default_factory=dict)  # members of core's classes

    def module_of(self, name: str) -> str:
        """Return the longest module, of those that are imported, which the name is part of."""
        holders = (module for module in self.modules if f"{name}.".startswith(f"{module}."))
        return max(holders, key=len)


def shipped_files() -> list[Path]:
    """Return the source files that run in ComfyUI."""
    folders = (REPOSITORY / "nodes", REPOSITORY / "ovi_model")
    return [REPOSITORY / "__init__.py", *sorted(p for f in folders for p in f.rglob("*.py"))]


def read_core_names() -> CoreNames:
    """Collect the names that the shipped files use."""
    names = CoreNames()
    for path in shipped_files():
        file = path.relative_to(REPOSITORY).as_posix()
        read_source(path.read_text(encoding="utf-8"), file, names)
    return names


def read_source(text: str, file: str, names: CoreNames) -> None:
    """Add the names that one file uses."""
    _Reader(names, file).visit(ast.parse(text))


class _Reader(ast.NodeVisitor):
    """Follows imports, plain assignments and attributes of one file, scope by scope."""

    def __init__(self, names: CoreNames, file: str):
        self.names = names
        self.file = file
        self.known: ChainMap[str, str] = ChainMap()  # local name to full name

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if _is_core(alias.name):
                self.names.modules.add(alias.name)
                top = alias.name.partition(".")[0]
                self.known[alias.asname or top] = alias.name if alias.asname else top

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if not node.level and _is_core(node.module):
            self.names.modules.add(node.module)
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                self.known[alias.asname or alias.name] = full
                self._note(self.names.used, full)

    def visit_Try(self, node: ast.Try) -> None:
        """What is imported in the care of `except ImportError` may be absent."""
        if any(ast.unparse(h.type) == "ImportError" for h in node.handlers if h.type):
            for part in node.body:
                for alias in part.names if isinstance(part, ast.Import) else ():
                    self._note(self.names.probed, alias.name)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            for name, value in _pairs(target, node.value):
                # A name that is given something else is core's no more.
                self.known[name] = self._full_name(value) or ""

    def visit_Attribute(self, node: ast.Attribute) -> None:
        full = self._full_name(node)
        if full is None:
            self.generic_visit(node)
        elif full not in self.names.modules:
            self._note(self.names.used, full.partition(".__")[0])

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            home, name = self._full_name(node.args[0]), node.args[1]
            if home and isinstance(name, ast.Constant):
                self._note(self.names.probed, f"{home}.{name.value}")
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in filter(None, map(self._full_name, node.bases)):
            for member in _members(node):
                self._note(self.names.overridden, f"{base}.{member}")
        self._visit_scope(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_scope(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_scope(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_scope(node)

    def _visit_scope(self, node: ast.AST) -> None:
        self.known = self.known.new_child()
        if isinstance(node, FUNCTIONS):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            self.known.update({argument.arg: "" for argument in arguments})
        self.generic_visit(node)
        self.known = self.known.parents

    def _full_name(self, node: ast.AST) -> str | None:
        """Return the full name of what an expression such as `comfy.utils.ProgressBar` names."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id) or None
        if isinstance(node, ast.Attribute):
            home = self._full_name(node.value)
            return f"{home}.{node.attr}" if home else None
        return None

    def _note(self, where: dict[str, set[str]], name: str) -> None:
        where.setdefault(name, set()).add(self.file)


def _is_core(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield name and value of a plain assignment, also of several at once."""
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, its_value in zip(target.elts, value.elts, strict=False):
            yield from _pairs(one, its_value)


def _members(node: ast.ClassDef) -> Iterator[str]:
    """Yield the names a class body defines, but for private ones."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            names = [part.name]
        elif isinstance(part, ast.AnnAssign):
            names = [part.target.id]
        elif isinstance(part, ast.Assign):
            names = [target.id for target in part.targets]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))
