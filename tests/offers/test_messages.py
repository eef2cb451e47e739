"""The outbox message that a decision leads to."""

import pytest

from nearcast.decisions import Decision
from nearcast.ids import message_id
from nearcast.world import What
from offers.messages import message_of
from tests.offers.examples import (
    DOORSTEP,
    NOW_MS,
    SHOP,
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
