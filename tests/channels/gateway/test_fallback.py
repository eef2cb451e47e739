"""The way in without WebSockets: with the JavaScript SDK, with an EventSource's headers, and by hand."""

import asyncio
import contextlib
import json
import random
import re
from collections.abc import AsyncIterator
from typing import Any, Self
from urllib.parse import quote

import httpx
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from websockets.frames import Frame, Opcode

from channels.gateway import codes
from channels.gateway.emulation import BadEventId, event_id, parse_event_id, resume
from channels.gateway.publications import Position
from channels.gateway.server import Gateway
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from nearcast.clock import SystemClock
from nearcast.metrics import CONNECTIONS, DISCONNECTS
from tests.channels.gateway.conftest import QUICK, StartGateway
from tests.channels.gateway.support import WITHIN_S, Device, ScriptedBackend, until
from tests.services import node
from tests.services.ports import free_ports
from tests.services.proxy import TcpProxy

CHANNEL = "customer:c1"
HERE = node.ROOT / "tests" / "channels" / "gateway"
TRANSPORTS = {"sse": "/connection/sse", "http_stream": "/connection/http_stream"}


@pytest.fixture
def token(tokens: Tokens) -> str:
    return tokens.mint("c1", "customer", ttl_s=600)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Script:
    """The JavaScript SDK in Node.js. `log` holds what it said, in order."""

    def __init__(self, port: int, transport: str, token: str, post_port: int = 0, **options: str) -> None:
        transports = [{"transport": transport, "endpoint": f"http://127.0.0.1:{port}{TRANSPORTS[transport]}"}]
        options |= {"token": token, "emulationEndpoint": f"http://127.0.0.1:{post_port or port}/emulation"}
        self._arguments = [str(node.CENTRIFUGE), json.dumps(transports), json.dumps(options)]
        self._asked = 0
        self.log: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            node.node(),
            *node.ARGUMENTS,
            str(HERE / "sdk.mjs"),
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(WITHIN_S):
            await self._reading
            assert await self._process.wait() == 0

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.log.append(json.loads(line))

    def said(self, event: str) -> list[dict[str, Any]]:
        return [{**entry, "event": None} for entry in self.log if entry.get("event") == event]

    @property
    def publications(self) -> list[tuple[int, Any]]:
        return [(entry["offset"], entry["data"]) for entry in self.said("publication")]

    async def connected(self, times: int = 1) -> None:
        await until(lambda: len(self.said("connected")) >= times, f"it has connected {times} times: {self.log}")

    async def has(self, count: int) -> None:
        await until(lambda: len(self.publications) >= count, f"{count} publications have arrived")

    async def ask(self, method: str, data: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._asked += 1
        number = self._asked
        self._process.stdin.write(json.dumps({"id": number, "method": method, "data": data}).encode() + b"\n")
        await until(lambda: any(entry.get("id") == number for entry in self.log), f"{method} is answered")
        return next(entry for entry in self.log if entry.get("id") == number)


class Answer:
    """A response that does not end, read by hand. `ids` are the event ids that came with the messages."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.ids: list[str] = []
        self._lines = response.aiter_lines()
        self.session = self.node = ""

    async def receive(self) -> Any:
        """The next message other than a ping; None at the end."""
        async with asyncio.timeout(WITHIN_S):
            async for line in self._lines:
                if line.startswith("id: "):
                    self.ids.append(line.removeprefix("id: "))
                text = line.removeprefix("data: ")
                if text.startswith("{") and text != "{}":
                    return json.loads(text)
        return None

    async def connected(self) -> Any:
        reply = (await self.receive())["connect"]
        self.session, self.node = reply["session"], reply["node"]
        return reply

    async def assert_closed(self, disconnect: codes.Disconnect) -> None:
        """The client is told why, and then the response ends as it should."""
        push = {"code": disconnect.code, "reason": disconnect.reason}
        assert await self.receive() == {"push": {"disconnect": push}}
        assert await self.receive() is None


class Http:
    """A client without an SDK."""

    def __init__(self, gateway: Gateway) -> None:
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False, timeout=WITHIN_S)

    @contextlib.asynccontextmanager
    async def open(
        self, token: str, transport: str = "sse", headers: dict[str, Any] | None = None, **connect: Any
    ) -> AsyncIterator[Answer]:
        command = json.dumps({"id": 1, "connect": {"token": token, **connect}})
        path = TRANSPORTS[transport]
        if transport == "sse":
            asked = self.client.stream("GET", path, params={"cf_connect": command}, headers=headers)
        else:
            asked = self.client.stream("POST", path, content=command, headers=headers)
        async with asked as response:
            yield Answer(response)

    async def post(self, answer: Answer, *commands: object, **other: Any) -> int:
        data = "\n".join(json.dumps(command) for command in commands)
        body = {"session": answer.session, "node": answer.node, "data": data, **other}
        return (await self.client.post("/emulation", json=body)).status_code


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[Http]:
    http = Http(gateway)
    async with http.client:
        yield http


async def test_the_sdk_does_everything_without_a_websocket(
    gateway: Gateway, streams: ChannelStreams, token: str, transport: str, backend: ScriptedBackend
) -> None:
    """Publications arrive in order, an rpc is answered or refused, a send arrives; leaving is noticed."""
    before = CONNECTIONS._value.get()
    async with Script(gateway.port, transport, token) as sdk:
        await sdk.connected()
        assert sdk.said("connected") == [{"event": None, "transport": transport}]
        assert await streams.connected(CHANNEL)
        assert CONNECTIONS._value.get() == before + 1
        for n in range(3):
            await streams.publish(CHANNEL, json.dumps({"n": n, "umlaut": "ü"}).encode())
        await sdk.has(3)
        assert (await sdk.ask("rpc", {"method": "echo", "data": 'ä\n"quoted"'}))["result"] == 'ä\n"quoted"'
        assert (await sdk.ask("rpc", {"method": "gone", "data": {}}))["error"] == 410
        await sdk.ask("send", {"type": "location"})
        await until(lambda: backend.events, "the send has arrived")
    assert sdk.publications == [(n + 1, {"n": n, "umlaut": "ü"}) for n in range(3)]
    assert [data for _, data in backend.events] == [{"type": "location"}]
    await until(lambda: CONNECTIONS._value.get() == before, "the client has left")


async def test_the_sdk_recovers_after_a_cut(
    gateway: Gateway, streams: ChannelStreams, token: str, transport: str
) -> None:
    """What was published while the connection was cut arrives after the reconnect, once and in order."""
    proxy = TcpProxy(free_ports(1)[0], gateway.port)
    await proxy.start()
    async with Script(proxy.port, transport, token) as sdk:
        await sdk.connected()
        await streams.publish(CHANNEL, b"1")
        await sdk.has(1)
        await proxy.stop()
        await until(lambda: not gateway_clients(gateway), "the gateway has noticed")
        await streams.publish(CHANNEL, b"2")
        await streams.publish(CHANNEL, b"3")
        await proxy.start()
        await sdk.connected(2)
        await streams.publish(CHANNEL, b"4")
        await sdk.has(4)
    await proxy.stop()
    assert sdk.publications == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert sdk.said("subscribed")[-1] == {
        "event": None,
        "channel": CHANNEL,
        "wasRecovering": True,
        "recovered": True,
    }


async def test_the_sdk_answers_pings(start_gateway: StartGateway, token: str, transport: str) -> None:
    """A pong that comes by POST counts; a client that sends none is told so (3012)."""
    gateway = await start_gateway(ping_interval_s=0.2, pong_timeout_s=1.0)
    async with Script(gateway.port, transport, token) as sdk:
        await sdk.connected()
        http = Http(gateway)
        async with http.client, http.open(token, transport) as silent:
            await silent.connected()
            await silent.assert_closed(codes.NO_PONG)
        assert (await sdk.ask("rpc", {"method": "echo", "data": 1}))["result"] == 1
        assert len(sdk.said("connecting")) == 1


async def test_the_sdk_obeys_the_codes(start_gateway: StartGateway, tokens: Tokens, token: str, transport: str) -> None:
    """A bad token ends it for good (3500); after a shutdown (3001) it comes back to the node that is there then."""
    port = free_ports(1)[0]
    gateway = await start_gateway(port=port)
    async with Script(port, transport, "no.such.token") as refused:
        await until(lambda: refused.said("disconnected"), "it gives up")
    assert refused.said("disconnected") == [{"event": None, "code": 3500, "reason": "invalid token"}]
    async with Script(port, transport, token) as sdk:
        await sdk.connected()
        await gateway.stop()
        await until(lambda: {"event": None, "code": 3001} in sdk.said("connecting"), "it has been told")
        await start_gateway("node-2", port=port)
        await sdk.connected(2)


async def test_the_sdk_fetches_a_new_token(gateway: Gateway, tokens: Tokens, token: str, transport: str) -> None:
    """An expired token is answered with 109, upon which the SDK fetches another one and connects."""
    async with Script(gateway.port, transport, tokens.mint("c1", "customer", ttl_s=-60), fresh=token) as sdk:
        await sdk.connected()
    assert 109 in [entry["code"] for entry in sdk.said("error")]


async def test_the_sdk_falls_back_from_websockets(gateway: Gateway, token: str) -> None:
    """Where WebSockets are blocked the SDK takes the next transport by itself."""
    async with Script(gateway.port, "sse", token) as sdk:
        blocked = {"transport": "websocket", "endpoint": f"ws://127.0.0.1:{gateway.port}/blocked"}
        sdk._arguments[1] = json.dumps([blocked, *json.loads(sdk._arguments[1])])
    async with sdk:
        await sdk.connected()
    assert sdk.said("connected")[-1]["transport"] == "sse"


async def test_commands_reach_the_node_that_holds_the_response(
    start_gateway: StartGateway, token: str, transport: str, redis: Redis
) -> None:
    """POSTs that a balancer sends to another node are handed over; a node that is gone is a 404."""
    one, other = await start_gateway("node-1"), await start_gateway("node-2")
    async with Script(one.port, transport, token, post_port=other.port) as sdk:
        await sdk.connected()
        assert (await sdk.ask("rpc", {"method": "echo", "data": 7}))["result"] == 7
    http, elsewhere = Http(one), Http(other)
    async with http.client, elsewhere.client, http.open(token, transport) as answer:
        reply = await answer.connected()
        assert reply["node"] not in ("", "node-1")  # which may hold the name of the host
        assert await elsewhere.post(answer, {"id": 2, "ping": {}}) == 204
        assert await answer.receive() == {"id": 2, "ping": {}}
        assert await elsewhere.post(answer, {"id": 3, "ping": {}}, node="0123456789abcdef") == 404
        assert await elsewhere.post(answer, {"id": 3, "ping": {}}, node="a node\n") == 400


async def test_an_event_source_goes_on_where_it_was(http: Http, streams: ChannelStreams, tokens: Tokens) -> None:
    """`Last-Event-ID` overrules what the address says, over several channels; nothing is missed or comes twice."""
    token = tokens.mint("c1", "staff", ttl_s=600, channels=("staff:s1", "staff:s=ü&2"))
    first = await streams.publish("staff:s1", b"1")
    async with http.open(token) as answer:
        await answer.connected()
        await streams.publish("staff:s1", b"2")
        await answer.receive()
        second = await streams.publish("staff:s=ü&2", b"3")
        await answer.receive()
        assert await http.post(answer, {"id": 2, "ping": {}}) == 204
        await answer.receive()
        assert len(answer.ids) == 3, "an answer moves no channel on"
        last = answer.ids[-1]
    assert parse_event_id(last) == {"staff:s1": (first.epoch, 2), "staff:s=ü&2": (second.epoch, 1)}
    await streams.publish("staff:s1", b"4")
    old = {"staff:s1": {"recover": True, "epoch": first.epoch, "offset": 0}}
    async with http.open(token, headers={"Last-Event-ID": last}, subs=old) as answer:
        subs = (await answer.connected())["subs"]
        assert parse_event_id(answer.ids[-1])["staff:s1"] == (first.epoch, 3)
    assert [(sub["recovered"], sub.get("publications", [])) for sub in subs.values()] == [
        (True, [{"data": 4, "offset": 3}]),
        (True, []),
    ]


async def test_a_gap_is_said_to_an_event_source(http: Http, streams: ChannelStreams, token: str) -> None:
    """A position of another epoch is not recovered; an id that no gateway made is refused."""
    await streams.publish(CHANNEL, b"1")
    lost = event_id({CHANNEL: Position("another", 5)})
    async with http.open(token, headers={"Last-Event-ID": lost}) as answer:
        sub = (await answer.connected())["subs"][CHANNEL]
    assert (sub["was_recovering"], sub.get("recovered", False)) == (True, False)
    for bad in ("5", "a=b:c", "a=b:1&", "=e:1", "a=e:" + "9" * 17, "é=e:1"):
        async with http.open(token, headers={"Last-Event-ID": bad.encode()}) as answer:
            assert answer.response.status_code == 400, bad


async def test_the_documented_event_source(gateway: Gateway, streams: ChannelStreams, token: str) -> None:
    """The documentation's few lines show everything once, across a cut, and answer pings."""
    page = (node.ROOT / "docs" / "reference" / "wire.md").read_text()
    [code] = [part.split("```")[0] for part in page.split("```js\n") if "new EventSource" in part.split("```")[0]]
    proxy = TcpProxy(free_ports(1)[0], gateway.port)
    await proxy.start()
    before = f"const token = {token!r}; const show = (data) => console.log(JSON.stringify(data));"
    # Unlike a page, Node.js ends while its EventSource only waits to connect again.
    before += "setInterval(() => {}, 1000);"
    code = before + code.replace("https://push.shop.example", f"http://127.0.0.1:{proxy.port}")
    process = await asyncio.create_subprocess_exec(
        node.node(), *node.ARGUMENTS, "--input-type=module", "-e", code, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await until(lambda: gateway_clients(gateway), "it has connected")
    await streams.publish(CHANNEL, b"1")
    async with asyncio.timeout(WITHIN_S):
        assert await process.stdout.readline() == b"1\n"
        await proxy.stop()
        await until(lambda: not gateway_clients(gateway), "the gateway has noticed")
        await streams.publish(CHANNEL, b"2")
        await proxy.start()
        assert await process.stdout.readline() == b"2\n"
        await streams.publish(CHANNEL, b"3")
        assert await process.stdout.readline() == b"3\n"
    process.kill()
    await process.wait()
    await proxy.stop()


def test_event_ids_are_read_as_written() -> None:
    """Any names and epochs of channels survive; what is no id raises."""
    positions = {"customer:ü &=%:": Position("5f3a", 17), "x": Position("", 0)}
    assert parse_event_id(event_id(positions)) == positions
    assert event_id(positions).isascii()
    assert parse_event_id("") == {}
    for bad in ("x", "x=1", "x=e:-1", "x=e:1&&y=e:1"):
        with pytest.raises(BadEventId):
            parse_event_id(bad)


def test_a_command_that_is_no_connect_is_left_alone() -> None:
    """Resuming changes connect commands only; the session says what is wrong with others."""
    at = {"a": Position("e", 1)}
    for text in ("", "{}", "[]", '{"id":1,"rpc":{}}', '{"id":1,"connect":{"subs":5}}', "[" * 50_000):
        assert resume(text, at) == text
    resumed = json.loads(resume('{"id":1,"connect":{"token":"t","subs":{"b":{"recover":true}}}}', at))
    assert resumed["connect"] == {
        "token": "t",
        "subs": {"b": {"recover": True}, "a": {"recover": True, "epoch": "e", "offset": 1}},
    }


async def test_the_responses_head(http: Http, token: str, transport: str) -> None:
    """The headers that keep proxies and browsers from holding back or keeping anything."""
    async with http.open(token, transport) as answer:
        headers = answer.response.headers
        assert answer.response.status_code == 200
        assert headers["x-accel-buffering"] == "no"
        assert "no-store" in headers["cache-control"]
        expected = "text/event-stream; charset=utf-8" if transport == "sse" else "application/json"
        assert headers["content-type"] == expected
        assert len((await answer.connected())["session"]) >= 22


async def test_pages_of_other_origins(start_gateway: StartGateway, token: str) -> None:
    """A page on the list may do everything and is told so; another one may do nothing."""
    gateway = await start_gateway(origins=("https://shop.example",))
    good, evil = {"Origin": "https://shop.example"}, {"Origin": "https://shop.example.evil"}
    http = Http(gateway)
    async with http.client:
        for transport, path in TRANSPORTS.items():
            async with http.open(token, transport, headers=good) as answer:
                await answer.connected()
                assert answer.response.headers["access-control-allow-origin"] == "https://shop.example"
                assert answer.response.headers["vary"] == "Origin"
                body = {"session": answer.session, "node": answer.node, "data": "{}"}
                posted = await http.client.post("/emulation", json=body, headers=good)
                assert (posted.status_code, posted.headers["access-control-allow-origin"]) == (204, good["Origin"])
                assert (await http.client.post("/emulation", json=body, headers=evil)).status_code == 403
            async with http.open(token, transport, headers=evil) as answer:
                assert answer.response.status_code == 403
                assert "access-control-allow-origin" not in answer.response.headers
            asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
            allowed = await http.client.options(path, headers=good | asked)
            assert allowed.status_code == 204
            assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
            assert allowed.headers["access-control-allow-headers"] == "content-type"
            assert (await http.client.options(path, headers=evil | asked)).status_code == 403


async def test_requests_that_can_not_be_answered(http: Http, token: str) -> None:
    """Each gets the status that says why, and the connection can be used again unless it says so."""
    client = http.client
    connect = json.dumps({"id": 1, "connect": {"token": token}})
    assert (await client.get("/health")).text == "ok\n"
    assert (await client.get("/nothing")).status_code == 404
    wrong = await client.post("/connection/sse")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, OPTIONS")
    assert (await client.get("/emulation")).status_code == 405
    assert (await client.get("/connection/sse")).status_code == 400
    assert (await client.get(f"/connection/sse?cf_connect={connect}&cf_connect={connect}")).status_code == 400
    assert (await client.get("/connection/sse?cf_connect=%ff")).status_code == 400
    assert (await client.post("/connection/http_stream", content=b"\xff")).status_code == 400
    protobuf = {"Content-Type": "application/octet-stream"}
    assert (await client.post("/connection/http_stream", content=b"", headers=protobuf)).status_code == 415
    assert (await client.post("/connection/http_stream", content=b"x" * 70_000)).status_code == 413
    no_session = b'{"session":"","data":"{}"}'
    for body in (b"", b"{}", b"[]", b"\xff", b'{"session":"s","node":"n"}', no_session, b"[" * 60_000):
        assert (await client.post("/emulation", content=body)).status_code == 400
    assert (await client.post("/emulation", json={"session": "unknown", "data": "{}"})).status_code == 404
    large = {"session": "s", "data": "x" * 70_000}
    assert (await client.post("/emulation", json=large)).status_code == 413
    assert (await client.post("/emulation", content=b"x" * 200_000)).status_code == 413


@pytest.mark.parametrize(
    "command", ["", "garbage", "{}", '{"id":1,"rpc":{"method":"echo"}}', '{"id":1,"connect":{"token":5}}', "[" * 10_000]
)
async def test_garbage_is_a_bad_request(http: Http, command: str) -> None:
    """What is not a connect command first is told so (3501), and the response ends."""
    async with http.client.stream("POST", "/connection/http_stream", content=command) as response:
        await Answer(response).assert_closed(codes.BAD_REQUEST)


async def test_commands_are_carried_out_in_order_while_publications_go_on(
    http: Http, streams: ChannelStreams, token: str, backend: ScriptedBackend, transport: str
) -> None:
    """A command waits for the one before it, even if that came by another POST; other messages wait for neither."""
    async with http.open(token, transport) as answer:
        await answer.connected()
        assert await http.post(answer, {"id": 2, "rpc": {"method": "wait"}}) == 204
        assert await http.post(answer, {"id": 3, "rpc": {"method": "echo", "data": 1}}, {"id": 4, "ping": {}}) == 204
        await streams.publish(CHANNEL, b'"meanwhile"')
        assert (await answer.receive())["push"]["pub"]["data"] == "meanwhile"
        backend.gate.set()
        assert [(await answer.receive())["id"] for _ in range(3)] == [2, 3, 4]


async def test_waiting_commands_are_bounded(http: Http, token: str, backend: ScriptedBackend) -> None:
    """Who posts on while a command runs is refused (429), and is served again once it has ended."""
    async with http.open(token) as answer:
        await answer.connected()
        await http.post(answer, {"id": 2, "rpc": {"method": "wait"}})
        statuses = [await http.post(answer, {"id": 3, "rpc": {"method": "echo", "data": "x" * 60_000}})]
        while statuses[-1] == 204:
            assert len(statuses) < 10, "256 KiB are full"
            statuses.append(await http.post(answer, {"id": 3, "rpc": {"method": "echo", "data": "x" * 60_000}}))
        assert statuses[-1] == 429
        backend.gate.set()
        for _ in statuses:
            await answer.receive()
        assert await http.post(answer, {"id": 9, "ping": {}}) == 204
        assert await answer.receive() == {"id": 9, "ping": {}}


async def test_a_client_that_leaves_frees_everything(
    gateway: Gateway, http: Http, token: str, streams: ChannelStreams, backend: ScriptedBackend
) -> None:
    """Its session is unknown at once, also while a command of it runs; the channel has no listener any more."""
    async with http.open(token) as answer:
        await answer.connected()
        await http.post(answer, {"id": 2, "rpc": {"method": "wait"}})
    await until(lambda: not gateway_clients(gateway), "the client has left")
    assert await http.post(answer, {"id": 3, "ping": {}}) == 404
    backend.gate.set()
    deadline = asyncio.get_running_loop().time() + WITHIN_S
    while await streams.connected(CHANNEL):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


async def test_a_client_that_leaves_while_it_joins_is_not_kept(
    gateway: Gateway, http: Http, token: str, streams: ChannelStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has joined by the time the store answers is let go of: nobody would ever leave for it."""
    attend, asked, go_on = gateway._hub._streams.attend, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        found = await attend(*arguments)
        asked.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(gateway._hub._streams, "attend", slow)
    async with http.open(token):
        await asked.wait()
    await until(lambda: not gateway_clients(gateway), "the client has left")
    go_on.set()
    await until(lambda: not gateway._hub._feeds, "its channel is left")
    assert not await streams.connected(CHANNEL)


async def test_requests_that_come_together_are_answered_one_at_a_time(gateway: Gateway) -> None:
    """All of them and in order; others have their turn in between."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    waiting = asyncio.create_task(others())
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
    for _ in range(100):
        await reader.readuntil(b"ok\n")
    waiting.cancel()
    writer.close()
    assert turns > 100


async def test_a_slow_client_is_closed_and_holds_up_nobody(
    start_gateway: StartGateway, streams: ChannelStreams, token: str
) -> None:
    """A client that does not read its response is closed (3008); one on a WebSocket gets every publication."""
    gateway = await start_gateway(backlog_bytes=64 * 1024)
    before = DISCONNECTS.labels("3008")._value.get()
    command = json.dumps({"id": 1, "connect": {"token": token}}).encode()
    async with Device(gateway, token) as healthy:
        await healthy.ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
        writer.write(b"POST /connection/http_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(command))
        writer.write(command)
        assert b"200" in await reader.readline()
        await until(lambda: gateway_clients(gateway) == 2, "it is there")
        count, large = 0, json.dumps("x" * 60_000).encode()
        while DISCONNECTS.labels("3008")._value.get() == before:
            await streams.publish(CHANNEL, large)
            count += 1
            await until(lambda: len(healthy.publications) == count, "the healthy client has it")  # noqa: B023
            assert count < 1000
        await until(lambda: gateway_clients(gateway) == 1, "the slow client is cut off")
        writer.close()
    assert healthy.offsets == list(range(1, count + 1))


async def test_a_slow_client_gets_the_newest_of_each_key(
    start_gateway: StartGateway, streams: ChannelStreams, token: str, transport: str
) -> None:
    """Of publications with a key it may get the last one only; of those without it gets all, and nothing overtakes."""
    gateway = await start_gateway(backlog_bytes=600 * 1024, send_buffer_bytes=16 * 1024)
    http = Http(gateway)
    async with Device(gateway, token) as watcher, http.client, http.open(token, transport) as answer:
        await watcher.ready()
        await answer.connected()
        text = "x" * 8_000
        for n in range(300):
            key = f"shelf{n % 3}" if n % 50 else ""
            await streams.publish(CHANNEL, json.dumps([key, n, text]).encode(), key)
        await watcher.has(300)
        got: list[Any] = []
        while not got or got[-1]["offset"] < 300:
            got.append((await answer.receive())["push"]["pub"])
    assert watcher.offsets == list(range(1, 301))
    offsets = [pub["offset"] for pub in got]
    assert offsets == sorted(set(offsets))
    assert len(offsets) < 280
    assert [pub["data"][1] for pub in got if not pub["data"][0]] == list(range(0, 300, 50))
    last = {pub["data"][0]: pub["data"][1] for pub in got}
    assert last == {"": 250, "shelf0": 297, "shelf1": 298, "shelf2": 299}


async def test_half_a_request_and_idle_connections_are_cut_off(start_gateway: StartGateway, token: str) -> None:
    """Neither half a head nor half a body holds a connection for longer than the time for a token."""
    gateway = await start_gateway(connect_timeout_s=0.2)
    half = b"POST /emulation HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
    for text in (b"", b"GET /health HTTP/1.1\r\n", half):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(text)
        async with asyncio.timeout(WITHIN_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health FTP/1.0\r\nHost: x\r\n\r\n", 400),
        (b"POST /emulation HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /emulation HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", 411),
        (b"POST /emulation HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /emulation HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"x" * 150_000, 413),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000, 431),
    ],
    ids=lambda value: value[:30] if isinstance(value, bytes) else value,
)
async def test_what_is_not_http_is_refused_and_cut_off(gateway: Gateway, text: bytes, status: int) -> None:
    """Broken and oversized requests get one answer and the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(text)
    async with asyncio.timeout(WITHIN_S):
        with contextlib.suppress(ConnectionError):
            assert (await reader.readline()).split()[1] == str(status).encode()
            await reader.read()
    writer.close()


async def test_requests_of_one_connection_are_answered_in_order(gateway: Gateway) -> None:
    """Requests that come together are answered one after the other, an HTTP/1.0 one ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    body = b'{"session":"s","data":"{}"}'
    post = b"POST /emulation HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    writer.write(post + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + post + b"GET /health HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(WITHIN_S):
        text = await reader.read()
    assert re.findall(rb"HTTP/1.1 (\d+)", text) == [b"404", b"200", b"404", b"200"]
    writer.close()


async def test_nothing_may_follow_a_response_that_does_not_end(gateway: Gateway, token: str) -> None:
    """A request behind it can't be answered: the connection is cut."""
    command = json.dumps({"id": 1, "connect": {"token": token}}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST /connection/http_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(command))
    writer.write(command)
    async with asyncio.timeout(WITHIN_S):
        await reader.readuntil(b'"connect"')
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1" not in await reader.read()
    await until(lambda: not gateway_clients(gateway), "it is gone")
    writer.close()


async def test_a_websocket_on_a_connection_that_had_requests(gateway: Gateway, token: str) -> None:
    """A proxy that keeps connections open may ask for a WebSocket on one of them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(WITHIN_S):
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"ok\n")
        writer.write(
            b"GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b"HTTP/1.1 101" in await reader.readuntil(b"\r\n\r\n")
        connect = json.dumps({"id": 1, "connect": {"token": token}}).encode()
        writer.write(Frame(Opcode.TEXT, connect).serialize(mask=True))
        await reader.readuntil(b'"connect"')
    assert len(gateway._fallback.addresses) == 1
    writer.close()
    await until(lambda: not len(gateway._fallback.addresses), "it is counted once, and then no more")


async def test_one_address_has_a_limit(start_gateway: StartGateway, token: str, transport: str) -> None:
    """Past the limit a stream gets 429; behind a trusted proxy each address it names has its own."""
    gateway = await start_gateway(connections_per_address=1, trusted_proxies=("127.0.0.0/8",))
    http = Http(gateway)
    async with http.client:
        for address in ("192.0.2.1", "192.0.2.2"):
            there = {"X-Forwarded-For": f"forged, {address}"}
            async with http.open(token, transport, headers=there) as answer:
                await answer.connected()
                async with http.open(token, transport, headers=there) as refused:
                    assert refused.response.status_code == 429
                assert await http.post(answer, {"id": 2, "ping": {}}) == 204
        await until(lambda: not len(gateway._fallback.addresses), "those who left are not counted")
    direct = await start_gateway(connections_per_address=1)
    one, two = Http(direct), Http(direct)
    async with one.client, two.client:
        assert (await one.client.get("/health")).status_code == 200
        assert (await two.client.get("/health")).status_code == 429


async def test_a_storm_waits_or_is_turned_away(start_gateway: StartGateway, token: str, transport: str) -> None:
    """Newcomers queue; who would wait too long gets 503 at once, and the connection is closed."""
    gateway = await start_gateway(handshakes_per_second=10, queue_s=1.0, joins_at_once=2)
    https = [Http(gateway) for _ in range(14)]
    statuses = []

    async def come(http: Http) -> None:
        async with http.client, http.open(token, transport) as answer:
            statuses.append(answer.response.status_code)
            if statuses[-1] == 200:
                await answer.connected()

    await asyncio.gather(*map(come, https))
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 3, "the queue is used, and those who got in make room"
    await until(lambda: not gateway_clients(gateway), "all have left")


async def test_a_node_that_goes_away_takes_nobody(
    start_gateway: StartGateway, token: str, backend: ScriptedBackend, transport: str
) -> None:
    """While a command still runs, /health and new streams say 503; then the client is answered and sent elsewhere."""
    gateway = await start_gateway(drain_s=WITHIN_S)
    http = Http(gateway)
    async with http.client, http.open(token, transport) as answer:
        await answer.connected()
        assert (await http.client.head("/health")).status_code == 200
        await http.post(answer, {"id": 2, "rpc": {"method": "wait"}})
        await until(lambda: backend.waiting, "the command runs")
        stopping = asyncio.create_task(gateway.stop())
        await until(lambda: gateway._fallback.draining, "it drains")
        assert (await http.client.get("/health")).status_code == 503
        async with http.open(token, transport) as refused:
            assert refused.response.status_code == 503
        backend.gate.set()
        assert await answer.receive() == {"id": 2, "rpc": {"data": "waited"}}
        await answer.assert_closed(codes.SHUTDOWN)
        await stopping


async def test_a_post_for_another_node_while_the_store_is_away(
    redis: Redis, tokens: Tokens, token: str, backend: ScriptedBackend
) -> None:
    """It is refused as unavailable (503); commands for this node are carried out."""
    store = redis.connection_pool.connection_kwargs
    proxy = TcpProxy(free_ports(1)[0], store["port"])
    await proxy.start()
    # Like nearcast's own, it asks once.
    there = Redis(port=proxy.port, db=store["db"], socket_timeout=1.0, retry=Retry(NoBackoff(), 0))
    gateway = Gateway(
        GatewaySettings(**QUICK), tokens, ChannelStreams(there, "node-1", SystemClock()), backend, SystemClock()
    )
    await gateway.start()
    http = Http(gateway)
    async with http.client, http.open(token) as answer:
        await answer.connected()
        await proxy.stop()
        assert await http.post(answer, {"id": 2, "ping": {}}, node="0123456789abcdef") == 503
        assert await http.post(answer, {"id": 3, "rpc": {"method": "echo", "data": 1}}) == 204
        assert await answer.receive() == {"id": 3, "rpc": {"data": 1}}
        await proxy.start()
    await gateway.stop()
    await proxy.stop()
    await there.aclose()


async def test_no_request_harms_the_gateway(gateway: Gateway, token: str, streams: ChannelStreams) -> None:
    """Requests put together by chance and damaged, cut into pieces, raise nothing and leave nothing behind."""
    chance = random.Random(7)
    connect = json.dumps({"id": 1, "connect": {"token": token}})
    paths = ["/health", "/", "*", "/emulation", "/connection/http_stream", "/connection/websocket", "/connection/sse"]
    paths += [
        f"/connection/sse?cf_connect={quote(text)}" for text in (connect, "{}", "\udcff".encode(errors="replace"))
    ]
    bodies = [b"", connect.encode(), b"{}", b'{"session":"x","node":"y","data":"{}"}', b"\xff", b"[" * 3000]
    lines = ["Host: x", "Origin: null", "Last-Event-ID: x", "Last-Event-ID: customer:c1=e:5", "Connection: close"]
    lines += ["Expect: 100-continue", "Transfer-Encoding: chunked", "Content-Length: 3", "Upgrade: websocket"]
    problems: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(context))

    def request() -> bytes:
        body = chance.choice(bodies)
        head = [*chance.sample(lines, chance.randrange(4)), *chance.choice(([f"Content-Length: {len(body)}"], []))]
        first = f"{chance.choice(['GET', 'POST', 'HEAD', 'OPTIONS', 'CONNECT'])} {chance.choice(paths)} HTTP/1.1"
        whole = bytearray("\r\n".join([first, "Host: y", *head, "", ""]).encode() + body)
        if chance.random() < 0.3:
            whole[chance.randrange(len(whole))] = chance.randrange(256)
        return bytes(whole)

    async def come(text: bytes, cut: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        with contextlib.suppress(ConnectionError, TimeoutError):
            writer.write(text[:cut])
            await asyncio.sleep(0)
            writer.write(text[cut:])
            async with asyncio.timeout(0.05):
                await reader.read()
        writer.close()

    try:
        async with Device(gateway, token) as healthy:
            await healthy.ready()
            for _ in range(20):
                texts = [b"".join(request() for _ in range(chance.randrange(1, 4))) for _ in range(20)]
                await asyncio.gather(*(come(text, chance.randrange(40)) for text in texts))
            await streams.publish(CHANNEL, b"1")
            await healthy.has(1)
        await until(lambda: not gateway._fallback.open, "all connections have ended")
        assert not gateway._sessions._by_secret
        await until(lambda: not len(gateway._fallback.addresses), "nobody is counted any more")
        assert problems == []
    finally:
        loop.set_exception_handler(None)


def gateway_clients(gateway: Gateway) -> int:
    return len(gateway._clients)
