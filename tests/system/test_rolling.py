"""A rolling restart: gateways are replaced one after the other while people are connected and are being written to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from channels.gateway.streams import ChannelStreams
from nearcast.clock import SystemClock
from tests.sdk.drivers import PythonDriver, Sdk
from tests.services.ports import free_ports
from tests.services.proxy import TcpProxy
from tests.services.valkey import ValkeyProcess
from tests.system.process import Server

#: Of every customer's channel.
PUBLISHED_EVERY_S = 0.1


class Crowd:
    """Customers with the Python SDK, each with a channel of its own that is published to all the time: 1, 2, 3 ..."""

    def __init__(self, customers: dict[str, Sdk], streams: ChannelStreams) -> None:
        self.customers = customers
        self.published = 0
        self._streams = streams
        self._stop = asyncio.Event()

    async def publish(self) -> None:
        """Until `stop`."""
        while not self._stop.is_set():
            self.published += 1
            number = b"%d" % self.published
            await asyncio.gather(*(self._streams.publish(f"customer:{user}", number) for user in self.customers))
            await asyncio.sleep(PUBLISHED_EVERY_S)

    def stop(self) -> None:
        self._stop.set()

    async def have_everything(self) -> None:
        """All of it has arrived at everybody, in order and once, and nobody was ever told of a gap."""
        for user, sdk in self.customers.items():
            await sdk.until("publication", times=self.published)
            assert sdk.data(f"customer:{user}") == [(number, number) for number in range(1, self.published + 1)]
            assert all(again["recovering"] and again["recovered"] for again in sdk.said("subscribed")[1:])


@asynccontextmanager
async def crowd(server: Server, port: int, valkey: ValkeyProcess, size: int) -> AsyncIterator[Crowd]:
    """So many customers, connected at a port, while publications have begun to come."""
    driver = PythonDriver()
    url = f"ws://127.0.0.1:{port}/connection/websocket"
    customers = {f"c{n}": await driver.make(url, server.token(f"c{n}")) for n in range(size)}
    for sdk in customers.values():
        await sdk.online()
    async with Redis.from_url(valkey.url) as redis, asyncio.TaskGroup() as group:
        here = Crowd(customers, ChannelStreams(redis, "elsewhere", SystemClock()))
        for sdk in customers.values():
            await sdk.until("subscribed")
        group.create_task(here.publish(), name="publisher")
        try:
            yield here
        finally:
            here.stop()
            for sdk in customers.values():
                await sdk.do("disconnect")


@asynccontextmanager
async def balanced(*servers: Server) -> AsyncIterator[int]:
    """The gateways, and the port of a balancer in front of them."""
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(server) for server in servers))
        balancer = TcpProxy(free_ports(1)[0], *(server.gateway_port for server in servers))
        await balancer.start()
        stack.push_async_callback(balancer.stop)
        yield balancer.port


def folders(parent: Path) -> list[Path]:
    """One for each of two processes."""
    made = [parent / "one", parent / "two"]
    for folder in made:
        folder.mkdir()
    return made


async def roll(folder: Path, customers: int, rounds: int) -> None:
    """Every gateway gets SIGTERM, ends in order, and is started again, one after the other."""
    valkey = ValkeyProcess(folder)
    valkey.start()
    settings = {"roles": '["gateway"]', "redis_url": valkey.url, "gateway_drain_s": "1"}
    servers = [Server(each, **settings) for each in folders(folder)]
    try:
        async with balanced(*servers) as port, crowd(servers[0], port, valkey, customers) as people:
            for server in servers * rounds:
                assert await server.stop() == 0
                await server.start()
            people.stop()
            await people.have_everything()
            for sdk in people.customers.values():
                # 3001: asked to go elsewhere. Nobody's connection just broke.
                codes = {again["code"] for again in sdk.said("connecting")[1:]}
                assert codes == {3001}, "every gateway was replaced, so everybody had to move"
    finally:
        valkey.stop()


async def test_a_rolling_restart_loses_nothing(tmp_path: Path) -> None:
    """Everybody is sent to the other gateway, and gets every publication, in order and once."""
    await roll(tmp_path, customers=24, rounds=1)
