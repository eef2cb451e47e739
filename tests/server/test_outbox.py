"""The outbox on a real Valkey, and dispatchers that crash between a send and its end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from redis.asyncio import Redis

from channels.contract import Channel, Prepared
from channels.dispatcher import Dispatcher, DispatcherSettings
from channels.gateway.streams import ChannelStreams
from channels.mail import MailChannel, MailSettings
from channels.states import Delivery
from channels.stub import StubChannel
from nearcast import keys
from nearcast.clock import ManualClock, SystemClock
from nearcast.decisions import Reason
from nearcast.errors import Fenced, TooLarge, Unavailable
from nearcast.messages import Emitted, Message, OutboxEntry, encode_outbox
from offers.policy import Policy
from server.api.links import LinkSigner
from server.consents import OptOuts
from server.coupons import CouponBook
from server.deliveries import DeliveryDesk
from server.intake import Intake
from server.log.streams import StreamsLog
from server.outbox import GROUP, ValkeyOutbox
from server.recalls import Recaller
from server.state import StateStore
from server.world import WorldStore
from tests.channels.examples import MemoryDesk, a_message, until
from tests.channels.mail_server import MailServer

Make = Callable[..., ValkeyOutbox]
#: The partition, of 3, of the customer of `a_message`.
HOME = 1


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
    assert [pending.partition for pending in taken] == [1] * 3
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
    """The same consumer gets its unfinished entries first, and gets them once."""
    first = [await _put(redis, a_message(n)) for n in range(5)]
    assert await _ids(make("a"), 15) == first
    later = await _put(redis, a_message(9))
    restarted = make("a")
    again = await restarted.read(6, 20)
    assert [pending.entry_id for pending in again] == first[:2]
    rest: list[str] = []
    while found := await _ids(restarted):
        rest += found
    assert rest == [*first[2:], later]


async def test_entries_of_a_silent_dispatcher_are_taken_over(
    redis: Redis, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `idle_ms` of silence; not from one that keeps reading."""
    monkeypatch.setattr("server.outbox._KEEP_AT_ONCE", 2)
    entries = [await _put(redis, a_message(n)) for n in range(5)]
    alive, other = make("alive", upkeep_s=0.0), make("other", idle_ms=300, upkeep_s=0.0)
    assert await _ids(alive, 15) == entries
    end_s = asyncio.get_running_loop().time() + 0.6
    while asyncio.get_running_loop().time() < end_s:
        assert await alive.read(0, 0) == []
        assert await _ids(other) == []
    taken: list[str] = []

    async def take() -> bool:
        taken.extend(await _ids(other))
        return len(taken) >= len(entries)

    await _until(take)
    assert taken == entries
    # The silent one wakes up: what it lost it does not take back.
    assert await alive.read(10, 0) == []
    pending = await redis.xpending_range(keys.outbox(0), GROUP, "-", "+", 10)
    assert [row["consumer"] for row in pending] == [b"other"] * len(entries)


