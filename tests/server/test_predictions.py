"""Next-best products over HTTP, from what a real engine folded."""

import time
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from models.features.channel import row as channel_row
from models.next_best import predictions
from models.registry import FixedModels
from models.scorer import Scorer
from nearcast import fold
from nearcast.customer import Customer
from nearcast.events import Action, Cart, Consent, Event, Line, Purchase
from nearcast.ids import CustomerId
from nearcast.world import Product, Stock
from offers.worldfile import WorldFile
from server.api.app import create_app
from server.roles import make_desk
from tests.server.replay.installation import KEYS, Installation, environment, installed
from tests.server.town import WORLD

DAY_MS = 86_400_000
ADMIN = {"Authorization": f"Bearer {KEYS['admin']}"}
SHOP = msgspec.structs.replace(
    WORLD,
    products=[
        *WORLD.products,
        Product(sku="milk", name="Milk", segment="dairy"),
        Product(sku="oats", name="Oat drink", segment="dairy", price_cents=199),
    ],
    stock=[*WORLD.stock, Stock(store="graben", sku="milk", quantity=7), Stock(store="graben", sku="oats", quantity=1)],
)
SEGMENTS = {product.sku: product.segment for product in SHOP.products}


@pytest.fixture
async def town(redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Installation]:
    """The town at work, with a little more to sell."""
    for name, value in environment(valkey_url).items():
        monkeypatch.setenv(name, value)
    async with installed(SHOP) as running:
        yield running


@pytest.fixture
async def api(town: Installation) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(make_desk(town.core)))
    async with httpx.AsyncClient(transport=transport, base_url="http://api.test", headers=ADMIN) as client:
        yield client


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def buy(name: str, days_ago: float, *skus: str) -> Purchase:
    at_ms = now_ms() - round(days_ago * DAY_MS)
    return Purchase(id=name, uid="ann", ts=at_ms, items=[Line(sku=sku, quantity=1, amount_cents=250) for sku in skus])


#: Milk every week, beans every month, and once something that the world does not have.
PAST: list[Event] = [
    *(buy(f"weekly-{week}", 7 * week + 1, "milk") for week in range(20)),
    *(buy(f"monthly-{month}", 30 * month + 5, "beans") for month in range(5)),
    buy("once", 200, "a-thing-of-old"),
]


async def products(api: httpx.AsyncClient, customer: str = "ann", **asked: str | int) -> list[dict[str, Any]]:
    answer = await api.get(f"/v1/customers/{customer}/predictions", params=asked)
    assert answer.status_code == 200, answer.text
    body: dict[str, list[dict[str, Any]]] = answer.json()
    return body["products"]


async def test_likeliest_first_with_what_is_in_stock(town: Installation, api: httpx.AsyncClient) -> None:
    """Segments by the shipped model on the same purchases; of each a thing that the store has, and every action
    counts at once: what is wished for comes first, what is in the cart isn't suggested, a purchase makes less likely.
    """
    await town.send(*PAST)
    told = await products(api, store="graben")
    assert [each["segment"] for each in told] == ["dairy", "coffee"]
    assert [each["product"]["sku"] for each in told] == ["milk", "beans"]
    assert told[0]["product"] == {"sku": "milk", "name": "Milk", "price_cents": 0, "stock": 7}

    by_hand = Customer(id=CustomerId("ann"))
    for event in PAST:
        fold.apply(by_hand, event, SEGMENTS, fold.FoldRules())
    shipped = Scorer.load(Path(str(resources.files("models").joinpath("artifacts", "buy_next"))), "buy_next")
    expected = predictions(by_hand, {"dairy", "coffee"}, FixedModels(shipped).serving("buy_next"), now_ms(), 5)
    assert [each["model"] for each in told] == [shipped.version] * 2
    assert [each["probability"] for each in told] == pytest.approx([each.probability for each in expected], abs=1e-5)

    await town.send(Action(uid="ann", ts=now_ms(), action="wishlist_add", sku="oats"))
    assert (await products(api, store="graben", top=1))[0]["product"]["sku"] == "oats"
    await town.send(Cart(uid="ann", ts=now_ms(), action="add", sku="oats"))
    assert (await products(api, store="graben", top=1))[0]["product"]["sku"] == "milk"
    await town.send(Cart(uid="ann", ts=now_ms(), action="add", sku="milk"))
    assert (await products(api, store="graben", top=1))[0]["product"] is None

    await town.send(buy("today", 0, "milk", "oats"))
    refreshed = {each["segment"]: each["probability"] for each in await products(api)}
    assert refreshed["coffee"] != pytest.approx(told[1]["probability"], abs=1e-4)
    assert refreshed["dairy"] != pytest.approx(told[0]["probability"], abs=1e-4)


