"""The topic `customers.promotions`, on a real store: what other systems are told of what is sent and taken back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from channels.contract import Outgoing, Prepared
from channels.gateway.streams import Listening
from channels.push import PushChannel, customer_channel
from channels.states import Delivery
from channels.stub import StubChannel
from nearcast import keys
from nearcast.ids import StoreId, partition_of
from nearcast.messages import Message
from tests.server.counter import ANN, Counter, open_counter
from tests.server.rig import PARTITIONS
from tests.server.test_recalls import dispatching, empty, entry_of, on_devices, reaches

Records = list[tuple[bytes, dict[str, Any]]]


@pytest.fixture
async def counter(redis: Redis, valkey_url: str) -> AsyncIterator[Counter]:
    async with open_counter(redis, valkey_url, announcing=True) as made:
        yield made


async def told(redis: Redis) -> Records:
    """Keys and values of the topic; all of them in the partition of their key."""
    found: Records = []
    for partition in range(PARTITIONS):
        for _, fields in await redis.xrange(keys.log_stream("customers.promotions", partition)):
            assert partition_of(fields[b"k"].decode(), PARTITIONS) == partition
            found.append((fields[b"k"], msgspec.json.decode(fields[b"v"])))
    return found


async def pushed(counter: Counter) -> Message:
    message = await counter.message()
    await counter.streams.attend([Listening(customer_channel(ANN))])
    async with dispatching(counter, PushChannel(counter.streams)):
        await reaches(counter, message, "sent")
        await empty(counter)
    return message


async def test_what_a_device_got(counter: Counter) -> None:
    """The same fields, and whose it is and by which channel; no name, number or address beyond what the text says."""
    await pushed(counter)
    [(key, record)] = await told(counter.redis)
    [push] = await on_devices(counter)
    assert key == b"ann"
    assert record == {**msgspec.to_builtins(push), "customer": "ann", "channel": "websocket"}
    for private in ("Ann", "+43660555000", "ann@example.com", "https://"):
        assert private not in str(record)


async def test_what_is_taken_back(counter: Counter) -> None:
    """Recalled after it was sent: one more record, that withdraws the message. Said again, it is the same record."""
    message = await pushed(counter)
    withdrawn = {"kind": "withdraw", "message": message.id, "reason": "recalled", "customer": "ann"}
    assert await counter.recaller.recall(entry_of(message)) == "recalled"
    assert [record for _, record in await told(counter.redis)][1:] == [withdrawn]
    await counter.recaller.recall(entry_of(message))
    assert [record for _, record in await told(counter.redis)][1:] == [withdrawn] * 2


async def test_a_crash_between_hand_over_and_save(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dispatcher dies before it is saved that the message was handed over: the next one repeats both, under the
    same message id."""
    message, sms, reached = await counter.message(), StubChannel("sms"), asyncio.Event()
    save = counter.desk.save_delivery

    async def hang(message: Message, entry_id: str, before: Delivery, after: Delivery) -> None:
        if after.state == "sent":
            reached.set()
            await asyncio.Event().wait()
        await save(message, entry_id, before, after)

    with monkeypatch.context() as patch:
        patch.setattr(counter.desk, "save_delivery", hang)
        async with dispatching(counter, sms, node="dead"):
            await asyncio.wait_for(reached.wait(), 10)
    async with dispatching(counter, sms, node="next"):
        await empty(counter)
    assert [(record["message"], record["channel"]) for _, record in await told(counter.redis)] == [
        (message.id, "sms")
    ] * 2
    assert [call.repeated for call in sms.calls] == [False, True]
    assert len(sms.held) == 1


async def test_taken_back_while_it_was_handed_over(counter: Counter) -> None:
    """The recall is told before the hand-over is: it is told once more, so that the last word is that it is gone."""
    message = await counter.message()

    class Meanwhile(StubChannel):
        async def send(self, outgoing: Outgoing) -> str:
            await counter.recaller.recall(entry_of(message))
            return await super().send(outgoing)

    async with dispatching(counter, Meanwhile("sms")):
        await empty(counter)
    assert [record["kind"] for _, record in await told(counter.redis)] == ["withdraw", "offer", "withdraw"]


async def test_stopped_before_it_was_sent(counter: Counter) -> None:
    """Nobody had it, so nobody is told anything."""
    message = await counter.message()
    assert await counter.recaller.recall(entry_of(message)) == "stopped"
    async with dispatching(counter, StubChannel("sms")):
        await empty(counter)
    assert await told(counter.redis) == []


async def test_alerts_to_staff_stay_inside(counter: Counter) -> None:
    """They are not told of, neither when they go out nor when they are recalled."""
    message = await counter.message()
    prepared = await counter.desk.prepare(message)
    assert isinstance(prepared, Prepared)
    alert = msgspec.structs.replace(message, kind="assist")
    push = msgspec.structs.replace(prepared.outgoing.push, kind="assist")
    await counter.desk.announce(Outgoing(message=alert, push=push, link=""), "websocket")
    await counter.desk.announce_recall(alert)
    await pushed(counter)
    entry = msgspec.structs.replace(entry_of(message), kind="assist", store=StoreId("graben"))
    assert await counter.recaller.recall(entry) == "recalled"
    assert [record["kind"] for _, record in await told(counter.redis)] == ["offer"]


async def test_off(redis: Redis, valkey_url: str) -> None:
    """Nothing is told, and there is no stream."""
    async with open_counter(redis, valkey_url) as counter:
        message = await pushed(counter)
        assert await counter.recaller.recall(entry_of(message)) == "recalled"
    assert [key async for key in redis.scan_iter(match="*customers.promotions*")] == []
