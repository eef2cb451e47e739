"""The rest of an erasure: what the engine's commit can't reach, removed in the background until nothing is left.

Erasing a customer begins in the log: the engine deletes state, place, timers, decisions and the opt-out, and notes the
customer as to be erased (`nearcast.keys.erasures`), in one commit. From that note on, this cleans the outbox, the
coupons, the personal channel, the dead letters, and, where the store is the event log, the log. The note goes last,
and after those of the anonymous visitors that are erased together with the customer. Every step may be repeated, so a
crash, or a second worker that does the same, changes nothing.

What is under way is waited for, not taken away: a message that a dispatcher has in its hands ends in a receipt, which
is one more record in the log. So an erasure is complete when nobody holds an entry about the customer any more, and the
engine has read all that the log holds of them until then. What they do afterwards is a new record, and none of this:
what came into outbox and dead letters after the note was first seen stays, and what came into coupons, pushes and log
after nobody held an entry any more.

Nothing here logs whom it is about.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from importlib import resources
from typing import cast

import msgspec
from redis.asyncio import Redis

from channels.push import customer_channel
from nearcast import keys
from nearcast.clock import Clock
from nearcast.errors import Unavailable
from nearcast.ids import CustomerId, partition_of
from nearcast.messages import Emitted, Withdraw, decode_outbox, decode_publication
from nearcast.topics import CUSTOMER_TOPICS, SENT
from server.coupons import CouponBook
from server.dead_letters import DeadLetters, Wanted, is_stream_id, people_in
from server.outbox import GROUP
from server.store import reaching_store, text

logger = logging.getLogger("nearcast.server.eraser")

#: Stands in the note until the engine has erased the state.
ERASURE_ASKED = "asked"
#: Beside a customer's note: `<customer>\x1f<visitor>` for each visitor who is erased with them and has a note, too.
_WITH = "\x1f"
_POLL_S = 1.0
#: So long after the state is gone, nothing that was read before is still on its way into the log (a due timer).
_SETTLE_S = 2.0
_AT_ONCE = 500
#: The store is left alone for so many times as long as a step through the log took it.
_REST = 4
_BEGINNING = "0-0"

#: Removes an outbox entry, unless a dispatcher has it: 1 if it is gone. KEYS: the stream. ARGV: the group, the entry.
_DISCARD = """
local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if not held.err and #held > 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
return 1
"""

#: Takes the note away, unless the customer has been erased again: 1 if it is gone. KEYS: the notes. ARGV: the customer,
#: what it said, and the fields of the visitors.
_FINISH = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1], unpack(ARGV, 3))
"""


class _Note(msgspec.Struct):
    """That the state of a customer is gone."""

    customer: CustomerId
    said: str
    #: When it was first seen: by the monotonic clock, and by the store's.
    seen_s: float
    seen_ms: int
    #: The customers' anonymous records whose erasures have to be complete first.
    visitors: list[CustomerId] = []
    #: When nobody held an outbox entry about them any more, by the store's clock; coupons and pushes are deleted then.
    idle_ms: int | None = None


