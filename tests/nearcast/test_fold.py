"""The fold: what one event does to what is known of a customer."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.customer import (
    HALF_LIFE_MS,
    KEPT_MESSAGES,
    KEPT_THINGS,
    KEPT_VIEWS,
    SEEN_EVENTS,
    CartItem,
    Customer,
    Decayed,
    SentMessage,
)
from nearcast.decisions import Decision
from nearcast.events import (
    MAX_EVENT_BYTES,
    MAX_QUANTITY,
    TOPIC_OF,
    Action,
    AnyEvent,
    Cart,
    Consent,
    Erase,
    Identify,
    Line,
    Profile,
    Purchase,
    Receipt,
    Stitch,
    Timer,
    decode_record,
    encode,
)
from nearcast.fold import CART_TIMER, Folded, FoldRules, apply, record_message
from nearcast.ids import CustomerId, DecisionId, EventId, MessageId, PromotionId, Sku
from nearcast.moments import Moment
from nearcast.world import Cap
from offers.gates import counted

RULES = FoldRules(cart_abandoned_after_ms=1_000)
SEGMENTS = {"milk": "dairy", "butter": "dairy", "coat": "coats"}
_counter = iter(range(10**9))


def new(event_type: Any, /, **fields: Any) -> Any:
    return event_type(**{"id": f"e{next(_counter)}", "uid": "c1"} | fields)


def fold(customer: Customer, *events: AnyEvent) -> Folded:
    for event in events:
        folded = apply(customer, event, SEGMENTS, RULES)
    return folded


def somebody() -> Customer:
    return Customer(id=CustomerId("c1"))


def test_duplicate() -> None:
    """An event with an id that was seen changes nothing."""
    customer = somebody()
    event = new(Cart, action="add", sku="milk", ts=10)
    fold(customer, event)
    before = msgspec.msgpack.encode(customer)
    assert fold(customer, event).status == "duplicate"
    assert msgspec.msgpack.encode(customer) == before


def test_seen_ids_are_bounded() -> None:
    """A customer remembers a bounded number of event ids."""
    customer = somebody()
    fold(customer, *(new(Action, action="app_open", ts=n) for n in range(SEEN_EVENTS + 20)))
    assert len(customer.seen) == SEEN_EVENTS


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "set", "clear"]), st.integers(0, 5)), max_size=12))
def test_cart_quantities(steps: list[tuple[str, int]]) -> None:
    """The cart holds what a plain count says, never a quantity below one."""
    customer, expected = somebody(), 0
    for at, (action, quantity) in enumerate(steps):
        fold(customer, new(Cart, action=action, sku="milk", quantity=quantity, ts=at + 1))
        expected = {"add": expected + quantity, "remove": max(0, expected - quantity), "set": quantity, "clear": 0}[
            action
        ]
        assert (customer.cart["milk"].quantity if "milk" in customer.cart else 0) == expected
        assert (CART_TIMER in customer.timers) == bool(customer.cart)


def test_abandoned_cart() -> None:
    """A cart left alone is abandoned when its timer fires; touching it again starts over."""
    customer = somebody()
    fold(customer, new(Cart, action="add", sku="milk", ts=100))
    assert customer.timers == {CART_TIMER: 1_100}
    fold(customer, new(Cart, action="add", sku="coat", ts=500))
    stale = fold(customer, new(Timer, kind=CART_TIMER, due_ms=1_100, ts=1_100))
    assert stale.status == "stale"
    assert not customer.cart_abandoned
    fired = fold(customer, new(Timer, kind=CART_TIMER, due_ms=1_500, ts=1_500))
    assert [moment.trigger for moment in fired.moments] == ["cart_abandoned"]
    assert customer.cart_abandoned
    again = fold(customer, new(Timer, kind=CART_TIMER, due_ms=1_500, ts=1_500))
    assert again.status == "stale"
    fold(customer, new(Cart, action="remove", sku="coat", ts=2_000))
    assert not customer.cart_abandoned


def test_buying_empties_the_cart() -> None:
    """What was bought in a store is no longer wanted from cart or wishlist, and no timer waits for it."""
    customer = somebody()
    fold(
        customer,
        new(Cart, action="add", sku="coat", ts=1),
        new(Action, action="wishlist_add", sku="milk", ts=2),
        new(Purchase, items=[Line(sku="coat", amount_cents=9_900), Line(sku="milk", amount_cents=120)], ts=3),
    )
    assert customer.cart == {}
    assert customer.wishlist == {}
    assert customer.timers == {}


def test_purchase_history() -> None:
    """Purchases are summed up by segment; a basket counts once per segment."""
    customer = somebody()
    items = [Line(sku="milk", quantity=2, amount_cents=300, coupon_cents=50), Line(sku="butter", amount_cents=250)]
    fold(customer, new(Purchase, items=items, ts=5_000), new(Purchase, items=[Line(sku="nuts", amount_cents=1)], ts=9))
    history = customer.history
    assert (history.baskets, history.lines, history.spend_cents, history.coupon_cents) == (2, 3, 551, 50)
    assert (history.coupon_baskets, history.first_ms, history.last_ms) == (1, 9, 5_000)
    dairy = history.segments["dairy"]
    assert (dairy.baskets, dairy.spend_cents, dairy.last_ms, dairy.last_price_cents) == (1, 550, 5_000, 250)
    assert set(history.segments) == {"dairy"}


@given(st.permutations([0, 1, 2, 3, 4]), st.lists(st.integers(0, 10**11), min_size=5, max_size=5))
def test_purchase_order_does_not_matter(order: list[int], times: list[int]) -> None:
    """Late purchases end in the same totals as punctual ones."""
    purchases = [new(Purchase, items=[Line(sku="milk", amount_cents=100 * n + 1)], ts=at) for n, at in enumerate(times)]
    straight, shuffled = somebody(), somebody()
    fold(straight, *purchases)
    fold(shuffled, *(purchases[n] for n in order))
    now = max(times)
    for field in ("baskets", "lines", "spend_cents", "first_ms", "last_ms"):
        assert getattr(straight.history, field) == getattr(shuffled.history, field)
    assert straight.history.recent_spend.at(now) == pytest.approx(shuffled.history.recent_spend.at(now))


def test_decay() -> None:
    """A decayed sum halves with every half-life."""
    total = Decayed()
    total.add(8.0, 1_000)
    assert total.at(1_000 + HALF_LIFE_MS) == pytest.approx(4.0)
    total.add(1.0, 1_000 + HALF_LIFE_MS)
    assert total.at(1_000 + 2 * HALF_LIFE_MS) == pytest.approx(2.5)


def test_opt_out_and_in() -> None:
    """The latest word counts by event time; at the same time, the withdrawal."""
    customer = somebody()
    fold(customer, new(Consent, scope="sms", granted=True, ts=10))
    assert customer.consented("sms")
    fold(customer, new(Consent, scope="all", granted=False, ts=20))
    assert customer.opted_out
    assert not customer.consented("sms")
    assert not customer.location_allowed
    fold(customer, new(Consent, scope="all", granted=True, ts=15))
    assert customer.opted_out
    fold(customer, new(Consent, scope="all", granted=True, ts=20))
    assert customer.opted_out
    fold(customer, new(Consent, scope="all", granted=True, ts=21))
    assert customer.consented("sms")
    assert not customer.consented("email")
    fold(customer, new(Consent, scope="sms", granted=False, ts=5))
    assert not customer.consented("sms"), "a withdrawal counts even if a slow clock dates it before the grant"


def test_profile_keeps_what_is_left_out() -> None:
    """A profile event changes only the fields it has."""
    customer = somebody()
    fold(customer, new(Profile, email="a@example.com", loyalty="gold", groups=["vip"], ts=1))
    fold(customer, new(Profile, loyalty="silver", ts=2))
    assert (customer.email, customer.loyalty, customer.groups) == ("a@example.com", "silver", ["vip"])


def test_receipts_move_forward_only() -> None:
    """Receipts that overtake each other don't take a message back."""
    customer = somebody()
    customer.messages = [SentMessage(MessageId("m"), DecisionId("d"), PromotionId("p"), 1)]
    for status in ("opened", "sent", "delivered"):
        fold(customer, new(Receipt, message="m", decision="d", status=status, channel="sms", ts=2))
    assert customer.messages[0].status == "opened"
    for _ in range(2):
        fold(customer, new(Receipt, message="m", decision="d", status="redeemed", ts=3))
    assert customer.redemptions == 1
    seen = list(customer.seen)
    unknown = fold(customer, new(Receipt, message="unknown", decision="d", status="opened", ts=3))
    assert unknown.status == "stale"
    assert len(customer.messages) == 1
    assert customer.seen == seen


