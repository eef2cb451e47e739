"""The world over HTTP."""

from collections.abc import Callable

import httpx
import msgspec

from geofence.geojson import collection_of, fences_from_geojson, fences_to_geojson
from nearcast.world import Promotion
from server.api.catalogue import _EXAMPLE, _FENCES
from tests.offers.mistakes import EVERYTHING, MISTAKES, TAKEN
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


async def test_fences_as_geojson(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """Fences are put as a FeatureCollection, and got as one: all, or those of one store."""
    ours = fences_to_geojson(_FENCES)
    response = await api.put("/v1/fences", content=ours, headers=key("admin"))
    assert (response.status_code, response.json()) == (200, {"version": 1})
    assert list(shop.world["fence"].values()) == _FENCES
    other = msgspec.structs.replace(_FENCES[0], id="other", store="other")
    assert (await api.put("/v1/fences", content=fences_to_geojson([other]), headers=key("admin"))).status_code == 200
    response = await api.get("/v1/fences", headers=key("admin"))
    assert response.headers["content-type"] == "application/geo+json"
    assert fences_from_geojson(response.content) == [*_FENCES, other]
    response = await api.get("/v1/fences", params={"store": "other"}, headers=key("admin"))
    assert fences_from_geojson(response.content) == [other]
    response = await api.get("/v1/fences", params={"store": "nowhere"}, headers=key("admin"))
    assert fences_from_geojson(response.content) == []
    assert problem(await api.get("/v1/fences", params={"store": ""}, headers=key("admin")), 400) == "malformed_id"


async def test_bad_geojson(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """One wrong feature refuses all; the problem names the feature and the field, or the ring and vertex."""
    good, bad = msgspec.to_builtins(collection_of(_FENCES))["features"]
    for wrong, reason, where in (
        (
            {**bad, "properties": bad["properties"] | {"floor": "one"}},
            "invalid_geojson",
            "features[1].properties.floor",
        ),
        (
            {**bad, "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}},
            "invalid_geojson",
            "features[1].properties.buffer_m",
        ),
        (
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1]]]},
                "properties": {"id": "x", "store": "graben", "kind": "store"},
            },
            "invalid_geometry",
            "features[1], ring 0, vertex 3",
        ),
        (
            {**bad, "properties": good["properties"] | {"radius_m": None, "buffer_m": 2}},
            "duplicate_fence",
            "features[1].properties.id",
        ),
    ):
        document = {"type": "FeatureCollection", "features": [good, wrong]}
        response = await api.put("/v1/fences", json=document, headers=key("admin"))
        assert problem(response, 400) == reason
        assert response.json()["where"] == where
    assert shop.version == 0
    response = await api.put("/v1/fences", content=fences_to_geojson(_FENCES), headers=key("intake"))
    assert problem(response, 403) == "forbidden"
    assert problem(await api.get("/v1/fences", headers=key("intake")), 403) == "forbidden"


async def test_everything_that_a_promotion_can_have(api: httpx.AsyncClient) -> None:
    """It is taken as it is, and given back so."""
    answer = await api.put("/v1/catalogue", json={"promotions": [EVERYTHING]}, headers=key("admin"))
    assert answer.status_code == 200, answer.text
    listed = await api.get("/v1/catalogue/promotions", headers=key("admin"))
    assert msgspec.json.decode(listed.content, type=list[Promotion]) == [TAKEN]


async def test_mistakes_in_it(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """Each is refused in the words that a file would be refused with, and says where."""
    for change, field, words in MISTAKES:
        document = {"promotions": [EVERYTHING | change]}
        answer = await api.put("/v1/catalogue", json=document, headers=key("admin"))
        assert problem(answer, 400) == "malformed_body"
        assert answer.json()["detail"].startswith(words)
        assert answer.json()["where"].startswith("$.promotions[0]" + (f".{field}" if field else ""))
    assert shop.version == 0
