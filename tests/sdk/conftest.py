"""The gateway as it is run, a store of its own behind it, and a broken network in front of it."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from redis.asyncio import Redis

from channels.gateway.streams import ChannelStreams
from nearcast.clock import SystemClock
from nearcast.world import Circle, Fence, Store
from offers.worldfile import WorldFile
from server.world import WorldStore
from tests.sdk.drivers import Driver, Sdk, chromium_driver, node_driver, page_server, python_driver
from tests.services.hasty import HastyServer
from tests.services.ports import free_ports
from tests.services.proxy import TcpProxy
from tests.services.valkey import ValkeyProcess
from tests.system.process import SECRET

#: More stores and zones than there are scenarios, so that each has public channels of its own.
WORLD = WorldFile(
    stores=[Store(id=f"s{number}", name="", lat=48.2, lng=16.4) for number in range(200)],
    fences=[
        Fence(id=f"s{number}", store=f"s{number}", kind="vicinity", geometry=Circle((16.4, 48.2), 50.0))
        for number in range(200)
    ],
)
LIMITS = {"ping_interval_s": 1.0, "pong_timeout_s": 1.0, "tick_s": 0.05}


@dataclass
class Stage:
    """What a scenario plays with. Every scenario has a customer of its own."""

    driver: Driver
    server: HastyServer
    streams: ChannelStreams
    #: History of three.
    forgetful: ChannelStreams
    proxy: TcpProxy
    user: str
    clients: list[Sdk] = field(default_factory=list)

    @property
    def channel(self) -> str:
        """The customer's own."""
        return f"customer:{self.user}"

    def token(self, *channels: str, role: str = "customer", ttl_s: int = 600) -> str:
        now_s = int(time.time())
        claims = {"sub": self.user, "role": role, "channels": channels, "iat": min(now_s, now_s + ttl_s)}
        return jwt.encode({**claims, "exp": now_s + ttl_s}, SECRET, algorithm="HS256")

    async def client(self, *tokens: str) -> Sdk:
        """A client behind the proxy, not connected yet. Without tokens it has a customer's."""
        url = f"ws://127.0.0.1:{self.proxy.port}/connection/websocket"
        self.clients.append(await self.driver.make(url, *(tokens or (self.token(),))))
        return self.clients[-1]

    async def publish(self, channel: str, numbers: range) -> None:
        for number in numbers:
            await self.streams.publish(channel, b"%d" % number)


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[HastyServer, str]]:
    """The gateway's process, and the origin of the page that it lets in."""
    valkey = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    valkey.start()
    async with Redis.from_url(valkey.url) as redis:
        await WorldStore(redis).put(WORLD)
    try:
        with page_server() as page:
            settings = {"roles": '["gateway"]', "redis_url": valkey.url, "allowed_origins": f'["{page.url}"]'}
            async with HastyServer(tmp_path_factory.mktemp("gateway"), LIMITS, **settings) as server:
                yield server, page.url
    finally:
        valkey.stop()


@pytest.fixture(
    scope="module",
    params=["python", "node", pytest.param("chromium", marks=pytest.mark.browser)],
)
async def driver(request: pytest.FixtureRequest, server: tuple[HastyServer, str]) -> AsyncIterator[Driver]:
    drivers: dict[str, Callable[[], Any]] = {
        "python": python_driver,
        "node": node_driver,
        "chromium": lambda: chromium_driver(server[1]),
    }
    async with drivers[request.param]() as driver:
        yield driver


@pytest.fixture(scope="module")
def users() -> Iterator[str]:
    """A name for each scenario, which is that of a store and of a zone as well."""
    return (store.id for store in WORLD.stores)


@pytest.fixture
async def stage(driver: Driver, server: tuple[HastyServer, str], users: Iterator[str]) -> AsyncIterator[Stage]:
    """It ends with every client gone."""
    process, _ = server
    proxy = TcpProxy(free_ports(1)[0], process.gateway_port)
    await proxy.start()
    async with Redis.from_url(process.environment["NEARCAST_REDIS_URL"]) as redis:
        clock = SystemClock()
        streams = [ChannelStreams(redis, "elsewhere", clock, history_size=size) for size in (256, 3)]
        stage = Stage(driver, process, *streams, proxy, user=next(users))
        yield stage
        for client in stage.clients:
            await client.do("disconnect")
    await proxy.stop()