def test_dismissed_is_after_opened_and_before_applied() -> None:
    """Who took the offer all the same has taken it; a message that was closed counts as seen."""
    customer = somebody()
    customer.messages = [SentMessage(MessageId("m"), DecisionId("d"), PromotionId("p"), 1)]
    for status, then in (("dismissed", "dismissed"), ("opened", "dismissed"), ("applied", "applied")):
        fold(customer, new(Receipt, message="m", decision="d", status=status, ts=2))
        assert customer.messages[0].status == then
    fold(customer, new(Receipt, message="m", decision="d", status="dismissed", ts=3))
    assert customer.messages[0].status == "applied"


def test_a_recall_is_after_delivered_and_before_opened() -> None:
    """A message that was shown can be taken back; whoever has opened it, has seen it."""
    customer = somebody()
    customer.messages = [SentMessage(MessageId("m"), DecisionId("d"), PromotionId("p"), 1)]
    for status, then in (("delivered", "delivered"), ("recalled", "recalled"), ("delivered", "recalled")):
        fold(customer, new(Receipt, message="m", decision="d", status=status, ts=2))
        assert customer.messages[0].status == then
    for status in ("opened", "recalled"):
        fold(customer, new(Receipt, message="m", decision="d", status=status, ts=3))
        assert customer.messages[0].status == "opened"


