"""Why not: every condition and every gate is named, and says what the decision itself would."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from nearcast.customer import Customer, Presence
from nearcast.decisions import Candidate, Decision, Reason, WouldBe
from nearcast.ids import DecisionId, FenceId, PromotionId, Sku, StoreId
from nearcast.world import (
    Budget,
    Cap,
    Circle,
    Discount,
    Experiment,
    Fence,
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
from offers.candidates import candidates
from offers.decide import screen
from offers.explain import _DETAILS, Explanation, explain, situation_for
from offers.gates import GATES
from offers.policy import Policy, QuietHours
from tests.offers.examples import (
    ALL_IN_STOCK,
    BOOTS,
    DOORSTEP,
    NOW_MS,
    SHOP,
    STORE,
    TENT,
    catalogue,
    customer,
    inside,
    moment,
    promotion,
    sent,
    what_happens,
)

DOOR = Circle((16.37, 48.2), 50.0)
FENCES = {
    fence.fence_id: fence
    for fence in (
        Fence(id="elsewhere", store="other", kind="vicinity", geometry=DOOR),
        Fence(id="doorstep", store="shop", kind="vicinity", geometry=DOOR),
        Fence(id="hall", store="shop", kind="store", geometry=DOOR, parent="doorstep"),
        Fence(id="shoes", store="shop", kind="department", geometry=DOOR, parent="hall"),
        Fence(id="boots", store="shop", kind="product", sku="boots", geometry=DOOR),
        Fence(id="tents", store="shop", kind="product", sku="tent", geometry=DOOR),
    )
}
NOWHERE = Presence()


def why_not(
    shopper: Customer,
    offer: Promotion,
    presence: Presence = NOWHERE,
    *,
    at: StoreId | None = None,
    stock: Any = ALL_IN_STOCK,
    policy: Policy | None = None,
    store: Store = STORE,
    fence_hours: Mapping[FenceId, Sequence[OpenHours]] | None = None,
    decisions: tuple[Decision, ...] = (),
) -> Explanation:
    world = catalogue(offer, store=store, fence_hours=fence_hours)
    asked, assumed = situation_for(offer, shopper, presence, FENCES, world, at, NOW_MS)
    return explain(offer, asked, assumed, shopper, world, stock, policy or Policy(), decisions)


@pytest.mark.parametrize(
    ("shopper", "offer", "options", "reason", "said"),
    [
        ({"consents": ("websocket",)}, {}, {}, None, "websocket"),
        ({"consents": ()}, {}, {}, Reason.NO_CONSENT, "consented to none"),
        ({}, {"when": When(ends_ms=NOW_MS)}, {}, Reason.OUTSIDE_WINDOW, "until 2025-06-15T15:06:40Z"),
        ({}, {"who": Who(loyalty=["gold"])}, {}, Reason.NOT_IN_AUDIENCE, "loyalty gold"),
        ({}, {"what": What(skus=["gone"])}, {}, Reason.NO_PRODUCT, "gone is not in the catalogue"),
        (
            {},
            {},
            {"store": Store(id="shop", name="Shop", lat=48.2, lng=16.37, hours=[])},
            Reason.STORE_CLOSED,
            "shop is closed",
        ),
        ({}, {"what": What(skus=["tent"])}, {"stock": {}}, Reason.OUT_OF_STOCK, "0 pieces of tent at shop"),
        ({"last_staff_contact_ms": NOW_MS - 60_000}, {}, {}, Reason.STAFF_CONTACT, "last 2025-06-15T15:05:40Z"),
        (
            {},
            {},
            {"policy": Policy(quiet_hours=QuietHours(starts=0, ends=1439))},
            Reason.QUIET_HOURS,
            "00:00 to 23:59 in Europe/Vienna",
        ),
        (
            {},
            {"in_quiet_hours": "hold"},
            {"policy": Policy(quiet_hours=QuietHours(starts=0, ends=1439))},
            Reason.HELD,
            "waits until 2025-06-15T21:59:00Z",
        ),
        (
            {},
            {"when": When(hours=[OpenHours(0, 540, 600)])},
            {},
            Reason.OUTSIDE_HOURS,
            "Mon 09:00-10:00 in Europe/Vien",
        ),
        ({"points": 3}, {"who": Who(min_points=9)}, {}, Reason.NOT_IN_AUDIENCE, "asks for 9 points; has 3 (does not"),
        (
            {"attributes": {"pet": "dog"}},
            {"who": Who(attributes={"pet": ["cat"]}, groups=[])},
            {},
            Reason.NOT_IN_AUDIENCE,
            "asks for pet cat; has dog",
        ),
        (
            {},
            {"what": What(skus=["tent"], price_rule=PriceRule(most_percent=9))},
            {},
            Reason.PERSONAL_PRICES_OFF,
            "switched off",
        ),
        (
            {},
            {"what": What(skus=["tent"], price_rule=PriceRule(most_percent=9))},
            {"policy": Policy(personal_prices=True)},
            Reason.NO_ANCHOR_PRICE,
            "needs a price that they paid",
        ),
        ({}, {"what": What(skus=["tent"], instead="elsewhere")}, {}, Reason.IN_STOCK, "3 pieces of tent at shop"),
        ({}, {"what": What(skus=["tent"], instead="elsewhere")}, {"stock": {}}, Reason.NOWHERE_ELSE, "within 10000 m"),
        (
            {},
            {"what": What(skus=["tent"], instead="alternative")},
            {"stock": {}},
            Reason.NO_ALTERNATIVE,
            "needs another",
        ),
        (
            {"messages": [sent()]},
            {"caps": [Cap(count=1, period="week", channels=["websocket"])]},
            {},
            Reason.CAPPED_CHANNELS,
            "used up for websocket",
        ),
        (
            {"messages": [sent()]},
            {
                "budgets": [Budget(pieces=1, cents=500, per="customer")],
                "caps": [],
                "what": What(discount=Discount(amount_cents=300)),
            },
            {},
            Reason.BUDGET_EXHAUSTED,
            "1 of 1 pieces and 300 of 500 cents, 300 more at most (all)",
        ),
        ({"messages": [sent()]}, {"caps": [Cap(count=1, period="day")]}, {}, Reason.CAPPED, "1 of 1 in the day"),
        ({"messages": [sent()]}, {}, {}, Reason.CAPPED, "1 of 1 in 86400 s"),
        ({"messages": [sent(status="failed")]}, {}, {}, None, ""),
        (
            {"messages": [sent("other")]},
            {},
            {"policy": Policy(caps=(Cap(count=1, period_s=86_400),))},
            Reason.CAPPED_OVERALL,
            "1 of 1 in 86400 s",
        ),
    ],
)
def test_what_a_gate_says(
    shopper: dict[str, Any], offer: dict[str, Any], options: dict[str, Any], reason: Reason | None, said: str
) -> None:
    """The reason is that of the decision which the same moment would lead to; the gate tells what it looked at."""
    ann, deal = customer(**shopper), promotion(**offer)
    told = why_not(ann, deal, inside(DOORSTEP), **options)
    (thing,) = told.things
    assert (thing.stopped_by, told.candidate, told.situation.assumed) == (reason, True, False)
    decided = what_happens(ann, deal, **options)
    assert decided is not None
    assert decided.reason == reason
    assert [gate.name for gate in thing.gates] == [name for name, _ in GATES]
    assert next((gate.name for gate in thing.gates if not gate.passes), None) == reason
    about = reason or Reason.NO_CONSENT
    assert said in next(gate.detail for gate in thing.gates if gate.name == about)
    assert (reason.value if reason else "nothing stops it now") in told.summary


def test_all_gates_are_told() -> None:
    """A gate further on is told as well, though the decision never got there; and each gate has its words."""
    (thing,) = why_not(customer(consents=(), messages=[sent()]), promotion(), inside(DOORSTEP)).things
    assert thing.stopped_by == Reason.NO_CONSENT
    assert [gate.name for gate in thing.gates if not gate.passes] == [Reason.NO_CONSENT, Reason.CAPPED]
    assert list(_DETAILS) == [name for name, _ in GATES]


@pytest.mark.parametrize(
    ("shopper", "offer", "presence", "missing"),
    [
        ({}, {"who": Who(in_cart=True)}, inside(DOORSTEP), ["who.in_cart", "what"]),
        (
            {"cart": (BOOTS,)},
            {"who": Who(in_cart=True), "what": What(skus=["tent"])},
            inside(DOORSTEP),
            ["who.in_cart", "what"],
        ),
        (
            {"cart": (TENT,)},
            {"who": Who(in_cart=True, on_wishlist=True)},
            inside(DOORSTEP),
            ["who.on_wishlist", "what"],
        ),
        ({}, {"where": Where(stores=["third"])}, inside(DOORSTEP), ["trigger", "where.stores"]),
        ({}, {"where": Where(fences=["hall"])}, inside(DOORSTEP), ["trigger", "where.fences"]),
        ({}, {"trigger": "enter", "where": Where(kinds=["store"])}, inside(DOORSTEP), ["trigger"]),
        ({}, {"trigger": "cart_abandoned"}, NOWHERE, ["trigger"]),
        ({}, {"trigger": "cart_abandoned", "where": Where(stores=["shop"])}, NOWHERE, ["trigger", "where.stores"]),
        ({"viewed": {BOOTS: 5}}, {"trigger": "product_view", "what": What(skus=["tent"])}, NOWHERE, ["what"]),
        (
            {},
            {"trigger": "app_open", "what": What(skus=["tent"], instead="elsewhere")},
            NOWHERE,
            ["what.instead", "what"],
        ),
    ],
)
def test_what_a_promotion_asks_for(
    shopper: dict[str, Any], offer: dict[str, Any], presence: Presence, missing: list[str]
) -> None:
    """Each condition that doesn't hold is named; those that hold are there, too."""
    told = why_not(customer(**shopper), promotion(**offer), presence)
    assert [each.name for each in told.conditions if each.holds is False] == missing
    # Nothing is a candidate whose own conditions fail; the trigger alone may still come.
    assert told.candidate is (missing == ["trigger"])
    assert ("conditions" in told.summary) is not told.candidate


