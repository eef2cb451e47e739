"""Which pools an offer draws on: by promotion, store and calendar period, against clocks read step by step."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from nearcast.ids import StoreId
from nearcast.world import Budget, Discount, Promotion, What
from offers.budgets import Share, shares_of
from tests.offers.examples import promotion

ZONES = [
    "UTC",
    "Europe/Vienna",
    "America/New_York",
    # At whose midnights clocks are changed.
    "Africa/Cairo",
    "America/Havana",
    "America/Santiago",
    # Half an hour, or not by whole hours.
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Pacific/Kiritimati",
]
_STEP_S = 900
_DAY_S = 86_400
_2024_S, _2029_S = 1_704_067_200, 1_861_920_000

zones = st.sampled_from(ZONES)
periods = st.sampled_from(["all", "day", "week", "month"])
places = st.sampled_from([None, StoreId("graben"), StoreId("ring")])
#: Any second; and those around the ends of days, by some clock, that quarters of an hour are.
times_ms = st.one_of(
    st.integers(_2024_S * 1000, _2029_S * 1000),
    st.builds(
        lambda quarter, off: quarter * _STEP_S * 1000 + off,
        st.integers(_2024_S // _STEP_S, _2029_S // _STEP_S),
        st.sampled_from([-1, 0, 1]),
    ),
)


class Asked(NamedTuple):
    """One offer, as far as budgets ask."""

    promotion: str
    store: StoreId | None
    zone: str
    at_ms: int


offers = st.builds(Asked, st.sampled_from(["coffee", "tea"]), places, zones, times_ms)


def with_budgets(*budgets: Budget, discount: Discount | None = None, name: str = "coffee") -> Promotion:
    return promotion(id=name, budgets=list(budgets), what=What(discount=discount))


def shares(asked: Asked, *budgets: Budget, discount: Discount | None = None) -> list[Share]:
    made = with_budgets(*budgets, discount=discount, name=asked.promotion)
    return shares_of(made, asked.store, ZoneInfo(asked.zone), asked.at_ms)


def period(name: str, zone: str, at_s: float) -> object:
    """The calendar period that a moment is in, told from the date on the wall alone."""
    date = datetime.fromtimestamp(at_s, ZoneInfo(zone)).date()
    if name == "all":
        return None
    if name == "month":
        return date.year, date.month
    while name == "week" and date.weekday():
        date -= timedelta(days=1)
    return date


@given(one=offers, other=offers, per=st.sampled_from(["promotion", "store"]), name=periods)
def test_who_shares_a_pool(one: Asked, other: Asked, per: str, name: str) -> None:
    """Two offers draw on one pool if they are of one promotion, in one period, and of one store if it is counted so."""
    budget = Budget(pieces=5, per=per, period=name)  # type: ignore[arg-type]

    def about(asked: Asked) -> object:
        zone = asked.zone if per == "store" else "UTC"
        return asked.promotion, asked.store if per == "store" else None, period(name, zone, asked.at_ms / 1000)

    (mine,), (theirs,) = shares(one, budget), shares(other, budget)
    assert (mine.charge.pool == theirs.charge.pool) == (about(one) == about(other))


@given(asked=offers, later_s=st.integers(0, 40 * _DAY_S), per=st.sampled_from(["promotion", "store"]), name=periods)
def test_periods_follow_each_other(asked: Asked, later_s: int, per: str, name: str) -> None:
    """The same offer later draws on the same pool until the period is over on the wall, and never again after that."""
    budget = Budget(pieces=5, per=per, period=name)  # type: ignore[arg-type]
    zone = asked.zone if per == "store" else "UTC"
    (now,), (then,) = shares(asked, budget), shares(asked._replace(at_ms=asked.at_ms + later_s * 1000), budget)
    at_s = asked.at_ms / 1000
    assert (now.charge.pool == then.charge.pool) == (period(name, zone, at_s) == period(name, zone, at_s + later_s))


@given(asked=offers, per=st.sampled_from(["promotion", "store"]), name=periods)
def test_kept_for_a_while_after_its_period(asked: Asked, per: str, name: str) -> None:
    """A pool may be forgotten about 40 days after the end of its period: to the hour, as clocks change."""
    (share,) = shares(asked, Budget(pieces=5, per=per, period=name))  # type: ignore[arg-type]
    if name == "all":
        assert share.limit.expires_s == 0
        return
    zone = asked.zone if per == "store" else "UTC"
    mine = period(name, zone, asked.at_ms / 1000)
    ends_s = asked.at_ms // 1000 // _STEP_S * _STEP_S
    while period(name, zone, ends_s) == mine:
        ends_s += _STEP_S
    assert abs(share.limit.expires_s - ends_s - 40 * _DAY_S) <= 3_600


def test_each_budget_takes_its_own() -> None:
    """Pieces where pieces are counted, cents at their most where those are; nothing shared for what is per customer."""
    asked = Asked("coffee", StoreId("graben"), "Europe/Vienna", 1_750_000_000_000)
    found = shares(
        asked,
        Budget(pieces=1_000),
        Budget(cents=50_000, per="store", period="day"),
        Budget(pieces=9, cents=9_000, period="week"),
        Budget(pieces=2, per="customer"),
        Budget(cents=700, per="customer", period="month"),
        discount=Discount(percent=20, most_cents=300),
    )
    assert [(share.charge.pieces, share.charge.cents) for share in found] == [(1, 0), (0, 300), (1, 300)]
    assert [share.limit[:2] for share in found] == [(1_000, None), (None, 50_000), (9, 9_000)]
    assert len({share.charge.pool for share in found}) == 3


def test_no_budget_no_pool() -> None:
    """Without budgets nothing is shared."""
    assert shares(Asked("coffee", None, "UTC", 1_750_000_000_000)) == []


def test_a_store_whose_clock_is_unknown() -> None:
    """Its days are those of UTC."""
    budget, store = Budget(pieces=1, per="store", period="day"), StoreId("graben")
    midnight_ms = round(datetime(2026, 3, 1, tzinfo=UTC).timestamp() * 1000)
    pools = [
        shares_of(with_budgets(budget), store, None, midnight_ms + off_ms)[0].charge.pool
        for off_ms in (-1, 0, 86_399_999, 86_400_000)
    ]
    assert pools[0] != pools[1] == pools[2] != pools[3]
