"""What is measured of offers: who was made one or held out, which purchases answer it, and how far messages got."""

from collections import Counter
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast import fold
from nearcast.customer import Customer, Exposure
from nearcast.decisions import Decision, Reason, WouldBe
from nearcast.events import DeliveryStatus, Line, Purchase, Receipt, Timer
from nearcast.fold import DEADLINE_TIMER, STAGES, FoldRules
from nearcast.ids import CustomerId, DecisionId, MessageId, PromotionId, Sku
from nearcast.moments import Moment
from nearcast.world import What
from offers.catalogue import Catalogue
from offers.measure import (
    COUNTERS,
    KEPT_AFTER_MS,
    KEPT_EXPOSURES,
    MOST_COMPARED_CENTS,
    Tally,
    attribute,
    day_of,
    expose,
    field_of,
    split_field,
    standings,
)
from tests.offers.examples import BOOTS, NOW_MS, STOVE, TENT, catalogue, customer, moment, promotion

DAY_MS = 86_400_000
WINDOW_MS = 7 * DAY_MS
DEAL = PromotionId("deal")
TENTS = promotion(what=What(skus=["tent"]))
CAMPING = promotion(id="camping", what=What(segments=["camping"]))
ANYTHING = promotion(id="anything")
PROMOTIONS = (TENTS, CAMPING, ANYTHING)


def decision(
    promotion_id: str | None = "deal", *, at_ms: int = NOW_MS, would_be: str | None = None, outcome: str = "offer"
) -> Decision:
    """An offer, or that there would have been one."""
    at: Moment = moment(at_ms=at_ms)
    return Decision(
        id=DecisionId(f"{promotion_id}-{would_be}-{at_ms}"),
        moment=at,
        outcome=outcome if promotion_id else "nothing",
        at_ms=at_ms,
        deadline_ms=at_ms + 60_000,
        candidates=[],
        rules_version="r",
        model_version="m",
        promotion=PromotionId(promotion_id) if promotion_id else None,
        reason=None if promotion_id else Reason.HOLDOUT,
        would_be=WouldBe(promotion=PromotionId(would_be)) if would_be else None,
    )


def bought(*lines: tuple[str, int], at_ms: int = NOW_MS + 1) -> Purchase:
    return Purchase(id="p", uid="ann", ts=at_ms, items=[Line(sku=sku, amount_cents=cents) for sku, cents in lines])


def counted(tally: Tally) -> dict[str, dict[str, int]]:
    """By promotion, what was counted on all days."""
    found: dict[str, dict[str, int]] = {}
    for fields in tally.days.values():
        for field, amount in fields.items():
            what, promotion_id = split_field(field)
            counts = found.setdefault(promotion_id, {})
            counts[what] = counts.get(what, 0) + amount
    return found


def test_an_offer_opens_a_window_and_repeating_it_opens_none() -> None:
    """Made or held out: one window at a time; the next one opens when it is over."""
    ann, world, tally = customer(), catalogue(*PROMOTIONS), Tally()
    for at_ms in (NOW_MS, NOW_MS + 1, NOW_MS + WINDOW_MS - 1, NOW_MS + WINDOW_MS):
        made = decision(at_ms=at_ms)
        tally.decided(made, expose(ann, made, world))
        missed = decision(None, at_ms=at_ms, would_be="camping")
        tally.decided(missed, expose(ann, missed, world))
    assert counted(tally) == {"deal": {"decided": 4, "treated_windows": 2}, "camping": {"held_out_windows": 2}}
    assert [(each.promotion, each.compared) for each in ann.exposures if not each.held_out] == [
        ("deal", True),
        ("deal", False),
        ("deal", False),
        ("deal", True),
    ]
    assert all(each.until_ms - each.at_ms == WINDOW_MS for each in ann.exposures)


def test_second_best_is_compared_with_nobody() -> None:
    """An offer made because a better one was held out counts as made, but opens no window; the better one does."""
    ann, tally = customer(), Tally()
    made = decision(would_be="camping")
    tally.decided(made, expose(ann, made, catalogue(*PROMOTIONS)))
    assert counted(tally) == {"deal": {"decided": 1}, "camping": {"held_out_windows": 1}}
    tally.bought(attribute(ann, bought(("tent", 300)), catalogue(*PROMOTIONS)))
    assert counted(tally) == {
        "deal": {"decided": 1, "converted": 1, "last_touch_cents": 300, "linear_cents": 300},
        "camping": {"held_out_windows": 1, "held_out_bought": 1, "held_out_sum": 300, "held_out_squares": 90_000},
    }


