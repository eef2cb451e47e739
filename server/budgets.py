"""Budgets of promotions: how many offers and how much money may still go out, never overspent, at engine speed.

    pool (one budget) --take--> granted to a partition --decisions--> used
                      <--give-- what it doesn't use

The pool counts what it has *granted* to each partition; each partition counts what its decisions have *used*, in the
same commit that makes them. A partition's owner decides within the difference, in memory, and asks the pool for more
only when that runs out. So:

* Never overspent: the pool grants no more than its limit, and no partition uses more than it was granted. A partition
  has one owner: commits of an older one are refused (its epoch), and so are its steps here.
* Nothing leaks in a crash: what was granted and not used is still the difference of two stored numbers, and the next
  owner of the partition goes on with it. Every partition keeps the names of the pools that it may hold something of.
* Exact when quiet: what a partition has not touched for `IDLE_S` goes back to the pool, where any other may take it.
  The last pieces are granted one by one.

What a decision used comes back only if it is certain that nothing was sent (`Receipt.unsent`).

The limit comes with each request, from the caller's version of the world; the newest version that anyone came with
counts. Under one lowered below what is granted nothing more is granted; what was granted may still be used.

What is kept: names of promotions and stores, and amounts; no customers.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.clock import Clock
from nearcast.decisions import Charge
from nearcast.errors import Fenced
from offers.budgets import Limit
from server.store import reaching_store, text

#: A lease that nobody has drawn on for so long is given back.
IDLE_S = 1.0
#: How long an exhausted pool is left alone: somebody may give back what they didn't need.
ASK_AGAIN_S = 0.1
#: How many pools `usages` looks at with one request.
_ASKED_AT_ONCE = 50

#: Puts pools on the partition's list, or takes them off; 0 if another worker owns the partition by now.
#: KEYS: the partition's epoch, its list of pools. ARGV: the epoch, SADD or SREM, the pools.
_LIST = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for n = 3, #ARGV do redis.call(ARGV[2], KEYS[2], ARGV[n]) end
return 1
"""


class Usage(NamedTuple):
    """What is out of a pool: used by decisions, and held by engines for those to come."""

    used_pieces: int
    used_cents: int
    held_pieces: int
    held_cents: int


class _Lease(msgspec.Struct):
    """What one partition has of one pool. `used` includes what is about to be committed."""

    granted: tuple[int, int]
    used: tuple[int, int]
    touched_s: float
    #: The pool had less than was asked for, then.
    refused_s: float = float("-inf")

    def has(self, pieces: int, cents: int) -> bool:
        return self.used[0] + pieces <= self.granted[0] and self.used[1] + cents <= self.granted[1]


class Demand(msgspec.Struct):
    """What a round of decisions may take of a pool."""

    limit: Limit
    pieces: int = 0
    cents: int = 0


