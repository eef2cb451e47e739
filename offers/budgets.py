"""Budgets: which pools a promotion's offers draw on, how much each takes, and how much of a pool may go out.

A pool is one budget of one promotion, apart for each store and each period if the budget says so. Its name is made
here; `server.budgets` keeps it. Budgets per customer have no pool: what a customer was offered stands in their own
record, and a gate counts it.
"""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal, NamedTuple

from nearcast.decisions import Charge
from nearcast.ids import StoreId
from nearcast.world import Promotion

#: Can't occur in an id.
_SEPARATOR = "\x1f"
#: Stands for the store, in a pool per store, of offers that are at none.
_NOWHERE = "\x1e"
#: A pool is kept for so long after its period: for events that are late, and for whoever asks what was given away.
_KEEP = timedelta(days=40)


class Limit(NamedTuple):
    """How much of a pool may go out in all; None is no limit. `expires_s`: when the pool may be forgotten, 0: never."""

    pieces: int | None
    cents: int | None
    expires_s: int = 0


class Share(NamedTuple):
    """What one offer takes of one pool, and the pool's limit."""

    charge: Charge
    limit: Limit


def shares_of(promotion: Promotion, store: StoreId | None, zone: tzinfo | None, at_ms: int) -> list[Share]:
    """What an offer of the promotion, made now at `store` (whose clock is in `zone`), takes of shared budgets."""
    discount = promotion.what.discount
    cents = (discount.bound_cents or 0) if discount is not None else 0
    shares = []
    for budget in promotion.budgets:
        if budget.per == "customer":
            continue
        by_store = budget.per == "store"
        period, ends = _period_of(budget.period, (zone if by_store else None) or UTC, at_ms)
        pool = _SEPARATOR.join((promotion.id, (store or _NOWHERE) if by_store else "", period))
        expires_s = round((ends + _KEEP).timestamp()) if ends is not None else 0
        charge = Charge(
            pool=pool, pieces=int(budget.pieces is not None), cents=cents if budget.cents is not None else 0
        )
        shares.append(Share(charge, Limit(budget.pieces, budget.cents, expires_s)))
    return shares


def period_of(pool: str) -> str:
    """The name of the period that a pool is of; "" for all time."""
    return pool.rpartition(_SEPARATOR)[2]


def _period_of(period: Literal["all", "day", "week", "month"], zone: tzinfo, at_ms: int) -> tuple[str, datetime | None]:
    """The name of the calendar period that a time is in, by a clock in `zone`, and when it ends (None: never)."""
    if period == "all":
        return "", None
    begins = datetime.fromtimestamp(at_ms / 1000, zone).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        ends = begins + timedelta(days=1)
    elif period == "week":
        begins -= timedelta(days=begins.weekday())
        ends = begins + timedelta(days=7)
    else:
        begins = begins.replace(day=1)
        ends = (begins + timedelta(days=32)).replace(day=1)
    return f"{period} {begins.date().isoformat()}", ends
