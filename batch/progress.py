"""Lines that say how far a run is."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """Counts what is done and tells it, with rate and time left.

    total: jobs to do. already: of an earlier run. clock: seconds, from anywhere.
    """

    def __init__(self, total: int, already: int, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.total, self.already = total, already
        self.done = self.failed = 0
        self.begin()

    def begin(self) -> None:
        """Take the rate from now on; what has failed before took no time."""
        self._begin = self._clock()
        self._failed_before = self.failed

    def line(self) -> str:
        """Return one line for the reader."""
        ended = self.done + self.failed - self._failed_before
        seconds = self._clock() - self._begin
        text = f"{self.already + self.done} of {self.total + self.already} done"
        if self.failed:
            text += f", {self.failed} failed"
        if ended and seconds > 0:
            left = (self.total - self.done - self.failed) * seconds / ended
            text += f"; {60 * ended / seconds:.1f} a minute, {as_time(left)} left"
        return text


def as_time(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
