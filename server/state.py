"""The state store: customers, offsets, outbox, timers and dead letters of each partition, committed as one.

The offset lives with the state. What a batch changed and how far it read are written by one script, so after any crash
the log replays exactly what the state has not seen. Taking a partition over raises its epoch; a commit under an older
epoch is refused, so a worker that wakes up late can write nothing (`Fenced`).

A commit whose reply was lost may have happened. The caller must not repeat it: it takes the partition again and
believes the offsets it finds.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import NamedTuple, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from nearcast import keys
from nearcast.customer import Customer, Presence
from nearcast.decisions import Decision
from nearcast.errors import Fenced
from nearcast.ids import CustomerId, partition_of
from server.store import raw, reaching_store, text

DECISION_TTL_S = 30 * 86_400
KEPT_DECISIONS = 100
#: Dead letters kept per partition: enough to look into a bad day, too few to fill the store.
KEPT_DEAD_LETTERS = 100_000
TIMER_SEPARATOR = "\x1f"

_CUSTOMER = msgspec.msgpack.Decoder(Customer)
_PRESENCE = msgspec.msgpack.Decoder(Presence)
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
    value: bytes


class Timer(NamedTuple):
    """A timer that is due."""

    customer: CustomerId
    kind: str
    due_ms: int


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
    erased: set[CustomerId] = set()
    outbox: list[bytes] = []
    #: (customer, kind) → due time in ms, or 0 to remove the timer.
    timers: dict[tuple[CustomerId, str], int] = {}
    dead_letters: list[DeadLetter] = []
    decisions: list[Decision] = []


class Encoded(NamedTuple):
    """A commit as the store takes it."""

    partition: int
    keys: list[str]
    values: list[bytes | int]


class StateStore:
    """Reads and commits through one Valkey or Redis client. Every failure to reach it is `Unavailable`."""

    def __init__(self, redis: Redis, partitions: int) -> None:
        self._redis = redis
        self._partitions = partitions
        self._commit = redis.register_script(resources.files("server").joinpath("commit.lua").read_text())

    def partition(self, customer: CustomerId) -> int:
        """Where the customer's state is, whichever partition an event of theirs came in."""
        return _partition_of(customer, self._partitions)

    async def take(self, partition: int) -> Ownership:
        """Become the owner: every older owner is fenced from here on."""
        with reaching_store():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.incr(keys.epoch(partition))
                pipe.hgetall(keys.offsets(partition))
                epoch, offsets = await pipe.execute()
        return Ownership(epoch, {text(topic): text(position) for topic, position in offsets.items()})

    async def load(self, partition: int, customers: Sequence[CustomerId]) -> list[Known]:
        """The customers' records, in order; someone never heard of is a blank customer."""
        if not customers:
            return []
        wanted = [keys.customer(partition, customer) for customer in customers]
        wanted += [keys.presence(partition, customer) for customer in customers]
        with reaching_store():
            blobs = await self._redis.mget(wanted)
        cold, hot = blobs[: len(customers)], blobs[len(customers) :]
        return [
            Known(
                Customer(id=customer) if profile is None else _CUSTOMER.decode(raw(profile)),
                Presence() if presence is None else _PRESENCE.decode(raw(presence)),
            )
            for customer, profile, presence in zip(customers, cold, hot, strict=True)
        ]

    async def read(self, customer: CustomerId) -> Known | None:
        """One customer as last committed, or None if nothing is known of them."""
        known = (await self.load(self.partition(customer), [customer]))[0]
        return known if known != Known(Customer(id=customer), Presence()) else None

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
        sets: dict[str, bytes] = {}
        for customer, cold in batch.customers.items():
            sets[keys.customer(partition, customer)] = _MSGPACK.encode(cold)
        for customer, hot in batch.presences.items():
            sets[keys.presence(partition, customer)] = _MSGPACK.encode(hot)
        fixed = [
            keys.epoch(partition),
            keys.offsets(partition),
            keys.outbox(partition),
            keys.timers(partition),
            keys.dead_letters(partition),
            keys.opt_outs(partition),
        ]
        rest = {
            "expected": batch.expected,
            "offsets": batch.offsets,
            "erased": list(batch.erased),
            "outbox": [entry.decode() for entry in batch.outbox],
            "timers": {f"{kind}{TIMER_SEPARATOR}{customer}": due for (customer, kind), due in batch.timers.items()},
            "dead_letters": [letter[:-1] for letter in batch.dead_letters],
            "decisions": [
                (decision.id, decision.customer, msgspec.json.encode(decision).decode()) for decision in batch.decisions
            ],
            "customer_prefix": keys.customer(partition, ""),
            "presence_prefix": keys.presence(partition, ""),
            "decision_prefix": keys.decision(partition, ""),
            "decisions_prefix": keys.decisions_of(partition, ""),
            "decision_ttl": DECISION_TTL_S,
            "kept_decisions": KEPT_DECISIONS,
            "kept_dead_letters": KEPT_DEAD_LETTERS,
        }
        letters = [letter.value for letter in batch.dead_letters]
        return Encoded(
            partition,
            [*fixed, *sets],
            [batch.epoch, len(sets), *sets.values(), _MSGPACK.encode(rest), *letters],
        )

    async def commit(self, batch: Encoded) -> None:
        """Write a batch, all or nothing. Raises `Fenced` if its worker is not the owner any more, or must read anew."""
        with reaching_store():
            try:
                await self._commit(keys=batch.keys, args=batch.values)
            except ResponseError as error:
                if "FENCED" in str(error):
                    raise Fenced(f"partition {batch.partition}: {error}") from None
                raise

    async def forget_timer(self, partition: int, timer: Timer) -> None:
        """Remove a timer that the log now carries, unless it has been set anew meanwhile."""
        member = f"{timer.kind}{TIMER_SEPARATOR}{timer.customer}"
        with reaching_store():
            await self._redis.eval(
                "if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1])) == tonumber(ARGV[2]) then "
                "redis.call('ZREM', KEYS[1], ARGV[1]) end",
                1,
                keys.timers(partition),
                member,
                timer.due_ms,
            )
