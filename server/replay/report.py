"""In which decisions two runs differ: what was decided about the same moment of the same customer.

Depends on nothing but the runs: the same recording and rules give the same bytes.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from nearcast.ids import CustomerId, PromotionId
from server.replay.player import Key, Made, Run
from server.replay.recording import Recorded

NOBODY: Mapping[CustomerId, int] = {}


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two that are compared, in numbers."""

    name: str
    decisions: int
    #: By outcome: offer, assist, nothing.
    outcomes: dict[str, int]
    #: Empty for the live decisions, which may have been made with several.
    rules_version: str = ""
    #: What the model expects of the decisions in all: probability x value - cost.
    expected_cents: float = 0.0
    receipts_kept: int = 0
    receipts_dropped: int = 0
    dead_letters: dict[str, int] = {}


class OfPromotion(msgspec.Struct, frozen=True, kw_only=True):
    """How often a promotion won, before and after; what that is expected to bring, and what it takes of budgets."""

    promotion: str
    before: int
    after: int
    expected_cents_before: float = 0.0
    expected_cents_after: float = 0.0
    budgets: list["OfBudget"] = []


class OfBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What the offers of a run took of one budget; `pool` says for which store and period, if it is kept apart."""

    pool: str
    pieces_before: int = 0
    pieces_after: int = 0
    cents_before: int = 0
    cents_after: int = 0


class OfReason(msgspec.Struct, frozen=True, kw_only=True):
    """How many moments led to nothing for this reason, before and after."""

    reason: str
    before: int
    after: int


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of difference, and how often it is there. A side is `offer coffee`, `nothing (capped)` or `-`.

    It is `offer coffee by sms` where a model has put the channels in order, and SMS first.
    """

    before: str
    after: str
    count: int


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One decision that differs."""

    customer: str
    at_ms: int
    trigger: str
    subject: str
    event: str
    before: str
    after: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Two sides and their differences. With one side only there is nothing to compare: then `after` is None."""

    records: int
    first_ms: int
    last_ms: int
    before: Side
    after: Side | None = None
    same: int = 0
    only_before: int = 0
    only_after: int = 0
    changed: int = 0
    #: Of the changed and those on one side only: another promotion won · one won where none did · the other way round.
    moved: int = 0
    new: int = 0
    gone: int = 0
    promotions: list[OfPromotion] = []
    reasons: list[OfReason] = []
    changes: list[Change] = []
    samples: list[Sample] = []

    @property
    def differences(self) -> int:
        return self.only_before + self.only_after + self.changed


def side_of(name: str, run: Run) -> Side:
    return Side(
        name=name,
        decisions=len(run.decisions),
        outcomes=_outcomes(run.decisions.values()),
        rules_version=run.rules_version,
        expected_cents=_expected(run.decisions.values()),
        receipts_kept=run.receipts["kept"],
        receipts_dropped=run.receipts["dropped"],
        dead_letters=dict(sorted(run.dead_letters.items())),
    )


def side_of_live(recorded: Recorded, decisions: Mapping[Key, Made]) -> Side:
    versions = sorted({decision.rules_version for decision in recorded.decisions})
    return Side(
        name="live",
        decisions=len(decisions),
        outcomes=_outcomes(decisions.values()),
        rules_version=versions[0] if len(versions) == 1 else "",
        expected_cents=_expected(decisions.values()),
    )


