"""What the model sees: finite for anybody, and what the names say."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.features.redeem import REDEEM, row
from nearcast import fold
from nearcast.customer import Customer
from nearcast.decisions import Decision
from nearcast.events import AnyEvent, Cart, Line, Purchase, Receipt
from nearcast.ids import CustomerId, DecisionId, EventId, MessageId, PromotionId
from nearcast.moments import Moment
from nearcast.world import Promotion, What, Words

DAY_MS = 86_400_000
NOW_MS = 1_750_000_000_000
SEGMENTS = {"cola": "drinks", "beer": "drinks", "soap": "care"}
LAST_MS = 9_999_999_999_999

TIMES = st.integers(0, LAST_MS)
LINES = st.builds(
    Line,
    sku=st.sampled_from(["cola", "beer", "soap", "unknown"]),
    quantity=st.integers(0, 100_000),
    amount_cents=st.integers(0, 10_000_000_000),
    coupon_cents=st.integers(0, 10_000_000_000),
)
EVENTS = st.one_of(
    st.builds(Purchase, uid=st.just("u"), ts=TIMES, items=st.lists(LINES, min_size=1, max_size=4)),
    st.builds(Cart, uid=st.just("u"), ts=TIMES, action=st.sampled_from(["add", "set"]), sku=st.just("cola")),
    st.builds(
        Receipt,
        uid=st.just("u"),
        ts=TIMES,
        message=st.sampled_from("ab"),
        decision=st.just("d"),
        status=st.sampled_from(["sent", "redeemed", "failed"]),
    ),
)
WHATS = st.builds(
    What,
    skus=st.lists(st.sampled_from(["cola", "soap"]), max_size=2),
    segments=st.lists(st.sampled_from(["drinks", "care", "never-sold"]), max_size=3, unique=True),
)


def promotion(what: What = What()) -> Promotion:  # noqa: B008  immutable
    return Promotion(id="p", name="P", trigger="enter", what=what, words={"en": Words(title="Hello")})


def known(customer: Customer, what: What = What(), segment: str | None = None) -> dict[str, float]:  # noqa: B008
    """The customer's features now, by name."""
    return dict(zip(REDEEM.columns, row(customer, promotion(what), segment, NOW_MS), strict=True))


def buy(customer: Customer, at_ms: int, *items: Line) -> None:
    purchase = Purchase(id=f"purchase-{at_ms}", uid=customer.id, ts=at_ms, items=list(items))
    fold.apply(customer, purchase, SEGMENTS, fold.FoldRules())


def send(customer: Customer, message: str) -> None:
    moment = Moment(event=EventId("e"), customer=customer.id, trigger="enter", at_ms=1, subject="")
    decision = Decision(
        id=DecisionId(f"decision-{message}"),
        moment=moment,
        outcome="offer",
        at_ms=1,
        deadline_ms=2,
        candidates=[],
        rules_version="r",
        model_version="m",
        promotion=PromotionId("p"),
    )
    fold.record_message(customer, MessageId(message), decision)


@given(st.lists(EVENTS, max_size=8), WHATS, st.sampled_from([None, "drinks", "other"]), TIMES)
def test_every_feature_is_finite(events: list[AnyEvent], what: What, segment: str | None, at_ms: int) -> None:
    """Whatever happened, in whatever order and at whatever time, a row is complete, finite and fits 32 bits."""
    customer = Customer(id=CustomerId("u"))
    for message in "ab":
        send(customer, message)
    for number, event in enumerate(events):
        event.id = f"event-{number}"
        fold.apply(customer, event, SEGMENTS, fold.FoldRules())
    values = row(customer, promotion(what), segment, at_ms)
    assert len(values) == len(REDEEM.columns)
    assert all(math.isfinite(value) and 0 <= value < 1e6 for value in values)


def test_a_customer_never_heard_of_has_a_row() -> None:
    """Nothing known: zeros, except that the last purchase is long ago."""
    features = known(Customer(id=CustomerId("u")))
    long_ago = pytest.approx(math.log(366))
    assert features.pop("log_days_since_purchase") == long_ago
    assert features.pop("segment_log_days_since_purchase") == long_ago
    assert set(features.values()) == {0.0}


def test_the_figures_are_what_the_names_say() -> None:
    """Two baskets, 28 and 7 days ago, one with a coupon; two messages, one redeemed: worked out by hand."""
    customer = Customer(id=CustomerId("u"))
    buy(customer, NOW_MS - 28 * DAY_MS, Line(sku="cola", amount_cents=600), Line(sku="soap", amount_cents=200))
    buy(customer, NOW_MS - 7 * DAY_MS, Line(sku="soap", amount_cents=1_100, coupon_cents=100))
    send(customer, "a")
    send(customer, "b")
    redeemed = Receipt(id="r", uid="u", ts=NOW_MS - 1, message="a", decision="decision-a", status="redeemed")
    fold.apply(customer, redeemed, SEGMENTS, fold.FoldRules())
    week = 2 ** (-7 / 28)
    assert known(customer, What(segments=["drinks"])) == pytest.approx(
        {
            "log_recent_baskets": math.log(1 + 0.5 + week),
            "log_recent_spend": math.log(1 + 8 * 0.5 + 11 * week),
            "log_basket_spend": math.log(1 + 19 / 2),
            "log_days_since_purchase": math.log(1 + 7),
            "coupon_basket_share": 0.5,
            "coupon_spend_share": 100 / 2_000,
            "log_messages": math.log(3),
            "log_redemptions": math.log(2),
            "log_distinct_segments": math.log(3),
            "segment_spend_share": 6 / 19,
            "segment_log_days_since_purchase": math.log(1 + 28),
        }
    )


def test_what_is_on_offer_decides_the_segments() -> None:
    """The promotion's segments count, then the candidate's; a promotion on nothing in particular offers everything."""
    customer = Customer(id=CustomerId("u"))
    buy(customer, NOW_MS - DAY_MS, Line(sku="cola", amount_cents=300), Line(sku="soap", amount_cents=100))

    def share(what: What, segment: str | None) -> float:
        return known(customer, what, segment)["segment_spend_share"]

    assert share(What(segments=["drinks"]), "care") == 0.75
    assert share(What(segments=["drinks", "care", "toys"]), None) == 1.0
    assert share(What(skus=["soap"]), "care") == 0.25
    assert share(What(), "care") == 0.25
    assert share(What(), None) == 1.0
    assert share(What(skus=["mystery"]), None) == 0.0


def test_a_row_leaves_the_customer_alone() -> None:
    """Scoring a candidate changes nothing."""
    customer, twin = Customer(id=CustomerId("u")), Customer(id=CustomerId("u"))
    for one in (customer, twin):
        buy(one, NOW_MS - DAY_MS, Line(sku="cola", amount_cents=300))
    known(customer, What(segments=["drinks", "care"]))
    assert customer == twin


def test_the_hash_names_these_features() -> None:
    """Names and hash change together: whoever changes one sees that shipped models must be trained again."""
    assert REDEEM.hash == "0deca45e780f3340e77f7221d24d6d9b9334d6c9560e3fb44a3e1d8ad3b4d077"
