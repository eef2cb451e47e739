"""The gateway against clients that don't read or that vanish, and the clients against a gateway that dies."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
import websockets
from redis.asyncio import Redis

from channels.gateway import streams as gateway_streams
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams
from nearcast import keys
from nearcast.clock import SystemClock
from tests.faults.sluggards import Healthy, Sluggard
from tests.services.hasty import HastyServer
from tests.services.ports import free_ports
from tests.services.proxy import TcpProxy
from tests.services.valkey import ValkeyProcess
from tests.system.process import eventually
from tests.system.test_rolling import balanced, crowd, folders, roll

CHANNEL = "store:graben"
#: Published before the healthy ones are waited for: their share of the kernel's buffers holds as much.
AT_ONCE = 8
#: What the interpreter may take for anything.
SLACK_BYTES = 8 * 2**20


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    valkey = ValkeyProcess(tmp_path)
    valkey.start()
    yield valkey
    valkey.stop()


class Watched:
    """A gateway's process from outside: what the kernel and its metrics say."""

    def __init__(self, server: HastyServer, metrics_port: int) -> None:
        assert server.process is not None
        self._proc = Path(f"/proc/{server.process.pid}")
        self._metrics = f"http://127.0.0.1:{metrics_port}/metrics"

    @property
    def descriptors(self) -> int:
        return len(list((self._proc / "fd").iterdir()))

    @property
    def peak_bytes(self) -> int:
        """The most memory that it has had so far."""
        found = re.search(r"^VmHWM:\s+(\d+) kB", (self._proc / "status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    async def metric(self, name: str) -> int:
        async with httpx.AsyncClient(trust_env=False) as http:
            text = (await http.get(self._metrics)).text
        found = re.search(rf"^{re.escape(name)} ([0-9.e+]+)$", text, re.MULTILINE)
        return int(float(found[1])) if found else 0

    async def closed(self, code: int) -> int:
        return await self.metric(f'nearcast_disconnects_total{{code="{code}"}}')


async def publish(streams: ChannelStreams, healthy: list[Healthy], count: int, size: int) -> None:
    """So many more publications of a size, no faster than the healthy clients can read them."""
    data = b'"%s"' % (b"x" * (size - 2))
    first = len(healthy[0].offsets) + 1
    for number in range(first, first + count):
        await streams.publish(CHANNEL, data)
        if number % AT_ONCE == 0 or number == first + count - 1:
            deadline = time.monotonic() + 20.0
            while any(len(each.offsets) < number for each in healthy):
                assert time.monotonic() < deadline, f"{number}: {sorted(len(each.offsets) for each in healthy)}"
                await asyncio.sleep(0.005)


@asynccontextmanager
async def healthy_clients(server: HastyServer, count: int) -> AsyncIterator[list[Healthy]]:
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        clients = []
        for number in range(count):
            connection = await stack.enter_async_context(
                websockets.connect(server.gateway, proxy=None, compression=None, max_size=None)
            )
            stack.push_async_callback(connection.close)
            clients.append(Healthy(connection))
            await clients[-1].connect(server.token(f"h{number}", role="demo", channels=(CHANNEL,)))
            group.create_task(clients[-1].read(), name=f"healthy {number}")
        yield clients
        await stack.aclose()


@pytest.mark.parametrize(
    ("healthy", "of_each_kind", "publications", "size", "pong_timeout_s"),
    [
        pytest.param(40, 3, 320, 16_384, 5.0, id="short"),
        # 1 % of each kind.
        pytest.param(970, 10, 400, 8_192, 15.0, id="1000", marks=pytest.mark.long),
    ],
)
async def test_clients_that_do_not_read(
    tmp_path: Path,
    valkey: ValkeyProcess,
    healthy: int,
    of_each_kind: int,
    publications: int,
    size: int,
    pong_timeout_s: float,
) -> None:
    """Some never read, some read a byte a second, some vanish without a word: the others get everything. Each of those
    costs no more than its backlog, is closed with its code, and leaves nothing behind.
    """
    [metrics_port, way_out] = free_ports(2)
    # Those that don't read answer no pings either: they are to be closed for the first of their sins.
    limits = {"ping_interval_s": 1.0, "pong_timeout_s": pong_timeout_s, "close_timeout_s": 3.0}
    limits["connections_per_address"] = 0
    settings = {"roles": '["gateway"]', "redis_url": valkey.url, "metrics_port": str(metrics_port)}
    kinds: dict[str, list[Sluggard]] = {
        kind: [Sluggard() for _ in range(of_each_kind)] for kind in ("deaf", "slow", "vanished")
    }
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(HastyServer(tmp_path, limits, **settings))
        redis = await stack.enter_async_context(Redis.from_url(valkey.url))
        proxy = TcpProxy(way_out, server.gateway_port)
        await proxy.start()
        stack.push_async_callback(proxy.stop)
        streams = ChannelStreams(redis, "elsewhere", SystemClock())
        clients = await stack.enter_async_context(healthy_clients(server, healthy))
        gateway = Watched(server, metrics_port)
        await publish(streams, clients, 2 * AT_ONCE, size)
        descriptors, memory = gateway.descriptors, gateway.peak_bytes

        for kind, sluggards in kinds.items():
            for number, sluggard in enumerate(sluggards):
                stack.callback(sluggard.close)
                token = server.token(f"{kind}{number}", role="demo", channels=(CHANNEL,))
                await sluggard.connect(way_out if kind == "vanished" else server.gateway_port, token)
        proxy.hang()
        async with asyncio.TaskGroup() as group:
            reading = [group.create_task(slow.read_a_byte_a_second(), name="a byte a second") for slow in kinds["slow"]]
            late = group.create_task(_begin_to_read(kinds["deaf"][0], gateway, 2 * of_each_kind), name="begins late")
            await publish(streams, clients, publications, size)
            # Who begins to read in time gets what was waiting, and the reason.
            assert await asyncio.wait_for(late, 10.0) == 3008
            await _until(lambda: gateway.closed(3008), 2 * of_each_kind)
            await _until(lambda: gateway.closed(3012), of_each_kind)
            await _until(lambda: gateway.metric("nearcast_connections"), healthy)
            # What the kernel still has for them would last for hours.
            for task in reading:
                task.cancel()

        everything = list(range(1, 2 * AT_ONCE + publications + 1))
        assert all(each.offsets == everything for each in clients)
        own = GatewaySettings()
        a_client = own.backlog_bytes + own.conflate_bytes + 2 * size
        unbounded = 2 * of_each_kind * publications * size
        allowed = 2 * of_each_kind * a_client + SLACK_BYTES
        assert allowed < unbounded, "this would not show that something is unbounded"
        assert gateway.peak_bytes - memory < allowed
        # One more may be the store's.
        assert gateway.descriptors < descriptors + of_each_kind


async def _begin_to_read(deaf: Sluggard, gateway: Watched, closed: int) -> int:
    """Once so many were closed for being slow; the code that it is given."""
    await _until(lambda: gateway.closed(3008), closed)
    return await deaf.close_code()


async def _until(count: Callable[[], Awaitable[int]], wanted: int) -> None:
    async def reached() -> bool:
        seen = await count()
        return seen == wanted

    await eventually(reached)


@pytest.mark.parametrize(
    ("customers", "kills"), [pytest.param(20, 1, id="short"), pytest.param(100, 6, id="again", marks=pytest.mark.long)]
)
async def test_a_node_dies(
    tmp_path: Path, valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch, customers: int, kills: int
) -> None:
    """SIGKILL of one of two gateways: its clients come back at the other and miss nothing; nobody publishes to the dead
    one any more; presence shows those who are there, and only them.
    """
    dead_after_ms = 3_000
    monkeypatch.setattr(gateway_streams, "NODE_DEAD_AFTER_MS", dead_after_ms)
    limits = {"dead_after_ms": dead_after_ms, "check_every_s": 1.0}
    settings = {"roles": '["gateway"]', "redis_url": valkey.url}
    servers = [HastyServer(folder, limits, **settings) for folder in folders(tmp_path)]
    async with (
        balanced(*servers) as port,
        crowd(servers[0], port, valkey, customers) as people,
        Redis.from_url(valkey.url) as redis,
    ):
        streams = ChannelStreams(redis, "looks", SystemClock())
        channels = {f"customer:{user}": sdk for user, sdk in people.customers.items()}

        async def nodes() -> int:
            members = [await redis.zrange(keys.channel_nodes(channel), 0, -1) for channel in channels]
            return len({node for each in members for node in each}) if all(members) else 0

        async def only_who_is_there() -> bool:
            there = {channel: sdk.said("connected")[-1]["given_id"] for channel, sdk in channels.items()}
            return there == {channel: " ".join(await streams.presence(channel)) for channel in channels}

        assert await nodes() == 2
        for number in range(kills):
            victim = servers[number % 2]
            await victim.kill()
            await _until(nodes, 1)
            await eventually(only_who_is_there)
            if number < kills - 1:
                await victim.start()
        people.stop()
        await people.have_everything()


@pytest.mark.long
async def test_rolling_again_and_again(tmp_path: Path) -> None:
    """The gateways are replaced six times over, under more people."""
    await roll(tmp_path, customers=150, rounds=6)
