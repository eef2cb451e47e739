"""Taking messages back, on a real store: what was sent, what waits, and what is somebody's already."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from channels.contract import Channel, Outgoing
from channels.dispatcher import Dispatcher, DispatcherSettings
from channels.gateway.streams import Listening
from channels.push import PushChannel, customer_channel
from channels.states import Delivery
from channels.stub import StubChannel
from nearcast import keys
from nearcast.decisions import Decision
from nearcast.errors import Gone, RetrySend
from nearcast.events import Consent, ConsentScope, Erase, Receipt
from nearcast.ids import CustomerId, MessageId, Sku, message_id
from nearcast.messages import Message, Push, Recall, Withdraw, decode_publication, encode_outbox
from nearcast.world import OpenHours, Stock
from offers.worldfile import WorldFile
from server import sweeper
from server.coupons import offer_of
from server.outbox import ValkeyOutbox
from server.situations import situation_of
from server.sweeper import Sweeper
from server.world import WorldStore
from tests.channels.examples import until
from tests.server.counter import ANN, NOW, Counter, open_counter
from tests.server.rig import PARTITIONS
from tests.server.town import WORLD

QUICK = DispatcherSettings(backoff_s=0.01, backoff_cap_s=0.05, breaker_open_s=0.02, look_s=0.01, read_wait_ms=20)
SOLD_OUT = WorldFile(stock=[Stock(store="graben", sku="beans", quantity=0)])


@pytest.fixture
async def counter(redis: Redis, valkey_url: str) -> AsyncIterator[Counter]:
    async with open_counter(redis, valkey_url) as made:
        yield made


@asynccontextmanager
async def dispatching(counter: Counter, *channels: Channel, node: str = "a", idle_ms: int = 0) -> AsyncIterator[None]:
    """A dispatcher at work on the store."""
    outbox = ValkeyOutbox(counter.redis, range(PARTITIONS), node, idle_ms=idle_ms, upkeep_s=0.05)
    dispatcher = Dispatcher(outbox, counter.desk, channels, counter.clock, QUICK)
    task = asyncio.create_task(dispatcher.run())
    try:
        yield
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)
        await outbox.close()


async def state_of(counter: Counter, message: Message) -> Delivery:
    return await counter.desk.delivery(message)


async def reaches(counter: Counter, message: Message, *states: str) -> Delivery:
    async with asyncio.timeout(10):
        while (found := await state_of(counter, message)).state not in states:
            await asyncio.sleep(0.01)
    return found


async def receipts(counter: Counter) -> list[Receipt]:
    found = []
    async for key in counter.redis.scan_iter(match="*:nearcast.feedback"):
        found += [msgspec.json.decode(fields[b"v"], type=Receipt) for _, fields in await counter.redis.xrange(key)]
    return found


async def on_devices(counter: Counter) -> list[Push | Withdraw]:
    """What a device that connects now would get."""
    published, _ = await counter.streams.history(customer_channel(ANN), -1, None, reverse=False)
    return [decode_publication(each.data) for each in published]


async def reported(counter: Counter) -> None:
    """The engine has read what the log holds of receipts."""
    await counter.happens(*await receipts(counter))


def entry_of(message: Message, reason: str = "left") -> Recall:
    return Recall(message=message.id, decision=message.decision, customer=message.customer, kind="offer", reason=reason)


async def emit(counter: Counter, entry: Recall) -> None:
    """As the engine does."""
    await counter.redis.xadd(keys.outbox(counter.state.partition(ANN)), {"e": encode_outbox(entry)})


async def empty(counter: Counter) -> None:
    """Everything in the outbox is over."""
    async with asyncio.timeout(10):
        while any([await counter.redis.xlen(keys.outbox(partition)) for partition in range(PARTITIONS)]):
            await asyncio.sleep(0.01)


async def apply(counter: Counter, message: Message) -> None:
    decision = await counter.state.decision(ANN, message.decision)
    assert decision is not None
    promotion = counter.world.current.catalogue.promotions[message.promotion]
    await counter.coupons.apply(offer_of(decision, promotion))


def sweeper_of(counter: Counter, node: str = "a") -> Sweeper:
    return Sweeper(counter.redis, node, counter.state, counter.world, counter.recaller, counter.clock)


async def sweep(counter: Counter, node: str = "a") -> int:
    """One look, at all partitions."""
    await counter.redis.delete(*(keys.sweeping(partition) for partition in range(PARTITIONS)))
    return await sweeper_of(counter, node).sweep()


async def pushed(counter: Counter) -> Message:
    """The message of the counter, sent to a device that is connected, and nowhere else."""
    message = await counter.message()
    await counter.streams.attend([Listening(customer_channel(ANN))])
    async with dispatching(counter, PushChannel(counter.streams)):
        await reaches(counter, message, "sent")
        await empty(counter)
    return message


async def test_what_was_sent(counter: Counter) -> None:
    """The customer has left: gone from the devices, not to be applied, and the receipt says why. Repeating it changes
    nothing."""
    message = await pushed(counter)
    for reason in ("left", "left", "bought"):
        assert await counter.recaller.recall(entry_of(message, reason)) == "recalled"
    assert await on_devices(counter) == [Withdraw(message=message.id, reason="recalled")]
    with pytest.raises(Gone):
        await apply(counter, message)
    assert {(each.status, each.reason) for each in await receipts(counter)} == {("sent", ""), ("recalled", "left")}
    assert len({each.id for each in await receipts(counter)}) == 2


async def test_what_was_applied_is_theirs(counter: Counter) -> None:
    """The coupon is in their hand: nothing is taken back."""
    message = await pushed(counter)
    await apply(counter, message)
    assert await counter.recaller.recall(entry_of(message)) == "applied"
    assert [type(each) for each in await on_devices(counter)] == [Push]
    assert (await state_of(counter, message)).state == "sent"


async def test_what_was_opened_is_not_taken_away(counter: Counter) -> None:
    """Nor can it fall back any more; the retailer's own recall takes it all the same."""
    message = await pushed(counter)
    opened = Receipt(id="o", uid="ann", ts=NOW + 20, message=message.id, decision=message.decision, status="opened")
    await counter.happens(opened)
    assert await counter.recaller.recall(entry_of(message)) == "opened"
    assert [type(each) for each in await on_devices(counter)] == [Push]
    await apply(counter, message)
    assert await counter.recaller.recall(entry_of(message, "recalled"), read_too=True) == "recalled"
    assert await on_devices(counter) == [Withdraw(message=message.id, reason="recalled")]


