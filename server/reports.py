"""Reports: what became of each promotion's offers, live, from the counters that the engines' commits add to.

A figure is the sum over all partitions of what `offers.measure` counted for a UTC day. Names nobody.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Literal

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.errors import InputError
from nearcast.hours import zone_named
from nearcast.ids import PromotionId, StoreId
from nearcast.world import MessageKind, Promotion, Store
from offers import measure
from offers.budgets import period_of, shares_of
from offers.lift import Arm, Lift, compare
from server.budgets import usages
from server.store import reaching_store, text

MOST_DAYS, DEFAULT_DAYS = 92, 28

#: Counters by name.
Counts = dict[str, int]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which UTC days, both included; the last four weeks if nothing is said."""

    first: date | None = None
    last: date | None = None

    def days(self, now_ms: int) -> list[str]:
        """The days asked for, as YYYY-MM-DD. Raises `InputError` if they are too many, or none by mistake."""
        last = self.last or datetime.fromtimestamp(now_ms / 1000, UTC).date()
        first = self.first or max(last, date.min + timedelta(days=DEFAULT_DAYS)) - timedelta(days=DEFAULT_DAYS - 1)
        count = (last - first).days + 1
        if count < 1:
            raise InputError("malformed_range", "`to` lies before `from`", "query.to")
        if count > MOST_DAYS:
            raise InputError("range_too_large", f"at most {MOST_DAYS} days at once", "query.from")
        return [(first + timedelta(days=day)).isoformat() for day in range(count)]


