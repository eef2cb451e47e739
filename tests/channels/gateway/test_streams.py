"""Channels in the store: offsets, history, what is lost, and who listens."""

import asyncio

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from channels.gateway.publications import Position, Publication
from channels.gateway.streams import NODE_DEAD_AFTER_MS, ChannelStreams
from nearcast import keys
from nearcast.clock import ManualClock
from nearcast.errors import Unavailable
from tests.services.ports import free_ports

CHANNEL = "customer:c1"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def streams(redis: Redis, clock: ManualClock) -> ChannelStreams:
    return ChannelStreams(redis, "node-1", clock, history_size=4)


async def test_every_position_reads_what_followed_or_says_that_it_is_lost(streams: ChannelStreams) -> None:
    """With 7 published and 4 kept, offsets 3 to 7 recover exactly what followed; older and future ones do not."""
    positions = [await streams.publish(CHANNEL, b"%d" % n) for n in range(1, 8)]
    epoch = positions[0].epoch
    assert positions == [Position(epoch, n) for n in range(1, 8)]
    for offset in range(10):
        found = await streams.read(CHANNEL, Position(epoch, offset))
        wanted = [Publication(n, b"%d" % n) for n in range(offset + 1, 8)] if 3 <= offset <= 7 else []
        assert (found.publications, found.recovered) == (wanted, 3 <= offset <= 7), offset
        assert found.position == Position(epoch, 7)


async def test_an_unused_channel_has_a_place_to_recover_from(streams: ChannelStreams) -> None:
    """A client that connects before anything was published recovers the first publication later."""
    start = (await streams.read(CHANNEL, None)).position
    assert start.offset == 0
    assert (await streams.read(CHANNEL, start)).recovered
    await streams.publish(CHANNEL, b"1")
    assert (await streams.read(CHANNEL, start)).publications == [Publication(1, b"1")]


async def test_lost_history_is_never_recovered_from(streams: ChannelStreams, redis: Redis) -> None:
    """After the epoch is lost, or entries have gone, only a reader that missed nothing counts as recovered."""
    old = await streams.publish(CHANNEL, b"1")
    last = await streams.publish(CHANNEL, b"2")
    await redis.delete(keys.channel_stream(CHANNEL))
    assert not (await streams.read(CHANNEL, old)).recovered
    assert (await streams.read(CHANNEL, last)).recovered
    await redis.delete(keys.channel_meta(CHANNEL))
    new = await streams.publish(CHANNEL, b"3")
    assert new.offset == 1
    assert new.epoch != old.epoch
    for position in (old, last, Position("", 0)):
        found = await streams.read(CHANNEL, position)
        assert (found.recovered, found.publications, found.position) == (False, [], new)


async def test_concurrent_publishers_never_share_an_offset(streams: ChannelStreams, redis: Redis) -> None:
    """200 publications at once get 200 consecutive offsets."""
    wide = ChannelStreams(redis, "node-2", ManualClock())
    positions = await asyncio.gather(*(wide.publish(CHANNEL, b"%d" % n) for n in range(200)))
    assert sorted(position.offset for position in positions) == list(range(1, 201))


async def test_publish_once_appends_once_per_key(streams: ChannelStreams, redis: Redis) -> None:
    """A repeated key returns the first position and appends nothing, but tells the nodes again."""
    await streams.attend([(CHANNEL, None)])
    async with redis.pubsub() as bus:
        await bus.subscribe(keys.node_bus("node-1"))
        first = await streams.publish_once(CHANNEL, "m1", b'"text"')
        other = await streams.publish_once(CHANNEL, "m2", b'"other"')
        again = await streams.publish_once(CHANNEL, "m1", b'"text, rendered differently"')
        frames: list[list[bytes]] = []
        async with asyncio.timeout(5):
            while len(frames) < 3:
                message = await bus.get_message(ignore_subscribe_messages=True, timeout=1)
                if message:
                    frames.append(message["data"].split(b"\n", 3)[1:])
    assert again == first
    assert other.offset == 2
    assert await redis.xlen(keys.channel_stream(CHANNEL)) == 2
    told = [b"1", CHANNEL.encode(), b'"text"']
    assert frames == [told, [b"2", CHANNEL.encode(), b'"other"'], told]
    assert 0 < await redis.ttl(keys.channel_once(CHANNEL, "m1")) <= 86_400


async def test_a_channel_is_connected_while_a_node_shows_life(streams: ChannelStreams, clock: ManualClock) -> None:
    """A node counts until it signs off or falls silent."""
    assert not await streams.connected(CHANNEL)
    await streams.attend([(CHANNEL, None)])
    assert await streams.connected(CHANNEL)
    clock.advance(NODE_DEAD_AFTER_MS)
    assert await streams.connected(CHANNEL)
    clock.advance(1)
    assert not await streams.connected(CHANNEL)
    await streams.attend([(CHANNEL, None)])
    assert await streams.connected(CHANNEL)
    await streams.dismiss([CHANNEL])
    assert not await streams.connected(CHANNEL)


async def test_dead_nodes_are_dropped(streams: ChannelStreams, clock: ManualClock, redis: Redis) -> None:
    """Publishing forgets nodes that fell silent, so nothing is sent to them for ever."""
    await streams.attend([(CHANNEL, None)])
    clock.advance(NODE_DEAD_AFTER_MS + 1)
    await streams.publish(CHANNEL, b"1")
    assert await redis.zcard(keys.channel_nodes(CHANNEL)) == 0


async def test_everything_expires(streams: ChannelStreams, redis: Redis) -> None:
    """No channel is kept for ever; the epoch outlives the history."""
    await streams.attend([(CHANNEL, None)])
    await streams.publish(CHANNEL, b"1")
    stream, meta, nodes = [
        await redis.ttl(key(CHANNEL)) for key in (keys.channel_stream, keys.channel_meta, keys.channel_nodes)
    ]
    assert 0 < stream < meta
    assert 0 < nodes < stream


async def test_a_store_that_lost_writes_starts_a_new_epoch(streams: ChannelStreams, redis: Redis) -> None:
    """A node that delivered beyond the top of the store gets a new epoch: offsets would be used twice otherwise."""
    position = await streams.publish(CHANNEL, b"1")
    [same] = await streams.attend([(CHANNEL, position)])
    assert same == position
    await redis.hset(keys.channel_meta(CHANNEL), "offset", 0)
    [renewed] = await streams.attend([(CHANNEL, position)])
    assert renewed.epoch != position.epoch


async def test_an_unreachable_store_is_unavailable(clock: ManualClock) -> None:
    """Every operation says `Unavailable` while the store is away."""
    async with Redis(port=free_ports(1)[0], retry=Retry(NoBackoff(), 0)) as nowhere:
        streams = ChannelStreams(nowhere, "node-1", clock)
        for work in (
            streams.publish(CHANNEL, b"1"),
            streams.read(CHANNEL, None),
            streams.connected(CHANNEL),
            streams.attend([(CHANNEL, None)]),
            streams.dismiss([CHANNEL]),
        ):
            with pytest.raises(Unavailable):
                await work
