"""The check just before sending: one story for every reason to drop a message."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from nearcast.customer import Customer, Presence, SegmentHistory
from nearcast.decisions import Reason
from nearcast.fold import record_message
from nearcast.ids import FenceId
from nearcast.messages import Message
from nearcast.world import OpenHours, Promotion, Store, What, When, Who
from offers.messages import message_of
from offers.policy import Policy, QuietHours
from offers.recheck import allowed_channels, over, recheck
from tests.offers.examples import (
    DOORSTEP,
    HOUR_MS,
    NOW_MS,
    SHOP,
    STORE,
    TENT,
    catalogue,
    customer,
    inside,
    moment,
    promotion,
    what_happens,
)

DEAL = promotion(what=What(skus=[TENT]), deadline_s=120)
ALERT = promotion(kind="assist", what=What(skus=[TENT]), deadline_s=120)
HELP = promotion(kind="assist", trigger="help_request")


class Sending:
    """A message decided a minute ago, about to be sent; a test changes what it is about."""

    def __init__(self, deal: Promotion = DEAL, **fields: Any) -> None:
        self.customer: Customer = customer(**fields)
        self.presence: Presence = inside(DOORSTEP)
        self.deal: Promotion | None = deal
        self.store: Store | None = STORE
        self.stock: int | None = 3
        self.policy = Policy()
        self.fence_hours: dict[FenceId, list[OpenHours]] = {}
        self.now_ms = NOW_MS + 60_000
        decision = what_happens(self.customer, deal, at=moment(trigger=deal.trigger))
        assert decision is not None
        message = message_of(decision, catalogue(deal))
        assert message is not None
        self.message: Message = message
        record_message(self.customer, message.id, decision)

    def reason(self) -> Reason | None:
        deals, store = [self.deal] if self.deal else [], self.store or replace(STORE, id="another")
        world = catalogue(*deals, store=store, fence_hours=self.fence_hours)
        return recheck(self.message, self.customer, self.presence, world, self.stock, self.policy, self.now_ms)


@pytest.mark.parametrize("deal", [DEAL, ALERT, HELP])
def test_what_still_holds_is_sent(deal: Promotion) -> None:
    """Nothing has changed: send it. Its own entry in the customer's record doesn't cap it."""
    assert Sending(deal).reason() is None


@pytest.mark.parametrize("deal", [DEAL, ALERT, HELP])
def test_erased(deal: Promotion) -> None:
    """The customer was erased since: their record is new, or there was none and one has begun."""
    sending = Sending(deal)
    sending.customer = Customer(id=sending.customer.id, consents={"websocket": (True, NOW_MS)})
    assert sending.reason() == Reason.ERASED


@pytest.mark.parametrize("deal", [DEAL, ALERT, HELP])
def test_opted_out(deal: Promotion) -> None:
    """An opt-out between decision and sending stops offers and alerts alike."""
    sending = Sending(deal)
    sending.customer.consents["all"] = (False, NOW_MS + 1)
    assert sending.reason() == Reason.OPTED_OUT


def test_too_late() -> None:
    """The deadline itself is still in time, a millisecond later is not."""
    sending = Sending()
    sending.now_ms = NOW_MS + 120_000
    assert sending.reason() is None
    sending.now_ms += 1
    assert sending.reason() == Reason.TOO_LATE


@pytest.mark.parametrize("change", [None, When(ends_ms=NOW_MS + 60_000), When(starts_ms=NOW_MS + HOUR_MS)])
def test_promotion_ended(change: When | None) -> None:
    """The promotion was deleted, has just ended, or was put off."""
    sending = Sending()
    sending.deal = None if change is None else replace(DEAL, when=change)
    assert sending.reason() == Reason.PROMOTION_ENDED


def test_no_consent() -> None:
    """Consent to the only channel, or to the use of the location, was withdrawn."""
    sending = Sending()
    sending.customer.consents["websocket"] = (False, NOW_MS + 1)
    assert sending.reason() == Reason.NO_CONSENT
    alert = Sending(ALERT)
    alert.customer.consents["websocket"] = (False, NOW_MS + 1)
    assert alert.reason() is None
    alert.customer.consents["location"] = (False, NOW_MS + 1)
    assert alert.reason() == Reason.NO_CONSENT


@pytest.mark.parametrize("deal", [DEAL, ALERT])
def test_left(deal: Promotion) -> None:
    """They are no longer in the fence that it was about, although in another one."""
    sending = Sending(deal)
    sending.presence = inside(FenceId("other"))
    assert sending.reason() == Reason.LEFT


def test_what_is_bound_to_no_place_can_be_sent_anywhere() -> None:
    """A message from an action isn't bound to a fence."""
    sending = Sending(HELP)
    sending.presence = Presence()
    assert sending.reason() is None