async def test_applying_and_recalling_at_once(counter: Counter) -> None:
    """Whichever comes first: applied and left alone, or recalled and refused; never both, never neither."""
    message = await pushed(counter)
    seen = set()
    promotion = counter.world.current.catalogue.promotions[message.promotion]
    for number in range(20):
        decision = await counter.state.decision(ANN, message.decision)
        assert decision is not None
        decision = msgspec.structs.replace(decision, id=f"{decision.id}{number}")

        async def applying(after_s: float, decision: Decision = decision) -> None:
            await asyncio.sleep(after_s)
            await counter.coupons.apply(offer_of(decision, promotion))

        recalling = counter.recaller.recall(
            Recall(message=MessageId(f"m{number}"), decision=decision.id, customer=ANN, kind="offer", reason="left")
        )
        results = await asyncio.gather(recalling, applying(number * 0.0005), return_exceptions=True)
        refused = any(isinstance(result, Gone) for result in results)
        assert ("applied" in results) != refused
        seen.add(refused)
    assert seen == {True, False}


async def test_a_message_that_waits_to_be_acknowledged(counter: Counter) -> None:
    """Recalled while it waits: it ends there, and no SMS follows, not even when another dispatcher takes over."""
    message, sms = await _awaiting(counter), StubChannel("sms")
    await emit(counter, entry_of(message))
    async with dispatching(counter, PushChannel(counter.streams), sms):
        await reaches(counter, message, "recalled")
        await empty(counter)
    counter.clock.advance(60_000)
    assert sms.calls == []
    assert [(each.status, each.reason) for each in await receipts(counter) if each.final] == [("recalled", "left")] * 2


