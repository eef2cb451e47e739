"""A circuit breaker per channel: after several passing faults in a row the channel is left alone for a while.

After that one message at a time finds out whether it is back; a provider that hangs so costs one hand-over, not all.

Not safe across threads; owned by one dispatcher.
"""

from nearcast.clock import Clock


class Breaker:
    """Opens after `failures` faults in a row, for `open_s` seconds; then one attempt per `open_s` until one works."""

    def __init__(self, clock: Clock, failures: int, open_s: float) -> None:
        self._clock = clock
        self._limit = failures
        self._open_s = open_s
        self._failures = 0
        self._open_until_s = 0.0

    @property
    def wait_s(self) -> float:
        """How long the channel is to be left alone; 0 when it may be used."""
        return max(0.0, self._open_until_s - self._clock.monotonic_s())

    def begin(self) -> None:
        """An attempt begins. If faults came before it, the others wait for what comes of it."""
        if self._failures >= self._limit:
            self._open_until_s = self._clock.monotonic_s() + self._open_s

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= self._limit:
            self._open_until_s = self._clock.monotonic_s() + self._open_s

    def worked(self) -> None:
        """The provider answered, if only to refuse this one message."""
        self._failures = 0
        self._open_until_s = 0.0
