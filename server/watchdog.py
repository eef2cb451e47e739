"""Sees to it that a consumer gets on: records that wait, and no progress, mean that its way to the log hangs.

An outage is no stall: while the log or the store answers nobody, or the store refuses to write, there is nothing to
mend here. Time is counted in looks, so a process that was stopped for a while, or a machine that slept, does not seem
to have stalled.

Not seen from here: a worker that gets no partitions at all. That may be as it should be (there are more workers than
partitions), and the log client ends a hanging attempt to join by itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from nearcast import metrics
from nearcast.errors import Unavailable
from server.log.base import LogConsumer

logger = logging.getLogger("nearcast.server.watchdog")

#: How often to look within the time after which a consumer counts as stalled.
LOOKS = 6
#: Restarts without help after which the process gives up.
RESTARTS = 2

#: A topic and partition; or "" and a partition that its reader has not taken up.
_Place = tuple[str, int]


class Watchdog:
    """Restarts one consumer when it stalls, and ends the process when that does not help.

    `answering` raises Unavailable while the log can't be reached or the store can't be written to, by connections that
    aren't the consumer's.
    """

    def __init__(
        self, name: str, consumer: LogConsumer, answering: Callable[[], Awaitable[None]], stall_after_s: float
    ) -> None:
        self._name = name
        self._consumer = consumer
        self._answering = answering
        self._stall_after_s = stall_after_s
        #: Of each place where records wait: where it is, and how many looks ago it got there.
        self._waiting: dict[_Place, tuple[str, int]] = {}
        self._restarts = 0
        self._looks_since_restart = 0

    async def run(self) -> None:
        """Look again and again. Raises Unavailable when the consumer stalls and restarts don't help."""
        while True:
            await asyncio.sleep(self._stall_after_s / LOOKS)
            await self.look()

    async def look(self) -> None:
        """Look once, and restart the consumer if it has stalled. Raises Unavailable when restarts don't help."""
        try:
            await self._answering()
        except Unavailable:
            self._waiting.clear()
            return
        self._waiting = {
            place: (position, looks + 1 if position == before else 0)
            for place, position in (await self._find_waiting()).items()
            for before, looks in [self._waiting.get(place, ("", 0))]
        }
        self._looks_since_restart += 1
        stalled = sorted(place for place, (_, looks) in self._waiting.items() if looks >= LOOKS)
        if stalled:
            await self._restart(stalled)

    async def _find_waiting(self) -> dict[_Place, str]:
        """The places where something waits, and the position of each."""
        positions = self._consumer.processed()
        _, partitions = self._consumer.assignment()
        untaken = partitions - {partition for _, partition in positions}
        waiting = {("", partition): "not taken up" for partition in untaken}
        try:
            lag = await self._consumer.lag()
        except Unavailable:
            # The log answers, but not on this consumer's connection.
            return waiting | positions
        return waiting | {place: position for place, position in positions.items() if lag.get(place)}

    async def _restart(self, stalled: list[_Place]) -> None:
        names = ", ".join(f"{topic or 'partition'} {partition}" for topic, partition in stalled[:5])
        what = f"{self._name}: no progress for {self._stall_after_s:g} s at {len(stalled)} places ({names})"
        # One that comes long after a restart is a stall of its own.
        if self._looks_since_restart > 3 * LOOKS:
            self._restarts = 0
        if self._restarts >= RESTARTS:
            raise Unavailable(f"{what}, and {self._restarts} restarts of the consumer did not help")
        self._restarts += 1
        self._looks_since_restart = 0
        self._waiting.clear()
        logger.error("%s; its connections to the log are made anew (%d of %d)", what, self._restarts, RESTARTS)
        metrics.CONSUMER_RESTARTS.labels(self._name).inc()
        try:
            await self._consumer.restart()
        except Unavailable as error:
            logger.warning("%s: the consumer could not be restarted: %s", self._name, error)
