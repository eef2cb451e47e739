"""The gates, told as stories: what a shopper gets, and why not."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.customer import SentMessage
from nearcast.decisions import Decision, Reason
from nearcast.events import DeliveryStatus
from nearcast.ids import DecisionId, FenceId, MessageId, PromotionId
from nearcast.world import Cap, Discount, Experiment, OpenHours, Store, Trigger, What, When, Where, Who
from offers.gates import GATES, used_up
from offers.policy import Policy, QuietHours
from tests.offers.examples import (
    BOOTS,
    DOORSTEP,
    HOUR_MS,
    NOW_MS,
    SHOP,
    STORE,
    STOVE,
    TENT,
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
    ann = customer(consents=(), messages=[sent(), sent("x")], last_staff_contact_ms=NOW_MS)
    ann.consents["all"] = (False, NOW_MS)
    wrong: dict[str, Any] = {
        "who": Who(loyalty=["gold"]),
        "when": When(ends_ms=NOW_MS),
        "what": What(skus=["gone"]),
        "experiment": Experiment(name="words", starts=0.0, ends=1e-9),
    }
    closed = Store(id=SHOP, name="Shop", lat=0, lng=0, hours=[])
    policy = Policy(caps=(Cap(count=1, period_s=86_400),), quiet_hours=QuietHours(starts=0, ends=1440))
    seen = []

    def look(**changed: Any) -> None:
        seen.append(reason(ann, promotion(**wrong), **{"at": moment(confidence=0.1), "policy": policy, **changed}))

    look(store=closed)
    ann.consents.pop("all")
    look(store=closed)
    ann.consents["sms"] = (True, NOW_MS)
    look(store=closed)
    look(store=closed, at=moment(doubt=0.9))
    look(store=closed, at=moment())
    del wrong["when"]
    look(store=closed, at=moment())
    del wrong["who"]
    look(store=closed, at=moment())
    del wrong["experiment"]
    look(store=closed, at=moment())
    wrong["what"] = What(skus=[TENT])
    look(store=closed, at=moment(), stock={})
    look(at=moment(), stock={})
    look(at=moment())
    ann.last_staff_contact_ms = 0
    look(at=moment())
    policy = Policy(caps=policy.caps)
    look(at=moment())
    ann.messages = ann.messages[1:]
    look(at=moment())
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
        assert used_up(caps, messages, now_s * 1000) == full
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