class Eraser:
    """Finishes the erasures of the partitions that this process owns.

    `log_in_store`: the event log is on Valkey Streams, so its records can be removed one by one.
    """

    def __init__(
        self,
        redis: Redis,
        partitions: int,
        owned: Callable[[], frozenset[int]],
        coupons: CouponBook,
        clock: Clock,
        *,
        log_in_store: bool,
        settle_s: float = _SETTLE_S,
    ) -> None:
        self._redis = redis
        self._partitions = partitions
        self._owned = owned
        self._coupons = coupons
        self._clock = clock
        self._log_in_store = log_in_store
        self._settle_s = settle_s
        self._letters = DeadLetters(redis, partitions)
        self._discard = redis.register_script(_DISCARD)
        self._finish = redis.register_script(_FINISH)
        self._sweep = redis.register_script(resources.files("server").joinpath("eraser.lua").read_text())
        #: By partition, the notes seen the last time.
        self._notes: dict[int, dict[CustomerId, _Note]] = {}

    async def run(self) -> None:
        while True:
            try:
                for partition in sorted(self._owned()):
                    await self.sweep(partition)
            except Unavailable as error:
                logger.warning("erasures wait: %s", error)
            await asyncio.sleep(_POLL_S)

    async def sweep(self, partition: int) -> int:
        """Remove what is left of the customers noted in a partition; how many erasures are complete by that."""
        notes = self._notes[partition] = await self._read(partition)
        now_s = self._clock.monotonic_s()
        ripe = {name: note for name, note in notes.items() if now_s >= note.seen_s + self._settle_s}
        if not ripe:
            return 0
        # The order counts: what leaves the outbox may leave a push, a coupon, a letter, or a last record in the log.
        open_ = await self._clean_outboxes(ripe)
        await self._clean_dead_letters(ripe)
        for customer in ripe.keys() - open_:
            await self._forget(ripe[customer])
        if self._log_in_store:
            open_ |= await self._clean_log(partition, ripe)
        complete = 0
        for customer in ripe.keys() - open_:
            if not await self._any_pending(ripe[customer].visitors):
                complete += await self._take_away(partition, ripe[customer])
        if complete:
            logger.info("%d erasures in partition %d are complete", complete, partition)
        return complete

    async def _read(self, partition: int) -> dict[CustomerId, _Note]:
        """The notes of those whose state is gone; what is known of a note already stays with it."""
        with reaching_store():
            rows = await self._redis.hgetall(keys.erasures(partition))
        now_ms = await self._store_ms()
        known = self._notes.get(partition, {})
        notes: dict[CustomerId, _Note] = {}
        visitors: dict[CustomerId, list[CustomerId]] = {}
        for field, value in rows.items():
            name, with_, visitor = text(field).partition(_WITH)
            customer, said = CustomerId(name), text(value)
            if with_:
                visitors.setdefault(customer, []).append(CustomerId(visitor))
            elif said != ERASURE_ASKED:
                note = known.get(customer)
                if note is None or note.said != said:
                    note = _Note(customer, said, self._clock.monotonic_s(), now_ms)
                notes[customer] = note
        for customer, note in notes.items():
            note.visitors = visitors.get(customer, [])
        return notes

    async def _any_pending(self, customers: Collection[CustomerId]) -> bool:
        for customer in customers:
            with reaching_store():
                if await self._redis.hexists(keys.erasures(partition_of(customer, self._partitions)), customer):
                    return True
        return False

    async def _take_away(self, partition: int, note: _Note) -> int:
        fields = [f"{note.customer}{_WITH}{visitor}" for visitor in note.visitors]
        with reaching_store():
            gone = await self._finish(keys=[keys.erasures(partition)], args=[note.customer, note.said, *fields])
        return 1 if gone else 0

    async def _forget(self, note: _Note) -> None:
        if note.idle_ms is None:
            now_ms = await self._store_ms()
            await self._coupons.forget(note.customer)
            await forget_channel(self._redis, note.customer)
            note.idle_ms = now_ms

    async def _store_ms(self) -> int:
        with reaching_store():
            seconds, microseconds = await self._redis.time()
        return int(seconds) * 1_000 + int(microseconds) // 1_000

    async def _clean_outboxes(self, notes: Mapping[CustomerId, _Note]) -> set[CustomerId]:
        """Drop what no dispatcher has taken yet; those of whom one has something.

        Looks through all partitions: what a visitor gathered before signing in comes from another one.
        """
        held: set[CustomerId] = set()
        for partition in range(self._partitions):
            outbox, start = keys.outbox(partition), "-"
            while True:
                with reaching_store():
                    found = await self._redis.xrange(outbox, start, "+", count=_AT_ONCE)
                    rows = cast("list[tuple[bytes, dict[bytes, bytes]]]", found)
                    for entry, fields in rows:
                        customer = _addressee(fields.get(b"e", b""))
                        note = None if customer is None else notes.get(customer)
                        if note is None or _made_ms(entry) > note.seen_ms:
                            continue
                        if not await self._discard(keys=[outbox], args=[GROUP, entry]):
                            held.add(note.customer)
                if len(rows) < _AT_ONCE:
                    break
                start = f"({rows[-1][0].decode()}"
        return held

    async def _clean_dead_letters(self, notes: Mapping[CustomerId, _Note]) -> None:
        found = [
            letter
            async for letter in self._letters.every(Wanted())
            if any(letter.since_ms <= notes[name].seen_ms for name in people_in(letter) if name in notes)
        ]
        if self._log_in_store:
            # A stray is in the log under a key that isn't the customer's: only its letter tells where.
            for letter in found:
                if letter.topic in CUSTOMER_TOPICS and is_stream_id(letter.position):
                    with reaching_store():
                        await self._redis.xdel(keys.log_stream(letter.topic, letter.id.partition), letter.position)
        for start in range(0, len(found), _AT_ONCE):
            await self._letters.drop(letter.id for letter in found[start : start + _AT_ONCE])

    async def _clean_log(self, partition: int, notes: Mapping[CustomerId, _Note]) -> set[CustomerId]:
        """Remove records that the engine has processed; those of whom there are others, written before this call.

        What was written after the last outbox entry was through is left alone.
        """
        now_ms = await self._store_ms()
        until_ms = {name: now_ms if note.idle_ms is None else note.idle_ms for name, note in notes.items()}
        with reaching_store():
            offsets = await self._redis.hgetall(keys.offsets(partition))
        positions = {text(topic): text(position) for topic, position in offsets.items()}
        last = str(max(until_ms.values()))
        unread: set[CustomerId] = set()
        for topic in CUSTOMER_TOPICS:
            processed = positions.get(topic, _BEGINNING)
            stream = keys.log_stream(topic, partition)
            await self._step_through(stream, "-", processed, until_ms, remove=True)
            unread |= await self._step_through(stream, f"({processed}", last, until_ms, remove=False)
        # Nobody of ours reads it.
        await self._step_through(keys.log_stream(SENT, partition), "-", last, until_ms, remove=True)
        return unread

    async def _step_through(
        self, stream: str, start: str, end: str, until_ms: Mapping[CustomerId, int], *, remove: bool
    ) -> set[CustomerId]:
        found: set[CustomerId] = set()
        people = [part for pair in until_ms.items() for part in pair]
        while start:
            begun_s = self._clock.monotonic_s()
            with reaching_store():
                after, *names = await self._sweep(keys=[stream], args=[start, end, _AT_ONCE, int(remove), *people])
            found |= {CustomerId(text(name)) for name in names}
            start = text(after)
            await asyncio.sleep(_REST * (self._clock.monotonic_s() - begun_s))
        return found


