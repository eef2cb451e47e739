"""Channels in the store: offsets, history, what is lost, and who listens."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from channels.gateway.publications import Position, Publication, Unrecoverable
from channels.gateway.streams import NODE_DEAD_AFTER_MS, ChannelStreams, Listening
from nearcast import keys
from nearcast.clock import ManualClock
from nearcast.errors import InputError, Recalled, Unavailable
from tests.services.ports import free_ports

CHANNEL = "customer:c1"


class Wire:
    """What the store says over a pub/sub channel."""

    def __init__(self, redis: Redis) -> None:
        self._bus = redis.pubsub()

    async def frames(self, count: int) -> list[bytes]:
        """The next frames, as many as said."""
        found: list[bytes] = []
        async with asyncio.timeout(5):
            while len(found) < count:
                message = await self._bus.get_message(ignore_subscribe_messages=True, timeout=1)
                if message:
                    found.append(message["data"])
        return found


@asynccontextmanager
async def listening(redis: Redis, *names: str) -> AsyncIterator[Wire]:
    """Somebody listens where these nodes do."""
    wire = Wire(redis)
    async with wire._bus:
        await wire._bus.subscribe(*map(keys.node_bus, names))
        yield wire


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


async def test_a_fault_of_ours_stops_no_later_publication(
    streams: ChannelStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with some that are sent together is told to those who wait for them, and to nobody else."""
    with monkeypatch.context() as broken:
        broken.setattr(streams.redis, "pipeline", lambda **_: 1 / 0)
        found = await asyncio.gather(*(streams.publish(CHANNEL, b"1") for _ in range(2)), return_exceptions=True)
    assert [type(one) for one in found] == [Unavailable, Unavailable]
    assert (await streams.publish(CHANNEL, b"2")).offset == 1


async def test_nothing_is_published_to_nobody_if_so_wished(streams: ChannelStreams, redis: Redis) -> None:
    """Only where a node listens; and what was published before stays published, whoever has left meanwhile."""
    assert not await streams.publish_if_heard(CHANNEL, "m1", b"1")
    assert not await streams.published(CHANNEL, "m1")
    async with listening(redis, "node-1"):
        await streams.attend([Listening(CHANNEL)])
        assert await streams.publish_if_heard(CHANNEL, "m1", b"1")
    await streams.dismiss([CHANNEL])
    assert await streams.publish_if_heard(CHANNEL, "m1", b"1")
    assert not await streams.publish_if_heard(CHANNEL, "m2", b"2")
    assert (await streams.read(CHANNEL, None)).position.offset == 1


async def test_what_is_published_together_is_sent_together(redis: Redis, clock: ManualClock) -> None:
    """In few round trips, in order; a script that the store has forgotten makes nothing happen twice, and what
    its caller has given up before that never happens. What fails, fails alone."""
    streams = ChannelStreams(redis, "node-1", clock)
    await redis.set(keys.channel_meta("customer:bad"), "not a hash")
    await redis.script_flush()
    before = (await redis.info("stats"))["total_reads_processed"]
    bad = asyncio.create_task(streams.publish("customer:bad", b"0"))
    tasks = [asyncio.create_task(streams.publish(CHANNEL, str(n).encode())) for n in range(200)]
    await asyncio.sleep(0)
    tasks[100].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[100], asyncio.CancelledError)
    assert [place.offset for place in found if isinstance(place, Position)] == list(range(1, 200))
    with pytest.raises(Unavailable):
        await bad
    assert (await redis.info("stats"))["total_reads_processed"] - before < 12
    read = await streams.read(CHANNEL, Position(found[0].epoch, 0) if isinstance(found[0], Position) else None)
    assert [publication.data for publication in read.publications] == [str(n).encode() for n in range(200) if n != 100]


async def test_publish_once_appends_once_per_key(streams: ChannelStreams, redis: Redis) -> None:
    """A repeated key returns the first position and appends nothing, but tells the nodes again."""
    await streams.attend([Listening(CHANNEL)])
    async with listening(redis, "node-1") as wire:
        first = await streams.publish_once(CHANNEL, "m1", b'"text"')
        other = await streams.publish_once(CHANNEL, "m2", b'"other"')
        again = await streams.publish_once(CHANNEL, "m1", b'"text, rendered differently"')
        frames = await wire.frames(3)
    assert again == first
    assert other.offset == 2
    assert await redis.xlen(keys.channel_stream(CHANNEL)) == 2
    told = [b"1", CHANNEL.encode(), b'"text"']
    assert [frame.split(b"\n", 3)[1:] for frame in frames] == [told, [b"2", CHANNEL.encode(), b'"other"'], told]
    assert 0 < await redis.ttl(keys.channel_once(CHANNEL, "m1")) <= 86_400


