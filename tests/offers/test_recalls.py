"""Which messages are over because of what a customer did."""

from typing import Any

import pytest

from nearcast.customer import Customer, SentMessage
from nearcast.decisions import Reason
from nearcast.events import Action, AnyEvent, Cart, Consent, Line, Profile, Purchase
from nearcast.ids import CustomerId, DecisionId, FenceId, MessageId, PromotionId, Sku, StoreId
from offers.recalls import on_event, on_leaving

NOW = 1_795_000_000_000


def message(name: str, **fields: Any) -> SentMessage:
    return SentMessage(
        MessageId(name),
        DecisionId(f"d-{name}"),
        PromotionId("p"),
        NOW - 1_000,
        deadline_ms=NOW + 1_000,
        **{"kind": "offer", "store": StoreId("s")} | fields,
    )


def ann(*messages: SentMessage) -> Customer:
    return Customer(id=CustomerId("ann"), messages=list(messages))


def event(kind: Any, **fields: Any) -> AnyEvent:
    found: AnyEvent = kind(id="e", uid="ann", ts=NOW, **fields)
    return found


def names(customer: Customer, what: AnyEvent, had_in_cart: tuple[str, ...] = ()) -> dict[str, str]:
    return {each.message: each.reason for each in on_event(customer, what, [Sku(sku) for sku in had_in_cart])}


def test_leaving() -> None:
    """What held in the fence that was left, and nobody has opened; also alerts to staff, which name their store."""
    here = FenceId("here")
    customer = ann(
        message("out", fence=here, status="delivered"),
        message("on its way", fence=here),
        message("read", fence=here, status="opened"),
        message("over", fence=here, status="suppressed"),
        message("elsewhere", fence=FenceId("there"), status="sent"),
        message("anywhere", status="sent"),
        message("alert", fence=here, status="sent", kind="assist", is_alert=True),
    )
    found = on_leaving(customer, here, NOW)
    assert [(each.message, each.kind, each.reason) for each in found] == [
        ("out", "offer", Reason.LEFT),
        ("on its way", "offer", Reason.LEFT),
        ("alert", "assist", Reason.LEFT),
    ]
    assert {each.store for each in found} == {"s"}
    assert on_leaving(customer, here, NOW + 1_000) == []


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (event(Action, action="staff_contact"), {"coat": "staff_contact", "at a place": "staff_contact"}),
        (event(Action, action="app_open"), {}),
        (
            event(Consent, scope="all", granted=False),
            {"coat": "opted_out", "at a place": "opted_out", "order": "opted_out"},
        ),
        (event(Consent, scope="all", granted=True), {}),
        (event(Consent, scope="location", granted=False), {"at a place": "no_consent"}),
        (event(Consent, scope="sms", granted=False), {"order": "no_consent"}),
        (event(Purchase, items=[Line(sku="coat"), Line(sku="hat")]), {"coat": "bought"}),
        (event(Profile, name="Ann"), {}),
    ],
)
def test_what_puts_an_end_to_it(what: AnyEvent, expected: dict[str, str]) -> None:
    """Each kind of event ends the messages that it makes pointless, for its reason, and no others."""
    customer = ann(
        message("coat", sku=Sku("coat"), status="sent", channel="websocket"),
        message("at a place", fence=FenceId("f"), status="delivered", channel="websocket"),
        message("order", kind="notice", status="sent", channel="sms"),
        message("read", sku=Sku("coat"), fence=FenceId("f"), status="opened", channel="sms"),
    )
    assert names(customer, what) == expected


def test_ordered_online() -> None:
    """What was in the cart that was ordered is bought; emptying a cart is not buying."""
    customer = ann(message("coat", sku=Sku("coat"), status="sent"), message("hat", sku=Sku("hat"), status="sent"))
    assert names(customer, event(Cart, action="order"), ("coat",)) == {"coat": "bought"}
    assert names(customer, event(Cart, action="clear"), ("coat",)) == {}
