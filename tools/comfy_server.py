"""Starts ComfyUI's real server on a free port with this repository as its extension, and always
stops it.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
EXTENSION = "comfyui-ovi"
TIED = Path(__file__).with_name("tied_program.py")
FOLDERS = ("input", "output", "temp", "custom_nodes", "models", "user/default/workflows")
CPU_FLAGS = ("--cpu", "--use-pytorch-cross-attention")
QUIET_PAGE = {
    "Comfy.TutorialCompleted": True,
    "Comfy.OnboardingCoachmarks.Seen": ["appMode"],
    "Comfy.Minimap.Visible": False,
    "Comfy.Notification.ShowVersionUpdates": False,
    # ms between the presses of a double-click: a page that draws slowly sees them late.
    "Comfy.Pointer.DoubleClickTime": 5_000,
}


class ServerError(Exception):
    """The server did not start, stopped, or refused a request."""


def make_base_directory(base: Path) -> None:
    """Make the folders ComfyUI wants under its --base-directory, and settings for a page without
    tours.
    """
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    if not settings.exists():
        settings.write_text(json.dumps(QUIET_PAGE))


def link_extension(repository: Path, custom_nodes: Path) -> Path:
    """Make the repository visible to ComfyUI as custom_nodes/comfyui-ovi: a link, or a copy where
    links fail.
    """
    target = custom_nodes / EXTENSION
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(repository, target_is_directory=True)
    except OSError:
        ignored = shutil.ignore_patterns(".*", "__pycache__", "demo_output", "tests")
        shutil.copytree(repository, target, ignore=ignored)
    return target


@dataclass
class Server:
    """A running ComfyUI server: where it listens, its process, and the file its log goes to."""

    url: str
    process: subprocess.Popen
    log: Path

    def get(self, path: str) -> dict:
        """Return the JSON answer to a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=120) as response:
            return json.load(response)

    def post(self, path: str, body: dict) -> dict:
        """Return the JSON answer to a POST request; raises ServerError with the server's words when
        it refuses.
        """
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.loads(response.read() or "{}")
        except urllib.error.HTTPError as error:
            raise ServerError(refusal_text(error.read().decode(errors="replace"))) from error

    def run(self, prompt: dict, seconds: float = 900) -> dict:
        """Run an API-format workflow to its end; return its outputs by node id.

        Raises ServerError if a node fails, the workflow takes longer, or the server stops.
        """
        record = self.record(self.post("/prompt", {"prompt": prompt})["prompt_id"], seconds)
        if record["status"]["status_str"] != "success":
            raise ServerError(f"the workflow failed:\n{self.log_tail()}")
        return record["outputs"]

    def record(self, prompt_id: str, seconds: float = 300) -> dict:
        """Wait for what the server keeps of a workflow that has ended; it tells of the end before
        it keeps it.

        Raises ServerError if that takes longer or the server stops.
        """
        end = time.monotonic() + seconds
        while not (record := self.get(f"/history/{prompt_id}").get(prompt_id)):
            if self.process.poll() is not None or time.monotonic() > end:
                raise ServerError(f"the workflow did not end:\n{self.log_tail()}")
            time.sleep(0.1)
        return record

    def log_tail(self, lines: int = 25) -> str:
        """Return the last lines of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def flags_of_page(folder: Path | None) -> list[str]:
    """Return the flags for a page's static folder, if it is not the one that ComfyUI comes with;
    raises ServerError if there is none in it.
    """
    if folder is None:
        return []
    if not (folder / "index.html").is_file():
        raise ServerError(f"{folder} holds no page: there is no index.html in it")
    return ["--front-end-root", str(folder.resolve())]


def validation_text(answer: dict) -> str:
    """Return one line per fault in ComfyUI's answer to a workflow it did not accept as it is."""
    error = answer.get("error") or {}
    lines = [f"{error.get('message', '')} {error.get('details', '')}".strip()]
    for node_id, node in (answer.get("node_errors") or {}).items():
        for fault in node["errors"]:
            lines.append(
                f"{node['class_type']} (node {node_id}): {fault['message']}: {fault['details']}"
            )
    return "\n".join(line for line in lines if line)


def refusal_text(body: str) -> str:
    """Return what a refused request says: the faults of a workflow, or the body as it came."""
    try:
        return validation_text(json.loads(body)) or body
    except ValueError:
        return body


@contextmanager
def running_server(
    comfyui: Path,
    base: Path,
    *,
    extension: Path = REPOSITORY,
    cpu: bool = True,
    seconds: float = 600,
    flags: Sequence[str] = (),
    python: Path | None = None,
) -> Iterator[Server]:
    """Yield a server that answers; whatever happens inside, it is stopped afterwards. Should this
    process be killed, the server ends too.

    base: its models, inputs, outputs and log lie there. extension: the folder that is seen as this
    extension. flags: more of ComfyUI's own. python: the one that runs ComfyUI, if it is not this
    one. Raises ServerError when it is not up within the given seconds or when ComfyUI could not
    import this extension.
    """
    make_base_directory(base)
    link_extension(extension, base / "custom_nodes")
    port = _free_port()
    command = [
        str(python or sys.executable),
        str(TIED),
        str(comfyui / "main.py"),
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += [
        "--base-directory",
        str(base),
        "--database-url",
        f"sqlite:///{(base / 'user/comfyui.db').as_posix()}",
    ]
    command += [
        "--disable-auto-launch",
        "--disable-api-nodes",
        "--dont-print-server",
        *(CPU_FLAGS if cpu else []),
        *flags,
    ]
    log = base / "server.log"
    # A folder that this process imports from may hold a `nodes`, which is also a file of ComfyUI.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            server = Server(f"http://127.0.0.1:{port}", process, log)
            _wait_until_up(server, seconds)
            yield server
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(server: Server, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not _answers(server):
        if server.process.poll() is not None:
            raise ServerError(
                f"ComfyUI stopped with status {server.process.returncode}:\n{server.log_tail()}"
            )
        if time.monotonic() > end:
            raise ServerError(
                f"ComfyUI did not answer within {seconds:.0f} s:\n{server.log_tail()}"
            )
        time.sleep(0.2)
    log = server.log.read_text(errors="replace")
    if any("IMPORT FAILED" in line and EXTENSION in line for line in log.splitlines()):
        raise ServerError(f"ComfyUI could not import this extension:\n{server.log_tail(60)}")


def _answers(server: Server) -> bool:
    try:
        return bool(server.get("/system_stats"))
    except OSError:
        return False


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdin.close()
