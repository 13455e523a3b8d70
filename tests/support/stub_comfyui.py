"""A ComfyUI of one node, `Say`, which saves what its process knows of itself: for tests of who runs
where, which need no clip.

`Say` waits until as many ComfyUI as `together` says have begun beside this one, then `seconds`.
"""

import json
import os
import shutil
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

NODE = {"class_type": "Say", "inputs": {"text": "", "together": 1, "seconds": 0.0}}
ABOUT = {"Say": {"output_node": True, "input": {"required": dict.fromkeys(NODE["inputs"])}}}


def install(folder: Path) -> Path:
    """Make a folder that is taken for ComfyUI's; return it."""
    (folder / "comfy").mkdir(parents=True)
    shutil.copy(__file__, folder / "main.py")
    (folder / "requirements.txt").touch()
    return folder


def write_workflow(path: Path) -> Path:
    """Write a workflow of the one node, in API format."""
    path.write_text(json.dumps({"1": NODE}))
    return path


def missing(prompt: dict) -> dict:
    """Return ComfyUI's own words for each input that a prompt lacks, empty if there are all."""
    lacking = {
        node: [name for name in NODE["inputs"] if name not in what["inputs"]]
        for node, what in prompt.items()
    }
    return {
        node: {
            "class_type": "Say",
            "errors": [{"message": "Required input is missing", "details": name} for name in names],
        }
        for node, names in lacking.items()
        if names
    }


class Handler(BaseHTTPRequestHandler):
    """The few addresses of ComfyUI's server that a worker asks."""

    base: ClassVar[Path]
    history: ClassVar[dict[str, dict]] = {}

    def do_GET(self) -> None:
        """Answer /system_stats, /object_info and /history/ID."""
        if self.path.startswith("/history/"):
            name = self.path.rpartition("/")[2]
            self._answer({name: self.history[name]} if name in self.history else {})
        else:
            self._answer(ABOUT)

    def do_POST(self) -> None:
        """Begin a prompt, or refuse it."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        prompt = json.loads(body)["prompt"]
        if faults := missing(prompt):
            self._answer({"error": {"message": "refused"}, "node_errors": faults}, 400)
            return
        name = f"{time.monotonic_ns()}"
        threading.Thread(target=self._run, args=(name, prompt), daemon=True).start()
        self._answer({"prompt_id": name})

    def _run(self, name: str, prompt: dict) -> None:
        ((node, what),) = prompt.items()
        while len(list(self.base.parent.glob("*/begun"))) < what["inputs"]["together"]:
            time.sleep(0.02)
        time.sleep(what["inputs"]["seconds"])
        said = {"text": what["inputs"]["text"], "flags": sys.argv[1:]}
        said["cards"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        (self.base / "output" / f"{name}.json").write_text(json.dumps(said))
        saved = [{"filename": f"{name}.json", "subfolder": "", "type": "output"}]
        outputs = {node: {"files": saved}}
        self.history[name] = {"status": {"status_str": "success"}, "outputs": outputs}

    def _answer(self, body: dict, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing of requests."""


def main() -> None:
    """Serve at the port that is asked for."""
    given = dict(zip(sys.argv, sys.argv[1:], strict=False))
    Handler.base = Path(given["--base-directory"])
    (Handler.base / "begun").touch()
    ThreadingHTTPServer(("127.0.0.1", int(given["--port"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
