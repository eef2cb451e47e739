"""Time, injected. Code that needs the time takes a `Clock`; tests and replays pass their own.

Wall-clock time is in integer milliseconds since the Unix epoch, everywhere. Durations are measured with a
monotonic clock.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """What time it is, and how much has passed."""

    def now_ms(self) -> int:
        """Wall-clock milliseconds since the Unix epoch."""
        ...

    def monotonic_s(self) -> float:
        """Seconds on a clock that never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, now_ms: int = 1_750_000_000_000) -> None:
        self._now_ms = now_ms
        self._start_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_s(self) -> float:
        return (self._now_ms - self._start_ms) / 1000

    def advance(self, milliseconds: int) -> None:
        if milliseconds < 0:
            raise ValueError("time does not go back")
        self._now_ms += milliseconds
