"""A withdrawal of consent and a hand-over at the same time: which came first, and who waits for whom."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from channels.contract import Prepared
from channels.states import Delivery
from nearcast import keys
from nearcast.errors import Fenced
from nearcast.messages import Message
from server import consents
from server.consents import OptOuts
from tests.server.counter import ANN, NOW, Counter, open_counter
from tests.server.rig import PARTITIONS

PENDING = Delivery()
SENDING = Delivery(state="sending", channel="sms", attempts=1, by="a")
SENT = Delivery(state="sent", channel="sms", by="a")


@pytest.fixture
async def counter(redis: Redis, valkey_url: str) -> AsyncIterator[Counter]:
    async with open_counter(redis, valkey_url) as made:
        yield made


class Hand:
    """What the dispatcher does around the hand-over of the counter's message."""

    def __init__(self, counter: Counter, message: Message, entry_id: str, prepared: Prepared) -> None:
        self.message = message
        self._counter = counter
        self._entry_id = entry_id
        self._prepared = prepared

    @classmethod
    async def prepared(cls, counter: Counter) -> "Hand":
        message = await counter.message()
        [(entry_id, _)] = await counter.redis.xrange(keys.outbox(counter.state.partition(ANN)))
        prepared = await counter.desk.prepare(message)
        assert isinstance(prepared, Prepared)
        return cls(counter, message, entry_id.decode(), prepared)

    async def begin(self, before: Delivery = PENDING, after: Delivery = SENDING, last_s: float = 30.0) -> bool:
        lasts_ms = round(last_s * 1000)
        return await self._counter.desk.begin(self.message, self._entry_id, before, after, self._prepared, lasts_ms)

    async def end(self, before: Delivery = SENDING, after: Delivery = SENT) -> None:
        await self._counter.desk.save_delivery(self.message, self._entry_id, before, after)


async def withdrawing(counter: Counter) -> "asyncio.Task[None]":
    """A withdrawal that has been noted; not necessarily acknowledged."""
    task = asyncio.create_task(counter.opt_outs.withdraw(ANN, "all", NOW + 2_000))
    async with asyncio.timeout(5):
        while not await counter.opt_outs.noted(ANN):
            await asyncio.sleep(0.001)
    return task


async def waits(counter: Counter, task: "asyncio.Task[None]") -> bool:
    """Whether it looks at the hand-over again and again, instead of being done."""
    before = (await counter.redis.info("commandstats"))["cmdstat_zrange"]["calls"]
    async with asyncio.timeout(5):
        while not task.done() and (await counter.redis.info("commandstats"))["cmdstat_zrange"]["calls"] < before + 2:
            await asyncio.sleep(0.005)
    return not task.done()


async def test_withdrawn_after_the_re_check(counter: Counter) -> None:
    """The hand-over does not begin, nothing is saved, and the withdrawal waited for nothing."""
    hand = await Hand.prepared(counter)
    await counter.opt_outs.withdraw(ANN, "sms", NOW + 2_000)
    assert not await hand.begin()
    assert await counter.desk.delivery(hand.message) == Delivery()
    again = await Hand.prepared(counter)
    assert await again.begin()
    await again.end()


@pytest.mark.parametrize("ends", ["sent", "again", "refused"])
async def test_withdrawn_during_the_hand_over(counter: Counter, ends: str) -> None:
    """It is acknowledged when the hand-over is over, however that ended: also when another dispatcher has the message
    since, so that this one's report is refused."""
    hand = await Hand.prepared(counter)
    assert await hand.begin()
    task = await withdrawing(counter)
    assert await waits(counter, task)
    if ends == "sent":
        await hand.end()
    elif ends == "again":
        await hand.end(after=Delivery(state="sending", channel="sms", attempts=1, reason="busy", by="a"))
    else:
        with pytest.raises(Fenced):
            await hand.end(before=Delivery(state="sending", channel="sms", attempts=7, by="b"))
    await asyncio.wait_for(task, 5)


async def test_the_hand_over_of_another_goes_on(counter: Counter) -> None:
    """Two dispatchers hand the same message over (one was taken for dead): the withdrawal waits for both."""
    hand = await Hand.prepared(counter)
    theirs = Delivery(state="sending", channel="sms", attempts=2, by="b")
    assert await hand.begin()
    assert await hand.begin(SENDING, theirs)
    task = await withdrawing(counter)
    with pytest.raises(Fenced):
        await hand.end()
    assert await waits(counter, task)
    await hand.end(theirs, Delivery(state="sent", channel="sms", by="b"))
    await asyncio.wait_for(task, 5)


