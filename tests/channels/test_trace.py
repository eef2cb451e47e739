"""The way of a message: stages in order, clocks that disagree, and what is measured once."""

import re
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, generate_latest

from channels.dispatcher import DispatcherSettings
from channels.stub import StubChannel
from channels.trace import ARRIVED, REMEMBERED, STAGES, Mark, Shown, marks, note_of
from nearcast.clock import ManualClock
from nearcast.errors import RetrySend
from nearcast.ids import MessageId
from nearcast.metrics import DELIVERY_STAGE, EVENT_TO_DEVICE
from tests.channels.examples import MemoryDesk, MemoryOutbox, a_message, until
from tests.channels.test_dispatcher import running

MESSAGE = MessageId("m" * 32)
RULES = Path(__file__).parents[2] / "deploy" / "slo.rules.yaml"


def _measured(name: str, **labels: str) -> tuple[float, float]:
    """How many were observed, and their sum in seconds."""
    found = [REGISTRY.get_sample_value(f"{name}_{part}", labels) for part in ("count", "sum")]
    return found[0] or 0.0, found[1] or 0.0


@given(st.lists(st.integers(0, 10**13), max_size=1 + len(STAGES)))
def test_no_stage_is_negative_whatever_the_clocks_say(times_ms: list[int]) -> None:
    """Every time that is known ends its own stage, and never before the stage before; the last end is the latest."""
    found = marks(times_ms)
    names = [name for name, at_ms in zip((ARRIVED, *STAGES), times_ms, strict=False) if at_ms]
    assert [mark.stage for mark in found] == names
    ends_ms = [mark.at_ms for mark in found]
    assert ends_ms == sorted(ends_ms)
    assert ends_ms[-1:] == ([max(times_ms)] if names else [])
    if times_ms == sorted(times_ms):
        assert ends_ms == [at_ms for at_ms in times_ms if at_ms]


def test_a_stage_that_is_not_known_is_left_out() -> None:
    """Of a message that a phone got from the history, nobody knows when it was written."""
    assert marks([10, 11, 13, 13, 20, 0, 30])[-2:] == [Mark("dispatch", 20), Mark("ack", 30)]


async def test_the_dispatcher_measures_what_was_sent() -> None:
    """From the times of the entry, and its own; the delivery keeps them. An entry without times is not measured."""
    outbox, desk, sms = MemoryOutbox(a_message(1), a_message(2, customer="bert")), MemoryDesk("sms"), StubChannel("sms")
    now_ms = a_message().at_ms
    first = outbox.waiting[0]
    outbox.waiting[0] = type(first)(
        first.partition, first.entry_id, first.entry, (now_ms - 90, now_ms - 70, now_ms - 30)
    )
    before = {stage: _measured("nearcast_delivery_stage_seconds", stage=stage) for stage in STAGES}
    async with running(outbox, desk, sms):
        await until(lambda: len(outbox.finished) == 2)
    changed = {}
    for stage in STAGES:
        count, sum_s = _measured("nearcast_delivery_stage_seconds", stage=stage)
        if count != before[stage][0]:
            changed[stage] = (count - before[stage][0], sum_s - before[stage][1])
    timed, untimed = (desk.deliveries[call.message.id][-1] for call in sorted(sms.calls, key=lambda c: c.message.id))
    assert changed["log"] == pytest.approx((1, 0.02))
    assert changed["decide"] == pytest.approx((1, 0.04))
    assert sorted(changed) == ["decide", "dispatch", "log", "queue"]
    assert timed.times_ms[:3] == (now_ms - 90, now_ms - 70, now_ms - 30)
    assert len(timed.times_ms) == 5
    assert untimed.times_ms == ()
    total_s = sum(seconds for _, seconds in changed.values())
    assert total_s == pytest.approx((timed.times_ms[-1] - timed.times_ms[0]) / 1000)


