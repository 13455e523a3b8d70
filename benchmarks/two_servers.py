"""Lets two clients queue prompts at two ComfyUI servers that save into one folder, and counts what
came of them.

Usage: python benchmarks/two_servers.py --comfyui PATH [--prompts 100]

Run it with ComfyUI's python. Every prompt has a seed of its own and the same filename_prefix; each
client gives every other prompt to the other server. Afterwards each prompt must have ended well,
with one file that can be decoded and holds that prompt, and nothing else may lie in the folder.
Ends with status 1 if anything is lost, doubled, damaged or left over.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
from command_line import command, machine, positive

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tools"))

from comfy_server import Server, ServerError, running_server  # noqa: E402

WORKFLOW = REPOSITORY / "workflows" / "api" / "Ovi_13_All_nodes_miniature.json"
CLIENTS = 2
SHORT = {"steps": 1, "length": 9}
SEED = "noise_seed"
# Seconds a prompt may take at most, on the slowest machine.
PATIENCE = 120


def with_seed(workflow: dict, seed: int) -> dict:
    """Return the miniature's workflow at one step and nine frames, with this seed."""
    prompt = copy.deepcopy(workflow)
    for node in prompt.values():
        given = {**SHORT, SEED: seed}
        node["inputs"] |= {name: value for name, value in given.items() if name in node["inputs"]}
    return prompt


def seed_of(prompt: dict) -> int:
    """Return the one seed of a prompt."""
    (seed,) = [node["inputs"][SEED] for node in prompt.values() if SEED in node["inputs"]]
    return seed


def queue(servers: list[Server], workflow: dict, seeds: range) -> list[tuple[int, str]]:
    """Give one prompt a seed to the servers in turn, as fast as they take them; return which server
    has it, and its id there.
    """
    queued = []
    for seed in seeds:
        turn = seed % len(servers)
        answer = servers[turn].post("/prompt", {"prompt": with_seed(workflow, seed)})
        queued.append((turn, answer["prompt_id"]))
    return queued


def files_of(record: dict) -> list[str]:
    """Return the names a server says it saved for a prompt; none if the prompt did not end well."""
    if record["status"]["status_str"] != "success":
        return []
    shown = [image for output in record["outputs"].values() for image in output.get("images", ())]
    return [image["filename"] for image in shown if image["type"] == "output"]


def read_seed(path: Path) -> int | None:
    """Return the seed of the prompt in a clip, which is decoded to its end; None if that cannot be
    done.
    """
    try:
        with av.open(str(path)) as file:
            prompt = json.loads(file.metadata["prompt"])
            frames = sum(1 for _ in file.decode(video=0))
    except (av.FFmpegError, KeyError, ValueError):
        return None
    return seed_of(prompt) if frames == SHORT["length"] else None


def count(prompts: int, records: list[dict], folder: Path) -> dict[str, int]:
    """Return what was queued, what came of it, and every kind of fault, by name."""
    named = Counter(name for record in records for name in files_of(record))
    lying = {path.name for path in folder.rglob("*") if path.is_file()}
    seeds = Counter(read_seed(path) for path in folder.rglob("*.mp4"))
    damaged = seeds.pop(None, 0)
    return {
        "prompts": prompts,
        "files": len(lying),
        "prompts that failed": sum(len(files_of(record)) != 1 for record in records),
        "names given twice": sum(times - 1 for times in named.values()),
        "files lost": len(named.keys() - lying),
        "files nobody named": len(lying - named.keys()),
        "files damaged": damaged,
        "prompts lost": prompts - len(seeds),
        "prompts doubled": sum(times - 1 for times in seeds.values()),
    }


def run(comfyui: Path, base: Path, each: int) -> dict[str, int]:
    """Start both servers, let the clients queue at once, wait for all prompts; return the count."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    output = base / "output"
    flags = ("--output-directory", str(output))
    with (
        running_server(comfyui, base / "one", flags=flags) as one,
        running_server(comfyui, base / "two", flags=flags) as two,
        ThreadPoolExecutor(CLIENTS) as clients,
    ):
        servers = [one, two]
        shares = [range(client * each, (client + 1) * each) for client in range(CLIENTS)]
        queued = [*clients.map(lambda seeds: queue(servers, workflow, seeds), shares)]
        ids = [prompt for share in queued for prompt in share]
        records = [servers[turn].record(name, PATIENCE * each) for turn, name in ids]
    return count(CLIENTS * each, records, output)


def main() -> int:
    """Parse the command line, run, print the count; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--prompts", type=positive, default=100, help="prompts of each client")
    options = parser.parse_args()
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="ovi-two-servers-") as base:
            counted = run(options.comfyui.resolve(), Path(base), options.prompts)
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    print(command(), machine(), f"{time.monotonic() - start:.0f} s", sep="\n")
    for name, number in counted.items():
        print(f"{number:6d}  {name}")
    made, saved, *faults = counted.values()
    return 0 if made == saved and not any(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