@pytest.mark.parametrize("kind", ["notice", "assist"])
def test_only_offers_are_attributed_to(kind: str) -> None:
    ann, tally = customer(), Tally()
    made = decision(outcome=kind)
    tally.decided(made, expose(ann, made, catalogue(promotion(kind=kind))))
    assert (ann.exposures, counted(tally)) == ([], {"deal": {"decided": 1}})
    nothing = decision(None)
    tally.decided(nothing, expose(ann, nothing, catalogue()))
    assert counted(tally) == {"deal": {"decided": 1}}


def test_exposures_are_bounded() -> None:
    """What is long over goes, and of too many the oldest."""
    ann, world = customer(), catalogue(*PROMOTIONS)
    for number in range(KEPT_EXPOSURES + 5):
        expose(ann, decision(at_ms=NOW_MS + number), world)
    assert [each.at_ms - NOW_MS for each in ann.exposures] == list(range(5, KEPT_EXPOSURES + 5))
    late_ms = NOW_MS + WINDOW_MS + KEPT_AFTER_MS + KEPT_EXPOSURES
    expose(ann, decision(at_ms=late_ms), world)
    assert [each.at_ms for each in ann.exposures] == [NOW_MS + KEPT_EXPOSURES + n for n in range(1, 5)] + [late_ms]


@pytest.mark.parametrize(
    ("offered", "sku", "answers"),
    [
        ("deal", TENT, True),
        ("deal", STOVE, False),
        ("camping", STOVE, True),
        ("camping", BOOTS, False),
        ("camping", Sku("unheard-of"), False),
        ("anything", Sku("unheard-of"), True),
    ],
)
def test_what_answers_an_offer(offered: str, sku: Sku, answers: bool) -> None:
    """A thing of the promotion: by SKU or segment, or anything if it names none."""
    ann, world = customer(), catalogue(*PROMOTIONS)
    expose(ann, decision(offered), world)
    assert bool(attribute(ann, bought((sku, 100)), world)) == answers


def test_a_promotion_that_is_gone() -> None:
    """Only the thing that was offered answers it then; if it was about nothing in particular, anything does."""
    for sku, thing, answers in [(TENT, TENT, True), (TENT, STOVE, False), (None, STOVE, True)]:
        gone = Exposure(DecisionId("d"), DEAL, NOW_MS, NOW_MS + 10, sku=sku)
        ann = Customer(id=CustomerId("ann"), exposures=[gone])
        assert bool(attribute(ann, bought((thing, 100)), catalogue())) == answers


def test_the_window_begins_with_the_offer_and_its_end_is_outside() -> None:
    world = catalogue(*PROMOTIONS)
    for at_ms, answers in [(-1, False), (0, True), (WINDOW_MS - 1, True), (WINDOW_MS, False)]:
        ann = customer()
        expose(ann, decision(), world)
        assert bool(attribute(ann, bought(("tent", 100), at_ms=NOW_MS + at_ms), world)) == answers


def test_shares_of_one_purchase() -> None:
    """Each line goes to the offers that are about it: all to the last, or in equal shares, odd cents to the last."""
    ann, world = customer(), catalogue(*PROMOTIONS)
    for place, offered in enumerate(("anything", "deal", "camping")):
        expose(ann, decision(offered, at_ms=NOW_MS + place), world)
    found = attribute(ann, bought(("tent", 100), ("stove", 7), ("boots", 5), at_ms=NOW_MS + 9), world)
    assert {credit.promotion: (credit.last_touch_cents, credit.linear_cents) for credit in found} == {
        # A third of the tent, half of the stove, the boots.
        "anything": (5, 33 + 3 + 5),
        "deal": (0, 33),
        "camping": (107, 34 + 4),
    }
    assert {credit.promotion: credit.paid_cents for credit in found} == {"anything": 112, "deal": 100, "camping": 107}


def test_the_last_touch_is_the_latest_by_event_time() -> None:
    """Also where it was heard of before an earlier one."""
    ann, world = customer(), catalogue(*PROMOTIONS)
    for offered, at_ms in (("camping", NOW_MS + 5), ("deal", NOW_MS)):
        expose(ann, decision(offered, at_ms=at_ms), world)
    found = attribute(ann, bought(("tent", 7), at_ms=NOW_MS + 9), world)
    shares = [(credit.promotion, credit.last_touch_cents, credit.linear_cents) for credit in found]
    assert shares == [("deal", 0, 3), ("camping", 7, 4)]


