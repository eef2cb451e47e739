"""Lets newcomers in one after the other, so that a storm of them queues and doesn't crush those who are in.

First come, first served, at a bounded rate, and only while few are still waiting for the answer to their `connect`,
which costs the store something. Who has waited nearly as long as an SDK does is turned away, and comes back at a time
of chance. Not earlier: one that waits costs nothing but its socket, and one that is turned away comes back sooner.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from nearcast.clock import Clock

log = logging.getLogger("nearcast.channels.gateway")

#: How often the queue moves on, in seconds.
STEP_S = 0.01
#: The share of a second's newcomers that may come in at the same moment; the rest of the process waits that long.
_BURST_S = 0.05


class Newcomer(Protocol):
    """A connection before its handshake has been answered."""

    def admit(self) -> None: ...

    def turn_away(self) -> None: ...


class Turnstile:
    """See the module."""

    def __init__(self, per_second: int, joins_at_once: int, wait_s: float, room: int, clock: Clock) -> None:
        self._per_second = per_second
        self._joins_at_once = joins_at_once
        self._wait_s = wait_s
        self._room = room
        self._clock = clock
        self._waiting: OrderedDict[Newcomer, float] = OrderedDict()
        self._joining = 0
        self._burst = max(1.0, per_second * _BURST_S)
        self._level = self._burst
        self._at_s = clock.monotonic_s()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def enter(self, newcomer: Newcomer) -> None:
        """`admit` or `turn_away` it, now or later."""
        if self._closed or len(self._waiting) >= self._room:
            _tell(newcomer.turn_away)
            return
        self._waiting[newcomer] = self._clock.monotonic_s() + self._wait_s
        self.turn()

    def leave(self, newcomer: Newcomer) -> None:
        """It has gone by itself; no harm if it isn't waiting."""
        self._waiting.pop(newcomer, None)

    def join(self) -> None:
        """Somebody who is in asks for their channels."""
        self._joining += 1

    def joined(self) -> None:
        """They have got them, or never will."""
        self._joining -= 1
        self.turn()

    def close(self) -> None:
        """Turn everybody away, from now on."""
        self._closed = True
        while self._waiting:
            _tell(self._waiting.popitem(last=False)[0].turn_away)
        if self._timer is not None:
            self._timer.cancel()

    def turn(self) -> None:
        """Let in whom there is room for now."""
        now_s = self._clock.monotonic_s()
        self._level = min(self._burst, self._level + (now_s - self._at_s) * self._per_second)
        self._at_s = now_s
        while self._waiting:
            newcomer, until_s = next(iter(self._waiting.items()))
            if until_s <= now_s:
                del self._waiting[newcomer]
                _tell(newcomer.turn_away)
            elif self._level >= 1 and self._joining < self._joins_at_once:
                self._level -= 1
                del self._waiting[newcomer]
                _tell(newcomer.admit)
            else:
                break
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STEP_S, self._again)

    def _again(self) -> None:
        self._timer = None
        self.turn()


def _tell(what: Callable[[], None]) -> None:
    """Whatever is wrong with one newcomer, the others go on."""
    try:
        what()
    except Exception:
        log.exception("a newcomer could be neither let in nor turned away")
