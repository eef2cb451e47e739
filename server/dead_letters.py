"""Dead letters, for the people who look after them: find, replay, drop.

A letter is named by its partition and its place in the partition's stream, `2:1790000000000-0`. Replaying puts the
original bytes back to where they came from and then removes the letter: into the log, under the original key, or, for
what the dispatcher buried, into the outbox. A crash in between leaves the letter, so it may be replayed twice. That
changes nothing, because an event is known by its id: one that had none, or no time, is given those that it had when it
arrived. Nothing here decides whether the record will be understood the next time; if not, it is buried again.
"""

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Literal, NamedTuple, cast

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.errors import InputError, NotFound
from nearcast.ids import ANONYMOUS_PREFIX, CustomerId, derived_event_id
from nearcast.topics import CATALOGUE_TOPICS, CUSTOMER_TOPICS, LOCATIONS
from server.log.base import MAX_VALUE_BYTES, Entry, EventLog
from server.store import reaching_store

#: The topic of letters that the dispatcher buried.
OUTBOX = "outbox"
_AT_ONCE = 200
_Rows = list[tuple[bytes, dict[bytes, bytes]]]
_STREAM_ID = re.compile(r"\d{1,20}-\d{1,20}")
#: The members that name a customer, with the JSON string that they hold. `*+` gives nothing back, so no value is slow.
_NAMES = re.compile(rb'"(anonymous_id|uid|customer|key)"\s*:\s*("[^"\\]*+(?:\\.[^"\\]*+)*+")', re.DOTALL)

#: Members of a JSON object that hold coordinates.
_COORDINATES = re.compile(rb'"(lat|lng|lon|long)"\s*:')

#: One letter from the dead letters to the outbox, once: it may have been replayed by another meanwhile.
_TO_OUTBOX = """
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', 'e', ARGV[2])
return 1
"""