async def test_a_hand_over_that_begins_later_is_not_waited_for(counter: Counter) -> None:
    """It has seen the note: what is sent then may be."""
    hand = await Hand.prepared(counter)
    assert await hand.begin()
    noted = await counter.opt_outs.note(ANN, "email", NOW + 2_000)
    await hand.end()
    later = await Hand.prepared(counter)
    assert await later.begin(SENT, Delivery(state="sending", channel="websocket", attempts=1, by="c"))
    await asyncio.wait_for(counter.opt_outs.wait([noted]), 5)


async def test_a_dispatcher_that_died_is_waited_for_no_longer_than_it_could_send(counter: Counter) -> None:
    """Past the longest time that its hand-over could take, it is over by itself."""
    hand = await Hand.prepared(counter)
    assert await hand.begin(last_s=1.0)
    task = await withdrawing(counter)
    assert await waits(counter, task)
    await asyncio.wait_for(task, 5)


async def test_clocks_that_differ(counter: Counter) -> None:
    """The dispatcher's clock (it stands still, days ago or ahead) says nothing of when its hand-over is over: it is
    waited for, and not for longer than it can take."""
    assert abs(counter.clock.now_ms() - time.time() * 1000) > 60_000
    hand = await Hand.prepared(counter)
    assert await hand.begin(last_s=1.0)
    noted = await counter.opt_outs.note(ANN, "email", NOW + 2_000)
    assert noted.under_way
    task = asyncio.create_task(counter.opt_outs.wait([noted]))
    assert await waits(counter, task)
    async with asyncio.timeout(5):
        while (await counter.opt_outs.note(ANN, "email", NOW + 2_000)).under_way:
            await asyncio.sleep(0.02)
    await asyncio.wait_for(task, 5)


async def test_a_provider_that_hangs(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The withdrawal is acknowledged all the same after a while, and that it had to give up is counted."""
    monkeypatch.setattr(consents, "PATIENCE_S", 0.1)
    given_up = {"result": "given_up"}
    before = REGISTRY.get_sample_value("nearcast_opt_out_waits_total", given_up) or 0.0
    hand = await Hand.prepared(counter)
    assert await hand.begin()
    await asyncio.wait_for(counter.opt_outs.withdraw(ANN, "all", NOW + 2_000), 5)
    assert REGISTRY.get_sample_value("nearcast_opt_out_waits_total", given_up) == before + 1


async def test_nothing_is_left_of_a_hand_over(counter: Counter) -> None:
    """The customer's name goes from the store with it; at the latest after two minutes."""
    hand = await Hand.prepared(counter)
    assert await hand.begin()
    [name] = [key async for key in counter.redis.scan_iter(match="*:handing-over:*")]
    assert 0 < await counter.redis.ttl(name) <= 120
    await hand.end()
    assert [key async for key in counter.redis.scan_iter(match="*:handing-over:*")] == []


async def test_what_withdraws_and_what_hands_over_may_come_in_any_order(counter: Counter) -> None:
    """Of each pair in the same instant one is first: a hand-over that began is over before the acknowledgement."""
    begun, under_way = 0, set[int]()

    async def hand_over(hand: Hand, number: int) -> None:
        nonlocal begun
        await asyncio.sleep((number % 7) * 0.0003)
        if await hand.begin():
            under_way.add(number)
            begun += 1
            await asyncio.sleep(0.002)
            under_way.remove(number)
            await hand.end()

    async def withdraw(number: int) -> None:
        await asyncio.sleep((number % 5) * 0.0003)
        await OptOuts(counter.redis, PARTITIONS).withdraw(ANN, "all", NOW + 2_000)
        assert not under_way

    for number in range(35):
        await counter.redis.delete(keys.opt_outs(counter.state.partition(ANN)))
        hand = await Hand.prepared(counter)
        await counter.redis.delete(keys.delivery(counter.state.partition(ANN), hand.message.id))
        await asyncio.gather(hand_over(hand, number), withdraw(number))
    assert 0 < begun < 35