async def test_a_channel_is_connected_while_a_node_shows_life(streams: ChannelStreams, clock: ManualClock) -> None:
    """A node counts until it signs off or falls silent."""
    assert not await streams.connected(CHANNEL)
    await streams.attend([Listening(CHANNEL)])
    assert await streams.connected(CHANNEL)
    clock.advance(NODE_DEAD_AFTER_MS)
    assert await streams.connected(CHANNEL)
    clock.advance(1)
    assert not await streams.connected(CHANNEL)
    await streams.attend([Listening(CHANNEL)])
    assert await streams.connected(CHANNEL)
    await streams.dismiss([CHANNEL])
    assert not await streams.connected(CHANNEL)


async def test_dead_nodes_are_dropped(streams: ChannelStreams, clock: ManualClock, redis: Redis) -> None:
    """Publishing forgets nodes that fell silent, so nothing is sent to them for ever."""
    await streams.attend([Listening(CHANNEL)])
    clock.advance(NODE_DEAD_AFTER_MS + 1)
    await streams.publish(CHANNEL, b"1")
    assert await redis.zcard(keys.channel_nodes(CHANNEL)) == 0


async def test_everything_expires(streams: ChannelStreams, redis: Redis) -> None:
    """No channel is kept for ever; the epoch outlives the history."""
    await streams.publish(CHANNEL, b"1")
    await streams.attend([Listening(CHANNEL)])
    stream, meta, nodes = [
        await redis.ttl(key(CHANNEL)) for key in (keys.channel_stream, keys.channel_meta, keys.channel_nodes)
    ]
    assert 0 < stream < meta
    assert 0 < nodes < stream


async def test_a_store_that_lost_writes_starts_a_new_epoch(streams: ChannelStreams, redis: Redis) -> None:
    """A node that delivered beyond the top of the store gets a new epoch: offsets would be used twice otherwise."""
    position = await streams.publish(CHANNEL, b"1")
    [same], _ = await streams.attend([Listening(CHANNEL, position)])
    assert same.position == position
    await redis.hset(keys.channel_meta(CHANNEL), "offset", 0)
    [renewed], _ = await streams.attend([Listening(CHANNEL, position)])
    assert renewed.position.epoch != position.epoch


async def test_an_unreachable_store_is_unavailable(clock: ManualClock) -> None:
    """Every operation says `Unavailable` while the store is away."""
    async with Redis(port=free_ports(1)[0], retry=Retry(NoBackoff(), 0)) as nowhere:
        streams = ChannelStreams(nowhere, "node-1", clock)
        for work in (
            streams.publish(CHANNEL, b"1"),
            streams.read(CHANNEL, None),
            streams.connected(CHANNEL),
            streams.attend([Listening(CHANNEL)]),
            streams.dismiss([CHANNEL]),
            streams.withdraw(CHANNEL, "m", b"1"),
            streams.history(CHANNEL, 1, None, False),
            streams.presence(CHANNEL),
            streams.revoke("anna", 1),
            streams.disconnect("anna", 3503, ""),
            streams.tell("node-2", b"{}"),
        ):
            with pytest.raises(Unavailable):
                await work


async def test_a_dead_node_is_found_out_by_the_first_publication(streams: ChannelStreams, redis: Redis) -> None:
    """A node that nobody hears for at the store no longer counts, long before its sign of life is too old."""
    other = ChannelStreams(redis, "node-2", ManualClock())
    await streams.attend([Listening(CHANNEL)])
    await other.attend([Listening(CHANNEL)])
    async with listening(redis, "node-2"):
        await streams.publish(CHANNEL, b"1")
        assert await redis.zrange(keys.channel_nodes(CHANNEL), 0, -1) == [b"node-2"]
        assert await streams.connected(CHANNEL)
    await streams.publish(CHANNEL, b"2")
    assert not await streams.connected(CHANNEL)


