"""The outbox on a real Valkey, and dispatchers that crash between a send and its end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from redis.asyncio import Redis

from channels.contract import Channel
from channels.dispatcher import Dispatcher, DispatcherSettings
from channels.mail import MailChannel, MailSettings
from channels.stub import StubChannel
from nearcast import keys
from nearcast.clock import ManualClock, SystemClock
from nearcast.errors import Unavailable
from nearcast.messages import Emitted, OutboxEntry, encode_outbox
from server.outbox import GROUP, ValkeyOutbox
from tests.channels.examples import MemoryDesk, a_message, until
from tests.channels.mail_server import MailServer

Make = Callable[..., ValkeyOutbox]


@pytest.fixture
async def make(redis: Redis) -> AsyncIterator[Make]:
    """Makes outboxes of partitions 0 to 2, and closes them."""
    made: list[ValkeyOutbox] = []

    def outbox(consumer: str = "a", **options: float | ManualClock) -> ValkeyOutbox:
        made.append(ValkeyOutbox(redis, range(3), consumer, **options))  # type: ignore[arg-type]
        return made[-1]

    yield outbox
    for each in made:
        await each.close()


async def _put(redis: Redis, entry: OutboxEntry, partition: int = 0) -> str:
    return (await redis.xadd(keys.outbox(partition), {"e": encode_outbox(entry)})).decode()


async def _ids(outbox: ValkeyOutbox, max_entries: int = 10) -> list[str]:
    return [pending.entry_id for pending in await outbox.read(max_entries, 20)]


async def test_entries_come_once_and_go_when_done(redis: Redis, make: Make) -> None:
    """In order, decoded, each to one dispatcher; after `done` nothing of them is left."""
    entries = [a_message(1), Emitted(topic="t", key="k", value=msgspec.Raw(b'{"a":1}')), a_message(2)]
    expected = [await _put(redis, entry, 1) for entry in entries]
    outbox, other = make("a"), make("b")
    taken = await outbox.read(10, 100)
    assert [pending.entry_id for pending in taken] == expected
    assert [(pending.partition, pending.attempts) for pending in taken] == [(1, 1)] * 3
    assert [encode_outbox(pending.entry) for pending in taken] == [encode_outbox(entry) for entry in entries]
    assert await _ids(other) == []
    await outbox.done(taken)
    await outbox.done(taken)
    assert await redis.xlen(keys.outbox(1)) == 0
    assert (await redis.xpending(keys.outbox(1), GROUP))["pending"] == 0


async def test_reading_takes_no_more_than_asked(redis: Redis, make: Make) -> None:
    """However many streams have entries; and 0 takes none."""
    for number in range(12):
        await _put(redis, a_message(number), number % 3)
    outbox = make()
    assert await _ids(outbox, 0) == []
    reads = [await outbox.read(2, 20) for _ in range(12)]
    assert max(len(read) for read in reads) == 2
    taken = [(pending.partition, pending.entry_id) for read in reads for pending in read]
    assert len(set(taken)) == len(taken) == 12


async def test_a_waiting_read_sees_a_new_entry(redis: Redis, make: Make) -> None:
    """It returns as soon as there is one."""
    outbox = make()
    reading = asyncio.create_task(outbox.read(10, 5_000))

    async def blocked() -> bool:
        return bool((await redis.info("clients"))["blocked_clients"])

    await _until(blocked)
    entry_id = await _put(redis, a_message(), 2)
    async with asyncio.timeout(2):
        assert [pending.entry_id for pending in await reading] == [entry_id]


async def test_a_restart_begins_with_what_was_taken(redis: Redis, make: Make) -> None:
    """The same consumer gets its unfinished entries first, says so, and gets them once."""
    first = [await _put(redis, a_message(n)) for n in range(5)]
    assert await _ids(make("a"), 15) == first
    later = await _put(redis, a_message(9))
    restarted = make("a")
    again = await restarted.read(6, 20)
    assert [pending.entry_id for pending in again] == first[:2]
    assert again[0].attempts == 2
    rest: list[str] = []
    while found := await _ids(restarted):
        rest += found
    assert rest == [*first[2:], later]


async def test_entries_of_a_silent_dispatcher_are_taken_over(redis: Redis, make: Make) -> None:
    """After `idle_ms` of silence; not from one that keeps reading."""
    entry_id = await _put(redis, a_message())
    alive, other = make("alive", upkeep_s=0.0), make("other", idle_ms=300, upkeep_s=0.0)
    assert await _ids(alive) == [entry_id]
    end_s = asyncio.get_running_loop().time() + 0.6
    while asyncio.get_running_loop().time() < end_s:
        assert await alive.read(0, 0) == []
        assert await _ids(other) == []
    taken: list[str] = []

    async def take() -> bool:
        taken.extend(await _ids(other))
        return bool(taken)

    await _until(take)
    assert taken == [entry_id]
    # The silent one wakes up: what it lost it does not take back.
    assert await alive.read(10, 0) == []
    pending = await redis.xpending_range(keys.outbox(0), GROUP, "-", "+", 10)
    assert [row["consumer"] for row in pending] == [b"other"]


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once `condition` holds; fail if it does not in time."""
    async with asyncio.timeout(5):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fields", [{"e": b"{"}, {"e": b'{"type":"message"}'}, {"x": b"1"}, {"e": b"\xff"}])
async def test_what_cannot_be_read_is_a_dead_letter(redis: Redis, make: Make, fields: dict[str, bytes]) -> None:
    """Once, with its reason; and the entries behind it come."""
    bad = await redis.xadd(keys.outbox(0), fields)
    good = await _put(redis, a_message())
    assert await _ids(make()) == [good]
    ((_, letter),) = await redis.xrange(keys.dead_letters(0))
    assert letter[b"reason"] == b"malformed_outbox_entry"
    assert (letter[b"offset"], letter[b"value"]) == (bad, fields.get("e", b""))
    assert await redis.xlen(keys.outbox(0)) == 1
    assert await _ids(make("b")) == []


@pytest.mark.parametrize("upkeep_s", [0.0, 60.0])
@pytest.mark.parametrize("holding", [False, True])
async def test_a_store_that_lost_everything_is_started_afresh(
    redis: Redis, make: Make, upkeep_s: float, holding: bool
) -> None:
    """`Unavailable` once, whichever command finds the group gone first; then it is there again."""
    outbox = make(upkeep_s=upkeep_s)
    if holding:
        await _put(redis, a_message(5))
    assert len(await _ids(outbox)) == holding
    await redis.flushdb()
    entry_id = await _put(redis, a_message())
    with pytest.raises(Unavailable):
        await outbox.read(10, 20)
    assert await _ids(outbox) == [entry_id]


async def test_a_store_that_is_away_is_unavailable() -> None:
    """Never a driver's own error."""
    async with Redis(host="127.0.0.1", port=1, retry=None) as client:  # type: ignore[arg-type]
        with pytest.raises(Unavailable):
            await ValkeyOutbox(client, [0], "a").read(1, 10)


@asynccontextmanager
async def _dispatching(outbox: ValkeyOutbox, desk: MemoryDesk, *channels: Channel) -> AsyncIterator[None]:
    settings = DispatcherSettings(backoff_s=0.01, read_wait_ms=20)
    task = asyncio.create_task(Dispatcher(outbox, desk, channels, SystemClock(), settings).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_crash_during_an_sms_sends_no_other(redis: Redis, make: Make) -> None:
    """Taken, and the dispatcher dead before it knew: its successor asks the same provider under the same key."""
    await _put(redis, a_message())
    desk, sms, push = MemoryDesk("sms"), StubChannel("sms", ["hang"]), StubChannel("websocket")
    async with _dispatching(make("a"), desk, sms):
        await until(lambda: len(sms.held) == 1)
    desk.channels = ("websocket", "sms")
    async with _dispatching(make("a"), desk, sms, push):
        await _until(lambda: _empty(redis))
    assert [call.message.id for call in sms.calls] == [a_message().id] * 2
    assert (len(sms.held), len(push.calls)) == (1, 0)
    assert desk.outcomes() == [("sent", "sms", "")]


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    server = MailServer()
    yield server
    server.stop()


async def test_a_crash_after_a_mail_sends_no_other(redis: Redis, make: Make, mail_server: MailServer) -> None:
    """Sent, and the log away until the dispatcher died: its successor writes the receipt and sends nothing."""
    await _put(redis, a_message())
    desk = MemoryDesk("email")
    desk.away["receipt"] = 1_000_000
    settings = MailSettings(host="127.0.0.1", port=mail_server.port, sender="deals@shop.example")
    email = MailChannel(settings, SystemClock())
    async with _dispatching(make("a"), desk, email):
        await until(lambda: desk.away["receipt"] < 1_000_000)
    assert not await _empty(redis)
    desk.away["receipt"] = 0
    async with _dispatching(make("b", idle_ms=0), desk, email):
        await _until(lambda: _empty(redis))
    assert desk.outcomes() == [("sent", "email", "")]
    assert [mail["Message-ID"] for mail in mail_server.mailbox.mails] == [f"<{a_message().id}@shop.example>"]


async def _empty(redis: Redis) -> bool:
    return bool(await redis.xlen(keys.outbox(0)) == 0)
