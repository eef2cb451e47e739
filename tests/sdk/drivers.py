"""Three SDKs behind one face: the Python one, the JavaScript one in Node, the JavaScript one in Chromium.

A driver runs in its own process, or page, and knows nothing of the scenarios: it does what it is told and notes what
the SDK says. `Sdk` is one client of it, with the same methods and the same events whatever the language.
"""

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import centrifuge
from playwright.async_api import async_playwright

from tests.clients.web import Reply, Request, recording_server
from tests.services.browser import ARGUMENTS as CHROMIUM_ARGUMENTS
from tests.services.browser import chromium
from tests.services.node import ARGUMENTS, CENTRIFUGE, node

WITHIN_S = 10.0
DRIVER = Path(__file__).with_name("driver.mjs")
#: As the pages load it.
BROWSER_SDK = CENTRIFUGE.parents[1] / "dist" / "centrifuge.js"
_PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<script src="/centrifuge.js"></script>
<script type="module">
import { makeDriver } from "/driver.mjs";
window.take = makeDriver(window.Centrifuge, window.say);
</script>"""

Event = dict[str, Any]


class Refused(Exception):
    """What was asked for got an error reply."""

    def __init__(self, code: object) -> None:
        super().__init__(f"refused with {code}")
        self.code = code


class Sdk:
    """One client. `log` is what its SDK has said."""

    def __init__(self, driver: "Driver", name: str) -> None:
        self.log: list[Event] = []
        self._driver = driver
        self._name = name

    async def do(self, method: str, **told: Any) -> Any:
        """Raises `Refused`."""
        async with asyncio.timeout(WITHIN_S):
            return await self._driver.do(self._name, method, told)

    def said(self, event: str, **fields: Any) -> list[Event]:
        """The events of a kind with these fields, oldest first."""
        return [each for each in self.log if each["event"] == event and fields.items() <= each.items()]

    async def until(self, event: str, times: int = 1, **fields: Any) -> Event:
        """The event that was said so many times, once it was."""
        deadline = time.monotonic() + WITHIN_S
        while len(found := self.said(event, **fields)) < times:
            assert time.monotonic() < deadline, f"not {times} times {event} {fields}: {self.log}"
            await asyncio.sleep(0.01)
        return found[times - 1]

    async def online(self) -> str:
        """Connect; the client's id."""
        await self.do("connect")
        return str((await self.until("connected"))["given_id"])

    def data(self, channel: str) -> list[tuple[int, Any]]:
        """Offset and content of the channel's publications, as they came."""
        return [(each["offset"], each["data"]) for each in self.said("publication", channel=channel)]


class Driver(ABC):
    """Makes clients, carries out what they are told, notes what they say."""

    def __init__(self) -> None:
        self._clients: dict[str, Sdk] = {}

    async def make(self, url: str, *tokens: str) -> Sdk:
        """A client that isn't connected yet. The first token is at hand, the others are fetched when it asks."""
        name = f"client-{len(self._clients)}"
        sdk = self._clients[name] = Sdk(self, name)
        # A server counts as gone a fifth of a second after the ping that didn't come.
        await sdk.do("make", url=url, tokens=list(tokens), ping_delay_s=0.2)
        return sdk

    def note(self, client: str, event: Event) -> None:
        self._clients[client].log.append(event)

    @abstractmethod
    async def do(self, client: str, method: str, told: dict[str, Any]) -> Any:
        """Raises `Refused`."""