def test_where_it_is_asked_about() -> None:
    """Where the customer is, if the promotion fits there; else ("assumed") a fitting fence: of the store that was
    named, of the thing that is on offer."""
    at_tents = promotion(trigger="near_product", what=What(skus=["tent"]))
    told = why_not(customer(), at_tents, inside(FenceId("boots"), FenceId("tents")))
    assert (told.situation.fence, told.situation.sku, told.situation.assumed) == ("tents", TENT, False)
    told = why_not(customer(), at_tents, inside(FenceId("boots")))
    assert (told.situation.fence, told.situation.sku, told.situation.assumed) == ("tents", TENT, True)
    assert "has not come yet" in told.summary
    assert why_not(customer(), promotion()).situation.fence == "elsewhere"
    assert why_not(customer(), promotion(), at=SHOP).situation.fence == DOORSTEP
    assert why_not(customer(), promotion(trigger="exit"), inside(FenceId("hall"))).situation.fence == "hall"
    help_wanted = why_not(customer(), promotion(trigger="help_request", kind="assist"), at=SHOP)
    assert (help_wanted.situation.store, help_wanted.conditions[0].holds) == (SHOP, None)


def test_a_fence_in_the_one_that_is_asked_for() -> None:
    """What is promised for a fence fits in the fences in it, and it is told in which fences they are."""
    deal = promotion(trigger="enter", where=Where(fences=["hall"]))
    told = why_not(customer(), deal, inside(FenceId("shoes")))
    assert (told.situation.fence, told.situation.assumed, told.candidate) == ("shoes", False, True)
    (fences,) = [each for each in told.conditions if each.name == "where.fences"]
    assert (fences.holds, fences.detail) == (True, "asks for hall; it is shoes, in hall, doorstep")


