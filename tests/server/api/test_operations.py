"""Alive, ready, metrics, and the API's description of itself."""

from collections.abc import Callable

import httpx
import msgspec
from redis.asyncio import Redis

from geofence.geojson import FeatureCollection
from nearcast.events import IntakeEvent
from nearcast.world import Stock
from offers.worldfile import WorldFile
from server.api.channels import NewPublication
from server.api.customers import ConsentChange
from server.api.demo import Scene
from server.api.keyring import KeyRing
from server.api.models import Role
from server.api.tills import (
    ApplyRequest,
    BlockRequest,
    MergeRequest,
    RedeemRequest,
    ReleaseRequest,
    ReserveRequest,
    RollbackRequest,
)
from tests.server.api.conftest import client_of
from tests.server.api.shop import KEYS, Shop

Check = Callable[[httpx.Response, int], str]
BODIES: dict[str, object] = {
    "post /v1/events": IntakeEvent | list[IntakeEvent],
    "put /v1/catalogue": WorldFile,
    "put /v1/fences": FeatureCollection,
    "put /v1/stock": list[Stock],
    "put /v1/customers/{customer}/consents": ConsentChange,
    "post /v1/channels/{channel}/publications": NewPublication,
    "post /v1/coupons/apply": ApplyRequest,
    "post /v1/coupons/{code}/reserve": ReserveRequest,
    "post /v1/coupons/{code}/release": ReleaseRequest,
    "post /v1/coupons/{code}/redeem": RedeemRequest,
    "post /v1/coupons/{code}/rollback": RollbackRequest,
    "post /v1/stores/{store}/blocks": BlockRequest,
    "post /v1/blocks/{block}/merge": MergeRequest,
    "put /v1/demo/scene": Scene,
    # A ZIP file; its example says how to make one.
    "post /v1/models": str,
    "put /v1/models/{version}/role": Role,
}


async def test_alive_and_ready(api: httpx.AsyncClient, shop: Shop) -> None:
    """Alive as long as it answers; ready only with every component, and it names what is missing."""
    assert (await api.get("/ready")).status_code == 200
    shop.components["log"] = "away"
    response = await api.get("/ready")
    assert response.status_code == 503
    assert response.json() == {"status": "unavailable", "components": {"store": "ok", "log": "away"}}
    assert response.headers["retry-after"]
    assert (await api.get("/health")).json() == {"status": "ok"}


async def test_metrics(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """Open by default; with a key of role "metrics" configured, that key is asked for."""
    response = await api.get("/metrics")
    assert "# TYPE nearcast_intake_total counter" in response.text
    shop.keys = KeyRing([*KEYS.items(), ("metrics", "metrics-key")])
    assert problem(await api.get("/metrics"), 401) == "unauthenticated"
    assert problem(await api.get("/metrics", headers={"X-API-Key": KEYS["pos"]}), 403) == "forbidden"
    assert (await api.get("/metrics", headers={"X-API-Key": "metrics-key"})).status_code == 200


def _refs(value: object) -> set[str]:
    match value:
        case dict():
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*(_refs(item) for item in value.values()))
        case list():
            return set().union(*(_refs(item) for item in value))
        case _:
            return set()


async def test_openapi(redis: Redis) -> None:
    """Every body has a schema and examples that decode as what the route reads; nothing points nowhere."""
    async with client_of(Shop(redis, demo=True)) as api:
        document = (await api.get("/v1/openapi.json")).json()
    assert "x-components" not in str(document)
    for ref in _refs(document):
        assert ref.removeprefix("#/components/schemas/") in document["components"]["schemas"], ref
    seen = set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["responses"]["default"]["content"], path
            if "requestBody" in operation:
                name = f"{method} {path}"
                seen.add(name)
                (content,) = operation["requestBody"]["content"].values()
                examples = content["examples"]
                assert examples
                for example in examples.values():
                    assert msgspec.convert(example["value"], BODIES[name]) is not None
    assert seen == set(BODIES)
    roles = document["paths"]["/v1/events"]["post"]["x-roles"]
    assert roles == ["intake"]


async def test_docs_page(api: httpx.AsyncClient) -> None:
    """The page lists the routes and loads nothing from elsewhere."""
    text = (await api.get("/docs")).text
    assert "POST /v1/coupons/{code}/redeem" in text
    assert "Role: pos." in text
    assert "http" not in text.replace("http.md", "").lower().replace("nearcast http api", "")
