"""The API over an in-memory shop, reached through HTTP."""

from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from redis.asyncio import Redis

from server.api.app import create_app
from tests.server.api.shop import Shop

Problem = dict[str, object]


@pytest.fixture
def shop(redis: Redis) -> Shop:
    """Behind the API."""
    return Shop(redis)


@pytest.fixture
async def api(shop: Shop) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API over `shop`, without a key of its own."""
    async with client_of(shop) as client:
        yield client


def client_of(shop: Shop) -> httpx.AsyncClient:
    """A client of an API over any shop."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(shop)), base_url="http://api.test")


@pytest.fixture
def problem() -> Callable[[httpx.Response, int], str]:
    """Checks that an answer is a problem of this status; gives its reason."""

    def check(response: httpx.Response, status: int) -> str:
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
        body: Problem = response.json()
        assert body["status"] == status
        assert body["type"] == f"urn:nearcast:problem:{body['reason']}"
        assert body["title"]
        assert str(body["instance"]).startswith("urn:uuid:")
        return str(body["reason"])

    return check