def test_a_closed_fence_is_told() -> None:
    """Store and fence are told apart."""
    told = why_not(customer(), promotion(), inside(DOORSTEP), fence_hours={DOORSTEP: []})
    assert told.things[0].stopped_by == Reason.STORE_CLOSED
    (gate,) = [gate for gate in told.things[0].gates if gate.name == Reason.STORE_CLOSED]
    assert gate.detail == "shop is open, doorstep in it is closed"


@pytest.mark.parametrize("trigger", ["exit", "approach", "cross"])
def test_moments_of_someone_who_is_not_in_the_fence(trigger: Trigger) -> None:
    """They have a place, too; and need the consent to use it."""
    told = why_not(customer(consents=("websocket",)), promotion(trigger=trigger), at=SHOP)
    assert (told.situation.fence, told.candidate) == (DOORSTEP, True)
    told = why_not(customer(), promotion(trigger=trigger, kind="assist"), at=SHOP)
    assert told.things[0].stopped_by is None
    ann = customer()
    ann.consents["location"] = (False, NOW_MS)
    assert why_not(ann, promotion(trigger=trigger, kind="assist"), at=SHOP).things[0].stopped_by == Reason.NO_CONSENT


def test_what_is_asked_is_what_is_decided() -> None:
    """The things and the reasons are those that candidates and gates come to, for the moment that is shown."""
    deal = promotion(what=What(segments=["camping"]))
    ann = customer(cart=(TENT,))
    told = why_not(ann, deal, inside(DOORSTEP), stock={(SHOP, TENT): 1})
    world = catalogue(deal)
    at = moment(subject=told.situation.fence)
    screened = screen(at, ann, candidates(at, ann, world), world, {(SHOP, TENT): 1}, Policy())
    assert [(each.sku, each.stopped_by) for each in told.things] == [(each.sku, each.stopped_by) for each in screened]
    assert [each.stopped_by for each in told.things] == [None, Reason.OUT_OF_STOCK]
    assert "nothing stops it now" in told.summary


