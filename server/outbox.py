"""The outbox as dispatchers see it: one Valkey stream per partition, read by one consumer group.

The engine appends entries with its commit. A dispatcher takes them here; what it has taken stays its own as long as it
keeps calling `read`, and goes to another one after `idle_ms` of silence (a crash, a pause). What the same consumer name
had taken before a restart comes back first. So `consumer` must be unique among the dispatchers that run.

Entries of one partition come in order. With several dispatchers two entries of one customer may be with different
ones; that is the price of not having an owner per partition here.

An entry that can't be decoded, or that nobody will ever accept, goes to the partition's dead letters and out of the
stream in one script.
"""

import logging
from collections import deque
from collections.abc import Sequence
from typing import cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from redis.typing import KeyT, StreamIdT

from channels.dispatcher import Pending
from nearcast import keys
from nearcast.clock import Clock, SystemClock
from nearcast.errors import InputError
from nearcast.messages import Emitted, decode_outbox, encode_outbox
from nearcast.metrics import DEAD_LETTERS
from server.store import reaching_store

log = logging.getLogger("nearcast.server")

GROUP = "dispatchers"

#: Lets the idle time of those entries that are still this consumer's begin anew. In one script, so that an entry that
#: another dispatcher has just claimed isn't taken back. KEYS: the stream. ARGV: the group, the consumer, when the idle
#: time begins (Unix time in ms by the store's clock; "" for now), the entries. Returns when it begins.
_KEEP = """
local from = ARGV[3]
if from == '' then
  local now = redis.call('TIME')
  from = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
end
for i = 4, #ARGV do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) > 0 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'TIME', from, 'JUSTID')
  end
end
return from
"""

#: Forgets the consumers that have not asked for so long and hold nothing. KEYS: the stream. ARGV: the group, the time
#: in ms. One that is there after all is made anew by its next read.
_FORGET = """
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #row, 2 do
    consumer[row[i]] = row[i + 1]
  end
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
  end
end
"""
_FORGET_AFTER_MS = 86_400_000

#: So many entries at a time, that nobody else waits long for the store.
_KEEP_AT_ONCE = 500

#: KEYS: the stream, the dead letters. ARGV: the group, the entry, the letter's fields.
#: Returns 1 the first time; an entry that is gone already is no second dead letter. Nothing is trimmed, and the
#: engine's limit is not asked: there can't be more of these letters than there were entries.
_BURY = """
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
if redis.call('XDEL', KEYS[1], ARGV[2]) == 0 then
  return 0
end
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3))
return 1
"""

Fields = dict[bytes, bytes]


