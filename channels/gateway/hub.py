"""A channel's publications, brought to this node's sockets in order, once each, and never with a hole unsaid.

One `Feed` per channel with a subscriber here. It delivers offset after offset; a publication that skips some, another
epoch, a new connection of the bus, or the periodic check make it catch up from the stream. What can't be caught up is
told to the listeners (`lose`), whose clients then connect again and learn it as `recovered: false`.

A listener that joins is fed into a buffer while its history is read, and goes live afterwards without a gap between.

Everything runs in one event loop. A feed's lock orders "this node listens" and "it no longer does" in the store;
deliveries never wait for it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from channels.gateway.bus import Bus
from channels.gateway.publications import Position, Publication, Recovered
from channels.gateway.streams import ChannelStreams
from channels.gateway.transport import Envelope
from nearcast.errors import Unavailable
from nearcast.metrics import TASK_FAILURES

log = logging.getLogger("nearcast.channels.gateway")

#: How often a node renews its signs of life and checks every feed against the stream.
CHECK_EVERY_S = 30.0
#: How many feeds are settled at a time.
BATCH = 64
RETRY_S = 0.5
#: How many publications a joining listener may be given before its history has been read.
MAX_HELD = 256


class Listener(Protocol):
    """One client's socket."""

    def deliver(self, envelope: Envelope) -> None:
        """Write a publication, as `Hub`'s `encode` made it. Must not wait and must not raise."""
        ...

    def lose(self) -> None:
        """There is a hole in what was delivered: make the client start over."""
        ...


class Subscription:
    """One listener's place in one channel. Holds publications back until `go_live`."""

    def __init__(self, channel: str, listener: Listener) -> None:
        self.channel = channel
        self._listener = listener
        self._position = Position("", 0)
        self._held: list[tuple[int, Envelope]] | None = []
        self._lost = False

    def start_at(self, position: Position) -> None:
        """The listener has, or is about to get, everything up to `position`."""
        self._position = position

    def go_live(self) -> None:
        """Deliver what was held back, and everything from now on."""
        held, self._held = self._held or [], None
        if self._lost:
            self._listener.lose()
            return
        for offset, envelope in held:
            self.deliver(offset, envelope)

    def deliver(self, offset: int, envelope: Envelope) -> None:
        if self._held is not None:
            self._held.append((offset, envelope))
            self._lost = self._lost or len(self._held) > MAX_HELD
        elif offset > self._position.offset and not self._lost:
            self._position = Position(self._position.epoch, offset)
            self._listener.deliver(envelope)

    def lose(self) -> None:
        if not self._lost:
            self._lost = True
            if self._held is None:
                self._listener.lose()


class Feed:
    """One channel on this node. `position` is None until this node is known to listen to it; a publication that
    arrives before that makes it `behind`.
    """

    def __init__(self, channel: str, encode: Callable[[str, Publication], Envelope]) -> None:
        self.channel = channel
        self.position: Position | None = None
        self.behind = False
        self.subscriptions: dict[Subscription, None] = {}
        self.lock = asyncio.Lock()
        self._encode = encode

    def receive(self, epoch: str, publication: Publication) -> bool:
        """Deliver a live publication. False if it can't be placed: the feed must catch up first."""
        if self.position is None:
            self.behind = True
            return True
        if epoch != self.position.epoch or publication.offset > self.position.offset + 1:
            return False
        self._deliver(publication)
        return True

    def catch_up(self, found: Recovered) -> None:
        """Deliver what the stream had after an earlier position of this feed, or tell the listeners of the hole."""
        if found.recovered:
            for publication in found.publications:
                self._deliver(publication)
            return
        self.position = found.position
        for subscription in list(self.subscriptions):
            subscription.lose()

    def _deliver(self, publication: Publication) -> None:
        if self.position is None or publication.offset <= self.position.offset:
            return
        self.position = Position(self.position.epoch, publication.offset)
        envelope = self._encode(self.channel, publication)
        for subscription in list(self.subscriptions):
            subscription.deliver(publication.offset, envelope)


