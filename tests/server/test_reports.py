"""Reports: their figures are those of the raw events, recomputed one by one, whatever happened to the engine."""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime

import msgspec
import pytest
from redis.asyncio import Redis

from nearcast import keys
from nearcast.decisions import Decision
from nearcast.errors import Fenced, InputError
from nearcast.events import Action, Consent, DeliveryStatus, Erase, Event, Line, Location, Purchase, Receipt
from nearcast.ids import PromotionId, StoreId
from nearcast.messages import Message
from nearcast.world import Budget, Discount, Promotion, Store, What, Where, Words
from offers.measure import COUNTERS, field_of, split_field
from offers.policy import Policy
from server.engine import Engine
from server.log.base import Record
from server.reports import Asked, ReportBook, budgets_of, report_of, table_of
from server.world import WorldStore
from tests.server.rig import PARTITIONS, Committed, Playback, committed, engine_on, records_of
from tests.server.town import LNG, WORLD, metres_north

#: An hour before midnight, by UTC.
NOW = 1_795_000_000_000 // 86_400_000 * 86_400_000 - 3_600_000
DAY_MS = 86_400_000
PEOPLE = [f"c{number}" for number in range(16)]
#: Nothing is too much or too late, and some is left to chance, or held out.
POLICY = Policy(caps=(), annoyance_cents=0, exploration=0.2, holdout=0.1)
WORDS = {"en": Words(title="{{ product }}")}


def offer(promotion_id: str, *, attribution_s: int, **fields: object) -> Promotion:
    basis = {
        "id": promotion_id,
        "name": promotion_id.title(),
        "caps": [],
        "words": WORDS,
        "attribution_s": attribution_s,
    }
    return msgspec.convert(basis | fields, Promotion)


ABOUT = {
    "open": {"beans", "grinder", "gone", "unheard-of"},
    "sip": {"beans", "gone"},
    "grind": {"grinder"},
    "please": set(),
    "door": {"beans", "grinder", "gone", "unheard-of"},
}
PROMOTIONS = {
    PromotionId(promotion.id): promotion
    for promotion in (
        offer("open", trigger="app_open", holdout=0.3, attribution_s=2 * 86_400, value_cents=900),
        offer("sip", trigger="app_open", what=What(segments=["coffee"]), holdout=0.3, attribution_s=86_400),
        offer("grind", trigger="product_view", what=What(skus=["grinder"], discount=Discount(percent=5)), holdout=0.5,
              attribution_s=3 * 86_400),
        offer("door", trigger="enter", holdout=0.5, attribution_s=86_400, where=Where(kinds=["store"])),
        offer("please", trigger="help_request", kind="assist", attribution_s=86_400),
    )
}  # fmt: skip
TOWN = msgspec.structs.replace(WORLD, promotions=list(PROMOTIONS.values()))
STATUSES: list[DeliveryStatus] = [
    "sent", "delivered", "opened", "dismissed", "applied", "redeemed", "redeemed", "rolled_back", "failed",
    "suppressed", "recalled", "expired",
]  # fmt: skip


async def engine_of(redis: Redis) -> Engine:
    """A new engine that owns everything, as after a restart."""
    store = WorldStore(redis)
    await store.put(TOWN)
    engine = engine_on(redis, Playback(), store, policy=POLICY)
    await engine.follow_assignment()
    return engine


def logged(events: Sequence[Event], first: int) -> list[Record]:
    """The records of events, numbered on from `first`; nothing is from the future."""
    new = records_of(events, NOW + 10**9 + first)
    return [msgspec.structs.replace(record, position=str(first + at)) for at, record in enumerate(new)]