class PythonDriver(Driver):
    """The Python SDK, in this process."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, _PythonClient] = {}

    async def do(self, client: str, method: str, told: dict[str, Any]) -> Any:
        if method == "make":
            self._made[client] = _PythonClient(lambda event: self.note(client, event), **told)
            return None
        try:
            return await getattr(self._made[client], method)(**told)
        except centrifuge.ReplyError as error:
            raise Refused(error.code) from None


class _PythonClient(centrifuge.ClientEventHandler):
    """The methods of driver.mjs, and its events."""

    def __init__(self, say: Callable[[Event], None], url: str, tokens: list[str], ping_delay_s: float) -> None:
        self._say = say
        self._tokens = tokens
        self._client = centrifuge.Client(
            url,
            events=self,
            token=tokens.pop(0),
            get_token=self._next_token,
            min_reconnect_delay=0.02,
            max_reconnect_delay=0.1,
            max_server_ping_delay=ping_delay_s,
            proxy=None,
        )

    async def _next_token(self) -> str:
        self._say({"event": "token"})
        return self._tokens.pop(0)

    async def connect(self) -> None:
        await self._client.connect()

    async def disconnect(self) -> None:
        await self._client.disconnect()

    async def subscribe(self, channel: str) -> None:
        subscription = self._client.get_subscription(channel)
        if subscription is None:
            subscription = self._client.new_subscription(channel, events=_PythonSubscription(channel, self._say))
        await subscription.subscribe()

    async def unsubscribe(self, channel: str) -> None:
        subscription = self._client.get_subscription(channel)
        assert subscription is not None
        await subscription.unsubscribe()

    async def publish(self, channel: str, data: Any) -> None:
        await self._client.publish(channel, data)

    async def presence(self, channel: str) -> list[list[str]]:
        found = await self._client.presence(channel)
        return [[each.client, each.user] for each in found.clients.values()]

    async def presence_stats(self, channel: str) -> list[int]:
        found = await self._client.presence_stats(channel)
        return [found.num_clients, found.num_users]

    async def history(self, channel: str, limit: int, since: Any = None, reverse: bool = False) -> dict[str, Any]:
        position = centrifuge.StreamPosition(**since) if since is not None else None
        found = await self._client.history(channel, limit=limit, since=position, reverse=reverse)
        publications = [[each.offset, each.data] for each in found.publications]
        return {"offset": found.offset, "epoch": found.epoch, "publications": publications}

    async def rpc(self, name: str, data: Any) -> Any:
        return (await self._client.rpc(name, data)).data

    async def rpcs(self, calls: list[tuple[str, Any]]) -> list[dict[str, Any]]:
        """The SDK has no batches of its own, but its sender takes several commands."""
        numbers = [self._client._next_command_id() for _ in calls]
        futures = [self._client._register_future(number, WITHIN_S) for number in numbers]
        await self._client._send_commands(
            [
                {"id": number, "rpc": {"method": name, "data": data}}
                for number, (name, data) in zip(numbers, calls, strict=True)
            ]
        )
        replies = [await future for future in futures]
        return [
            {"error": reply["error"]["code"]} if "error" in reply else {"result": reply["rpc"]["data"]}
            for reply in replies
        ]

    async def on_connecting(self, ctx: centrifuge.ConnectingContext) -> None:
        self._say({"event": "connecting", "code": ctx.code})

    async def on_connected(self, ctx: centrifuge.ConnectedContext) -> None:
        self._say({"event": "connected", "given_id": ctx.client})

    async def on_disconnected(self, ctx: centrifuge.DisconnectedContext) -> None:
        self._say({"event": "disconnected", "code": ctx.code})

    async def on_subscribed(self, ctx: centrifuge.ServerSubscribedContext) -> None:
        self._say(_subscribed(ctx, own=False))

    async def on_unsubscribed(self, ctx: centrifuge.ServerUnsubscribedContext) -> None:
        self._say({"event": "unsubscribed", "own": False, "channel": ctx.channel})

    async def on_publication(self, ctx: centrifuge.ServerPublicationContext) -> None:
        self._say(_publication(ctx.channel, ctx.pub, own=False))


class _PythonSubscription(centrifuge.SubscriptionEventHandler):
    def __init__(self, channel: str, say: Callable[[Event], None]) -> None:
        self._channel = channel
        self._say = say

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        self._say(_subscribed(ctx, own=True))

    async def on_unsubscribed(self, ctx: centrifuge.UnsubscribedContext) -> None:
        self._say({"event": "unsubscribed", "own": True, "channel": self._channel, "code": ctx.code})

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        self._say(_publication(self._channel, ctx.pub, own=True))


def _subscribed(ctx: centrifuge.SubscribedContext | centrifuge.ServerSubscribedContext, *, own: bool) -> Event:
    said = {"channel": ctx.channel, "recovering": ctx.was_recovering, "recovered": ctx.recovered}
    return {"event": "subscribed", "own": own, **said}


def _publication(channel: str, publication: centrifuge.Publication, *, own: bool) -> Event:
    said = {"channel": channel, "offset": publication.offset, "data": publication.data}
    return {"event": "publication", "own": own, **said}


class LineDriver(Driver):
    """driver.mjs, reached by lines."""

    def __init__(self, send: Callable[[str], Awaitable[object]]) -> None:
        super().__init__()
        self._send = send
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    def take(self, line: str) -> None:
        """A line that it wrote."""
        said = json.loads(line)
        if "event" in said:
            self.note(said.pop("client"), said)
        elif "error" in said:
            self._waiting.pop(said["id"]).set_exception(Refused(said["error"]))
        else:
            self._waiting.pop(said["id"]).set_result(said["result"])

    async def do(self, client: str, method: str, told: dict[str, Any]) -> Any:
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._send(json.dumps({"id": number, "client": client, "method": method, **told}))
        return await answer


@asynccontextmanager
async def python_driver() -> AsyncIterator[Driver]:
    yield PythonDriver()


@asynccontextmanager
async def node_driver() -> AsyncIterator[Driver]:
    process = await asyncio.create_subprocess_exec(
        *(node(), *ARGUMENTS, str(DRIVER), CENTRIFUGE.as_uri()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    output, lines = process.stdin, process.stdout

    async def send(line: str) -> None:
        output.write(f"{line}\n".encode())
        await output.drain()

    driver = LineDriver(send)

    async def read() -> None:
        async for line in lines:
            driver.take(line.decode())

    reading = asyncio.create_task(read(), name="node driver")
    try:
        yield driver
    finally:
        output.close()
        await process.wait()
        await reading


def _file(asked: Request) -> Reply:
    match asked.path:
        case "/":
            return Reply(200, _PAGE.encode(), "text/html")
        case "/driver.mjs":
            return Reply(200, DRIVER.read_bytes(), "text/javascript")
        case "/centrifuge.js":
            return Reply(200, BROWSER_SDK.read_bytes(), "text/javascript")
    return Reply(404)


@asynccontextmanager
async def chromium_driver(origin: str) -> AsyncIterator[Driver]:
    """In the page that `page_server` serves."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_ARGUMENTS)
        page = await browser.new_page()
        driver = LineDriver(lambda line: page.evaluate("line => { window.take(line); }", line))
        await page.expose_function("say", driver.take)
        await page.goto(origin)
        await page.wait_for_function("window.take !== undefined")
        yield driver
        await browser.close()


#: Serves the page to Chromium, at an origin that the gateway must let in.
def page_server() -> Any:
    return recording_server(answer=_file)