def close(sending: Sending) -> None:
    sending.store = replace(STORE, hours=[OpenHours(weekday=6, opens=0, closes=17 * 60 + 7)])


def remove(sending: Sending) -> None:
    sending.store = None


@pytest.mark.parametrize("change", [close, remove])
def test_store_closed(change: Callable[[Sending], None]) -> None:
    """It was 17:06 when decided; the store closes at 17:07. Or it is gone altogether."""
    sending = Sending()
    change(sending)
    assert sending.reason() == Reason.STORE_CLOSED


def test_fence_closed() -> None:
    """The store is open, but the fence that the message is about has closed since."""
    sending = Sending()
    sending.fence_hours = {DOORSTEP: [OpenHours(weekday=6, opens=0, closes=17 * 60 + 7)]}
    assert sending.reason() == Reason.STORE_CLOSED
    sending.fence_hours = {DOORSTEP: [OpenHours(weekday=6, opens=0, closes=17 * 60 + 8)]}
    assert sending.reason() is None


@pytest.mark.parametrize("stock", [0, -1, None])
def test_out_of_stock(stock: int | None) -> None:
    """Somebody took the last one, or the record of it is gone."""
    sending = Sending()
    sending.stock = stock
    assert sending.reason() == Reason.OUT_OF_STOCK


def test_stock_matters_to_a_message_about_a_thing_at_a_store() -> None:
    """A message about no thing, or a call for help about one, doesn't ask."""
    sending = Sending(promotion())
    sending.stock = None
    assert sending.reason() is None
    call = Sending(HELP)
    call.message = replace(call.message, sku=TENT)
    call.stock = 0
    assert call.message.store == SHOP
    assert call.reason() is None


@pytest.mark.parametrize("deal", [DEAL, ALERT, HELP])
def test_helped_since(deal: Promotion) -> None:
    """A member of staff has spoken to them meanwhile."""
    sending = Sending(deal)
    sending.customer.last_staff_contact_ms = NOW_MS + 1
    assert sending.reason() == Reason.STAFF_CONTACT


def test_helped_before_but_known_only_now() -> None:
    """The talk was before the moment, its event came late: it counts, except against a call for help."""
    sending, call = Sending(), Sending(HELP)
    for either in (sending, call):
        either.customer.last_staff_contact_ms = NOW_MS - 60_000
    assert sending.reason() == Reason.STAFF_CONTACT
    assert call.reason() is None


def test_quiet_hours_have_begun() -> None:
    """It was 17:06 when decided and quiet hours start at 17:07: an offer is dropped, an alert is not."""
    policy = Policy(quiet_hours=QuietHours(starts=17 * 60 + 7, ends=8 * 60))
    sending, alert = Sending(), Sending(ALERT)
    sending.policy = alert.policy = policy
    assert sending.reason() == Reason.QUIET_HOURS
    assert alert.reason() is None
    sending.now_ms = NOW_MS
    assert sending.reason() is None


