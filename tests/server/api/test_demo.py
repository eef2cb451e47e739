"""The demo's routes, and that they exist nowhere else."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from tests.server.api.conftest import client_of
from tests.server.api.shop import Shop, key

Check = Callable[[httpx.Response, int], str]
SCENE = {
    "title": "Vienna",
    "phones": [{"customer": "anna", "name": "Anna"}, {"customer": "bob"}],
    "staff": {"store": "graben", "name": "Tablet"},
    "live": {"channel": "demo:live"},
}


@pytest.fixture
async def demo(redis: Redis, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API in demo mode with one page."""
    (tmp_path / "index.html").write_text("<p>demo page</p>")
    async with client_of(Shop(redis, demo=True, web=tmp_path)) as client:
        yield client


async def test_scene_with_tokens(demo: httpx.AsyncClient, problem: Check) -> None:
    """The scene comes back as it was put, with tokens for phones, tablet and live channel."""
    assert problem(await demo.get("/demo/scene.json"), 404) == "no_scene"
    assert (await demo.put("/v1/demo/scene", json=SCENE, headers=key("admin"))).status_code == 204
    scene = (await demo.get("/demo/scene.json")).json()
    assert scene["title"] == "Vienna"
    assert scene["phones"] == [
        {"customer": "anna", "name": "Anna", "token": "customer:anna::3600"},
        {"customer": "bob", "token": "customer:bob::3600"},
    ]
    assert scene["staff"] == {"store": "graben", "name": "Tablet", "token": "staff:graben:staff:graben:3600"}
    assert scene["live"] == {"channel": "demo:live", "token": "demo:demo:demo:live:3600"}


async def test_bad_scenes(demo: httpx.AsyncClient, problem: Check) -> None:
    """What can't get its tokens is refused when it is put, not when it is read."""
    for body in (b"[]", b'{"phones":[{}]}', b'{"staff":7}', b'{"phones":[{"customer":""}]}', b"{", b'{"live":3}'):
        response = await demo.put("/v1/demo/scene", content=body, headers=key("admin"))
        assert problem(response, 400) == "malformed_body", body


async def test_live(redis: Redis, problem: Check) -> None:
    """What the driver posts is published as it is; it must be JSON."""
    shop = Shop(redis, demo=True)
    async with client_of(shop) as demo:
        response = await demo.post("/v1/demo/live", content=b'{"a":  1}', headers=key("admin"))
        assert (response.status_code, shop.published) == (204, [b'{"a":  1}'])
        response = await demo.post("/v1/demo/live", content=b"{", headers=key("admin"))
        assert problem(response, 400) == "malformed_body"


async def test_page(demo: httpx.AsyncClient) -> None:
    """The page's files are served under /demo/, with a policy of their own, and nothing outside of them."""
    response = await demo.get("/demo/")
    assert "demo page" in response.text
    assert "script-src" not in response.headers["content-security-policy"]
    assert "default-src 'self'" in response.headers["content-security-policy"]
    for path in ("/demo/missing.js", "/demo/..%2f..%2fetc/passwd", "/demo/%2e%2e/%2e%2e/etc/passwd"):
        assert (await demo.get(path)).status_code == 404


async def test_not_without_demo_mode(api: httpx.AsyncClient, problem: Check) -> None:
    """Outside demo mode none of these routes exist, even for an admin."""
    for method, path in (
        ("PUT", "/v1/demo/scene"),
        ("POST", "/v1/demo/live"),
        ("GET", "/demo/scene.json"),
        ("GET", "/demo/"),
    ):
        response = await api.request(method, path, headers=key("admin"), content=b"{}")
        assert problem(response, 404) == "no_such_route"
