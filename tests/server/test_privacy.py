"""Privacy by decay: a quarter of an hour after a fix, no coordinate of it is anywhere in the store.

Everything in the store is looked through as the store itself would write it out, uncompressed: text, packed numbers,
and what is left of deleted entries.
"""

import asyncio
import logging
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from channels.gateway.server import Gateway
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from clients.device import Device
from models.registry import FixedModels
from nearcast import keys, topics
from nearcast.clock import ManualClock, SystemClock
from nearcast.events import Location, encode
from nearcast.ids import CustomerId, partition_of
from offers.policy import Policy
from server.api.keyring import KeyRing
from server.api.links import LinkSigner
from server.consents import OptOuts
from server.coupons import CouponBook
from server.dead_letters import DeadLetters, Wanted
from server.desk import Desk
from server.devices import DeviceBackend
from server.forgetting import Forgetting
from server.intake import Intake
from server.log.streams import StreamsLog
from server.model_registry import ModelRegistry
from server.state import StateStore
from server.timers import TimerPump
from server.valkey import EmbeddedValkey
from server.world import WorldStore
from tests.server.rig import PARTITIONS, Bench
from tests.server.test_dead_letters import Shell
from tests.server.town import WORLD

MINUTE_MS = 60_000
KEPT_MS = 15 * MINUTE_MS
EVERYWHERE = frozenset(range(PARTITIONS))
#: Where people were: in the store, near it, far from it, and where nobody can be. Nothing else has these digits.
INSIDE, NEAR, FAR, NOWHERE = (
    (48.20861937, 16.37004219),
    (48.20938173, 16.37014236),
    (47.07071359, 15.43951684),
    (91.20471963, 16.37095317),
)
SPOTS = (INSIDE, NEAR, FAR, NOWHERE)


def traces_of(number: float) -> list[bytes]:
    """How a coordinate could stand somewhere: its digits, to a metre, or packed."""
    return [f"{number:.6f}"[:-1].encode(), *(struct.pack(code, number) for code in ("<d", ">d"))]


TRACES = [trace for spot in SPOTS for number in spot for trace in traces_of(number)]


@pytest.fixture(autouse=True)
async def _plain(redis: Redis) -> AsyncIterator[None]:
    """The store writes itself out as it is."""
    before = (await redis.config_get("rdbcompression"))["rdbcompression"]
    await redis.config_set("rdbcompression", "no")
    yield
    await redis.config_set("rdbcompression", before)


async def found_in(redis: Redis) -> set[str]:
    """The keys, without their partition and customer, in which there is a trace of a coordinate."""
    found = set()
    async for key in redis.scan_iter(count=1_000):
        written = key + (await redis.dump(key) or b"")
        if any(trace in written for trace in TRACES):
            # nearcast:log:{2}:customers.locations, nearcast:{2}:presence:ann
            parts = key.decode().split(":")
            found.add("log" if parts[1] == "log" else parts[2])
    return found


@pytest.fixture
async def log(valkey_url: str) -> AsyncIterator[StreamsLog]:
    log = StreamsLog(valkey_url, PARTITIONS)
    await log.start()
    yield log
    await log.stop()


def forgetting_at(redis: Redis, now_ms: int, owned: frozenset[int] = EVERYWHERE) -> Forgetting:
    return Forgetting(redis, PARTITIONS, lambda: owned, ManualClock(now_ms), log_in_store=True)


async def sweep(redis: Redis, now_ms: int) -> None:
    """What every engine together does at this time, also one that has just started."""
    forgetting = forgetting_at(redis, now_ms)
    for partition in EVERYWHERE:
        await forgetting.sweep(partition)


@asynccontextmanager
async def phone_of(redis: Redis, log: StreamsLog, customer: str) -> AsyncIterator[Device]:
    """A phone at a real gateway in front of the log."""
    clock = SystemClock()
    tokens, streams = Tokens(b"a token secret".ljust(32), clock), ChannelStreams(redis, "node", clock)
    desk = Desk(
        redis=redis,
        state=StateStore(redis, PARTITIONS),
        world=WorldStore(redis),
        intake=Intake(log, clock),
        log=log,
        coupons=CouponBook(redis, b"a coupon secret", clock),
        opt_outs=OptOuts(redis, PARTITIONS),
        streams=streams,
        tokens=tokens,
        keyring=KeyRing([]),
        links=LinkSigner(b"a link secret"),
        models=ModelRegistry(redis, SystemClock()),
        live_models=FixedModels(),
        policy=Policy(),
        clock=clock,
        public_url="https://offers.example",
        sms_auth_token="",
        demo=False,
        web_root=Path(),
    )
    gateway = Gateway(GatewaySettings(port=0), tokens, streams, DeviceBackend(desk, redis, streams), clock)
    await gateway.start()
    try:
        url = f"ws://127.0.0.1:{gateway.port}/connection/websocket"
        async with Device(url, tokens.mint(customer, "customer", ttl_s=60)) as device:
            yield device
    finally:
        await gateway.stop()


