"""Body limits against a real server, headers, the log, and unexpected errors."""

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest
import uvicorn
from redis.asyncio import Redis

from server.api.app import create_app
from server.api.services import Limits
from tests.server.api.conftest import client_of
from tests.server.api.shop import Shop, key

Check = Callable[[httpx.Response, int], str]
MIB = 1024 * 1024
STARTS_WITHIN_S = 10


@pytest.fixture
async def port(shop: Shop) -> AsyncIterator[int]:
    """Port of a real uvicorn with the API, as it is served."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(shop), access_log=False, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listening]))
    async with asyncio.timeout(STARTS_WITHIN_S):
        while not server.started:
            await asyncio.sleep(0.01)
    yield listening.getsockname()[1]
    server.should_exit = True
    await task


def _send_big(port: int, head: str, chunks: Iterator[bytes]) -> tuple[int, bytes]:
    """Send a request as long as the server takes it; how many bytes it took, and its answer."""
    sent, answer = 0, b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head.encode())
        with contextlib.suppress(ConnectionError):
            for chunk in chunks:
                connection.sendall(chunk)
                sent += len(chunk)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65_536):
                answer += part
    return sent, answer


_HEAD = "POST /v1/events HTTP/1.1\r\nHost: x\r\nX-API-Key: intake-key\r\n"
_BLOCK = b"x" * 65_536


@pytest.mark.parametrize(
    ("header", "block"),
    [
        (f"Content-Length: {100 * MIB}\r\n\r\n", _BLOCK),
        ("Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + _BLOCK + b"\r\n"),
    ],
    ids=["declared", "chunked"],
)
async def test_100_mib_are_refused_unread(port: int, shop: Shop, header: str, block: bytes) -> None:
    """A 100 MiB body gets 413 and is not read to its end nor kept, whether or not it says its length."""
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    blocks = (block for _ in range(1_600))
    sent, answer = await asyncio.to_thread(_send_big, port, _HEAD + header, blocks)
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert b"body_too_large" in answer
    assert sent < 20 * MIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 20 * 1024
    assert shop.log == []


async def test_limit_is_exact(api: httpx.AsyncClient, problem: Check) -> None:
    """256 KiB pass, one byte more does not."""
    body = b"[" + b" " * (256 * 1024 - 2) + b"]"
    assert (await api.post("/v1/events", content=body, headers=key("intake"))).status_code == 202
    response = await api.post("/v1/events", content=body + b" ", headers=key("intake"))
    assert problem(response, 413) == "body_too_large"
    assert response.headers["connection"] == "close"


async def test_catalogue_may_be_bigger(redis: Redis, problem: Check) -> None:
    """A catalogue has its own limit."""
    async with client_of(Shop(redis, limits=Limits(catalogue_bytes=MIB))) as api:
        for size, status in ((MIB, 200), (MIB + 1, 413)):
            body = b"{" + b" " * (size - 2) + b"}"
            assert (await api.put("/v1/catalogue", content=body, headers=key("admin"))).status_code == status
            body = b'{"type":"FeatureCollection","features":[]' + b" " * (size - 42) + b"}"
            assert (await api.put("/v1/fences", content=body, headers=key("admin"))).status_code == status


async def test_unknown_route_and_method(api: httpx.AsyncClient, problem: Check) -> None:
    """What does not exist is a problem too; a wrong method says which are right."""
    assert problem(await api.get("/v1/nothing"), 404) == "no_such_route"
    response = await api.patch("/v1/events")
    assert problem(response, 405) == "method_not_allowed"
    assert response.headers["allow"] == "POST"


async def test_security_headers(api: httpx.AsyncClient) -> None:
    """Every answer, errors too, may not be sniffed, framed, cached or passed on."""
    for path in ("/health", "/v1/nothing", "/v1/customers/anna", "/m/x"):
        headers = (await api.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]


async def test_unexpected_error(
    api: httpx.AsyncClient, shop: Shop, problem: Check, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug is a 500 that says nothing of the inside; the log finds it by its instance, without its message."""
    shop.fault = RuntimeError("password=hunter2")
    response = await api.get("/v1/customers/anna", headers=key("admin"))
    assert problem(response, 500) == "internal"
    assert "hunter2" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.json()["instance"] in caplog.text
    assert "RuntimeError" in caplog.text
    assert "hunter2" not in caplog.text


async def test_log_has_no_secrets(api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """The access log has method, template and status; no key, token, customer or query."""
    caplog.set_level(logging.INFO, logger="nearcast")
    await api.get("/v1/customers/anna-s-id?limit=secret-query", headers=key("admin"))
    await api.get("/m/secret-token")
    assert "GET /v1/customers/{customer:path} 404" in caplog.text
    assert "GET /m/{token} 404" in caplog.text
    ours = " ".join(record.getMessage() for record in caplog.records if record.name.startswith("nearcast"))
    assert not any(secret in ours for secret in ("anna-s-id", "secret-query", "secret-token", "admin-key"))