async def _awaiting(counter: Counter) -> Message:
    """The message of the counter, with devices that don't acknowledge it; its dispatcher has died since."""
    message = await counter.message()
    message.fall_back_ms = message.at_ms + 15_000
    partition = counter.state.partition(ANN)
    [(entry_id, fields)] = await counter.redis.xrange(keys.outbox(partition))
    await counter.redis.xtrim(keys.outbox(partition), maxlen=0)
    await counter.redis.xadd(keys.outbox(partition), {**fields, b"e": encode_outbox(message)}, id="*")
    assert entry_id
    await counter.streams.attend([Listening(customer_channel(ANN))])
    async with dispatching(counter, PushChannel(counter.streams), StubChannel("sms"), node="dead"):
        await reaches(counter, message, "awaiting")
    return message


async def test_the_dispatcher_dies_while_it_waits(counter: Counter) -> None:
    """Two others find the message: one of them falls back, once; a device that acknowledges late changes nothing."""
    message, sms = await _awaiting(counter), StubChannel("sms")
    push = PushChannel(counter.streams)
    async with dispatching(counter, push, sms, node="b"), dispatching(counter, push, sms, node="c"):
        await until(lambda: True)
        counter.clock.advance(15_000)
        await reaches(counter, message, "sent")
        await empty(counter)
    assert len(sms.calls) == 1
    unacknowledged = {each.id for each in await receipts(counter) if each.reason == "unacknowledged"}
    assert len(unacknowledged) == 1


@pytest.mark.parametrize("key", [keys.channel_acked, keys.channel_shown])
async def test_an_acknowledgement_that_the_dead_one_missed(counter: Counter, key: object) -> None:
    """A device acknowledged (or opened) it meanwhile: sent, and no SMS however late it is."""
    assert callable(key)
    message, sms = await _awaiting(counter), StubChannel("sms")
    await counter.redis.set(key(customer_channel(ANN), message.id), "phone")
    counter.clock.advance(60_000)
    async with dispatching(counter, PushChannel(counter.streams), sms):
        await reaches(counter, message, "sent")
        await empty(counter)
    assert sms.calls == []


@pytest.mark.parametrize("turn", range(6))
async def test_recall_acknowledgement_and_fall_back_at_once(counter: Counter, turn: int) -> None:
    """All in the same instant: it ends as recalled, whatever else was under way; with one SMS at most, and with none
    where the recall came first."""
    message, sms = await _awaiting(counter), StubChannel("sms")
    acked, push = keys.channel_acked(customer_channel(ANN), message.id), PushChannel(counter.streams)
    async with dispatching(counter, push, sms, node="b"), dispatching(counter, push, sms, node="c"):
        counter.clock.advance(15_000)
        if turn % 3 == 0:
            await counter.redis.set(acked, "phone")
        for _ in range(turn):
            await asyncio.sleep(0)
        await emit(counter, entry_of(message))
        recalled = await reaches(counter, message, "recalled")
        await empty(counter)
    handed_over = "sms" in (recalled.channel, *(each.channel for each in await receipts(counter)))
    assert len(sms.calls) == handed_over
    assert "recalled" in {each.status for each in await receipts(counter) if each.final}
    assert (await state_of(counter, message)) == recalled


class Lossy(PushChannel):
    """What it publishes is published, but nobody hears so. Something happens before the first time."""

    def __init__(self, counter: Counter, meanwhile: Callable[[], Awaitable[object]]) -> None:
        super().__init__(counter.streams)
        self._meanwhile = [meanwhile]

    async def send(self, outgoing: Outgoing) -> str:
        if self._meanwhile:
            await self._meanwhile.pop()()
        await super().send(outgoing)
        raise RetrySend("the reply was lost")


async def test_a_push_that_may_have_gone_out(counter: Counter) -> None:
    """It did, and then the thing was sold out: suppressed, and taken away from the device; it can't be applied."""
    message = await counter.message()
    await counter.streams.attend([Listening(customer_channel(ANN))])
    async with dispatching(counter, Lossy(counter, partial(counter.world.put, SOLD_OUT))):
        suppressed = await reaches(counter, message, "suppressed")
        await empty(counter)
    assert (suppressed.reason, suppressed.unsent) == ("out_of_stock", False)
    assert await on_devices(counter) == [Withdraw(message=message.id, reason="recalled")]
    with pytest.raises(Gone):
        await apply(counter, message)
    assert [(each.status, each.reason) for each in await receipts(counter) if each.final] == [
        ("suppressed", "out_of_stock")
    ]