def test_a_failed_channel_is_not_the_end() -> None:
    """After one channel failed the next may still bring the message; a sent one fails only on its own channel."""
    customer = somebody()
    customer.messages = [SentMessage(MessageId("m"), DecisionId("d"), PromotionId("p"), 1)]
    for status, channel, then in (
        ("failed", "websocket", "failed"),
        ("sent", "sms", "sent"),
        ("failed", "websocket", "sent"),
        ("failed", "sms", "failed"),
        ("delivered", "sms", "delivered"),
        ("failed", "sms", "delivered"),
    ):
        fold(customer, new(Receipt, message="m", decision="d", status=status, channel=channel, reason=then, ts=2))
        assert customer.messages[0].status == then


def test_an_attempt_that_failed_leaves_the_message_on_its_way() -> None:
    """It goes on counting for caps: the next attempt may bring it."""
    customer = somebody()
    customer.messages = [SentMessage(MessageId("m"), DecisionId("d"), PromotionId("p"), 1)]
    attempt = new(Receipt, message="m", decision="d", status="failed", channel="sms", ts=2, final=False)
    assert fold(customer, attempt).status == "applied"
    assert customer.messages[0].status is None
    assert counted(Cap(count=1, period_s=60), customer.messages, 3) == 1
    fold(customer, new(Receipt, message="m", decision="d", status="failed", channel="sms", ts=3))
    assert customer.messages[0].status == "failed"
    assert counted(Cap(count=1, period_s=60), customer.messages, 4) == 0


def test_sign_in_takes_the_context_along() -> None:
    """What a visitor gathered anonymously arrives, once, at the customer they turn out to be."""
    visitor = Customer(id=CustomerId("anon:d7"))
    fold(
        visitor,
        new(Cart, uid=None, anonymous_id="d7", action="add", sku="coat", price_cents=9_900, ts=5),
        new(Action, uid=None, anonymous_id="d7", action="wishlist_add", sku="milk", ts=6),
        new(Action, uid=None, anonymous_id="d7", action="product_view", sku="butter", ts=7),
    )
    folded = fold(visitor, new(Identify, anonymous_id="d7", ts=8))
    (stitch,) = folded.emit
    assert isinstance(stitch, Stitch)
    assert stitch.customer == "c1"
    assert (visitor.cart, visitor.wishlist, visitor.viewed, visitor.timers) == ({}, {}, {}, {})
    assert b"c1" not in msgspec.msgpack.encode(visitor), "who they are is kept with the known customer only"
    customer = somebody()
    fold(customer, new(Cart, action="add", sku="coat", ts=4))
    assert fold(customer, stitch).status == "applied"
    assert fold(customer, stitch).status == "duplicate"
    assert customer.cart[Sku("coat")].quantity == 2
    assert customer.wishlist == {"milk": 6}
    assert customer.viewed == {"butter": 7}
    assert customer.timers == {CART_TIMER: 1_008}