class LetterId(NamedTuple):
    """Where a letter is; written `partition:entry`."""

    partition: int
    entry: str

    def __str__(self) -> str:
        return f"{self.partition}:{self.entry}"

    @property
    def buried_ms(self) -> int:
        return int(self.entry.partition("-")[0])


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A record that could not be processed, as it was kept."""

    id: LetterId
    reason: str
    detail: str
    topic: str
    #: In the log: its place in its topic and partition. In the outbox: its entry.
    position: str
    key: str
    value: bytes
    #: When the record reached the log; None for letters that don't say.
    arrived_ms: int | None = None
    #: When `value` was cut, since it held a position that had become too old (`server.forgetting`).
    cut_ms: int | None = None

    @property
    def since_ms(self) -> int:
        """When what it holds was written to the log or the outbox; if it doesn't say, when it was buried."""
        return self.id.buried_ms if self.arrived_ms is None else min(self.arrived_ms, self.id.buried_ms)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters: all that agree with what is given."""

    reason: str | None = None
    topic: str | None = None
    partition: int | None = None

    def covers(self, letter: Letter) -> bool:
        return self.reason in (None, letter.reason) and self.topic in (None, letter.topic)


Outcome = Literal["replayed", "gone", "cut", "no such topic", "too large"]


class DeadLetters:
    """The dead letters of all partitions of one store."""

    def __init__(self, redis: Redis, partitions: int) -> None:
        self._redis = redis
        self._partitions = partitions

    def parse(self, name: str) -> LetterId:
        """The id that a person typed. Raises `InputError`."""
        partition, _, entry = name.partition(":")
        if not partition.isdecimal() or not is_stream_id(entry):
            raise InputError("malformed_id", f"{name!r} is no letter's id; ids look like 2:1790000000000-0")
        if int(partition) >= self._partitions:
            raise InputError("malformed_id", f"{name!r}: there are partitions 0 to {self._partitions - 1} only")
        return LetterId(int(partition), entry)

    async def get(self, letter: LetterId) -> Letter:
        """Raises `NotFound`."""
        found = await self.read([letter])
        if not found:
            raise NotFound("unknown_letter", f"there is no dead letter {letter}; it may have been replayed or dropped")
        return found[0]

    async def read(self, letters: Sequence[LetterId]) -> list[Letter]:
        """Those that are still there, in this order."""
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for letter in letters:
                    pipe.xrange(keys.dead_letters(letter.partition), letter.entry, letter.entry)
                rows = cast("list[_Rows]", await pipe.execute())
        return [_letter(letter.partition, *row) for letter, found in zip(letters, rows, strict=True) for row in found]

    async def every(self, wanted: Wanted, after: str = "-") -> AsyncIterator[Letter]:
        """Those wanted, by partition, oldest first; those after this entry. What is buried meanwhile may come, too."""
        partitions = range(self._partitions) if wanted.partition is None else (wanted.partition,)
        for partition in partitions:
            start = after if after == "-" else f"({after}"
            while True:
                with reaching_store():
                    answer = await self._redis.xrange(keys.dead_letters(partition), start, "+", count=_AT_ONCE)
                found = cast("_Rows", answer)
                for row in found:
                    letter = _letter(partition, *row)
                    if wanted.covers(letter):
                        yield letter
                if len(found) < _AT_ONCE:
                    break
                start = f"({found[-1][0].decode()}"

    async def counts(self, wanted: Wanted) -> Counter[str]:
        """How many of those wanted there are, by reason."""
        return Counter([letter.reason async for letter in self.every(wanted)])

    async def replay(self, letters: Sequence[Letter], log: EventLog) -> dict[LetterId, Outcome]:
        """Put letters back to where they came from, and remove those that are safely there; says what became of each.

        Raises `Unavailable`: then some may have been put back and be dead letters still. Doing it again is harmless.
        """
        outcomes: dict[LetterId, Outcome] = {}
        for_log: list[tuple[LetterId, Entry]] = []
        for letter in letters:
            if letter.cut_ms is not None:
                outcomes[letter.id] = "cut"
            elif letter.topic in (*CUSTOMER_TOPICS, *CATALOGUE_TOPICS):
                entry = entry_of(letter)
                if len(entry.value) <= MAX_VALUE_BYTES:
                    for_log.append((letter.id, entry))
                else:
                    outcomes[letter.id] = "too large"
        for start in range(0, len(for_log), _AT_ONCE):
            some = for_log[start : start + _AT_ONCE]
            await log.append([entry for _, entry in some])
            await self.drop([letter for letter, _ in some])
            outcomes |= dict.fromkeys((letter for letter, _ in some), "replayed")
        for letter in letters:
            if letter.topic == OUTBOX and letter.id not in outcomes:
                names = (keys.dead_letters(letter.id.partition), keys.outbox(letter.id.partition))
                with reaching_store():
                    moved = await self._redis.eval(_TO_OUTBOX, 2, *names, letter.id.entry, letter.value)
                outcomes[letter.id] = "replayed" if moved else "gone"
            elif letter.id not in outcomes:
                outcomes[letter.id] = "no such topic"
        return outcomes

    async def drop(self, letters: Iterable[LetterId]) -> int:
        """Remove letters for good; how many there still were."""
        by_partition: dict[int, list[str]] = {}
        for letter in letters:
            by_partition.setdefault(letter.partition, []).append(letter.entry)
        dropped = 0
        for partition, entries in by_partition.items():
            with reaching_store():
                dropped += await self._redis.xdel(keys.dead_letters(partition), *entries)
        return dropped


def entry_of(letter: Letter) -> Entry:
    """The log record that a letter becomes: the same bytes under the same key.

    Two things are put right. An event without `id` or `ts` keeps those that its place in the log had given it. And a
    record that was in a partition that isn't its customer's goes under the customer's key: under its own it would come
    to the same place again.
    """
    if letter.topic not in CUSTOMER_TOPICS:
        return Entry(letter.topic, letter.key, letter.value)
    try:
        event = msgspec.json.decode(letter.value, type=_Identity)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Entry(letter.topic, letter.key, letter.value)
    given: dict[str, str | int] = {}
    if event.id is None:
        given["id"] = derived_event_id(letter.topic, f"{letter.id.partition}:{letter.position}")
    if not event.ts and letter.arrived_ms is not None:
        given["ts"] = letter.arrived_ms
    key = (event.customer or letter.key) if letter.reason == "wrong_partition" else letter.key
    return Entry(letter.topic, key, _with(given, letter.value))


class _Identity(msgspec.Struct):
    """What makes an event the one it is."""

    type: str | None = None
    id: str | None = None
    ts: int | None = None
    uid: str | None = None
    anonymous_id: str | None = None

    @property
    def customer(self) -> str | None:
        visitor = self.anonymous_id and ANONYMOUS_PREFIX + self.anonymous_id
        return visitor if self.type == "identify" else self.uid or visitor


def _with(given: dict[str, str | int], value: bytes) -> bytes:
    """The JSON object with these members; the others stay as they were written."""
    if not given:
        return value
    fields = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    return msgspec.json.encode(fields | {name: msgspec.Raw(msgspec.json.encode(add)) for name, add in given.items()})


def _letter(partition: int, entry: bytes, kept: dict[bytes, bytes]) -> Letter:
    arrived, cut = kept.get(b"arrived_ms", b""), kept.get(b"cut_ms", b"")
    return Letter(
        id=LetterId(partition, entry.decode()),
        reason=kept.get(b"reason", b"").decode(errors="replace"),
        detail=kept.get(b"detail", b"").decode(errors="replace"),
        topic=kept.get(b"topic", b"").decode(errors="replace"),
        position=kept.get(b"position", b"").decode(errors="replace"),
        key=kept.get(b"key", b"").decode(errors="replace"),
        value=kept.get(b"value", b""),
        arrived_ms=int(arrived) if arrived.isdigit() else None,
        cut_ms=int(cut) if cut.isdigit() else None,
    )


def holds_position(letter: Letter) -> bool:
    """Whether its bytes tell where somebody is; all in the topic of the fixes count, however broken they are."""
    if letter.topic == LOCATIONS:
        return True
    return letter.topic in CUSTOMER_TOPICS and _COORDINATES.search(letter.value) is not None


def is_stream_id(text: str) -> bool:
    """Whether this is how the store names the entries of its streams."""
    return _STREAM_ID.fullmatch(text) is not None


def people_in(letter: Letter) -> set[CustomerId]:
    """Whom a letter is about: by its key, and by the members of its JSON that name somebody, however broken that is."""
    people = {CustomerId(letter.key)}
    for member, value in _NAMES.findall(letter.value):
        try:
            name = msgspec.json.decode(value, type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        people.add(CustomerId(ANONYMOUS_PREFIX + name if member == b"anonymous_id" else name))
    return people
