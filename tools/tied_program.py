"""Runs a Python program that ends when the process that started it does, however that ends.

Usage: python tied_program.py PROGRAM.py ARGUMENTS, with a pipe as standard input

The pipe closes with the process that holds its other end, on every system and after a kill too.
"""

import os
import runpy
import sys
import threading


def end_with_the_pipe() -> None:
    """Wait until standard input closes, then end this process at once."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_the_pipe, daemon=True).start()
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
