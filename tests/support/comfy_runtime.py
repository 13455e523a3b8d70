"""Boots a real ComfyUI in this process and runs API-format workflows through its own validation and
executor.
"""

import asyncio
import importlib
import inspect
import logging
import pkgutil
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from comfy_server import link_extension, make_base_directory, validation_text
from find_comfyui import PACKAGE

Listener = Callable[[str, dict], None]


@dataclass
class Result:
    """What one run of a workflow left behind.

    error is empty when ok, else one readable text; details is ComfyUI's own error dict. outputs
    maps node ids to what the page would show. events are (name, data) pairs in order, as a browser
    would have received them, and
    ("preview", {"image": PIL image, "node": id}) for each latent preview.
    """

    ok: bool
    error: str = ""
    details: dict = field(default_factory=dict)
    interrupted: bool = False
    outputs: dict = field(default_factory=dict)
    events: list[tuple[str, dict]] = field(default_factory=list)
    caches: Any = None

    def values(self, node_id: str | int) -> list[list]:
        """Return a node's output slots, each a list with one entry per list item; the node must
        have run.
        """
        entry = self.caches.outputs.get(str(node_id))
        if inspect.isawaitable(entry):
            entry = asyncio.run(_wait_for(entry))
        if entry is None:
            raise KeyError(f"node {node_id} left no output: it did not run")
        return entry.outputs

    def value(self, node_id: str | int, slot: int = 0) -> Any:
        """Return the first entry of one output slot of a node."""
        return self.values(node_id)[slot][0]

    def named(self, name: str) -> list[dict]:
        """Return the data of every event of that name."""
        return [data for event, data in self.events if event == name]