async def test_what_is_withdrawn_is_neither_kept_nor_missed(streams: ChannelStreams) -> None:
    """Who was away gets what is left and the withdrawal; the hole is no loss."""
    start = (await streams.read(CHANNEL, None)).position
    await streams.publish_once(CHANNEL, "m1", b'"offer 1"')
    await streams.publish_once(CHANNEL, "m2", b'"offer 2"')
    assert await streams.withdraw(CHANNEL, "m1", b'"withdraw 1"')
    left = [Publication(2, b'"offer 2"'), Publication(3, b'"withdraw 1"')]
    for offset, publications in ((0, left), (1, left), (2, left[1:]), (3, [])):
        found = await streams.read(CHANNEL, start._replace(offset=offset))
        assert (found.publications, found.recovered, found.position.offset) == (publications, True, 3), offset
    assert (await streams.history(CHANNEL, -1, None, False))[0] == left


async def test_a_withdrawal_happens_once(streams: ChannelStreams, redis: Redis) -> None:
    """Repeated it appends nothing and tells the nodes again; what was never published can't be withdrawn; and what was
    withdrawn is not published a second time.
    """
    assert not await streams.withdraw(CHANNEL, "m1", b'"withdraw"')
    assert await redis.exists(keys.channel_stream(CHANNEL)) == 0
    await streams.attend([Listening(CHANNEL)])
    async with listening(redis, "node-1") as wire:
        await streams.publish_once(CHANNEL, "m1", b'"offer"')
        assert await streams.withdraw(CHANNEL, "m1", b'{\n"withdraw": 1}')
        assert await streams.withdraw(CHANNEL, "m1", b'"in other words"')
        again = await streams.publish_once(CHANNEL, "m1", b'"offer"')
        position = await streams.publish(CHANNEL, b'"next"')
        frames = await wire.frames(4)
    assert again.offset == 1
    assert position.offset == 3
    told = [[b"2", CHANNEL.encode(), b'{"withdraw":1}']] * 2
    assert [frame.split(b"\n")[1:] for frame in frames] == [
        [b"1", CHANNEL.encode(), b'"offer"'],
        *told,
        [b"3", CHANNEL.encode(), b'"next"'],
    ]


async def test_what_is_recalled_before_is_not_published(streams: ChannelStreams, redis: Redis) -> None:
    """Not to those who listen, and not with another's name on it; a second recall changes nothing."""
    await streams.attend([Listening(CHANNEL)])
    async with listening(redis, "node-1") as wire:
        for _ in range(2):
            await streams.recall(CHANNEL, "m1", b'"recall"')
        for publish in (streams.publish_if_heard, streams.publish_once):
            with pytest.raises(Recalled, match="recalled"):
                await publish(CHANNEL, "m1", b'"offer"')
        assert await streams.publish_if_heard(CHANNEL, "m2", b'"other"', "m2 1 2")
        frames = await wire.frames(3)
    assert [frame.split(b"\n", 1)[1] for frame in frames] == [
        *[b'1\n%b\n"recall"' % CHANNEL.encode()] * 2,
        b'2\n%b\x1f\x1fm2 1 2\n"other"' % CHANNEL.encode(),
    ]


async def test_what_withdrawals_leave_behind_expires_and_is_bounded(streams: ChannelStreams, redis: Redis) -> None:
    """With everything withdrawn, no more offsets are noted than the history can reach."""
    for n in range(20):
        await streams.publish_once(CHANNEL, f"m{n}", b"1")
        await streams.withdraw(CHANNEL, f"m{n}", b"2")
    top = (await streams.read(CHANNEL, None)).position
    assert await redis.zcard(keys.channel_gone(CHANNEL)) == 4
    assert [(await streams.read(CHANNEL, top._replace(offset=offset))).recovered for offset in (31, 32)] == [
        False,
        True,
    ]
    for key in (keys.channel_gone(CHANNEL), keys.channel_withdrawn(CHANNEL, "m1", "")):
        assert 0 < await redis.ttl(key) <= 86_400


STEPS = st.tuples(
    st.sampled_from(["publish", "once", "once", "withdraw", "withdraw", "recall", "drop", "expire", "new epoch"]),
    st.integers(0, 5),
)


