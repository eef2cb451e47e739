"""Ack or fall back: a push that nobody acknowledges is followed by the next channel, and by no more than that."""

import asyncio

import pytest

from channels.dispatcher import DispatcherSettings
from channels.states import Delivery
from channels.stub import StubChannel
from nearcast import events
from nearcast.decisions import Reason
from nearcast.errors import FallBack, RetrySend
from nearcast.messages import Message, Recall
from tests.channels.examples import MemoryDesk, MemoryOutbox, a_message, until
from tests.channels.test_dispatcher import running

QUICK = DispatcherSettings(backoff_s=0.01, backoff_cap_s=0.05, breaker_open_s=0.05, look_s=0.01, drain_s=2.0)
UNACKNOWLEDGED = ("failed", "websocket", "unacknowledged")


def a_push(number: int = 1, *, customer: str = "anna", patience_ms: int = 150, deadline_in_s: float = 30.0) -> Message:
    message = a_message(number, customer=customer, deadline_in_s=deadline_in_s)
    message.fall_back_ms = message.at_ms + patience_ms
    return message


def recall_of(message: Message, reason: str = "left") -> Recall:
    return Recall(message=message.id, decision=message.decision, customer=message.customer, kind="offer", reason=reason)


class Recallable(MemoryDesk):
    """Whose recall does to deliveries what the server's does."""

    async def recall(self, entry: Recall) -> None:
        await super().recall(entry)
        saved = self.deliveries.setdefault(entry.message, [])
        saved.append((saved or [Delivery()])[-1].recalled(entry.reason))


async def test_nobody_acknowledges() -> None:
    """The re-check again, then the next channel; the receipts say what happened, and which of them is the end."""
    push, sms, desk, message = StubChannel("websocket"), StubChannel("sms"), MemoryDesk(), a_push()
    outbox = MemoryOutbox(message)
    async with running(outbox, desk, push, sms, settings=QUICK):
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes() == [("sent", "websocket", ""), UNACKNOWLEDGED, ("sent", "sms", "")]
    assert [attempt[1:] for attempt in desk.attempts] == desk.outcomes()[:2]
    assert (len(push.calls), len(sms.calls), desk.prepared) == (1, 1, 2)
    assert [each.state for each in desk.deliveries[message.id]] == [
        "sending",
        "awaiting",
        "pending",
        "sending",
        "sent",
    ]


async def test_somebody_acknowledges() -> None:
    """Long before it is due: sent, and nothing follows."""
    push, sms, desk, message = StubChannel("websocket"), StubChannel("sms"), MemoryDesk(), a_push(patience_ms=20_000)
    outbox = MemoryOutbox(message)
    async with running(outbox, desk, push, sms, settings=QUICK):
        await until(lambda: desk.attempts != [] and desk.asked > 2)
        assert outbox.finished == []
        desk.acks.add(message.id)
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes() == [("sent", "websocket", "")] * 2
    assert sms.calls == []


@pytest.mark.parametrize("kind", ["no_fall_back", "no_other_channel", "beyond_the_deadline", "given_up"])
async def test_nothing_to_wait_for(kind: str) -> None:
    """No patience asked for, no other channel left, or no time for it: published is sent, as ever."""
    push, sms, message = StubChannel("websocket"), StubChannel("sms"), a_push(patience_ms=20_000, deadline_in_s=30.0)
    desk = MemoryDesk("websocket") if kind == "no_other_channel" else MemoryDesk()
    if kind == "no_fall_back":
        message.fall_back_ms = 0
    if kind == "beyond_the_deadline":
        message.deadline_ms = message.fall_back_ms
    if kind == "given_up":
        given_up: tuple[events.Channel, ...] = ("sms", "email")
        desk.deliveries[message.id] = [Delivery(given_up=given_up)]
    outbox = MemoryOutbox(message)
    async with running(outbox, desk, push, sms, settings=QUICK):
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes() == [("sent", "websocket", "")]
    assert desk.attempts == []


async def test_others_do_not_wait_behind_it() -> None:
    """What follows for the same customer goes out while the first message waits to be acknowledged."""
    push, sms, desk = StubChannel("websocket"), StubChannel("sms"), MemoryDesk()
    first, second = a_push(1, patience_ms=20_000), a_message(2)
    outbox = MemoryOutbox(first, second)
    async with running(outbox, desk, push, sms, settings=QUICK):
        await until(lambda: outbox.finished == ["2-0"])
    assert len(push.held) == 2


