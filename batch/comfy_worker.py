"""A headless ComfyUI that is kept running and makes one clip after the other."""

from __future__ import annotations

import copy
import json
import os
import platform
import re
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from comfy_server import EXTENSION, REPOSITORY, Server, ServerError, running_server

FILE_LISTS = ("images", "gifs", "videos", "audio", "3d", "files")
FIRST_ANSWER_SECONDS = 1200
POLL_SECONDS = 0.1


class TooLongError(Exception):
    """A job took longer than it may."""


@dataclass(frozen=True)
class Setup:
    """What every worker starts ComfyUI with. seconds: the longest that a job may take."""

    python: Path
    comfyui: Path
    cpu: bool
    seconds: float
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ready:
    """A worker that can be given jobs, and where it runs."""

    host: str
    worker_process: int
    comfyui_process: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What came of a job: files (suffix, content), or the error. lost: ComfyUI ended under it."""

    files: tuple[tuple[str, bytes], ...] = ()
    error: str = ""
    lost: bool = False
    seconds: float = 0.0
    comfyui_process: int = 0
    host: str = ""


class ComfyWorker:
    """Starts ComfyUI when it is first needed, and anew when it has ended."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self._stack = ExitStack()
        self._server: Server | None = None
        self._base = Path()

    def start(self) -> Ready:
        """Start ComfyUI; raises ServerError with the end of its log when it does not come up."""
        begin = time.monotonic()
        server = self._running()
        seconds = time.monotonic() - begin
        return Ready(platform.node(), os.getpid(), server.process.pid, seconds)

    def stop(self) -> None:
        """End ComfyUI and remove its folder."""
        self._stack.close()
        self._server = None

    def faults(self, prompts: list[dict], names: list[str]) -> list[str]:
        """Return what ComfyUI and its nodes say against each prompt, without running any.

        names: of files that its input folder will have by then.
        """
        server = self._running()
        known = server.get("/object_info")
        files = [self._base / "input" / name for name in names]
        for file in files:
            file.touch()
        told = [find_faults(server, known, prompt) for prompt in prompts]
        for file in files:
            file.unlink()
        return told

    def run(self, prompt: dict, files: dict[str, bytes], tail_frames: int = 0) -> Outcome:
        """Run a prompt to its end; what it fails of is told, not raised.

        files: to be put into ComfyUI's input folder. tail_frames: if not 0, the pictures and the
        sound that are saved become two files, the shot and its last frames, see shot_file.
        """
        begin = time.monotonic()
        process, made, lost = 0, [], False
        try:
            server = self._running()
            process = server.process.pid
            before = files_in(self._base / "output")
            for name, content in files.items():
                (self._base / "input" / name).write_bytes(content)
            record = self._record_of(server, prompt, begin + self._setup.seconds)
            error = error_of(record)
            made = [] if error else self._take(record, before, tail_frames)
            for name in files:
                (self._base / "input" / name).unlink()
            if not error and not made:
                error = "the workflow saved no file: it needs a node that saves: 'Ovi Save Video'"
        except TooLongError as problem:
            error = str(problem)
            self.stop()  # it may go on with it for ever: the next job gets a new one
        except (ServerError, OSError) as problem:
            error, lost = f"ComfyUI ended while it made the clip: {problem}", True
            self.stop()
        seconds = time.monotonic() - begin
        return Outcome(tuple(made), error, lost, seconds, process, platform.node())

    def _record_of(self, server: Server, prompt: dict, latest: float) -> dict:
        """Run a prompt and return what ComfyUI keeps of it, or raise TooLongError.

        A busy machine may leave a request without an answer: it is made again.
        """
        prompt_id = server.post("/prompt", {"prompt": prompt})["prompt_id"]
        while time.monotonic() < latest:
            try:
                if record := server.get(f"/history/{prompt_id}").get(prompt_id):
                    return record
            except OSError:
                if server.process.poll() is not None:
                    raise
            time.sleep(POLL_SECONDS)
        raise TooLongError(f"it took longer than {self._setup.seconds:.0f} s (--job-seconds)")

    def _running(self) -> Server:
        if self._server is None or self._server.process.poll() is not None:
            self._stack.close()
            self._base = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ovi-")))
            link_users_folders(self._setup.comfyui, self._base)
            self._server = self._stack.enter_context(
                running_server(
                    self._setup.comfyui,
                    self._base,
                    cpu=self._setup.cpu,
                    seconds=FIRST_ANSWER_SECONDS,
                    flags=self._setup.flags,
                    python=self._setup.python,
                )
            )
        return self._server

    def _take(self, record: dict, before: list[Path], tail_frames: int) -> list[tuple[str, bytes]]:
        """Read what was saved, in the order of nodes, and remove what earlier jobs saved.

        What this one saved stays: ComfyUI shows a file again, and does not save it again, where the
        next workflow asks for the same.
        """
        saved = saved_files(record, self._base / "output", before)
        paths = self._as_shot(saved, tail_frames) if saved and tail_frames else saved
        made = [(path.suffix, path.read_bytes()) for path in paths]
        for path in {*before} - {*saved}:
            path.unlink()
        return made

    def _as_shot(self, saved: list[Path], tail_frames: int) -> list[Path]:
        folder = self._base / "temp"
        names = json.dumps([str(path) for path in saved])
        run_tool(self._setup.python, "shot_file.py", [str(folder), str(tail_frames)], names)
        return [folder / "1.mkv", folder / "2.mkv"]


