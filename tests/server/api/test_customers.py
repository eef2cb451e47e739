"""One customer over HTTP."""

from collections.abc import Callable

import httpx
import pytest

from nearcast.customer import CartItem, Customer, Decayed, History, Presence, Stay
from nearcast.ids import CustomerId, FenceId, Sku, message_id
from tests.server.api.shop import ANNA, NOTHING, OFFER, Shop, key

Check = Callable[[httpx.Response, int], str]


async def test_read(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """All that is known, with named fields; nothing of the fold's bookkeeping."""
    history = History(baskets=2, recent_baskets=Decayed(1.5, 9))
    cart = {Sku("4711"): CartItem(2, None, 5)}
    anna = Customer(id=ANNA, name="Anna", cart=cart, history=history, consents={"sms": (True, 3)}, seen=[1, 2])
    shop.people[ANNA] = (anna, Presence(last_ms=7, inside={FenceId("door"): Stay(5, 7)}))
    body = (await api.get("/v1/customers/anna", headers=key("admin"))).json()
    assert body["customer"]["name"] == "Anna"
    assert body["customer"]["cart"] == {"4711": {"quantity": 2, "price_cents": None, "changed_ms": 5}}
    assert body["customer"]["history"]["recent_baskets"] == {"value": 1.5, "at_ms": 9}
    assert body["customer"]["consents"] == {"sms": [True, 3]}
    assert body["presence"]["inside"]["door"] == {"entered_ms": 5, "last_inside_ms": 7, "dwelled": False}
    assert "seen" not in body["customer"]
    assert problem(await api.get("/v1/customers/bob", headers=key("admin")), 404) == "unknown_customer"


@pytest.mark.parametrize("name", ["anna", "anon:x-1", "a/b", "a/b/decisions", "ä ö?%", "https://id.example/7"])
async def test_any_id_can_be_addressed(api: httpx.AsyncClient, shop: Shop, name: str) -> None:
    """Whatever a retailer uses as an id, its owner can opt out and be erased."""
    customer = CustomerId(name)
    shop.people[customer] = (Customer(id=customer), Presence())
    path = f"/v1/customers/{_quoted(name)}"
    change = {"scope": "all", "granted": False}
    assert (await api.put(f"{path}/consents", json=change, headers=key("intake"))).status_code == 204
    assert shop.consents == [(customer, "all", False)]
    begun = await api.delete(path, headers=key("admin"))
    assert (begun.status_code, begun.json()) == (202, {"customer": name, "state": "pending"})
    assert shop.people == {}
    assert (await api.get(begun.headers["location"], headers=key("admin"))).json()["state"] == "pending"
    shop.being_erased.clear()
    assert (await api.get(begun.headers["location"], headers=key("admin"))).json() == {
        "customer": name,
        "state": "complete",
    }


def _quoted(name: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "".join(f"%{b:02X}" for b in c.encode()) for c in name)


async def test_bad_consent_and_id(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """A wrong scope, type, field or id changes nothing, and the answer says where it is wrong."""
    for body in (b"{}", b'{"scope":"tv","granted":true}', b'{"scope":"sms","granted":1}', b"[]", b'{"scope":"sms'):
        response = await api.put("/v1/customers/anna/consents", content=body, headers=key("intake"))
        assert problem(response, 400) == "malformed_body"
    response = await api.put("/v1/customers/anna/consents", json={"scope": "tv", "granted": True}, headers=key("admin"))
    assert response.json()["where"] == "$.scope"
    for bad in ("%00", "a%7Fb", "x" * 129, "%7Bx%7D"):
        assert problem(await api.delete(f"/v1/customers/{bad}", headers=key("admin")), 400) == "malformed_id"
    assert shop.consents == []


async def test_erase_that_fails_is_not_acknowledged(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """503 while the log is away, both for erasing and for opting out."""
    shop.away = True
    assert problem(await api.delete("/v1/customers/anna", headers=key("admin")), 503) == "unavailable"
    assert problem(await api.get("/v1/erasures/anna", headers=key("admin")), 503) == "unavailable"
    change = {"scope": "all", "granted": False}
    response = await api.put("/v1/customers/anna/consents", json=change, headers=key("intake"))
    assert problem(response, 503) == "unavailable"


async def test_decisions(api: httpx.AsyncClient, problem: Check) -> None:
    """The newest decisions with their gates; `limit` has bounds."""
    body = (await api.get("/v1/customers/anna/decisions", headers=key("admin"))).json()
    assert [d["id"] for d in body["decisions"]] == [OFFER, NOTHING]
    body = (await api.get("/v1/customers/anna/decisions?limit=1", headers=key("admin"))).json()
    assert len(body["decisions"]) == 1
    for limit in ("0", "101", "x"):
        response = await api.get(f"/v1/customers/anna/decisions?limit={limit}", headers=key("admin"))
        assert problem(response, 422) == "invalid_parameter"
        assert response.json()["where"] == "query.limit"


async def test_recall(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """A message is recalled by its id, for customers with any id; 404 for one that there is not."""
    path = f"/v1/customers/{_quoted('a/b')}/messages/{message_id(OFFER, 'customer')}/recall"
    assert (await api.post(path, headers=key("admin"))).status_code == 204
    assert shop.recalled == [("a/b", message_id(OFFER, "customer"))]
    assert problem(await api.post(path, headers=key("intake")), 403) == "forbidden"
    unknown = await api.post("/v1/customers/anna/messages/m/recall", headers=key("admin"))
    assert problem(unknown, 404) == "unknown_message"
    bad = await api.post("/v1/customers/anna/messages/%7Bm%7D/recall", headers=key("admin"))
    assert problem(bad, 400) == "malformed_id"


async def test_what_became_of_a_message(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """Told by its id, for customers with any id, with its trace; only to who may know."""
    path = f"/v1/customers/{_quoted('a/b')}/messages/{message_id(OFFER, 'customer')}"
    assert problem(await api.get(path, headers=key("intake")), 403) == "forbidden"
    told = (await api.get(path, headers=key("admin"))).json()
    assert told["trace"] == [{"stage": "arrived", "at_ms": 1_000}, {"stage": "log", "at_ms": 1_002}]
    assert (told["message"], told["decision"], told["status"]) == (message_id(OFFER, "customer"), OFFER, "sent")
    unknown = await api.get("/v1/customers/anna/messages/m", headers=key("admin"))
    assert problem(unknown, 404) == "unknown_message"
    shop.away = True
    assert problem(await api.get(path, headers=key("admin")), 503) == "unavailable"


async def test_logout(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """Only for who may; not acknowledged while the store is away."""
    path = f"/v1/customers/{_quoted('a/b')}/logout"
    assert problem(await api.post(path, headers=key("intake")), 403) == "forbidden"
    assert (await api.post(path, headers=key("admin"))).status_code == 204
    assert shop.logged_out == ["a/b"]
    shop.away = True
    assert problem(await api.post(path, headers=key("admin")), 503) == "unavailable"
