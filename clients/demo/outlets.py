"""How events get from shoppers to nearcast: over their device's connection where they have one, by HTTP otherwise.

Each shopper's events go one after the other, in the order they happened: a cart before the walk that it matters for.
Different shoppers don't wait for each other. An event that fails on the way is sent again under the same id until it
is accepted, so a restart of the server loses none.
"""

import asyncio
from collections.abc import Mapping

from clients.client import Nearcast
from clients.demo.measure import Measure
from clients.demo.patience import insist
from clients.device import Device, Refused
from nearcast.errors import Unavailable
from nearcast.events import IntakeEvent

_MAX_WAITING = 2_000
_MAX_BATCH = 500


class Outlets:
    """One queue and one task per connected shopper, and one of each for all who use HTTP."""

    def __init__(
        self, http: Nearcast, devices: Mapping[str, Device], measure: Measure, tasks: asyncio.TaskGroup
    ) -> None:
        self._http = http
        self._measure = measure
        self._shared: asyncio.Queue[IntakeEvent] = asyncio.Queue(_MAX_WAITING)
        self._own: dict[str, asyncio.Queue[IntakeEvent]] = {uid: asyncio.Queue(_MAX_WAITING) for uid in devices}
        for uid, device in devices.items():
            tasks.create_task(self._by_device(device, self._own[uid]), name=f"events of {uid}")
        tasks.create_task(self._by_http(), name="events by http")

    def put(self, event: IntakeEvent) -> None:
        """Queue an event that just happened. A full queue counts as an error: the run is behind by minutes then."""
        queue = self._own.get(event.customer, self._shared)
        try:
            queue.put_nowait(event)
        except asyncio.QueueFull:
            self._measure.errors["event_queue_full"] += 1

    async def hand_over(self, event: IntakeEvent) -> None:
        """Give one event to nearcast by HTTP, now."""
        await self._post([event])

    @property
    def waiting(self) -> int:
        return self._shared.qsize() + sum(queue.qsize() for queue in self._own.values())

    async def _by_device(self, device: Device, queue: asyncio.Queue[IntakeEvent]) -> None:
        while True:
            event = await queue.get()
            self._measure.handed_over(event.event_id, event.customer)
            try:
                await insist(device.event, event)
            except Refused as refusal:
                self._measure.errors[f"event_{refusal.reason}"] += 1
            except Unavailable:
                self._measure.errors["event_not_accepted"] += 1
            else:
                self._measure.events_in += 1

    async def _by_http(self) -> None:
        while True:
            batch = [await self._shared.get()]
            while len(batch) < _MAX_BATCH and not self._shared.empty():
                batch.append(self._shared.get_nowait())
            await self._post(batch)

    async def _post(self, batch: list[IntakeEvent]) -> None:
        for event in batch:
            self._measure.handed_over(event.event_id, event.customer)
        try:
            receipt = await insist(self._http.events, batch)
        except Refused as refusal:
            self._measure.errors[f"batch_{refusal.reason}"] += 1
        except Unavailable:
            self._measure.errors["batch_not_accepted"] += 1
        else:
            self._measure.events_in += receipt.accepted
            for rejected in receipt.rejected:
                self._measure.errors[f"event_{rejected.reason}"] += 1
