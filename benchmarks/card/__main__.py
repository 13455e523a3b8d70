"""Measure this machine's NVIDIA card, with random weights of full size; nothing is downloaded.

bash tools/card.sh --short            the row of each kind that matters most, 4 minutes at most
bash tools/card.sh                    all rows, 10 minutes a call; call again until none is left
bash tools/card.sh --cpu --small      a dry run of all rows on the processor
bash tools/card.sh --pack FOLDER      gather what a machine with PyTorch alone lacks
bash tools/card.sh --packed FOLDER    measure with what was gathered
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import pack, report, runner
from .rows import all_rows, short_rows

SHORT_LIMIT, LIMIT = 235.0, 585.0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/card.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder")
    parser.add_argument(
        "--output", type=Path, default=Path("card_output"), help="folder of results"
    )
    parser.add_argument(
        "--short", action="store_true", help="a row of each kind, 4 minutes at most"
    )
    parser.add_argument("--limit", type=float, help="seconds for this call")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    parser.add_argument("--cpu", action="store_true", help="on the processor")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the command")
    parser.add_argument("--only", help="rows with this in their name")
    parser.add_argument(
        "--pack", type=Path, metavar="FOLDER", help="gather what is needed, and end"
    )
    parser.add_argument(
        "--python", default="3.12", help="version of Python for which wheels are packed"
    )
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="packages that the machine has, not to be packed",
    )
    parser.add_argument("--packed", type=Path, metavar="FOLDER", help="use what was gathered")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, or gather what is needed to."""
    options = parse()
    if options.worker:
        if options.packed:
            pack.add_site(options.packed)
        from . import worker

        worker.work(
            json.load(sys.stdin),
            options.worker,
            options.comfyui,
            options.packed,
            options.cpu,
            options.small,
        )
        return
    if options.pack:
        print(pack.gather(options.pack, options.comfyui, options.python, options.without))
        return
    if options.packed:
        pack.unpack(options.packed)
    rows = short_rows() if options.short else all_rows()
    rows = [row for row in rows if not options.only or options.only in row.name]
    state = prepare(options)
    limit = options.limit or (SHORT_LIMIT if options.short else LIMIT)
    left = runner.Runner(state, worker_command(options), limit).run(rows)
    print(f"\n{report.heading(state.about)}\n\n{report.table(rows, state.rows)}\n")
    print(f"```json\n{report.as_json(rows, state.about, state.rows)}\n```")
    if left:
        print(f"\n{len(left)} rows are left: give the same command again.")


def prepare(options: argparse.Namespace) -> runner.State:
    """Return the state of this machine and size, in the folder of results."""
    options.output.mkdir(parents=True, exist_ok=True)
    name = f"{'cpu' if options.cpu else 'card'}{'_small' if options.small else ''}.json"
    path = (options.output / name).resolve()
    if options.again:
        path.unlink(missing_ok=True)
    return runner.State.read(path)


def worker_command(options: argparse.Namespace) -> list[str]:
    """What starts a worker, with whole paths, for it runs in another folder."""
    command = [sys.executable, "-m", "card"]
    command += [f"--{name}" for name in ("cpu", "small") if getattr(options, name)]
    for name in ("comfyui", "packed"):
        path = getattr(options, name)
        command += [f"--{name}", str(path.resolve())] if path else []
    return [*command, "--worker"]


if __name__ == "__main__":
    main()