async def test_the_re_check_ends_it() -> None:
    """They left meanwhile: the push is out, and that is the end; no SMS, and it isn't said to be unsent."""
    push, sms, desk = StubChannel("websocket"), StubChannel("sms"), MemoryDesk()
    desk.on_prepare = lambda: setattr(desk, "stop", Reason.LEFT if desk.prepared > 1 else None)
    outbox = MemoryOutbox(a_push())
    async with running(outbox, desk, push, sms, settings=QUICK):
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes()[1:] == [UNACKNOWLEDGED, ("sent", "websocket", "left")]
    assert (sms.calls, desk.unsent) == ([], [])


async def test_no_channel_would_have_it_after_all() -> None:
    """The number is bad: what the devices have is sent, not suppressed."""
    bad = FallBack("bad number")
    push, sms, email = StubChannel("websocket"), StubChannel("sms", [bad]), StubChannel("email", [bad])
    desk, outbox = MemoryDesk(), MemoryOutbox(a_push())
    async with running(outbox, desk, push, sms, email, settings=QUICK):
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes()[-1] == ("sent", "websocket", "unreachable")


async def test_acknowledged_before_the_sms_has_left() -> None:
    """It was due, but the provider was busy: then a phone lights up after all, and no SMS is sent."""
    push, sms, desk = StubChannel("websocket"), StubChannel("sms", [RetrySend("busy")] * 10_000), MemoryDesk()
    message = a_push()
    outbox = MemoryOutbox(message)
    patient = DispatcherSettings(backoff_s=0.01, look_s=0.01, attempts_per_channel=10_000, breaker_open_s=0.02)
    async with running(outbox, desk, push, sms, settings=patient):
        await until(lambda: len(sms.calls) > 3)
        desk.acks.add(message.id)
        await until(lambda: len(outbox.finished) == 1)
    assert sms.held == {}
    assert desk.outcomes()[-1] == ("sent", "websocket", "")


@pytest.mark.parametrize("crashes", [1, 3])
async def test_a_dispatcher_that_dies_while_it_waits(crashes: int) -> None:
    """The next one waits on, and falls back once."""
    push, sms, desk, message = StubChannel("websocket"), StubChannel("sms"), MemoryDesk(), a_push(patience_ms=400)
    for _ in range(crashes):
        async with running(MemoryOutbox(message), desk, push, sms, settings=QUICK) as dispatcher:
            await until(lambda: len(dispatcher._awaiting) == 1)
    outbox = MemoryOutbox(message)
    async with running(outbox, desk, push, sms, settings=QUICK):
        await until(lambda: len(outbox.finished) == 1)
    assert (len(push.calls), len(sms.calls)) == (1, 1)
    assert desk.outcomes().count(UNACKNOWLEDGED) == 1


async def test_two_dispatchers_wait_for_the_same() -> None:
    """One of them was taken for dead: they fall back once between them, and one says so."""
    push, sms, desk, message = StubChannel("websocket"), StubChannel("sms"), MemoryDesk(), a_push(patience_ms=300)
    one, other = MemoryOutbox(message), MemoryOutbox(message)
    async with running(one, desk, push, sms, settings=QUICK) as first:
        await until(lambda: len(first._awaiting) == 1)
        async with running(other, desk, push, sms, settings=QUICK):
            await until(lambda: len(one.finished + one.released) == len(other.finished + other.released) == 1)
    assert (len(push.calls), len(sms.calls)) == (1, 1)
    assert desk.outcomes().count(UNACKNOWLEDGED) == 1


async def test_a_recall_while_it_waits() -> None:
    """It ends at once, as recalled; no SMS follows."""
    push, sms, desk, message = StubChannel("websocket"), StubChannel("sms"), Recallable(), a_push(patience_ms=20_000)
    outbox = MemoryOutbox(message, recall_of(message))
    async with running(outbox, desk, push, sms, settings=QUICK):
        await until(lambda: len(outbox.finished) == 2)
    assert desk.outcomes()[-1] in [("recalled", "websocket", "left"), ("suppressed", None, "left")]
    assert sms.calls == []