NOW = 1_795_000_000_000
_SKU = st.sampled_from(["milk", "coat", "\U0001f9c0" * 128, '"' * 128])
_VISITOR_DOES = st.one_of(
    st.builds(
        dict,
        type=st.just("cart"),
        action=st.sampled_from(["add", "add", "set", "remove"]),
        sku=_SKU,
        quantity=st.sampled_from([0, 1, 60_000, MAX_QUANTITY]),
        price_cents=st.sampled_from([None, 0, 10_000_000_000]),
    ),
    st.builds(dict, type=st.just("action"), action=st.sampled_from(["wishlist_add", "product_view"]), sku=_SKU),
    st.builds(dict, type=st.just("identify"), uid=st.sampled_from(["c1", "c" * 128])),
)


def read_back(event: AnyEvent) -> AnyEvent:
    """The event as the engine finds it in the log."""
    return decode_record(TOPIC_OF[type(event)], encode(event), NOW)


def emitted_by(customer: Customer, events: list[AnyEvent]) -> Iterator[AnyEvent]:
    for event in events:
        yield from apply(customer, read_back(event), SEGMENTS, RULES).emit  # type: ignore[misc]


@given(st.lists(st.tuples(_VISITOR_DOES, st.integers(0, 60_000)), max_size=12), st.booleans())
def test_what_the_fold_emits_can_be_read(steps: list[tuple[dict[str, Any], int]], known_before: bool) -> None:
    """Whatever a visitor did, the stitch is decoded as it was written, and so are the erasures of a customer."""
    types = {"cart": Cart, "action": Action, "identify": Identify}
    visitor, customer = Customer(id=CustomerId("anon:d7")), somebody()
    events: list[AnyEvent] = [
        new(types[what["type"]], **{"uid": None, "anonymous_id": "d7", "ts": NOW + ahead_ms} | _but_type(what))
        for what, ahead_ms in steps
    ]
    if known_before:
        fold(customer, new(Cart, action="add", sku="milk", quantity=MAX_QUANTITY, ts=NOW))
    for stitch in emitted_by(visitor, [*events, new(Identify, anonymous_id="d7", ts=NOW)]):
        assert read_back(stitch) == stitch
        assert apply(customer, stitch, SEGMENTS, RULES).status == "applied"
    # What was taken over can be taken along again.
    again = Customer(id=CustomerId("anon:d8"), cart=customer.cart, wishlist=customer.wishlist, viewed=customer.viewed)
    for event in [
        *emitted_by(again, [new(Identify, anonymous_id="d8", ts=NOW)]),
        *emitted_by(customer, [new(Erase, ts=NOW)]),
    ]:
        assert read_back(event) == event


def _but_type(what: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in what.items() if name != "type"}


def test_the_largest_stitch() -> None:
    """All that a visitor can gather, under ids as long as they come, still reaches the customer."""
    visitor = Customer(id=CustomerId("anon:d7"))
    about: dict[str, Any] = {"uid": None, "anonymous_id": "\U0001f9c0" * 120, "ts": NOW}
    for number in range(KEPT_THINGS):
        sku = f"{number:03}" + "\U0001f9c0" * 125
        price_cents = 10_000_000_000
        fold(visitor, new(Cart, action="add", sku=sku, quantity=MAX_QUANTITY, price_cents=price_cents, **about))
        fold(
            visitor,
            new(Action, action="wishlist_add", sku=sku, **about),
            new(Action, action="product_view", sku=sku, **about),
        )
    (stitch,) = fold(visitor, new(Identify, **about | {"uid": "\U0001f9c0" * 128})).emit
    assert len(encode(stitch)) > 3 * MAX_EVENT_BYTES
    assert read_back(stitch) == stitch  # type: ignore[arg-type]


def test_a_cart_holds_so_many_pieces() -> None:
    """Both what is put in and what is taken over end at what an event can tell of."""
    customer = somebody()
    fold(customer, *(new(Cart, action="add", sku="milk", quantity=60_000, ts=at) for at in (1, 2)))
    assert customer.cart[Sku("milk")].quantity == MAX_QUANTITY
    fold(customer, new(Stitch, cart={"milk": (1, None)}, ts=3))
    assert customer.cart[Sku("milk")].quantity == MAX_QUANTITY


def test_a_cart_from_before_the_bound() -> None:
    """A state written by an earlier release may hold more; its stitch is read all the same."""
    visitor = Customer(id=CustomerId("anon:d7"), cart={Sku("milk"): CartItem(120_000, None, 1)})
    (stitch,) = fold(visitor, new(Identify, anonymous_id="d7", ts=NOW)).emit
    customer = somebody()
    fold(customer, read_back(stitch))  # type: ignore[arg-type]
    assert customer.cart[Sku("milk")].quantity == MAX_QUANTITY


