"""The gates, told as stories: what a shopper gets, and why not."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.customer import SegmentHistory, SentMessage
from nearcast.decisions import Decision, Reason
from nearcast.events import DeliveryStatus
from nearcast.ids import DecisionId, FenceId, MessageId, PromotionId
from nearcast.world import (
    Budget,
    Calendar,
    Cap,
    Discount,
    Experiment,
    OpenHours,
    PriceRule,
    Promotion,
    Store,
    Trigger,
    What,
    When,
    Where,
    Who,
)
from offers.candidates import candidates, settled
from offers.decide import rule_out, screen
from offers.gates import GATES, Asked, Situation, concerns, counted, every_gate, used_up
from offers.messages import message_of
from offers.policy import Policy, QuietHours
from tests.offers.examples import (
    ALL_IN_STOCK,
    BOOTS,
    DOORSTEP,
    HOUR_MS,
    NOW_MS,
    SHOP,
    STORE,
    STOVE,
    TENT,
    catalogue,
    customer,
    moment,
    promotion,
    sent,
    what_happens,
)

CART_NEARBY = promotion(who=Who(in_cart=True), what=What(discount=Discount(percent=10)))
MINUTE_MS = 60_000


def reason(*args: Any, **kwargs: Any) -> Reason | None:
    """Why nothing came of it; fails if something did, or if there was nothing to decide."""
    decision = what_happens(*args, **kwargs)
    assert isinstance(decision, Decision)
    assert decision.outcome == "nothing"
    assert decision.promotion is None
    return decision.reason


def is_offered(*args: Any, **kwargs: Any) -> bool:
    decision = what_happens(*args, **kwargs)
    return decision is not None and decision.outcome == "offer"


def test_abandoned_cart_item_in_stock_around_the_corner() -> None:
    """Walking past a store that stocks a thing from one's cart: it is offered."""
    decision = what_happens(customer(cart=(TENT,)), CART_NEARBY)
    assert decision is not None
    assert (decision.outcome, decision.promotion, decision.sku, decision.store) == ("offer", "deal", TENT, SHOP)
    assert decision.reason is None


def test_abandoned_cart_item_not_stocked_here() -> None:
    """The same, but this store has none (or never said that it has any): nothing, out of stock."""
    ann = customer(cart=(TENT,))
    assert reason(ann, CART_NEARBY, stock={(SHOP, TENT): 0}) == "out_of_stock"
    assert reason(ann, CART_NEARBY, stock={}) == "out_of_stock"


def test_the_thing_in_stock_is_chosen() -> None:
    """Of two cart items only one is in stock: that one is offered."""
    decision = what_happens(customer(cart=(TENT, BOOTS)), CART_NEARBY, stock={(SHOP, TENT): 1})
    assert decision is not None
    assert decision.sku == TENT
    assert {c.sku: c.stopped_by for c in decision.candidates} == {BOOTS: Reason.OUT_OF_STOCK, TENT: None}


def test_stock_is_no_question_away_from_stores() -> None:
    """A moment at no store (the app opened at home) asks for no stock."""
    deal = promotion(trigger="app_open", who=Who(in_cart=True))
    at_home = moment(trigger="app_open", store=None, fence=None, fence_kind=None)
    assert is_offered(customer(cart=(TENT,)), deal, at=at_home, stock={})


@pytest.mark.parametrize("kind", ["offer", "assist"])
@pytest.mark.parametrize(
    "trigger",
    ["enter", "dwell", "exit", "walk_past", "near_product", "cart_abandoned", "app_open", "qr_scan", "product_view",
     "wifi_lookup", "wishlist_add", "help_request"],
)  # fmt: skip
def test_opted_out_means_nothing_on_any_trigger(trigger: Trigger, kind: str) -> None:
    """After withdrawing consent to everything nothing is done, whatever happens and whatever was granted before."""
    ann = customer(cart=(TENT,), consents=("websocket", "sms", "email"))
    ann.consents["all"] = (False, NOW_MS)
    deal = promotion(trigger=trigger, kind=kind)
    assert reason(ann, deal, at=moment(trigger=trigger, sku=TENT)) == "opted_out"