class ComfyRuntime:
    """One ComfyUI, its node registry and folders, with this repository loaded as an extension; one
    per process.
    """

    def __init__(self, comfyui: Path, base: Path, repository: Path, cpu: bool = True):
        make_base_directory(base)
        extension = link_extension(repository, base / "custom_nodes")
        args = _parse_arguments(comfyui, base, cpu)

        # nodes.py puts comfy/ on sys.path, where a utils.py would hide the utils package: import
        # that one first.
        importlib.import_module("utils.extra_config")
        self.args = args
        self.base = base
        self.models = base / "models"
        self.output = base / "output"
        self.input = base / "input"
        self.folder_paths = importlib.import_module("folder_paths")
        self.execution = importlib.import_module("execution")
        self.nodes = importlib.import_module("nodes")
        self.model_management = importlib.import_module("comfy.model_management")
        self.events: list[tuple[str, dict]] = []
        self.listener: Listener | None = None
        self.server = self._make_server()
        self._report_progress()
        self.package = asyncio.run(self._load(extension))

    def run(
        self,
        prompt: dict,
        *,
        preview: str = "none",
        on_event: Listener | None = None,
        executor: Any = None,
        extra_data: dict | None = None,
    ) -> Result:
        """Validate and execute an API-format workflow.

        preview: none, auto, latent2rgb or taesd. on_event(name, data) is called for every event as
        it happens and may call interrupt(). executor: one from new_executor(), to keep its cache
        from run to run.
        """
        prompt_id = uuid.uuid4().hex
        self.events, self.listener = [], on_event
        valid, error, output_nodes, node_errors = asyncio.run(
            self.execution.validate_prompt(prompt_id, prompt, None)
        )
        if not valid or node_errors:
            details = {"error": error or {}, "node_errors": node_errors}
            return Result(False, validation_text(details), details)

        executor = executor or self.new_executor()
        self.args.preview_method = type(self.args.preview_method)(preview)
        extra_data = {"client_id": "tests", "preview_method": preview, **(extra_data or {})}
        self.server.last_prompt_id = prompt_id
        executor.execute(prompt, prompt_id, extra_data, output_nodes)
        self.listener = None
        return self._result(executor)

    def interrupt(self) -> None:
        """Ask the running workflow to stop, as the page's cancel button does."""
        self.nodes.interrupt_processing(True)

    def new_executor(self) -> Any:
        """Return a PromptExecutor with ComfyUI's classic cache, which keeps every output until it
        is dropped.
        """
        sizes = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        return self.execution.PromptExecutor(self.server, self.execution.CacheType.CLASSIC, sizes)

    def _result(self, executor: Any) -> Result:
        failures = {"execution_error", "execution_interrupted"}
        name, details = next(
            ((n, d) for n, d in executor.status_messages if n in failures), ("", {})
        )
        return Result(
            ok=executor.success and not name,
            error=_execution_text(name, details),
            details=details,
            interrupted=name == "execution_interrupted",
            outputs=executor.history_result.get("outputs", {}) if executor.success else {},
            events=self.events,
            caches=executor.caches,
        )

    def _record(self, event: str, data: dict) -> None:
        self.events.append((event, data))
        if self.listener:
            self.listener(event, data)

    def _make_server(self) -> Any:
        record = self._record

        class RecordingServer(importlib.import_module("server").PromptServer):
            """ComfyUI's server, not listening; what it would send to the page is kept."""

            def send_sync(self, event: str, data: Any, *_: Any) -> None:
                record(event, data)

        return RecordingServer(asyncio.new_event_loop())

    def _report_progress(self) -> None:
        """Do what main.py's progress hook does: stop when interrupted, then tell the page."""
        from comfy.utils import set_progress_bar_global_hook
        from comfy_execution.progress import get_progress_state
        from comfy_execution.utils import get_executing_context

        def hook(
            value: float, total: float, preview: Any, node_id: str | None = None, **_: Any
        ) -> None:
            context = get_executing_context()
            node_id = node_id or (context.node_id if context else self.server.last_node_id)
            self.model_management.throw_exception_if_processing_interrupted()
            get_progress_state().update_progress(node_id, value, total, preview)
            if preview is not None:
                self._record("preview", {"image": preview[1], "node": node_id})
            self._record("progress", {"value": value, "max": total, "node": node_id})

        set_progress_bar_global_hook(hook)

    async def _load(self, extension: Path) -> ModuleType:
        await self.nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
        with _collect_warnings() as warnings:
            loaded = await self.nodes.load_custom_node(str(extension), module_parent="custom_nodes")
        if not loaded:
            raise ImportError("ComfyUI could not load this extension:\n" + "\n".join(warnings))
        return _alias_package(extension / "__init__.py")


class _collect_warnings(logging.Handler):  # noqa: N801
    """Collect the texts of warnings and errors logged while the context is open."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger().addHandler(self)
        return self.texts

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


def _parse_arguments(comfyui: Path, base: Path, cpu: bool) -> Any:
    """Set what must be set before anything of ComfyUI but its argument parser is imported."""
    sys.path.insert(0, str(comfyui))
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = cpu
    args.base_directory = str(base)
    args.database_url = f"sqlite:///{base / 'user' / 'comfyui.db'}"
    args.disable_api_nodes = True
    return args


def _alias_package(file: Path) -> ModuleType:
    """Make every library module of the extension that was loaded from a file importable as
    comfyui_ovi too.
    """
    package = next(
        module
        for module in list(sys.modules.values())
        if getattr(module, "__file__", None) == str(file)
    )
    for folder in ("nodes", "ovi_model"):
        folders = [str(Path(path) / folder) for path in package.__path__]
        for module in pkgutil.walk_packages(folders, f"{package.__name__}.{folder}."):
            importlib.import_module(module.name)
    loaded = [
        name
        for name in sys.modules
        if name == package.__name__ or name.startswith(f"{package.__name__}.")
    ]
    for name in loaded:
        sys.modules[PACKAGE + name.removeprefix(package.__name__)] = sys.modules[name]
    return package


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


def _execution_text(name: str, details: dict) -> str:
    if not name:
        return ""
    message = details.get("exception_message", "interrupted").strip()
    return f"{details['node_type']} (node {details['node_id']}): {message}"
