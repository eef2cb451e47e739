"""The state store: customers, offsets, outbox, timers and dead letters of each partition, committed as one.

The offset lives with the state. What a batch changed and how far it read are written by one script, so after any crash
the log replays exactly what the state has not seen. Taking a partition over raises its epoch; a commit under an older
epoch is refused, so a worker that wakes up late can write nothing (`Fenced`).

A commit whose reply was lost may have happened. The caller must not repeat it: it takes the partition again and
believes the offsets it finds.

How the records look is `server.stored`'s part.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import NamedTuple, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from nearcast import keys
from nearcast.customer import Customer, Presence
from nearcast.decisions import Decision
from nearcast.errors import DeadLettersFull, Fenced, UnreadableState
from nearcast.ids import CustomerId, StoreId, partition_of
from offers.measure import Tally
from server.footfall import DEFAULT_DAYS, Counts, expires_s
from server.placing import partitions_of
from server.store import raw, reaching_store, text
from server.stored import Hot, decode_customer, decode_presence, encode_customer, encode_presence

DECISION_TTL_S = 30 * 86_400
KEPT_DECISIONS = 100
#: Dead letters that a partition may hold before its engine stops: enough to look into a bad day, too few to fill the
#: store.
MAX_DEAD_LETTERS = 10_000
#: How long what became of offers is kept.
MEASURED_DAYS = 400
TIMER_SEPARATOR = "\x1f"

#: Whose hot and whose cold records to read; and what was found.
Wanted = tuple[Sequence[CustomerId], Sequence[CustomerId]]
Found = tuple[list[Hot | UnreadableState], list[bytes | None]]

#: KEYS: the timers. ARGV: members and the scores they must still have, in turn.
_FORGET_TIMERS = """
for i = 1, #ARGV, 2 do
  if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[i])) == tonumber(ARGV[i + 1]) then
    redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
