"""One timer for all connections: pings, pong timeouts, token expiry and deadlines without a task or timer for each.

An item stands in at most one slot; adding it again moves it. A slot is served once its time has passed, so an item is
up to one tick late and never early.
"""

import asyncio
import logging
from typing import Protocol

from nearcast.clock import Clock

log = logging.getLogger("nearcast.channels.gateway")


class Item(Protocol):
    """Something that has to be looked at from time to time."""

    def due(self, now_s: float) -> float | None:
        """Do what is due; the monotonic time of the next look, or None for never. Must not wait."""
        ...


class Wheel:
    """Serves items when they are due, with a resolution of `tick_s`."""

    def __init__(self, clock: Clock, tick_s: float) -> None:
        self._clock = clock
        self._tick_s = tick_s
        self._slots: dict[int, dict[Item, None]] = {}
        self._slot_of: dict[Item, int] = {}
        self._served = self._slot(clock.monotonic_s())

    def add(self, item: Item, at_s: float) -> None:
        self.remove(item)
        # A slot that was served already would never be looked at again.
        slot = max(self._slot(at_s), self._served + 1)
        self._slot_of[item] = slot
        self._slots.setdefault(slot, {})[item] = None

    def remove(self, item: Item) -> None:
        slot = self._slot_of.pop(item, None)
        if slot is not None:
            del self._slots[slot][item]
            if not self._slots[slot]:
                del self._slots[slot]

    def turn(self) -> None:
        """Serve every slot whose time has passed."""
        now_s = self._clock.monotonic_s()
        last = self._slot(now_s) - 1
        slots = (slot for slot in self._slots if slot <= last)
        for slot in sorted(slots):
            self._served = max(self._served, slot)
            for item in list(self._slots[slot]):
                self.remove(item)
                try:
                    again_s = item.due(now_s)
                except Exception:
                    log.exception("a connection's timer failed")
                    continue
                if again_s is not None:
                    self.add(item, again_s)
        self._served = max(self._served, last)

    async def run(self) -> None:
        """Turn until cancelled."""
        while True:
            await asyncio.sleep(self._tick_s)
            self.turn()

    def _slot(self, at_s: float) -> int:
        return int(at_s / self._tick_s)
