"""What the benchmarks' command lines share: the numbers they take, and the line that says where
they ran.
"""

import argparse
import os
import platform
import shlex
import sys
from pathlib import Path

import torch


def positive(text: str) -> int:
    """Read a whole number above zero, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above zero")
    return int(text)


def machine() -> str:
    """What everything ran on: the card if there is one, else the processor, and torch."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    threads = torch.get_num_threads()
    return f"{name}, {os.cpu_count()} CPU cores, {threads} threads, torch {torch.__version__}"


def processor() -> str:
    """The processor's name as the system knows it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    return next(
        (line.split(": ", 1)[1] for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def command() -> str:
    """The command that was given."""
    return shlex.join(["python", *sys.argv])
