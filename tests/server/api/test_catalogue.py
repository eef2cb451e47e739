"""The world over HTTP."""

from collections.abc import Callable

import httpx
import msgspec

from server.api.catalogue import _EXAMPLE
from tests.server.api.shop import Shop, key

Check = Callable[[httpx.Response, int], str]


async def test_put_get_delete(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """What was put can be read and taken away; each change has a new version."""
    document = msgspec.json.encode(_EXAMPLE)
    response = await api.put("/v1/catalogue", content=document, headers=key("admin"))
    assert (response.status_code, response.json()) == (200, {"version": 1})
    for collection, field, name in (
        ("stores", "id", "graben"),
        ("fences", "id", "graben-door"),
        ("products", "sku", "4711"),
        ("promotions", "id", "coffee-walk-past"),
    ):
        listed = (await api.get(f"/v1/catalogue/{collection}", headers=key("admin"))).json()
        assert [item[field] for item in listed] == [name]
        assert (await api.delete(f"/v1/catalogue/{collection}/{name}", headers=key("admin"))).status_code == 200
        assert (await api.get(f"/v1/catalogue/{collection}", headers=key("admin"))).json() == []
    assert shop.version == 5
    response = await api.delete("/v1/catalogue/stores/graben", headers=key("admin"))
    assert problem(response, 404) == "unknown_item"


async def test_bad_documents(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """An unknown field or a wrong value refuses the whole document and says where."""
    store = {"id": "graben", "name": "Graben", "lat": 48.2, "lng": 16.4}
    for document, where in (
        ({"shops": []}, ""),
        ({"stores": [store | {"lat": 91}]}, "$.stores[0].lat"),
        ({"stores": [store, store | {"time_zone": "Mars/Base"}]}, "$.stores[1]"),
        ({"stock": [{"store": "graben", "sku": "1", "quantity": -1}]}, "$.stock[0].quantity"),
    ):
        response = await api.put("/v1/catalogue", json=document, headers=key("admin"))
        assert problem(response, 400) == "malformed_body"
        assert response.json().get("where", "") == where
    assert shop.version == 0
    assert problem(await api.get("/v1/catalogue/secrets", headers=key("admin")), 422) == "invalid_parameter"


async def test_stock(api: httpx.AsyncClient, shop: Shop) -> None:
    """A shop system sets stock with the intake key."""
    levels = [{"store": "graben", "sku": "4711", "quantity": 3}, {"store": "graben", "sku": "4712", "quantity": 0}]
    assert (await api.put("/v1/stock", json=levels, headers=key("intake"))).status_code == 200
    assert shop.stock == {("graben", "4711"): 3, ("graben", "4712"): 0}
