"""A store's special days, and the hours of its fences: what the engine notices, and what "why not?" says."""

from datetime import UTC, datetime

import httpx
import msgspec

from nearcast.events import Consent
from nearcast.world import OpenHours, SpecialDay
from offers.worldfile import WorldFile
from tests.server.api.test_places import api, decided, fixes, now_ms, put_corner, town
from tests.server.replay.installation import Installation
from tests.server.town import WORLD

__all__ = ["api", "town"]

ALWAYS = [msgspec.to_builtins(OpenHours(weekday=day, opens=0, closes=1440)) for day in range(7)]


async def test_a_fence_follows_its_store(town: Installation, api: httpx.AsyncClient) -> None:
    """Closed for the day, the store closes the fence that has hours; a fence's own special days go before."""
    at_ms = now_ms() - 60_000
    days = {datetime.fromtimestamp(at / 1000, tz=UTC).date() for at in (at_ms, now_ms(), now_ms() + 600_000)}
    graben = msgspec.structs.replace(WORLD.stores[0], special_days=[SpecialDay(day) for day in sorted(days)])
    answer = await api.put("/v1/catalogue", content=msgspec.json.encode(WorldFile(stores=[graben])))
    assert answer.status_code == 200, answer.text
    await put_corner(api, hours=ALWAYS)
    await town.send(Consent(uid="ann", ts=at_ms, scope="sms", granted=True), *fixes(at_ms))
    assert await decided(town, "corner") == []
    await put_corner(api, hours=ALWAYS, special_days=[])
    await town.send(*fixes(at_ms + 20_000))
    assert [decision.moment.trigger for decision in await decided(town, "corner")] == ["enter"]


async def test_why_not_on_a_fences_day_off(town: Installation, api: httpx.AsyncClient) -> None:
    """The gate knows a fence's special days, and tells them from the store's."""
    days = {datetime.fromtimestamp(at / 1000, tz=UTC).date().isoformat() for at in (now_ms(), now_ms() + 600_000)}
    await put_corner(api)
    await town.send(Consent(uid="ann", ts=now_ms() - 50_000, scope="sms", granted=True), *fixes(now_ms() - 40_000))
    await put_corner(api, special_days=[{"date": day} for day in sorted(days)])
    told = (await api.get("/v1/customers/ann/why-not", params={"promotion": "enter"})).json()
    assert told["situation"]["fence"] == "corner"
    (gate,) = [gate for gate in told["things"][0]["gates"] if gate["name"] == "store_closed"]
    assert gate["detail"] == "graben is open, corner in it is closed"