class Model:
    """What a channel with a history of 4 has to know."""

    def __init__(self) -> None:
        self.top = 0
        self.kept: dict[int, tuple[bytes, str]] = {}
        self.withdrawn: set[int] = set()
        # By name: the epoch and offset of what was published once. Epochs are numbered.
        self.once: dict[str, tuple[int, int]] = {}
        self.taken_back: set[str] = set()
        self.recalled: set[str] = set()
        self.epoch = 0

    def publish(self, data: bytes, note: str = "") -> None:
        self.top += 1
        self.kept[self.top] = data, note
        self.kept = dict(sorted(self.kept.items())[-4:])

    def publish_once(self, name: str, data: bytes, note: str) -> None:
        if name not in self.once:
            self.publish(data, note)
            self.once[name] = (self.epoch, self.top)

    def withdraw(self, name: str, data: bytes) -> bool:
        if name not in self.once:
            return False
        if name not in self.taken_back:
            self._drop(name)
            self.publish(data)
            self.taken_back.add(name)
        return True

    def recall(self, name: str, data: bytes) -> None:
        if name not in self.recalled:
            self._drop(name)
            self.publish(data)
            self.once.setdefault(name, (self.epoch, self.top))
            self.recalled.add(name)

    def _drop(self, name: str) -> None:
        epoch, offset = self.once.get(name, (-1, 0))
        if epoch == self.epoch and self.kept.pop(offset, None) is not None:
            self.withdrawn.add(offset)

    def begin(self) -> None:
        self.epoch += 1
        self.top = 0
        self.kept, self.withdrawn = {}, set()

    def after(self, offset: int) -> list[Publication] | None:
        """None if that can't be said completely."""
        missed = range(offset + 1, self.top + 1)
        if offset > self.top or any(n not in self.kept and n not in self.withdrawn for n in missed):
            return None
        return [Publication(n, data, "", note) for n in missed for data, note in [self.kept.get(n, (b"", ""))] if data]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(STEPS, max_size=24))
async def test_no_loss_is_hidden_and_none_is_invented(redis: Redis, steps: list[tuple[str, int]]) -> None:
    """Whatever is published, withdrawn, trimmed or lost: from every offset a reader, and a node that joins, get
    exactly what the model says, and "recovered" only if nothing is missing beside what was withdrawn.
    """
    await redis.flushdb()
    streams, model = ChannelStreams(redis, "node-1", ManualClock(), history_size=4), Model()
    epochs = [(await streams.read(CHANNEL, None)).position.epoch]
    for number, (step, place) in enumerate(steps):
        data, name = b"%d" % number, f"m{place}"
        match step:
            case "publish":
                await streams.publish(CHANNEL, data)
                model.publish(data)
            case "once" if name in model.recalled:
                with pytest.raises(Recalled):
                    await streams.publish_once(CHANNEL, name, data)
            case "once":
                await streams.publish_once(CHANNEL, name, data, f"note {place % 2}" if place else "")
                model.publish_once(name, data, f"note {place % 2}" if place else "")
            case "recall":
                await streams.recall(CHANNEL, name, data)
                model.recall(name, data)
            case "withdraw":
                assert await streams.withdraw(CHANNEL, name, data) == model.withdraw(name, data)
            case "drop":
                lost = dict(list(model.kept.items())[place : place + 1])
                for offset in lost:
                    await redis.xdel(keys.channel_stream(CHANNEL), f"{offset}-0")
                    del model.kept[offset]
            case "expire":
                await redis.delete(keys.channel_stream(CHANNEL))
                model.kept = {}
            case "new epoch":
                await redis.delete(keys.channel_meta(CHANNEL))
                model.begin()
        joins = [Listening(CHANNEL, None, Position(epochs[-1], offset)) for offset in range(model.top + 2)]
        found, _ = await streams.attend([Listening(CHANNEL), *joins])
        if step == "new epoch":
            epochs.append(found[0].position.epoch)
            found = found[:1]
        for offset, answer in enumerate(found[1:]):
            wanted = model.after(offset)
            assert answer.position == Position(epochs[-1], model.top)
            assert (answer.recovered, answer.publications) == (wanted is not None, wanted or []), offset
    assert len(set(epochs)) == model.epoch + 1
    for epoch in epochs:
        for offset in range(model.top + 2):
            read = await streams.read(CHANNEL, Position(epoch, offset))
            wanted = model.after(offset) if epoch == epochs[-1] else None
            assert (read.recovered, read.publications) == (wanted is not None, wanted or []), offset


