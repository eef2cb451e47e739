"""The swap benchmark sees which model decided, and says so loudly if it was not both."""

from collections import Counter

import msgspec
import pytest
from redis.asyncio import Redis

from bench.swap import Made, check_both_decided, decisions, of_events
from nearcast import keys
from tests.offers.examples import customer, moment, promotion, what_happens


def test_what_is_no_swap() -> None:
    """Both models must have decided in every swapping slice; a few stragglers of the other one in a steady slice, or
    decisions of the fallback, change nothing."""
    steady, swapped = Counter(shipped=90), Counter(shipped=50, other=40, fallback=1)
    check_both_decided([steady, swapped, steady + Counter(other=1), swapped], "other")
    for wrong in (
        Counter(),
        Counter(shipped=90),
        Counter(other=90),
        Counter(fallback=90),
        Counter(other=45, fallback=45),
    ):
        with pytest.raises(RuntimeError, match="slice 4 should have swapped"):
            check_both_decided([steady, swapped, steady, wrong], "other")
    with pytest.raises(RuntimeError, match="slice 2"):
        check_both_decided([Counter(), Counter(other=1)], "other")


async def test_whom_stored_decisions_are_owed_to(redis: Redis) -> None:
    """Each by the model that scored it; no model is owed what a gate stopped. What is known is not read again."""
    deal = promotion()
    scored = what_happens(customer(), deal)
    capped = what_happens(customer(consents=()), deal, at=moment(event="e2"))
    assert scored is not None
    assert capped is not None
    for partition, decision in enumerate((scored, capped)):
        await redis.set(keys.decision(partition, decision.id), msgspec.json.encode(decision))
    await redis.set(keys.decisions_of(0, "ann"), b"no decision")
    owed = {str(scored.id): Made("model-1", by_timer=False), str(capped.id): Made("", by_timer=False)}
    assert await decisions(redis) == owed
    assert await decisions(redis, {scored.id}) == {str(capped.id): Made("", by_timer=False)}
    assert await decisions(redis, owed.keys()) == {}


def test_what_timers_bring_is_not_compared() -> None:
    """Another engine's clock makes them due at another time."""
    assert of_events({"a": Made("m", by_timer=False), "b": Made("", by_timer=True)}) == {"a"}
