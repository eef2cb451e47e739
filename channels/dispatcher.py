"""The dispatcher: takes the outbox and brings every entry to its end.

Order: entries of one customer (and events of one log key) are handled one after the other, in outbox order; different
customers go side by side. What waits for its channel is counted apart from what is worked on (`max_waiting`,
`max_in_flight`), so a channel that is away does not hold up the others. An entry is done only after its outcome is in
the log, so a crash repeats an entry and never loses one; one that another dispatcher has taken over, or that the store
has lost, is let go of. A log or store that is away is waited for. It never sends anything that does not stand in the
outbox.

A message that devices have and may acknowledge is put aside (`max_awaiting`): what follows for its customer goes on
meanwhile. It takes its turn again when the next channel's has come, or sooner when one look at many finds it
acknowledged. Recalls wait behind nothing, since what they take back may be what waits.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Protocol

from channels.breaker import Breaker
from channels.contract import Channel, Prepared
from channels.delivery import Courier, Desk
from channels.patience import Patience, Stopping
from channels.states import Delivery
from nearcast import events
from nearcast.clock import Clock
from nearcast.errors import Fenced, InputError, Unavailable
from nearcast.ids import MessageId
from nearcast.messages import Emitted, Message, OutboxEntry, Recall, Released
from nearcast.metrics import TASK_FAILURES

__all__ = ["Delivery", "Desk", "Dispatcher", "DispatcherSettings", "Outbox", "Pending", "Prepared"]

log = logging.getLogger("nearcast.channels")

#: With as many entries taken as may be, how often to look whether there is room again.
_FULL_WAIT_S = 0.02


@dataclass(frozen=True)
class Pending:
    """An outbox entry that was taken and is not done.

    `times_ms`: when its event arrived, when the engine had it, and when it was committed, if that is known.
    """

    partition: int
    entry_id: str
    entry: OutboxEntry
    times_ms: tuple[int, ...] = ()


class Outbox(Protocol):
    """What the engine committed and nobody has finished yet. What is async raises `Unavailable`."""

    async def read(self, max_entries: int, wait_ms: int) -> list[Pending]:
        """Take entries, oldest first per partition; [] after `wait_ms`. One dispatcher holds an entry at a time.

        Calling it is also what keeps entries that are taken and not done from other dispatchers: call it every few
        seconds, with `max_entries` 0 when there is no room for more.
        """
        ...

    async def done(self, pendings: Sequence[Pending]) -> None:
        """Remove entries for good. Doing it twice is harmless."""
        ...

    async def bury(self, pending: Pending, error: InputError) -> None:
        """Make an entry that can never be accepted a dead letter, and remove it. Doing it twice is harmless."""
        ...

    def release(self, pending: Pending) -> None:
        """Let go of an entry that another dispatcher has taken over, or that is gone. It is not removed: should nobody
        finish it, it comes back to one of them."""
        ...


@dataclass(frozen=True, kw_only=True)
class DispatcherSettings:
    """How much at once, and how patient. Durations in seconds unless the name says otherwise."""

    #: Hand-overs at a time, per channel. Each holds a connection to a provider.
    concurrency: int = 64
    #: Entries taken, not done and not waiting; the rest stays in the outbox.
    max_in_flight: int = 1_000
    #: Entries that wait for a channel (a free slot, a backoff, an open breaker) or behind another of their customer.
    #: With as many of them nothing more is taken.
    max_waiting: int = 10_000
    #: Messages that devices have and may acknowledge before the next channel's turn comes. The same holds.
    max_awaiting: int = 20_000
    #: How often to look whether some of them are acknowledged or due, and at how many at a time for the former.
    look_s: float = 0.25
    looked_at: int = 500
    read_wait_ms: int = 500
    #: Passing faults of one channel before the next one, if there is one, gets the message.
    attempts_per_channel: int = 4
    backoff_s: float = 0.25
    backoff_cap_s: float = 5.0
    #: Longer than any channel's own time-outs; guards against one that hangs.
    send_timeout_s: float = 30.0
    breaker_failures: int = 5
    breaker_open_s: float = 5.0
    #: How long `stop` waits for hand-overs under way.
    drain_s: float = 10.0


class Dispatcher:
    """Runs from `run()` until it is cancelled or `stop()` is called. One instance runs once."""

    def __init__(
        self,
        outbox: Outbox,
        desk: Desk,
        channels: Sequence[Channel],
        clock: Clock,
        settings: DispatcherSettings | None = None,
    ) -> None:
        self._outbox = outbox
        self._desk = desk
        self._clock = clock
        self._settings = settings or DispatcherSettings()
        self._stopping = asyncio.Event()
        self._patience = Patience(self._settings.backoff_s, self._settings.backoff_cap_s, self._stopping)
        by_name: Mapping[events.Channel, Channel] = {channel.name: channel for channel in channels}
        self._courier = Courier(
            desk,
            by_name,
            {name: Breaker(clock, self._settings.breaker_failures, self._settings.breaker_open_s) for name in by_name},
            clock,
            self._patience,
            slots=self._settings.concurrency,
            attempts_per_channel=self._settings.attempts_per_channel,
            send_timeout_s=self._settings.send_timeout_s,
        )
        #: The entries of each customer or key, the first of them at work.
        self._lanes: dict[str, deque[Pending]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._taken = 0
        self._waiting = 0
        #: Messages put aside, and when their turn comes again (ms). Those to be looked at next stand first.
        self._awaiting: dict[MessageId, tuple[Pending, int]] = {}
        self._finished: list[Pending] = []
        self._any_finished = asyncio.Event()
        self._removing = asyncio.Lock()
        self._ended = asyncio.Event()
        self._ended.set()

    async def run(self) -> None:
        """Deliver until cancelled (at once: unfinished entries stay in the outbox) or told to stop."""
        self._ended.clear()
        remover = asyncio.create_task(self._remove_finished(), name="dispatcher remover")
        looker = asyncio.create_task(self._look_after_awaiting(), name="dispatcher acknowledgements")
        try:
            await self._take_entries()
            looker.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=self._settings.drain_s)
            await self._remove_once()
        finally:
            for task in (remover, looker, *self._tasks):
                task.cancel()
            await asyncio.gather(remover, looker, *self._tasks, return_exceptions=True)
            self._ended.set()

    async def stop(self) -> None:
        """Take no more entries, let hand-overs under way finish, and return when `run` has ended."""
        self._stopping.set()
        await self._ended.wait()

    async def _take_entries(self) -> None:
        faults = 0
        while not self._stopping.is_set():
            room = max(0, self._settings.max_in_flight - (self._taken - self._waiting))
            if self._waiting >= self._settings.max_waiting or len(self._awaiting) >= self._settings.max_awaiting:
                room = 0
            try:
                for pending in await self._outbox.read(room, self._settings.read_wait_ms if room else 0):
                    self._take(pending)
                faults = 0
                if not room:
                    await asyncio.sleep(_FULL_WAIT_S)
                continue
            except Unavailable as error:
                log.warning("the outbox has to wait: %s", error)
            except Exception:
                TASK_FAILURES.labels("dispatcher").inc()
                log.exception("reading the outbox failed")
            faults += 1
            try:
                await self._patience.pause(self._patience.backoff_s(faults))
            except Stopping:
                return

    def _take(self, pending: Pending) -> None:
        if pending.times_ms:
            # What it waits for from here on is ours.
            pending = replace(pending, times_ms=(*pending.times_ms, self._clock.now_ms()))
        self._queue(pending)

    def _queue(self, pending: Pending) -> None:
        self._taken += 1
        entry = pending.entry
        match entry:
            case Emitted():
                lane = f"key {entry.key}"
            case Recall():
                lane = f"recall {entry.message}"
            case _:
                lane = f"customer {entry.customer}"
        if lane in self._lanes:
            self._lanes[lane].append(pending)
            self._waiting += 1
            return
        self._lanes[lane] = deque([pending])
        task = asyncio.create_task(self._run_lane(lane), name=f"dispatcher lane {pending.partition}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_lane(self, lane: str) -> None:
        queue = self._lanes[lane]
        try:
            while True:
                try:
                    due_ms = await self._finish(queue[0])
                    pending = queue.popleft()
                    if due_ms is not None and isinstance(pending.entry, Message):
                        self._put_aside(pending, pending.entry.id, due_ms)
                    else:
                        self._finished.append(pending)
                        self._any_finished.set()
                except Fenced:
                    log.info("outbox entry %s is with another dispatcher now, or gone", queue[0].entry_id)
                    self._outbox.release(queue.popleft())
                    self._taken -= 1
                if not queue:
                    break
                self._waiting -= 1
        except Stopping:
            pass
        finally:
            self._taken -= len(queue)
            self._waiting -= max(0, len(queue) - 1)
            del self._lanes[lane]

    @contextmanager
    def _waits(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _finish(self, pending: Pending) -> int | None:
        """Bring one entry to its end, whatever it takes. Raises `Stopping`, and `Fenced` if it is another's now.

        Or returns when its turn comes again (ms), as `Courier.deliver` does.
        """
        entry = pending.entry
        faults = 0
        while True:
            try:
                if isinstance(entry, Message):
                    return await self._courier.deliver(entry, pending.entry_id, self._waits, pending.times_ms)
                if isinstance(entry, Recall):
                    await self._patience.insist("a recall", partial(self._desk.recall, entry))
                    self._wake(entry.message)
                elif isinstance(entry, Released):
                    await self._patience.insist("a release", partial(self._desk.released, entry))
                else:
                    await self._patience.insist("an event", partial(self._desk.emit, entry))
                return None
            except (Stopping, Fenced):
                raise
            except InputError as error:
                # The log will never take it, or nobody can read how far it got.
                await self._patience.insist("a dead letter", partial(self._outbox.bury, pending, error))
                return None
            except Exception:
                # Ours to mend, and not to crash on: a message ends at its deadline, an event stays in the outbox.
                faults += 1
                TASK_FAILURES.labels("dispatcher").inc()
                log.exception("outbox entry %s of partition %d failed", pending.entry_id, pending.partition)
            await self._patience.pause(self._patience.backoff_s(faults))

    def _put_aside(self, pending: Pending, message: MessageId, due_ms: int) -> None:
        before = self._awaiting.pop(message, None)
        if before is not None:
            # The same message in a second entry: a store that had lost the first, and found it again.
            self._outbox.release(before[0])
        self._awaiting[message] = pending, due_ms
        self._taken -= 1

    def _wake(self, message: MessageId) -> None:
        """Give a message that was put aside its turn."""
        found = self._awaiting.pop(message, None)
        if found is not None:
            self._queue(found[0])

    async def _look_after_awaiting(self) -> None:
        while True:
            await asyncio.sleep(self._settings.look_s)
            try:
                await self._look_at_awaiting()
            except Unavailable as error:
                log.warning("acknowledgements have to wait: %s", error)
            except Exception:
                TASK_FAILURES.labels("dispatcher").inc()
                log.exception("looking at acknowledgements failed")

    async def _look_at_awaiting(self) -> None:
        now_ms = self._clock.now_ms()
        for message in [message for message, (_, due_ms) in self._awaiting.items() if due_ms <= now_ms]:
            self._wake(message)
        some = list(islice(self._awaiting.items(), self._settings.looked_at))
        for message, found in some:
            # Behind the others.
            del self._awaiting[message]
            self._awaiting[message] = found
        wanted = [pending.entry for _, (pending, _) in some if isinstance(pending.entry, Message)]
        if wanted:
            for message in await self._desk.acknowledged(wanted):
                self._wake(message)

    async def _remove_finished(self) -> None:
        while True:
            await self._any_finished.wait()
            if not await self._remove_once():
                await asyncio.sleep(self._patience.backoff_s(1))

    async def _remove_once(self) -> bool:
        """Tell the outbox what is done; what it does not hear now it hears the next time."""
        async with self._removing:
            batch, self._finished = self._finished, []
            self._any_finished.clear()
            try:
                if batch:
                    await self._outbox.done(batch)
            except Exception as error:  # noqa: BLE001 entries that stay are handled again, which changes nothing
                log.warning("could not remove %d finished outbox entries yet: %s", len(batch), error)
                self._finished = batch + self._finished
                self._any_finished.set()
                return False
            self._taken -= len(batch)
            return True
