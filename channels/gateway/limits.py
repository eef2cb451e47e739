"""How much one client may ask for, and how many connections a node can have."""

import resource

from nearcast.clock import Clock


def affordable_connections() -> int:
    """As many as the limit of open files leaves, with room for all else that the process has open; 0: any number."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if limit == resource.RLIM_INFINITY else max(limit * 9 // 10 - 100, limit // 2)


def cut_off_above(connections: int) -> int:
    """Above how many of them one is cut off for each that comes; in between they are refused."""
    return connections + connections // 20 + 16


def limit_per_address(wanted: int, connections: int) -> int:
    """How many of a node's connections one address may have: not so many that it fills the node. 0: any number."""
    return min(wanted, max(1, connections // 2)) if wanted and connections else wanted


class TokenBucket:
    """Up to `per_minute` at once, and on average."""

    __slots__ = ("_at_s", "_clock", "_full", "_level")

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._full = float(per_minute)
        self._level = self._full
        self._clock = clock
        self._at_s = clock.monotonic_s()

    def take(self) -> bool:
        """True if one more is within the limit."""
        if self._refilled() < 1:
            return False
        self._level -= 1
        return True

    def spend(self) -> float:
        """Count one more, whatever the limit; how many are left, below 0 if it was over the limit."""
        self._level = self._refilled() - 1
        return self._level

    def _refilled(self) -> float:
        now_s = self._clock.monotonic_s()
        self._level = min(self._full, self._level + (now_s - self._at_s) * self._full / 60)
        self._at_s = now_s
        return self._level