def test_past_decisions() -> None:
    """Where the promotion was a candidate: what stopped it, who won, what became of its message. No others."""
    ann = customer(cart=(TENT,), messages=[sent(status="suppressed")])
    dear = promotion(id="dear", value_cents=9_000)
    outranked = what_happens(ann, promotion(), dear)
    stopped = what_happens(customer(consents=()), promotion())
    unrelated = what_happens(ann, dear)
    won = Decision(
        id=DecisionId("d0"),
        moment=moment(),
        outcome="offer",
        at_ms=NOW_MS,
        deadline_ms=NOW_MS,
        candidates=[Candidate(promotion=PromotionId("deal"), sku=Sku("tent"), propensity=0.5, expected_cents=50.0)],
        rules_version="r",
        model_version="m",
        promotion=PromotionId("deal"),
    )
    assert outranked is not None
    assert stopped is not None
    assert unrelated is not None
    told = why_not(ann, promotion(), inside(DOORSTEP), decisions=(outranked, stopped, unrelated, won))
    assert (told.decisions, told.stopped_by) == (4, {"no_consent": 1, "outranked": 1, "won": 1})
    assert [(each.winner, each.things[0].stopped_by, each.message_status) for each in told.past] == [
        ("dear", Reason.OUTRANKED, None),
        (None, Reason.NO_CONSENT, None),
        ("deal", None, "suppressed"),
    ]
    assert (told.past[0].winner_expected_cents, told.past[0].things[0].expected_cents) == (4_500.0, 50.0)
    many = why_not(ann, promotion(), decisions=(outranked,) * 100)
    assert (len(many.past), many.stopped_by) == (20, {"outranked": 100})


@pytest.mark.parametrize(
    ("shopper", "offer", "options", "reason"),
    [
        ({}, {}, {}, None),
        ({}, {"cost_cents": 99}, {}, None),
        ({}, {"cost_cents": 100}, {}, Reason.NOT_WORTH_IT),
        ({}, {"value_cents": 0}, {}, Reason.NOT_WORTH_IT),
        ({"messages": [sent("other")] * 3}, {}, {"policy": Policy(annoyance_cents=20.0)}, Reason.NOT_WORTH_IT),
        ({}, {"holdout": 1.0}, {}, Reason.HOLDOUT),
        ({}, {"value_cents": 0, "holdout": 1.0}, {}, Reason.NOT_WORTH_IT),
        ({}, {}, {"policy": Policy(holdout=1.0)}, Reason.HOLDOUT),
        ({"messages": [sent()]}, {"holdout": 1.0}, {}, Reason.CAPPED),
        ({}, {"experiment": Experiment(name="words", starts=0.0, ends=1e-9)}, {}, Reason.OTHER_ARM),
        ({}, {"kind": "assist", "value_cents": 0, "cost_cents": 5}, {"policy": Policy(holdout=1.0)}, None),
    ],
)
def test_what_comes_after_the_gates(
    shopper: dict[str, Any], offer: dict[str, Any], options: dict[str, Any], reason: Reason | None
) -> None:
    """Too little worth whatever the model says, or held out: as a decision has it, even of a certain redemption."""
    ann, deal = customer(**shopper), promotion(**offer)
    told = why_not(ann, deal, inside(DOORSTEP), **options)
    decided = what_happens(ann, deal, propensity=1.0, **options)
    assert decided is not None
    assert (told.things[0].stopped_by, decided.reason) == (reason, reason)
    assert (reason.value if reason else "nothing stops it now") in told.summary
    held_out_of_all = options.get("policy", Policy()).holdout == 1.0
    assert told.held_out is (deal.kind == "offer" and (deal.holdout == 1.0 or held_out_of_all))


@pytest.mark.parametrize(
    ("offer", "exploration", "reason", "said"),
    [
        ({"cost_cents": 100}, 0.0, Reason.NOT_WORTH_IT, "stopped by not_worth_it"),
        ({"cost_cents": 100}, 0.5, None, "worth too little whatever the model says, but chance may make it"),
        ({"cost_cents": 100, "holdout": 1.0}, 0.5, Reason.HOLDOUT, "stopped by holdout"),
        ({}, 0.5, None, "or chance chooses otherwise (exploration 0.5)"),
        ({"kind": "assist"}, 0.5, None, "nothing stops it now"),
    ],
)
def test_where_chance_may_choose(offer: dict[str, Any], exploration: float, reason: Reason | None, said: str) -> None:
    """What is never worth it may still be made where the policy explores, unless somebody is held out of it: it is
    said to be stopped only if none of many moments leads to it."""
    deal, policy = promotion(**offer), Policy(exploration=exploration)
    told = why_not(customer(), deal, inside(DOORSTEP), policy=policy)
    assert told.things[0].stopped_by == reason
    assert said in told.summary
    assert told.worth.exploration == (exploration if deal.kind == "offer" else 0.0)
    decided = [what_happens(customer(), deal, at=moment(event=f"e-{n}"), policy=policy) for n in range(40)]
    assert any(each is not None and each.outcome == deal.kind for each in decided) is (reason is None)


