"""The dispatcher: what happens to a message, whatever its channels, the log and the store do."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from redis.asyncio import Redis

from channels.breaker import Breaker
from channels.contract import Channel, Outgoing
from channels.dispatcher import Dispatcher, DispatcherSettings
from channels.gateway.streams import ChannelStreams, Listening
from channels.mail import MailChannel, MailSettings
from channels.push import PushChannel, recall
from channels.sms import SmsChannel, SmsSettings
from channels.states import Delivery
from channels.stub import Step, StubChannel
from nearcast.clock import ManualClock, SystemClock
from nearcast.decisions import Reason
from nearcast.errors import DropSend, FallBack, InputError, RetrySend, TooLarge, Unavailable
from nearcast.messages import Emitted, Withdraw, decode_publication
from tests.channels.examples import MemoryDesk, MemoryOutbox, a_message, until
from tests.channels.mail_server import MailServer
from tests.channels.sms_provider import ACCOUNT, TOKEN, SmsProvider

QUICK = DispatcherSettings(backoff_s=0.01, backoff_cap_s=0.05, breaker_open_s=0.05, send_timeout_s=2.0, drain_s=2.0)
RETRY, FALL_BACK = RetrySend("busy"), FallBack("nobody")


@asynccontextmanager
async def running(
    outbox: MemoryOutbox, desk: MemoryDesk, *channels: Channel, settings: DispatcherSettings = QUICK
) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(outbox, desk, channels, SystemClock(), settings)
    task = asyncio.create_task(dispatcher.run())
    try:
        yield dispatcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _deliver(outbox: MemoryOutbox, desk: MemoryDesk, *channels: Channel) -> list[tuple[str, str | None, str]]:
    """Run until everything is done; what the receipts say."""
    entries = len(outbox.waiting)
    async with running(outbox, desk, *channels):
        await until(lambda: len(outbox.finished) == entries)
    return desk.outcomes()


async def test_the_first_allowed_channel_gets_it() -> None:
    """One hand-over, one receipt, and then the entry is done."""
    push, sms, desk = StubChannel("websocket"), StubChannel("sms"), MemoryDesk()
    assert await _deliver(MemoryOutbox(a_message()), desk, push, sms) == [("sent", "websocket", "")]
    assert (len(push.calls), len(sms.calls)) == (1, 0)


async def test_fall_back_takes_the_next_channel() -> None:
    """Every attempt leaves a receipt; that of the failed one says that the message goes on."""
    push, sms, desk = StubChannel("websocket", [FALL_BACK]), StubChannel("sms"), MemoryDesk()
    outcomes = await _deliver(MemoryOutbox(a_message()), desk, push, sms)
    assert outcomes == [("failed", "websocket", "nobody"), ("sent", "sms", "")]
    assert [attempt[1:] for attempt in desk.attempts] == [("failed", "websocket", "nobody")]


async def test_a_passing_fault_is_retried_on_its_channel() -> None:
    """The retry says that it is one, and goes under the same message id."""
    sms, email = StubChannel("sms", ["accept_then_fail", RETRY]), StubChannel("email")
    await _deliver(MemoryOutbox(a_message()), MemoryDesk("sms", "email"), sms, email)
    assert [call.repeated for call in sms.calls] == [False, True, True]
    assert len(sms.held) == 1
    assert email.calls == []


async def test_attempts_per_channel_are_bounded() -> None:
    """A channel that keeps failing is given up for the next one."""
    sms, email = StubChannel("sms", [RETRY] * 100), StubChannel("email")
    outcomes = await _deliver(MemoryOutbox(a_message()), MemoryDesk("sms", "email"), sms, email)
    assert len(sms.calls) == QUICK.attempts_per_channel
    assert outcomes[-1] == ("sent", "email", "")


async def test_the_last_channel_is_tried_until_the_deadline() -> None:
    """With no other channel to go to, a passing fault is waited out, however often it comes; too late is the end."""
    sms = StubChannel("sms", [RETRY] * (3 * QUICK.attempts_per_channel))
    outcomes = await _deliver(MemoryOutbox(a_message()), MemoryDesk("sms"), sms)
    assert len(sms.calls) == 3 * QUICK.attempts_per_channel + 1
    assert outcomes[-1] == ("sent", "sms", "")
    dead = StubChannel("sms", [RETRY] * 1_000)
    outcomes = await _deliver(MemoryOutbox(a_message(deadline_in_s=0.5)), MemoryDesk("sms"), dead)
    assert outcomes[-1] == ("suppressed", None, "too_late")


async def test_a_hanging_channel_leaves_time_for_the_next() -> None:
    """One that hangs gets half of the time to the deadline at most, whatever its own time-out."""
    sms, email = StubChannel("sms", ["hang"] * 9), StubChannel("email")
    outbox, desk = MemoryOutbox(a_message(deadline_in_s=4.0)), MemoryDesk("sms", "email")
    async with running(outbox, desk, sms, email, settings=DispatcherSettings(backoff_s=0.01, send_timeout_s=30.0)):
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes()[-1] == ("sent", "email", "")


async def test_no_channel_left_is_unreachable() -> None:
    """All channels fell back, or none is allowed: suppressed, with its reason."""
    push, sms = StubChannel("websocket", [FALL_BACK]), StubChannel("sms", [FALL_BACK])
    outcomes = await _deliver(MemoryOutbox(a_message()), MemoryDesk(), push, sms)
    assert outcomes[-1] == ("suppressed", None, "unreachable")
    assert await _deliver(MemoryOutbox(a_message()), MemoryDesk("email"), push) == [("suppressed", None, "unreachable")]


async def test_a_drop_ends_it() -> None:
    """No other channel is tried."""
    push, sms = StubChannel("websocket", [DropSend("never")]), StubChannel("sms")
    assert await _deliver(MemoryOutbox(a_message()), MemoryDesk(), push, sms) == [("failed", "websocket", "never")]
    assert sms.calls == []


@pytest.mark.parametrize(("kind", "channel"), [("offer", "customer:anna"), ("assist", "staff:s1")])
async def test_a_message_recalled_before_its_turn(redis: Redis, kind: str, channel: str) -> None:
    """It goes to no device, and nowhere else instead; its receipt says why."""
    streams, sms, message = ChannelStreams(redis, "node", SystemClock()), StubChannel("sms"), a_message(kind=kind)
    await streams.attend([Listening(channel)])
    await recall(streams, channel, message.id)
    outcomes = await _deliver(MemoryOutbox(message), MemoryDesk(), PushChannel(streams), sms)
    assert outcomes == [("suppressed", None, "recalled")]
    assert sms.calls == []
    published, _ = await streams.history(channel, -1, None, reverse=False)
    assert [decode_publication(each.data) for each in published] == [Withdraw(message=message.id, reason="recalled")]


async def test_a_broken_channel_is_not_the_end() -> None:
    """An error that no channel should raise costs its attempts, and the next channel gets the message."""

    class Broken(StubChannel):
        async def send(self, outgoing: object) -> str:
            raise ZeroDivisionError

    sms = StubChannel("sms")
    outcomes = await _deliver(MemoryOutbox(a_message()), MemoryDesk(), Broken("websocket"), sms)
    assert outcomes[-1] == ("sent", "sms", "")


async def test_a_hanging_channel_is_not_the_end() -> None:
    """A hand-over that never returns counts as a passing fault."""
    sms = StubChannel("sms", ["hang"])
    outbox, desk = MemoryOutbox(a_message()), MemoryDesk("sms")
    quick = DispatcherSettings(backoff_s=0.01, send_timeout_s=0.05)
    async with running(outbox, desk, sms, settings=quick):
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes() == [("failed", "sms", "TimeoutError"), ("sent", "sms", "")]


async def test_what_the_recheck_stops_is_not_sent() -> None:
    """The reason stands in the receipt."""
    push, desk = StubChannel("websocket"), MemoryDesk()
    desk.stop = Reason.LEFT
    assert await _deliver(MemoryOutbox(a_message()), desk, push) == [("suppressed", None, "left")]
    assert push.calls == []


async def test_an_opt_out_between_attempts_holds() -> None:
    """Before every attempt the message is checked again: after an opt-out nothing more goes out (I4)."""
    sms, desk = StubChannel("sms", [RETRY] * 100), MemoryDesk("sms")

    def opt_out() -> None:
        if desk.prepared == 2:
            desk.stop = Reason.OPTED_OUT

    desk.on_prepare = opt_out
    outcomes = await _deliver(MemoryOutbox(a_message()), desk, sms)
    assert len(sms.calls) == 1
    assert outcomes == [("failed", "sms", "busy"), ("suppressed", None, "opted_out")]


async def test_past_its_deadline_nothing_is_sent() -> None:
    """A message that comes too late is not even checked."""
    push, desk = StubChannel("websocket"), MemoryDesk()
    assert await _deliver(MemoryOutbox(a_message(deadline_in_s=-1)), desk, push) == [("suppressed", None, "too_late")]
    assert (desk.prepared, push.calls) == (0, [])


async def test_retrying_stops_at_the_deadline() -> None:
    """A channel that stays away until the deadline has passed leaves the message unsent."""
    sms, desk = StubChannel("sms", [RETRY] * 1000), MemoryDesk("sms")
    outbox = MemoryOutbox(a_message(deadline_in_s=0.3))
    async with running(outbox, desk, sms, settings=DispatcherSettings(backoff_s=0.05, attempts_per_channel=1000)):
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes()[-1] == ("suppressed", None, "too_late")
    assert all(call.message.deadline_ms >= call.message.at_ms for call in sms.calls)


async def test_a_message_that_cannot_be_written_fails() -> None:
    """Broken words end the message with their reason; nothing is sent and nothing is tried again."""
    sms, desk = StubChannel("sms"), MemoryDesk("sms")

    def broken_words() -> None:
        raise InputError("broken_template", "'prise' is undefined")

    desk.on_prepare = broken_words
    assert await _deliver(MemoryOutbox(a_message()), desk, sms) == [("failed", None, "broken_template")]
    assert (desk.prepared, sms.calls) == (1, [])


async def test_a_fault_in_the_desk_stops_nobody_else() -> None:
    """A message whose re-check breaks is tried until its deadline; the others go out meanwhile."""
    sms, desk = StubChannel("sms"), MemoryDesk("sms")
    outbox = MemoryOutbox(a_message(1, deadline_in_s=0.2), a_message(2, customer="bert"))

    def broken() -> None:
        if desk.prepared != 2:
            raise ZeroDivisionError

    desk.on_prepare = broken
    await _deliver(outbox, desk, sms)
    assert sorted(desk.outcomes(), key=str) == [("sent", "sms", ""), ("suppressed", None, "too_late")]


async def test_one_customers_messages_keep_their_order() -> None:
    """The second waits for the first; another customer's doesn't."""
    sms = StubChannel("sms", [RETRY, "accept"])
    outbox = MemoryOutbox(a_message(1), a_message(2), a_message(3, customer="bert"))
    await _deliver(outbox, MemoryDesk("sms"), sms)
    assert list(sms.held) == [a_message(3).id, a_message(1).id, a_message(2).id]


async def test_what_is_taken_is_bounded() -> None:
    """With `max_in_flight` entries taken, no more are asked for until some are done."""
    outbox = MemoryOutbox(*(a_message(n, customer=f"c{n % 20}") for n in range(50)))
    sms = StubChannel("sms")
    settings = DispatcherSettings(max_in_flight=7, concurrency=2)
    async with running(outbox, MemoryDesk("sms"), sms, settings=settings) as dispatcher:
        await until(lambda: len(outbox.finished) == 50)
        await until(lambda: dispatcher._taken == dispatcher._waiting == 0)
    assert outbox.largest_read <= 7
    assert len(sms.held) == 50


@pytest.mark.parametrize("step", [RETRY, "hang"], ids=["refuses", "hangs"])
@pytest.mark.parametrize("customers", [60, 5])
async def test_a_dead_channel_holds_up_only_its_own_messages(step: Step, customers: int) -> None:
    """More messages than `max_in_flight` wait for a dead provider; those on a healthy channel go out at once."""
    dead = [a_message(n, customer=f"c{n % customers}", channels=["sms"]) for n in range(60)]
    alive = [a_message(n, customer=f"w{n}", channels=["websocket"]) for n in range(100, 140)]
    outbox = MemoryOutbox(*dead, *alive)
    push, sms = StubChannel("websocket"), StubChannel("sms", [step] * 10_000)
    settings = DispatcherSettings(
        max_in_flight=10, concurrency=4, backoff_s=0.01, attempts_per_channel=10_000, breaker_open_s=0.2
    )
    async with running(outbox, MemoryDesk(), push, sms, settings=settings):
        await until(lambda: len(push.held) == len(alive), within_s=3.0)
    assert outbox.waiting == deque()


async def test_what_waits_is_bounded_too() -> None:
    """With `max_waiting` entries waiting for their channel no more are taken; the rest stays in the outbox."""
    outbox = MemoryOutbox(*(a_message(n, customer=f"c{n}") for n in range(100)))
    settings = DispatcherSettings(max_in_flight=10, max_waiting=30, breaker_failures=1, breaker_open_s=60.0)
    async with running(outbox, MemoryDesk("sms"), StubChannel("sms", [RETRY] * 1000), settings=settings):
        await until(lambda: outbox.reads_without_room > 10)
        assert 30 <= 100 - len(outbox.waiting) <= 40


async def test_messages_that_wait_for_a_breaker_are_not_checked_meanwhile() -> None:
    """A re-check costs the store several round trips; it is made when there is something to send."""
    outbox = MemoryOutbox(*(a_message(n, customer=f"c{n}", channels=["sms"]) for n in range(50)))
    desk, sms = MemoryDesk("sms"), StubChannel("sms", [RETRY] * 1000)
    settings = DispatcherSettings(backoff_s=0.01, breaker_failures=1, breaker_open_s=0.05, attempts_per_channel=1000)
    async with running(outbox, desk, sms, settings=settings):
        await until(lambda: len(sms.calls) >= 10)
    assert desk.prepared - len(sms.calls) <= 50


OTHERS = Delivery(state="sent", channel="websocket", by="another")


@pytest.mark.parametrize("theirs", [OTHERS, Delivery(state="sending", channel="sms", attempts=1, by="another")])
async def test_a_message_that_another_dispatcher_has_is_left_alone(theirs: Delivery) -> None:
    """Taken over between the first look and the hand-over: not sent, no receipt, and not taken out of the outbox."""
    sms, desk, message = StubChannel("sms"), MemoryDesk("sms"), a_message()
    desk.on_prepare = lambda: desk.deliveries.update({message.id: [theirs]})
    outbox = MemoryOutbox(message)
    async with running(outbox, desk, sms):
        await until(lambda: outbox.released == ["1-0"])
    assert (sms.calls, desk.receipts, outbox.finished) == ([], [], [])
    assert desk.deliveries[message.id] == [theirs]


@pytest.mark.parametrize("step", ["accept", RETRY, FALL_BACK, DropSend("never")])
async def test_a_message_taken_over_during_a_hand_over_is_left_to_the_other(step: Step) -> None:
    """However the hand-over ends: what the other dispatcher has saved stands, and there is no second receipt."""
    desk, message = MemoryDesk("sms", "email"), a_message()

    class Slow(StubChannel):
        async def send(self, outgoing: Outgoing) -> str:
            desk.deliveries[message.id].append(OTHERS)
            return await super().send(outgoing)

    outbox, email = MemoryOutbox(message), StubChannel("email")
    async with running(outbox, desk, Slow("sms", [step]), email):
        await until(lambda: outbox.released == ["1-0"])
    assert (desk.receipts, outbox.finished, email.calls) == ([], [], [])
    assert desk.deliveries[message.id][-1] == OTHERS


@pytest.mark.parametrize("taken_over", [False, True])
async def test_after_standing_still_the_message_is_claimed_again(taken_over: bool) -> None:
    """A dispatcher that was stopped between save and hand-over makes sure that the message is still its own."""
    clock, sms, desk, message = ManualClock(), StubChannel("sms"), MemoryDesk("sms"), a_message()
    outbox = MemoryOutbox(message)

    def stand_still(after: Delivery) -> None:
        if after.attempts == 1 and after.state == "sending":
            clock.advance(40_000)

    def take_over() -> None:
        if taken_over and desk.prepared == 2:
            desk.deliveries[message.id].append(OTHERS)

    desk.on_save, desk.on_prepare = stand_still, take_over
    task = asyncio.create_task(Dispatcher(outbox, desk, [sms], clock, QUICK).run())
    await until(lambda: bool(outbox.released or outbox.finished))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(sms.calls) == (not taken_over)
    assert desk.outcomes() == ([] if taken_over else [("sent", "sms", "")])


@pytest.mark.parametrize("instead", ["stopped", "another_channel", "too_late", "nothing"])
async def test_a_save_whose_reply_was_lost_is_no_other_dispatchers(instead: str) -> None:
    """It happened all the same: the message goes on from it, whatever comes in place of that hand-over."""
    clock, desk, message = ManualClock(SystemClock().now_ms()), MemoryDesk("sms", "email"), a_message()
    desk.lost_replies = 1
    sms, email, outbox = StubChannel("sms"), StubChannel("email"), MemoryOutbox(message)

    def meanwhile(after: Delivery) -> None:
        match instead:
            case "stopped":
                desk.stop = Reason.OPTED_OUT
            case "another_channel":
                desk.channels = ("email",)
            case "too_late":
                clock.advance(60_000)

    desk.on_save = meanwhile
    task = asyncio.create_task(Dispatcher(outbox, desk, [sms, email], clock, QUICK).run())
    await until(lambda: bool(outbox.released or outbox.finished))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    expected = {
        "stopped": ("suppressed", None, "opted_out"),
        "another_channel": ("sent", "email", ""),
        "too_late": ("suppressed", None, "too_late"),
        "nothing": ("sent", "sms", ""),
    }
    assert desk.outcomes() == [expected[instead]]
    assert [call.repeated for call in (*sms.calls, *email.calls)] == [False] * (expected[instead][0] == "sent")


async def test_an_event_that_the_log_refuses_is_a_dead_letter() -> None:
    """Once, without trying again; what comes behind it goes on."""
    events = [Emitted(topic="t", key="anna", value=msgspec.Raw(b"{}")) for _ in range(2)]
    outbox, desk = MemoryOutbox(*events), MemoryDesk()
    desk.refusal = TooLarge("too_large", "2 MB is too much for the log")
    await _deliver(outbox, desk)
    assert outbox.buried == [("1-0", "too_large"), ("2-0", "too_large")]


async def test_events_reach_the_log() -> None:
    """An emitted event is appended, however long the log was away."""
    event = Emitted(topic="nearcast.feedback", key="anna", value=msgspec.Raw(b'{"type":"stitch"}'))
    outbox, desk = MemoryOutbox(event), MemoryDesk()
    desk.away["emit"] = 3
    await _deliver(outbox, desk)
    assert desk.emitted == [event]


@pytest.mark.parametrize("method", ["delivery", "prepare", "save_delivery", "announce", "receipt"])
async def test_a_store_that_is_away_is_waited_for(method: str) -> None:
    """Whichever step finds the log or store away: the message is sent once, and its receipt is there."""
    sms, desk = StubChannel("sms"), MemoryDesk("sms")
    desk.away[method] = 4
    outbox = MemoryOutbox(a_message())
    outbox.away = 2
    assert await _deliver(outbox, desk, sms) == [("sent", "sms", "")]
    assert len(sms.calls) == 1


async def test_an_entry_is_done_only_after_its_receipt() -> None:
    """As long as the log is away the entry stays in the outbox."""
    sms, desk, outbox = StubChannel("sms"), MemoryDesk("sms"), MemoryOutbox(a_message())
    desk.away["receipt"] = 1_000_000
    async with running(outbox, desk, sms):
        await until(lambda: desk.away["receipt"] < 1_000_000 - 3)
        assert outbox.finished == []
        desk.away["receipt"] = 0
        await until(lambda: outbox.finished == ["1-0"])
    assert len(sms.calls) == 1


async def test_a_crash_after_the_send_repeats_on_the_same_channel() -> None:
    """The next dispatcher asks the channel that may have it, under the same key, though another is preferred now."""
    desk = MemoryDesk("sms")
    sms = StubChannel("sms", ["hang"])
    async with running(MemoryOutbox(a_message()), desk, sms):
        await until(lambda: len(sms.held) == 1)
    desk.channels = ("websocket", "sms")
    push = StubChannel("websocket")
    assert await _deliver(MemoryOutbox(a_message()), desk, push, sms) == [("sent", "sms", "")]
    assert push.calls == []
    assert [call.repeated for call in sms.calls] == [False, True]
    assert len(sms.held) == 1


async def test_other_systems_hear_of_what_a_channel_took() -> None:
    """Not of the channels that did not; and not before one has it."""
    push, sms, desk = StubChannel("websocket", [FALL_BACK]), StubChannel("sms", [RETRY]), MemoryDesk()
    message = a_message()
    await _deliver(MemoryOutbox(message), desk, push, sms)
    assert len(sms.calls) == 2
    assert desk.announced == [(message.id, "sms")]


@pytest.mark.parametrize("told", [False, True])
async def test_a_crash_around_an_announcement_repeats_it(told: bool) -> None:
    """Whether the dispatcher died before or after it told other systems: the next one hands over and tells again."""
    desk, sms, message = MemoryDesk("sms"), StubChannel("sms"), a_message()

    def refuse(after: Delivery) -> None:
        if after.state == "sent":
            raise Unavailable("away")

    if told:
        desk.on_save = refuse
    else:
        desk.away["announce"] = 1_000_000
    async with running(MemoryOutbox(message), desk, sms):
        await until(lambda: len(sms.calls) == 1 and bool(desk.announced or desk.away.get("announce", 0) < 1_000_000))
    assert desk.announced == [(message.id, "sms")] * told
    assert desk.deliveries[message.id][-1].state == "sending"
    desk.away["announce"], desk.on_save = 0, lambda after: None
    assert await _deliver(MemoryOutbox(message), desk, sms) == [("sent", "sms", "")]
    assert desk.announced == [(message.id, "sms")] * (told + 1)
    assert [call.repeated for call in sms.calls] == [False, True]


async def test_a_crash_on_a_channel_not_allowed_any_more_ends_it() -> None:
    """Whether it went out is not known; another channel could say it twice."""
    desk = MemoryDesk("sms")
    sms = StubChannel("sms", ["hang"])
    async with running(MemoryOutbox(a_message()), desk, sms):
        await until(lambda: len(sms.held) == 1)
    desk.channels = ("email",)
    email = StubChannel("email")
    assert await _deliver(MemoryOutbox(a_message()), desk, sms, email) == [("failed", "sms", "interrupted")]
    assert email.calls == []


async def test_a_crash_before_done_only_repeats_the_receipt() -> None:
    """What is known to be sent is not sent again."""
    desk, sms = MemoryDesk("sms"), StubChannel("sms")
    await _deliver(MemoryOutbox(a_message()), desk, sms)
    await _deliver(MemoryOutbox(a_message()), desk, sms)
    assert desk.outcomes() == [("sent", "sms", "")] * 2
    assert len(sms.calls) == 1


async def test_stopping_lets_hand_overs_finish_and_leaves_the_rest() -> None:
    """After `stop` what was being sent is recorded and done; what waits for a retry stays in the outbox."""
    sms, email = StubChannel("sms", [RETRY] * 1000), StubChannel("email")
    outbox = MemoryOutbox(a_message(1), a_message(2, customer="bert"))
    desk = MemoryDesk("sms")
    settings = DispatcherSettings(backoff_s=60, backoff_cap_s=60, read_wait_ms=10)
    async with running(outbox, desk, sms, email, settings=settings) as dispatcher:
        await until(lambda: len(desk.receipts) == 2)
        await asyncio.wait_for(dispatcher.stop(), 5)
    assert outbox.finished == []
    assert [steps[-1].state for steps in desk.deliveries.values()] == ["sending", "sending"]


async def test_an_open_breaker_sends_messages_to_the_next_channel() -> None:
    """After several faults in a row a channel is left alone, and messages don't wait for it if another will do."""
    sms, email = StubChannel("sms", [RETRY] * 1000), StubChannel("email")
    outbox = MemoryOutbox(*(a_message(n) for n in range(20)))
    settings = DispatcherSettings(backoff_s=0.01, breaker_failures=3, breaker_open_s=30.0, attempts_per_channel=100)
    async with running(outbox, MemoryDesk("sms", "email"), sms, email, settings=settings):
        await until(lambda: len(outbox.finished) == 20)
    assert len(sms.calls) == 3
    assert len(email.held) == 20


