"""Watching the world for offers that are out: sold out, closed, ended. They are taken back.

What is watched are the situations of those offers (`server.situations`), each once however many customers have it. A
partition is looked after by whichever dispatcher comes first; should two do it, the second finds nothing left to do.
Nothing of it is urgent for a customer who does not look, and much of it for one who is on their way to the shelf: a
look costs two round trips, and comes several times a second.
"""

import asyncio
import logging
from typing import NamedTuple, cast

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.clock import Clock
from nearcast.decisions import Decision, Reason
from nearcast.errors import InputError, Unavailable
from nearcast.ids import DecisionId, message_id
from nearcast.messages import Recall
from nearcast.metrics import LIVE_SITUATIONS, TASK_FAILURES
from offers.recheck import over
from server.recalls import Recaller
from server.situations import Situation, situation_in
from server.state import StateStore
from server.store import reaching_store, text
from server.world import WorldStore

log = logging.getLogger("nearcast.server.sweeper")

_EVERY_S = 0.3
#: So many situations of a partition are looked at in one look; the others in the next ones.
_SITUATIONS = 1_000
#: So many offers are taken back at a time.
_AT_ONCE = 32

#: KEYS: the live situations, the offers of one. ARGV: the situation, and the decisions that are done with. The
#: situation goes when there is no offer left.
_FORGET = """
if #ARGV > 1 then redis.call('ZREM', KEYS[2], unpack(ARGV, 2)) end
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('ZREM', KEYS[1], ARGV[1]) end
"""


class _Live(NamedTuple):
    """A situation of a partition, as it was noted."""

    partition: int
    noted: str
    situation: Situation


class Sweeper:
    """Runs until it is cancelled."""

    def __init__(
        self, redis: Redis, node: str, state: StateStore, world: WorldStore, recaller: Recaller, clock: Clock
    ) -> None:
        self._redis = redis
        self._node = node
        self._state = state
        self._world = world
        self._recaller = recaller
        self._clock = clock
        self._forget = redis.register_script(_FORGET)
        #: Where the next look at a partition begins.
        self._from = dict.fromkeys(range(state.partitions), 0)

    async def run(self) -> None:
        while True:
            try:
                await self.sweep()
            except Unavailable as error:
                log.warning("what is out is not watched for now: %s", error)
            except Exception:
                TASK_FAILURES.labels("sweeper").inc()
                log.exception("watching what is out failed")
            await asyncio.sleep(_EVERY_S)

    async def sweep(self) -> int:
        """One look at the partitions that nobody has just looked at; how many offers were dealt with."""
        live = await self._live()
        LIVE_SITUATIONS.set(len(live))
        # A world that can't be used says nothing of what has ended.
        if not live or self._world.problem is not None:
            return 0
        pairs = [(each.situation.store, each.situation.sku) for each in live]
        stock = await self._world.stock([(store, sku) for store, sku in pairs if store is not None and sku is not None])
        catalogue, now_ms = self._world.current.catalogue, self._clock.now_ms()
        done = 0
        for each in live:
            store, sku = each.situation.store, each.situation.sku
            pieces = stock.get((store, sku)) if store is not None and sku is not None else None
            reason = over(each.situation.message(now_ms), catalogue, pieces, now_ms)
            if reason is not None:
                done += await self._take_back(each, reason)
        return done

    async def _live(self) -> list[_Live]:
        now_ms = self._clock.now_ms()
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for partition in self._from:
                    pipe.set(keys.sweeping(partition), self._node, nx=True, px=round(_EVERY_S * 900))
                    pipe.zremrangebyscore(keys.live(partition), "-inf", now_ms)
                    first = self._from[partition]
                    pipe.zrange(keys.live(partition), first, first + _SITUATIONS - 1)
                replies = cast("list[object]", await pipe.execute())
        found = []
        for partition in self._from:
            mine, _, members = replies[3 * partition : 3 * partition + 3]
            noted = [text(member) for member in cast("list[bytes]", members)]
            self._from[partition] += _SITUATIONS
            if len(noted) < _SITUATIONS:
                self._from[partition] = 0
            if mine:
                found += [_Live(partition, each, situation_in(each)) for each in noted]
        return found

    async def _take_back(self, live: _Live, reason: Reason) -> int:
        """All offers of a situation; how many there were."""
        name, done = keys.live_of(live.partition, live.noted), 0
        while True:
            with reaching_store():
                await self._redis.zremrangebyscore(name, "-inf", self._clock.now_ms())
                decisions = [
                    text(each) for each in cast("list[bytes]", await self._redis.zrange(name, 0, _AT_ONCE - 1))
                ]
            await asyncio.gather(*(self._recall(live.partition, DecisionId(each), reason) for each in decisions))
            with reaching_store():
                await self._forget(keys=[keys.live(live.partition), name], args=[live.noted, *decisions])
            done += len(decisions)
            if len(decisions) < _AT_ONCE:
                return done

    async def _recall(self, partition: int, decision: DecisionId, reason: Reason) -> None:
        # The index names nobody, so that an erasure need not look for anybody here: the decision says who it was.
        with reaching_store():
            stored = await self._redis.get(keys.decision(partition, decision))
        if stored is None:
            return
        customer = msgspec.json.decode(stored, type=Decision).customer
        entry = Recall(
            message=message_id(decision, "customer"), decision=decision, customer=customer, kind="offer", reason=reason
        )
        try:
            await self._recaller.recall(entry)
        except InputError as error:
            log.error("message %s can't be taken back: %s", entry.message, error)  # noqa: TRY400 its words say it all