def test_consent_to_one_of_the_channels_is_needed() -> None:
    """An offer needs consent to at least one of its channels; never having been asked is no consent."""
    assert reason(customer(consents=()), promotion()) == "no_consent"
    assert reason(customer(consents=("email",)), promotion(channels=["sms", "websocket"])) == "no_consent"
    assert is_offered(customer(consents=("email",)), promotion(channels=["sms", "email"]))


def test_staff_may_help_without_marketing_consent() -> None:
    """An alert to staff is not marketing and needs no channel's consent."""
    decision = what_happens(customer(consents=()), promotion(kind="assist"))
    assert decision is not None
    assert decision.outcome == "assist"


@pytest.mark.parametrize("kind", ["offer", "assist"])
def test_no_use_of_a_location_whose_use_was_withdrawn(kind: str) -> None:
    """After withdrawing consent to location nothing follows from where they are; other triggers go on."""
    ann = customer()
    ann.consents["location"] = (False, NOW_MS)
    assert reason(ann, promotion(kind=kind)) == "no_consent"
    assert reason(ann, promotion(kind=kind, trigger="exit"), at=moment(trigger="exit")) == "no_consent"
    scan = what_happens(ann, promotion(kind=kind, trigger="qr_scan"), at=moment(trigger="qr_scan"))
    assert scan is not None
    assert scan.outcome == kind


def test_an_uncertain_transition_is_not_acted_on() -> None:
    """Below the least confidence nothing is done; at it, it is."""
    policy = Policy(min_confidence=0.6)
    assert reason(customer(), promotion(), at=moment(confidence=0.59), policy=policy) == "low_confidence"
    assert is_offered(customer(), promotion(), at=moment(confidence=0.6), policy=policy)


def test_a_doubtful_position_brings_no_offer() -> None:
    """Up to the most doubt offers are made, beyond it none; staff is called all the same."""
    policy = Policy(max_doubt=0.4)
    assert reason(customer(), promotion(), at=moment(doubt=0.41), policy=policy) == "spoofed"
    assert is_offered(customer(), promotion(), at=moment(doubt=0.4), policy=policy)
    alert = what_happens(customer(), promotion(kind="assist"), at=moment(doubt=1.0), policy=policy)
    assert alert is not None
    assert alert.outcome == "assist"


def test_campaign_window() -> None:
    """The start is included, the end is not."""
    assert reason(customer(), promotion(when=When(starts_ms=NOW_MS + 1))) == "outside_window"
    assert is_offered(customer(), promotion(when=When(starts_ms=NOW_MS)))
    assert is_offered(customer(), promotion(when=When(ends_ms=NOW_MS + 1)))
    assert reason(customer(), promotion(when=When(ends_ms=NOW_MS))) == "outside_window"


def test_audience() -> None:
    """One of the groups is enough, one of the loyalty levels is enough, but asked for both, both must hold."""
    deal = promotion(who=Who(groups=["hikers", "climbers"], loyalty=["gold", "silver"]))
    assert is_offered(customer(groups=["hikers", "other"], loyalty="silver"), deal)
    assert reason(customer(groups=["hikers"], loyalty="bronze"), deal) == "not_in_audience"
    assert reason(customer(groups=["other"], loyalty="gold"), deal) == "not_in_audience"
    assert reason(customer(), promotion(who=Who(loyalty=["gold"]))) == "not_in_audience"


def test_entry_coupon_for_loyal_customers() -> None:
    """Coming into the store, a gold customer gets the coupon; entering a department is another moment."""
    welcome = promotion(trigger="enter", who=Who(loyalty=["gold"]), where=Where(kinds=["store"]))
    ann = customer(loyalty="gold")
    assert is_offered(ann, welcome, at=moment(trigger="enter", fence_kind="store"))
    assert what_happens(ann, welcome, at=moment(trigger="enter", fence_kind="department")) is None


def test_product_that_is_no_more() -> None:
    """A promotion (or a cart) may name a product that has left the catalogue."""
    assert reason(customer(), promotion(what=What(skus=["gone"]))) == "no_product"


def test_closed_store() -> None:
    """Nothing is offered for a store that is closed, or that the catalogue doesn't know."""
    closed = Store(id=SHOP, name="Shop", lat=0, lng=0, hours=[OpenHours(weekday=0, opens=0, closes=1440)])
    assert reason(customer(), promotion(), store=closed) == "store_closed"  # it is Sunday
    assert reason(customer(), promotion(), at=moment(store="unknown")) == "store_closed"


