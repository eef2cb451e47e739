"""The redeem model: will this household redeem a coupon of this campaign?

One row per addressed household and campaign, taken at the campaign's start from what was known strictly before it: at
one instant rows come first, then the campaign's message is recorded, then events are folded. What came of a campaign
(redemptions) reaches the customer as receipts, as in live serving, and so only touches rows of later campaigns.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.features.base import FeatureSet
from models.features.redeem import REDEEM, row
from models.training.dataset import Dataset, Example
from models.training.history import Campaign, History
from models.training.task import Classifier, Probabilities, Words
from nearcast import fold
from nearcast.customer import Customer
from nearcast.decisions import Decision
from nearcast.events import Purchase, Receipt
from nearcast.ids import (
    CustomerId,
    DecisionId,
    EventId,
    MessageId,
    PromotionId,
    derived_event_id,
    message_id,
)
from nearcast.moments import Moment

_OBSERVE, _SEND, _FOLD = range(3)
_RULES = fold.FoldRules()
_Step = tuple[int, int, Campaign | Purchase | Receipt]


class RedeemTask:
    """See `models.training.task.Task`. Campaigns that start before the history does give no rows: their customers are
    unknown, not new.
    """

    features: FeatureSet = REDEEM
    choose_from = "2017-06-15"
    test_from = "2017-08-15"
    words = Words(
        question="How likely is it that this customer redeems a coupon of this promotion? It ranks promotions for one "
        "customer and weighs them by value. It never decides whether somebody may be contacted: gates do that.",
        row="A row is one household addressed by one campaign (its group), as known at the campaign's start; the "
        "outcome is that the household used at least one of the campaign's coupons.",
        limits="""
One grocery chain, one year, mailed campaigns with many coupons each. It says nothing yet of walk-past moments, of other
trades, or of what a redemption would not have happened without (uplift).

Probabilities are those of a whole campaign of several weeks. For one short-lived coupon they are too high: trust the
order, not the level.

The features were settled on the last training campaigns too, but by people who had seen test figures: expect a little
less on data that nobody has seen.

The last test campaigns run on after the year's data ends: their later redemptions are missing.

Only households that were addressed are in the data, and the retailer chose them; the choice is not corrected for.

No age, income, sex or household make-up is used. Spending and coupon use can still stand in for them.
""",
    )

    def examples(self, history: History, customer: CustomerId) -> Iterator[Example]:
        known = Customer(id=customer)
        redeemed = {promotion for _, promotion in history.redemptions.get(customer, [])}
        for at_ms, order, what in sorted(_steps(history, customer), key=lambda step: step[:2]):
            if not isinstance(what, Campaign):
                fold.apply(known, what, history.segments, _RULES)
            elif order == _SEND:
                fold.record_message(known, *_message(customer, what.promotion.promotion_id, at_ms))
            elif at_ms >= history.begins_ms:
                yield Example(
                    row=row(known, what.promotion, None, at_ms),
                    outcome=what.promotion.promotion_id in redeemed,
                    at_ms=at_ms,
                    group=what.promotion.id,
                    customer=customer,
                    signals={"coupon_baskets": known.history.coupon_baskets},
                )

    def algorithms(self, seed: int) -> Mapping[str, Classifier]:
        logistic: dict[str, Classifier] = {
            f"logistic regression on standardised features, C = {c:g}": make_pipeline(
                StandardScaler(), LogisticRegression(C=c, max_iter=1_000)
            )
            for c in (0.01, 0.03, 0.1, 0.3, 1.0)
        }
        boosted: dict[str, Classifier] = {
            f"gradient boosting, {trees} trees of depth {depth}": GradientBoostingClassifier(
                n_estimators=trees,
                max_depth=depth,
                learning_rate=0.05,
                subsample=0.7,
                min_samples_leaf=30,
                random_state=seed,
            )
            for trees, depth in ((60, 2), (120, 2), (100, 3))
        }
        return logistic | boosted

    def baselines(self, train: Dataset, test: Dataset) -> Mapping[str, Probabilities]:
        def one_column(of_train: NDArray[np.float64], of_test: NDArray[np.float64]) -> Probabilities:
            model = LogisticRegression().fit(of_train.reshape(-1, 1), train.outcome)
            probabilities: Probabilities = model.predict_proba(of_test.reshape(-1, 1))[:, 1]
            return probabilities

        def feature(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            column = REDEEM.columns.index(name)
            return train.rows[:, column], test.rows[:, column]

        before = feature("log_redemptions")
        coupons = (np.log1p(rows.signals["coupon_baskets"]) for rows in (train, test))
        return {
            "prior": np.full(len(test.outcome), train.outcome.mean()),
            "redeemed before": one_column((before[0] > 0).astype(np.float64), (before[1] > 0).astype(np.float64)),
            "coupon count": one_column(*coupons),
            "coupon share": one_column(*feature("coupon_basket_share")),
        }


def _steps(history: History, household: CustomerId) -> Iterator[_Step]:
    for campaign in history.campaigns:
        if household in campaign.households:
            yield campaign.starts_ms, _OBSERVE, campaign
            yield campaign.starts_ms, _SEND, campaign
    for purchase in history.purchases(household):
        yield purchase.ts, _FOLD, purchase
    for number, (at_ms, promotion) in enumerate(history.redemptions.get(household, [])):
        decision, message = _ids(household, promotion)
        receipt = Receipt(
            id=derived_event_id("redemption", household, promotion, str(number)),
            uid=household,
            ts=at_ms,
            message=message,
            decision=decision,
            status="redeemed",
        )
        yield at_ms, _FOLD, receipt


def _ids(household: CustomerId, promotion: PromotionId) -> tuple[DecisionId, MessageId]:
    decision = DecisionId(f"{household}/{promotion}")
    return decision, message_id(decision, "customer")


def _message(household: CustomerId, promotion: PromotionId, at_ms: int) -> tuple[MessageId, Decision]:
    """A campaign received, as the message and decision that live serving would have made."""
    decision, message = _ids(household, promotion)
    moment = Moment(
        event=EventId(f"{household}/{promotion}"), customer=household, trigger="enter", at_ms=at_ms, subject=promotion
    )
    return message, Decision(
        id=decision,
        moment=moment,
        outcome="offer",
        at_ms=at_ms,
        deadline_ms=at_ms,
        candidates=[],
        rules_version="history",
        model_version="none",
        promotion=promotion,
    )
