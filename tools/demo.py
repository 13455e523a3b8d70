"""Makes one clip with its sound in a real ComfyUI server, draws its contact sheet and judges it.

The miniature that lies in this repository makes it. Another workflow is run with small random
checkpoints instead.
"""

import argparse
import asyncio
import importlib
import json
import signal
import sys
import time
import uuid
from pathlib import Path
from types import ModuleType

import aiohttp
import torch
from comfy_server import (
    REPOSITORY,
    Server,
    ServerError,
    make_base_directory,
    running_server,
    validation_text,
)
from contact_sheet import Clip, draw_sheet, read_clip
from find_comfyui import import_extension

import_extension()
from comfyui_ovi.miniature.training.asked import (  # noqa: E402
    asked_scene,
    describe,
    faults,
    judge_file,
    parse_scene,
    uses_miniature,
    with_request,
)
from comfyui_ovi.miniature.training.world import Scene  # noqa: E402

WORKFLOW = REPOSITORY / "workflows" / "api" / "Ovi_13_All_nodes_miniature.json"
# Its small checkpoints stand in for the files of a workflow that is not made with the miniature.
SUPPORT = REPOSITORY / "tests" / "support"
VIDEO_SUFFIXES = (".mp4", ".webm", ".mov")
BAR_WIDTH = 32


class DemoError(Exception):
    """The clip was not made or is not as it should be; the message says why."""


class ProgressBar:
    """One line that shows the running node and its step; without a terminal, one line per node."""

    def __init__(self, prompt: dict):
        self.prompt = prompt
        self.node = ""

    def show(self, node: str, step: int = 0, total: int = 1) -> None:
        """Draw the bar for step of total of a node, given by its id."""
        name = self.prompt.get(node, {}).get("_meta", {}).get("title") or self.prompt.get(
            node, {}
        ).get("class_type", node)
        if sys.stderr.isatty():
            filled = round(BAR_WIDTH * step / max(total, 1))
            bar = "#" * filled + "-" * (BAR_WIDTH - filled)
            print(f"\r\033[K[{bar}] {step}/{total} {name}", end="", file=sys.stderr, flush=True)
        elif node != self.node:
            print(f"  {name}", file=sys.stderr, flush=True)
        self.node = node

    def close(self) -> None:
        """Leave the line."""
        if self.node and sys.stderr.isatty():
            print(file=sys.stderr)


async def run_prompt(server: Server, prompt: dict, bar) -> dict:
    """Queue a workflow, show its progress and return ComfyUI's record of it; raises DemoError when
    a node fails.

    bar: what shows it, a ProgressBar or something like it.
    """
    client = uuid.uuid4().hex
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/ws?clientId={client}", max_msg_size=0) as socket,
    ):
        answer = server.post("/prompt", {"prompt": prompt, "client_id": client})
        if answer["node_errors"]:
            raise DemoError(validation_text(answer))
        prompt_id = answer["prompt_id"]
        try:
            await follow(socket, prompt_id, bar)
        finally:
            bar.close()
    return server.record(prompt_id)


async def follow(socket: aiohttp.ClientWebSocketResponse, prompt_id: str, bar: ProgressBar) -> None:
    """Read the server's messages until the workflow has ended."""
    async for message in socket:
        if message.type != aiohttp.WSMsgType.TEXT:
            continue
        event = json.loads(message.data)
        name, data = event["type"], event["data"]
        if data.get("prompt_id") != prompt_id:
            continue
        if name == "executing" and data["node"]:
            bar.show(data["node"])
        elif name == "progress" and data["node"]:
            bar.show(data["node"], data["value"], data["max"])
        elif name == "execution_error":
            raise DemoError(
                f"{data['node_type']} (node {data['node_id']}): {data['exception_message'].strip()}"
            )
        elif name == "execution_success" or (name == "executing" and data["node"] is None):
            return
    raise DemoError("the server closed the connection before the workflow had ended")


def saved_video(record: dict, output: Path) -> Path:
    """Return the path of the video a finished workflow saved."""
    for node in record["outputs"].values():
        for entries in node.values():
            for entry in entries:
                name = entry.get("filename", "") if isinstance(entry, dict) else ""
                if name.endswith(VIDEO_SUFFIXES):
                    return output / entry["subfolder"] / name
    raise DemoError(f"the workflow ended but saved no video; its outputs: {record['outputs']}")