async def test_what_is_kept_goes_idle_in_order(redis: Redis, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long keeping takes, and should the dispatcher end in the middle of it: no entry is taken over before an
    older one."""
    monkeypatch.setattr("server.outbox._KEEP_AT_ONCE", 2)
    entries = [await _put(redis, a_message(n)) for n in range(5)]
    outbox = make("alive", upkeep_s=0.0)
    assert await _ids(outbox, 15) == entries
    evaluate, left = redis.eval, 3

    async def slowly(*arguments: object) -> object:
        nonlocal left
        if not left:
            raise ConnectionError("the end")
        left -= 1
        answer = await evaluate(*arguments)
        begin = await redis.time()

        async def later() -> bool:
            return bool(await redis.time() > (begin[0], begin[1] + 2_000))

        await _until(later)
        return answer

    async def idle_ms() -> list[int]:
        rows = await redis.xpending_range(keys.outbox(0), GROUP, "-", "+", 10)
        assert [row["message_id"].decode() for row in rows] == entries
        return [row["time_since_delivered"] for row in rows]

    monkeypatch.setattr(redis, "eval", slowly)
    await outbox.read(0, 0)
    assert len(set(await idle_ms())) == 1
    left = 1
    with pytest.raises(Unavailable):
        await outbox.read(0, 0)
    found = await idle_ms()
    assert found[0] == found[2] > found[3] == found[4]


async def test_names_of_long_ago_are_forgotten(redis: Redis, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start removes those under which nobody has asked for a day; not one that still holds an entry."""

    async def names() -> set[bytes]:
        return {row["name"] for row in await redis.xinfo_consumers(keys.outbox(0), GROUP)}

    entry_id = await _put(redis, a_message())
    assert await _ids(make("holding")) == [entry_id]
    for name in ("old", "older"):
        assert await _ids(make(name)) == []
    assert await names() == {b"holding", b"old", b"older"}
    monkeypatch.setattr("server.outbox._FORGET_AFTER_MS", -1)
    await make("new").read(1, 20)
    assert await names() == {b"holding", b"new"}


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
    assert (letter[b"position"], letter[b"value"]) == (bad, fields.get("e", b""))
    assert await redis.xlen(keys.outbox(0)) == 1
    assert await _ids(make("b")) == []


async def test_what_nobody_accepts_is_a_dead_letter(redis: Redis, make: Make) -> None:
    """With all that is needed to look into it; once, though it is buried again after a lost reply."""
    entry = Emitted(topic="t", key="anna", value=msgspec.Raw(b'{"a":1}'))
    entry_id = await _put(redis, entry, 1)
    outbox = make()
    (pending,) = await outbox.read(10, 20)
    for _ in range(2):
        await outbox.bury(pending, TooLarge("too_large", "too much for the log"))
        await outbox.done([pending])
    ((_, letter),) = await redis.xrange(keys.dead_letters(1))
    assert letter == {
        b"reason": b"too_large",
        b"detail": b"too much for the log",
        b"topic": b"outbox",
        b"position": entry_id.encode(),
        b"key": b"anna",
        b"value": encode_outbox(entry),
        b"arrived_ms": entry_id.partition("-")[0].encode(),
    }
    assert await redis.xlen(keys.outbox(1)) == 0
    assert (await redis.xpending(keys.outbox(1), GROUP))["pending"] == 0


async def test_no_dead_letter_is_pushed_out(redis: Redis, make: Make) -> None:
    """However many there are, each is kept until somebody has looked at it."""
    for _ in range(500):
        await redis.xadd(keys.outbox(0), {"e": "{"})
    assert await _ids(make(), 1_500) == []
    assert await redis.xlen(keys.dead_letters(0)) == 500


async def test_what_was_let_go_of_comes_back(redis: Redis, make: Make) -> None:
    """An entry that no dispatcher works on any more is taken again, also by the one that let go of it."""
    entry_id = await _put(redis, a_message())
    outbox = make(idle_ms=50, upkeep_s=0.0)
    (pending,) = await outbox.read(10, 20)
    outbox.release(pending)
    found: list[str] = []

    async def again() -> bool:
        found.extend(await _ids(outbox))
        return bool(found)

    await _until(again)
    assert found == [entry_id]


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
        # Again and again: redis-py can swallow a cancellation that meets a reply.
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)
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


async def _empty(redis: Redis, partition: int = 0) -> bool:
    return bool(await redis.xlen(keys.outbox(partition)) == 0)


class _StoredDesk(MemoryDesk):
    """Its deliveries are the real desk's, in the store. With a `gate`, `prepare` stands still until it is opened."""

    def __init__(self, stored: DeliveryDesk, gate: asyncio.Event | None = None) -> None:
        super().__init__("sms")
        self._stored = stored
        self._gate = gate
        self.delivery = stored.delivery  # type: ignore[method-assign]
        self.save_delivery = stored.save_delivery  # type: ignore[method-assign]

    async def prepare(self, message: Message) -> Prepared | Reason:
        prepared = await super().prepare(message)
        if self._gate is not None:
            await self._gate.wait()
        return prepared


@pytest.fixture
def stored(redis: Redis, valkey_url: str) -> DeliveryDesk:
    """The real desk; its log is not started."""
    clock, log = SystemClock(), StreamsLog(valkey_url, 3)
    state, coupons, intake = StateStore(redis, 3), CouponBook(redis, b"secret", clock), Intake(log, clock)
    return DeliveryDesk(
        redis=redis,
        state=state,
        world=WorldStore(redis),
        opt_outs=OptOuts(redis, 3),
        coupons=coupons,
        recaller=Recaller(redis, state, coupons, ChannelStreams(redis, "desk", clock), intake),
        log=log,
        intake=intake,
        links=LinkSigner(b"s" * 32),
        policy=Policy(),
        public_url="https://shop.example",
        clock=clock,
    )


