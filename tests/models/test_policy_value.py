"""The value of a policy from another one's log: against worlds whose truth is known, and by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.logged import Floats, Logged
from models.training.policy_value import PolicyValue, policy_value, predicted_cents

VALUE, COST = 100.0, 10.0


def log_of(
    customer: Sequence[int], chosen: Sequence[int], redeemed: Sequence[bool], offered: Sequence[float], x: Floats
) -> Logged:
    """Decisions between nothing and one offer of 100 cents at a cost of 10. `offered` is how likely it was made, `x`
    the model's one input.
    """
    decisions = len(customer)
    made = np.asarray(chosen, dtype=bool)
    probability = np.column_stack((1.0 - np.asarray(offered), offered)).ravel()
    known = np.column_stack((np.full(decisions, np.nan), x)).ravel()
    return Logged(
        customer=np.asarray(customer, dtype=np.int64),
        at_ms=np.arange(decisions, dtype=np.int64),
        chosen=2 * np.arange(decisions) + made,
        redeemed=made & np.asarray(redeemed),
        reward_cents=made * (VALUE * np.asarray(redeemed) - COST),
        decision=np.repeat(np.arange(decisions), 2),
        probability=probability,
        value_cents=np.tile([0.0, VALUE], decisions),
        cost_cents=np.tile([0.0, COST], decisions),
        propensity=np.column_stack((np.full(decisions, np.nan), np.full(decisions, 0.2))).ravel(),
        is_nothing=np.tile([True, False], decisions),
        rows=known[:, np.newaxis],
        features=("x",),
        left_out={},
    )


def always(offer: float, decisions: int) -> Floats:
    """The policy that makes the offer with this probability, whoever it is for."""
    return np.tile([1.0 - offer, offer], decisions)


def rate(x: Floats) -> Floats:
    """The world's truth: P(redeem)."""
    return 1.0 / (1.0 + np.exp(2.0 - 2.0 * x))


def world(seed: int, customers: int = 400, each: int = 4) -> tuple[Logged, Floats]:
    """A log of a policy that makes the offer mostly to those who like it, and everybody's liking."""
    random = np.random.default_rng(seed)
    customer = np.repeat(np.arange(customers), each)
    # One customer's moments are alike.
    x = np.repeat(random.normal(size=customers), each) + random.normal(scale=0.3, size=customers * each)
    offered = np.where(x > 0, 0.9, 0.1)
    chosen = random.random(len(x)) < offered
    return log_of(customer, chosen, random.random(len(x)) < rate(x), offered, x), x


#: What offering to everybody brings, by numerical integration over the world's customers.
TRUTH = float(np.mean(VALUE * rate(np.random.default_rng(0).normal(scale=1.09**0.5, size=2_000_000)) - COST))


def errors(found: Sequence[float]) -> float:
    """By how many standard errors the mean of independent estimates is off the truth."""
    return abs(float(np.mean(found)) - TRUTH) / float(np.std(found) / np.sqrt(len(found)))


@pytest.fixture(scope="module")
def judged() -> list[tuple[Logged, PolicyValue]]:
    """Logs of the same world, and what each says of offering to everybody. The model says 10 cents."""
    logs = [world(seed)[0] for seed in range(1_000, 1_050)]
    return [(log, policy_value(log, always(1.0, len(log.chosen)), np.where(log.is_nothing, 0.0, 10.0))) for log in logs]


@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_intervals_cover_the_truth(judged: list[tuple[Logged, PolicyValue]], name: str) -> None:
    """The 95 % interval holds the truth in at least 90 % of the logs; the estimates are right on average."""
    found = [value.estimates[name] for _, value in judged]
    covered = np.mean([low <= TRUTH <= high for low, high in (each.interval for each in found)])
    assert covered >= 0.9
    assert errors([each.cents for each in found]) < 3


def test_the_mean_of_what_was_offered_does_not(judged: list[tuple[Logged, PolicyValue]]) -> None:
    """Offers went to those who like them: their mean, with its interval, is beside the truth nearly always."""
    covered = 0
    for log, _ in judged:
        offers = log.reward_cents[~log.is_nothing[log.chosen]]
        covered += abs(offers.mean() - TRUTH) <= 1.96 * offers.std() / np.sqrt(len(offers))
    assert covered <= 3


def test_doubly_robust() -> None:
    """DR is right with a wrong model if the probabilities are true, and with wrong probabilities if the model is."""
    found: dict[str, list[float]] = {"wrong model": [], "corrected": [], "wrong p": [], "saved by the model": []}
    for seed in range(1_000, 1_020):
        log, x = world(seed)
        everybody = always(1.0, len(x))
        # Says that nobody redeems.
        wrong = policy_value(log, everybody, -log.cost_cents).estimates
        true = np.column_stack((np.zeros(len(x)), VALUE * rate(x) - COST)).ravel()
        lied = log_of(log.customer, ~log.is_nothing[log.chosen], log.redeemed, np.full(len(x), 0.5), x)
        lied_of = policy_value(lied, everybody, true).estimates
        found["wrong model"].append(wrong["dm"].cents + seed * 1e-9)
        found["corrected"].append(wrong["dr"].cents)
        found["wrong p"].append(lied_of["ips"].cents)
        found["saved by the model"].append(lied_of["dr"].cents)
    off = {name: errors(values) for name, values in found.items()}
    assert off["corrected"] < 3
    assert off["saved by the model"] < 3
    assert off["wrong model"] > 10
    assert off["wrong p"] > 10


