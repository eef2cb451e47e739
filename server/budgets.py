"""Budgets of promotions: how many pieces and how much money may still be given away, never overspent.

    (none) --reserve--> held --settle--> settled
                         \\---release, or its time is up---> released

Every step is one atomic script on the promotion's own keys, so any number of processes may draw on one budget. All
steps are keyed by decision id and can be repeated safely: after a lost reply the same step gives the same answer and
takes nothing more. Settled and released are for good.

Nothing calls this yet. It is made for: the engine, which reserves before it decides on an offer (through leases, so
that it need not ask for each); the dispatcher, which settles before anything leaves the house, drops the message if
the answer is not "settled", and releases when it gives a message up; and a timer that reconciles every promotion. A
worker that lost its partition must not release: its successor holds the same decisions under the same ids.

A crash between reserving and settling leaks its amount until the reservation's `expires_ms`: then it is given back, by
`reconcile` or in passing by the next `reserve`. `expires_ms` belongs to the decision (its deadline and some grace), so
every repetition brings the same one. That is what lets records go: `KEEP_MS` after it a decision's record is forgotten
(what it used stays in a counter), and nothing is granted any more to a decision that ends no later than one forgotten,
whatever the clocks say. A clock that runs ahead ends reservations early; it can't make anyone overspend.

The limit comes with each request, from the caller's version of the world; the newest version that anyone came with
counts, and of one version the last limit. Under one lowered below what is used nothing is granted; what was granted
stays.

What is kept: decision ids and amounts, no customers. It must not be used for anything that needs a budget per customer
(that is what caps are for).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.clock import Clock
from nearcast.errors import Conflict
from nearcast.ids import DecisionId, PromotionId
from server.store import reaching_store, text

#: How long after its `expires_ms` a decision is still answered from its own record. Later, `settle` and `release` say
#: "unknown" and `reserve` is refused: a message that late is not sent anyway.
KEEP_MS = 3_600_000

#: The script counts in double precision, which is exact up to 9e15.
_MOST = 10**12

Refusal = Literal["exhausted", "released", "too_late"]
State = Literal["settled", "released", "unknown"]


class Amount(msgspec.Struct, frozen=True):
    """What one decision takes. Raises ValueError if it is negative, or more than 10^12."""

    pieces: int = 1
    cents: int = 0

    def __post_init__(self) -> None:
        _check(self.pieces, self.cents)


class Limit(msgspec.Struct, frozen=True):
    """How much may be issued in all; None is no limit. `version` is that of the world which it was read from.

    Raises ValueError if it is negative, or more than 10^12.
    """

    pieces: int | None = None
    cents: int | None = None
    version: int = 0

    def __post_init__(self) -> None:
        _check(self.pieces or 0, self.cents or 0)
        if self.version < 0:
            raise ValueError(f"a limit's version is 0 or more, not {self.version}")


class Answer(NamedTuple):
    """What came of a reservation.

    "already" is the answer to a repetition: the decision has its share, from before. A refusal says why: the budget is
    "exhausted" (asked again later, there may be room), the decision's share was given back ("released"), or its time
    was over before it had one ("too_late").
    """

    verdict: Literal["granted", "already", "refused"]
    reason: Refusal | None = None


class Usage(NamedTuple):
    """What is out of a budget: held by decisions that are under way, and settled."""

    held_pieces: int
    held_cents: int
    settled_pieces: int
    settled_cents: int

    @property
    def pieces(self) -> int:
        """Pieces issued in all."""
        return self.held_pieces + self.settled_pieces

    @property
    def cents(self) -> int:
        """Cents issued in all."""
        return self.held_cents + self.settled_cents


class Tidied(NamedTuple):
    """Reservations whose time was up and whose amount was given back, and old records forgotten."""

    returned: int
    forgotten: int


class Budgets:
    """The budgets in the state store. Every method raises `Unavailable` when the store can't be reached: repeat it."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self._redis = redis
        self._clock = clock
        self._script = redis.register_script(Path(__file__).with_suffix(".lua").read_text(encoding="utf-8"))

    async def reserve(
        self, promotion: PromotionId, decision: DecisionId, amount: Amount, limit: Limit, expires_ms: int
    ) -> Answer:
        """Hold an amount for a decision until `expires_ms`, unless the limit forbids it.

        Raises `Conflict` if the decision came before with another amount or another `expires_ms`.
        """
        terms = (amount.pieces, amount.cents, expires_ms)
        bounds = ("" if bound is None else bound for bound in (limit.pieces, limit.cents))
        verdict, *before = await self._step("reserve", promotion, decision, *terms, limit.version, *bounds)
        match verdict:
            case "granted" | "already":
                return Answer(verdict)
            case "conflict":
                pieces, cents, until = str(before[0]).split()
                raise Conflict(
                    "other_reservation",
                    f"it has {pieces} pieces and {cents} cents until {until}; repeated with {amount.pieces} pieces and "
                    f"{amount.cents} cents until {expires_ms}. One decision asks for one thing",
                    f"promotion {promotion}, decision {decision}",
                )
            case reason:
                return Answer("refused", cast("Refusal", reason))

    async def settle(self, promotion: PromotionId, decision: DecisionId) -> State:
        """The decision's amount is used, for good. Unless the answer is "settled" it has none: nothing may be sent."""
        return cast("State", (await self._step("settle", promotion, decision))[0])

    async def release(self, promotion: PromotionId, decision: DecisionId) -> State:
        """Give the decision's amount back, for good. The answer is "settled" if it is too late for that."""
        return cast("State", (await self._step("release", promotion, decision))[0])

    async def usage(self, promotion: PromotionId) -> Usage:
        """What is out at present, overdue reservations included until they are tidied up."""
        return (await self._totals(promotion))[0]

    async def remaining(self, promotion: PromotionId, limit: Limit) -> Limit:
        """What may still be issued under the newest limit, this one or one that came before; None is no limit."""
        usage, known = await self._totals(promotion)
        newest = known if known is not None and known.version > limit.version else limit
        return Limit(_left(newest.pieces, usage.pieces), _left(newest.cents, usage.cents), newest.version)

    async def reconcile(self, promotion: PromotionId) -> Tidied:
        """Give back every reservation whose time is up, and forget what is long past. Any process may, at any time."""
        returned = forgotten = 0
        while any(some := await self._step("tidy", promotion)):
            returned += int(some[0])
            forgotten += int(some[1])
        return Tidied(returned, forgotten)

    async def _step(self, step: str, promotion: PromotionId, *arguments: str | int) -> list[str | int]:
        where = [keys.budget(promotion, part) for part in ("totals", "records", "held", "done")]
        with reaching_store():
            answer: Sequence[bytes | str | int] = await self._script(
                keys=where, args=[step, self._clock.now_ms(), KEEP_MS, *arguments]
            )
        return [part if isinstance(part, int) else text(part) for part in answer]

    async def _totals(self, promotion: PromotionId) -> tuple[Usage, Limit | None]:
        with reaching_store():
            stored = await self._redis.hgetall(keys.budget(promotion, "totals"))
        fields = {text(name): text(value) for name, value in stored.items()}
        usage = Usage(*(int(fields.get(name, 0)) for name in Usage._fields))
        if "limit_version" not in fields:
            return usage, None
        pieces, cents = (int(fields[name]) if fields[name] else None for name in ("limit_pieces", "limit_cents"))
        return usage, Limit(pieces, cents, int(fields["limit_version"]))


def _check(pieces: int, cents: int) -> None:
    if not (0 <= pieces <= _MOST and 0 <= cents <= _MOST):
        raise ValueError(f"pieces and cents are within 0..{_MOST}, not {pieces} and {cents}")


def _left(bound: int | None, used: int) -> int | None:
    return None if bound is None else max(0, bound - used)