class Hub:
    """This node's feeds. `encode` makes the envelope of one publication, once for all of a channel's listeners."""

    def __init__(
        self,
        streams: ChannelStreams,
        encode: Callable[[str, Publication], Envelope],
        *,
        check_every_s: float = CHECK_EVERY_S,
    ) -> None:
        self._streams = streams
        self._encode = encode
        self._check_every_s = check_every_s
        self._feeds: dict[str, Feed] = {}
        self._bus = Bus(streams, self._receive, self._unsettle_all)
        # Channels that need a look: behind, left by the last listener, or due for the periodic check.
        self._unsettled: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        for name, work in (("bus", self._bus.run), ("settle", self._settle_forever), ("check", self._check_forever)):
            self._tasks.append(asyncio.create_task(guarded(f"gateway-{name}", work), name=f"gateway-{name}"))

    async def stop(self) -> None:
        """Stop listening. Listeners should have left before."""
        await end(self._tasks)
        channels = list(self._feeds)
        self._feeds.clear()
        try:
            if channels:
                await self._streams.dismiss(channels)
        except Unavailable:
            log.warning("could not sign off from %d channels; their entries expire", len(channels))

    async def join(self, channel: str, listener: Listener, since: Position | None) -> tuple[Subscription, Recovered]:
        """Subscribe a listener and read what followed `since`. Send that to the client, then call `go_live`.

        Raises `Unavailable`; nothing is left behind then.
        """
        feed = self._feeds.setdefault(channel, Feed(channel, self._encode))
        subscription = Subscription(channel, listener)
        feed.subscriptions[subscription] = None
        try:
            async with feed.lock:
                if feed.position is None:
                    [feed.position] = await self._streams.attend([(channel, None)])
                    if feed.behind:
                        feed.behind = False
                        self._unsettle(channel)
            # Only now: a publication after this read finds this node among the channel's listeners.
            found = await self._streams.read(channel, since)
        except BaseException:
            self.leave(subscription)
            raise
        subscription.start_at(found.position)
        if found.position.epoch != feed.position.epoch:
            self._unsettle(channel)
        return subscription, found

    def leave(self, subscription: Subscription) -> None:
        """End a subscription."""
        feed = self._feeds.get(subscription.channel)
        if feed is not None:
            feed.subscriptions.pop(subscription, None)
            if not feed.subscriptions:
                self._unsettle(feed.channel)

    def _receive(self, channel: str, epoch: str, publication: Publication) -> None:
        feed = self._feeds.get(channel)
        if feed is not None and not feed.receive(epoch, publication):
            self._unsettle(channel)

    def _unsettle(self, channel: str) -> None:
        self._unsettled[channel] = None
        self._wake.set()

    def _unsettle_all(self) -> None:
        self._unsettled.update(dict.fromkeys(self._feeds))
        self._wake.set()

    async def _check_forever(self) -> None:
        while True:
            await asyncio.sleep(self._check_every_s)
            self._unsettle_all()

    async def _settle_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._unsettled:
                batch = [feed for channel in list(self._unsettled)[:BATCH] if (feed := self._take(channel))]
                try:
                    await self._settle(batch)
                except Unavailable as error:
                    for feed in batch:
                        self._unsettled[feed.channel] = None
                    log.warning("%d channels wait for the state store: %s", len(self._unsettled), error)
                    await asyncio.sleep(RETRY_S)

    def _take(self, channel: str) -> Feed | None:
        del self._unsettled[channel]
        return self._feeds.get(channel)

    async def _settle(self, feeds: list[Feed]) -> None:
        for feed in feeds:
            if not feed.subscriptions:
                await self._dismiss(feed)
        # A feed without a position is being joined, which tells where it stands.
        kept = [feed for feed in feeds if feed.subscriptions and feed.position is not None]
        if not kept:
            return
        tops = await self._streams.attend([(feed.channel, feed.position) for feed in kept])
        await asyncio.gather(*(self._catch_up(feed, top) for feed, top in zip(kept, tops, strict=True)))

    async def _dismiss(self, feed: Feed) -> None:
        async with feed.lock:
            if not feed.subscriptions:
                feed.position = None
                await self._streams.dismiss([feed.channel])
                # Someone may have joined meanwhile: they wait for the lock, and then say that this node listens.
                if not feed.subscriptions:
                    self._feeds.pop(feed.channel, None)

    async def _catch_up(self, feed: Feed, top: Position) -> None:
        since = feed.position
        if since is not None and (top.epoch != since.epoch or top.offset > since.offset):
            feed.catch_up(await self._streams.read(feed.channel, since))


async def guarded(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run work that should never end; when it fails, say so and start it again."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("the task %s failed and starts again", name)
            TASK_FAILURES.labels(name).inc()
        await asyncio.sleep(1)


async def end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended; one cancellation may be lost inside a store command that just completes."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=0.1)