async def test_the_only_channel_is_waited_for_when_its_breaker_is_open() -> None:
    """Waiting costs no attempts."""
    sms = StubChannel("sms", [RETRY] * 6)
    outbox = MemoryOutbox(*(a_message(n, customer=f"c{n}") for n in range(3)))
    desk = MemoryDesk("sms")
    await _deliver(outbox, desk, sms)
    assert len(sms.held) == 3


def test_a_breaker_closes_by_itself_and_opens_at_the_next_fault() -> None:
    """One attempt finds out whether the channel is back, the others wait for what comes of it."""
    clock = ManualClock()
    breaker = Breaker(clock, 2, 5.0)
    breaker.failed()
    assert breaker.wait_s == 0
    breaker.failed()
    assert breaker.wait_s == 5
    clock.advance(5_000)
    assert breaker.wait_s == 0
    breaker.begin()
    assert breaker.wait_s == 5
    clock.advance(4_000)
    breaker.failed()
    assert breaker.wait_s == 5
    breaker.worked()
    assert breaker.wait_s == 0
    breaker.begin()
    assert breaker.wait_s == 0


@pytest.fixture
def provider() -> Iterator[SmsProvider]:
    provider = SmsProvider()
    yield provider
    provider.close()


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    server = MailServer()
    yield server
    server.stop()