async def test_a_recall_does_not_wait_for_what_it_recalls() -> None:
    """The only channel is away until the deadline: the recall overtakes the message, which then goes nowhere."""
    sms, desk = StubChannel("sms", [RetrySend("away")] * 10_000), Recallable("sms")
    message = a_message()
    outbox = MemoryOutbox(message)
    patient = DispatcherSettings(backoff_s=0.01, backoff_cap_s=0.02, attempts_per_channel=10_000, breaker_open_s=0.02)
    async with running(outbox, desk, sms, settings=patient):
        await until(lambda: len(sms.calls) > 1)
        outbox.waiting.extend(MemoryOutbox(message, recall_of(message)).waiting)
        outbox.waiting.popleft()
        await until(lambda: sorted(outbox.finished) == ["1-0", "2-0"])
    assert desk.outcomes()[-1] == ("recalled", "sms", "left")
    assert sms.held == {}


async def test_a_recall_before_it_was_begun() -> None:
    """Nothing of it has left the house, and its receipt says so: it counts for no budget."""
    push, desk, message = StubChannel("websocket"), Recallable(), a_push()
    await desk.recall(recall_of(message))
    outbox = MemoryOutbox(message)
    async with running(outbox, desk, push, settings=QUICK):
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes() == [("suppressed", None, "left")]
    assert (desk.unsent, push.calls) == ([message.id], [])


async def test_a_recall_during_a_hand_over() -> None:
    """The SMS is out: both receipts are there, in this order."""
    desk, message = Recallable("sms"), a_message()

    class Slow(StubChannel):
        async def send(self, outgoing: object) -> str:
            await desk.recall(recall_of(message))
            return ""

    outbox = MemoryOutbox(message)
    async with running(outbox, desk, Slow("sms"), settings=QUICK):
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes() == [("sent", "sms", ""), ("recalled", "sms", "left")]


async def test_what_waits_for_acknowledgements_is_bounded() -> None:
    """With `max_awaiting` messages put aside no more are taken, until some are acknowledged."""
    messages = [a_push(n, customer=f"c{n}", patience_ms=20_000) for n in range(60)]
    outbox, desk, push, sms = MemoryOutbox(*messages), MemoryDesk(), StubChannel("websocket"), StubChannel("sms")
    settings = DispatcherSettings(max_in_flight=5, max_awaiting=20, look_s=0.01, looked_at=7)
    async with running(outbox, desk, push, sms, settings=settings):
        await until(lambda: outbox.reads_without_room > 10)
        assert 20 <= len(push.calls) <= 25
        desk.acks.update(message.id for message in messages)
        await until(lambda: len(outbox.finished) == 60)
    assert sms.calls == []


async def test_stopping_leaves_it_to_the_next_one() -> None:
    """What waits for an acknowledgement holds up no shutdown, and stays in the outbox."""
    outbox, desk = MemoryOutbox(a_push(patience_ms=20_000)), MemoryDesk()
    async with running(outbox, desk, StubChannel("websocket"), StubChannel("sms"), settings=QUICK) as dispatcher:
        await until(lambda: len(dispatcher._awaiting) == 1)
        await asyncio.wait_for(dispatcher.stop(), 2)
    assert outbox.finished == outbox.released == []


@pytest.mark.parametrize(
    ("script", "unsent"),
    [([FallBack("no")], True), ([RetrySend("?"), FallBack("no")], False)],
    ids=["sure", "doubtful"],
)
async def test_what_was_never_sent(script: list[FallBack | RetrySend], unsent: bool) -> None:
    """Refused for certain: nothing has left the house. After a time-out nobody can say that."""
    desk, outbox = MemoryDesk("sms"), MemoryOutbox(a_message())
    async with running(outbox, desk, StubChannel("sms", script), settings=QUICK):
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes()[-1] == ("suppressed", None, "unreachable")
    assert bool(desk.unsent) == unsent


async def test_a_withdrawal_between_check_and_hand_over() -> None:
    """The hand-over does not begin; the message is checked anew, and what that says holds."""
    desk, sms, outbox = MemoryDesk("sms"), StubChannel("sms"), MemoryOutbox(a_message())
    desk.withdrawn = 1
    desk.on_prepare = lambda: setattr(desk, "stop", Reason.OPTED_OUT if desk.prepared > 1 else None)
    async with running(outbox, desk, sms, settings=QUICK):
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes() == [("suppressed", None, "opted_out")]
    assert sms.calls == []