def test_a_device_is_measured_once_a_message() -> None:
    """Written, then acknowledged; a second acknowledgement, or one of a message that another node wrote, is not."""
    clock = ManualClock()
    shown = Shown(clock)
    begin_ms = clock.now_ms()
    clock.advance(400)
    whole, stage = "nearcast_event_to_device_seconds", "nearcast_delivery_stage_seconds"
    before = _measured(whole, until="socket"), _measured(whole, until="ack"), _measured(stage, stage="ack")
    shown.written(note_of(MESSAGE, (begin_ms, begin_ms, begin_ms, begin_ms, begin_ms + 300)))
    clock.advance(1_500)
    shown_ms = clock.now_ms()
    for _ in range(2):
        assert shown.times(MESSAGE, shown_ms) == f"{begin_ms + 400} {begin_ms + 1_900}"
    for _ in range(2):
        shown.acknowledged(MESSAGE, shown_ms)
    assert shown.times(MESSAGE, shown_ms) == f"0 {begin_ms + 1_900}"
    after = _measured(whole, until="socket"), _measured(whole, until="ack"), _measured(stage, stage="ack")
    grown = [now - then for old, new in zip(before, after, strict=True) for then, now in zip(old, new, strict=True)]
    assert grown == pytest.approx([1, 0.4, 1, 1.9, 1, 1.5])


@given(st.lists(st.integers(1, 10**7), min_size=5, max_size=5), st.integers(1, 10**7))
def test_the_way_to_a_device_is_never_negative_whatever_the_clocks_say(times_ms: list[int], shown_ms: int) -> None:
    """A log or an engine whose clock is ahead of the gateway's makes it short, and no shorter than nothing; with the
    stages before, it is the whole way."""

    def measured() -> list[float]:
        """Seconds, until each of the two and of each of the two stages."""
        return [
            sample.value
            for metric in (EVENT_TO_DEVICE, DELIVERY_STAGE)
            for label in STAGES[4:]
            for sample in metric.labels(label).collect()[0].samples
            if sample.name.endswith("_sum")
        ]

    before = measured()
    shown = Shown(ManualClock(5_000_000))
    shown.written(note_of(MESSAGE, times_ms))
    shown.acknowledged(MESSAGE, shown_ms)
    until_socket, until_ack, socket, ack = (now - then for now, then in zip(measured(), before, strict=True))
    assert min(until_socket, until_ack, socket, ack) > -1e-4
    assert until_socket == pytest.approx((max(times_ms) - times_ms[0]) / 1000 + socket, abs=1e-4)
    assert until_ack == pytest.approx(until_socket + ack, abs=1e-4)


async def test_what_waits_behind_another_message_of_the_customer_waits_for_the_dispatcher() -> None:
    """As "dispatch", not "queue": it was taken when the first was."""
    outbox, desk = MemoryOutbox(a_message(1), a_message(2)), MemoryDesk("sms")
    sms = StubChannel("sms", [RetrySend("busy")] * 2)
    now_ms = a_message().at_ms
    outbox.waiting = deque(replace(pending, times_ms=(now_ms,) * 3) for pending in outbox.waiting)
    async with running(outbox, desk, sms, settings=DispatcherSettings(backoff_s=0.1)):
        await until(lambda: len(outbox.finished) == 2)
    first, second = (desk.deliveries[a_message(number).id][-1].times_ms for number in (1, 2))
    assert second[3] < first[4] <= second[4]


def test_what_is_never_acknowledged_is_forgotten() -> None:
    """The oldest goes."""
    shown = Shown(ManualClock())
    for number in range(REMEMBERED + 1):
        shown.written(f"m{number} 1 2")
    assert shown.times(MessageId("m0"), 9) == "0 9"
    assert shown.times(MessageId("m1"), 9) != "0 9"
    shown.acknowledged(MessageId("m1"), 9)
    assert len(shown._written) == REMEMBERED - 1


def test_the_example_rules_ask_for_what_is_measured() -> None:
    """Every metric, label value and bucket that they name is one that a process shows, or an earlier rule records."""
    Shown(ManualClock()).written("m 1 2")
    shown = generate_latest().decode()
    recorded: set[str] = set()
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    for rule in rules:
        named = set(re.findall(r"\bnearcast[:_][a-z0-9:_]+", rule["expr"]))
        for name in named - recorded:
            assert f"# TYPE {re.sub('_(bucket|count|total)$', '', name)}" in shown, name
        for labels in re.findall(r"_bucket{([^}]*le=[^}]*)}", rule["expr"]):
            assert labels in {
                ",".join(sorted(found.split(","), reverse=True)) for found in re.findall(r"{(.*)}", shown)
            }
        recorded.add(rule.get("record", ""))
    assert {rule["alert"] for rule in rules if "alert" in rule} != set()
