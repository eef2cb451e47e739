"""What offers change: of customers who got one against those who were held out of it, by chance.

Who is held out is drawn per customer, so whatever the two groups do differently afterwards, the offer did. Compared is
each customer's first moment in the log that was worth an offer. Later ones are not comparable: who got the first offer
meets caps, and has been annoyed or pleased, which nobody held out was.

    lift    rate of the outcome among those offered, less that among those held out, within each promotion, then
            averaged over promotions by their customers. Interval: Newcombe (1998), method 10; summed by MOVER.
    Qini    if only the share x of the customers that a ranking puts first were offered: the additional outcomes, per
            customer offered in the log (Radcliffe 2007). At x = 1 it is the lift. The coefficient is the area between
            this curve and the straight line of a random ranking.
    AUUC    the area under the uplift curve: (rate offered - rate held out among the first x) times x. Random: lift / 2.

Rankings by uplift are learned here, each customer scored by models that did not see them: by *two models* (one per
group; the difference of what they expect), and by the *transformed outcome* y (t - e) / (e (1 - e)), whose mean is the
uplift (e: the share that is offered). They are set against the propensity that ranks offers live: who redeems is not
who changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.training.logged import Floats, Ints, feature_columns, read
from nearcast.errors import InputError

_FOLDS = 5
_RESAMPLES = 500
#: Fewer customers, or outcomes, in a group than this teach no ranking.
_ENOUGH_CUSTOMERS, _ENOUGH_OUTCOMES = 100, 10
_Z = 1.959963984540054
_COLUMNS = (
    *("decision", "customer", "visitor", "at", "outcome", "would_be_promotion", "would_be_sku"),
    *("promotion", "sku", "chosen", "propensity"),
)


@dataclass(frozen=True)
class Units:
    """One entry per customer: the first moment that was worth an offer."""

    treated: NDArray[np.bool_]
    outcome: NDArray[np.bool_]
    #: Which promotion it was about, as an index into `promotions`.
    promotion: Ints
    promotions: tuple[str, ...]
    #: What a ranking may go by; not a number where the log has no inputs.
    rows: Floats
    propensity: Floats
    #: Customers of promotions in which everybody was offered, or nobody, and those whose outcome is not known.
    left_out: Mapping[str, int]

    @property
    def share(self) -> Floats:
        """By customer: the share of their promotion's customers who were offered."""
        treated = np.bincount(self.promotion, self.treated)
        shares: Floats = (treated / np.bincount(self.promotion))[self.promotion]
        return shares


class Lift(msgspec.Struct, frozen=True, kw_only=True):
    """Those offered against those held out; rates and their difference are shares, with the 95 % interval."""

    offered: int
    held_out: int
    rate_offered: float
    rate_held_out: float
    lift: float
    interval: tuple[float, float]


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """How well a ranking finds those whom an offer changes, with 95 % intervals; and its Qini curve."""

    qini: float
    qini_interval: tuple[float, float]
    auuc: float
    auuc_interval: tuple[float, float]
    shares: list[float]
    gains: list[float]


class UpliftReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the offers of a log changed."""

    customers: int
    overall: Lift
    promotions: dict[str, Lift]
    #: Of a random ranking.
    random_auuc: float
    #: By name; empty if there is too little to learn from.
    rankings: dict[str, Ranking]
    left_out: dict[str, int]


def read_units(path: Path, outcome: str = "purchased_after", promotion: str | None = None) -> Units:
    """The customers of a log, by a column that says of each chosen row whether the outcome happened.

    With `promotion`, only moments worth that one. Raises `InputError`.
    """
    frame = read(path, [*_COLUMNS, *({outcome} - set(_COLUMNS))])
    chosen = frame[frame.chosen].set_index("decision")
    held = chosen.would_be_promotion.notna()
    offered = (chosen.outcome == "offer") & ~held
    first = pd.DataFrame(
        {
            "customer": chosen.customer,
            "at": chosen["at"],
            "treated": offered,
            "promotion": chosen.would_be_promotion.where(held, chosen.promotion),
            "sku": chosen.would_be_sku.where(held, chosen.sku),
            "happened": chosen[outcome],
            "visitor": chosen.visitor.fillna(value=False).astype(bool),
        }
    )[held | offered]
    if promotion is not None:
        first = first[first.promotion == promotion]
    first = first.sort_values("at", kind="stable").drop_duplicates("customer")
    # Whoever signs in becomes somebody else, perhaps on the other side, and their purchases are theirs.
    visitors = first.visitor
    first = first[~visitors]
    unknown = first.happened.isna()
    first = first[~unknown]
    arms = first.groupby("promotion").treated.transform("nunique")
    alone = arms < 2
    first = first[~alone]
    if first.empty:
        why = f"; of {int(unknown.sum())} customers {outcome} is not known" if unknown.any() else ""
        raise InputError(
            "no_hold_out", f"has no promotion of which some customers were held out and others not{why}", str(path)
        )
    if not first.happened.isin([0, 1]).all():
        raise InputError("not_an_outcome", f"column {outcome} must be true or false, or 1 or 0", str(path))
    inputs = feature_columns(frame)
    offers = frame.dropna(subset=["promotion"]).drop_duplicates(["decision", "promotion", "sku"])
    about = first.reset_index().merge(
        offers[["decision", "promotion", "sku", "propensity", *inputs]], on=["decision", "promotion", "sku"], how="left"
    )
    codes, names = pd.factorize(about.promotion, sort=True)
    return Units(
        treated=about.treated.to_numpy(dtype=bool),
        outcome=about.happened.to_numpy(dtype=bool),
        promotion=codes.astype(np.int64),
        promotions=tuple(names),
        rows=about[inputs].to_numpy(dtype=float),
        propensity=about.propensity.to_numpy(dtype=float),
        left_out={
            fault: int(holds.sum())
            for fault, holds in (
                ("visitors who had not signed in", visitors),
                ("the outcome is not known", unknown),
                ("nobody to compare with", alone),
            )
            if holds.any()
        },
    )


def uplift(units: Units, seed: int = 7) -> UpliftReport:
    """Lift, and how well rankings find it."""
    groups = {
        name: _lift(units, units.promotion == number, units.treated) for number, name in enumerate(units.promotions)
    }
    weights = np.bincount(units.promotion) / len(units.promotion)
    overall = _together(list(groups.values()), weights)
    rankings = {name: _ranking(score, units, seed) for name, score in _scores(units, seed).items()}
    return UpliftReport(
        customers=len(units.treated),
        overall=overall,
        promotions=groups,
        random_auuc=overall.lift / 2,
        rankings=rankings,
        left_out=dict(units.left_out),
    )


def newcombe(hits: int, of: int, other_hits: int, of_others: int) -> tuple[float, float]:
    """95 % interval of the difference of two rates, from the Wilson intervals of each."""
    rate, other = hits / of, other_hits / of_others
    low, high = _wilson(hits, of)
    other_low, other_high = _wilson(other_hits, of_others)
    difference = rate - other
    return (
        difference - float(np.hypot(rate - low, other_high - other)),
        difference + float(np.hypot(high - rate, other - other_low)),
    )


class Curve:
    """The Qini and the uplift curve of a ranking: a point after each group of equal scores, best first.

    Those held out are weighted by the odds of being offered their promotion, so that in every promotion they stand for
    as many as were offered. Without promotions of different shares that changes nothing.
    """

    def __init__(self, score: Floats, units: Units) -> None:
        order = np.argsort(-score, kind="stable")
        ranked = score[order]
        self._order = order
        self._ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
        share = units.share[order]
        self._treated = units.treated[order].astype(float)
        self._held = (1 - self._treated) * share / (1 - share)
        self._outcome = units.outcome[order]

    def points(self, times: Floats) -> tuple[Floats, Floats, Floats]:
        """Share of customers, Qini and uplift curve, if each customer were there so many times."""
        times = times[self._order]
        everybody, offered, held, hits, other_hits = (
            np.append(0.0, np.cumsum(each)[self._ends])
            for each in (
                times,
                times * self._treated,
                times * self._held,
                times * self._treated * self._outcome,
                times * self._held * self._outcome,
            )
        )
        share = everybody / everybody[-1]
        rate, other = _ratio(hits, offered), _ratio(other_hits, held)
        return share, (hits - other * offered) / offered[-1], (rate - other) * share

    def areas(self, times: Floats) -> tuple[float, float]:
        """Qini coefficient and AUUC."""
        share, qini, gain = self.points(times)
        return float(np.trapezoid(qini, share) - qini[-1] / 2), float(np.trapezoid(gain, share))


def _wilson(hits: int, of: int) -> tuple[float, float]:
    rate, z2 = hits / of, _Z**2
    middle = (rate + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z * np.sqrt(rate * (1 - rate) / of + z2 / (4 * of**2)) / (1 + z2 / of)
    return float(middle - half), float(middle + half)


def _lift(units: Units, among: NDArray[np.bool_], treated: NDArray[np.bool_]) -> Lift:
    offered, held = units.outcome[among & treated], units.outcome[among & ~treated]
    hits, other_hits = int(offered.sum()), int(held.sum())
    return Lift(
        offered=len(offered),
        held_out=len(held),
        rate_offered=hits / len(offered),
        rate_held_out=other_hits / len(held),
        lift=hits / len(offered) - other_hits / len(held),
        interval=newcombe(hits, len(offered), other_hits, len(held)),
    )


def _together(groups: list[Lift], weights: Floats) -> Lift:
    """The weighted mean of lifts, its interval from theirs (MOVER: Zou and Donner 2008)."""
    lift = float(sum(weight * group.lift for weight, group in zip(weights, groups, strict=True)))
    below = np.array([group.lift - group.interval[0] for group in groups])
    above = np.array([group.interval[1] - group.lift for group in groups])
    return Lift(
        offered=sum(group.offered for group in groups),
        held_out=sum(group.held_out for group in groups),
        rate_offered=float(weights @ [group.rate_offered for group in groups]),
        rate_held_out=float(weights @ [group.rate_held_out for group in groups]),
        lift=lift,
        interval=(lift - float(np.linalg.norm(weights * below)), lift + float(np.linalg.norm(weights * above))),
    )


def _scores(units: Units, seed: int) -> dict[str, Floats]:
    """Rankings by name; none if there is too little to learn them from, or to judge them by."""
    if np.isnan(units.rows).any() or np.isnan(units.propensity).any() or not units.rows.shape[1]:
        return {}
    for group in (units.outcome[units.treated], units.outcome[~units.treated]):
        if len(group) < _ENOUGH_CUSTOMERS or not _ENOUGH_OUTCOMES <= group.sum() <= len(group) - _ENOUGH_OUTCOMES:
            return {}
    share = units.share
    transformed = units.outcome * (units.treated - share) / (share * (1 - share))
    two_models, one_model = np.zeros(len(share)), np.zeros(len(share))
    fold = np.random.default_rng(seed).permutation(len(share)) % _FOLDS
    for each in range(_FOLDS):
        rest, wanted = fold != each, units.rows[fold == each]
        gained = _chance(units, rest & units.treated, wanted) - _chance(units, rest & ~units.treated, wanted)
        two_models[fold == each] = _rank(gained)
        ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11)))
        one_model[fold == each] = _rank(ridge.fit(units.rows[rest], transformed[rest]).predict(wanted))
    return {"two models": two_models, "transformed outcome": one_model, "served propensity": units.propensity}


def _rank(score: Floats) -> Floats:
    """Places within a fold, 0..1. The scores themselves are not comparable between folds: where one happens to hold
    more of the moved customers, the others, which its models learned from, hold fewer.
    """
    ranks: Floats = pd.Series(score).rank(pct=True).to_numpy()
    return ranks


def _chance(units: Units, train: NDArray[np.bool_], rows: Floats) -> Floats:
    """P(outcome) of these rows by a model of the customers in `train`."""
    outcome = units.outcome[train]
    if outcome.all() or not outcome.any():
        return np.full(len(rows), float(outcome.mean()))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
    chances: Floats = model.fit(units.rows[train], outcome).predict_proba(rows)[:, 1]
    return chances


def _ranking(score: Floats, units: Units, seed: int) -> Ranking:
    curve = Curve(score, units)
    random = np.random.default_rng(seed)
    count = len(score)
    drawn = [
        curve.areas(np.bincount(random.integers(0, count, count), minlength=count).astype(float))
        for _ in range(_RESAMPLES)
    ]
    shares, gains, _ = curve.points(np.ones(count))
    qini, auuc = curve.areas(np.ones(count))
    qini_interval, auuc_interval = (_interval(values) for values in zip(*drawn, strict=True))
    return Ranking(
        qini=qini,
        qini_interval=qini_interval,
        auuc=auuc,
        auuc_interval=auuc_interval,
        shares=shares.tolist(),
        gains=gains.tolist(),
    )


def _ratio(part: Floats, whole: Floats) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return ratio


def _interval(values: tuple[float, ...]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
