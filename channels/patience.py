"""Waiting: backoff with jitter, and pauses that end when the dispatcher is told to stop."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from nearcast.errors import Unavailable

log = logging.getLogger("nearcast.channels")
T = TypeVar("T")
_RANDOM = random.SystemRandom()


class Stopping(Exception):
    """The dispatcher stops: leave the work as it is; the outbox still has it."""


class Patience:
    """Exponential backoff with jitter, from `base_s` up to `cap_s`."""

    def __init__(self, base_s: float, cap_s: float, stopping: asyncio.Event) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._stopping = stopping

    def backoff_s(self, attempt: int) -> float:
        """How long to wait after the `attempt`-th failure, counted from 1; at least half of the step it is on."""
        step_s = min(self._cap_s, self._base_s * 2.0 ** min(attempt - 1, 30))
        return step_s * _RANDOM.uniform(0.5, 1.0)

    def spread_s(self, seconds: float) -> float:
        """At least `seconds` and at most twice that, so that those who wait for the same don't all come at once."""
        return seconds * _RANDOM.uniform(1.0, 2.0)

    async def pause(self, seconds: float) -> None:
        """Wait. Raises `Stopping` as soon as the dispatcher is told to stop."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise Stopping

    async def insist(self, what: str, action: Callable[[], Awaitable[T]]) -> T:
        """Do `action` until the log or store it needs is there. Only for actions that may be done twice."""
        attempt = 0
        while True:
            try:
                return await action()
            except Unavailable as error:
                attempt += 1
                log.warning("%s has to wait: %s", what, error)
            await self.pause(self.backoff_s(attempt))
