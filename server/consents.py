"""Opt-outs that hold at once: withdrawn through the API, effective before the log has brought them to the state.

A withdrawal is noted beside the state and acknowledged; every send looks here as well, and begins in one step with a
look at the note (`server.deliveries`). Hand-overs that began before it are waited for, so that no message leaves the
house after the acknowledgement. The consent event that travels through the log makes it permanent; a later grant (by
event time) overrules the note. An erasure removes the note in the same commit as the state (server/commit.lua).
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.customer import Customer
from nearcast.events import ConsentScope
from nearcast.ids import CustomerId, partition_of
from nearcast.metrics import OPT_OUT_WAITS
from server.scripts import SharedScript
from server.store import NOW_MS, reaching_store

log = logging.getLogger("nearcast.server")

_SCOPES = msgspec.json.Decoder(dict[str, int])
#: How long a withdrawal waits for hand-overs. Longer than a dispatcher may stand still between saving that it hands
#: over and doing it (`channels.delivery`).
PATIENCE_S = 6.0
_LOOK_EVERY_S = 0.02

# One customer's note is a small map: scope → when it was withdrawn. The later withdrawal stays.
# KEYS: the notes, the hand-overs under way to the customer. ARGV: the customer, the scope, and when, in ms.
# Returns the hand-overs under way.
_NOTE = (
    NOW_MS
    + """
local note = cjson.decode(redis.call('HGET', KEYS[1], ARGV[1]) or '{}')
if tonumber(ARGV[3]) > tonumber(note[ARGV[2]] or 0) then note[ARGV[2]] = tonumber(ARGV[3]) end
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(note))
return redis.call('ZRANGE', KEYS[2], now_ms(), '+inf', 'BYSCORE')
"""
)
# KEYS: the hand-overs under way to a customer. Returns them.
_UNDER_WAY = NOW_MS + "return redis.call('ZRANGE', KEYS[1], now_ms(), '+inf', 'BYSCORE')"


class Withdrawn(NamedTuple):
    """A withdrawal that is noted, and what was being handed to the customer at that moment."""

    customer: CustomerId
    under_way: frozenset[bytes]


class OptOuts:
    """Notes of withdrawals, in the customer's own partition."""

    def __init__(self, redis: Redis, partitions: int) -> None:
        self._redis = redis
        self._partitions = partitions
        self._note = redis.register_script(_NOTE)
        self._under_way = SharedScript(redis, _UNDER_WAY)

    async def withdraw(self, customer: CustomerId, scope: ConsentScope, at_ms: int) -> None:
        """Note a withdrawal; no send that it forbids starts, or is under way, after this returns."""
        await self.wait([await self.note(customer, scope, at_ms)])

    async def note(self, customer: CustomerId, scope: ConsentScope, at_ms: int) -> Withdrawn:
        """Note a withdrawal: no send that it forbids starts after this. See `wait` for those that have."""
        partition = partition_of(customer, self._partitions)
        with reaching_store():
            under_way = await self._note(
                keys=[keys.opt_outs(partition), keys.handing_over(partition, customer)],
                args=[customer, scope, at_ms],
            )
        return Withdrawn(customer, frozenset(under_way))

    async def wait(self, withdrawn: Sequence[Withdrawn]) -> None:
        """Return when all that was under way is over; after `PATIENCE_S` at the latest."""
        waiting = [each for each in withdrawn if each.under_way]
        if not waiting:
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                while waiting:
                    await asyncio.sleep(_LOOK_EVERY_S)
                    waiting = await self._still_under_way(waiting)
        except TimeoutError:
            OPT_OUT_WAITS.labels("given_up").inc()
            log.warning("a withdrawal of consent was noted while a message was handed over, and it still is")
        else:
            OPT_OUT_WAITS.labels("over").inc()

    async def _still_under_way(self, withdrawn: Sequence[Withdrawn]) -> list[Withdrawn]:
        names = [keys.handing_over(partition_of(each.customer, self._partitions), each.customer) for each in withdrawn]
        with reaching_store():
            found = cast("list[list[bytes]]", await asyncio.gather(*(self._under_way([name], []) for name in names)))
        return [each for each, now in zip(withdrawn, found, strict=True) if not each.under_way.isdisjoint(now)]

    async def overlay(self, customer: Customer) -> None:
        """Bring a customer just read from the state up to date, in place."""
        bring_in(await self.noted(customer.id), customer)

    async def noted(self, customer: CustomerId) -> Mapping[str, int]:
        """When the customer last withdrew which scope, by the notes (ms)."""
        return scopes_in(await self.note_of(customer))

    async def note_of(self, customer: CustomerId) -> bytes:
        """The customer's note as it is stored; b"" if there is none."""
        with reaching_store():
            note = await self._redis.hget(keys.opt_outs(partition_of(customer, self._partitions)), customer)
        return cast("bytes", note) if note else b""


def scopes_in(note: bytes) -> Mapping[str, int]:
    """When which scope was withdrawn, by a note (ms)."""
    return _SCOPES.decode(note) if note else {}


def bring_in(noted: Mapping[str, int], customer: Customer) -> None:
    """Withdraw what is noted, unless the customer has granted it again since; in place."""
    for scope, at_ms in noted.items():
        if at_ms >= customer.consents.get(scope, (True, 0))[1]:
            customer.consents[scope] = (False, at_ms)
