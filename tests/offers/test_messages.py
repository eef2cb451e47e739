"""The outbox message that a decision leads to."""

from typing import Any

import pytest

from nearcast.decisions import Decision
from nearcast.ids import message_id
from nearcast.messages import Message
from nearcast.moments import Moment
from nearcast.world import Discount, Promotion, Store, What
from offers.messages import message_of
from tests.offers.examples import (
    DOORSTEP,
    NOW_MS,
    SHOP,
    STOVE,
    TENT,
    catalogue,
    customer,
    moment,
    promotion,
    what_happens,
)


def test_an_offer_carries_what_must_still_hold() -> None:
    """Place, thing, deadline and channels come along, so that the message can be checked again when it is sent."""
    deal = promotion(what=What(skus=[TENT]), channels=["sms", "websocket"], deadline_s=60, coupon_valid_s=3_600)
    decision = what_happens(customer(), deal)
    assert isinstance(decision, Decision)
    message = message_of(decision, catalogue(deal))
    assert message is not None
    assert message.id == message_id(decision.id, "customer")
    assert (message.kind, message.customer, message.promotion, message.trigger) == ("offer", "ann", "deal", "walk_past")
    assert (message.at_ms, message.deadline_ms) == (NOW_MS, NOW_MS + 60_000)
    assert message.coupon_expires_ms == NOW_MS + 3_600_000
    assert message.channels == ["sms", "websocket"]
    assert (message.store, message.fence, message.sku) == (SHOP, DOORSTEP, TENT)


@pytest.mark.parametrize("trigger", ["enter", "dwell", "walk_past", "near_product", "exit", "app_open", "help_request"])
def test_only_being_somewhere_binds_a_message_to_the_place(trigger: str) -> None:
    """A message about being at a place holds only there; one about leaving it, or about an action, holds elsewhere."""
    deal = promotion(trigger=trigger)
    decision = what_happens(customer(), deal, at=moment(trigger=trigger, sku=TENT))
    assert decision is not None
    message = message_of(decision, catalogue(deal))
    assert message is not None
    assert message.fence == (DOORSTEP if trigger in ("enter", "dwell", "walk_past", "near_product") else None)


def test_an_alert_goes_to_staff() -> None:
    """An assist message has an id of its own audience, and keeps the place."""
    alert = promotion(kind="assist")
    decision = what_happens(customer(), alert)
    assert decision is not None
    message = message_of(decision, catalogue(alert))
    assert message is not None
    assert message.id == message_id(decision.id, "staff")
    assert (message.kind, message.fence) == ("assist", DOORSTEP)


def test_nothing_sends_nothing() -> None:
    """A decision to do nothing has no message."""
    decision = what_happens(customer(consents=()), promotion())
    assert decision is not None
    assert message_of(decision, catalogue(promotion())) is None


def message(deal: Promotion, at: Moment | None = None, **options: Any) -> Message:
    decision = what_happens(customer(), deal, at=at, **options)
    assert decision is not None
    found = message_of(decision, catalogue(deal))
    assert found is not None
    return found


def test_who_is_sent_elsewhere_need_not_stay() -> None:
    """The store is the one that has the thing, and the message is bound to no fence; what takes the place of another
    thing is offered here."""
    other = Store(id="other", name="Other", lat=48.21, lng=16.37)
    elsewhere = promotion(what=What(skus=[TENT], instead="elsewhere"))
    sent_away = message(elsewhere, others=[other], stock={("other", TENT): 1})
    assert (sent_away.store, sent_away.fence, sent_away.sku, sent_away.instead_of) == ("other", None, TENT, None)
    alternative = promotion(what=What(skus=[TENT], instead="alternative"))
    here = message(alternative, stock={(SHOP, STOVE): 1})
    assert (here.store, here.fence, here.sku, here.instead_of) == (SHOP, DOORSTEP, STOVE, TENT)


@pytest.mark.parametrize(
    ("fields", "due_s"),
    [
        ({}, 15),
        ({"fall_back_s": 0.5}, 0.5),
        ({"fall_back_s": None}, None),
        ({"fall_back_s": 299.999}, 299.999),
        ({"fall_back_s": 300}, None),  # the deadline
        ({"kind": "notice"}, 15),
        ({"kind": "assist"}, None),  # goes to the staff's tablets only
    ],
)
def test_when_the_next_channels_turn_is(fields: dict[str, Any], due_s: float | None) -> None:
    """So long after the moment, if that is before the deadline."""
    assert message(promotion(**fields)).fall_back_ms == (0 if due_s is None else NOW_MS + round(due_s * 1000))


def test_a_notice_goes_to_the_customer() -> None:
    """With what it is about: the order and its status. A held moment gives the times of now."""
    deal, at = promotion(kind="notice", trigger="order_status"), moment(trigger="order_status", order="A-1", status="x")
    told = message(deal, at)
    assert told.id == message_id(told.decision, "customer")
    assert (told.kind, told.order, told.status, told.fence) == ("notice", "A-1", "x", None)


def test_the_discount_is_that_of_the_decision() -> None:
    """What is changed later doesn't change what was promised."""
    deal = promotion(what=What(discount=Discount(percent=20, most_cents=300)))
    assert message(deal).discount == Discount(percent=20, most_cents=300)
    assert message(promotion()).discount is None
