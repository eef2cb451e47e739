"""What another policy would have earned, told from decisions that the old one logged.

Only what was done has a known outcome. Four estimates of the new policy's value per decision, in cents:

* IPS, inverse propensity scoring: the outcomes of what both would have done, each weighted by how much likelier the new
  policy does it: w = p_new(action) / p_logged(action). Right on average if p_logged is, but restless.
* SNIPS, the same divided by the mean weight instead of by the decisions: far steadier, with a small bias.
* DM, direct method: what a model of redemptions, fitted to the log, expects. Steady, and as wrong as that model.
* DR, doubly robust: DM, corrected by IPS of what the model got wrong. Right if either is; the one to go by.

Swaminathan and Joachims (2015) for SNIPS, Dudik, Langford and Li (2011) for DR. Intervals are 95 % percentiles of a
bootstrap that draws whole customers, since one customer's decisions are not independent of each other.

None of this can tell of what was never tried: see `PolicyValue.untried`. And it holds for the moments that were logged,
at their costs: a policy that offers more would meet more customers who are capped or annoyed.
"""

import msgspec
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.training.logged import Floats, Logged

#: A weight above this is cut to it: a single decision must not decide. Costs a little bias, says `PolicyValue.clipped`.
MAX_WEIGHT = 100.0
_RESAMPLES = 1_000
_FOLDS = 5
#: A probability this small is what is left of 0 after adding up others.
_NEVER = 1e-9


class Estimate(msgspec.Struct, frozen=True):
    """Cents per decision, with their 95 % interval; and the same of the gain over what was logged."""

    cents: float
    interval: tuple[float, float]
    gain_cents: float
    gain_interval: tuple[float, float]


class PolicyValue(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a policy, and how far to trust it."""

    decisions: int
    customers: int
    #: Of the logged policy: the mean of what its decisions brought.
    logged: Estimate
    #: By "ips", "snips", "dm" and "dr".
    estimates: dict[str, Estimate]
    #: How many decisions, each of weight 1, would tell as much as the weighted ones do: (sum w)^2 / sum w^2.
    effective_decisions: float
    #: Near 1 if the logged probabilities are true and all that the policy does was tried.
    mean_weight: float
    largest_weight: float
    #: The share of decisions whose weight was cut.
    clipped: float
    #: The share of decisions, by the policy's probability, that it would make in a way that could not happen in the
    #: log. IPS and SNIPS know nothing of these; DM and DR have only the model's word.
    untried: float
    #: The share that it would make as they were made.
    agreement: float


def policy_value(
    log: Logged, policy: Floats, predicted_cents: Floats, *, max_weight: float = MAX_WEIGHT, seed: int = 7
) -> PolicyValue:
    """The value of a policy. It has a probability for each of the log's actions, and so has the model that predicts
    what each would bring; the probabilities of one decision's actions add up to 1. Raises `ValueError` if not.
    """
    decisions = len(log.chosen)
    if not np.allclose(np.bincount(log.decision, policy, minlength=decisions), 1.0):
        raise ValueError("the policy's probabilities of a decision's actions must add up to 1")
    agreement, logged = policy[log.chosen], log.probability[log.chosen]
    full = np.divide(agreement, logged, out=np.zeros(decisions), where=logged > _NEVER)
    weight = np.minimum(full, max_weight)
    direct = np.bincount(log.decision, policy * predicted_cents, minlength=decisions)
    robust = direct + weight * (log.reward_cents - predicted_cents[log.chosen])
    columns = (np.ones(decisions), log.reward_cents, weight * log.reward_cents, weight, direct, robust)
    by_customer: Floats = np.column_stack([np.bincount(log.customer, column) for column in columns])
    random = np.random.default_rng(seed)
    resampled = np.array([_values(_drawn(by_customer, random)) for _ in range(_RESAMPLES)])
    known = _values(by_customer.sum(axis=0))
    estimates = [_estimate(known, resampled, place) for place in range(len(known))]
    return PolicyValue(
        decisions=decisions,
        customers=len(by_customer),
        logged=estimates[0],
        estimates=dict(zip(("ips", "snips", "dm", "dr"), estimates[1:], strict=True)),
        effective_decisions=float(weight.sum() ** 2 / (weight**2).sum()) if weight.any() else 0.0,
        mean_weight=float(weight.mean()),
        largest_weight=float(full.max()),
        clipped=float((full > max_weight).mean()),
        untried=float(policy[log.probability <= _NEVER].sum() / decisions),
        agreement=float(agreement.mean()),
    )


def predicted_cents(log: Logged, seed: int = 7) -> Floats:
    """What each action of the log would bring, by a logistic regression of redemptions on the model's inputs and the
    served propensity. Every customer is predicted by a model that was fitted to others.
    """
    offers = ~log.is_nothing
    logit = np.log(np.clip(log.propensity, 1e-6, 1 - 1e-6)) - np.log1p(-np.clip(log.propensity, 1e-6, 1 - 1e-6))
    rows = np.column_stack((log.rows, logit))
    fold = np.random.default_rng(seed).permutation(log.customer.max() + 1) % _FOLDS
    fold_of_decision = fold[log.customer]
    made = ~log.is_nothing[log.chosen]
    redeem = np.zeros(len(log.decision))
    for each in range(_FOLDS):
        train = made & (fold_of_decision != each)
        wanted = offers & (fold_of_decision[log.decision] == each)
        outcome = log.redeemed[train]
        if not wanted.any():
            continue
        if outcome.all() or not outcome.any():
            # One kind of outcome teaches no difference.
            redeem[wanted] = outcome.mean() if len(outcome) else 0.0
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
        model.fit(rows[log.chosen[train]], outcome)
        redeem[wanted] = model.predict_proba(rows[wanted])[:, 1]
    return redeem * log.value_cents - log.cost_cents


def _drawn(by_customer: Floats, random: np.random.Generator) -> Floats:
    """The sums over as many customers, drawn with replacement."""
    customers = len(by_customer)
    times = np.bincount(random.integers(0, customers, customers), minlength=customers)
    drawn: Floats = times @ by_customer
    return drawn


def _values(sums: Floats) -> tuple[float, ...]:
    """Logged, IPS, SNIPS, DM, DR, of the sums that `policy_value` makes."""
    decisions, reward, weighted, weight, direct, robust = sums.tolist()
    return (
        reward / decisions,
        weighted / decisions,
        weighted / weight if weight else 0.0,
        direct / decisions,
        robust / decisions,
    )


def _estimate(known: tuple[float, ...], resampled: Floats, place: int) -> Estimate:
    value, gain = resampled[:, place], resampled[:, place] - resampled[:, 0]
    return Estimate(known[place], _interval(value), known[place] - known[0], _interval(gain))


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