def test_closed_fence() -> None:
    """A fence with hours of its own stops what happens in it, by its store's clock; not what happens elsewhere."""
    at_five = [OpenHours(weekday=6, opens=17 * 60, closes=18 * 60)]  # it is Sunday, 17:06 in Vienna
    assert is_offered(customer(), promotion(), fence_hours={DOORSTEP: at_five})
    assert reason(customer(), promotion(), fence_hours={DOORSTEP: []}) == "store_closed"
    assert is_offered(customer(), promotion(), fence_hours={FenceId("other"): []})
    assert is_offered(customer(), promotion(), at=moment(fence=None), fence_hours={DOORSTEP: []})
    in_utc = msgspec.structs.replace(STORE, time_zone="UTC")
    assert reason(customer(), promotion(), store=in_utc, fence_hours={DOORSTEP: at_five}) == "store_closed"


@pytest.mark.parametrize("kind", ["offer", "assist"])
def test_already_helped(kind: str) -> None:
    """Somebody whom staff spoke to within the window, or has spoken to since, is left alone."""
    policy = Policy(staff_contact_quiet_ms=10 * MINUTE_MS)
    deal = promotion(kind=kind)
    for ago_ms in (-1, 0, 10 * MINUTE_MS - 1):
        assert reason(customer(last_staff_contact_ms=NOW_MS - ago_ms), deal, policy=policy) == "staff_contact"
    decision = what_happens(customer(last_staff_contact_ms=NOW_MS - 10 * MINUTE_MS), deal, policy=policy)
    assert decision is not None
    assert decision.outcome == kind


def test_asking_for_help_is_always_heard() -> None:
    """A call for help reaches staff although they spoke before and the thing is out of stock."""
    ann = customer(last_staff_contact_ms=NOW_MS - MINUTE_MS)
    decision = what_happens(
        ann, promotion(kind="assist", trigger="help_request"), at=moment(trigger="help_request", sku=STOVE), stock={}
    )
    assert decision is not None
    assert decision.outcome == "assist"


def test_quiet_hours_hold_back_offers_only() -> None:
    """At 17:06 in Vienna, 15:06 UTC: the customer's clock counts, then the store's; staff are alerted at any time."""
    five_to_six = Policy(quiet_hours=QuietHours(starts=17 * 60, ends=18 * 60))
    assert reason(customer(), promotion(), policy=five_to_six) == "quiet_hours"
    assert reason(customer(time_zone="Nowhere/Land"), promotion(), policy=five_to_six) == "quiet_hours"
    assert is_offered(customer(time_zone="Europe/London"), promotion(), policy=five_to_six)
    assist = what_happens(customer(), promotion(kind="assist"), policy=five_to_six)
    assert assist is not None
    assert assist.outcome == "assist"


def test_capped() -> None:
    """Once a day means once in any 24 hours; what never reached anybody doesn't count."""
    daily = promotion(caps=[Cap(count=1, period_s=86_400)])
    day_ms = 86_400_000
    assert reason(customer(messages=[sent(at_ms=NOW_MS - day_ms + 1)]), daily) == "capped"
    assert is_offered(customer(messages=[sent(at_ms=NOW_MS - day_ms)]), daily)
    assert is_offered(customer(messages=[sent(status="suppressed"), sent(status="failed")]), daily)
    assert is_offered(customer(messages=[sent("another")]), daily)
    for status in (None, "sent", "delivered", "opened", "applied", "redeemed", "recalled"):
        assert reason(customer(messages=[sent(status=status)]), daily) == "capped"


def test_capped_overall() -> None:
    """All offers together have caps of their own; alerts to staff neither count nor are counted."""
    policy = Policy(caps=(Cap(count=2, period_s=3_600),))
    deals = [promotion(id=name, trigger="exit") for name in "ab"]
    alert = promotion(id="alert", kind="assist", trigger="exit")

    def ann(*promotions: str) -> Any:
        return customer(messages=[sent(name, NOW_MS - MINUTE_MS) for name in promotions])

    assert reason(ann("a", "b"), promotion(), *deals, policy=policy) == "capped_overall"
    assert reason(ann("a", "gone"), promotion(), *deals, policy=policy) == "capped_overall"
    assert is_offered(ann("a", "alert", "alert"), promotion(), *deals, alert, policy=policy)
    assist = what_happens(ann("a", "b"), promotion(kind="assist"), *deals, policy=policy)
    assert assist is not None
    assert assist.outcome == "assist"


