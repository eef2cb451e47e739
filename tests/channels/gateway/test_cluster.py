"""A server in cluster mode, which owns all slots: it still refuses a script whose keys are spread over several."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from channels.gateway.hub import Hub
from channels.gateway.publications import Publication, Revoked
from channels.gateway.streams import ChannelStreams
from channels.gateway.transport import Envelope
from nearcast import keys
from nearcast.clock import SystemClock
from tests.channels.gateway.support import WITHIN_S, until
from tests.services.ports import free_ports
from tests.services.valkey import ValkeyProcess


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Redis]:
    [port] = free_ports(1)
    process = ValkeyProcess(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(port))
    process.start()
    async with Redis.from_url(process.url) as client:
        await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        async with asyncio.timeout(WITHIN_S):
            while b"cluster_state:ok" not in await client.execute_command("CLUSTER", "INFO"):
                await asyncio.sleep(0.02)
        yield client
    process.stop()


class Pad:
    """A listener that writes down what it is given."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def deliver(self, envelope: Envelope) -> None:
        self.frames.append(envelope.json)

    def lose(self) -> None:
        self.frames.append(b"lost")


async def test_the_server_minds_slots(cluster: Redis) -> None:
    """It refuses what touches two channels at once: otherwise the test below would show nothing."""
    names = [keys.channel_stream("customer:1"), keys.channel_stream("customer:2")]
    with pytest.raises(ResponseError, match="slot"):
        await cluster.eval("return 1", 2, *names)


async def test_channels_keep_to_their_slots(cluster: Redis) -> None:
    """Everything that is done with a channel, from both ends, with several channels in one round trip."""
    publisher = ChannelStreams(cluster, "elsewhere", SystemClock())
    hub = Hub(
        ChannelStreams(cluster, "node-1", SystemClock()),
        lambda channel, publication: Envelope(channel.encode() + b" " + publication.data),
    )
    hub.start()
    async with asyncio.timeout(WITHIN_S):
        while not await publisher.tell("node-1", b"{}"):
            await asyncio.sleep(0.02)
    pad = Pad()
    channels = [*(f"customer:{n}" for n in range(9)), "staff:1", "store:1", "zone:1"]
    wanted = [(channel, None) for channel in channels]
    joined = await hub.join_all(wanted, pad, client="phone", user="anna", issued_ms=1)
    for subscription, _ in joined:
        subscription.go_live()
    for channel in channels:
        await publisher.publish(channel, b"1", "key")
        await publisher.publish_once(channel, "m1", b"2")
        assert await publisher.published(channel, "m1")
        assert await publisher.withdraw(channel, "m1", b"3")
        assert await publisher.connected(channel)
    told = [f"{channel} {n}".encode() for channel in channels for n in (1, 2, 3)]
    await until(lambda: pad.frames == told, "all have arrived")
    assert await publisher.presence("staff:1") == {"phone": "anna"}
    for subscription, found in joined:
        read = await publisher.read(subscription.channel, found.position)
        assert read.recovered
        assert read.publications == [Publication(1, b"1", "key"), Publication(3, b"3")]
        assert (await publisher.history(subscription.channel, 1, None, True))[0] == [Publication(3, b"3")]
    await publisher.revoke("anna", 5_000)
    await publisher.disconnect("anna", 3503, "force disconnect")
    assert await publisher.tell("node-1", b"{}")
    with pytest.raises(Revoked):
        await hub.join_all(wanted[:1], pad, client="phone", user="anna", issued_ms=5_000)
    for subscription, _ in joined:
        hub.leave(subscription)
    await until(lambda: not hub._feeds and not hub._left, "all channels are left")
    await hub.stop()
    assert [await publisher.connected(channel) for channel in channels] == [False] * len(channels)
    assert await publisher.presence("staff:1") == {}