def run_tool(python: Path, script: str, arguments: list[str], given: str) -> str:
    """Run a script of this folder with ComfyUI's Python, which has PyAV; return what it prints."""
    command = [str(python), str(Path(__file__).with_name(script)), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise ServerError(f"{script}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def link_users_folders(comfyui: Path, base: Path) -> None:
    """Show a ComfyUI's models and custom nodes under another base folder."""
    base.joinpath("custom_nodes").mkdir(exist_ok=True)
    if (comfyui / "models").is_dir():
        base.joinpath("models").symlink_to(comfyui / "models", target_is_directory=True)
    for node in sorted((comfyui / "custom_nodes").glob("*")):
        is_other = node.name != EXTENSION and node.resolve() != REPOSITORY.resolve()
        if is_other and not node.name.startswith(("__", ".")):
            base.joinpath("custom_nodes", node.name).symlink_to(node)


def files_in(folder: Path) -> list[Path]:
    """Return every file below a folder, by name."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def saved_files(record: dict, output: Path, before: list[Path]) -> list[Path]:
    """Return what a workflow saved: first what its nodes show, in their order, then what they save
    and do not show, as a format that no page plays.

    output: ComfyUI's own folder; before: what lay there before the workflow ran.
    """
    shown = [
        output / entry["subfolder"] / entry["filename"]
        for _, shown_by_node in sorted(record["outputs"].items())
        for kind in FILE_LISTS
        for entry in shown_by_node.get(kind, ())
        if isinstance(entry, dict) and entry.get("type") == "output"
    ]
    there = files_in(output)
    new = [path for path in there if path not in before]
    return list(dict.fromkeys([*(path for path in shown if path in there), *new]))


def error_of(record: dict) -> str:
    """Return the node's own sentence of a workflow that failed, else nothing."""
    status = record["status"]
    if status["status_str"] == "success":
        return ""
    for name, data in status.get("messages", ()):
        if name == "execution_error":
            words = data["exception_message"].strip()
            return f"{data['node_type']} (node {data['node_id']}): {words}"
    return "the workflow was interrupted"


def find_faults(server: Server, known: dict, prompt: dict) -> str:
    """Return what ComfyUI's own check says against a prompt, without running it; empty if nothing.

    ComfyUI runs what passes its check. So each node that saves lacks an input in what is asked,
    and that one fault is not told. Nodes that save and take nothing but connections are left out.
    """
    prompt = copy.deepcopy(prompt)
    lacking = {}
    for node, what in list(prompt.items()):
        about = known.get(what["class_type"])
        if about is None:
            return f"ComfyUI has no node '{what['class_type']}' (node {node}): install it first."
        if about["output_node"]:
            typed = [
                name
                for name in about["input"].get("required", {})
                if not isinstance(what["inputs"].get(name, []), list)
            ]
            if typed:
                lacking[node] = typed[0]
                del what["inputs"][typed[0]]
            else:
                del prompt[node]
    if not lacking:
        return ""
    try:
        server.post("/prompt", {"prompt": prompt})
    except ServerError as error:
        return _other_faults(str(error), prompt, lacking)
    raise ServerError("ComfyUI ran a workflow that lacks an input: it cannot be asked for faults")


def _other_faults(told: str, prompt: dict, lacking: dict[str, str]) -> str:
    expected = {
        f"{prompt[node]['class_type']} (node {node}): Required input is missing: {name}"
        for node, name in lacking.items()
    }
    of_nodes = [line for line in told.splitlines() if re.match(r"\S+ \(node \S+\): ", line)]
    if not of_nodes:
        return told
    others = [line for line in of_nodes if line not in expected]
    words = [re.sub(r"Custom validation failed for node: \w+ - ", "", line) for line in others]
    return "; ".join(dict.fromkeys(words))