def test_the_first_gate_gives_the_reason() -> None:
    """Whatever else is wrong, the reason is that of the earliest gate; lifting one brings out the next."""
    spent = [sent(), sent("x"), sent("x", name="m2")]
    ann = customer(consents=(), messages=spent, last_staff_contact_ms=NOW_MS)
    ann.consents["all"] = (False, NOW_MS)
    deal: dict[str, Any] = {
        "who": Who(loyalty=["gold"]),
        "when": When(ends_ms=NOW_MS, hours=[]),
        "what": What(skus=["gone"], price_rule=PriceRule(most_percent=50)),
        "experiment": Experiment(name="words", starts=0.0, ends=1e-9),
        "in_quiet_hours": "drop",
        "caps": [Cap(count=1, period_s=86_400)],
    }
    quiet = QuietHours(starts=0, ends=1439)
    caps = (Cap(count=2, period_s=86_400), Cap(count=1, period_s=86_400, channels=["websocket", "sms", "email"]))
    world: dict[str, Any] = {
        "at": moment(confidence=0.1, doubt=0.9),
        "policy": Policy(caps=caps, quiet_hours=quiet),
        "store": Store(id=SHOP, name="Shop", lat=48.2, lng=16.37, hours=[]),
        "stock": {},
    }
    seen: list[Reason | None] = []

    def look() -> None:
        seen.append(reason(ann, promotion(**deal), **world))

    look()
    ann.consents.pop("all")
    look()
    ann.consents["sms"] = (True, NOW_MS)
    look()
    world["at"] = moment(doubt=0.9)
    look()
    world["at"] = moment()
    look()
    deal["when"] = When(hours=[])
    look()
    del deal["when"]
    look()
    del deal["who"]
    look()
    del deal["experiment"]
    look()
    world["policy"] = Policy(caps=caps, quiet_hours=quiet, personal_prices=True)
    look()
    deal["what"] = What(skus=[TENT], price_rule=PriceRule(most_percent=50))
    look()
    del world["store"]
    look()
    world["stock"] = ALL_IN_STOCK
    deal["what"] = What(skus=[TENT], instead="elsewhere")
    look()
    world["stock"] = {}
    look()
    deal["what"] = What(skus=[TENT], instead="alternative")
    look()
    world["stock"] = ALL_IN_STOCK
    deal["what"] = What(skus=[TENT], price_rule=PriceRule(most_percent=50))
    look()
    deal["what"] = What(skus=[TENT])
    look()
    ann.last_staff_contact_ms = 0
    look()
    deal["in_quiet_hours"] = "hold"
    look()
    del deal["caps"]
    ann.messages = spent[1:]
    look()
    ann.messages = spent[2:]
    look()
    ann.messages, deal["budgets"] = [], [Budget(pieces=0, per="customer")]
    look()
    del deal["budgets"]
    look()
    assert seen == [stop for stop, _ in GATES]


statuses = st.sampled_from([None, "sent", "delivered", "redeemed", "recalled", "suppressed", "failed"])


@given(
    caps=st.lists(st.builds(Cap, count=st.integers(1, 4), period_s=st.integers(1, 20)), min_size=1, max_size=3),
    attempts=st.lists(st.tuples(st.integers(0, 8), statuses), max_size=40),
)
def test_caps_against_a_naive_counter(caps: list[Cap], attempts: list[tuple[int, DeliveryStatus | None]]) -> None:
    """However moments follow each other: sent exactly when no cap is used up, so no window ever holds too many."""
    messages: list[SentMessage] = []
    counted: list[int] = []
    now_s = 1_000
    for number, (gap_s, status) in enumerate(attempts):
        now_s += gap_s
        # Seconds as the unit of the naive counter: in each of the last `period_s` seconds, how many?
        full = any(
            sum(counted.count(second) for second in range(now_s - cap.period_s + 1, now_s + 1)) >= cap.count
            for cap in caps
        )
        assert bool(used_up(caps, messages, now_s * 1000)) == full
        if not full:
            messages.append(
                SentMessage(MessageId(str(number)), DecisionId("d"), PromotionId("p"), now_s * 1000, status, None)
            )
            if status not in ("suppressed", "failed"):
                counted.append(now_s)
    for cap in caps:
        for start in counted:
            assert sum(start <= at_s < start + cap.period_s for at_s in counted) <= cap.count