def what_people_do(chance: random.Random, number: int, now_ms: int) -> list[Event]:
    """They open the app, look at things, ask for help, come and go, and buy, in the course of some days."""
    events: list[Event] = []
    for at in range(number):
        now_ms += chance.randrange(1, 2_400_000)
        who, name = chance.choice(PEOPLE), f"e{now_ms}-{at}"
        if chance.random() < 0.45:
            things = chance.choices(["beans", "grinder", "gone", "unheard-of"], k=chance.randint(1, 3))
            lines = [Line(sku=sku, amount_cents=chance.choice([0, 101, 5_000, 2_000_000])) for sku in things]
            events.append(Purchase(id=name, uid=who, ts=now_ms, items=lines))
        elif chance.random() < 0.3:
            metres = chance.choice([0.0, 900.0])
            events.append(Location(id=name, uid=who, ts=now_ms, lat=metres_north(metres), lng=LNG, accuracy_m=5.0))
        else:
            action = chance.choice(["app_open", "app_open", "product_view", "help_request"])
            events.append(Action(id=name, uid=who, ts=now_ms, action=action, store="graben", sku="grinder"
                                 if action == "product_view" else None))  # fmt: skip
    return events


def what_is_reported(chance: random.Random, messages: Sequence[Message], number: int, now_ms: int) -> list[Event]:
    """Receipts of some of the messages, in any order, some of them twice."""
    return [
        Receipt(
            id=f"r{now_ms}-{at}",
            uid=message.customer,
            ts=now_ms + at,
            message=message.id,
            decision=message.decision,
            status=chance.choice(STATUSES),
            channel=chance.choice(["websocket", "sms"]),
            reason=chance.choice(["left", "provider said no"]),
            final=chance.random() < 0.9,
            redemption_id=chance.choice(["a", "b"]),
            revenue_cents=chance.choice([None, 2_500, 999]),
            discount_cents=chance.choice([None, 250]),
        )
        for at, message in enumerate(chance.choices(messages, k=number) if messages else [])
    ]


class Run:
    """A log that was worked off, and what it led to."""

    def __init__(self, records: list[Record], found: Committed, counters: dict[str, dict[str, int]]) -> None:
        self.records = records
        self.found = found
        self.counters = counters


async def counters(redis: Redis) -> dict[str, dict[str, int]]:
    """Day → field → count, over all partitions, read with nothing but the documented keys."""
    days: dict[str, Counter[str]] = {}
    for partition in range(PARTITIONS):
        prefix = keys.measured_day(partition, "")
        for name in [key.decode() async for key in redis.scan_iter(match=f"{prefix}*")]:
            assert await redis.ttl(name) > 0
            fields = await redis.hgetall(name)
            days.setdefault(name.removeprefix(prefix), Counter()).update(
                {field.decode(): int(amount) for field, amount in fields.items()}
            )
    return {day: {field: n for field, n in sorted(fields.items()) if n} for day, fields in sorted(days.items())}


async def some_days(redis: Redis, seed: int) -> Run:
    """Three times some days of what people do, and of what is reported about the messages that followed."""
    chance, engine, records = random.Random(seed), await engine_of(redis), list[Record]()

    async def work_off(events: Sequence[Event]) -> None:
        new = logged(events, len(records))
        records.extend(new)
        await engine.process(new)

    consents = [Consent(id=f"c-{who}", uid=who, ts=NOW - 1, scope="websocket", granted=True) for who in PEOPLE]
    await work_off(consents)
    now_ms = NOW
    for _ in range(3):
        done = what_people_do(chance, 200, now_ms)
        await work_off(done)
        messages = [entry for entry in (await committed(redis)).outbox if isinstance(entry, Message)]
        now_ms = done[-1].ts
        await work_off(what_is_reported(chance, messages, 250, now_ms))
    return Run(records, await committed(redis), await counters(redis))


