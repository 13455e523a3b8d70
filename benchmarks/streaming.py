"""Seconds until the first finished block of a streamed clip is on the page, in a real ComfyUI
server, against those of the whole clip.

Usage: python benchmarks/streaming.py --comfyui PATH [--runs 5] [--width 128] [--height 128]
       [--length 117] [--cuda]

Run it with ComfyUI's python. It samples the miniature, which was not trained to stream: the times
are of its size, the pictures are not looked at. Runs with the film shown and without take turns in
one warm server; seconds count from the message that the sampler starts. "Block 1" and so on: until
the page is told of the film up to there. "Sampled": until the sampler's end. "Saved": until the
clip, decoded as a whole, is a file.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

import aiohttp
from command_line import command, machine, positive

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / "tools")]

from comfy_server import Server, ServerError, running_server  # noqa: E402

SAMPLER, STREAMING = "sample", "streaming"
PROMPT = "A red ball bounces twice. Audio: two low knocks."


def workflow(options: argparse.Namespace, seed: int, is_shown: bool) -> dict:
    """Return an API-format workflow of the miniature; is_shown: whether blocks are shown."""
    vaes = {"vae": ["parts", 2], "audio_vae": ["parts", 3]}
    text = {
        "clip": ["parts", 1],
        "prompt": PROMPT,
        "video_negative": "",
        "audio_negative": "",
        "sound_tag": "Audio:",
    }
    size = {"width": options.width, "height": options.height, "length": options.length}
    levels = {"model": ["parts", 0], "scheduler": "simple", "steps": 4, "denoise": 1.0}
    keep = {"frames_per_block": 6, "keep": "on the card"}
    nodes = {
        "parts": ("OviMiniature", {}),
        "text": ("OviTextEncode", text),
        "latent": ("OviLatent", {**size, "batch_size": 1}),
        "guider": ("BasicGuider", {"model": ["parts", 0], "conditioning": ["text", 0]}),
        "sigmas": ("BasicScheduler", levels),
        "noise": ("RandomNoise", {"noise_seed": seed}),
        STREAMING: ("OviStreamingSampler", keep | (vaes if is_shown else {})),
        SAMPLER: (
            "SamplerCustomAdvanced",
            {
                "guider": ["guider", 0],
                "sigmas": ["sigmas", 0],
                "noise": ["noise", 0],
                "sampler": [STREAMING, 0],
                "latent_image": ["latent", 0],
            },
        ),
        "decode": ("OviDecode", {"samples": [SAMPLER, 0], "tiling": "auto", **vaes}),
        "save": (
            "OviSaveVideo",
            {
                "images": ["decode", 0],
                "audio": ["decode", 1],
                "fps": 24.0,
                "filename_prefix": "streamed",
                "format": "mp4",
                "quality": 80,
            },
        ),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


async def run(server: Server, prompt: dict) -> dict[str, float]:
    """Run a workflow; return seconds from the sampler's start, by what has happened by then."""
    client, begin, times = uuid.uuid4().hex, 0.0, {}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/ws?clientId={client}", max_msg_size=0) as socket,
    ):
        prompt_id = server.post("/prompt", {"prompt": prompt, "client_id": client})["prompt_id"]
        async for message in socket:
            now = time.perf_counter()
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            name, data = event["type"], event["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            if name == "execution_error":
                raise ServerError(data["exception_message"])
            if name == "executing" and data["node"] == SAMPLER:
                begin = now
            elif name == "executing" and data["node"] == "decode":
                times["sampled"] = now - begin
            elif name == "executed" and data["node"] == STREAMING:
                times[f"block {1 + len(times)}"] = now - begin
            elif name == "execution_success":
                times["saved"] = now - begin
                return times
    raise ServerError(f"the connection ended before the workflow:\n{server.log_tail()}")


def measure(options: argparse.Namespace) -> dict[bool, list[dict[str, float]]]:
    """Return the times of every run, with the film shown and without; after one of each to warm
    up.
    """
    times: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with (
        tempfile.TemporaryDirectory() as base,
        running_server(options.comfyui, Path(base), cpu=not options.cuda) as server,
    ):
        for number in range(options.runs + 1):
            for is_shown, runs in times.items():
                made = asyncio.run(run(server, workflow(options, number, is_shown)))
                if number:
                    runs.append(made)
    return times


def table(times: dict[bool, list[dict[str, float]]]) -> str:
    """Return medians and spans, a line for each event."""
    lines = ["| seconds until | film shown | not shown |", "|---|---|---|"]
    for event in times[True][0]:
        cells = []
        for is_shown in (True, False):
            seconds = [made[event] for made in times[is_shown] if event in made]
            cells.append(
                f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
                if seconds
                else ""
            )
        lines.append(f"| {event} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--runs", type=positive, default=5)
    for name, value in {"width": 128, "height": 128, "length": 117}.items():
        parser.add_argument(f"--{name}", type=positive, default=value)
    parser.add_argument("--cuda", action="store_true", help="on the card, not the processor")
    options = parser.parse_args()
    times = measure(options)
    print(command())
    print(
        f"{machine()}; {options.width} x {options.height}, {options.length} frames; "
        f"medians (least to most) of {options.runs} runs"
    )
    print(table(times))


if __name__ == "__main__":
    main()