def test_chance_at_a_moment_to_come() -> None:
    """It is said of an assumed moment, too, and that this has not come."""
    told = why_not(customer(), promotion(cost_cents=100), at=SHOP, policy=Policy(exploration=0.1))
    assert "chance may make it (exploration 0.1)" in told.summary
    assert told.summary.endswith("the moment has not come yet")


@pytest.mark.parametrize(("cost", "row"), [(0, 0), (30, 0), (0, 2), (10, 3)])
def test_what_it_is_worth(cost: int, row: int) -> None:
    """The terms add up; and the probability from which it is worth it is the one where the decision turns."""
    ann, deal = customer(messages=[sent("other", name=f"m{n}") for n in range(row)]), promotion(cost_cents=cost)
    policy = Policy(annoyance_cents=5.0)
    worth = why_not(ann, deal, inside(DOORSTEP), policy=policy).worth
    assert (worth.value_cents, worth.cost_cents, worth.ignored) == (100.0, cost + worth.annoyance_cents, row)
    assert worth.annoyance_cents == {0: 0.0, 2: 15.0, 3: 35.0}[row]
    assert worth.worth_it_from is not None
    for propensity, outcome in ((worth.worth_it_from, "nothing"), (worth.worth_it_from + 1e-6, "offer")):
        decided = what_happens(ann, deal, policy=policy, propensity=propensity)
        assert decided is not None
        assert decided.outcome == outcome
    alert = promotion(kind="assist")
    assert why_not(ann, alert, inside(DOORSTEP), policy=policy).worth.worth_it_from is None


def test_past_decisions_tell_values_and_chance() -> None:
    """What each thing was worth, its cost and its probability; and what it would have been for whoever is held out."""
    deal = promotion(cost_cents=10)
    won, held = what_happens(customer(), deal), what_happens(customer(), deal, policy=Policy(holdout=1.0))
    drawn = what_happens(customer(), deal, policy=Policy(exploration=1.0))
    assert won is not None
    assert held is not None
    assert drawn is not None
    told = why_not(customer(), deal, decisions=(won, held, drawn))
    first, second, third = told.past
    (thing,) = first.things
    assert (thing.value_cents, thing.cost_cents, thing.expected_cents, thing.probability) == (100.0, 10.0, 40.0, 1.0)
    assert (first.would_be, second.would_be) == (None, WouldBe(promotion=PromotionId("deal")))
    assert (second.things[0].stopped_by, second.things[0].probability) == (Reason.HOLDOUT, 0.0)
    assert (first.explored, third.explored, third.things[0].probability) == (False, True, 0.5)


def test_what_would_be_offered_instead() -> None:
    """The thing that is told is the one that would be offered, with what is missing."""
    deal = promotion(what=What(skus=["tent"], instead="alternative"))
    (thing,) = why_not(customer(), deal, inside(DOORSTEP), stock={(SHOP, Sku("stove")): 2}).things
    assert (thing.sku, thing.instead_of, thing.stopped_by) == ("stove", "tent", None)
    (gate,) = [gate for gate in thing.gates if gate.name == Reason.NO_ALTERNATIVE]
    assert gate.detail == "2 pieces of stove at shop instead of tent"


def test_moments_that_only_an_event_brings() -> None:
    """Of points and orders: the moment that would lead to it is assumed, and told."""
    told = why_not(customer(points=40), promotion(trigger="points_reached", who=Who(min_points=100)))
    (condition,) = [each for each in told.conditions if each.name == "who.min_points"]
    assert (condition.holds, condition.detail) == (True, "when the points rise to 100; there are 40")
    assert told.things[0].stopped_by == Reason.NOT_IN_AUDIENCE
    told = why_not(customer(), promotion(trigger="order_status", when=When(statuses=["shipped"])))
    (condition,) = [each for each in told.conditions if each.name == "when.statuses"]
    assert (condition.holds, told.things[0].stopped_by) == (True, None)