async def test_a_push_that_may_have_gone_out_and_was_opened(counter: Counter) -> None:
    """So it had: it stays with who reads it."""
    message = await counter.message()
    opened = Receipt(id="o", uid="ann", ts=NOW + 20, message=message.id, decision=message.decision, status="opened")

    async def meanwhile() -> None:
        await counter.happens(opened)
        await counter.world.put(SOLD_OUT)

    await counter.streams.attend([Listening(customer_channel(ANN))])
    async with dispatching(counter, Lossy(counter, meanwhile)):
        await reaches(counter, message, "suppressed")
        await empty(counter)
    assert [type(each) for each in await on_devices(counter)] == [Push]
    await apply(counter, message)


async def test_the_websocket_consent_goes_while_a_push_waits(counter: Counter) -> None:
    """It is on the devices, unacknowledged: it is taken back from there, and no SMS follows."""
    message, sms = await _awaiting(counter), StubChannel("sms")
    await reported(counter)
    withdrawn = Consent(id="off", uid="ann", ts=NOW + 500, scope="websocket", granted=False)
    await counter.happens(withdrawn)
    async with dispatching(counter, PushChannel(counter.streams), sms, node="b"):
        await reaches(counter, message, "recalled")
        await empty(counter)
    assert sms.calls == []
    assert await on_devices(counter) == [Withdraw(message=message.id, reason="recalled")]


async def test_the_websocket_consent_goes_after_a_fall_back(counter: Counter) -> None:
    """The push is on the devices still, although the message went by SMS since: it is taken back from there."""
    message, sms = await _awaiting(counter), StubChannel("sms")
    async with dispatching(counter, PushChannel(counter.streams), sms, node="b"):
        counter.clock.advance(15_000)
        await reaches(counter, message, "sent")
        await empty(counter)
    await reported(counter)
    await counter.happens(Consent(id="off", uid="ann", ts=NOW + 16_000, scope="websocket", granted=False))
    async with dispatching(counter, PushChannel(counter.streams), sms, node="b"):
        await reaches(counter, message, "recalled")
        await empty(counter)
    assert len(sms.calls) == 1
    assert await on_devices(counter) == [Withdraw(message=message.id, reason="recalled")]


@pytest.mark.parametrize("scope", ["sms", "email"])
async def test_another_channels_consent_goes_while_a_push_waits(counter: Counter, scope: ConsentScope) -> None:
    """The push stays; the message only goes nowhere else."""
    message, sms = await _awaiting(counter), StubChannel("sms")
    await reported(counter)
    await counter.happens(Consent(id="off", uid="ann", ts=NOW + 500, scope=scope, granted=False))
    async with dispatching(counter, PushChannel(counter.streams), sms, node="b"):
        counter.clock.advance(15_000)
        await reaches(counter, message, "sent")
        await empty(counter)
    assert [type(each) for each in await on_devices(counter)] == [Push]
    assert len(sms.calls) == (scope == "email")


async def test_a_message_that_backs_off(counter: Counter) -> None:
    """The provider is away: the recall overtakes the message, which then goes nowhere."""
    message, sms = await counter.message(), StubChannel("sms", [RetrySend("away")] * 10_000)
    async with dispatching(counter, sms):
        await until(lambda: len(sms.calls) > 1)
        await emit(counter, entry_of(message))
        await reaches(counter, message, "recalled")
        await empty(counter)
    assert sms.held == {}


async def test_a_message_that_is_queued(counter: Counter) -> None:
    """Recalled before any dispatcher had it: it is suppressed, and nothing of it has left the house."""
    message, sms = await counter.message(), StubChannel("sms")
    assert await counter.recaller.recall(entry_of(message)) == "stopped"
    async with dispatching(counter, sms):
        await empty(counter)
    assert sms.calls == []
    assert [(each.status, each.reason, each.unsent) for each in await receipts(counter)] == [
        ("suppressed", "left", True)
    ]


async def test_an_erased_customer(counter: Counter) -> None:
    """Nothing is recalled from somebody who is no more: that would be a new record of them."""
    message = await pushed(counter)
    before = len(await receipts(counter))
    await counter.happens(Erase(id="x", uid="ann", ts=NOW + 30))
    assert await counter.recaller.recall(entry_of(message)) == "ended"
    assert len(await receipts(counter)) == before


