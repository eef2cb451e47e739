"""What happens in fences that are put over HTTP, with a real engine behind it: scans, redrawing, days off."""

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from nearcast.decisions import Decision
from nearcast.events import Action, Consent, Location
from nearcast.ids import CustomerId
from nearcast.world import Promotion, Trigger, Words
from server.api.app import create_app
from server.roles import make_desk
from tests.server.replay.installation import KEYS, Installation, environment, installed
from tests.server.town import LNG, WORLD, metres_north


@pytest.fixture
async def town(redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Installation]:
    """The town at work, with something to say at every enter, exit and scan."""
    for name, value in environment(valkey_url).items():
        monkeypatch.setenv(name, value)
    triggers: tuple[Trigger, ...] = ("enter", "exit", "qr_scan")
    deals = [Promotion(id=each, name=each, trigger=each, caps=[], words={"en": Words(title="x")}) for each in triggers]
    async with installed(msgspec.structs.replace(WORLD, promotions=deals)) as running:
        yield running


@pytest.fixture
async def api(town: Installation) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(make_desk(town.core)))
    headers = {"Authorization": f"Bearer {KEYS['admin']}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://api.test", headers=headers) as client:
        yield client


async def put_corner(api: httpx.AsyncClient, north_m: float = 15.0, **fields: Any) -> None:
    """A department of 14 m around a place so far north of the store."""
    properties = {"id": "corner", "store": "graben", "kind": "department", "radius_m": 14.0, **fields}
    point = {"type": "Point", "coordinates": [LNG, metres_north(north_m)]}
    corner = {"type": "Feature", "geometry": point, "properties": properties}
    answer = await api.put("/v1/fences", content=json.dumps({"type": "FeatureCollection", "features": [corner]}))
    assert answer.status_code == 200, answer.text


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def fixes(first_ms: int, count: int = 4) -> list[Location]:
    return [
        Location(uid="ann", ts=first_ms + n * 1_000, lat=metres_north(15), lng=LNG, accuracy_m=3.0)
        for n in range(count)
    ]


async def decided(town: Installation, fence: str) -> list[Decision]:
    """The decisions about moments in a fence, oldest first."""
    found = await town.core.state.decisions(CustomerId("ann"), 100)
    return [decision for decision in reversed(found) if decision.moment.fence == fence]


async def test_a_scan_proves_where_they_are(town: Installation, api: httpx.AsyncClient) -> None:
    """A code that a fence lists brings its enter, once; one that no fence lists leaves no trace of a place."""
    await put_corner(api, codes=["c-1"])
    at_ms = now_ms() - 30_000
    await town.send(Action(uid="ann", ts=at_ms, action="qr_scan", fence="unheard-of"))
    known = await town.core.state.read(CustomerId("ann"))
    assert known is not None
    assert known.presence.last_ms == 0
    await town.send(*(Action(uid="ann", ts=at_ms + n, action="qr_scan", fence="c-1") for n in (1_000, 2_000)))
    (entered,) = await decided(town, "corner")
    assert (entered.moment.trigger, entered.moment.at_ms, entered.moment.confidence) == ("enter", at_ms + 1_000, 0.99)
    assert [decision.moment.trigger for decision in await decided(town, "c-1")] == ["qr_scan"] * 2
    known = await town.core.state.read(CustomerId("ann"))
    assert known is not None
    assert known.presence.inside.keys() == {"corner"}
    await town.send(Consent(uid="ann", ts=now_ms(), scope="location", granted=False))
    await town.send(Action(uid="ann", ts=now_ms(), action="qr_scan", fence="c-1"))
    known = await town.core.state.read(CustomerId("ann"))
    assert known is not None
    assert (known.presence.inside, known.presence.nearby) == ({}, None)


async def test_a_fence_that_is_redrawn_under_somebody(town: Installation, api: httpx.AsyncClient) -> None:
    """The next fix from the same place is an exit with confidence 0: nobody moved."""
    await put_corner(api)
    at_ms = now_ms() - 30_000
    await town.send(*fixes(at_ms))
    assert [decision.moment.trigger for decision in await decided(town, "corner")] == ["enter"]
    await put_corner(api, north_m=80.0)
    await town.send(*fixes(at_ms + 10_000, 1))
    left = (await decided(town, "corner"))[-1]
    assert (left.moment.trigger, left.moment.at_ms, left.moment.confidence) == ("exit", at_ms + 10_000, 0.0)


async def test_a_fence_on_its_day_off(town: Installation, api: httpx.AsyncClient) -> None:
    """Its `special_days` are kept, and while they say closed nobody comes in."""
    at_ms = now_ms() - 60_000
    days = [{"date": datetime.fromtimestamp(at / 1000, tz=UTC).date().isoformat()} for at in (at_ms, now_ms())]
    # At midnight both days are meant.
    off = [day for place, day in enumerate(days) if day not in days[:place]]
    await put_corner(api, special_days=off)
    listed = (await api.get("/v1/fences", params={"store": "graben"})).json()["features"]
    (corner,) = [each["properties"] for each in listed if each["properties"]["id"] == "corner"]
    assert [day["date"] for day in corner["special_days"]] == [day["date"] for day in off]
    await town.send(*fixes(at_ms))
    assert await decided(town, "corner") == []
    await put_corner(api, special_days=[])
    await town.send(*fixes(at_ms + 20_000))
    assert [decision.moment.trigger for decision in await decided(town, "corner")] == ["enter"]
