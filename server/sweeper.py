"""Watching the world for offers that are out: sold out, closed, ended. They are taken back.

What is watched are the situations of those offers (`server.situations`), each once however many customers have it. A
partition is looked after by whichever dispatcher comes first, for as long as it is at it; should two do it, the second
finds nothing left to do. A look costs two round trips and comes several times a second. Of what it finds over a bounded
number of offers is taken back, in which all situations have a share; then the next look comes at once, and judges anew.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.clock import Clock
from nearcast.decisions import Decision, Reason
from nearcast.errors import InputError, Unavailable
from nearcast.ids import DecisionId, Sku, StoreId, message_id
from nearcast.messages import Recall
from nearcast.metrics import LIVE_SITUATIONS, TASK_FAILURES
from offers.recheck import over
from server.recalls import Recaller
from server.scripts import SharedScript
from server.situations import Situation, situation_in
from server.state import StateStore
from server.store import reaching_store
from server.world import WorldStore

log = logging.getLogger("nearcast.server.sweeper")

_EVERY_S = 0.3
#: How long a partition stays with who has looked at it, unless that one looks again: less than until the next look.
_MINE_MS = 270
#: So many situations of a partition are looked at in one look; the others in the next ones.
_SITUATIONS = 1_000
#: So many offers are taken back at a time, and of so many situations.
_AT_ONCE = 256
_SITUATIONS_AT_ONCE = 64

#: KEYS[1]: who looks after the partition. ARGV: who asks, for how long (ms), and when.
_IF_MINE = """
local owner = redis.call('GET', KEYS[1])
local is_mine = not owner or owner == ARGV[1]
if is_mine then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[3])
"""
#: KEYS besides: the live situations. ARGV besides: the first and the last wanted. Returns how many there are, and
#: these.
_LOOK = (
    _IF_MINE
    + """