def compare(
    report: Report,
    before: Mapping[Key, Made],
    after: Mapping[Key, Made],
    samples: int,
    kept_from: Mapping[CustomerId, int] = NOBODY,
) -> Report:
    """The report with the differences. What `before` can't know, being older than `kept_from`, is left out."""
    known = [key for key in after if key in before or key.at_ms >= kept_from.get(key.customer, 0)]
    changes: Counter[tuple[str, str]] = Counter()
    differing: list[tuple[Key, str, str]] = []
    same = 0
    for key in sorted({*before, *known}):
        sides = _words(before.get(key)), _words(after.get(key))
        if sides[0] == sides[1]:
            same += 1
        else:
            changes[_kind(before.get(key)), _kind(after.get(key))] += 1
            differing.append((key, *sides))
    won = [(_winner(before.get(key)), _winner(after.get(key))) for key, _, _ in differing]
    only_before = sum(key not in after for key, _, _ in differing)
    only_after = sum(key not in before for key, _, _ in differing)
    # Drawn by hash: from everywhere, and the same ones every time.
    chosen = sorted(differing, key=lambda each: _drawn(each[0]))[:samples]
    return msgspec.structs.replace(
        report,
        same=same,
        only_before=only_before,
        only_after=only_after,
        changed=len(differing) - only_before - only_after,
        moved=sum(left != right for left, right in won if left and right),
        new=sum(left is None and right is not None for left, right in won),
        gone=sum(left is not None and right is None for left, right in won),
        promotions=list(_promotions(list(before.values()), [after[key] for key in known])),
        reasons=list(_reasons(before.values(), [after[key] for key in known])),
        changes=[
            Change(before=left, after=right, count=count)
            for (left, right), count in sorted(changes.items(), key=lambda item: (-item[1], item[0]))
        ],
        samples=[
            Sample(
                customer=key.customer,
                at_ms=key.at_ms,
                trigger=key.trigger,
                subject=key.subject,
                event=key.event,
                before=left,
                after=right,
            )
            for key, left, right in sorted(chosen, key=lambda each: (each[0].at_ms, each[0]))
        ],
    )


