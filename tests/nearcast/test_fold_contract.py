"""The fold, as far as the moment contract goes: held moments, loyalty points, orders, and how far a message got."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.customer import Customer
from nearcast.decisions import Charge, Decision
from nearcast.events import Action, Consent, DeliveryStatus, Profile, Receipt, Timer
from nearcast.fold import HOLD_TIMER, KEPT_HELD, STAGES, Folded, hold, record_message
from nearcast.ids import DecisionId, EventId, FenceId, MessageId, PromotionId
from nearcast.moments import Moment
from tests.nearcast.test_fold import fold, new, somebody


def moment(subject: str = "f", at_ms: int = 10, trigger: Any = "enter") -> Moment:
    return Moment(event=EventId("e"), customer=somebody().id, trigger=trigger, at_ms=at_ms, subject=subject)


def with_message(*charges: Charge) -> Customer:
    customer = somebody()
    decision = Decision(
        id=DecisionId("d"), moment=moment(), outcome="offer", at_ms=10, deadline_ms=1_000, candidates=[],
        rules_version="r", model_version="m", promotion=PromotionId("p"), charges=list(charges),
    )  # fmt: skip
    record_message(customer, MessageId("m"), decision, channels=["websocket"], tags=["flash"])
    return customer


def report(customer: Customer, status: str, **fields: Any) -> Folded:
    return fold(customer, new(Receipt, message="m", decision="d", status=status, ts=20, **fields))


def test_held_moments_come_back() -> None:
    """When quiet hours are over they are moments of then, and say since when they were held; each once."""
    customer = somebody()
    hold(customer, moment("a", 10), 500)
    hold(customer, moment("b", 20), 400)
    hold(customer, moment("a", 30), 500)
    assert customer.timers[HOLD_TIMER] == 400
    (first,) = fold(customer, new(Timer, kind=HOLD_TIMER, due_ms=400, ts=400)).moments
    assert (first.subject, first.at_ms, first.held_since_ms) == ("b", 400, 20)
    assert customer.timers[HOLD_TIMER] == 500
    fired = new(Timer, kind=HOLD_TIMER, due_ms=500, ts=500)
    (second,) = fold(customer, fired).moments
    assert (second.subject, second.at_ms, second.held_since_ms, second.event) == ("a", 500, 30, fired.id)
    assert not customer.held
    assert HOLD_TIMER not in customer.timers
    hold(customer, second, 900)
    (third,) = fold(customer, new(Timer, kind=HOLD_TIMER, due_ms=900, ts=900)).moments
    assert third.held_since_ms == 30


def test_held_moments_are_bounded() -> None:
    """The oldest are forgotten."""
    customer = somebody()
    for n in range(KEPT_HELD + 3):
        hold(customer, moment(str(n)), 500)
    found = fold(customer, new(Timer, kind=HOLD_TIMER, due_ms=500, ts=500)).moments
    assert [each.subject for each in found] == [str(n) for n in range(3, KEPT_HELD + 3)]


def test_points() -> None:
    """Their rise is a moment that knows both balances; the first balance, a fall, or the same again, is none."""
    customer = somebody()
    assert fold(customer, new(Profile, name="Ann", ts=3)).moments == []
    assert fold(customer, new(Profile, points=100, ts=4)).moments == []
    (risen,) = fold(customer, new(Profile, points=120, ts=5)).moments
    assert (risen.trigger, risen.points) == ("points_reached", (100, 120))
    assert fold(customer, new(Profile, points=120, ts=6)).moments == []
    assert fold(customer, new(Profile, points=40, name="Ann", ts=7)).moments == []
    assert fold(customer, new(Profile, attributes={"size": "M"}, ts=8)).moments == []
    assert (customer.points, customer.name, customer.attributes) == (40, "Ann", {"size": "M"})


@pytest.mark.parametrize(
    ("action", "fields"), [("order_ready", {"store": "s"}), ("order_status", {"status": "packed"})]
)
def test_orders(action: str, fields: dict[str, str]) -> None:
    """What the shop says of an order is a moment about that order."""
    (found,) = fold(somebody(), new(Action, action=action, order="A-17", ts=5, **fields)).moments
    assert (found.trigger, found.order, found.status, found.subject) == (
        action, "A-17", fields.get("status", ""), "A-17",
    )  # fmt: skip


@given(st.lists(st.sampled_from(sorted(set(get_args(DeliveryStatus)) - {"rolled_back"})), max_size=8))
def test_how_far_it_got(statuses: list[str]) -> None:
    """The furthest that any receipt says, in whatever order they come."""
    customer = with_message()
    for status in statuses:
        report(customer, status)
    stages: dict[Any, int] = dict(STAGES)
    assert customer.messages[0].reached == max((stages.get(status, 0) for status in statuses), default=0)


def test_a_redemption_and_its_rollback() -> None:
    """A rollback undoes exactly the redemption that it names, whichever is heard of first."""
    customer = with_message()
    (sent,) = customer.messages
    report(customer, "redeemed", redemption_id="r1", revenue_cents=900, discount_cents=100)
    assert (sent.status, sent.revenue_cents, sent.discount_cents, customer.redemptions) == ("redeemed", 900, 100, 1)
    report(customer, "rolled_back", redemption_id="r9")
    assert sent.status == "redeemed"
    report(customer, "rolled_back", redemption_id="r1")
    assert (sent.status, sent.revenue_cents, sent.discount_cents, customer.redemptions) == ("applied", 0, 0, 0)
    assert report(customer, "rolled_back", redemption_id="r1").status == "duplicate"
    assert report(customer, "redeemed", redemption_id="r9").status == "duplicate"
    assert report(customer, "redeemed", redemption_id="r1").status == "duplicate"
    report(customer, "redeemed", redemption_id="r2", revenue_cents=50)
    assert (sent.status, sent.revenue_cents, customer.redemptions, sent.reached) == ("redeemed", 50, 1, 5)


@given(st.permutations(["redeemed r1", "rolled_back r1", "redeemed r2", "rolled_back r2", "redeemed r3"]), st.data())
def test_receipts_of_a_coupon_in_any_order(order: list[str], data: st.DataObject) -> None:
    """Redeemed, called off, redeemed again and so on: what stands in the end doesn't depend on which comes first, nor
    on those that come twice."""
    length = data.draw(st.sampled_from([2, 3, 4, 5]))
    told = ["redeemed r1", "rolled_back r1", "redeemed r2", "rolled_back r2", "redeemed r3"][:length]
    customer = with_message()
    for said in [*(said for said in order if said in told), *data.draw(st.lists(st.sampled_from(told), max_size=3))]:
        status, redemption = said.split()
        revenue = {"r1": 100, "r2": 200, "r3": 300}[redemption]
        report(customer, status, redemption_id=redemption, revenue_cents=revenue)
    (sent,) = customer.messages
    stands = {2: "", 3: "r2", 4: "", 5: "r3"}[length]
    assert sent.redemption == stands
    assert (sent.status == "redeemed", sent.revenue_cents) == (bool(stands), {"": 0, "r2": 200, "r3": 300}[stands])
    assert (customer.redemptions, sent.reached) == (int(bool(stands)), 5)


def test_held_moments_go_with_consent() -> None:
    """A withdrawal takes along what is held: of location, what came from a place; of everything, all of it."""
    place = Moment(
        event=EventId("e"), customer=somebody().id, trigger="enter", at_ms=1, subject="f", fence=FenceId("f")
    )
    customer = somebody()
    hold(customer, place, 500)
    hold(customer, moment("b"), 600)
    fold(customer, new(Consent, scope="location", granted=False, ts=7))
    assert customer.timers[HOLD_TIMER] == 600
    fold(customer, new(Consent, scope="all", granted=False, ts=8))
    assert not customer.held
    assert HOLD_TIMER not in customer.timers


def test_by_which_channels_it_went() -> None:
    """A push that nobody acknowledged, and the SMS that followed."""
    customer = with_message()
    report(customer, "sent", channel="websocket", final=False)
    report(customer, "failed", channel="websocket", final=False)
    report(customer, "sent", channel="sms")
    (sent,) = customer.messages
    assert (sent.on, sent.channel) == (["websocket", "sms"], "sms")
    # News of a channel counts, however far the message is; told again, it changes nothing.
    assert report(customer, "sent", channel="email").status == "applied"
    assert report(customer, "sent", channel="email").status == "duplicate"
    assert sent.on == ["websocket", "sms", "email"]


def test_budgets_come_back_only_from_what_was_not_sent() -> None:
    """And only once."""
    charge = Charge(pool="p", pieces=1, cents=30)
    for status, unsent in (("suppressed", False), ("failed", False), ("recalled", True), ("expired", True)):
        assert report(with_message(charge), status, unsent=unsent).returned == []
    for status in ("suppressed", "failed"):
        customer = with_message(charge)
        assert report(customer, status, unsent=True).returned == [("p", 1, 30)]
        assert report(customer, status, unsent=True).returned == []
