"""Ray, started on this machine alone or joined at RAY_ADDRESS."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

STORE_BYTES = 300_000_000  # clips on their way from workers: about 1 MB each
ANSWERS = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port")


@contextmanager
def joined_cluster(workers: int) -> Iterator[None]:
    """Join the cluster at RAY_ADDRESS, or start one here that ends with this process.

    workers: how many at least must fit here; one takes a core.
    """
    if os.environ.get("RAY_ADDRESS"):
        # Nodes that run already do not have run.sh's path to this repository.
        path = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
        ray.init(log_to_driver=False, logging_level=logging.WARNING, runtime_env=path)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Ray gives its workers the least of the processor, 15, and ComfyUI would inherit it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    folder = Path(tempfile.mkdtemp(prefix="ovi-ray-"))
    ended = threading.Event()
    threading.Thread(target=_answer_for_agent, args=(folder, ended), daemon=True).start()
    try:
        ray.init(
            num_cpus=max(workers, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=str(folder),
        )
        yield
    finally:
        ended.set()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _answer_for_agent(folder: Path, ended: threading.Event) -> None:
    """Tell Ray's node at once what its agent will tell it when that has started.

    Ray 2.60 gives the agent 15 s for it and ends the node after that (ray-project/ray#65983), and
    on a busy machine the agent's imports take longer. Without the dashboard it serves no port, -1;
    environments of tasks, which its second port is for, are not used here.
    """
    while not ended.is_set():
        for started in folder.glob("session_2*/gcs_server_port_*"):
            node = started.name.rpartition("_")[2]
            answers = {**dict.fromkeys(ANSWERS, -1), "runtime_env_agent_port": _free_port()}
            for name, port in answers.items():
                path = started.with_name(f"{name}_{node}")
                if not path.exists():
                    path.write_text(str(port))
            return
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cards() -> int:
    """Return the number of cards of all hosts."""
    return int(ray.cluster_resources().get("GPU", 0))