async def test_a_provider_that_times_out_holds_one_message(provider: SmsProvider) -> None:
    """Taken, then a time-out, then a 429: two retries under one key, one message at the provider (I10)."""
    provider.steps.extend(["take_and_hang", (429, 20429)])
    settings = SmsSettings(
        account_sid=ACCOUNT, auth_token=TOKEN, sender="+15550199", base_url=provider.url, read_timeout_s=0.2
    )
    sms, desk = SmsChannel(settings), MemoryDesk("sms")
    outcomes = await _deliver(MemoryOutbox(a_message()), desk, sms)
    await sms.close()
    assert outcomes[-1] == ("sent", "sms", "")
    assert provider.keys == [a_message().id] * 3
    assert list(provider.held) == [a_message().id]


async def test_a_mail_server_that_comes_back_gets_the_mail(mail_server: MailServer) -> None:
    """Closed, then back before the deadline: delivered, once."""
    mail_server.stop()
    settings = MailSettings(host="127.0.0.1", port=mail_server.port, sender="deals@shop.example")
    email, desk, outbox = MailChannel(settings, SystemClock()), MemoryDesk("email"), MemoryOutbox(a_message())
    patient = DispatcherSettings(backoff_s=0.05, backoff_cap_s=0.1, attempts_per_channel=1000, breaker_open_s=0.1)
    async with running(outbox, desk, email, settings=patient):
        await until(lambda: len(desk.receipts) >= 2)
        mail_server.start()
        await until(lambda: len(outbox.finished) == 1)
    assert desk.outcomes()[-1] == ("sent", "email", "")
    assert [mail["Message-ID"] for mail in mail_server.mailbox.mails] == [f"<{a_message().id}@shop.example>"]