def test_an_offer_converts_once_and_a_window_sums_up() -> None:
    """A second purchase adds revenue, not a conversion. Of one window only so much is compared."""
    ann, world, tally = customer(), catalogue(*PROMOTIONS), Tally()
    made = decision()
    tally.decided(made, expose(ann, made, world))
    for cents in (300, 200, 3 * MOST_COMPARED_CENTS):
        tally.bought(attribute(ann, bought(("tent", cents)), world))
    total = 500 + 3 * MOST_COMPARED_CENTS
    assert counted(tally)["deal"] == {
        "decided": 1,
        "treated_windows": 1,
        "converted": 1,
        "last_touch_cents": total,
        "linear_cents": total,
        "treated_bought": 1,
        "treated_sum": MOST_COMPARED_CENTS,
        "treated_squares": MOST_COMPARED_CENTS**2,
    }


@given(st.data())
def test_no_cent_is_lost(data: st.DataObject) -> None:
    """However offers and purchases are: both ways of sharing give away exactly what was bought in answer to an offer
    that was made, and what is compared adds up to each window's own sum."""
    ann, world, tally = customer(), catalogue(*PROMOTIONS), Tally()
    whos = st.sampled_from(["deal", "camping", "anything"])
    lines = st.lists(st.tuples(st.sampled_from([TENT, STOVE, BOOTS]), st.integers(0, 10_000)), min_size=1, max_size=4)
    answered_cents, at_ms, ever = 0, NOW_MS, list[Exposure]()
    for is_offer in data.draw(st.lists(st.booleans(), max_size=12)):
        at_ms += data.draw(st.integers(0, 4 * DAY_MS))
        if is_offer:
            who, held = data.draw(whos), data.draw(st.booleans())
            made = decision(None if held else who, at_ms=at_ms, would_be=who if held else None)
            added = expose(ann, made, world)
            tally.decided(made, added)
            ever += added
            continue
        items = data.draw(lines)
        answered_cents += sum(cents for sku, cents in items if _is_answer(ann, world, sku, at_ms))
        tally.bought(attribute(ann, bought(*items, at_ms=at_ms), world))
    totals = Counter[str]()
    for counts in counted(tally).values():
        totals.update(counts)
    assert totals["last_touch_cents"] == totals["linear_cents"] == answered_cents
    assert totals["converted"] == sum(each.converted and not each.held_out for each in ever)
    for arm, held_out in (("treated", False), ("held_out", True)):
        windows = [each for each in ever if each.compared and each.held_out == held_out]
        assert totals[f"{arm}_windows"] == len(windows)
        assert totals[f"{arm}_bought"] == sum(each.converted for each in windows)
        assert totals[f"{arm}_sum"] == sum(each.revenue_cents for each in windows)
        assert totals[f"{arm}_squares"] == sum(each.revenue_cents**2 for each in windows)


def _is_answer(ann: Customer, world: Catalogue, sku: Sku, at_ms: int) -> bool:
    """Whether an offer that was made is about a thing, at that time."""
    about = {"deal": {TENT}, "camping": {TENT, STOVE}, "anything": {TENT, STOVE, BOOTS}}
    live = (each for each in ann.exposures if not each.held_out and each.at_ms <= at_ms < each.until_ms)
    return any(sku in about[each.promotion] for each in live)


STATUSES: list[DeliveryStatus] = [
    "sent", "delivered", "opened", "dismissed", "applied", "redeemed", "rolled_back", "failed", "suppressed",
    "recalled", "expired",
]  # fmt: skip
REASONS = ["left", "out_of_stock", "made up by a provider", ""]


