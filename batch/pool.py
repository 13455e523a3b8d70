"""Workers on all cards and hosts, each an actor of Ray: those that die are replaced, and their jobs
given to others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from .comfy_worker import ComfyWorker, Outcome, Ready, Setup
from .job import Job
from .order import Order

TRIES = 2  # of a job whose node fails
LOSSES = 3  # of a job whose ComfyUI, worker or host ends
FAILED_STARTS = 3  # of one worker, one after the other
WAIT_SECONDS = 5.0
STOP_SECONDS = 30.0


class PoolError(Exception):
    """No worker can be had; the message says why."""


@dataclass
class Worker:
    """A place in the pool, and the actor that fills it now."""

    number: int
    actor: Any
    call: Any
    job: Job | None = None
    group: tuple | None = None
    ready: Ready | None = None
    failed_starts: int = 0


@dataclass
class Tally:
    """How often a job was tried, and how often what ran it ended."""

    tries: int = 0
    losses: int = 0

    @property
    def attempts(self) -> int:
        """All of them."""
        return self.tries + self.losses


@dataclass(frozen=True)
class Watch:
    """What is told of a run: on_ready(worker), on_attempt(worker, job, number, outcome),
    on_done(job, outcome, attempts), on_failed(job, error, attempts).
    """

    on_ready: Callable[[Worker], None]
    on_attempt: Callable[[Worker, Job, int, Outcome], None]
    on_done: Callable[[Job, Outcome, int], None]
    on_failed: Callable[[Job, str, int], None]


@dataclass
class Pool:
    """Workers of one setup.

    cards: each worker takes so many, 0 for none. end_of: for a film, the file of a shot's end by
    the id of its job; tail_frames: how many frames that holds.
    """

    setup: Setup
    size: int
    cards: int
    watch: Watch
    end_of: Callable[[str], Path] | None = None
    tail_frames: int = 0

    def __post_init__(self) -> None:
        options = {"num_cpus": 1, "num_gpus": self.cards, "max_restarts": 0}
        self._kind = ray.remote(ComfyWorker).options(**options)
        self._workers = [self._filled(Worker(number, None, None)) for number in range(self.size)]

    def first_ready(self) -> Worker:
        """Wait for a worker that is up; raises PoolError when none comes."""
        while not any(worker.ready and not worker.call for worker in self._workers):
            self._wait(None, {})
        return next(worker for worker in self._workers if worker.ready and not worker.call)

    def faults(self, jobs: Sequence[Job]) -> list[str]:
        """Return what ComfyUI says against each job, before any of them runs."""
        prompts = [job.prompt for job in jobs]
        names = {name for job in jobs for name in job.files}
        names |= {f"{job.after}.mkv" for job in jobs if job.after}
        for _ in range(TRIES):
            worker = self.first_ready()
            try:
                return ray.get(worker.actor.faults.remote(prompts, sorted(names)))
            except RayError as error:
                self._replace(worker, error)
                told = error
        raise PoolError(f"ComfyUI cannot be asked about the jobs: {told}")

    def run(self, order: Order) -> None:
        """Do all jobs; ends when each is done or given up."""
        tallies: dict[str, Tally] = {}
        while len(order) or any(worker.job for worker in self._workers):
            self._give_out(order)
            if not any(worker.call for worker in self._workers):
                raise PoolError("jobs wait for jobs that are not there")
            self._wait(order, tallies)

    def close(self) -> None:
        """End all workers, and ComfyUI with them; those that are busy leave their folders."""
        idle = [worker.actor for worker in self._workers if worker.call is None]
        if stopping := [actor.stop.remote() for actor in idle]:
            ray.wait(stopping, num_returns=len(stopping), timeout=STOP_SECONDS)
        for worker in self._workers:
            ray.kill(worker.actor)

    def _give_out(self, order: Order) -> None:
        for worker in self._workers:
            if worker.call is not None:
                continue
            busy = {other.job.group for other in self._workers if other.job}
            job = order.take(worker.group, busy)
            if job is None:
                return
            contents = {name: path.read_bytes() for name, path in job.files.items()}
            if job.after:
                contents[f"{job.after}.mkv"] = self.end_of(job.after).read_bytes()
            worker.job, worker.group = job, job.group
            worker.call = worker.actor.run.remote(job.prompt, contents, self.tail_frames)

    def _wait(self, order: Order | None, tallies: dict[str, Tally]) -> None:
        """Take in what has ended within some seconds."""
        calls = {worker.call: worker for worker in self._workers if worker.call is not None}
        ended, _ = ray.wait(list(calls), num_returns=1, timeout=WAIT_SECONDS)
        for call in ended:
            worker = calls[call]
            job, worker.job, worker.call = worker.job, None, None
            try:
                answer = ray.get(call)
            except RayError as error:
                if job is not None:
                    outcome = Outcome(error="the worker ended while it made the clip", lost=True)
                    self._judge(worker, job, outcome, order, tallies)
                self._replace(worker, error)
                continue
            worker.failed_starts = 0
            if isinstance(answer, Ready):
                worker.ready = answer
                self.watch.on_ready(worker)
            else:
                self._judge(worker, job, answer, order, tallies)

    def _judge(
        self, worker: Worker, job: Job, outcome: Outcome, order: Order, tallies: dict[str, Tally]
    ) -> None:
        """Keep what a job made, or give it to another, or give it up."""
        tally = tallies.setdefault(job.id, Tally())
        tally.losses += outcome.lost
        tally.tries += not outcome.lost
        self.watch.on_attempt(worker, job, tally.attempts, outcome)
        if not outcome.error:
            self.watch.on_done(job, outcome, tally.attempts)
            order.finish(job)
        elif tally.tries < TRIES and tally.losses < LOSSES:
            order.give_back(job)
        else:
            self.watch.on_failed(job, outcome.error, tally.attempts)
            for other in order.give_up(job):
                why = f"it goes on from row {job.row}, which failed"
                self.watch.on_failed(other, why, 0)

    def _replace(self, worker: Worker, error: RayError) -> None:
        if worker.ready is None or worker.failed_starts:
            worker.failed_starts += 1
        if worker.failed_starts >= FAILED_STARTS:
            raise PoolError(f"worker {worker.number} does not start: {error}")
        ray.kill(worker.actor)
        self._filled(worker)

    def _filled(self, worker: Worker) -> Worker:
        worker.ready = None
        worker.actor = self._kind.remote(self.setup)
        worker.call = worker.actor.start.remote()
        return worker