async def test_what_the_store_does_not_have_is_not_suggested(town: Installation, api: httpx.AsyncClient) -> None:
    """Sold out: another thing of the segment, then none. Without a store nothing is suggested."""
    await town.send(*PAST)
    await town.core.world.put(WorldFile(stock=[Stock(store="graben", sku="milk", quantity=0)]))
    assert (await products(api, store="graben"))[0]["product"]["sku"] == "oats"
    await town.core.world.put(WorldFile(stock=[Stock(store="graben", sku="oats", quantity=0)]))
    assert (await products(api, store="graben"))[0]["product"] is None
    assert [each["product"] for each in await products(api)] == [None, None]


async def test_somebody_who_opted_out(town: Installation, api: httpx.AsyncClient) -> None:
    """Nothing is predicted of them; nor of somebody who bought nothing yet."""
    await town.send(*PAST, Consent(uid="bob", ts=now_ms(), scope="sms", granted=True))
    assert await products(api, "bob") == []
    await town.send(Consent(uid="ann", ts=now_ms(), scope="all", granted=False))
    assert await products(api) == []


async def test_bad_questions(town: Installation, api: httpx.AsyncClient) -> None:
    """A customer or store that nobody knows, a number out of bounds, a key that may not ask."""
    ask = "/v1/customers/ann/predictions"
    assert problem(await api.get(ask)) == (404, "unknown_customer")
    await town.send(*PAST)
    assert problem(await api.get(ask, params={"store": "nowhere"})) == (404, "unknown_store")
    for top in ("0", "101", "x"):
        assert problem(await api.get(ask, params={"top": top})) == (422, "invalid_parameter")
    assert problem(await api.get(ask, headers={"Authorization": f"Bearer {KEYS['intake']}"})) == (403, "forbidden")


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["reason"]


async def test_channels_that_the_customer_agreed_to(town: Installation, api: httpx.AsyncClient) -> None:
    """Only those, likeliest first, by the shipped model on what came of the messages so far: none yet."""
    given = [
        Consent(id=f"c-{scope}", uid="ann", ts=now_ms(), scope=scope, granted=True) for scope in ("email", "websocket")
    ]
    await town.send(*PAST, *given)
    answer = await api.get("/v1/customers/ann/predictions")
    told = answer.json()["channels"]
    assert [each["channel"] for each in told] == ["websocket", "email"]
    shipped = Scorer.load(Path(str(resources.files("models").joinpath("artifacts", "channel"))), "channel")
    nobody = Customer(id=CustomerId("ann"))
    expected = shipped.score([channel_row(nobody, channel, now_ms()) for channel in ("websocket", "email")])
    assert [each["probability"] for each in told] == pytest.approx(expected)
    assert {each["model"] for each in told} == {shipped.version}
    await town.send(Consent(id="no", uid="ann", ts=now_ms(), scope="websocket", granted=False))
    assert [each["channel"] for each in (await api.get("/v1/customers/ann/predictions")).json()["channels"]] == [
        "email"
    ]
