"""The rest of an erasure: what the engine's commit can't reach, removed in the background until nothing is left.

Erasing a customer begins in the log: the engine deletes state, place, timers, decisions and the opt-out, and notes the
customer as to be erased (`nearcast.keys.erasures`), in one commit. From that note on, this cleans the outbox, the
coupons, the personal channel, the dead letters, and, where the store is the event log, the log. The note goes last.
Every step may be repeated, so a crash, or a second worker that does the same, changes nothing.

What is under way is waited for, not taken away: a message that a dispatcher has in its hands ends in a receipt, which
is one more record in the log. So an erasure is complete when nobody holds an entry about the customer any more, and the
engine has read all that the log holds of them until then. What they do afterwards is a new record, and none of this.

Nothing here logs whom it is about.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from importlib import resources
from typing import cast

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.clock import Clock
from nearcast.errors import Unavailable
from nearcast.ids import CustomerId
from nearcast.messages import Message, Push, decode_outbox
from nearcast.topics import CUSTOMER_TOPICS
from server.coupons import CouponBook
from server.dead_letters import DeadLetters, Wanted, is_about, is_stream_id
from server.outbox import GROUP
from server.store import reaching_store, text

logger = logging.getLogger("nearcast.server.eraser")

#: Stands in the note until the engine has erased the state.
ERASURE_ASKED = "asked"
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

#: Takes the note away, unless the customer has been erased again. KEYS: the notes. ARGV: the customer, what it said.
_FINISH = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
"""


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
        #: When each note was first seen, by the monotonic clock, with what it said.
        self._seen: dict[tuple[int, CustomerId, str], float] = {}

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
        with reaching_store():
            rows = await self._redis.hgetall(keys.erasures(partition))
        notes = {CustomerId(text(name)): text(note) for name, note in rows.items() if text(note) != ERASURE_ASKED}
        now_s = self._clock.monotonic_s()
        seen = {(partition, *note): self._seen.get((partition, *note), now_s) for note in notes.items()}
        self._seen = {key: at_s for key, at_s in self._seen.items() if key[0] != partition} | seen
        ripe = {name for name, note in notes.items() if now_s >= seen[partition, name, note] + self._settle_s}
        if not ripe:
            return 0
        # The order counts: what leaves the outbox may put a last record into the log.
        open_ = await self._clean_outboxes(ripe)
        await self._clean_dead_letters(ripe)
        for customer in ripe:
            await self._coupons.forget(customer)
            await forget_channel(self._redis, customer)
        if self._log_in_store:
            open_ |= await self._clean_log(partition, ripe)
        for customer in ripe - open_:
            with reaching_store():
                await self._finish(keys=[keys.erasures(partition)], args=[customer, notes[customer]])
        if ripe - open_:
            logger.info("%d erasures in partition %d are complete", len(ripe - open_), partition)
        return len(ripe - open_)

    async def _clean_outboxes(self, customers: Collection[CustomerId]) -> set[CustomerId]:
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
                        if customer is None or customer not in customers:
                            continue
                        if not await self._discard(keys=[outbox], args=[GROUP, entry]):
                            held.add(customer)
                if len(rows) < _AT_ONCE:
                    break
                start = f"({rows[-1][0].decode()}"
        return held

    async def _clean_dead_letters(self, customers: Collection[CustomerId]) -> None:
        tests = [is_about(customer) for customer in customers]
        found = [letter async for letter in self._letters.every(Wanted()) if any(test(letter) for test in tests)]
        if self._log_in_store:
            # A stray is in the log under a key that isn't the customer's: only its letter tells where.
            for letter in found:
                if letter.topic in CUSTOMER_TOPICS and is_stream_id(letter.position):
                    with reaching_store():
                        await self._redis.xdel(keys.log_stream(letter.topic, letter.id.partition), letter.position)
        for start in range(0, len(found), _AT_ONCE):
            await self._letters.drop(letter.id for letter in found[start : start + _AT_ONCE])

    async def _clean_log(self, partition: int, customers: Collection[CustomerId]) -> set[CustomerId]:
        """Remove records that the engine has processed; those of whom there are others, written before this call."""
        with reaching_store():
            seconds, microseconds = await self._redis.time()
            offsets = await self._redis.hgetall(keys.offsets(partition))
        positions = {text(topic): text(position) for topic, position in offsets.items()}
        until = str(seconds * 1_000 + microseconds // 1_000)
        unread: set[CustomerId] = set()
        for topic in CUSTOMER_TOPICS:
            processed = positions.get(topic, _BEGINNING)
            stream = keys.log_stream(topic, partition)
            await self._step_through(stream, "-", processed, customers, remove=True)
            unread |= await self._step_through(stream, f"({processed}", until, customers, remove=False)
        return unread

    async def _step_through(
        self, stream: str, start: str, end: str, customers: Collection[CustomerId], *, remove: bool
    ) -> set[CustomerId]:
        found: set[CustomerId] = set()
        while start:
            begun_s = self._clock.monotonic_s()
            with reaching_store():
                after, *names = await self._sweep(keys=[stream], args=[start, end, _AT_ONCE, int(remove), *customers])
            found |= {CustomerId(text(name)) for name in names}
            start = text(after)
            await asyncio.sleep(_REST * (self._clock.monotonic_s() - begun_s))
        return found


async def forget_channel(redis: Redis, customer: CustomerId) -> None:
    """Delete the customer's pushes. Who listens stays: a device that is connected will say so itself when it leaves."""
    channel = f"customer:{customer}"
    with reaching_store():
        rows = cast("list[tuple[bytes, dict[bytes, bytes]]]", await redis.xrange(keys.channel_stream(channel)))
        messages = {_message(fields.get(b"d", b"")) for _, fields in rows}
        once = [keys.channel_once(channel, message) for message in messages if message]
        await redis.unlink(keys.channel_stream(channel), keys.channel_meta(channel), *once)


def _addressee(entry: bytes) -> CustomerId | None:
    try:
        decoded = decode_outbox(entry)
    except (UnicodeDecodeError, msgspec.MsgspecError):
        # The dispatcher buries it, and then it is a dead letter.
        return None
    return decoded.customer if isinstance(decoded, Message) else CustomerId(decoded.key)


def _message(push: bytes) -> str | None:
    try:
        return msgspec.json.decode(push, type=Push).message
    except (UnicodeDecodeError, msgspec.MsgspecError):
        return None
