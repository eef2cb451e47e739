"""Footfall over HTTP, as a real engine counted it."""

import csv
import io
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from nearcast.events import Location
from server.api.app import create_app
from server.roles import make_desk
from tests.server.replay.installation import KEYS, Installation, environment, installed
from tests.server.town import LNG, WORLD, metres_north

Check = Callable[[httpx.Response, int], str]
LIVE, HISTORY = "/v1/stores/graben/footfall", "/v1/stores/graben/footfall/history"


@pytest.fixture
async def town(redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Installation]:
    """The town at work, with counts from three people on."""
    for name, value in environment(valkey_url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NEARCAST_FOOTFALL_K", "3")
    async with installed(WORLD) as running:
        yield running


@pytest.fixture
async def api(town: Installation) -> AsyncIterator[httpx.AsyncClient]:
    """The API, for staff."""
    transport = httpx.ASGITransport(create_app(make_desk(town.core)))
    staff = {"Authorization": f"Bearer {KEYS['staff']}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://api.test", headers=staff) as client:
        yield client


@pytest.fixture
def times() -> Iterator[int]:
    """Times in ms, twenty seconds apart and past; the first few are of one hour."""
    now_ms = time.time_ns() // 1_000_000
    past_the_hour_ms = now_ms % 3_600_000
    return count(now_ms - 150_000 - (past_the_hour_ms if past_the_hour_ms < 150_000 else 0), 20_000)


async def walk(town: Installation, people: int, metres: float, at_ms: int) -> None:
    """So many people are so far from the store at that time."""
    fixes = [
        Location(uid=f"c{number}", ts=at_ms, lat=metres_north(metres), lng=LNG, accuracy_m=5.0)
        for number in range(people)
    ]
    await town.send(*fixes)


async def get(api: httpx.AsyncClient, path: str, **asked: str) -> dict[str, Any]:
    answer = await api.get(path, params=asked)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_live_and_by_hour(town: Installation, api: httpx.AsyncClient, times: Iterator[int]) -> None:
    """People come in: too few are withheld, more are rounded down; the hour has their visits; then all are gone."""
    for people, seen in ((2, None), (3, 3), (8, 6)):
        began_ms = next(times)
        await walk(town, people, 0.0, began_ms)
        told = await get(api, LIVE)
        assert (told["store"], told["k"]) == ("graben", 3)
        by_fence = {zone["fence"]: zone for zone in told["zones"]}
        assert {fence: zone["people"] for fence, zone in by_fence.items()} == {"near": seen, "inside": seen}
        assert by_fence["inside"]["withheld"] == (None if seen else "fewer than 3")
        assert (by_fence["inside"]["parent"], by_fence["inside"]["kind"]) == ("near", "store")
    assert {zone["fence"] for zone in (await get(api, LIVE, products="true"))["zones"]} > {"near", "inside"}
    hour = datetime.fromtimestamp(began_ms // 3_600_000 * 3_600, UTC)
    rows = {(row["fence"], row["hour"]): row for row in (await get(api, HISTORY))["hours"]}
    assert {key: row["visits"] for key, row in rows.items() if row["visits"] is not None} == {
        ("near", hour.isoformat()): 6,
        ("inside", hour.isoformat()): 6,
    }
    # Six full days of both fences, and today as far as it has come.
    assert len(rows) >= 2 * 6 * 24
    assert {row["withheld"] for row in rows.values()} == {None, "fewer than 3"}
    for metres in (600.0, 900.0):
        await walk(town, 8, metres, next(times))
    assert {zone["people"] for zone in (await get(api, LIVE))["zones"]} == {None}
    one = await get(api, HISTORY, fence="inside", **{"from": hour.date().isoformat(), "to": hour.date().isoformat()})
    assert {row["fence"] for row in one["hours"]} == {"inside"}
    # Two stayed for 60 seconds, one for 40, five for 20: 32.5 on average.
    assert [row["mean_stay_s"] for row in one["hours"] if row["visits"]] == [30]


async def test_csv(town: Installation, api: httpx.AsyncClient, times: Iterator[int]) -> None:
    """The same rows as JSON has, with their names in the first line."""
    await walk(town, 4, 0.0, next(times))
    answer = await api.get(HISTORY, headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    told = (await get(api, HISTORY))["hours"]
    assert rows == [{name: "" if value is None else str(value) for name, value in row.items()} for row in told]
    assert any(row["visits"] == "3" for row in rows)


async def test_what_is_refused(api: httpx.AsyncClient, problem: Check) -> None:
    """An unknown store, a range that makes no sense or is too long; a key of another role, and none."""
    assert problem(await api.get("/v1/stores/nowhere/footfall"), 404) == "unknown_store"
    assert problem(await api.get("/v1/stores/nowhere/footfall/history"), 404) == "unknown_store"
    asked = {"from": "2026-03-02", "to": "2026-03-01"}
    assert problem(await api.get(HISTORY, params=asked), 400) == "malformed_range"
    asked = {"from": "2025-03-02", "to": "2026-03-01"}
    assert problem(await api.get(HISTORY, params=asked), 400) == "range_too_large"
    assert problem(await api.get(HISTORY, params={"from": "yesterday"}), 422) == "invalid_parameter"
    for path in (LIVE, HISTORY):
        assert problem(await api.get(path, headers={"Authorization": f"Bearer {KEYS['pos']}"}), 403) == "forbidden"
        assert problem(await api.get(path, headers={"Authorization": "Bearer no"}), 401) == "unauthenticated"