def fix(uid: str, ts: int, spot: tuple[float, float]) -> Location:
    return Location(uid=uid, ts=ts, lat=spot[0], lng=spot[1], accuracy_m=5.0)


async def test_nothing_is_left_of_where_people_were(
    redis: Redis, log: StreamsLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Fixes through the gateway, good, strayed, malformed and in a wrong topic; then nobody does anything any more.

    Until then the coordinates are in the log, the dead letters and the record of who is near the store; a quarter of an
    hour later they are nowhere, and were never in our own logs. The letters stay, without what they held.
    """
    caplog.set_level(logging.DEBUG, "nearcast")
    bench = Bench(redis, log)
    now_ms = SystemClock().now_ms()
    # They were seen then, and heard of now: their stays are over when the letters and the log are a quarter old.
    seen_ms = now_ms - KEPT_MS + 10_000
    stray = next(f"c{n}" for n in range(99) if partition_of(f"c{n}", PARTITIONS) != partition_of("ann", PARTITIONS))
    async with bench.running(), phone_of(redis, log, "ann") as phone:
        await phone.event(fix("ann", seen_ms, INSIDE))
        for uid, spot in (("bob", NEAR), ("cem", FAR)):
            await bench.send(fix(uid, seen_ms, spot))
        lat, lng = NOWHERE
        await bench.send_raw(topics.LOCATIONS, "dea", f'{{"uid":"dea","lat":{lat},"lng":{lng}}}'.encode())
        await bench.send_raw(topics.LOCATIONS, "ann", encode(fix(stray, seen_ms, FAR)))
        await bench.send_raw(topics.ACTIONS, "ann", encode(fix("ann", seen_ms, NEAR)))
        await bench.caught_up()
        assert await found_in(redis) == {"log", "dead-letters", "presence"}
        await sweep(redis, now_ms + KEPT_MS - 2 * MINUTE_MS)
        assert await found_in(redis) == {"log", "dead-letters", "presence"}

        clock = ManualClock(now_ms + KEPT_MS)
        pump = TimerPump(StateStore(redis, PARTITIONS), Intake(log, clock), lambda: EVERYWHERE, clock)
        while sum([await pump.fire(partition) for partition in EVERYWHERE]):
            await bench.caught_up()
        # The sweeps, and what they have to wait for, are less than a minute late.
        await sweep(redis, now_ms + KEPT_MS)
        assert await found_in(redis) == set()
    letters = [letter async for letter in DeadLetters(redis, PARTITIONS).every(Wanted())]
    assert sorted((letter.topic, letter.reason) for letter in letters) == [
        (topics.ACTIONS, "malformed_event"),
        (topics.LOCATIONS, "malformed_event"),
        (topics.LOCATIONS, "wrong_partition"),
    ]
    assert {(letter.value, letter.cut_ms) for letter in letters} == {(b"", now_ms + KEPT_MS)}
    known = await StateStore(redis, PARTITIONS).read(CustomerId("ann"))
    assert known is not None
    assert known.presence.last_ms == seen_ms
    said = " ".join(entry.getMessage() for entry in caplog.records if entry.name.startswith("nearcast"))
    assert said
    assert not [trace for trace in TRACES if trace.decode("latin-1") in said]


async def test_who_stays_leaves_no_trail(redis: Redis, log: StreamsLog) -> None:
    """Also the record of somebody who walks about in a store for long holds nothing older than a quarter of an hour."""
    bench, home = Bench(redis, log), partition_of("ann", PARTITIONS)
    now_ms = SystemClock().now_ms()
    walk = [(now_ms - minutes * MINUTE_MS, INSIDE[0] + minutes * 2e-5, INSIDE[1]) for minutes in range(60, -1, -1)]
    async with bench.running():
        for at_ms, lat, lng in walk:
            await bench.send(fix("ann", at_ms, (lat, lng)))
        await bench.caught_up()
    record = await redis.get(keys.presence(home, "ann"))
    held = [(now_ms - at_ms) / MINUTE_MS for at_ms, lat, _ in walk if any(trace in record for trace in traces_of(lat))]
    assert held
    assert max(held) <= 15


async def test_what_is_not_processed_stays(redis: Redis, log: StreamsLog) -> None:
    """Without an engine, a fix that was acknowledged waits for one, however old it is; those before it go."""
    now_ms = SystemClock().now_ms()
    first = Bench(redis, log)
    async with first.running():
        await first.send(fix("ann", now_ms, (1.0, 1.0)))
        await first.caught_up()
    stream = keys.log_stream(topics.LOCATIONS, partition_of("ann", PARTITIONS))
    await first.send(fix("ann", now_ms + 1, FAR))
    assert await redis.xlen(stream) == 2
    await sweep(redis, now_ms + 100 * KEPT_MS)
    assert await redis.xlen(stream) == 1
    assert await found_in(redis) == {"log"}
    second = Bench(redis, log)
    async with second.running():
        await second.caught_up()
    await sweep(redis, now_ms + 100 * KEPT_MS)
    assert await found_in(redis) == set()


async def test_what_nobody_of_ours_reads(redis: Redis) -> None:
    """`customers.promotions` is as short as the rest of the log, although nothing is ever processed of it."""
    now_ms, stream = SystemClock().now_ms(), keys.log_stream(topics.SENT, 0)
    for number, age_ms in enumerate((KEPT_MS, KEPT_MS, MINUTE_MS)):
        await redis.xadd(stream, {"k": "ann", "v": "{}"}, id=f"{now_ms - age_ms}-{number}")
    await sweep(redis, now_ms)
    assert [entry for entry, _ in await redis.xrange(stream)] == [f"{now_ms - MINUTE_MS}-2".encode()]


async def test_old_entries_among_young_ones(redis: Redis) -> None:
    """Also the bytes of an old fix go that shares its block with a young one; who waits for the next one gets it."""
    now_ms = SystemClock().now_ms()
    stream = keys.log_stream(topics.LOCATIONS, 0)
    for number, age_ms in enumerate((KEPT_MS, KEPT_MS, MINUTE_MS, MINUTE_MS)):
        spot = FAR if age_ms == KEPT_MS else (1.0, 1.0)
        value = encode(fix("ann", now_ms, spot))
        await redis.xadd(stream, {"k": "ann", "v": value}, id=f"{now_ms - age_ms}-{number}")
    young = [entry for entry, _ in await redis.xrange(stream)][2:]
    # The newest is gone, and its id is not given out again.
    gone = await redis.xadd(stream, {"k": "ann", "v": encode(fix("ann", now_ms, NEAR))}, id=f"{now_ms + MINUTE_MS}-7")
    await redis.xdel(stream, gone)
    await redis.hset(keys.offsets(0), topics.LOCATIONS, young[-1].decode())
    waiting = asyncio.create_task(redis.xread({stream: young[-1]}, block=30_000))
    while not (await redis.info("clients"))["blocked_clients"]:
        await asyncio.sleep(0.01)
    assert await found_in(redis) == {"log"}
    await sweep(redis, now_ms)
    assert await found_in(redis) == set()
    assert [entry for entry, _ in await redis.xrange(stream)] == young
    assert (await redis.xinfo_stream(stream))["last-generated-id"] == gone
    added = await redis.xadd(stream, {"k": "ann", "v": b"next"})
    ((_, [(entry, _)]),) = await waiting
    assert entry == added
    assert await redis.exists(keys.rewritten(stream)) == 0


async def letter(redis: Redis, topic: str, value: bytes, arrived_ms: int, reason: str = "malformed_event") -> str:
    """A dead letter as the engine leaves it, in partition 0."""
    entry = await redis.xadd(
        keys.dead_letters(0),
        {
            "reason": reason,
            "detail": f"ValueError: no sense in {FAR[0]}" if reason == "internal_error" else "no sense",
            "topic": topic,
            "position": "1-1",
            "key": "ann",
            "arrived_ms": str(arrived_ms),
            "value": value,
        },
    )
    return f"0:{entry.decode()}"


async def test_letters_are_cut_once_and_keep_their_names(redis: Redis, valkey_url: str) -> None:
    """An old position goes; what is young, what holds none and the places of shops stay as they are. Names stay.

    `show` says when and why it was cut, and a replay refuses what it would have to make up.
    """
    now_ms = SystemClock().now_ms()
    position = encode(fix("ann", now_ms, FAR))
    old = await letter(redis, topics.LOCATIONS, position, now_ms - KEPT_MS)
    defect = await letter(redis, topics.LOCATIONS, position, now_ms - KEPT_MS, "internal_error")
    young = await letter(redis, topics.LOCATIONS, b"?", now_ms - MINUTE_MS)
    cart = await letter(redis, topics.CARTS, b'{"uid":"ann"}', now_ms - KEPT_MS)
    shop = await letter(redis, topics.STORES, b'{"id":"s","lat":1.5,"lng":2.5}', now_ms - KEPT_MS)
    assert await found_in(redis) == {"dead-letters"}
    forgetting = forgetting_at(redis, now_ms)
    for _ in range(2):
        await forgetting.sweep(0)
    assert await found_in(redis) == set()
    letters = [found async for found in DeadLetters(redis, PARTITIONS).every(Wanted())]
    assert [(str(found.id), found.cut_ms, found.detail) for found in letters] == [
        (old, now_ms, "no sense"),
        (defect, now_ms, "ValueError"),
        (young, None, "no sense"),
        (cart, None, "no sense"),
        (shop, None, "no sense"),
    ]
    assert [found.value for found in letters] == [b"", b"", b"?", b'{"uid":"ann"}', b'{"id":"s","lat":1.5,"lng":2.5}']
    shell = Shell(valkey_url)
    shown = (await shell("show", old)).out
    assert "value: cut at 20" in shown
    assert "positions are kept for 15 minutes" in shown
    refused = await shell("replay", old)
    assert refused.code != 0
    assert "1 have lost their positions" in refused.err
    assert len([found async for found in DeadLetters(redis, PARTITIONS).every(Wanted())]) == len(letters)


async def test_letters_of_others_are_left_to_others(redis: Redis) -> None:
    """Only in its own partitions, and on Kafka only the letters: the log is not here."""
    now_ms = SystemClock().now_ms()
    await letter(redis, topics.LOCATIONS, encode(fix("ann", now_ms, FAR)), now_ms - KEPT_MS)
    stream = keys.log_stream(topics.LOCATIONS, 0)
    await redis.xadd(stream, {"k": "ann", "v": "x"}, id=f"{now_ms - KEPT_MS}-0")
    await redis.hset(keys.offsets(0), topics.LOCATIONS, f"{now_ms - KEPT_MS}-0")
    await forgetting_at(redis, now_ms).sweep(1)
    assert await found_in(redis) == {"dead-letters"}
    kafka = Forgetting(redis, PARTITIONS, lambda: EVERYWHERE, ManualClock(now_ms), log_in_store=False)
    await kafka.sweep(0)
    assert await found_in(redis) == set()
    assert await redis.xlen(stream) == 1


async def test_the_file_of_an_own_server(tmp_path: Path) -> None:
    """What the store has forgotten is in its append-only file until that is written anew, which `run` has it do."""
    valkey = EmbeddedValkey(tmp_path)
    await valkey.start()
    clock = ManualClock(SystemClock().now_ms())
    folder = tmp_path / "valkey" / "appendonlydir"

    def traces_in_the_file() -> bool:
        while True:
            try:
                written = b"".join(file.read_bytes() for file in folder.iterdir())
            except FileNotFoundError:
                # The server renamed or removed one of them between the listing and the reading.
                continue
            return any(trace in written for trace in TRACES)

    async with Redis.from_url(valkey.url) as redis:
        await redis.config_set("rdbcompression", "no")
        await letter(redis, topics.LOCATIONS, encode(fix("ann", clock.now_ms(), FAR)), clock.now_ms())
        async with asyncio.timeout(10):
            while not traces_in_the_file():
                await asyncio.sleep(0.02)
        forgetting = Forgetting(redis, PARTITIONS, lambda: EVERYWHERE, clock, log_in_store=True, own_server=True)
        clock.advance(2 * 3_600_000)
        running = asyncio.create_task(forgetting.run(), name="forgetting")
        async with asyncio.timeout(10):
            while traces_in_the_file():
                await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.wait({running})
        assert (await redis.info("persistence"))["aof_last_bgrewrite_status"] == "ok"
        assert await found_in(redis) == set()
    await valkey.stop()


def test_the_town_has_other_digits() -> None:
    """Fences stay, and are no trace of anybody."""
    assert not [trace for trace in TRACES if trace.decode("latin-1") in repr(WORLD)]