@pytest.mark.parametrize("action", ["order", "clear"])
def test_an_order_overtakes_the_stitch(action: str) -> None:
    """What a visitor had put in before the customer ordered stays ordered; what they look at is theirs all the same."""
    stitch = new(Stitch, cart={"coat": (1, None)}, wishlist={"milk": 5}, ts=8)
    customer = somebody()
    fold(customer, new(Cart, action="add", sku="coat", ts=7), new(Cart, action=action, ts=9), stitch)
    assert (customer.cart, customer.wishlist) == ({}, {"milk": 5})
    assert customer.timers == {}
    fold(customer, new(Stitch, cart={"coat": (1, None)}, ts=9))
    assert customer.cart == {"coat": CartItem(1, None, 9)}


def test_a_stitch_dates_nothing_back() -> None:
    """A thing that was changed after the sign-in stays as new as it was: an emptying dated in between spares it."""
    customer = somebody()
    fold(
        customer,
        new(Cart, action="add", sku="coat", ts=10),
        new(Stitch, cart={"coat": (1, None)}, ts=8),
        new(Cart, action="clear", ts=9),
    )
    assert customer.cart == {"coat": CartItem(2, None, 10)}


def test_cart_and_wishlist_are_bounded() -> None:
    """However much is put into them, the newest things stay."""
    customer = somebody()
    for n in range(KEPT_THINGS + 5):
        fold(customer, new(Cart, action="add", sku=f"s{n}", ts=n + 1))
        fold(customer, new(Action, action="wishlist_add", sku=f"s{n}", ts=n + 1))
    expected = {f"s{n}" for n in range(5, KEPT_THINGS + 5)}
    assert set(customer.cart) == set(customer.wishlist) == expected


def test_messages_are_bounded() -> None:
    """Of many messages those that reached nobody are forgotten first, then the oldest: caps count the others."""
    customer = somebody()

    def decided(n: int) -> None:
        moment = Moment(event=EventId("e"), customer=customer.id, trigger="enter", at_ms=n, subject="f")
        decision = Decision(
            id=DecisionId(f"d{n}"), moment=moment, outcome="offer", at_ms=n, deadline_ms=n, candidates=[],
            rules_version="r", model_version="m", promotion=PromotionId("p"),
        )  # fmt: skip
        record_message(customer, MessageId(f"m{n}"), decision)

    for n in range(KEPT_MESSAGES):
        decided(n)
    fold(customer, new(Receipt, message="m7", decision="d7", status="suppressed", ts=9))
    decided(KEPT_MESSAGES)
    decided(KEPT_MESSAGES + 1)
    kept = [sent.message for sent in customer.messages]
    assert kept == [f"m{n}" for n in range(1, KEPT_MESSAGES + 2) if n != 7]


def test_views_are_bounded() -> None:
    """Only the latest product views are kept."""
    customer = somebody()
    fold(customer, *(new(Action, action="product_view", sku=f"s{n}", ts=n + 1) for n in range(KEPT_VIEWS + 3)))
    assert set(customer.viewed) == {f"s{n}" for n in range(3, KEPT_VIEWS + 3)}


def test_actions_make_moments() -> None:
    """An action that promotions can react to is a moment with its place and thing; others are not."""
    customer = somebody()
    (moment,) = fold(customer, new(Action, action="qr_scan", sku="coat", store="s1", fence="f1", ts=3)).moments
    assert (moment.trigger, moment.sku, moment.store, moment.fence, moment.at_ms) == ("qr_scan", "coat", "s1", "f1", 3)
    assert fold(customer, new(Action, action="staff_contact", store="s1", ts=4)).moments == []
    assert customer.last_staff_contact_ms == 4


def test_erase() -> None:
    """An erasure is reported; the caller removes the records."""
    assert fold(somebody(), new(Erase, ts=1)).erased


def test_erase_takes_the_visitors_along() -> None:
    """Each visitor who signed in is erased by an event of their own, but for those that whoever asked sees to."""
    customer = somebody()
    fold(customer, *(new(Stitch, anonymous_id=visitor, ts=1) for visitor in ("d1", "d2", "d3")))
    folded = fold(customer, new(Erase, visitors=["d2", "d9"], ts=2))
    assert folded.erased
    assert [(type(event), event.customer) for event in folded.emit] == [(Erase, "anon:d1"), (Erase, "anon:d3")]
