"""What `committed` reads from the store: all that is there, also what should not be."""

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.decisions import Decision
from nearcast.ids import CustomerId, DecisionId, EventId, partition_of
from nearcast.moments import Moment
from tests.server.rig import PARTITIONS, committed

ANN = CustomerId("ann")


async def test_a_decision_that_an_erasure_left_behind_is_seen(redis: Redis) -> None:
    """Nothing else is known of the customer; it is not taken for a decision that stands."""
    home = partition_of(ANN, PARTITIONS)
    decision = Decision(
        id=DecisionId("d1"),
        moment=Moment(event=EventId("e"), customer=ANN, trigger="enter", subject="in", at_ms=1),
        outcome="nothing",
        at_ms=1,
        deadline_ms=2,
        candidates=[],
        rules_version="r",
        model_version="m",
    )
    await redis.set(keys.decision(home, "d1"), msgspec.json.encode(decision))
    found = await committed(redis)
    assert found.decisions == {"d1 (in no list)": decision}
    assert found.customers == {}