async def test_history(streams: ChannelStreams) -> None:
    """Any part of what is kept, from either end, after or before a position."""
    positions = [await streams.publish(CHANNEL, b"%d" % n) for n in range(1, 8)]
    epoch = positions[0].epoch

    async def offsets(limit: int, since: int | None, reverse: bool) -> list[int]:
        position = None if since is None else Position(epoch, since)
        publications, top = await streams.history(CHANNEL, limit, position, reverse)
        assert top == positions[-1]
        assert [int(publication.data) for publication in publications] == [each.offset for each in publications]
        return [publication.offset for publication in publications]

    assert await offsets(0, None, False) == []
    assert await offsets(-1, None, False) == [4, 5, 6, 7]
    assert await offsets(2, None, False) == [4, 5]
    assert await offsets(2, None, True) == [7, 6]
    assert await offsets(-1, 5, False) == [6, 7]
    assert await offsets(1, 5, False) == [6]
    assert await offsets(0, 5, False) == []
    assert await offsets(-1, 6, True) == [5, 4]
    assert await offsets(1, 6, True) == [5]
    assert await offsets(-1, 0, True) == []
    for since in (Position(epoch, 2), Position(epoch, 8), Position("another", 5)):
        with pytest.raises(Unrecoverable):
            await streams.history(CHANNEL, -1, since, False)
    with pytest.raises(Unrecoverable):
        await streams.history(CHANNEL, -1, Position("another", 5), True)


async def test_a_key_goes_with_its_publication(streams: ChannelStreams, redis: Redis) -> None:
    """Into the history, to the nodes behind the channel's name, and nowhere else."""
    start = (await streams.read(CHANNEL, None)).position
    await streams.attend([Listening(CHANNEL)])
    async with listening(redis, "node-1") as wire:
        await streams.publish(CHANNEL, b"1", "pöint")
        await streams.publish(CHANNEL, b"2")
        frames = await wire.frames(2)
    assert [frame.split(b"\n")[2] for frame in frames] == [f"{CHANNEL}\x1fpöint".encode(), CHANNEL.encode()]
    kept = [Publication(1, b"1", "pöint"), Publication(2, b"2")]
    assert (await streams.read(CHANNEL, start)).publications == kept
    for bad in ("a\nb", "a\x1fb"):
        with pytest.raises(InputError):
            await streams.publish(CHANNEL, b"3", bad)


async def test_presence_lists_who_shows_life(streams: ChannelStreams, clock: ManualClock, redis: Redis) -> None:
    """Clients are there until they leave, or their node falls silent; then the store forgets them."""
    assert await streams.presence(CHANNEL) == {}
    await streams.attend([Listening(CHANNEL, clients=[("one", "anna"), ("two", "anna")])])
    clock.advance(NODE_DEAD_AFTER_MS)
    await streams.attend([Listening(CHANNEL, clients=[("three", "a\nb")])])
    assert await streams.presence(CHANNEL) == {"one": "anna", "two": "anna", "three": "a\nb"}
    await streams.dismiss([], [(CHANNEL, ["one"])])
    assert await streams.presence(CHANNEL) == {"two": "anna", "three": "a\nb"}
    clock.advance(1)
    assert await streams.presence(CHANNEL) == {"three": "a\nb"}
    assert await redis.hkeys(keys.channel_presence(CHANNEL)) == [b"three"]
    assert 0 < await redis.ttl(keys.channel_presence(CHANNEL)) <= 180


async def test_a_logout_is_remembered(streams: ChannelStreams, redis: Redis) -> None:
    """With the joins comes when their users were logged out; the store doesn't spell out whose logout it keeps."""
    await streams.revoke("anna", 5_000)
    _, revoked = await streams.attend([], ["anna", "berta"])
    assert revoked == {"anna": 5_000}
    assert 0 < await redis.ttl(keys.revoked("anna")) <= 30 * 86_400
    assert not [key async for key in redis.scan_iter("*anna*")]


async def test_nodes_are_told_things(streams: ChannelStreams, redis: Redis) -> None:
    """One by its name or alias, all at once when somebody is to be disconnected; nobody is noticed."""
    assert not await streams.tell("node-9", b"{}")
    async with listening(redis, "node-9", streams.alias) as wire:
        assert await streams.tell("node-9", b'{"a": 1}')
        assert await streams.tell(streams.alias, b"with\na line feed")
        await wire._bus.subscribe(keys.nodes_bus())
        await wire._bus.get_message(timeout=5)
        await streams.disconnect("anna", 3503, "force disconnect")
        frames = await wire.frames(3)
    payloads = [frame.split(b"\n", 3) for frame in frames]
    assert [payload[:3] for payload in payloads] == [[b"", b"0", b""]] * 3
    assert payloads[0][3] == b'{"a": 1}'
    assert payloads[1][3] == b"with\na line feed"
    said = {"user": "anna", "code": 3503, "reason": "force disconnect"}
    assert json.loads(payloads[2][3]) == {"disconnect": said}