return {redis.call('ZCARD', KEYS[2]), is_mine and redis.call('ZRANGE', KEYS[2], ARGV[4], ARGV[5]) or {}}
"""
)
#: KEYS besides: the offers of a situation. ARGV besides: the last wanted. Returns the decisions.
_TAKE = _IF_MINE + "return is_mine and redis.call('ZRANGE', KEYS[2], 0, ARGV[4]) or {}"
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

    @property
    def offers(self) -> str:
        return keys.live_of(self.partition, self.noted)


class Sweeper:
    """Runs until it is cancelled."""

    def __init__(
        self, redis: Redis, node: str, state: StateStore, world: WorldStore, recaller: Recaller, clock: Clock
    ) -> None:
        self._redis = redis
        self._node = node
        self._world = world
        self._recaller = recaller
        self._clock = clock
        self._look, self._take, self._forget = (SharedScript(redis, script) for script in (_LOOK, _TAKE, _FORGET))
        #: Where the next look at a partition begins.
        self._from = dict.fromkeys(range(state.partitions), 0)

    async def run(self) -> None:
        while True:
            done = 0
            try:
                done = await self.sweep()
            except Unavailable as error:
                log.warning("what is out is not watched for now: %s", error)
            except Exception:
                TASK_FAILURES.labels("sweeper").inc()
                log.exception("watching what is out failed")
            if not done:
                await asyncio.sleep(_EVERY_S)

    async def sweep(self) -> int:
        """One look at the partitions that nobody else looks after; how many offers were dealt with."""
        live = await self._live()
        over_now = await self._over(live) if live else []
        done = 0
        for first in range(0, len(over_now), _SITUATIONS_AT_ONCE):
            done += await self._take_back(over_now[first : first + _SITUATIONS_AT_ONCE])
        return done

    async def _live(self) -> list[_Live]:
        with reaching_store():
            replies = await asyncio.gather(
                *(
                    self._look(
                        [keys.sweeping(partition), keys.live(partition)],
                        [self._node, _MINE_MS, self._clock.now_ms(), first, first + _SITUATIONS - 1],
                    )
                    for partition, first in self._from.items()
                )
            )
        found, count = [], 0
        for partition, reply in enumerate(cast("list[tuple[int, list[bytes]]]", replies)):
            there, members = reply
            count += there
            self._from[partition] = self._from[partition] + _SITUATIONS if len(members) == _SITUATIONS else 0
            for member in members:
                try:
                    noted = member.decode()
                    found.append(_Live(partition, noted, situation_in(noted)))
                except (UnicodeDecodeError, msgspec.MsgspecError):
                    log.error("a situation of partition %d can't be read: it is not watched", partition)  # noqa: TRY400
                    with reaching_store():
                        await self._redis.zrem(keys.live(partition), member)
        LIVE_SITUATIONS.set(count)
        return found

    async def _over(self, live: Sequence[_Live]) -> list[tuple[_Live, Reason]]:
        """Which situations are over, and why."""
        pairs = [(each.situation.store, each.situation.sku) for each in live]
        stock = await self._world.stock([(store, sku) for store, sku in pairs if store is not None and sku is not None])
        if not self._judged(live, stock):
            return []
        # They may have been noted by a newer world than this process has.
        await self._world.refresh()
        return self._judged(live, stock)

    def _judged(self, live: Sequence[_Live], stock: Mapping[tuple[StoreId, Sku], int]) -> list[tuple[_Live, Reason]]:
        if self._world.problem is not None:
            # A world that can't be used says nothing of what has ended.
            return []
        catalogue, now_ms = self._world.current.catalogue, self._clock.now_ms()
        found = []
        for each in live:
            store, sku = each.situation.store, each.situation.sku
            pieces = stock.get((store, sku)) if store is not None and sku is not None else None
            reason = over(each.situation.message(now_ms), catalogue, pieces, now_ms)
            if reason is not None:
                found.append((each, reason))
        return found

    async def _take_back(self, situations: Sequence[tuple[_Live, Reason]]) -> int:
        """Some offers of each situation; how many there were."""
        share, now_ms = _AT_ONCE // len(situations), self._clock.now_ms()
        with reaching_store():
            found = await asyncio.gather(
                *(
                    self._take([keys.sweeping(each.partition), each.offers], [self._node, _MINE_MS, now_ms, share - 1])
                    for each, _ in situations
                )
            )
        decisions = cast("list[list[bytes]]", found)
        entries = await self._entries(situations, decisions)
        for entry, result in zip(entries, await self._recaller.recall_all(entries), strict=True):
            if isinstance(result, InputError):
                log.error("message %s can't be taken back: %s", entry.message, result)
        with reaching_store():
            await asyncio.gather(
                *(
                    self._forget([keys.live(each.partition), each.offers], [each.noted, *names])
                    for (each, _), names in zip(situations, decisions, strict=True)
                )
            )
        return sum(map(len, decisions))

    async def _entries(
        self, situations: Sequence[tuple[_Live, Reason]], decisions: Sequence[Sequence[bytes]]
    ) -> list[Recall]:
        """What to take back of the decisions of each, but for those that are no more, or that can't be read."""
        wanted: list[tuple[DecisionId, Reason]] = []
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for (each, reason), members in zip(situations, decisions, strict=True):
                    ids = [DecisionId(member.decode("utf-8", "replace")) for member in members]
                    wanted += [(decision, reason) for decision in ids]
                    if ids:
                        pipe.mget([keys.decision(each.partition, decision) for decision in ids])
                found = [
                    stored for of_one in cast("list[list[bytes | None]]", await pipe.execute()) for stored in of_one
                ]
        entries = []
        for (decision, reason), stored in zip(wanted, found, strict=True):
            if stored is None:
                continue
            try:
                # The index names nobody, so that an erasure need not look for anybody there: the decision does.
                customer = msgspec.json.decode(stored, type=Decision).customer
            except (UnicodeDecodeError, msgspec.MsgspecError):
                log.error("decision %s can't be read: its message is not taken back", decision)  # noqa: TRY400
                continue
            entries.append(
                Recall(
                    message=message_id(decision, "customer"),
                    decision=decision,
                    customer=customer,
                    kind="offer",
                    reason=reason,
                )
            )
        return entries
