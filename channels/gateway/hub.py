"""A channel's publications, brought to this node's sockets in order, once each, and never with a hole unsaid.

One `Feed` per channel with a subscriber here. It delivers offset after offset; a publication that skips some, another
epoch, a new connection of the bus, or the periodic check make it catch up from the stream. What can't be caught up is
told to the listeners (`lose`), whose clients then connect again and learn it as `recovered: false`.

A listener that joins is fed into a buffer while its history is read, and goes live afterwards without a gap between.

Everything runs in one event loop, and one task of it says to the store what this node listens to, one round trip after
the other: so "it listens" and "it no longer does" can't overtake each other, and what is asked while a round trip is
under way goes with the next one, all together. Deliveries wait for none of this.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

from channels.gateway.bus import Bus
from channels.gateway.publications import Position, Publication, Recovered, Revoked
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams, Listening, keeps_presence
from channels.gateway.transport import Envelope
from nearcast.errors import Unavailable
from nearcast.metrics import TASK_FAILURES

log = logging.getLogger("nearcast.channels.gateway")

#: In how many parts a node checks its feeds against the streams.
CHECK_PARTS = 30
#: How many channels go into one round trip: of those that join, and of those that need a look.
BATCH = 64
#: Those that are only due for a check go in smaller parts: nobody should wait for them.
CHECKED_AT_ONCE = 32
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
    """One listener's place in one channel. Holds publications back until `go_live`.

    `client` and `user` are what the channel's presence shows; no client, no presence.
    """

    __slots__ = ("_held", "_listener", "_lost", "_offset", "channel", "client", "user")

    def __init__(self, channel: str, listener: Listener, client: str = "", user: str = "") -> None:
        self.channel = channel
        self.client = client
        self.user = user
        self._listener = listener
        self._offset = 0
        self._held: list[tuple[int, Envelope]] | None = []
        self._lost = False

    def start_at(self, position: Position) -> None:
        """The listener has, or is about to get, everything up to `position`."""
        self._offset = position.offset

    def hold(self) -> None:
        """Keep back what comes: another subscription of the listener is to take over. Then `give`, or `go_live`."""
        self._held = []

    def give(self, up_to: int) -> None:
        """Deliver what was kept back up to an offset, before this subscription ends; the rest is the other one's."""
        held, self._held = self._held or [], None
        for offset, envelope in held:
            if offset <= up_to:
                self.deliver(offset, envelope)

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
        elif offset > self._offset and not self._lost:
            self._offset = offset
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

    __slots__ = ("_encode", "behind", "channel", "position", "subscriptions")

    def __init__(self, channel: str, encode: Callable[[str, Publication], Envelope]) -> None:
        self.channel = channel
        self.position: Position | None = None
        self.behind = False
        self.subscriptions: dict[Subscription, None] = {}
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

    def clients(self) -> list[tuple[str, str]]:
        """Who is to be seen in the channel's presence."""
        if not keeps_presence(self.channel):
            return []
        return [(each.client, each.user) for each in self.subscriptions if each.client]

    def _deliver(self, publication: Publication) -> None:
        if self.position is None or publication.offset <= self.position.offset:
            return
        self.position = Position(self.position.epoch, publication.offset)
        envelope = self._encode(self.channel, publication)
        for subscription in list(self.subscriptions):
            subscription.deliver(publication.offset, envelope)


