"""Runs a table of jobs on two hosts, takes one of them away in the middle, and counts what came of
every row.

Usage: python benchmarks/host_runs.py --comfyui PATH [--jobs 12]

Run it with ComfyUI's python, on Linux. The hosts are namespaces of this machine, see namespaces.py,
with a node of Ray each; the command runs on the first. When both have made a clip, every process of
the second is killed (kill -9). Afterwards every row must have one clip, equal byte by byte to that
of a ComfyUI left alone. Ends with status 1 if anything is lost, doubled or different.
"""

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from batch_runs import (
    REPOSITORY,
    count,
    ended,
    good_rows,
    read_lines,
    start,
    wait_for,
    write_table,
)
from command_line import command, machine, positive
from namespaces import Host, NoNamespaceError, two_hosts

sys.path.append(str(REPOSITORY / "tools"))

import runtime

PORT = 6379
# Named, since Ray's node waits 15 s for its agent to choose them, and ends if it has not; hosts
# have all ports for themselves.
AGENT_PORTS = {
    "dashboard-agent-grpc-port": 52361,
    "dashboard-agent-listen-port": 52362,
    "metrics-export-port": 52363,
    "runtime-env-agent-port": 52364,
}
STORE_BYTES = 100_000_000
STARTS = 3  # of both hosts: Ray gives a node 30 s to begin, which a busy machine may not have


@dataclass(frozen=True)
class Cluster:
    """Two hosts with a node of Ray each, and what a program must know to join them."""

    first: Host
    second: Host
    environment: dict[str, str]


class NoRayError(Exception):
    """Ray does not start on the hosts; the message has its own words."""


@contextmanager
def ray_on_two_hosts() -> Iterator[Cluster]:
    """Yield a cluster in which each host has room for one worker.

    Raises NoNamespaceError where there can be no hosts, NoRayError where Ray does not start.
    """
    with ExitStack() as stack:
        for left in reversed(range(STARTS)):
            try:
                cluster = stack.enter_context(_started())
                break
            except NoRayError:
                if not left:
                    raise
        yield cluster


@contextmanager
def _started() -> Iterator[Cluster]:
    with (
        tempfile.TemporaryDirectory(prefix="hosts-", ignore_cleanup_errors=True) as folder,
        two_hosts() as (first, second),
    ):
        address = f"{first.address}:{PORT}"
        environment = {
            "RAY_ADDRESS": address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "TMPDIR": folder,  # what is left where a host ended goes with it
        }
        head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}/ray"]
        start_ray(first, head, environment)
        start_ray(second, [f"--address={address}"], environment)
        yield Cluster(first, second, environment)


def start_ray(host: Host, flags: list[str], environment: dict[str, str]) -> None:
    """Start Ray's node on a host; raises NoRayError when it does not come."""
    ray = runtime.build_batch(runtime.runtime_folder()).with_name("ray")
    ports = [f"--{name}={port}" for name, port in AGENT_PORTS.items()]
    room = ["--num-cpus=1", f"--object-store-memory={STORE_BYTES}", "--include-log-monitor=false"]
    # It must not join what it is to be.
    own = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        host.inside([ray, "start", f"--node-ip-address={host.address}", *flags, *ports, *room]),
        env=os.environ | own,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise NoRayError(f"Ray does not start on the {host.name} host:\n{done.stderr}")


def lose_second(cluster: Cluster, process: subprocess.Popen, out: Path) -> None:
    """Take the second host away as soon as both have made a clip."""
    hosts = {cluster.first.name, cluster.second.name}

    def both(lines: list[dict]) -> bool:
        return {line["host"] for line in lines} >= hosts

    wait_for(process, out / "results.jsonl", both)
    cluster.second.take_away()


def run_and_lose(comfyui: Path, table: Path, out: Path, *flags: str) -> int:
    """Run a table on two hosts, take one away; return the exit status.

    Raises NoNamespaceError where there can be no hosts, NoRayError where Ray does not start.
    """
    with ray_on_two_hosts() as cluster:
        inside, environment = cluster.first.inside, cluster.environment
        process = start(comfyui, table, out, 2, *flags, within=inside, **environment)
        try:
            lose_second(cluster, process, out)
        finally:
            status = ended(process)
    return status


def run(comfyui: Path, base: Path, jobs: int) -> tuple[dict[str, int], list[str]]:
    """Run the table on two hosts and on one ComfyUI; return the count, and lines with figures."""
    table = write_table(base / "jobs.jsonl", good_rows(jobs))
    out, alone = base / "two", base / "one"
    begin = time.monotonic()
    first = run_and_lose(comfyui, table, out)
    seconds = time.monotonic() - begin
    second = ended(start(comfyui, table, alone, 1))
    counted = count(out, alone, jobs, [], read_lines(out / "failed.jsonl"))
    counted["statuses that are wrong"] = (first != 0) + (second != 0)
    by_host = Counter(line["host"] for line in read_lines(out / "results.jsonl"))
    lost = sum(bool(line["error"]) for line in read_lines(out / "attempts.jsonl"))
    figures = [f"{seconds:6.0f} s  on two hosts, one taken away"]
    figures += [f"{number:6d}  clips of the {host} host" for host, number in by_host.items()]
    return counted, [*figures, f"{lost:6d}  attempts lost"]


def main() -> int:
    """Parse the command line, run, print the count; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--jobs", type=positive, default=12)
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="ovi-host-runs-") as base:
            counted, figures = run(options.comfyui.resolve(), Path(base), options.jobs)
    except (NoNamespaceError, NoRayError) as problem:
        print(f"no hosts can be made here: {problem}")
        return 2
    print(command(), machine(), *figures, sep="\n")
    for name, number in counted.items():
        print(f"{number:6d}  {name}")
    made, *faults = counted.values()
    return 0 if made == options.jobs and not any(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