def test_a_late_moment_counts_what_came_after_it() -> None:
    """Events can come out of order: a message dated after the moment counts too, so that the cap holds."""
    assert used_up([Cap(count=1, period_s=60)], [sent(at_ms=NOW_MS + HOUR_MS)], NOW_MS)


zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Pacific/Apia"])
#: A week around a change of clocks of Berlin, in quarters of an hour.
quarters = st.integers(0, 4 * 24 * 9)


@given(
    zone=zones,
    period=st.sampled_from(["day", "week", "month"]),
    count=st.integers(1, 3),
    sent_at=st.lists(st.tuples(quarters, statuses), max_size=12),
    now=quarters,
    starts=st.sampled_from([datetime(*day, tzinfo=UTC) for day in ((2018, 10, 25), (2025, 3, 27), (2011, 12, 26))]),
)
def test_calendar_caps_against_a_loop_over_local_dates(
    zone: str,
    period: Calendar,
    count: int,
    sent_at: list[tuple[int, DeliveryStatus | None]],
    now: int,
    starts: datetime,
) -> None:
    """By the customer's clock, also when it changes or leaves a date out: used up exactly if so many messages are
    dated in the same day, week or month (or later: events overtake each other)."""
    tz = ZoneInfo(zone)

    def at(quarter: int) -> datetime:
        return (starts + quarter * timedelta(minutes=15)).astimezone(tz)

    def key(local: datetime) -> tuple[int, ...]:
        week = tuple(local.isocalendar())[:2]
        return {"day": (local.year, local.month, local.day), "week": week, "month": (local.year, local.month)}[period]

    messages = [sent(at_ms=round(at(quarter).timestamp()) * 1000, status=status) for quarter, status in sent_at]
    counts = sum(key(at(quarter)) >= key(at(now)) and status not in ("suppressed", "failed")
                 for quarter, status in sent_at)  # fmt: skip
    now_ms = round(at(now).timestamp()) * 1000
    cap = Cap(count=count, period=period)
    assert counted(cap, messages, now_ms, tz) == counts
    deal = promotion(caps=[cap])
    decided = what_happens(customer(time_zone=zone, messages=messages), deal, at=moment(at_ms=now_ms))
    assert decided is not None
    assert (decided.reason == "capped") is (counts >= count)


def test_whose_midnight_it_is() -> None:
    """The customer's clock, else the store's, else UTC: at 22:30 UTC it is tomorrow in Vienna, today in New York."""
    daily, late_ms = promotion(caps=[Cap(count=1, period="day")]), NOW_MS + 7 * HOUR_MS + 24 * MINUTE_MS
    before = [sent(at_ms=late_ms - HOUR_MS)]
    assert is_offered(customer(messages=before), daily, at=moment(at_ms=late_ms))
    assert reason(customer(messages=before, time_zone="America/New_York"), daily, at=moment(at_ms=late_ms)) == "capped"
    nowhere = moment(at_ms=late_ms, store=None, fence=None, fence_kind=None, trigger="app_open")
    at_home = promotion(caps=[Cap(count=1, period="day")], trigger="app_open")
    assert reason(customer(messages=before), at_home, at=nowhere) == "capped"


def test_caps_of_a_tag_count_and_stop_its_promotions_only() -> None:
    """One food offer a day: another food offer stops, one without the tag goes on and isn't counted."""
    policy = Policy(caps=(Cap(count=1, period_s=86_400, tags=["food", "drink"]),))
    food = promotion(tags=["food"], caps=[])
    drink = msgspec.structs.replace(sent("wine", name="m1"), tags=["drink"])
    for message, stops in ((drink, True), (sent("tent", name="m2"), False)):
        ann = customer(messages=[message])
        assert is_offered(ann, promotion(caps=[]), policy=policy)
        assert is_offered(ann, food, policy=policy) is not stops
        if stops:
            assert reason(ann, food, policy=policy) == "capped_overall"
    own = promotion(tags=["food"], caps=[Cap(count=1, period_s=86_400, tags=["drink"])])
    assert is_offered(customer(messages=[sent()]), own)


