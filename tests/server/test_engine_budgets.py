"""Budgets in the engine: what customers get, and what the decisions say, from log records to the store."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

import pytest
from redis.asyncio import Redis

from nearcast.decisions import Decision
from nearcast.events import Action, Consent, Event, Receipt
from nearcast.ids import CustomerId, partition_of
from nearcast.messages import Message
from nearcast.world import Budget, Discount, Promotion, Store, What, Words
from offers.worldfile import WorldFile
from server.budgets import usages
from server.engine import Engine
from server.world import WorldStore
from tests.server.rig import PARTITIONS, Committed, Playback, committed, engine_on, records_of

#: Noon in Vienna.
NOW = round(datetime(2026, 10, 24, 10, tzinfo=UTC).timestamp() * 1000)
HOUR_MS = 3_600_000
STORES = [
    Store(id=name, name=name, lat=48.2, lng=16.37, time_zone=zone)
    for name, zone in (("graben", "Europe/Vienna"), ("broadway", "America/New_York"))
]


def promotion(name: str, *budgets: Budget, value_cents: int = 100_000) -> Promotion:
    """For whoever opens the app."""
    return Promotion(
        id=name,
        name=name,
        trigger="app_open",
        value_cents=value_cents,
        deadline_s=86_400.0,
        what=What(discount=Discount(amount_cents=300)),
        budgets=list(budgets),
        words={"en": Words(title=name)},
    )


async def engine_for(redis: Redis, *promotions: Promotion) -> Engine:
    world = WorldStore(redis)
    await world.put(WorldFile(stores=STORES, promotions=list(promotions)))
    engine = engine_on(redis, Playback(), world)
    await engine.follow_assignment()
    return engine


def opened(who: str, at_ms: int = NOW, store: str | None = None) -> list[Event]:
    """A customer agrees to messages and opens the app."""
    return [
        Consent(id=f"{who}-consent", uid=who, ts=at_ms - 1, scope="websocket", granted=True),
        Action(id=f"{who}-open", uid=who, ts=at_ms, action="app_open", store=store),
    ]


def crowd(names: Iterable[str], at_ms: int = NOW, store: str | None = None) -> list[Event]:
    return [event for name in names for event in opened(name, at_ms, store)]


def outcomes(found: Committed) -> Counter[tuple[str | None, str | None]]:
    """How many decisions chose each promotion, or nothing for each reason."""
    return Counter((made.promotion, made.reason) for made in found.decisions.values())


async def test_a_crowd_in_one_batch(redis: Redis) -> None:
    """80 customers at once, 8 offers to give: eight get one, the others are told why not; all of it is counted."""
    engine = await engine_for(redis, promotion("coffee", Budget(pieces=8)))
    # Whoever asks for most first takes all there is; it shows in the second batch that no partition keeps any.
    for names in (range(80), range(80, 100)):
        await engine.process(records_of(crowd(f"c{n}" for n in names), NOW))
    found = await committed(redis)
    assert outcomes(found) == {("coffee", None): 8, (None, "budget_exhausted"): 92}
    assert len(found.outbox) == 8
    charges = [tuple(each) for made in found.decisions.values() for each in _charges(made)]
    assert charges == [("coffee\x1f\x1f", 1, 0)] * 8
    assert (await usages(redis, PARTITIONS, ["coffee\x1f\x1f"]))[0][:2] == (8, 0)


async def test_the_second_best_wins_where_the_best_has_run_out(redis: Redis) -> None:
    """In the same batch: five get the better one, seven the next, the rest nothing; records say what stopped what."""
    engine = await engine_for(
        redis,
        promotion("better", Budget(pieces=5)),
        promotion("good", Budget(pieces=7), value_cents=50_000),
    )
    await engine.process(records_of(crowd(f"c{n}" for n in range(60)), NOW))
    found = await committed(redis)
    assert outcomes(found) == {("better", None): 5, ("good", None): 7, (None, "budget_exhausted"): 48}
    for made in found.decisions.values():
        stopped = {str(each.promotion): each.stopped_by for each in made.candidates}
        assert stopped["better"] == (None if made.promotion == "better" else "budget_exhausted")


async def test_one_without_a_budget_is_never_short(redis: Redis) -> None:
    """What has no budget goes to all whom the other one did not reach."""
    engine = await engine_for(redis, promotion("better", Budget(pieces=5)), promotion("good", value_cents=50_000))
    await engine.process(records_of(crowd(f"c{n}" for n in range(30)), NOW))
    assert outcomes(await committed(redis)) == {("better", None): 5, ("good", None): 25}


@pytest.mark.parametrize(("unsent", "more"), [(True, 1), (False, 0)])
async def test_what_was_not_sent_makes_room(redis: Redis, unsent: bool, more: int) -> None:
    """A message that certainly reached nobody gives back what it took, once; any other has used it."""
    engine = await engine_for(redis, promotion("coffee", Budget(pieces=1)))
    # All in one partition, so that nobody has to wait for anything to be given back.
    ann, *others = _neighbours("ann", 6)
    await engine.process(records_of(opened(ann), NOW))
    (message,) = (await committed(redis)).outbox
    assert isinstance(message, Message)
    for n in range(2):
        receipt = Receipt(
            id=f"r{n}",
            uid=ann,
            ts=NOW + 1,
            message=message.id,
            decision=message.decision,
            status="suppressed",
            unsent=unsent,
        )
        await engine.process(records_of([receipt], NOW + 1))
    await engine.process(records_of(crowd(others, NOW + 2), NOW + 2))
    found = await committed(redis)
    assert outcomes(found)["coffee", None] == 1 + more
    assert (await usages(redis, PARTITIONS, ["coffee\x1f\x1f"]))[0].used_pieces == 1


async def test_money(redis: Redis) -> None:
    """An offer takes what its discount takes off at most: 1,000 cents are three of 300."""
    engine = await engine_for(redis, promotion("coffee", Budget(cents=1_000)))
    await engine.process(records_of(crowd(_neighbours("ann", 20)), NOW))
    assert outcomes(await committed(redis)) == {("coffee", None): 3, (None, "budget_exhausted"): 17}


async def test_per_store_and_day(redis: Redis) -> None:
    """Each store has two a day, from its own midnight to its own midnight."""
    engine = await engine_for(redis, promotion("coffee", Budget(pieces=2, per="store", period="day")))
    # Vienna's day ends 12 hours from NOW, New York's 18 hours from it.
    expected = {
        ("graben", 0): 2,
        ("broadway", 0): 2,
        ("graben", 11): 0,
        ("graben", 13): 2,
        ("broadway", 13): 0,
        ("broadway", 19): 2,
    }
    for (store, hours), many in expected.items():
        at_ms = NOW + hours * HOUR_MS
        people = _neighbours(f"{store}-{hours}", 4)
        await engine.process(records_of(crowd(people, at_ms, store), at_ms))
        found = (await committed(redis)).decisions.values()
        assert sum(made.outcome == "offer" for made in found if made.customer in people) == many, (store, hours)


def _charges(made: Decision) -> list[tuple[str, int, int]]:
    return [(each.pool, each.pieces, each.cents) for each in made.charges]


def _neighbours(who: str, many: int) -> list[str]:
    """People who are all in the same partition, whatever they are called."""
    names = (f"{who}-{n}" for n in range(1_000))
    return [name for name in names if partition_of(CustomerId(name), PARTITIONS) == 0][:many]
