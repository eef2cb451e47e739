"""What the model sees: finite for anybody, and what the names say."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from models.features.redeem import REDEEM, candidate_row, customer_part, row
from models.scorer import Scorer
from nearcast import fold
from nearcast.customer import Customer
from nearcast.decisions import Decision
from nearcast.events import AnyEvent, Cart, DeliveryStatus, Line, Purchase, Receipt
from nearcast.ids import CustomerId, DecisionId, EventId, MessageId, PromotionId
from nearcast.moments import Moment
from nearcast.world import Promotion, What, Words

DAY_MS = 86_400_000
NOW_MS = 1_750_000_000_000
SEGMENTS = {"cola": "drinks", "beer": "drinks", "soap": "care"}
LAST_MS = 9_999_999_999_999

SHIPPED = Scorer.load(Path(models.__file__).parent / "artifacts" / "redeem")

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
VALID_S = st.floats(0, 366 * 86_400, exclude_min=True)
WHATS = st.builds(
    What,
    skus=st.lists(st.sampled_from(["cola", "soap"]), max_size=2),
    segments=st.lists(st.sampled_from(["drinks", "care", "never-sold"]), max_size=3, unique=True),
)


def promotion(what: What = What(), valid_s: float = 7 * 86_400) -> Promotion:  # noqa: B008  immutable
    return Promotion(
        id="p", name="P", trigger="enter", what=what, coupon_valid_s=valid_s, words={"en": Words(title="Hello")}
    )


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


def report(customer: Customer, message: str, status: DeliveryStatus) -> None:
    receipt = Receipt(
        id=f"{message}-{status}", uid="u", ts=NOW_MS - 1, message=message, decision=f"decision-{message}", status=status
    )
    fold.apply(customer, receipt, SEGMENTS, fold.FoldRules())


@given(st.lists(EVENTS, max_size=8), WHATS, st.sampled_from([None, "drinks", "other"]), TIMES, VALID_S)
def test_every_feature_is_finite(
    events: list[AnyEvent], what: What, segment: str | None, at_ms: int, valid_s: float
) -> None:
    """Whatever happened, in whatever order and at whatever time, a row is complete, finite and fits 32 bits."""
    customer = Customer(id=CustomerId("u"))
    for message in "ab":
        send(customer, message)
    for number, event in enumerate(events):
        event.id = f"event-{number}"
        fold.apply(customer, event, SEGMENTS, fold.FoldRules())
    values = row(customer, promotion(what, valid_s), segment, at_ms)
    assert len(values) == len(REDEEM.columns)
    assert all(math.isfinite(value) and 0 <= value < 1e3 for value in values)


def test_a_customer_never_heard_of_has_a_row() -> None:
    """Nothing known: zeros, but for how long the coupon is valid and for what is expected of anybody."""
    features = known(Customer(id=CustomerId("u")))
    assert features.pop("log_days_valid") == pytest.approx(math.log(7))
    assert features.pop("log_redemption_share") == pytest.approx(math.log(1 + 0.1 / 0.05))
    assert features.pop("log_days_since_segment") == pytest.approx(math.log(366))
    assert set(features.values()) == {0.0}


def test_the_figures_are_what_the_names_say() -> None:
    """Two baskets, 28 and 7 days ago, one with a coupon; three messages, one redeemed, one failed: by hand."""
    customer = Customer(id=CustomerId("u"))
    buy(customer, NOW_MS - 28 * DAY_MS, Line(sku="cola", amount_cents=600, coupon_cents=50), Line(sku="soap"))
    buy(customer, NOW_MS - 7 * DAY_MS, Line(sku="soap", amount_cents=1_000), Line(sku="beer", amount_cents=200))
    for message in "abc":
        send(customer, message)
    report(customer, "a", "redeemed")
    report(customer, "c", "failed")
    week = 2 ** (-7 / 28)
    # Half of the memory of a long time, and a week, in four weeks.
    known_for = 0.5 / math.log(2) + 7 / 28
    assert known(customer, What(segments=["drinks"])) == pytest.approx(
        {
            "log_recent_spend": math.log(1 + 6 * 0.5 + 12 * week),
            "log_coupon_basket_share": math.log(1 + 0.5 / 0.02),
            "log_redemption_share": math.log(1 + 1.1 / 3 / 0.05),
            "log_segment_rate": math.log(1 + (0.5 + week) / known_for),
            "log_segment_coupon_rate": math.log(1 + 0.5 / known_for),
            "segment_spend_share": 800 / 1_800,
            "log_days_since_segment": math.log(1 + 7),
            "log_days_valid": math.log(7),
        }
    )


def test_the_end_of_a_customers_history_does_not_change_a_steady_shopper() -> None:
    """A basket a week is the same rate after a quarter and after two years: rates, not totals."""
    rates = []
    for weeks in (13, 104):
        customer = Customer(id=CustomerId("u"))
        for week in range(weeks, 0, -1):
            buy(customer, NOW_MS - week * 7 * DAY_MS, Line(sku="cola", amount_cents=300, coupon_cents=10))
        rates.append(known(customer, What(segments=["drinks"])))
    assert rates[0]["log_segment_rate"] == pytest.approx(rates[1]["log_segment_rate"], abs=0.1)
    assert rates[0]["log_segment_coupon_rate"] == pytest.approx(rates[1]["log_segment_coupon_rate"], abs=0.1)
    assert rates[0]["log_coupon_basket_share"] == rates[1]["log_coupon_basket_share"]


@given(st.permutations([1, 5, 9, 20]))
def test_coupons_count_alike_in_any_order(days: list[int]) -> None:
    """Purchases that are heard of late are worth what they would have been in time."""
    customer, late = Customer(id=CustomerId("u")), Customer(id=CustomerId("u"))
    for one, order in ((customer, sorted(days, reverse=True)), (late, days)):
        for day in order:
            buy(one, NOW_MS - day * DAY_MS, Line(sku="cola", amount_cents=300, coupon_cents=10))
    assert known(late, What(segments=["drinks"])) == pytest.approx(known(customer, What(segments=["drinks"])))


def test_what_is_on_offer_decides_the_segments() -> None:
    """The promotion's segments count, then the candidate's; a promotion on nothing in particular offers everything."""
    customer = Customer(id=CustomerId("u"))
    for day in (1, 2, 3):
        buy(customer, NOW_MS - day * DAY_MS, Line(sku="cola", amount_cents=300))
    buy(customer, NOW_MS - 4 * DAY_MS, Line(sku="soap", amount_cents=100, coupon_cents=1))

    def bought(what: What, segment: str | None) -> tuple[float, float]:
        features = known(customer, what, segment)
        return features["log_segment_rate"], features["log_segment_coupon_rate"]

    drinks, care = bought(What(segments=["drinks"]), None), bought(What(segments=["care"]), None)
    assert drinks[0] > care[0] > 0.0
    assert care[1] > drinks[1] == 0.0
    both = bought(What(segments=["drinks", "care", "toys"]), None)
    assert both > max(drinks, care)
    assert bought(What(segments=["drinks"]), "care") == drinks
    assert bought(What(skus=["soap"]), "care") == care
    assert bought(What(), "care") == care
    assert bought(What(), None) == both
    assert bought(What(skus=["mystery"]), None) == (0.0, 0.0)


@pytest.mark.parametrize(("valid_s", "days"), [(7_200, 4.0), (10 * 86_400, 10.0), (300 * 86_400, 60.0)])
def test_validity_is_kept_within_what_training_knows(valid_s: float, days: float) -> None:
    """Two hours are taken for four days, most of a year for sixty days."""
    values = row(Customer(id=CustomerId("u")), promotion(valid_s=valid_s), None, NOW_MS)
    assert values[REDEEM.columns.index("log_days_valid")] == pytest.approx(math.log(days))


@given(st.lists(EVENTS, max_size=8), st.lists(st.tuples(WHATS, st.sampled_from([None, "drinks"])), max_size=4), TIMES)
def test_one_part_serves_all_candidates(
    events: list[AnyEvent], candidates: list[tuple[What, str | None]], at_ms: int
) -> None:
    """Rows from one customer part are those that each candidate would have had alone, to the last bit."""
    customer = Customer(id=CustomerId("u"))
    for number, event in enumerate(events):
        event.id = f"event-{number}"
        fold.apply(customer, event, SEGMENTS, fold.FoldRules())
    part = customer_part(customer, at_ms)
    for what, segment in candidates:
        assert candidate_row(part, promotion(what), segment) == row(customer, promotion(what), segment, at_ms)


@given(st.lists(EVENTS, max_size=8), WHATS, st.floats(1, 30 * 86_400), st.floats(1, 30 * 86_400))
def test_more_is_never_less_likely(events: list[AnyEvent], what: What, valid_s: float, longer_s: float) -> None:
    """The shipped model, for any customer: a coupon used on what is on offer, or more time, lowers no score."""
    customer = Customer(id=CustomerId("u"))
    at_ms = LAST_MS
    for number, event in enumerate(events):
        event.id = f"event-{number}"
        fold.apply(customer, event, SEGMENTS, fold.FoldRules())
    before = row(customer, promotion(what, valid_s), None, at_ms)
    later = row(customer, promotion(what, valid_s + longer_s), None, at_ms)
    used = Line(sku="soap" if "care" in what.segments else "cola", amount_cents=500, coupon_cents=100)
    buy(customer, at_ms, used)
    after = row(customer, promotion(what, valid_s), None, at_ms)
    lowest, *others = SHIPPED.score([before, later, after])
    assert min(others) >= lowest - 1e-7


def test_a_row_leaves_the_customer_alone() -> None:
    """Scoring a candidate changes nothing."""
    customer, twin = Customer(id=CustomerId("u")), Customer(id=CustomerId("u"))
    for one in (customer, twin):
        buy(one, NOW_MS - DAY_MS, Line(sku="cola", amount_cents=300))
    known(customer, What(segments=["drinks", "care"]))
    assert customer == twin


def test_the_hash_names_these_features() -> None:
    """Names and hash change together: whoever changes one sees that shipped models must be trained again."""
    assert REDEEM.hash == "c16070d198a3db8b80aed331f99efee22f3c587515d1ef038c6c0f204d8f1a38"
