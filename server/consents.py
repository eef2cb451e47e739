"""Opt-outs that hold at once: withdrawn through the API, effective before the log has brought them to the state.

A withdrawal is noted beside the state and acknowledged; every send looks here as well. The consent event that travels
through the log makes it permanent; a later grant (by event time) overrules the note. An erasure removes the note in
the same commit as the state (server/commit.lua).
"""

from collections.abc import Mapping

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.customer import Customer
from nearcast.events import ConsentScope
from nearcast.ids import CustomerId, partition_of
from server.store import reaching_store

_SCOPES = msgspec.json.Decoder(dict[str, int])

# One customer's note is a small map: scope → when it was withdrawn. The later withdrawal stays.
_NOTE = """
local note = cjson.decode(redis.call('HGET', KEYS[1], ARGV[1]) or '{}')
if tonumber(ARGV[3]) > tonumber(note[ARGV[2]] or 0) then note[ARGV[2]] = tonumber(ARGV[3]) end
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(note))
"""


class OptOuts:
    """Notes of withdrawals, in the customer's own partition."""

    def __init__(self, redis: Redis, partitions: int) -> None:
        self._redis = redis
        self._partitions = partitions
        self._note = redis.register_script(_NOTE)

    async def withdraw(self, customer: CustomerId, scope: ConsentScope, at_ms: int) -> None:
        """Note a withdrawal; every send that starts after this returns respects it."""
        with reaching_store():
            await self._note(keys=[self._key(customer)], args=[customer, scope, at_ms])

    async def overlay(self, customer: Customer) -> None:
        """Bring a customer just read from the state up to date, in place."""
        bring_in(await self.noted(customer.id), customer)

    async def noted(self, customer: CustomerId) -> Mapping[str, int]:
        """When the customer last withdrew which scope, by the notes (ms)."""
        with reaching_store():
            note = await self._redis.hget(self._key(customer), customer)
        return _SCOPES.decode(note) if note else {}

    def _key(self, customer: CustomerId) -> str:
        return keys.opt_outs(partition_of(customer, self._partitions))


def bring_in(noted: Mapping[str, int], customer: Customer) -> None:
    """Withdraw what is noted, unless the customer has granted it again since; in place."""
    for scope, at_ms in noted.items():
        if at_ms >= customer.consents.get(scope, (True, 0))[1]:
            customer.consents[scope] = (False, at_ms)