def frames_asked(prompt: dict) -> int | None:
    """Return the number of frames the workflow asks OviLatent for, None when another node decides
    it.
    """
    lengths = [
        node["inputs"].get("length")
        for node in prompt.values()
        if node["class_type"] == "OviLatent"
    ]
    return lengths[0] if lengths and isinstance(lengths[0], int) else None


def check_clip(clip: Clip, frames: int | None) -> None:
    """Raise DemoError unless the clip has 24 fps, the frames asked for, and sound as long as its
    picture.

    The lengths may differ by one frame of the audio codec, which only holds whole frames.
    """
    problems = []
    if clip.frames_per_second != 24:
        problems.append(f"{clip.frames_per_second:g} frames per second, expected 24")
    if frames is not None and len(clip.pictures) != frames:
        problems.append(f"{len(clip.pictures)} frames, expected {frames}")
    if not clip.sound.sample_rate:
        problems.append("no audio track")
    elif abs(clip.sound.seconds - clip.video_seconds) > clip.sound_frame / clip.sound.sample_rate:
        problems.append(
            f"{clip.sound.seconds:.3f} s of sound for {clip.video_seconds:.3f} s of video"
        )
    if problems:
        raise DemoError(f"{clip.path}: " + "; ".join(problems))


def small_files() -> ModuleType:
    """Return the module that makes any workflow small."""
    sys.path.append(str(SUPPORT))
    return importlib.import_module("small_files")


def read_workflow(arguments: argparse.Namespace) -> dict:
    """Return the workflow with what the command line asks for, or with small files if it is no
    miniature's.
    """
    prompt = json.loads(arguments.workflow.read_text(encoding="utf-8"))
    prompt = with_request(prompt, arguments.scene, arguments.seed)
    if uses_miniature(prompt):
        return prompt
    return small_files().with_small_picture(small_files().with_small_files(prompt))


def make_clip(comfyui: Path, base: Path, prompt: dict) -> Path:
    """Run the workflow in a server of its own; return the path of the video."""
    make_base_directory(base)
    if not uses_miniature(prompt):
        say("making small checkpoints")
        small_files().write_small_files(comfyui, base / "models")
    say("starting ComfyUI")
    with running_server(comfyui, base, cpu=not torch.cuda.is_available()) as server:
        try:
            say(f"running the workflow at {server.url}")
            return saved_video(
                asyncio.run(run_prompt(server, prompt, ProgressBar(prompt))), base / "output"
            )
        except (DemoError, ServerError) as error:
            raise DemoError(
                f"{error}\n\nLast lines of {server.log}:\n{server.log_tail()}"
            ) from error


def show_clip(video: Path, prompt: dict, check: bool) -> None:
    """Draw the clip's sheet, print both paths and what is judged; check: raise DemoError if
    anything is wrong.
    """
    clip, sheet = read_clip(video), video.with_suffix(".png")
    draw_sheet(clip).save(sheet)
    print(f"video: {video}\nsheet: {sheet}")
    if check:
        check_clip(clip, frames_asked(prompt))
    asked = asked_scene(prompt) if uses_miniature(prompt) else None
    if asked:
        verdict = judge_file(video, asked)
        print(*describe(verdict), sep="\n")
        if check and (wrong := faults(verdict)):
            raise DemoError(f"{video}: " + "; ".join(wrong))


def scene(text: str) -> Scene:
    """Read --scene for argparse, which shows the words of this error alone."""
    try:
        return parse_scene(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def say(line: str) -> None:
    """Print one line for the reader."""
    print(f"[demo] {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Make the clip and show what became of it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--comfyui", type=Path, required=True, help="ComfyUI's folder (demo.sh finds it)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=REPOSITORY / "demo_output",
        help="where everything is written",
    )
    parser.add_argument(
        "--workflow", type=Path, default=WORKFLOW, help="an API-format workflow that saves a video"
    )
    parser.add_argument(
        "--scene", type=scene, help="what to show instead of the workflow's: ball,red,3,low"
    )
    parser.add_argument("--seed", type=int, help="of the noise, instead of the workflow's")
    parser.add_argument(
        "--check",
        action="store_true",
        help="fail unless rate, frames, sound and scene are as asked",
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.monotonic()
    try:
        prompt = read_workflow(arguments)
        video = make_clip(arguments.comfyui.resolve(), arguments.output.resolve(), prompt)
        say(f"done in {time.monotonic() - start:.0f} s")
        show_clip(video, prompt, arguments.check)
    except (DemoError, ServerError, OSError, RuntimeError, ValueError) as error:
        say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