@pytest.mark.parametrize(
    ("record", "left"),
    [
        ({"channel": "sms", "channels": ["websocket", "sms"]}, ["websocket", "email"]),
        ({"channel": "websocket", "channels": ["websocket", "sms"]}, ["websocket", "sms", "email"]),
        # Not known yet, or never written down: it may have gone by any that it may.
        ({"channel": None, "channels": ["websocket", "sms"]}, ["websocket", "email"]),
        ({"channel": None, "channels": ["email"]}, ["websocket", "sms", "email"]),
        ({"channel": None, "channels": []}, ["websocket", "email"]),
    ],
)
@pytest.mark.parametrize("whose", ["own", "policy"])
def test_a_capped_channel_is_left_out(record: dict[str, Any], left: list[str], whose: str) -> None:
    """One SMS a day: the next message goes by the other channels; if there is no consent to these, there is none."""
    caps = [Cap(count=1, period_s=86_400, channels=["sms"])]
    deal = promotion(channels=["websocket", "sms", "email"], caps=caps if whose == "own" else [])
    policy = Policy(caps=tuple(caps) if whose == "policy" else ())
    messages = [msgspec.structs.replace(sent(), kind="offer", **record)]
    decided = what_happens(customer(messages=messages, consents=("websocket", "sms")), deal, policy=policy)
    assert decided is not None
    message = message_of(decided, catalogue(deal))
    assert message is not None
    assert message.channels == left
    only_sms = customer(messages=messages, consents=("sms",))
    if "sms" in left:
        assert is_offered(only_sms, deal, policy=policy)
    else:
        assert reason(only_sms, deal, policy=policy) == "capped_channels"
    notice = msgspec.structs.replace(deal, kind="notice")
    told = what_happens(only_sms, notice, policy=policy)
    assert told is not None
    assert (told.outcome == "notice") is (whose == "policy" or "sms" in left)


HOURS = [OpenHours(weekday=6, opens=17 * 60, closes=18 * 60)]  # it is Sunday, 15:06 UTC


@pytest.mark.parametrize(
    ("zone", "customers", "stores", "made"),
    [
        ("store", "", "Europe/Vienna", True),
        ("store", "Europe/Vienna", "UTC", False),
        ("customer", "Europe/Vienna", "UTC", True),
        ("customer", "UTC", "Europe/Vienna", False),
        ("customer", "", "Europe/Vienna", True),
        ("Europe/Vienna", "UTC", "UTC", True),
        ("Asia/Tokyo", "Europe/Vienna", "Europe/Vienna", False),
    ],
)
def test_hours_by_the_clock_that_they_are_meant_for(zone: str, customers: str, stores: str, made: bool) -> None:
    """The store's, the customer's, or one that is named; if that isn't known, the other one."""
    deal, store = promotion(when=When(hours=HOURS, zone=zone)), msgspec.structs.replace(STORE, time_zone=stores)
    ann = customer(time_zone=customers)
    assert is_offered(ann, deal, store=store) is made
    if not made:
        assert reason(ann, deal, store=store) == "outside_hours"


def test_hours_away_from_stores() -> None:
    """Without a store its clock is the customer's; without either it is UTC."""
    at_home = moment(trigger="app_open", store=None, fence=None, fence_kind=None)
    deal = promotion(trigger="app_open", when=When(hours=HOURS))
    assert is_offered(customer(time_zone="Europe/Vienna"), deal, at=at_home)
    assert reason(customer(), deal, at=at_home) == "outside_hours"