class Leases:
    """What an engine's partitions hold. For one engine, used by one task; everything async raises `Unavailable`.

    After `Unavailable` or `Fenced` what is known here may be wrong: `take_over` begins anew.
    """

    def __init__(self, redis: Redis, partitions: int, clock: Clock) -> None:
        self._redis = redis
        self._partitions = partitions
        self._clock = clock
        self._step = redis.register_script(Path(__file__).with_suffix(".lua").read_text(encoding="utf-8"))
        self._list = redis.register_script(_LIST)
        self._epochs: dict[int, int] = {}
        self._leases: dict[tuple[int, str], _Lease] = {}
        self._looked_s = float("-inf")

    async def take_over(self, epochs: Mapping[int, int]) -> None:
        """Own these partitions from now on, and only these; with what their owners before had and did not use."""
        self._epochs = dict(epochs)
        self._leases = {}
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for partition in epochs:
                    pipe.smembers(keys.leases(partition))
                listed = await pipe.execute()
        left = [(partition, text(pool)) for partition, pools in zip(epochs, listed, strict=True) for pool in pools]
        await self._open(dict.fromkeys(left, Demand(Limit(None, None))), version=0)

    async def reach(self, wanted: Mapping[tuple[int, str], Demand], version: int) -> None:
        """See to it that each partition has what its decisions may take of each pool, as far as there is any left.

        `version` is that of the world which the limits are from. No round trip while what is here is enough.
        """
        now_s = self._clock.monotonic_s()
        short = {}
        for place, demand in wanted.items():
            lease = self._leases.get(place)
            if lease is None or (not lease.has(demand.pieces, demand.cents) and now_s >= lease.refused_s + ASK_AGAIN_S):
                short[place] = demand
        await self._open(short, version)

    def has_room(self, partition: int, charges: Iterable[Charge]) -> bool:
        """Whether an offer can take its shares now; ask after `reach`."""
        return all(
            (lease := self._leases.get((partition, each.pool))) is not None and lease.has(each.pieces, each.cents)
            for each in charges
        )

    def spend(self, partition: int, charges: Iterable[Charge]) -> None:
        """An offer takes its shares, for which there is room; committed with the decision."""
        for each in charges:
            lease = self._leases[partition, each.pool]
            lease.used = (lease.used[0] + each.pieces, lease.used[1] + each.cents)
            lease.touched_s = self._clock.monotonic_s()

    async def refund(self, returned: Sequence[tuple[int, Charge]]) -> None:
        """Offers that were not sent give back what they took, by partition; right before their receipts are committed.

        Only while no commit is on its way.
        """
        # A lease that was given back is opened again: what comes back has to find its way to the pool.
        closed = [place for partition, each in returned if (place := (partition, each.pool)) not in self._leases]
        await self._open(dict.fromkeys(closed, Demand(Limit(None, None))), version=0)
        for partition, each in returned:
            lease = self._leases[partition, each.pool]
            lease.used = (max(0, lease.used[0] - each.pieces), max(0, lease.used[1] - each.cents))

    async def give_back(self, but: Iterable[tuple[int, str]] = ()) -> None:
        """Return what nobody has drawn on of late, `but` those that the next commit does.

        Only while no commit is on its way: what it uses must be known, and one that fails must not leave more used
        than granted.
        """
        now_s = self._clock.monotonic_s()
        if not self._leases or now_s < self._looked_s + IDLE_S / 4:
            return
        self._looked_s = now_s
        kept = set(but)
        idle = [
            place for place, lease in self._leases.items() if now_s >= lease.touched_s + IDLE_S and place not in kept
        ]
        if not idle:
            return
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for partition, pool in idle:
                    await self._step(
                        keys=[keys.budget(pool)],
                        args=["give", partition, self._epochs[partition], *self._leases[partition, pool].used],
                        client=pipe,
                    )
                for answer in await pipe.execute():
                    _not_fenced(answer)
        for place in idle:
            del self._leases[place]
        await self._relist("SREM", idle)

    async def _open(self, wanted: Mapping[tuple[int, str], Demand], version: int) -> None:
        """Ask the pools, and read what the partitions have used, where that is not known yet."""
        if not wanted:
            return
        # On the list before there is anything to be forgotten, and only under our epoch: who takes the partition over
        # finds the pool there and tells it so, and what we ask of it then is refused.
        await self._relist("SADD", [place for place in wanted if place not in self._leases])
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for (partition, pool), demand in wanted.items():
                    lease, limit = self._leases.get((partition, pool)), demand.limit
                    pieces, cents = (demand.pieces, demand.cents)
                    if lease is not None:
                        pieces = max(0, pieces - (lease.granted[0] - lease.used[0]))
                        cents = max(0, cents - (lease.granted[1] - lease.used[1]))
                    bounds = ["-" if bound is None else bound for bound in (limit.pieces, limit.cents)]
                    await self._step(
                        keys=[keys.budget(pool)],
                        args=[
                            "take",
                            partition,
                            self._epochs[partition],
                            pieces,
                            cents,
                            version,
                            *bounds,
                            self._partitions,
                            limit.expires_s,
                        ],
                        client=pipe,
                    )
                    pipe.hmget(keys.spent(partition, pool), "pieces", "cents")
                answers = await pipe.execute()
        now_s = self._clock.monotonic_s()
        for (place, demand), granted, spent in zip(wanted.items(), answers[::2], answers[1::2], strict=True):
            pieces, cents = _not_fenced(granted)
            known = self._leases.get(place)
            used = known.used if known is not None else (int(spent[0] or 0), int(spent[1] or 0))
            # Asking is not drawing: what is too little for an offer here is given back, it may be enough elsewhere.
            touched_s = known.touched_s if known is not None else now_s
            lease = self._leases[place] = _Lease((pieces, cents), used, touched_s)
            if not lease.has(demand.pieces, demand.cents):
                lease.refused_s = now_s

    async def _relist(self, how: Literal["SADD", "SREM"], places: Iterable[tuple[int, str]]) -> None:
        """Put pools on their partitions' lists, or take them off. Raises `Fenced`."""
        pools: dict[int, list[str]] = {}
        for partition, pool in places:
            pools.setdefault(partition, []).append(pool)
        if not pools:
            return
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for partition, named in pools.items():
                    await self._list(
                        keys=[keys.epoch(partition), keys.leases(partition)],
                        args=[self._epochs[partition], how, *named],
                        client=pipe,
                    )
                done = await pipe.execute()
        if not all(done):
            raise Fenced("another worker has the partition's list of budgets")


async def usages(redis: Redis, partitions: int, pools: Sequence[str]) -> list[Usage]:
    """What is out of each pool at present. Raises `Unavailable`."""
    found: list[Usage] = []
    # A few at a time: with one pool per store there are thousands, and others want to be served meanwhile.
    for first in range(0, len(pools), _ASKED_AT_ONCE):
        some = pools[first : first + _ASKED_AT_ONCE]
        with reaching_store():
            async with redis.pipeline(transaction=False) as pipe:
                for pool in some:
                    pipe.hmget(keys.budget(pool), "pieces", "cents")
                answers = cast("list[list[bytes | None]]", await pipe.execute())
                # What was never granted was never used.
                used = [pool for pool, answer in zip(some, answers, strict=True) if answer != [None, None]]
                for pool in used:
                    for partition in range(partitions):
                        pipe.hmget(keys.spent(partition, pool), "pieces", "cents")
                spent = cast("list[list[bytes | None]]", await pipe.execute() if used else [])
        rows = {pool: spent[at * partitions : (at + 1) * partitions] for at, pool in enumerate(used)}
        for pool, granted in zip(some, answers, strict=True):
            pieces, cents = (sum(int(row[unit] or 0) for row in rows.get(pool, ())) for unit in (0, 1))
            found.append(Usage(pieces, cents, int(granted[0] or 0) - pieces, int(granted[1] or 0) - cents))
    return found


def _not_fenced(answer: Sequence[int]) -> tuple[int, int]:
    if not answer:
        raise Fenced("another worker has the partition's share of a budget")
    return answer[0], answer[1]
