"""A newer engine on what an older one stored.

`fixtures/state-v1.json` was written by the last commit whose customers were MessagePack without a version of their own:
rich records as they stood in the store, events that arrived then, and what followed. `fixtures/state-v2.json` was
written by the last commit whose presences had four fields: people in and near a store, and who forbids their location.
Neither is ever made anew.
"""

import base64
import json
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import msgspec
import pytest
from redis.asyncio import Redis

from nearcast import keys
from nearcast.ids import CustomerId, customer_id, partition_of
from nearcast.messages import Emitted
from server.engine import Engine
from server.log.base import Record
from server.world import WorldStore
from tests.server.rig import PARTITIONS, Playback, committed, engine_on
from tests.server.town import WORLD

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "state-v1.json").read_bytes())
PLACES = json.loads((Path(__file__).parent / "fixtures" / "state-v2.json").read_bytes())


@pytest.fixture
async def engine(redis: Redis) -> Engine:
    """An engine on a store that an older one has left."""
    return await _engine_after(redis, FIXTURE["records"])


async def _engine_after(redis: Redis, records: dict[str, str]) -> Engine:
    for name, value in records.items():
        await redis.set(name, base64.b64decode(value))
    world = WorldStore(redis)
    await world.put(WORLD)
    engine = engine_on(redis, Playback(), world)
    await engine.follow_assignment()
    return engine


def agrees(found: Any, expected: Any) -> bool:
    """Whether all that was expected is there. Newer records may hold more."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(
            name in found and agrees(found[name], expected[name]) for name in expected
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(agrees(*pair) for pair in zip(found, expected, strict=True))
    return bool(found == (pytest.approx(expected) if isinstance(expected, float) else expected))


def named(value: Any) -> Any:
    """A record with the names of its fields, where it is stored without."""
    match value:
        case msgspec.Struct():
            return {name: named(getattr(value, name)) for name in value.__struct_fields__}
        case dict():
            return {name: named(item) for name, item in value.items()}
        case list() | tuple():
            return [named(item) for item in value]
        case _:
            return value


def events(fixture: dict[str, Any] = FIXTURE) -> list[Record]:
    """The events of a fixture, as the log holds them."""
    made = []
    for place, (topic, event) in enumerate(fixture["events"]):
        uid = None if event["type"] == "identify" else event.get("uid")
        customer = customer_id(uid, event.get("anonymous_id"))
        made.append(
            Record(
                topic=topic,
                partition=partition_of(customer, PARTITIONS),
                position=str(place),
                key=customer,
                value=msgspec.json.encode(event),
                arrived_ms=fixture["arrived_ms"] + place if "arrived_ms" in fixture else event["ts"],
            )
        )
    return made


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_older_state_is_read_and_gone_on_from(engine: Engine, redis: Redis, at_once: bool) -> None:
    """The same events lead to the same customers, decisions and messages as when the older engine went on."""
    batches = [events()] if at_once else [[record] for record in events()]
    for batch in batches:
        await engine.process(batch)
    found = await committed(redis)
    assert found.dead_letters == []
    assert found.customers.keys() == FIXTURE["after"].keys()
    for name, expected in FIXTURE["after"].items():
        known = found.customers[CustomerId(name)]
        # Newer engines may wait for more than this one did.
        expected["customer"].pop("timers", None)
        assert agrees(named(known.customer), expected["customer"]), (name, named(known.customer))
        assert "cart_abandoned" not in known.customer.timers
        assert agrees(named(known.presence), expected["presence"]), (name, named(known.presence))
    assert (
        sorted([d.customer, d.moment.trigger, d.outcome, d.promotion, d.reason] for d in found.decisions.values())
        == FIXTURE["decisions"]
    )
    emitted = [[e.topic, e.key, json.loads(bytes(e.value))] for e in found.outbox if isinstance(e, Emitted)]
    expected_events = [[topic, key, {**event, "id": ANY}] for topic, key, event in FIXTURE["emitted"]]
    assert agrees(emitted, expected_events), emitted


async def test_what_was_not_touched_stays_readable(engine: Engine, redis: Redis) -> None:
    """Customers of whom nothing was heard since are read as they were left, by the API as by the engine."""
    await engine.process([record for record in events() if record.key == "cat"])
    found = await committed(redis)
    ann = found.customers[CustomerId("ann")]
    assert (ann.customer.name, ann.customer.loyalty) == ("Ann Äxmpl", "gold")
    assert ann.customer.consents["email"] == (False, 1_790_000_000_002)
    assert list(ann.customer.cart) == ["beans", "gone"]
    assert [sent.status for sent in ann.customer.messages] == ["applied", "applied", None]
    assert set(ann.presence.inside) == {"near", "inside"}
    raw = await redis.get(keys.customer(2, "ann"))
    assert raw == base64.b64decode(FIXTURE["records"][keys.customer(2, "ann")])


@pytest.mark.parametrize("at_once", [True, False])
async def test_presences_of_version_2_are_gone_on_from(redis: Redis, at_once: bool) -> None:
    """Stays, timers and what may be used are as they were, and the next fixes lead on from there."""
    engine = await _engine_after(redis, PLACES["records"])
    batches = [events(PLACES)] if at_once else [[record] for record in events(PLACES)]
    for batch in batches:
        await engine.process(batch)
    found = await committed(redis)
    assert found.dead_letters == []
    assert found.customers.keys() == PLACES["after"].keys()
    for name, expected in PLACES["after"].items():
        presence = found.customers[CustomerId(name)].presence
        assert agrees(named(presence), expected), (name, named(presence))
        stored = await redis.get(keys.presence(partition_of(name, PARTITIONS), name))
        untouched = PLACES["records"].get(keys.presence(partition_of(name, PARTITIONS), name))
        assert isinstance(stored, bytes)
        assert stored.startswith(b"[3,") or stored == base64.b64decode(untouched)
