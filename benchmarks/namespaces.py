"""Hosts of one machine: each has processes and a network of its own, and a cable joins two.

Linux alone, as root, with `unshare` and `nsenter` (util-linux), `ip` (iproute2) and `hostname`. A
host is what its first process holds: when that ends, by whatever, the kernel ends all others and
takes the network away.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("unshare", "nsenter", "ip", "hostname")
NAMES = ("first", "second")
NETWORK = "10.77.0"
# Waits until the pipe to the program that made it closes.
INIT = "hostname {name} && ip link set lo up && echo up && exec cat"


class NoNamespaceError(Exception):
    """This machine makes no hosts; the message says why."""


@dataclass(frozen=True)
class Host:
    """A host by its name, its address and its first process, as this process sees it."""

    name: str
    address: str
    init: int

    def inside(self, command: Sequence[object]) -> list[str]:
        """Return a command that runs another one on this host."""
        return self._entered(["--net", "--pid", "--mount", "--uts"], command)

    def plug_in(self, other: Host) -> None:
        """Join this host to another by a cable."""
        # In this host's network, but among the processes of this machine, which know the other.
        cable = ["ip", "link", "add", "name", "cable", "type", "veth", "peer", "name", "cable"]
        _run(self._entered(["--net"], [*cable, "netns", other.init]))
        for host, far in ((self, other), (other, self)):
            # A cable is gone when one of its hosts is; the other must keep its address.
            _run(host.inside(["ip", "address", "add", host.address, "dev", "lo"]))
            _run(host.inside(["ip", "link", "set", "cable", "up"]))
            to_other = ["ip", "route", "add", far.address, "dev", "cable", "src", host.address]
            _run(host.inside(to_other))

    def take_away(self) -> None:
        """End every process of this host at once (kill -9), and its network."""
        os.kill(self.init, signal.SIGKILL)

    def _entered(self, namespaces: list[str], command: Sequence[object]) -> list[str]:
        return ["nsenter", "--target", str(self.init), *namespaces, *map(str, command)]


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Yield two hosts that reach each other and nothing else; nothing of them stays behind.

    Raises NoNamespaceError where they cannot be made.
    """
    if absent := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise NoNamespaceError(f"there is no program '{absent[0]}' (util-linux, iproute2)")
    with ExitStack() as stack:
        hosts = [
            _made(stack, name, f"{NETWORK}.{number}") for number, name in enumerate(NAMES, start=1)
        ]
        hosts[0].plug_in(hosts[1])
        yield hosts[0], hosts[1]


def _made(stack: ExitStack, name: str, address: str) -> Host:
    unshare = ["unshare", "--net", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child"]
    process = subprocess.Popen(
        [*unshare, "sh", "-c", INIT.format(name=name)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    if process.stdout.readline() != "up\n":
        raise NoNamespaceError(process.stderr.read().strip())
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return Host(name, address, int(children))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoNamespaceError(done.stderr.strip())