async def test_the_last_one_is_sold(counter: Counter) -> None:
    """Withdrawn from the devices at the sweeper's next look, with the reason; then there is nothing left to watch."""
    message = await pushed(counter)
    assert await sweep(counter) == 0
    await counter.world.put(SOLD_OUT)
    assert await sweep(counter) == 1
    assert await on_devices(counter) == [Withdraw(message=message.id, reason="recalled")]
    assert ("recalled", "out_of_stock") in {(each.status, each.reason) for each in await receipts(counter)}
    assert [key async for key in counter.redis.scan_iter(match="*:live*")] == []
    assert await sweep(counter) == 0


async def test_nothing_in_the_index_names_anybody(counter: Counter) -> None:
    """An erasure need not look there."""
    await pushed(counter)
    index = [key async for key in counter.redis.scan_iter(match="*:live*")]
    assert len(index) == 2
    stored = b" ".join([*index, *[part for key in index for part in await counter.redis.zrange(key, 0, -1)]])
    assert ANN.encode() not in stored.replace(b"nearcast", b"")


async def test_a_store_that_closes(counter: Counter) -> None:
    """Its hours changed after the message was sent."""
    message = await pushed(counter)
    day = (NOW // 86_400_000 + 3) % 7
    closed = replace_store(hours=[OpenHours(weekday=(day + 3) % 7, opens=0, closes=60)])
    await counter.world.put(closed)
    await sweep(counter)
    assert (await state_of(counter, message)).reason == "store_closed"


def replace_store(hours: Sequence[OpenHours]) -> WorldFile:
    return WorldFile(stores=[msgspec.structs.replace(WORLD.stores[0], hours=list(hours))])


async def test_a_promotion_that_ends(counter: Counter) -> None:
    """Taken out of the world after the message was sent."""
    message = await pushed(counter)
    await counter.world.remove("promotion", "abandoned")
    await sweep(counter)
    assert (await state_of(counter, message)).reason == "promotion_ended"


async def test_past_the_deadline_nobody_looks(counter: Counter) -> None:
    """What is over by itself is not recalled, and goes from the index."""
    message = await pushed(counter)
    counter.clock.advance(message.deadline_ms - counter.clock.now_ms() + 1)
    await counter.world.put(SOLD_OUT)
    assert await sweep(counter) == 0
    assert (await state_of(counter, message)).state == "sent"
    assert await counter.redis.exists(keys.live(counter.state.partition(CustomerId("ann")))) == 0


async def test_two_sweepers(counter: Counter) -> None:
    """One of them looks at a partition; should both do it, the message is recalled once."""
    message = await pushed(counter)
    await counter.world.put(SOLD_OUT)
    first, second = sweeper_of(counter, "a"), sweeper_of(counter, "b")
    assert sorted(await asyncio.gather(first.sweep(), second.sweep())) == [0, 1]
    recalled = [each for each in await receipts(counter) if each.status == "recalled"]
    assert len({each.id for each in recalled}) == 1
    assert [each.message for each in recalled] == [message.id] * len(recalled)


async def test_a_world_that_can_not_be_used_recalls_nothing(counter: Counter) -> None:
    """Nobody knows what has ended then."""
    message = await pushed(counter)
    await counter.redis.hset(keys.world("promotion"), "abandoned", b"{nonsense")
    await counter.redis.hset(keys.stock("graben"), "beans", 0)
    await counter.redis.incr(keys.world_version())
    await counter.world.refresh()
    assert counter.world.problem is not None
    assert await sweep(counter) == 0
    assert (await state_of(counter, message)).state == "sent"


async def test_a_world_that_is_one_look_behind_recalls_nothing(counter: Counter) -> None:
    """The promotion is new, and this process has not heard of it yet."""
    message = await pushed(counter)
    await counter.world.remove("promotion", "abandoned")
    await WorldStore(counter.redis).put(WORLD)
    assert await sweep(counter) == 0
    assert (await state_of(counter, message)).state == "sent"


async def another(counter: Counter, message: Message, count: int, sku: Sku | None = None) -> list[MessageId]:
    """More offers like it that are out, of another thing if so said."""
    decision = await counter.state.decision(ANN, message.decision)
    assert decision is not None
    partition = counter.state.partition(ANN)
    noted = situation_of(msgspec.structs.replace(message, sku=sku or message.sku))
    sent = msgspec.json.encode(Delivery(state="sent", channel="websocket", by="a"))
    made = []
    async with counter.redis.pipeline(transaction=False) as pipe:
        pipe.zadd(keys.live(partition), {noted: message.deadline_ms})
        for number in range(count):
            copy = msgspec.structs.replace(decision, id=f"{sku}{number}")
            made.append(message_id(copy.id, "customer"))
            pipe.set(keys.decision(partition, copy.id), msgspec.json.encode(copy))
            pipe.set(keys.delivery(partition, made[-1]), sent)
            pipe.zadd(keys.live_of(partition, noted), {copy.id: message.deadline_ms})
        await pipe.execute()
    return made


async def test_many_situations_take_turns(counter: Counter) -> None:
    """One look takes a bounded number of offers back, of each situation some; in the end all are, each counted once."""
    message = await pushed(counter)
    before = recalls_counted()
    milk, tea = await another(counter, message, 400, Sku("milk")), await another(counter, message, 40, Sku("tea"))
    await counter.world.remove("promotion", "abandoned")
    looking, partition = sweeper_of(counter), counter.state.partition(ANN)
    taken = [await looking.sweep()]
    assert 0 < taken[0] < 200
    states = [await counter.redis.get(keys.delivery(partition, each)) for each in (milk[0], milk[-1], tea[0])]
    assert sorted(b"recalled" in state for state in states) == [False, True, True]
    while taken[-1]:
        taken.append(await looking.sweep())
    assert sum(taken) == 441
    for each in (*milk, *tea):
        assert b"recalled" in await counter.redis.get(keys.delivery(partition, each))
    assert len({each.message for each in await receipts(counter) if each.status == "recalled"}) == 441
    assert recalls_counted() == before + 441
    assert [key async for key in counter.redis.scan_iter(match="*:live*")] == []


def recalls_counted() -> float:
    return REGISTRY.get_sample_value("nearcast_recalls_total", {"reason": "promotion_ended", "result": "recalled"}) or 0


async def test_a_recall_is_counted_once(counter: Counter) -> None:
    """However often it is repeated, and by whom."""
    message, before = await pushed(counter), recalls_counted()
    entry = entry_of(message, "promotion_ended")
    assert await counter.recaller.recall_all([entry, entry]) == ["recalled"] * 2
    assert await counter.recaller.recall(entry) == "recalled"
    assert recalls_counted() == before + 1


@pytest.mark.parametrize("damage", ["decision", "delivery", "situation", "not text"])
async def test_what_can_not_be_read_stops_nothing_else(
    counter: Counter, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and not looked at again; all others are taken back."""
    message, partition = await pushed(counter), counter.state.partition(ANN)
    [bad] = await another(counter, message, 1, message.sku)
    if damage == "decision":
        await counter.redis.set(keys.decision(partition, f"{message.sku}0"), b'{"x":1}')
    elif damage == "delivery":
        await counter.redis.set(keys.delivery(partition, bad), b"{")
    else:
        noted = b'["abandoned"' if damage == "situation" else b"\xff"
        await counter.redis.zadd(keys.live(partition), {noted: message.deadline_ms})
    await counter.world.put(SOLD_OUT)
    await sweep(counter)
    assert (await state_of(counter, message)).state == "recalled"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert [key async for key in counter.redis.scan_iter(match="*:live*")] == []


async def test_a_partition_stays_with_who_is_at_it(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks again in time has it still; another dispatcher only sees how much there is."""
    monkeypatch.setattr(sweeper, "_MINE_MS", 60_000)
    message = await pushed(counter)
    await another(counter, message, 900, Sku("tea"))
    await counter.world.put(SOLD_OUT)
    first, second = sweeper_of(counter, "a"), sweeper_of(counter, "b")
    await counter.redis.delete(*(keys.sweeping(partition) for partition in range(PARTITIONS)))
    found = [await each.sweep() for each in (first, second, first, first, second)]
    assert [bool(done) for done in found] == [True, False, True, True, False]
    assert REGISTRY.get_sample_value("nearcast_live_situations") == 1