@given(st.data())
def test_messages_add_up_to_what_the_receipts_say(data: st.DataObject) -> None:
    """In any order and as often as they like: what is counted is, for each message, the furthest that its receipts
    tell of, where it stands in the end, and the redemption that stands in the end."""
    ann, world, tally = customer(), catalogue(*PROMOTIONS), Tally()
    messages = [MessageId(f"m{number}") for number in range(3)]
    for place, message in enumerate(messages):
        made = decision(("deal", "camping", "anything")[place], at_ms=NOW_MS + place * DAY_MS)
        fold.record_message(ann, message, made)
        tally.decided(made, ())
    receipts: list[Receipt] = data.draw(st.lists(_receipts(messages), max_size=25))
    for number, receipt in enumerate(receipts):
        event: Receipt | Timer = receipt
        if data.draw(st.integers(0, 9)) == 0 and DEADLINE_TIMER in ann.timers:
            due_ms = ann.timers[DEADLINE_TIMER]
            event = Timer(id=f"t{number}", uid="ann", kind=DEADLINE_TIMER, due_ms=due_ms, ts=due_ms)
        before = standings(ann, event)
        if fold.apply(ann, event, {}, FoldRules()).status == "applied":
            tally.folded(ann, event, before, world)
        receipts[number] = event if isinstance(event, Receipt) else msgspec.structs.replace(receipt, message="none")
    found = {day: {field: n for field, n in fields.items() if n} for day, fields in tally.days.items()}
    reasons = {field for fields in found.values() for field in fields if ":" in field}
    assert {split_field(field)[0].partition(":")[2] for field in reasons} <= {"left", "out_of_stock", "other"}
    without = {day: {field: n for field, n in fields.items() if field not in reasons} for day, fields in found.items()}
    assert without == _expected(ann, receipts)


def _receipts(messages: Iterable[str]) -> st.SearchStrategy[Receipt]:
    return st.builds(
        Receipt,
        id=st.just("r"),
        uid=st.just("ann"),
        ts=st.just(NOW_MS),
        message=st.sampled_from([*messages, "unheard-of"]),
        decision=st.just("d"),
        status=st.sampled_from(STATUSES),
        channel=st.sampled_from(["websocket", "sms"]),
        reason=st.sampled_from(REASONS),
        final=st.sampled_from([True, True, True, False]),
        redemption_id=st.sampled_from(["a", "b"]),
        revenue_cents=st.sampled_from([None, 1_000, 250]),
        discount_cents=st.sampled_from([None, 100]),
    )


def _expected(ann: Customer, receipts: list[Receipt]) -> dict[str, dict[str, int]]:
    """The counters, from the receipts, and from where messages stand in the end; without why they were given up, which
    is checked to be one of the reasons that were told."""
    days: dict[str, Counter[str]] = {}
    for place, sent in enumerate(ann.messages):
        who, total = ("deal", "camping", "anything")[place], Counter(decided=1)
        furthest, once, standing, off = 0, False, None, set()
        for told in receipts:
            if told.message != sent.message or not told.final:
                continue
            name = told.redemption_id
            if told.status == "rolled_back":
                off.add(name)
                standing = None if standing is not None and standing[0] == name else standing
            elif told.status != "redeemed":
                furthest = max(furthest, STAGES.get(told.status, 0))
            elif standing is None and name not in off:
                once, standing = True, (name, told.revenue_cents or 0, told.discount_cents or 0)
        furthest = 5 if once else furthest
        total.update(dict.fromkeys(("sent", "delivered", "opened", "applied", "redeemed")[:furthest], 1))
        if standing is not None:
            total.update(revenue_cents=standing[1], discount_cents=standing[2])
        elif once:
            total["rolled_back"] += 1
        elif sent.status in ("failed", "suppressed", "expired", "recalled", "dismissed"):
            total[sent.status] += 1
        days.setdefault(day_of(sent.at_ms), Counter()).update(
            {field_of(what, who): n for what, n in total.items() if n}
        )
    return {day: dict(fields) for day, fields in days.items()}


def test_days_are_of_the_offer_and_by_utc() -> None:
    """What is bought a week later counts on the day of the offer."""
    ann, world, tally = customer(), catalogue(*PROMOTIONS), Tally()
    made = decision(at_ms=DAY_MS * 20_000 - 1)
    tally.decided(made, expose(ann, made, world))
    tally.bought(attribute(ann, bought(("tent", 100), at_ms=made.at_ms + 6 * DAY_MS), world))
    assert set(tally.days) == {"2024-10-03"}
    assert {split_field(field)[0] for field in tally.days["2024-10-03"]} <= set(COUNTERS)


def test_other_events_touch_no_message() -> None:
    """Nearly all events cost nothing here."""
    ann = customer(messages=[])
    assert standings(ann, bought(("tent", 1))) == {}
