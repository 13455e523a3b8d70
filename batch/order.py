"""Which job comes next: those alike one after the other on one worker, so that weights stay loaded,
and those that go on from another after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .job import Job


class Order:
    """Jobs that wait, by group."""

    def __init__(self, jobs: Iterable[Job], done: set[str]):
        self._groups: dict[tuple, deque[Job]] = {}
        self._done = set(done)
        self._given_up: set[str] = set()
        for job in jobs:
            self._groups.setdefault(job.group, deque()).append(job)

    def __len__(self) -> int:
        return sum(len(jobs) for jobs in self._groups.values())

    def take(self, group: tuple | None, busy: set[tuple]) -> Job | None:
        """Return the next job for a worker; None if those that wait need another one's end.

        group: of the worker's last job, which is gone on with. busy: groups of other workers,
        which are helped only when there is no other work.
        """
        ready = [name for name, jobs in self._groups.items() if self._is_ready(jobs[0])]
        if not ready:
            return None
        best = max(
            ready, key=lambda name: (name == group, name not in busy, len(self._groups[name]))
        )
        job = self._groups[best].popleft()
        if not self._groups[best]:
            del self._groups[best]
        return job

    def give_back(self, job: Job) -> None:
        """Put a job that was lost at the front of its group."""
        self._groups.setdefault(job.group, deque()).appendleft(job)

    def finish(self, job: Job) -> None:
        """Let the jobs that go on from this one be taken."""
        self._done.add(job.id)

    def give_up(self, job: Job) -> list[Job]:
        """Take out the jobs that would go on from this one, and return them."""
        lost, dropped = {job.id}, []
        for name, jobs in list(self._groups.items()):
            for other in list(jobs):
                if other.after in lost:
                    lost.add(other.id)
                    dropped.append(other)
                    jobs.remove(other)
            if not jobs:
                del self._groups[name]
        return dropped

    def _is_ready(self, job: Job) -> bool:
        return not job.after or job.after in self._done