def test_by_hand() -> None:
    """Five decisions, every figure worked out on paper."""
    log = log_of(
        customer=[0, 0, 1, 2, 2],
        chosen=[1, 1, 0, 1, 0],
        redeemed=[True, False, False, True, False],
        offered=[0.5, 0.8, 0.5, 0.2, 0.1],
        x=np.zeros(5),
    )
    # Offer in the first four, nothing in the fifth; the model expects 20 cents of any offer.
    policy = np.array([0, 1, 0, 1, 0, 1, 0, 1, 1, 0], dtype=float)
    predicted = np.tile([0.0, 20.0], 5)
    value = policy_value(log, policy, predicted)
    # Weights 1/.5, 1/.8, 0, 1/.2, 1/.9; rewards 90, -10, 0, 90, 0.
    weights = 2 + 1.25 + 0 + 5 + 1 / 0.9
    assert value.logged.cents == pytest.approx((90 - 10 + 90) / 5)
    assert value.estimates["ips"].cents == pytest.approx((180 - 12.5 + 450) / 5)
    assert value.estimates["snips"].cents == pytest.approx((180 - 12.5 + 450) / weights)
    assert value.estimates["dm"].cents == pytest.approx(20 * 4 / 5)
    assert value.estimates["dr"].cents == pytest.approx((20 * 4 + 2 * 70 + 1.25 * -30 + 5 * 70) / 5)
    assert value.estimates["dr"].gain_cents == pytest.approx(value.estimates["dr"].cents - 34)
    assert value.mean_weight == pytest.approx(weights / 5)
    assert value.effective_decisions == pytest.approx(weights**2 / (4 + 1.25**2 + 25 + 1 / 0.81))
    assert (value.decisions, value.customers, value.agreement) == (5, 3, 0.8)
    # Cut to 2: only the weight of 5 is.
    cut = policy_value(log, policy, predicted, max_weight=2.0)
    assert cut.estimates["ips"].cents == pytest.approx((180 - 12.5 + 180) / 5)
    assert (cut.clipped, cut.largest_weight) == (0.2, pytest.approx(5.0))


def test_what_was_never_tried_is_said() -> None:
    """A log without chance knows nothing of what it never did: the share is named, and the weights show it."""
    log = log_of([0, 1, 2, 3], [1, 1, 0, 0], [True, False, False, False], [1.0, 1.0, 0.0, 0.0], np.zeros(4))
    value = policy_value(log, always(1.0, 4), np.zeros(8))
    assert (value.untried, value.agreement, value.mean_weight) == (0.5, 0.5, 0.5)
    nothing_alike = policy_value(log, np.array([1, 0, 1, 0, 0, 1, 0, 1], dtype=float), np.zeros(8))
    assert (nothing_alike.untried, nothing_alike.effective_decisions) == (1.0, 0.0)
    assert nothing_alike.estimates["snips"].cents == 0.0


def test_whole_customers_are_drawn() -> None:
    """The same decisions, of few customers instead of many, tell less: the interval is wider."""
    log, _ = world(1, customers=400, each=4)
    random = np.random.default_rng(3)
    rewards = np.repeat(random.choice([-COST, VALUE - COST], 100), 16)
    made = np.ones(1_600, dtype=bool)
    widths = []
    for customer in (np.arange(1_600), np.repeat(np.arange(100), 16)):
        one = log_of(customer, made, rewards > 0, np.full(1_600, 0.5), np.zeros(1_600))
        low, high = policy_value(one, always(1.0, 1_600), np.zeros(3_200)).estimates["snips"].interval
        widths.append(high - low)
    # Sixteen alike count as one: four times as wide.
    assert widths[1] / widths[0] == pytest.approx(4.0, rel=0.2)
    assert len(log.chosen) == 1_600


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans(), st.floats(0.05, 0.95)), min_size=1, max_size=20)
)
def test_the_logged_policy_is_worth_what_it_brought(rows: list[tuple[int, bool, bool, float]]) -> None:
    """Judging the log's own policy: every weight is 1, and IPS and SNIPS are the plain mean, intervals included."""
    customer, chosen, redeemed, offered = zip(*rows, strict=True)
    names = np.unique(customer, return_inverse=True)[1]
    log = log_of(names.tolist(), chosen, redeemed, offered, np.zeros(len(rows)))
    value = policy_value(log, log.probability, np.zeros(2 * len(rows)))
    assert value.mean_weight == pytest.approx(1.0)
    assert value.effective_decisions == pytest.approx(len(rows))
    for name in ("ips", "snips", "dr"):
        assert value.estimates[name].cents == pytest.approx(value.logged.cents)
        assert value.estimates[name].interval == pytest.approx(value.logged.interval)
        assert value.estimates[name].gain_interval == pytest.approx((0.0, 0.0), abs=1e-9)


def test_a_policy_is_checked() -> None:
    """Probabilities that don't add up are refused, not judged."""
    log, x = world(0, customers=10)
    with pytest.raises(ValueError, match="add up to 1"):
        policy_value(log, np.full(2 * len(x), 0.4), np.zeros(2 * len(x)))


def test_redemptions_are_predicted_from_others() -> None:
    """The fitted model comes close to the truth where there is something to learn, and takes the rate where not."""
    log, x = world(5, customers=2_000)
    predicted = predicted_cents(log)[~log.is_nothing]
    assert np.abs(predicted - (VALUE * rate(x) - COST)).mean() < 5
    none = log_of([0, 1, 2], [1, 1, 0], [False, False, False], [0.5] * 3, np.zeros(3))
    assert predicted_cents(none).tolist() == [0.0, -COST] * 3