def recomputed(records: Sequence[Record], found: Committed) -> dict[str, dict[str, int]]:
    """The counters, from the raw records and the decisions: one customer and one event after the other. Where a message
    stands in the end is taken from its customer; why it was given up is left out."""
    raw = [json.loads(record.value) for record in records]
    days: dict[str, Counter[str]] = {}

    def count(at_ms: int, promotion: str, **what: int) -> None:
        day = datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()
        days.setdefault(day, Counter()).update({field_of(name, promotion): n for name, n in what.items()})

    for who in PEOPLE:
        mine = [event for event in raw if event["uid"] == who]
        decided = sorted(
            (decision for decision in found.decisions.values() if decision.customer == who),
            key=lambda decision: decision.at_ms,
        )
        purchases = [event for event in mine if event.get("type") == "purchase"]
        _count_offers(decided, purchases, count)
        told = [event for event in mine if event.get("type") == "receipt"]
        for sent in found.customers[decided[0].customer].customer.messages if decided else []:
            total = _of_message([event for event in told if event["message"] == sent.message], sent.status)
            count(sent.at_ms, sent.promotion, **total)
    return {day: {field: n for field, n in sorted(fields.items()) if n} for day, fields in sorted(days.items())}


def _count_offers(decided: Sequence[Decision], purchases: Sequence[Mapping], count) -> None:  # type: ignore[no-untyped-def, type-arg]
    touches: list[list] = []  # type: ignore[type-arg]
    windows: list[list] = []  # type: ignore[type-arg]
    for decision in decided:
        at_ms, would_be = decision.at_ms, decision.would_be.promotion if decision.would_be else None
        if decision.promotion is not None:
            count(at_ms, decision.promotion, decided=1)
        opening = [(would_be, "held_out")] if would_be else []
        if decision.outcome == "offer":
            until_ms = at_ms + PROMOTIONS[decision.promotion].attribution_s * 1000
            touches.append([decision.promotion, at_ms, until_ms, 0])
            opening += [] if would_be else [(decision.promotion, "treated")]
        for promotion, arm in opening:
            if not any(w[0] == promotion and w[1] <= at_ms < w[2] for w in windows):
                until_ms = at_ms + PROMOTIONS[promotion].attribution_s * 1000
                windows.append([promotion, at_ms, until_ms, arm, False, 0])
                count(at_ms, promotion, **{f"{arm}_windows": 1})
    for purchase in purchases:
        ts, lines = purchase["ts"], purchase["items"]
        for window in windows:
            mine = [line.get("amount_cents", 0) for line in lines if line["sku"] in ABOUT[window[0]]]
            if mine and window[1] <= ts < window[2]:
                window[4], window[5] = True, window[5] + sum(mine)
        answering = set()
        for sku in {line["sku"] for line in lines}:
            cents = sum(line.get("amount_cents", 0) for line in lines if line["sku"] == sku)
            live = [at for at, t in enumerate(touches) if sku in ABOUT[t[0]] and t[1] <= ts < t[2]]
            for rank, at in enumerate(reversed(live)):
                promotion, at_ms, _, _ = touches[at]
                linear = cents // len(live) + (rank < cents % len(live))
                count(at_ms, promotion, last_touch_cents=0 if rank else cents, linear_cents=linear)
                answering.add(at)
        for at in answering:
            touches[at][3] = 1
    for promotion, at_ms, _, converted in touches:
        count(at_ms, promotion, converted=converted)
    for promotion, at_ms, _, arm, bought, cents in windows:
        compared = min(cents, 1_000_000)
        count(at_ms, promotion, **{f"{arm}_bought": int(bought), f"{arm}_sum": compared, f"{arm}_squares": compared**2})


def _of_message(receipts: Sequence[Mapping], status: str | None) -> dict[str, int]:  # type: ignore[type-arg]
    """What the receipts of one message come to, in the order of the log."""
    stages = {"sent": 1, "delivered": 2, "dismissed": 2, "opened": 3, "applied": 4}
    furthest, redeemed, off = 0, {}, set()
    for told in receipts:
        if not told.get("final", True):
            continue
        if told["status"] == "rolled_back":
            off.add(told["redemption_id"])
        elif told["status"] == "redeemed":
            furthest = 5
            redeemed.setdefault(told["redemption_id"], told)
        else:
            furthest = max(furthest, stages.get(told["status"], 0))
    # In whatever order they were heard of: the first that was not called off.
    standing = next((told for name, told in redeemed.items() if name not in off), None)
    total = dict.fromkeys(("sent", "delivered", "opened", "applied", "redeemed")[:furthest], 1)
    if standing is not None:
        total |= {f"{what}_cents": standing.get(f"{what}_cents", 0) for what in ("revenue", "discount")}
    elif furthest == 5:
        total["rolled_back"] = 1
    elif status in ("failed", "suppressed", "expired", "recalled", "dismissed"):
        total[status] = 1
    return total