class ValkeyOutbox:
    """Implements `channels.dispatcher.Outbox`. For one dispatcher: `read` is called by one task at a time.

    `redis` must return bytes (`decode_responses=False`) and allow answers to take longer than the longest wait.
    """

    def __init__(
        self,
        redis: Redis,
        partitions: Sequence[int],
        consumer: str,
        *,
        idle_ms: int = 30_000,
        upkeep_s: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self._redis = redis
        # Blocking reads get a connection of their own, so that nothing waits behind them.
        self._reader = redis.client()
        self._streams = {keys.outbox(partition): partition for partition in partitions}
        self._consumer = consumer
        self._idle_ms = idle_ms
        self._upkeep_s = upkeep_s
        self._clock = clock or SystemClock()
        self._next_upkeep_s = -1.0
        self._grouped = False
        #: Streams whose entries from before a restart are still to be read again, and after which id.
        self._again = dict.fromkeys(self._streams, "0")
        self._held: set[tuple[int, str]] = set()
        self._ready: deque[Pending] = deque()

    async def read(self, max_entries: int, wait_ms: int) -> list[Pending]:
        with reaching_store():
            try:
                await self._fill(max_entries, wait_ms)
            except ResponseError as error:
                # A store that came back without its data; the groups are made again the next time.
                self._grouped = self._grouped and "NOGROUP" not in str(error)
                raise
        return [self._ready.popleft() for _ in range(min(max_entries, len(self._ready)))]

    async def done(self, pendings: Sequence[Pending]) -> None:
        by_partition: dict[int, list[str]] = {}
        for pending in pendings:
            by_partition.setdefault(pending.partition, []).append(pending.entry_id)
        with reaching_store():
            async with self._redis.pipeline(transaction=True) as pipe:
                for partition, entry_ids in by_partition.items():
                    pipe.xack(keys.outbox(partition), GROUP, *entry_ids)
                    pipe.xdel(keys.outbox(partition), *entry_ids)
                await pipe.execute()
        self._held.difference_update((pending.partition, pending.entry_id) for pending in pendings)

    async def bury(self, pending: Pending, error: InputError) -> None:
        entry = pending.entry
        key = entry.key if isinstance(entry, Emitted) else entry.customer
        with reaching_store():
            await self._bury(
                pending.partition, pending.entry_id, error.reason, error.detail, key, encode_outbox(pending.entry)
            )

    def release(self, pending: Pending) -> None:
        # Nobody keeps it from going idle now: if it is still ours, it is claimed like any other silent one's.
        self._held.discard((pending.partition, pending.entry_id))

    async def close(self) -> None:
        """Give the reading connection back. Entries taken and not done come back to this or another dispatcher."""
        await self._reader.aclose()

    async def _fill(self, max_entries: int, wait_ms: int) -> None:
        if not self._grouped:
            await self._make_groups()
        if self._clock.monotonic_s() >= self._next_upkeep_s:
            await self._keep_held()
            await self._claim_abandoned(max_entries)
            self._next_upkeep_s = self._clock.monotonic_s() + self._upkeep_s
        if max_entries and not self._ready:
            await self._read_again(max_entries)
        if max_entries and not self._ready:
            await self._read_new(max_entries, wait_ms)

    async def _make_groups(self) -> None:
        for stream in self._streams:
            try:
                await self._redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
            # Each start that adds a name of its own takes away those of long ago.
            await self._redis.eval(_FORGET, 1, stream, GROUP, _FORGET_AFTER_MS)
        self._grouped = True

    async def _read_again(self, max_entries: int) -> None:
        """What this consumer had taken and not finished when it last stopped."""
        while self._again and not self._ready:
            answer = await self._group_read(self._again, max_entries, None)
            found = {stream: entries for stream, entries in answer if entries}
            for stream in list(self._again):
                if stream not in found:
                    del self._again[stream]
                    continue
                self._again[stream] = found[stream][-1][0].decode()
                await self._take(stream, found[stream])

    async def _read_new(self, max_entries: int, wait_ms: int) -> None:
        for stream, entries in await self._group_read(dict.fromkeys(self._streams, ">"), max_entries, wait_ms or None):
            await self._take(stream, entries)

    async def _group_read(
        self, after: dict[str, str], max_entries: int, wait_ms: int | None
    ) -> list[tuple[str, list[tuple[bytes, Fields | None]]]]:
        # COUNT is per stream; what is too much stays in `_ready` for the next call.
        count = max(1, max_entries // len(after))
        streams: dict[KeyT, StreamIdT] = {name: after[name] for name in after}
        answer = await self._reader.xreadgroup(GROUP, self._consumer, streams, count=count, block=wait_ms)
        # redis-py's declared type covers every protocol and decoding; this is the one we ask for.
        found = cast("list[tuple[bytes, list[tuple[bytes, Fields | None]]]]", answer or [])
        return [(stream.decode(), entries) for stream, entries in found]

    async def _claim_abandoned(self, max_entries: int) -> None:
        """Take over what has been with a dispatcher that is silent for too long."""
        for stream in self._streams:
            start = "0-0"
            while len(self._ready) < max_entries:
                answer = await self._redis.xautoclaim(
                    stream, GROUP, self._consumer, self._idle_ms, start_id=start, count=max_entries
                )
                await self._take(stream, answer[1])
                start = answer[0].decode()
                if start == "0-0":
                    break

    async def _keep_held(self) -> None:
        by_partition: dict[int, list[str]] = {}
        for partition, entry_id in self._held:
            by_partition.setdefault(partition, []).append(entry_id)
        for partition, entry_ids in by_partition.items():
            # Should this be the last time, they are to be taken over in order: all from the same moment on, and where
            # it ends half way, the older ones before those that were kept.
            entry_ids.sort(key=_place, reverse=True)
            begins = ""
            for start in range(0, len(entry_ids), _KEEP_AT_ONCE):
                some = entry_ids[start : start + _KEEP_AT_ONCE]
                begins = await self._redis.eval(_KEEP, 1, keys.outbox(partition), GROUP, self._consumer, begins, *some)

    async def _take(self, stream: str, entries: Sequence[tuple[bytes, Fields | None]]) -> None:
        partition = self._streams[stream]
        for raw_id, fields in entries:
            entry_id = raw_id.decode()
            if (partition, entry_id) in self._held:
                continue
            if not fields:
                # Deleted, but still on our list: a `done` that was cut off half way.
                await self._redis.xack(stream, GROUP, entry_id)
                continue
            try:
                entry = decode_outbox(fields[b"e"])
            except (KeyError, UnicodeDecodeError, msgspec.MsgspecError) as error:
                value = fields.get(b"e", b"")
                await self._bury(partition, entry_id, "malformed_outbox_entry", str(error), "", value)
                continue
            self._held.add((partition, entry_id))
            self._ready.append(Pending(partition, entry_id, entry, _times_ms(entry_id, fields)))

    async def _bury(self, partition: int, entry_id: str, reason: str, detail: str, key: str, value: bytes) -> None:
        letter: dict[str, str | bytes] = {
            "reason": reason,
            "detail": detail[:1_000],
            "topic": "outbox",
            "position": entry_id,
            "key": key,
            "value": value,
            # An entry's id begins with the time of the commit that wrote it.
            "arrived_ms": entry_id.partition("-")[0],
        }
        fields = [part for item in letter.items() for part in item]
        streams = (keys.outbox(partition), keys.dead_letters(partition))
        if await self._redis.eval(_BURY, 2, *streams, GROUP, entry_id, *fields):
            DEAD_LETTERS.labels(reason).inc()
            log.error("outbox entry %s of partition %d is a dead letter: %s", entry_id, partition, reason)


def _place(entry_id: str) -> tuple[int, int]:
    """Where an entry stands in its stream."""
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)


def _times_ms(entry_id: str, fields: Fields) -> tuple[int, ...]:
    """When an entry's event arrived, when the engine had it, when it was committed; () for an entry put in by hand."""
    arrived_ms, _, fetched_ms = fields.get(b"t", b"").partition(b" ")
    # An entry's id begins with the time of the commit that wrote it.
    committed_ms = entry_id.partition("-")[0]
    known = arrived_ms.isdigit() and fetched_ms.isdigit()
    return (int(arrived_ms), int(fetched_ms), int(committed_ms)) if known else ()
