"""Fences as GeoJSON over HTTP, with a real world and a real engine behind it."""

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from nearcast.events import Consent, Location
from nearcast.world import Promotion, Where, Words
from offers.worldfile import WorldFile
from server.api.app import create_app
from server.roles import make_desk
from tests.server.replay.installation import KEYS, Installation, environment, installed
from tests.server.town import LNG, WORLD, metres_north

Check = Callable[[httpx.Response, int], str]


@pytest.fixture
async def town(redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Installation]:
    """The town at work."""
    for name, value in environment(valkey_url).items():
        monkeypatch.setenv(name, value)
    async with installed(WORLD) as running:
        yield running


@pytest.fixture
async def api(town: Installation) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(make_desk(town.core)))
    headers = {"Authorization": f"Bearer {KEYS['admin']}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://api.test", headers=headers) as client:
        yield client


def feature(name: str, kind: str, parent: str, radius_m: float, **fields: object) -> dict[str, Any]:
    """A circle around a place 15 m north of the store."""
    properties = {"id": name, "store": "graben", "kind": kind, "parent": parent, "radius_m": radius_m, **fields}
    point = {"type": "Point", "coordinates": [LNG, metres_north(15)]}
    return {"type": "Feature", "geometry": point, "properties": properties}


def collection(*features: dict[str, Any]) -> bytes:
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


CORNER, SHELF = feature("corner", "department", "inside", 14.0), feature("shelf", "shelf", "corner", 12.0)


async def test_what_is_promised_for_a_department(town: Installation, api: httpx.AsyncClient) -> None:
    """Fences put as GeoJSON are matched at once; a promotion for the department holds at its shelf, too."""
    deal = Promotion(
        id="corner-deal",
        name="In the corner",
        trigger="enter",
        where=Where(fences=["corner"]),
        words={"en": Words(title="Coffee")},
    )
    assert (await api.put("/v1/fences", content=collection(CORNER, SHELF))).status_code == 200
    promotions = msgspec.json.encode(WorldFile(promotions=[deal]))
    assert (await api.put("/v1/catalogue", content=promotions)).status_code == 200
    now_ms = time.time_ns() // 1_000_000
    await town.send(Consent(uid="ann", ts=now_ms - 60_000, scope="sms", granted=True))
    await town.send(
        *(
            Location(uid="ann", ts=now_ms - 30_000 + n * 1_000, lat=metres_north(15), lng=LNG, accuracy_m=3.0)
            for n in range(30)
        )
    )
    decisions = (await api.get("/v1/customers/ann/decisions")).json()["decisions"]
    of_deal = [each for each in decisions if any(c["promotion"] == "corner-deal" for c in each["candidates"])]
    assert {each["moment"]["fence"] for each in of_deal} == {"corner", "shelf"}
    told = (await api.get("/v1/customers/ann/why-not", params={"promotion": "corner-deal"})).json()
    assert (told["situation"]["fence"], told["situation"]["assumed"]) in {("corner", False), ("shelf", False)}


async def test_a_closed_department(town: Installation, api: httpx.AsyncClient) -> None:
    """ "Why not?" tells the closed fence from the open store; also for what is in it."""
    deal = Promotion(
        id="shelf-deal",
        name="At the shelf",
        trigger="enter",
        where=Where(fences=["shelf"]),
        words={"en": Words(title="Coffee")},
    )
    closed = feature("corner", "department", "inside", 14.0, hours=[])
    assert (await api.put("/v1/fences", content=collection(closed, SHELF))).status_code == 200
    promotions = msgspec.json.encode(WorldFile(promotions=[deal]))
    assert (await api.put("/v1/catalogue", content=promotions)).status_code == 200
    await town.send(Consent(uid="ann", ts=time.time_ns() // 1_000_000, scope="sms", granted=True))
    told = (await api.get("/v1/customers/ann/why-not", params={"promotion": "shelf-deal"})).json()
    assert told["summary"] == "stopped by store_closed"
    (gate,) = [gate for gate in told["things"][0]["gates"] if gate["name"] == "store_closed"]
    assert gate["detail"] == "graben is open, shelf in it is closed"


async def test_refused_as_a_whole(api: httpx.AsyncClient, problem: Check) -> None:
    """References and cycles are checked over everything together; nothing of a refused collection is taken."""
    for wrong, reason, said in (
        (feature("lost", "shelf", "nowhere", 5.0), "unknown_reference", "'nowhere'"),
        (feature("upside", "store", "shelf", 5.0), "unknown_reference", "can't be in a shelf"),
        (feature("own", "shelf", "own", 5.0), "cyclic_parents", "its own ancestor"),
    ):
        response = await api.put("/v1/fences", content=collection(CORNER, SHELF, wrong))
        assert problem(response, 400) == reason
        assert said in response.json()["detail"]
    listed = (await api.get("/v1/fences", params={"store": "graben"})).json()
    assert [each["properties"]["id"] for each in listed["features"]] == ["inside", "near"]
