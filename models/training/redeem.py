"""The redeem model: will this household redeem a coupon of this campaign?

One row per addressed household and campaign, taken at the campaign's start from what was known strictly before it: at
one instant rows come first, then the campaign's message is recorded, then events are folded. What came of a campaign
(redemptions) reaches the customer as receipts, as in live serving, and so only touches rows of later campaigns.
"""

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.features.base import FeatureSet
from models.features.redeem import REDEEM, candidate_row, customer_part
from models.training.dataset import Dataset, Example
from models.training.history import DAY_MS, Campaign, History
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
from nearcast.world import Promotion

#: Each row is practised with coupons that are valid for so long, or for as long as the campaign was seen if that's
#: less: what happened until then is known too. It teaches what time does; the campaigns alone hardly differ in it.
_PRACTICE_DAYS = (4, 28)
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
        "outcome is that the household used at least one of the campaign's coupons. The model is fitted to these rows "
        "and to what had come of them after 4 and after 28 days; it is judged on whole campaigns only.",
        limits="""
One grocery chain, one year, mailed campaigns with many coupons each. It says nothing yet of walk-past moments, of other
trades, or of what a redemption would not have happened without (uplift).

Probabilities are those of a mailed campaign that is valid for 4 to 60 days; what is valid for less is taken for one of
4 days. For a coupon of two hours, offered to somebody at the shelf, that is a guess: trust the order, not the level.

A campaign that runs on after the end of the data is judged on the days that the data has of it, and the model is told
how many those are, as it is always told how long a coupon is valid. Told the full length, it would expect redemptions
that nobody recorded: on the Complete Journey's test that costs 0.012 of AUC and 0.009 of log-loss.

Test figures are a little too good: about forty variants of features were seen on them, in ten rounds, before these were
settled. On the earlier campaigns that chose between the variants the gain over the model of before, on eleven features,
is smaller: log-loss 0.310 to 0.307, AUC 0.825 to 0.833 (campaigns from 2017-06-15 to 08-15, fitted on those before).

Tried, and no help on earlier campaigns: boosted trees and forests (some 3,800 rows are few), the kind of a campaign,
how many coupons, products and segments it has, purchases of the very products on offer, visits of the last weeks,
trend, share of private labels, other discounts, open campaigns, messages in a row without reaction. Coupons used on the
very products on offer helped a little, but every customer would have to carry a list of products for it.

Only households that were addressed are in the data, and the retailer chose them; the choice is not corrected for.

No age, income, sex or household make-up is used. Spending and coupon use can still stand in for them.
""",
    )

    def examples(self, history: History, customer: CustomerId) -> Iterator[Example]:
        known = Customer(id=customer)
        redeemed: dict[PromotionId, int] = {}
        for at_ms, promotion in history.redemptions.get(customer, []):
            redeemed[promotion] = min(at_ms, redeemed.get(promotion, at_ms))
        for at_ms, order, what in sorted(_steps(history, customer), key=lambda step: step[:2]):
            if not isinstance(what, Campaign):
                fold.apply(known, what, history.segments, _RULES)
            elif order == _SEND:
                fold.record_message(known, *_message(customer, what.promotion.promotion_id, at_ms))
            elif at_ms >= history.begins_ms:
                first_ms = redeemed.get(what.promotion.promotion_id)
                part = customer_part(known, at_ms)
                yield Example(
                    row=candidate_row(part, what.promotion, None),
                    outcome=first_ms is not None,
                    at_ms=at_ms,
                    group=what.promotion.id,
                    customer=customer,
                    signals={
                        "coupon_baskets": known.history.coupon_baskets,
                        "redemptions": known.redemptions,
                    },
                    practice=[
                        (
                            candidate_row(part, _valid_for(what.promotion, days), None),
                            first_ms is not None and first_ms < at_ms + days * DAY_MS,
                        )
                        for days in _PRACTICE_DAYS
                    ],
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

        before = [rows.signals["redemptions"] > 0 for rows in (train, test)]
        coupons = (np.log1p(rows.signals["coupon_baskets"]) for rows in (train, test))
        return {
            "prior": np.full(len(test.outcome), train.outcome.mean()),
            "redeemed before": one_column(before[0].astype(np.float64), before[1].astype(np.float64)),
            "coupon count": one_column(*coupons),
            "coupon share": one_column(*feature("log_coupon_basket_share")),
        }


def _valid_for(promotion: Promotion, days: int) -> Promotion:
    """The promotion with coupons that are valid for so many days, or as long as they are if that's less."""
    return msgspec.structs.replace(promotion, coupon_valid_s=min(days * 86_400.0, promotion.coupon_valid_s))


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