async def test_a_dispatcher_that_stood_still_sends_nothing_again(
    redis: Redis, make: Make, stored: DeliveryDesk
) -> None:
    """It looked at the message and stopped; another one took it over and sent it; then it goes on (I7)."""
    await _put(redis, a_message(), HOME)
    gate, sms = asyncio.Event(), StubChannel("sms")
    slow, quick = _StoredDesk(stored, gate), _StoredDesk(stored)
    # Its reader keeps still, too: what it has taken is not kept from others.
    async with _dispatching(make("slow", upkeep_s=60.0), slow, sms):
        await until(lambda: slow.prepared == 1)
        async with _dispatching(make("quick", idle_ms=0), quick, sms):
            await _until(lambda: _empty(redis, HOME))
        gate.set()
        await until(lambda: slow.prepared == 1 and not _at_work())
    assert len(sms.calls) == 1
    assert (quick.outcomes(), slow.outcomes()) == ([("sent", "sms", "")], [])
    assert (await stored.delivery(a_message())).state == "sent"


def _at_work() -> bool:
    return any(task.get_name().startswith("dispatcher lane") for task in asyncio.all_tasks())


async def test_a_delivery_is_saved_only_where_it_was_left(redis: Redis, stored: DeliveryDesk) -> None:
    """What is stored must be what the saver goes on from; a repeated save changes nothing, and an end stays an end."""
    message = a_message()
    first = Delivery(state="sending", channel="sms", attempts=1, by="a")
    theirs = Delivery(state="sending", channel="sms", attempts=1, by="b")
    sent = Delivery(state="sent", channel="sms", by="a")
    entry_id = await _put(redis, message, HOME)
    await stored.save_delivery(message, entry_id, Delivery(), first)
    await stored.save_delivery(message, entry_id, Delivery(), first)
    for before, after in [(Delivery(), theirs), (theirs, sent)]:
        with pytest.raises(Fenced):
            await stored.save_delivery(message, entry_id, before, after)
    assert await stored.delivery(message) == first
    await stored.save_delivery(message, entry_id, first, sent)
    for before in (Delivery(), first, theirs):
        with pytest.raises(Fenced):
            await stored.save_delivery(message, entry_id, before, theirs)
    assert await stored.delivery(message) == sent


async def test_nothing_is_saved_of_an_entry_that_the_store_has_lost(
    redis: Redis, make: Make, stored: DeliveryDesk
) -> None:
    """Taken, and then gone with its commit: the message is let go of. The one that the log brings back is sent."""
    lost = await _put(redis, a_message(), HOME)
    gate, sms, outbox = asyncio.Event(), StubChannel("sms"), make()
    desk = _StoredDesk(stored, gate)
    # As of a customer of whom nothing is known any more.
    desk.stop = Reason.ERASED
    async with _dispatching(outbox, desk, sms):
        await until(lambda: desk.prepared == 1)
        await redis.xdel(keys.outbox(HOME), lost)
        gate.set()
        await until(lambda: not _at_work())
        assert await stored.delivery(a_message()) == Delivery()
        desk.stop = None
        await _put(redis, a_message(), HOME)
        await _until(lambda: _empty(redis, HOME))
    assert desk.outcomes() == [("sent", "sms", "")]
    assert len(sms.calls) == 1


@pytest.mark.parametrize("damaged", [b"{", b'{"state":"lost"}', b"\xff"])
async def test_a_delivery_that_cannot_be_read_is_a_dead_letter(
    redis: Redis, make: Make, stored: DeliveryDesk, damaged: bytes
) -> None:
    """Whether the message went out is not known, so it is not sent; the customer's next one is, at once."""
    await redis.set(keys.delivery(HOME, a_message(1).id), damaged)
    for number in (1, 2):
        await _put(redis, a_message(number), HOME)
    desk, sms = _StoredDesk(stored), StubChannel("sms")
    async with _dispatching(make(), desk, sms):
        await _until(lambda: _empty(redis, HOME))
    assert [call.message.id for call in sms.calls] == [a_message(2).id]
    ((_, letter),) = await redis.xrange(keys.dead_letters(HOME))
    assert letter[b"reason"] == b"unreadable_delivery"