def test_channels_by_consent_and_contact_point() -> None:
    """In the promotion's order: consented to, and with a number or an address to send to."""
    every = promotion(channels=["sms", "email", "websocket"])
    consents = ("websocket", "sms", "email")
    message = Sending(every, consents=consents).message
    assert allowed_channels(message, customer(consents=consents, phone="+431", email="a@b.c")) == [
        "sms", "email", "websocket",
    ]  # fmt: skip
    assert allowed_channels(message, customer(consents=consents, email="a@b.c")) == ["email", "websocket"]
    assert allowed_channels(message, customer(consents=("sms",), phone="+431", email="a@b.c")) == ["sms"]
    assert allowed_channels(message, customer(consents=("sms",))) == []


def test_no_channel_after_an_opt_out() -> None:
    """Opting out withdraws every consent given before."""
    sending = Sending()
    sending.customer.consents["all"] = (False, NOW_MS)
    assert allowed_channels(sending.message, sending.customer) == []


def test_alerts_reach_staff_and_never_the_customer() -> None:
    """An alert doesn't go to the customer's phone or mail, whatever they consented to."""
    message = Sending(ALERT).message
    assert allowed_channels(message, customer(consents=("sms", "email"), phone="+431", email="a@b.c")) == ["websocket"]


def test_outside_its_hours_by_now() -> None:
    """It was 17:06 when decided, and the promotion is for the time until 17:07, or to 16:07 by the customer's clock."""
    until = [OpenHours(weekday=6, opens=0, closes=17 * 60 + 7)]
    assert Sending(promotion(when=When(hours=until))).reason() == Reason.OUTSIDE_HOURS
    london = promotion(when=When(hours=until, zone="customer"))
    assert Sending(london, time_zone="Europe/London").reason() is None
    assert Sending(london).reason() == Reason.OUTSIDE_HOURS


@pytest.mark.parametrize("asks", [Who(in_cart=True), Who(on_wishlist=True)])
def test_no_longer_in_the_cart(asks: Who) -> None:
    """ "Still in your cart" is told to nobody who took it out, or who bought it: that takes it out, too."""
    sending = Sending(promotion(who=asks, deadline_s=120), cart=(TENT,), wishlist={TENT: NOW_MS})
    assert sending.reason() is None
    sending.customer.cart, sending.customer.wishlist = {}, {}
    assert sending.reason() == Reason.NOT_IN_AUDIENCE
    for last_ms, reason in ((NOW_MS - 1, Reason.NOT_IN_AUDIENCE), (NOW_MS + 1, Reason.BOUGHT)):
        sending.customer.history.segments["camping"] = SegmentHistory(baskets=1, last_ms=last_ms)
        assert sending.reason() == reason


def test_how_an_order_goes_on_is_told_at_any_hour_of_the_store() -> None:
    """Neither its hours nor its stock are asked for; quiet hours are."""
    told = Sending(promotion(kind="notice", trigger="order_status", what=What(skus=[TENT]), deadline_s=120))
    told.store, told.stock = replace(STORE, hours=[]), 0
    assert told.reason() is None
    told.customer.last_staff_contact_ms = NOW_MS + 1
    assert told.reason() is None
    told.policy = Policy(quiet_hours=QuietHours(starts=0, ends=1439))
    assert told.reason() == Reason.QUIET_HOURS


def test_what_is_over_for_everybody() -> None:
    """The part that needs no customer: ended, closed, sold out; asked of messages that are out already."""
    sending = Sending()

    def told(*deals: Promotion, store: Store = STORE, stock: int | None = 1) -> Reason | None:
        return over(sending.message, catalogue(*deals, store=store), stock, sending.now_ms)

    assert told(DEAL) is None
    assert told() == Reason.PROMOTION_ENDED
    assert told(replace(DEAL, when=When(ends_ms=sending.now_ms))) == Reason.PROMOTION_ENDED
    assert told(DEAL, store=replace(STORE, hours=[])) == Reason.STORE_CLOSED
    assert told(DEAL, stock=0) == told(DEAL, stock=None) == Reason.OUT_OF_STOCK