class _Visit:
    """One client that joins: its subscriptions, from where each is to go on, and when its token was issued."""

    __slots__ = ("answer", "issued_ms", "user", "wanted")

    def __init__(self, wanted: list[tuple[Subscription, Position | None]], user: str, issued_ms: int) -> None:
        self.wanted = wanted
        self.user = user
        self.issued_ms = issued_ms
        self.answer: asyncio.Future[list[Recovered]] = asyncio.get_running_loop().create_future()

    def refuse(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Hub:
    """This node's feeds. `encode` makes the envelope of one publication, once for all of a channel's listeners;
    `control` is given what `ChannelStreams.tell` and `disconnect` send to this node.
    """

    def __init__(
        self,
        streams: ChannelStreams,
        encode: Callable[[str, Publication], Envelope],
        control: Callable[[bytes], None] = lambda _: None,
        *,
        check_every_s: float = GatewaySettings.check_every_s,
    ) -> None:
        self._streams = streams
        self._encode = encode
        self._check_every_s = check_every_s
        self._feeds: dict[str, Feed] = {}
        self._bus = Bus(streams, self._receive, self._unsettle_all, control)
        self._visits: deque[_Visit] = deque()
        # Channels that need a look: behind, left by the last listener, or due for the periodic check.
        self._unsettled: dict[str, None] = {}
        # Channel → clients that have left it, and may still be seen in its presence.
        self._left: dict[str, set[str]] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        for name, work in (("bus", self._bus.run), ("settle", self._settle_forever), ("check", self._check_forever)):
            self._tasks.append(asyncio.create_task(guarded(f"gateway-{name}", work), name=f"gateway-{name}"))

    async def stop(self) -> None:
        """Stop listening. Listeners should have left before."""
        await end(self._tasks)
        self._tasks.clear()
        while self._visits:
            self._visits.popleft().refuse(Unavailable("the gateway stops"))
        for feed in self._feeds.values():
            self._left.setdefault(feed.channel, set()).update(client for client, _ in feed.clients())
        left = [(channel, list(clients)) for channel, clients in self._left.items() if clients]
        channels = list(self._feeds)
        self._feeds.clear()
        try:
            for start in range(0, max(len(channels), len(left)), BATCH):
                await self._streams.dismiss(channels[start : start + BATCH], left[start : start + BATCH])
        except Unavailable:
            log.warning("could not sign off from %d channels; their entries expire", len(channels))

    async def join_all(
        self,
        wanted: Sequence[tuple[str, Position | None]],
        listener: Listener,
        *,
        client: str,
        user: str,
        issued_ms: int,
    ) -> list[tuple[Subscription, Recovered]]:
        """Subscribe a listener to channels and read what followed the positions. Send that to the client, then call
        `go_live` of each. `issued_ms` is when the token of `user` ("" for nobody) was issued: a logout after that is
        noticed here, one that comes later is told to `control`.

        Raises `Unavailable` or `Revoked`; nothing is left behind then.
        """
        if not self._tasks:
            raise Unavailable("the gateway does not run")
        subscriptions = []
        for channel, _ in wanted:
            subscription = Subscription(channel, listener, client, user)
            self._feeds.setdefault(channel, Feed(channel, self._encode)).subscriptions[subscription] = None
            subscriptions.append(subscription)
        positions = [since for _, since in wanted]
        visit = _Visit(list(zip(subscriptions, positions, strict=True)), user, issued_ms)
        self._visits.append(visit)
        self._wake.set()
        try:
            found = await visit.answer
        except BaseException:
            for subscription in subscriptions:
                self.leave(subscription)
            raise
        return list(zip(subscriptions, found, strict=True))

    def leave(self, subscription: Subscription) -> None:
        """End a subscription."""
        feed = self._feeds.get(subscription.channel)
        if feed is None:
            return
        feed.subscriptions.pop(subscription, None)
        if not feed.subscriptions:
            self._unsettle(feed.channel)
        if subscription.client and keeps_presence(feed.channel):
            self._left.setdefault(feed.channel, set()).add(subscription.client)
            self._wake.set()

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
            for part in parts(list(self._feeds), CHECK_PARTS):
                await asyncio.sleep(self._check_every_s / CHECK_PARTS)
                for channel in part:
                    self._unsettle(channel)

    async def _settle_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._visits or self._unsettled or self._left:
                try:
                    await self._settle()
                except Unavailable as error:
                    log.warning("%d channels wait for the state store: %s", len(self._unsettled), error)
                    await asyncio.sleep(RETRY_S)

    async def _settle(self) -> None:
        """One round trip for who joins and for what needs a look, and one for what was left, if anything was."""
        visits = self._take_visits()
        feeds = self._take_unsettled()
        left = self._take_left()
        try:
            # A feed without a position is being joined, which tells where it stands.
            await self._attend(visits, [feed for feed in feeds if feed.subscriptions and feed.position is not None])
            await self._dismiss([feed for feed in feeds if not feed.subscriptions], left)
        except BaseException:
            for feed in feeds:
                self._unsettled[feed.channel] = None
            for channel, clients in left.items():
                self._left.setdefault(channel, set()).update(clients)
            raise
        finally:
            for visit in visits:
                visit.refuse(Unavailable("the state store can't be reached"))

    def _take_visits(self) -> list[_Visit]:
        visits: list[_Visit] = []
        channels = 0
        while self._visits and channels < BATCH:
            visit = self._visits.popleft()
            if not visit.answer.done():
                visits.append(visit)
                channels += len(visit.wanted)
        return visits

    def _take_unsettled(self) -> list[Feed]:
        channels = list(self._unsettled)[:CHECKED_AT_ONCE]
        for channel in channels:
            del self._unsettled[channel]
        return [feed for channel in channels if (feed := self._feeds.get(channel))]

    def _take_left(self) -> dict[str, set[str]]:
        """Those who have left, without those who are there a second time."""
        taken: dict[str, set[str]] = {}
        for channel in list(self._left)[:BATCH]:
            feed = self._feeds.get(channel)
            clients = self._left.pop(channel) - {client for client, _ in (feed.clients() if feed else ())}
            if clients:
                taken[channel] = clients
        return taken

    async def _attend(self, visits: list[_Visit], feeds: list[Feed]) -> None:
        if not visits and not feeds:
            return
        joining = [
            (self._feeds[subscription.channel], subscription, since)
            for visit in visits
            for subscription, since in visit.wanted
        ]
        listening = [
            Listening(
                feed.channel,
                feed.position,
                since,
                [(subscription.client, subscription.user)]
                if subscription.client and keeps_presence(feed.channel)
                else (),
            )
            for feed, subscription, since in joining
        ]
        listening += [Listening(feed.channel, feed.position, feed.position, feed.clients()) for feed in feeds]
        found, revoked = await self._streams.attend(listening, {visit.user for visit in visits if visit.user})
        for (feed, subscription, _), answer in zip(joining, found, strict=False):
            self._begin(feed, subscription, answer.position)
        answers = iter(found)
        for visit in visits:
            mine = [next(answers) for _ in visit.wanted]
            if visit.user in revoked and visit.issued_ms <= revoked[visit.user]:
                visit.refuse(Revoked("the user was logged out"))
            elif not visit.answer.done():
                visit.answer.set_result(mine)
        for feed, answer in zip(feeds, answers, strict=True):
            feed.catch_up(answer)

    def _begin(self, feed: Feed, subscription: Subscription, position: Position) -> None:
        """What was published after `position` finds this node among those that listen."""
        subscription.start_at(position)
        if feed.position is None:
            feed.position = position
            if feed.behind:
                feed.behind = False
                self._unsettle(feed.channel)
        elif feed.position.epoch != position.epoch:
            # What the listener was given so far may be of the epoch before.
            subscription.lose()
            self._unsettle(feed.channel)

    async def _dismiss(self, feeds: list[Feed], left: dict[str, set[str]]) -> None:
        # Someone may have joined while the visits were carried out.
        idle = [feed for feed in feeds if not feed.subscriptions]
        for feed in idle:
            feed.position = None
        if idle or left:
            leaving = [(channel, list(clients)) for channel, clients in left.items()]
            await self._streams.dismiss([feed.channel for feed in idle], leaving)
        for feed in idle:
            # Who has joined meanwhile says in the next round that this node listens.
            if not feed.subscriptions:
                self._feeds.pop(feed.channel, None)


def parts(channels: Sequence[str], count: int) -> list[Sequence[str]]:
    """The channels in `count` parts as equal as can be."""
    size = max(1, math.ceil(len(channels) / count))
    return [channels[place * size : (place + 1) * size] for place in range(count)]


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