class ReportBook:
    """Reads what the engines counted."""

    def __init__(self, redis: Redis, partitions: int) -> None:
        self._redis = redis
        self._partitions = partitions

    async def of_one(self, promotion: PromotionId, days: Sequence[str]) -> dict[str, Counts]:
        """A promotion's counters by day."""
        fields = [measure.field_of(what, promotion) for what in measure.COUNTERS]
        with reaching_store():
            pipe = self._redis.pipeline(transaction=False)
            for day in days:
                for partition in range(self._partitions):
                    pipe.hmget(keys.measured_day(partition, day), fields)
            answers = await pipe.execute()
        found: dict[str, Counts] = {}
        for place, amounts in enumerate(answers):
            counts = found.setdefault(days[place // self._partitions], {})
            for what, amount in zip(measure.COUNTERS, amounts, strict=True):
                if amount is not None:
                    counts[what] = counts.get(what, 0) + int(amount)
        return found

    async def of_all(self, days: Sequence[str]) -> dict[PromotionId, Counts]:
        """Every promotion's counters over all these days."""
        found: dict[PromotionId, Counts] = {}
        for day in days:
            with reaching_store():
                pipe = self._redis.pipeline(transaction=False)
                for partition in range(self._partitions):
                    pipe.hgetall(keys.measured_day(partition, day))
                answers = await pipe.execute()
            # A day of many promotions takes a while to add up.
            await asyncio.to_thread(_add_up, answers, found)
        return found


def _add_up(answers: Iterable[Mapping[bytes, bytes]], found: dict[PromotionId, Counts]) -> None:
    for fields in answers:
        for field, amount in fields.items():
            what, promotion = measure.split_field(text(field))
            counts = found.setdefault(promotion, {})
            counts[what] = counts.get(what, 0) + int(amount)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages got so far at least; as a share of all decided, and of those of the step before."""

    step: str
    messages: int
    of_decided: float | None
    of_previous: float | None


class Money(msgspec.Struct, frozen=True, kw_only=True):
    """Of redemptions that were not called off: what was paid for before the discount, and the discount, in cents."""

    revenue_cents: int
    discount_cents: int
    #: discount / revenue; None without revenue.
    effective_discount: float | None


class Attribution(msgspec.Struct, frozen=True, kw_only=True):
    """Purchases of the promotion's things within the window after an offer that was made."""

    #: As the promotion says now; None if it is gone.
    window_s: int | None
    #: Offers after which something was bought, as a share of all offers decided; and the revenue, in cents.
    converted: int
    conversion_rate: float | None
    last_touch_cents: int
    linear_cents: int


class ArmReport(msgspec.Struct, frozen=True, kw_only=True):
    """One arm of the comparison. Of one window at most `offers.measure.MOST_COMPARED_CENTS` count."""

    windows: int
    bought: int
    rate: float | None
    revenue_cents: int
    mean_cents: float | None


class Summary(msgspec.Struct, kw_only=True):
    """What became of the offers (or notices, or alerts) that a promotion made in some days."""

    promotion: PromotionId
    #: "" if the promotion is gone.
    name: str
    kind: MessageKind | None
    funnel: list[Step]
    #: Messages that stand at one of these now.
    outcomes: dict[str, int]
    money: Money
    attribution: Attribution
    treated: ArmReport
    held_out: ArmReport
    lift: Lift


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """The offers of one UTC day, and what became of them since."""

    day: str
    decided: int
    delivered: int
    redeemed: int
    rolled_back: int
    revenue_cents: int
    discount_cents: int
    converted: int
    last_touch_cents: int


class BudgetUse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is out of one shared budget in its present period: so many offers and cents, of at most so many."""

    per: Literal["promotion", "store"]
    #: The store, of a budget per store.
    store: StoreId | None = None
    #: "all", or "day", "week" or "month" and when it began.
    period: str
    pieces: int | None = None
    cents: int | None = None
    used_pieces: int = 0
    used_cents: int = 0


class Report(Summary, kw_only=True):
    """The same by day, why messages were given up, and what is out of its budgets now."""

    #: First and last day, by UTC.
    first: str = msgspec.field(name="from")
    last: str = msgspec.field(name="to")
    #: Outcome ("suppressed", "recalled") → reason → how often it was reported.
    reasons: dict[str, dict[str, int]]
    days: list[Day]
    #: Of budgets per store, the stores where something is out; those per customer are not summed up.
    budgets: list[BudgetUse]


class Table(msgspec.Struct, kw_only=True):
    """All promotions, by id."""

    first: str = msgspec.field(name="from")
    last: str = msgspec.field(name="to")
    promotions: list[Summary]


async def budgets_of(
    promotion: Promotion, stores: Mapping[StoreId, Store], redis: Redis, partitions: int, now_ms: int
) -> list[BudgetUse]:
    """What is out of a promotion's shared budgets now. Raises `Unavailable`."""
    shared = [budget for budget in promotion.budgets if budget.per != "customer"]
    named = [StoreId(name) for name in promotion.where.stores] or list(stores)
    asked: dict[str, tuple[int, StoreId | None]] = {}
    for store in [None, *named] if any(budget.per == "store" for budget in shared) else [None]:
        known = stores.get(store) if store is not None else None
        zone = zone_named(known.time_zone) if known is not None else None
        for place, share in enumerate(shares_of(promotion, store, zone, now_ms)):
            if (shared[place].per == "store") == (store is not None):
                asked[share.charge.pool] = (place, store)
    found = []
    for (pool, (place, store)), used in zip(asked.items(), await usages(redis, partitions, list(asked)), strict=True):
        budget = shared[place]
        if store is None or used.used_pieces or used.used_cents:
            found.append(
                BudgetUse(
                    per="promotion" if store is None else "store",
                    store=store,
                    period=period_of(pool) or "all",
                    pieces=budget.pieces,
                    cents=budget.cents,
                    used_pieces=used.used_pieces,
                    used_cents=used.used_cents,
                )
            )
    return found


def report_of(
    promotion_id: PromotionId,
    promotion: Promotion | None,
    days: Sequence[str],
    found: Mapping[str, Counts],
    budgets: Sequence[BudgetUse] = (),
) -> Report:
    """A promotion's report; `promotion` is None if it is gone."""
    total: Counts = {}
    for counts in found.values():
        for what, amount in counts.items():
            total[what] = total.get(what, 0) + amount
    reasons: dict[str, dict[str, int]] = {}
    for status in measure.GIVEN_UP:
        counted = {reason: total.get(measure.reason_of(status, reason), 0) for reason in measure.REASONS}
        reasons[status] = {reason: amount for reason, amount in counted.items() if amount}
    return Report(
        **msgspec.structs.asdict(summary_of(promotion_id, promotion, total)),
        first=days[0],
        last=days[-1],
        reasons=reasons,
        days=[_day_of(day, found.get(day, {})) for day in days],
        budgets=list(budgets),
    )


def table_of(
    promotions: Mapping[PromotionId, Promotion], days: Sequence[str], found: Mapping[PromotionId, Counts]
) -> Table:
    """All promotions there are, and those that are gone and have figures."""
    return Table(
        first=days[0],
        last=days[-1],
        promotions=[
            summary_of(each, promotions.get(each), found.get(each, {})) for each in sorted({*promotions, *found})
        ],
    )


def summary_of(promotion_id: PromotionId, promotion: Promotion | None, counts: Mapping[str, int]) -> Summary:
    decided = counts.get(measure.DECIDED, 0)
    revenue, discount = counts.get(measure.REVENUE, 0), counts.get(measure.DISCOUNT, 0)
    converted = counts.get(measure.CONVERTED, 0)
    treated, held_out = (_arm_of(arm, counts) for arm in measure.ARMS)
    return Summary(
        promotion=promotion_id,
        name=promotion.name if promotion is not None else "",
        kind=promotion.kind if promotion is not None else None,
        funnel=_funnel(counts),
        outcomes={outcome: counts.get(outcome, 0) for outcome in measure.OUTCOMES},
        money=Money(revenue_cents=revenue, discount_cents=discount, effective_discount=_share(discount, revenue)),
        attribution=Attribution(
            window_s=promotion.attribution_s if promotion is not None else None,
            converted=converted,
            conversion_rate=_share(converted, decided),
            last_touch_cents=counts.get(measure.LAST_TOUCH, 0),
            linear_cents=counts.get(measure.LINEAR, 0),
        ),
        treated=_shown(treated),
        held_out=_shown(held_out),
        lift=compare(treated, held_out),
    )


def _funnel(counts: Mapping[str, int]) -> list[Step]:
    names = (measure.DECIDED, *measure.STAGES)
    messages = [counts.get(name, 0) for name in names]
    return [
        Step(
            step=name,
            messages=count,
            of_decided=_share(count, messages[0]),
            of_previous=_share(count, messages[max(place - 1, 0)]),
        )
        for place, (name, count) in enumerate(zip(names, messages, strict=True))
    ]


def _arm_of(arm: str, counts: Mapping[str, int]) -> Arm:
    windows, bought, revenue, squares = (
        counts.get(measure.of_arm(arm, what), 0)
        for what in (measure.WINDOWS, measure.BOUGHT, measure.SUM, measure.SQUARES)
    )
    return Arm(windows=windows, bought=bought, revenue_cents=revenue, squares=squares)


def _shown(arm: Arm) -> ArmReport:
    return ArmReport(
        windows=arm.windows,
        bought=arm.bought,
        rate=arm.rate,
        revenue_cents=arm.revenue_cents,
        mean_cents=arm.mean_cents,
    )


def _day_of(day: str, counts: Mapping[str, int]) -> Day:
    return Day(
        day=day,
        decided=counts.get(measure.DECIDED, 0),
        delivered=counts.get("delivered", 0),
        redeemed=counts.get("redeemed", 0),
        rolled_back=counts.get("rolled_back", 0),
        revenue_cents=counts.get(measure.REVENUE, 0),
        discount_cents=counts.get(measure.DISCOUNT, 0),
        converted=counts.get(measure.CONVERTED, 0),
        last_touch_cents=counts.get(measure.LAST_TOUCH, 0),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