@pytest.mark.parametrize(
    ("who", "fits", "does_not"),
    [
        (Who(bought=["shoes", "tents"]), {"segments": ["shoes"]}, {"segments": ["camping"]}),
        (Who(no_purchase_within_s=60), {"last_ms": NOW_MS - 60_000}, {"last_ms": NOW_MS - 59_999}),
        (Who(no_purchase_within_s=60), {}, {"last_ms": NOW_MS + 1}),
        (Who(attributes={"tier": ["a", "b"]}), {"attributes": {"tier": "b"}}, {"attributes": {"tier": "c"}}),
        (Who(attributes={"tier": ["a"], "pet": ["cat"]}), {"attributes": {"tier": "a", "pet": "cat"}},
         {"attributes": {"tier": "a"}}),
        (Who(min_points=100), {"points": 100}, {"points": 99}),
        (Who(consents=["sms"]), {"consents": ("websocket", "sms")}, {"consents": ("websocket",)}),
        (Who(consents=["location"]), {"consents": ("websocket", "location")}, {}),
    ],
)  # fmt: skip
def test_the_rest_of_the_audience(who: Who, fits: dict[str, Any], does_not: dict[str, Any]) -> None:
    """Purchases, attributes, points and consents: what is asked for must hold."""

    def somebody(segments: tuple[str, ...] = (), last_ms: int = 0, **fields: Any) -> Any:
        ann = customer(**fields)
        ann.history.last_ms = last_ms
        ann.history.segments = {segment: SegmentHistory(baskets=1) for segment in segments}
        return ann

    assert is_offered(somebody(**fits), promotion(who=who))
    assert reason(somebody(**does_not), promotion(who=who)) == "not_in_audience"


def test_a_notice_is_no_marketing() -> None:
    """It is for somebody who waits for it: held out of offers, over the policy's caps, in doubt where they are, a
    moment after staff spoke to them, and worth nothing. But only by a channel that they consent to."""
    notice = promotion(kind="notice", value_cents=0, cost_cents=7, caps=[])
    policy = Policy(caps=(Cap(count=1, period_s=86_400),), holdout=1.0, exploration=0.5)
    ann = customer(messages=[sent()], last_staff_contact_ms=NOW_MS)
    for number in range(20):
        decided = what_happens(ann, notice, at=moment(doubt=1.0, event=f"e{number}"), policy=policy)
        assert decided is not None
        assert (decided.outcome, decided.promotion) == ("notice", "deal")
    assert reason(customer(consents=()), notice) == "no_consent"
    capped = msgspec.structs.replace(notice, caps=[Cap(count=1, period_s=86_400)])
    assert reason(ann, capped, policy=policy) == "capped"
    offer = promotion(id="offer", trigger="exit", caps=[])
    told = [msgspec.structs.replace(sent("deal", name=f"m{n}"), kind="notice") for n in range(3)]
    assert is_offered(customer(messages=told), offer, at=moment(trigger="exit"), policy=Policy(caps=policy.caps))


def test_held_until_the_quiet_hours_are_over() -> None:
    """At 17:06 in Vienna, quiet until 08:00: a promotion that waits is decided anew then, unless something else would
    stop it now, or something else is done about the moment."""
    policy = Policy(quiet_hours=QuietHours(starts=17 * 60, ends=8 * 60))
    waits = promotion(in_quiet_hours="hold")
    morning_ms = round(datetime(2025, 6, 16, 8, tzinfo=ZoneInfo("Europe/Vienna")).timestamp()) * 1000
    held = what_happens(customer(), waits, promotion(id="drops"), policy=policy)
    assert held is not None
    assert (held.outcome, held.reason, held.held_until_ms) == ("nothing", Reason.HELD, morning_ms)
    assert [candidate.stopped_by for candidate in held.candidates] == [Reason.HELD, Reason.QUIET_HOURS]
    for changed in (
        what_happens(customer(messages=[sent()]), waits, policy=policy),
        what_happens(customer(), promotion(), policy=policy),
        what_happens(customer(), waits, promotion(id="alert", kind="assist"), policy=policy),
        what_happens(customer(), waits, policy=Policy(quiet_hours=QuietHours(starts=0, ends=1440))),
        what_happens(customer(time_zone="Europe/London"), waits, policy=policy),
    ):
        assert changed is not None
        assert changed.held_until_ms == 0
        assert changed.reason != Reason.HELD
    again = what_happens(customer(), waits, at=moment(at_ms=morning_ms, held_since_ms=NOW_MS), policy=policy)
    assert again is not None
    assert (again.outcome, again.at_ms, again.held_until_ms) == ("offer", morning_ms, 0)