"""

_MSGPACK = msgspec.msgpack.Encoder()
_DECISION = msgspec.json.Decoder(Decision)


# Hashing takes longer than decoding an event.
_partition_of = lru_cache(maxsize=1 << 18)(partition_of)


class Known(NamedTuple):
    """Both records of one customer."""

    customer: Customer
    presence: Presence


class Ownership(NamedTuple):
    """What a worker learns when it takes a partition: its epoch, and the position after which to read each topic."""

    epoch: int
    offsets: dict[str, str]


class DeadLetter(NamedTuple):
    """A record that could not be processed, with everything needed to look into it and to replay it."""

    reason: str
    detail: str
    topic: str
    position: str
    key: str
    arrived_ms: int
    value: bytes


class Timer(NamedTuple):
    """A timer that is due."""

    customer: CustomerId
    kind: str
    due_ms: int


class Spent(msgspec.Struct):
    """A change of what was used of a pool. `expires_s`: when that may be forgotten; 0: never; -1: as it was, and if it
    is forgotten already it stays so."""

    expires_s: int
    pieces: int = 0
    cents: int = 0


class Commit(msgspec.Struct):
    """Everything that one batch changes in one partition.

    `expected` are the offsets that its owner last read or wrote; if the store holds others, it has lost writes.
    """

    partition: int
    epoch: int
    expected: dict[str, str] = {}
    offsets: dict[str, str] = {}
    customers: dict[CustomerId, Customer] = {}
    presences: dict[CustomerId, Presence] = {}
    #: Customer → when the erase event reached the log, in ms.
    erased: dict[CustomerId, int] = {}
    #: Entries, each with when the event that it follows from reached the log (ms); and when the engine had them all.
    outbox: list[tuple[bytes, int]] = []
    fetched_ms: int = 0
    #: (customer, kind) → due time in ms, or 0 to remove the timer.
    timers: dict[tuple[CustomerId, str], int] = {}
    dead_letters: list[DeadLetter] = []
    decisions: list[Decision] = []
    #: Customer → the stores that expect them for a pickup; none to say that no store does any more.
    pickups: dict[CustomerId, list[StoreId]] = {}
    footfall: Counts = msgspec.field(default_factory=Counts)
    #: By pool, what decisions took of budgets, less what came back.
    spent: dict[str, Spent] = {}
    #: What became of promotions' offers.
    tally: Tally = msgspec.field(default_factory=Tally)


class Encoded(NamedTuple):
    """A commit as the store takes it."""

    partition: int
    keys: list[str]
    values: list[bytes | int]
    #: The cold records as they will stand in the store, erased customers' included.
    customers: dict[CustomerId, bytes]


class StateStore:
    """Reads and commits through one Valkey or Redis client. Every failure to reach it is `Unavailable`."""

    def __init__(
        self,
        redis: Redis,
        partitions: int,
        max_dead_letters: int = MAX_DEAD_LETTERS,
        footfall_days: int = DEFAULT_DAYS,
    ) -> None:
        self._redis = redis
        self._partitions = partitions
        self._max_dead_letters = max_dead_letters
        self._footfall_days = footfall_days
        self._script = redis.register_script(resources.files("server").joinpath("commit.lua").read_text())

    @property
    def partitions(self) -> int:
        """Over how many partitions the customers are spread."""
        return self._partitions

    def partition(self, customer: CustomerId) -> int:
        """Where the customer's state is, whichever partition an event of theirs came in."""
        return _partition_of(customer, self._partitions)

    def homes(self, customers: Sequence[CustomerId]) -> list[int]:
        """The same of many at once."""
        return partitions_of(customers, self._partitions)

    async def take(self, partition: int) -> Ownership:
        """Become the owner: every older owner is fenced from here on."""
        with reaching_store():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.incr(keys.epoch(partition))
                pipe.hgetall(keys.offsets(partition))
                epoch, offsets = await pipe.execute()
        return Ownership(epoch, _texts(offsets))

    async def ownerships(self, partitions: Sequence[int]) -> dict[int, Ownership]:
        """What the store holds of each partition, as its last owner left it."""
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for partition in partitions:
                    pipe.get(keys.epoch(partition))
                    pipe.hgetall(keys.offsets(partition))
                answers = await pipe.execute()
        return {
            partition: Ownership(int(epoch or 0), _texts(offsets))
            for partition, epoch, offsets in zip(partitions, answers[::2], answers[1::2], strict=True)
        }

    async def load(self, partition: int, customers: Sequence[CustomerId]) -> list[Known]:
        """The customers' records, in order; someone never heard of is a blank customer. Raises `UnreadableState`."""
        if not customers:
            return []
        hot, cold = (await self.fetch({partition: (customers, customers)}))[partition]
        for record in hot:
            if isinstance(record, UnreadableState):
                raise record
        return [
            Known(decode_customer(customer, data), presence.presence)
            for customer, data, presence in zip(customers, cold, cast("list[Hot]", hot), strict=True)
        ]

    async def fetch(self, wanted: Mapping[int, Wanted]) -> dict[int, Found]:
        """The hot records of some and the cold records of others, by partition, in order, in one round trip.

        Cold ones come as they are stored (`server.stored.decode_customer`). A hot one that can't be decoded is returned
        as the error that says why: the others are good.
        """
        with reaching_store():
            pipe = self._redis.pipeline(transaction=False)
            for partition, (hot, cold) in wanted.items():
                names = [f"{keys.presence(partition, '')}{customer}" for customer in hot]
                pipe.mget(names + [f"{keys.customer(partition, '')}{customer}" for customer in cold])
            answers = await pipe.execute() if wanted else []
        return {
            partition: (
                [_presence(customer, blob) for customer, blob in zip(hot, blobs, strict=False)],
                [None if blob is None else raw(blob) for blob in blobs[len(hot) :]],
            )
            for (partition, (hot, _)), blobs in zip(wanted.items(), answers, strict=True)
        }

    async def read(self, customer: CustomerId) -> Known | None:
        """One customer as last committed, or None if nothing is known of them."""
        known = (await self.load(self.partition(customer), [customer]))[0]
        return known if known != Known(Customer(id=customer), Presence()) else None

    async def expected_at(self, store: StoreId) -> list[tuple[CustomerId, Presence]]:
        """Who is expected in a store for a pickup, or there. Whose record can't be decoded is left out."""
        with reaching_store():
            pipe = self._redis.pipeline(transaction=False)
            for partition in range(self._partitions):
                pipe.hgetall(keys.pickups(partition))
            answers = await pipe.execute()
        people = {
            partition: [name for name, stores in _texts(rows).items() if store in stores.split(TIMER_SEPARATOR)]
            for partition, rows in enumerate(answers)
        }
        wanted: dict[int, Wanted] = {
            partition: ([CustomerId(name) for name in names], ()) for partition, names in people.items() if names
        }
        found = await self.fetch(wanted)
        return [
            (customer, record.presence)
            for partition, (hot, _) in found.items()
            for customer, record in zip(wanted[partition][0], hot, strict=True)
            if not isinstance(record, UnreadableState)
        ]

    async def decision(self, customer: CustomerId, decision: str) -> Decision | None:
        """A decision about this customer; None if there is none, or it is somebody else's."""
        with reaching_store():
            data = await self._redis.get(keys.decision(self.partition(customer), decision))
        found = None if data is None else _DECISION.decode(data)
        return found if found is not None and found.customer == customer else None

    async def decisions(self, customer: CustomerId, limit: int) -> list[Decision]:
        """The customer's latest decisions, newest first."""
        partition = self.partition(customer)
        with reaching_store():
            ids = await self._redis.lrange(keys.decisions_of(partition, customer), 0, limit - 1)
            blobs = await self._redis.mget([keys.decision(partition, text(name)) for name in ids]) if ids else []
        return [_DECISION.decode(blob) for blob in blobs if blob is not None]

    async def due_timers(self, partition: int, now_ms: int, limit: int = 1_000) -> list[Timer]:
        """Timers whose time has come, earliest first."""
        with reaching_store():
            rows = await self._redis.zrange(
                keys.timers(partition), "-inf", now_ms, byscore=True, offset=0, num=limit, withscores=True
            )
        timers = []
        for member, score in cast("list[tuple[bytes, float]]", rows):
            kind, _, customer = text(member).partition(TIMER_SEPARATOR)
            timers.append(Timer(CustomerId(customer), kind, int(score)))
        return timers

    def encode(self, batch: Commit) -> Encoded:
        """Turn a batch into what is sent, without sending it: what can't be encoded shows here."""
        partition = batch.partition
        customers = {customer: encode_customer(cold) for customer, cold in batch.customers.items()}
        blank = {customer: encode_customer(Customer(id=customer)) for customer in batch.erased}
        # Nearly all of a batch are fixes. As one argument they cost a third of what a key and a value each would.
        hot: list[str] = []
        for customer, presence in batch.presences.items():
            hot += (customer, encode_presence(presence))
        fixed = [
            keys.epoch(partition),
            keys.offsets(partition),
            keys.outbox(partition),
            keys.timers(partition),
            keys.dead_letters(partition),
            keys.opt_outs(partition),
            keys.erasures(partition),
        ]
        rest = {
            "expected": batch.expected,
            "offsets": batch.offsets,
            "hot": hot,
            "erased": batch.erased,
            "outbox": [(entry.decode(), f"{arrived_ms} {batch.fetched_ms}") for entry, arrived_ms in batch.outbox],
            "timers": {f"{kind}{TIMER_SEPARATOR}{customer}": due for (customer, kind), due in batch.timers.items()},
            "dead_letters": [letter[:-1] for letter in batch.dead_letters],
            "footfall": batch.footfall.live,
            "counters": {
                keys.footfall_day(partition, store, day): (expires_s(day, self._footfall_days), fields)
                for (store, day), fields in batch.footfall.days.items()
            }
            | {
                keys.spent(partition, pool): (spent.expires_s, {"pieces": spent.pieces, "cents": spent.cents})
                for pool, spent in batch.spent.items()
            }
            | {
                keys.measured_day(partition, day): (expires_s(day, MEASURED_DAYS), fields)
                for day, fields in batch.tally.days.items()
            },
            "decisions": [
                (decision.id, decision.customer, msgspec.json.encode(decision).decode()) for decision in batch.decisions
            ],
            "pickups": {customer: TIMER_SEPARATOR.join(stores) for customer, stores in batch.pickups.items()},
            "pickups_key": keys.pickups(partition),
            "customer_prefix": keys.customer(partition, ""),
            "presence_prefix": keys.presence(partition, ""),
            "decision_prefix": keys.decision(partition, ""),
            "decisions_prefix": keys.decisions_of(partition, ""),
            "footfall_key": keys.footfall(partition),
            "decision_ttl": DECISION_TTL_S,
            "kept_decisions": KEPT_DECISIONS,
            "max_dead_letters": self._max_dead_letters,
        }
        letters = [letter.value for letter in batch.dead_letters]
        return Encoded(
            partition,
            [*fixed, *(f"{keys.customer(partition, '')}{customer}" for customer in customers)],
            [batch.epoch, len(customers), *customers.values(), _MSGPACK.encode(rest), *letters],
            blank | customers,
        )

    async def commit(self, batches: Sequence[Encoded]) -> None:
        """Write the batches of several partitions, each all or nothing, in one round trip.

        Raises `Fenced` if a partition's worker is not its owner any more, or must read anew; `DeadLettersFull` if its
        dead letters would be too many. The other partitions' batches are written all the same.
        """
        with reaching_store():
            replies = await self._run_script(batches)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                # The store came back without its scripts; nothing of these was run.
                await self._redis.script_load(self._script.script)
                missing = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
                for at, reply in zip(missing, await self._run_script([batches[at] for at in missing]), strict=True):
                    replies[at] = reply
            for batch, reply in zip(batches, replies, strict=True):
                if isinstance(reply, ResponseError) and "FENCED" in str(reply):
                    raise Fenced(f"partition {batch.partition}: {reply}")
                if isinstance(reply, ResponseError) and "DEAD_LETTERS_FULL" in str(reply):
                    raise DeadLettersFull(too_many_dead_letters(batch.partition, self._max_dead_letters))
                if isinstance(reply, Exception):
                    raise reply

    async def _run_script(self, batches: Sequence[Encoded]) -> list[object]:
        pipe = self._redis.pipeline(transaction=False)
        for batch in batches:
            pipe.evalsha(self._script.sha, len(batch.keys), *batch.keys, *batch.values)
        return list(await pipe.execute(raise_on_error=False))

    async def forget_timers(self, partition: int, timers: Sequence[Timer]) -> None:
        """Remove timers that the log now carries, unless they have been set anew meanwhile."""
        rows: list[str | int] = []
        for timer in timers:
            rows += (f"{timer.kind}{TIMER_SEPARATOR}{timer.customer}", timer.due_ms)
        with reaching_store():
            await self._redis.eval(_FORGET_TIMERS, 1, keys.timers(partition), *rows)


def _texts(offsets: Mapping[bytes | str, bytes | str]) -> dict[str, str]:
    return {text(topic): text(position) for topic, position in offsets.items()}


def too_many_dead_letters(partition: int, limit: int) -> str:
    """What to tell the people who run an engine that stopped because of its dead letters."""
    return (
        f"partition {partition} would hold more than {limit} dead letters (NEARCAST_DEAD_LETTERS_LIMIT). Nothing was "
        "thrown away. `nearcast dead-letters list` shows what they are; replay or drop them, then start again"
    )


def _presence(customer: CustomerId, blob: bytes | str | None) -> Hot | UnreadableState:
    try:
        return decode_presence(customer, None if blob is None else raw(blob))
    except UnreadableState as error:
        return error
