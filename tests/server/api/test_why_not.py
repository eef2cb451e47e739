"""Why a customer gets what they get, over HTTP, from what a real engine decided."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from nearcast.events import Action, Cart, Consent, Event, Location, Profile
from server.api.app import create_app
from server.roles import make_desk
from tests.server.replay.installation import KEYS, Installation, environment, installed
from tests.server.town import LNG, WORLD, metres_north

Check = Callable[[httpx.Response, int], str]
ADMIN = {"Authorization": f"Bearer {KEYS['admin']}"}


@pytest.fixture
async def town(redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Installation]:
    """The town at work: engine, timers, dispatcher."""
    for name, value in environment(valkey_url).items():
        monkeypatch.setenv(name, value)
    async with installed(WORLD) as running:
        yield running


@pytest.fixture
async def api(town: Installation) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(make_desk(town.core)))
    async with httpx.AsyncClient(transport=transport, base_url="http://api.test", headers=ADMIN) as client:
        yield client


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def fix(uid: str, metres: float) -> Event:
    return Location(uid=uid, ts=now_ms(), lat=metres_north(metres), lng=LNG, accuracy_m=5.0)


async def why_not(api: httpx.AsyncClient, customer: str, **asked: str) -> dict[str, Any]:
    answer = await api.get(f"/v1/customers/{customer}/why-not", params=asked)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_from_no_consent_to_an_offer_to_a_cap(town: Installation, api: httpx.AsyncClient) -> None:
    """The answer follows the customer's state: no cart, no consent, an offer, the cap; each with the numbers."""
    await town.send(Profile(uid="ann", ts=now_ms(), name="Ann"))
    told = await why_not(api, "ann", promotion="abandoned")
    failing = [each["name"] for each in told["conditions"] if each["holds"] is False]
    assert (told["candidate"], failing) == (False, ["trigger", "who.in_cart", "what"])
    assert told["situation"] == {
        "trigger": "walk_past",
        "assumed": True,
        "store": "graben",
        "fence": "near",
        "fence_kind": "vicinity",
    }

    await town.send(Cart(uid="ann", ts=now_ms(), action="add", sku="beans"))
    await town.send(fix("ann", 80))
    told = await why_not(api, "ann", promotion="abandoned")
    assert (told["candidate"], told["situation"]["assumed"]) == (True, False)
    assert told["summary"] == "stopped by no_consent"
    (thing,) = told["things"]
    gates = {gate["name"]: gate for gate in thing["gates"]}
    assert (thing["sku"], gates["no_consent"]["passes"], gates["out_of_stock"]["passes"]) == ("beans", False, True)
    assert gates["out_of_stock"]["detail"] == "5 pieces of beans at graben"
    assert (told["decisions"], told["stopped_by"]) == (1, {"no_consent": 1})

    await town.send(Consent(uid="ann", ts=now_ms(), scope="sms", granted=True), fix("ann", 500))
    assert "nothing stops it" in (await why_not(api, "ann", promotion="abandoned"))["summary"]
    await town.send(Profile(uid="ann", ts=now_ms(), phone="+4366012345"))
    await town.send(fix("ann", 80))
    told = await why_not(api, "ann", promotion="abandoned")
    assert told["stopped_by"] == {"no_consent": 1, "won": 1}
    newest = told["past"][0]
    assert (newest["winner"], newest["things"][0]["sku"]) == ("abandoned", "beans")
    assert newest["things"][0]["expected_cents"] == newest["winner_expected_cents"] > 0
    assert (newest["things"][0]["value_cents"], newest["things"][0]["probability"]) == (100, 1)
    assert (told["worth"]["value_cents"], told["held_out"]) == (100, False)

    decisions = (await api.get("/v1/customers/ann/decisions")).json()["decisions"]
    assert [each["id"] for each in decisions] == [each["decision"] for each in told["past"]]
    offer, nothing = decisions
    assert offer["moment"]["trigger"] == "walk_past"
    assert offer["candidates"][0]["propensity"] > 0
    assert (offer["rules_version"], offer["model_version"]) == (told["rules_version"], newest["model_version"])
    assert (nothing["reason"], nothing["candidates"][0]["stopped_by"]) == ("no_consent", "no_consent")


async def test_an_opt_out_that_the_engine_has_not_seen(town: Installation, api: httpx.AsyncClient) -> None:
    """What was withdrawn through the API counts at once, as it does for what is about to be sent."""
    await town.send(Consent(uid="ann", ts=now_ms(), scope="sms", granted=True))
    (thing,) = (await why_not(api, "ann", promotion="grind"))["things"]
    assert thing["stopped_by"] is None
    await town.core.opt_outs.withdraw("ann", "all", now_ms())  # type: ignore[arg-type]
    (thing,) = (await why_not(api, "ann", promotion="grind"))["things"]
    assert thing["stopped_by"] == "opted_out"


async def test_of_a_store(town: Installation, api: httpx.AsyncClient) -> None:
    """The question can be about one store."""
    await town.send(Action(uid="ann", ts=now_ms(), action="app_open"))
    told = await why_not(api, "ann", promotion="help", store="graben")
    assert (told["situation"]["store"], told["situation"]["fence"]) == ("graben", "inside")
    assert [each["name"] for each in told["conditions"] if each["holds"] is False] == ["trigger"]


async def test_what_does_not_exist(town: Installation, api: httpx.AsyncClient, problem: Check) -> None:
    """An unknown customer, promotion or store is 404 and says which; a missing or malformed id names the parameter."""
    await town.send(Profile(uid="ann", ts=now_ms(), name="Ann"))

    async def asked(customer: str, **params: str) -> httpx.Response:
        return await api.get(f"/v1/customers/{customer}/why-not", params=params)

    assert problem(await asked("bob", promotion="grind"), 404) == "unknown_customer"
    assert problem(await asked("ann", promotion="gone"), 404) == "unknown_promotion"
    assert problem(await asked("ann", promotion="grind", store="gone"), 404) == "unknown_store"
    missing = await asked("ann")
    assert (problem(missing, 422), missing.json()["where"]) == ("invalid_parameter", "query.promotion")
    malformed = await asked("ann", promotion="{x}")
    assert (problem(malformed, 400), malformed.json()["where"]) == ("malformed_id", "query.promotion")
    refused = await api.get(
        "/v1/customers/ann/why-not?promotion=grind", headers={"Authorization": f"Bearer {KEYS['staff']}"}
    )
    assert problem(refused, 403) == "forbidden"


async def test_it_is_described(api: httpx.AsyncClient) -> None:
    """The OpenAPI document says what it takes and who may ask."""
    operation = (await api.get("/v1/openapi.json")).json()["paths"]["/v1/customers/{customer}/why-not"]["get"]
    assert operation["x-roles"] == ["admin"]
    assert {each["name"]: each["required"] for each in operation["parameters"]} == {
        "customer": True,
        "promotion": True,
        "store": False,
    }
    assert all(each.get("description") for each in operation["parameters"] if each["in"] == "query")
