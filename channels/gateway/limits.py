"""How much one client may ask for."""

from nearcast.clock import Clock


class TokenBucket:
    """Up to `per_minute` at once, and on average."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._full = float(per_minute)
        self._level = self._full
        self._clock = clock
        self._at_s = clock.monotonic_s()

    def take(self) -> bool:
        """True if one more is within the limit."""
        now_s = self._clock.monotonic_s()
        self._level = min(self._full, self._level + (now_s - self._at_s) * self._full / 60)
        self._at_s = now_s
        if self._level < 1:
            return False
        self._level -= 1
        return True
