"""Keys, roles and rates."""

from collections.abc import Callable

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from redis.asyncio import Redis

from nearcast.clock import ManualClock
from nearcast.errors import ConfigurationError, TooManyRequests
from server.api.app import create_app
from server.api.keyring import Buckets, KeyRing, RateLimit
from server.api.services import Limits
from tests.server.api.conftest import client_of
from tests.server.api.shop import KEYS, Shop, key

Check = Callable[[httpx.Response, int], str]

#: Everything that may be called without a key. Links carry their own proof, and are tested for that.
PUBLIC = {"/health", "/ready", "/metrics", "/v1/openapi.json", "/docs", "/v1/coupons/keys"}
#: The page that asks for a key before it shows any figure.
PUBLIC |= {"/reports", "/reports/", "/reports/{name}"}
#: In the demo only.
DEMO = {"/demo", "/demo/scene.json", "/demo/reports", "/demo/reports/{promotion:path}"}
BY_TOKEN = {"/m/{token}", "/m/{token}/opened", "/u/{token}", "/v1/callbacks/sms/{token}"}
#: route → the roles that may call it, besides admin. The list the documentation promises.
ROLES = {
    ("POST", "/v1/events"): "intake",
    ("PUT", "/v1/catalogue"): "admin",
    ("GET", "/v1/catalogue/stores"): "admin",
    ("DELETE", "/v1/catalogue/stores/graben"): "admin",
    ("PUT", "/v1/stock"): "intake",
    ("GET", "/v1/customers/anna"): "admin",
    ("DELETE", "/v1/customers/anna"): "admin",
    ("PUT", "/v1/customers/anna/consents"): "intake",
    ("GET", "/v1/customers/anna/decisions"): "admin",
    ("POST", "/v1/coupons/apply"): "intake",
    ("GET", "/v1/coupons/ABCDE"): "pos",
    ("GET", "/v1/coupons/ABCDE/qr"): "intake",
    ("POST", "/v1/coupons/ABCDE/reserve"): "pos",
    ("POST", "/v1/coupons/ABCDE/release"): "pos",
    ("POST", "/v1/coupons/ABCDE/redeem"): "pos",
    ("POST", "/v1/coupons/ABCDE/rollback"): "pos",
    ("POST", "/v1/stores/graben/blocks"): "pos",
    ("POST", "/v1/blocks/b-1/merge"): "pos",
    ("PUT", "/v1/demo/scene"): "admin",
    ("GET", "/v1/models"): "admin",
    ("POST", "/v1/models"): "admin",
    ("DELETE", "/v1/models/redeem-0"): "admin",
    ("PUT", "/v1/models/redeem-0/role"): "admin",
    ("POST", "/v1/model-kinds/redeem/rollback"): "admin",
    ("POST", "/v1/demo/live"): "admin",
}


async def test_every_route_asks_for_a_key(redis: Redis) -> None:
    """Without a key, and with a wrong one, every route but the public ones answers 401 (or 404 for a bad link)."""
    shop = Shop(redis, demo=True)
    seen = set()
    async with client_of(shop) as api:
        for context in iter_route_contexts(create_app(shop).routes):
            path, methods = context.path or "", context.methods or set()
            if path in PUBLIC or path in DEMO:
                continue
            for method in methods:
                for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Basic YTpi"}):
                    collection = path.replace("{collection}", "stores")
                    response = await api.request(method, collection, headers=headers, content=b"{}")
                    assert response.status_code == (404 if path in BY_TOKEN else 401), (method, path)
                seen.add((method, path))
    assert len(seen) >= len(ROLES)
    assert shop.log == []
    assert shop.version == 0


async def test_roles(redis: Redis, problem: Check) -> None:
    """A key works for its own routes only; the admin's works everywhere."""
    shop = Shop(redis, demo=True)
    async with client_of(shop) as api:
        for (method, path), allowed in ROLES.items():
            for role in KEYS:
                response = await api.request(method, path, headers=key(role), content=b"not json")
                if role in (allowed, "admin"):
                    assert response.status_code not in (401, 403, 500), (method, path, role)
                else:
                    assert problem(response, 403) == "forbidden", (method, path, role)


async def test_both_headers(api: httpx.AsyncClient, problem: Check) -> None:
    """A key may come as a bearer token or in X-API-Key; a missing one is told how."""
    for headers in (key("admin"), {"X-API-Key": KEYS["admin"]}, {"authorization": f"bearer {KEYS['admin']}"}):
        assert (await api.get("/v1/catalogue/stores", headers=headers)).status_code == 200
    response = await api.get("/v1/catalogue/stores")
    assert problem(response, 401) == "unauthenticated"
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_rate_limit(redis: Redis, problem: Check) -> None:
    """A key that calls too often waits; another key does not."""
    shop = Shop(redis, limits=Limits(rate=RateLimit(per_s=0.5, burst=3)))
    async with client_of(shop) as api:
        for _ in range(3):
            assert (await api.get("/v1/catalogue/stores", headers=key("admin"))).status_code == 200
        response = await api.get("/v1/catalogue/stores", headers=key("admin"))
        assert problem(response, 429) == "rate_limited"
        assert response.headers["retry-after"] == "2"
        assert (await api.get("/v1/coupons/x", headers=key("pos"))).status_code == 404
        shop.clock.advance(2_000)
        assert (await api.get("/v1/catalogue/stores", headers=key("admin"))).status_code == 200


def test_bucket_never_holds_more_than_its_burst() -> None:
    """A long silence saves up one burst, not more."""
    clock = ManualClock()
    ring = KeyRing([("pos", "k")])
    caller = ring.caller("k")
    assert caller is not None
    buckets = Buckets(RateLimit(per_s=10, burst=5), clock)
    clock.advance(3_600_000)
    for _ in range(5):
        buckets.take(caller)
    with pytest.raises(TooManyRequests):
        buckets.take(caller)


def test_key_ring() -> None:
    """One key may have several roles; unknown roles and empty keys stop the start."""
    ring = KeyRing([("pos", "k"), ("intake", "k"), ("metrics", "m")])
    caller = ring.caller("k")
    assert caller is not None
    assert caller.roles == {"pos", "intake"}
    assert ring.caller("\ud800") is None
    assert ring.has("metrics")
    assert not ring.has("staff")
    with pytest.raises(ConfigurationError, match="unknown role 'root'"):
        KeyRing([("root", "k")])
    with pytest.raises(ConfigurationError, match="empty"):
        KeyRing([("pos", "")])