def without_reasons(days: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {day: {field: n for field, n in fields.items() if ":" not in field} for day, fields in days.items()}


async def test_figures_are_those_of_the_raw_events(redis: Redis) -> None:
    """Recomputed from the log, all figures are the same; and again when the same log is cut into other batches, with
    engines that are overtaken before they commit, and ones that die right after it."""
    first = await some_days(redis, 0)
    assert first.found.dead_letters == []
    assert without_reasons(first.counters) == recomputed(first.records, first.found)
    told = Counter[str]()
    for fields in first.counters.values():
        for field, amount in fields.items():
            told[split_field(field)[0]] += amount
    # All that can be counted was, and the sums mean something.
    assert set(told) >= set(COUNTERS) - {what for what in COUNTERS if ":" in what}
    assert {what for what in told if ":" in what} == {
        f"{s}:{r}" for s in ("suppressed", "recalled") for r in ("left", "other")
    }
    await redis.flushdb()
    chance, engine = random.Random(1), await engine_of(redis)
    records = first.records
    while records:
        size = chance.choice([1, 1, 2, 3, 20])
        batch, records = records[:size], records[size:]
        fate = chance.random()
        if fate < 0.15:
            overtaken, engine = engine, await engine_of(redis)
            with pytest.raises(Fenced):
                await overtaken.process(batch)
        await engine.process(batch)
        if fate > 0.9:
            engine = await engine_of(redis)
    assert await counters(redis) == first.counters


async def test_the_report_adds_up(redis: Redis) -> None:
    """What a report and the table show are the counters' sums over partitions and days; other days count nothing."""
    run = await some_days(redis, 7)
    days = sorted(run.counters)
    book, middle = ReportBook(redis, PARTITIONS), days[1:-1]
    assert len(middle) >= 2
    table = table_of(PROMOTIONS, middle, await book.of_all(middle))
    assert [row.promotion for row in table.promotions] == sorted(PROMOTIONS)
    for row in table.promotions:
        report = report_of(row.promotion, PROMOTIONS[row.promotion], middle, await book.of_one(row.promotion, middle))
        assert {name: getattr(report, name) for name in row.__struct_fields__} == msgspec.structs.asdict(row)

        def total(what: str, promotion: str = row.promotion) -> int:
            return sum(run.counters[day].get(field_of(what, promotion), 0) for day in middle)

        steps = {step.step: step.messages for step in report.funnel}
        assert steps == {
            what: total(what) for what in ("decided", "sent", "delivered", "opened", "applied", "redeemed")
        }
        assert list(steps.values()) == sorted(steps.values(), reverse=True)
        assert report.outcomes["rolled_back"] == total("rolled_back")
        assert report.money.revenue_cents == total("revenue_cents")
        assert report.attribution.last_touch_cents == total("last_touch_cents")
        assert (report.treated.windows, report.held_out.windows) == (
            total("treated_windows"),
            total("held_out_windows"),
        )
        assert report.reasons["recalled"] == {
            reason: n for reason in ("left", "other") if (n := total(f"recalled:{reason}"))
        }
        assert [day.day for day in report.days] == middle
        for day in report.days:
            what = ("decided", "delivered", "redeemed", "rolled_back", "revenue_cents", "discount_cents", "converted")
            counted = run.counters[day.day]
            assert {n: getattr(day, n) for n in what} == {n: counted.get(field_of(n, row.promotion), 0) for n in what}
    nothing = report_of(PromotionId("gone"), None, middle, await book.of_one(PromotionId("gone"), middle))
    assert (nothing.name, nothing.kind, nothing.attribution.window_s) == ("", None, None)
    assert {step.of_decided for step in nothing.funnel} == {None}
    # Who was counted does not stand anywhere.
    assert not [field for fields in run.counters.values() for field in fields for who in PEOPLE if who in field]


async def test_figures_outlive_their_customer(redis: Redis) -> None:
    """Erasing somebody changes no figure of what was: none names anybody."""
    await some_days(redis, 3)
    before, engine = await counters(redis), await engine_of(redis)
    erased = [Erase(id=f"erase-{who}", uid=who, ts=NOW + 30 * DAY_MS) for who in PEOPLE]
    await engine.process(logged(erased, 10_000))
    assert await counters(redis) == before
    bought = Purchase(id="later", uid=PEOPLE[0], ts=NOW + DAY_MS, items=[Line(sku="beans", amount_cents=5)])
    await engine.process(logged([bought], 20_000))
    assert await counters(redis) == before


def test_which_days() -> None:
    """The last four weeks, or what was asked for, within bounds; by UTC."""
    assert Asked().days(NOW)[-1] == datetime.fromtimestamp(NOW / 1000, UTC).date().isoformat()
    assert len(Asked().days(NOW)) == 28
    first, last = date(2026, 2, 27), date(2026, 3, 1)
    assert Asked(first=first, last=last).days(NOW) == ["2026-02-27", "2026-02-28", "2026-03-01"]
    for bad, reason in [((last, first), "malformed_range"), ((date(2025, 3, 1), last), "range_too_large")]:
        with pytest.raises(InputError) as error:
            Asked(first=bad[0], last=bad[1]).days(NOW)
        assert error.value.reason == reason


async def test_what_is_out_of_budgets(redis: Redis) -> None:
    """A report says what is out of each shared budget in its present period; of those per store, where anything is."""
    stores = {
        StoreId(name): Store(id=name, name=name, lat=48.2, lng=16.4, time_zone=zone)
        for name, zone in (("graben", "Europe/Vienna"), ("harbour", "Asia/Tokyo"), ("far", "UTC"))
    }
    promotion = Promotion(
        id="coffee",
        name="Coffee",
        trigger="app_open",
        what=What(discount=Discount(amount_cents=250)),
        budgets=[
            Budget(pieces=100),
            Budget(cents=5_000, per="store", period="day"),
            Budget(pieces=2, per="customer"),
        ],
        words={"en": Words(title="Coffee")},
    )
    # 23:30 in Vienna, and the next day in Tokyo.
    now_ms = round(datetime(2026, 11, 20, 22, 30, tzinfo=UTC).timestamp() * 1000)
    for partition, pool, pieces, cents in (
        (0, "coffee\x1f\x1f", 3, 0),
        (1, "coffee\x1f\x1f", 4, 0),
        (1, "coffee\x1fgraben\x1fday 2026-11-20", 0, 750),
        (0, "coffee\x1fharbour\x1fday 2026-11-21", 0, 500),
        (0, "coffee\x1fharbour\x1fday 2026-11-20", 0, 1_000),
    ):
        await redis.hset(keys.spent(partition, pool), mapping={"pieces": pieces, "cents": cents})
        await redis.hset(keys.budget(pool), mapping={"pieces": pieces + 9, "cents": cents})
    found = await budgets_of(promotion, stores, redis, PARTITIONS, now_ms)
    assert [(each.per, each.store, each.period, each.used_pieces, each.used_cents) for each in found] == [
        ("promotion", None, "all", 7, 0),
        ("store", "graben", "day 2026-11-20", 0, 750),
        ("store", "harbour", "day 2026-11-21", 0, 500),
    ]
    assert [(each.pieces, each.cents) for each in found] == [(100, None), (None, 5_000), (None, 5_000)]