def as_json(report: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def as_text(report: Report) -> str:
    """For people."""
    return "\n".join(_text(report)) + "\n"


def _text(report: Report) -> Iterator[str]:
    yield f"{_number(report.records, 'record')}, arrived from {_time(report.first_ms)} to {_time(report.last_ms)}"
    yield ""
    sides = [report.before] if report.after is None else [report.before, report.after]
    outcomes = sorted({outcome for side in sides for outcome in side.outcomes})
    rows = [["", *(side.name for side in sides)], ["decisions", *(str(side.decisions) for side in sides)]]
    rows += [[f"  {outcome}", *(str(side.outcomes.get(outcome, 0)) for side in sides)] for outcome in outcomes]
    rows.append(["  expected, cents", *(f"{side.expected_cents:.2f}" for side in sides)])
    rows.append(["rules version", *(side.rules_version or "several" for side in sides)])
    if any(side.receipts_kept or side.receipts_dropped for side in sides):
        rows.append(["receipts used", *(str(side.receipts_kept) for side in sides)])
        rows.append(["receipts dropped", *(str(side.receipts_dropped) for side in sides)])
    for reason in sorted({reason for side in sides for reason in side.dead_letters}):
        rows.append([f"dead: {reason}", *(str(side.dead_letters.get(reason, 0)) for side in sides)])
    yield from _table(rows)
    if report.after is None:
        yield ""
        yield "Nothing to compare with: the recording holds no decisions, and no --rules were given."
        return
    yield ""
    yield (
        f"{_number(report.differences, 'difference')}: {report.changed} changed, {report.only_before} only in "
        f"{report.before.name}, {report.only_after} only in {report.after.name}; {report.same} the same"
    )
    if report.moved or report.new or report.gone:
        yield f"messages: {report.moved} moved to another promotion, {report.new} new, {report.gone} gone"
    if report.promotions:
        yield ""
        yield from _table(
            [
                ["promotion", report.before.name, report.after.name, "change", "expected, cents"],
                *(
                    [
                        *(p.promotion, str(p.before), str(p.after), f"{p.after - p.before:+d}"),
                        f"{p.expected_cents_before:.2f} -> {p.expected_cents_after:.2f}",
                    ]
                    for p in report.promotions
                ),
            ]
        )
    budgets = [(p.promotion, budget) for p in report.promotions for budget in p.budgets]
    if budgets:
        yield ""
        yield from _table(
            [
                ["budget of", "for", "pieces", "cents"],
                *([name, _of_pool(name, b.pool), *_taken(b)] for name, b in budgets),
            ]
        )
    if report.reasons:
        yield ""
        yield from _table(
            [
                ["nothing, because", report.before.name, report.after.name, "change"],
                *([r.reason, str(r.before), str(r.after), f"{r.after - r.before:+d}"] for r in report.reasons),
            ]
        )
    if report.changes:
        yield ""
        yield from _table(
            [
                ["times", report.before.name, report.after.name],
                *([str(c.count), c.before, c.after] for c in report.changes),
            ]
        )
    if report.samples:
        yield ""
        yield from _table(
            [
                ["customer", "at", "trigger", "subject", report.before.name, report.after.name],
                *([s.customer, _time(s.at_ms), s.trigger, s.subject, s.before, s.after] for s in report.samples),
            ]
        )


def _of_pool(promotion: str, pool: str) -> str:
    """The store and the period that a pool's name tells, after the promotion's."""
    told = [part for part in pool.removeprefix(promotion).split("\x1f") if part]
    return " ".join(told) or "all"


def _taken(budget: OfBudget) -> list[str]:
    pieces, cents = (budget.pieces_before, budget.pieces_after), (budget.cents_before, budget.cents_after)
    return [f"{left} -> {right}" if (left, right) != (0, 0) else "" for left, right in (pieces, cents)]


def _table(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _outcomes(decisions: Iterable[Made]) -> dict[str, int]:
    return dict(sorted(Counter(made.outcome for made in decisions).items()))


def _expected(decisions: Iterable[Made]) -> float:
    return round(math.fsum(made.expected_cents for made in decisions), 6)


def _promotions(before: Sequence[Made], after: Sequence[Made]) -> Iterator[OfPromotion]:
    names = sorted({made.promotion for made in (*before, *after) if made.promotion is not None})
    for name in names:
        left, right = ([made for made in side if made.promotion == name] for side in (before, after))
        yield OfPromotion(
            promotion=name,
            before=len(left),
            after=len(right),
            expected_cents_before=_expected(left),
            expected_cents_after=_expected(right),
            budgets=list(_budgets(left, right)),
        )


def _budgets(before: Sequence[Made], after: Sequence[Made]) -> Iterator[OfBudget]:
    left, right = (_charged(side) for side in (before, after))
    for pool in sorted({*left, *right}):
        (pieces_before, cents_before), (pieces_after, cents_after) = left.get(pool, (0, 0)), right.get(pool, (0, 0))
        yield OfBudget(
            pool=pool,
            pieces_before=pieces_before,
            pieces_after=pieces_after,
            cents_before=cents_before,
            cents_after=cents_after,
        )


def _charged(side: Iterable[Made]) -> dict[str, tuple[int, int]]:
    """Pieces and cents by pool."""
    taken: dict[str, tuple[int, int]] = {}
    for made in side:
        for charge in made.charges:
            pieces, cents = taken.get(charge.pool, (0, 0))
            taken[charge.pool] = pieces + charge.pieces, cents + charge.cents
    return taken


def _reasons(before: Iterable[Made], after: Iterable[Made]) -> Iterator[OfReason]:
    left, right = (Counter(str(made.reason) for made in side if made.reason is not None) for side in (before, after))
    for reason in sorted({*left, *right}, key=lambda reason: (-max(left[reason], right[reason]), reason)):
        yield OfReason(reason=reason, before=left[reason], after=right[reason])


def _winner(made: Made | None) -> PromotionId | None:
    return None if made is None else made.promotion


def _words(made: Made | None) -> str:
    sku = f" for {made.sku}" if made is not None and made.sku is not None else ""
    return f"{_kind(made)}{sku}"


def _kind(made: Made | None) -> str:
    if made is None:
        return "-"
    if made.promotion is None:
        return f"{made.outcome} ({made.reason})"
    return f"{made.outcome} {made.promotion}" + (f" by {made.channel}" if made.channel is not None else "")


def _drawn(key: Key) -> bytes:
    return hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()


def _number(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")