@pytest.mark.parametrize(
    ("budget", "times", "made"),
    [
        (Budget(pieces=2, per="customer"), [1, 400], False),
        (Budget(pieces=3, per="customer"), [1, 400], True),
        (Budget(pieces=2, per="customer", period="day"), [1, 16], True),  # it is 15:06 UTC
        (Budget(pieces=2, per="customer", period="day"), [1, 15], False),
        (Budget(cents=1_199, per="customer"), [1, 400], False),  # 400 each
        (Budget(cents=1_200, per="customer"), [1, 400], True),
        (Budget(pieces=9, cents=399, per="customer"), [], False),
        (Budget(pieces=1, per="store"), [1, 2], True),  # shared: not this gate's business
    ],
)
def test_budget_per_customer(budget: Budget, times: list[int], made: bool) -> None:
    """Pieces and cents of what the customer was offered in the period; what reached nobody took nothing."""
    deal = promotion(budgets=[budget], what=What(discount=Discount(percent=50, most_cents=400)), caps=[])
    messages = [sent(at_ms=NOW_MS - hours * HOUR_MS, name=f"m{hours}") for hours in times]
    messages += [sent("another"), sent(status="failed", name="m")]
    if made:
        assert is_offered(customer(messages=messages), deal)
    else:
        assert reason(customer(messages=messages), deal) == "budget_exhausted"


promotions = st.builds(
    promotion,
    kind=st.sampled_from(["offer", "notice", "assist"]),
    who=st.sampled_from([Who(), Who(loyalty=["gold"]), Who(min_points=5), Who(in_cart=True)]),
    what=st.sampled_from(
        [What(), What(skus=[TENT]), What(skus=["gone"]), What(skus=[TENT], instead="elsewhere"),
         What(skus=[TENT], instead="alternative"), What(skus=[TENT], price_rule=PriceRule(most_percent=20))]
    ),
    when=st.sampled_from([When(), When(hours=[]), When(ends_ms=NOW_MS), When(starts_ms=NOW_MS)]),
    experiment=st.sampled_from([None, Experiment(name="words", starts=0.0, ends=1e-9)]),
    caps=st.sampled_from([[], [Cap(count=1, period_s=60, channels=["sms"])], [Cap(count=1, period="day")]]),
    in_quiet_hours=st.sampled_from(["drop", "hold"]),
)  # fmt: skip


@settings(max_examples=200)
@given(
    deal=promotions,
    quiet=st.booleans(),
    stock=st.sampled_from([{}, ALL_IN_STOCK]),
    helped=st.booleans(),
    messages=st.lists(st.sampled_from([sent(), sent("other")]), max_size=2),
    doubt=st.sampled_from([0.0, 1.0]),
)
def test_a_gate_that_does_not_concern_a_promotion_never_stops_it(
    deal: Promotion, quiet: bool, stock: dict[Any, int], helped: bool, messages: list[SentMessage], doubt: float
) -> None:
    """Gates are left out for speed only: asking all of them gives the same reason."""
    policy = Policy(
        quiet_hours=QuietHours(starts=0, ends=1439) if quiet else None, caps=(Cap(count=2, period_s=86_400),)
    )
    ann = customer(cart=(TENT,), messages=messages, last_staff_contact_ms=NOW_MS if helped else 0)
    at, world = moment(doubt=doubt), catalogue(deal)
    situation = Situation(at, ann, world, stock, policy)
    found = candidates(at, ann, world)
    screened = screen(at, ann, found, world, stock, policy)
    for candidate, outcome in zip(found, screened, strict=True):
        every = every_gate(Asked(situation, deal, settled(candidate, at, ann, world, stock)))
        assert [reason for reason, stops in every if stops and not concerns(reason, deal)] == []
        assert next((reason for reason, stops in every if stops), None) == outcome.stopped_by


def test_screening_in_one_step_or_in_two() -> None:
    """The engine looks the stock up in between: what was found before that is used again, for the same moment only."""
    deals = [promotion(id="a", who=Who(loyalty=["gold"])), promotion(id="b", what=What(skus=[TENT]))]
    ann, at, world, policy = customer(), moment(), catalogue(*deals), Policy()
    found = candidates(at, ann, world)
    ruled = rule_out(at, ann, found, world, policy)
    for stock in ({}, ALL_IN_STOCK):
        assert screen(at, ann, ruled, world, stock, policy) == screen(at, ann, found, world, stock, policy)
    opted_out = customer()
    opted_out.consents["all"] = (False, NOW_MS)
    stops = [candidate.stopped_by for candidate in screen(at, opted_out, ruled, world, ALL_IN_STOCK, policy)]
    assert stops == ["not_in_audience", "opted_out"]