async def note_erasure(redis: Redis, partition: int, customer: CustomerId, visitors: Collection[CustomerId]) -> None:
    """Note in somebody's partition that they are to be erased, together with visitors of whom that is noted already.

    An earlier note gives way: it must not go before the engine has read of this erasure, too.
    """
    beside = [part for visitor in visitors for part in (f"{customer}{_WITH}{visitor}", "")]
    with reaching_store():
        await redis.hset(keys.erasures(partition), customer, ERASURE_ASKED, items=beside)


async def forget_channel(redis: Redis, customer: CustomerId) -> None:
    """Delete the customer's pushes. Who listens stays: a device that is connected will say so itself when it leaves."""
    channel = customer_channel(customer)
    with reaching_store():
        rows = cast("list[tuple[bytes, dict[bytes, bytes]]]", await redis.xrange(keys.channel_stream(channel)))
        names = {name for _, fields in rows for name in _noted(channel, fields.get(b"d", b""))}
        kept = (keys.channel_stream(channel), keys.channel_meta(channel), keys.channel_gone(channel))
        await redis.unlink(*kept, *names)


def _made_ms(entry: bytes) -> int:
    """When the store took an entry in; its id begins with it."""
    return int(entry.partition(b"-")[0])


def _addressee(entry: bytes) -> CustomerId | None:
    try:
        decoded = decode_outbox(entry)
    except (UnicodeDecodeError, msgspec.MsgspecError):
        # The dispatcher buries it, and then it is a dead letter.
        return None
    return CustomerId(decoded.key) if isinstance(decoded, Emitted) else decoded.customer


def _noted(channel: str, publication: bytes) -> list[str]:
    """The keys of what is noted about a message beside the channel."""
    try:
        what = decode_publication(publication)
    except (UnicodeDecodeError, msgspec.MsgspecError):
        return []
    noted = [of(channel, what.message) for of in (keys.channel_once, keys.channel_acked, keys.channel_shown)]
    if isinstance(what, Withdraw):
        noted.append(keys.channel_withdrawn(channel, what.message, what.reason))
    return noted
