"""The buy-next model: will this household buy from this segment within a week?

One moment in each six weeks of a household, at a time that differs from household to household, so that all hours and
weeks of the year are seen. At each, a row for every segment that the household has bought from so far.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.features.base import FeatureSet
from models.features.buy_next import BUY_NEXT, customer_part, row
from models.training.dataset import Dataset, Example, ms_of
from models.training.history import DAY_MS, History
from models.training.task import Classifier, Probabilities, Words
from nearcast import fold
from nearcast.customer import Customer
from nearcast.events import Purchase
from nearcast.ids import CustomerId

#: How far ahead the model looks.
HORIZON_MS = 7 * DAY_MS
#: A household is looked at once in so long; the first weeks of the data say too little of anybody.
_EVERY_MS = 42 * DAY_MS
_FIRST_AFTER_MS = 56 * DAY_MS
_RULES = fold.FoldRules()


class BuyNextTask:
    """See `models.training.task.Task`."""

    features: FeatureSet = BUY_NEXT
    choose_from = "2017-06-15"
    test_from = "2017-08-15"
    words = Words(
        question="How likely is it that this customer buys something of this product segment within seven days? It "
        "ranks the segments that the customer has bought from. It never decides whether somebody may be contacted.",
        row="A row is one household, one moment and one segment that the household had bought from before; its group "
        "is the week. Each household is seen at one moment in each six weeks, at a time of its own; the outcome is "
        "that a basket of the next seven days has the segment in it.",
        limits="""
One grocery chain, one year. Trades in which people come twice a year need a model of their own history.

Only segments that the customer has bought from before are ranked. What they would like but have never bought, and
newcomers, need what others buy: nearcast keeps nothing of that yet.

What is not known beforehand is the larger part: whether the household comes to the shop at all in that week, and what
it runs out of. Trust the order and the level of many customers together, not the single prediction.

Only households that a campaign addressed are in the data: they shop more than others.

No age, income, sex or household make-up is used. What people buy can still stand in for them.
""",
    )

    def examples(self, history: History, customer: CustomerId) -> Iterator[Example]:
        known = Customer(id=customer)
        purchases = list(history.purchases(customer))
        folded = 0
        for at_ms in self._moments(history, customer):
            while folded < len(purchases) and purchases[folded].ts < at_ms:
                fold.apply(known, purchases[folded], history.segments, _RULES)
                folded += 1
            soon = _bought(islice(purchases, folded, None), at_ms + HORIZON_MS, history.segments)
            part = customer_part(known, at_ms)
            year, week, _ = datetime.fromtimestamp(at_ms / 1000, UTC).isocalendar()
            for segment, entry in known.history.segments.items():
                yield Example(
                    row=row(part, entry),
                    outcome=segment in soon,
                    at_ms=at_ms,
                    group=f"{year}-W{week:02}",
                    customer=customer,
                )

    def _moments(self, history: History, customer: CustomerId) -> Iterator[int]:
        """When the household is looked at: never so that the week ahead reaches into what is kept for judging."""
        first_ms = history.begins_ms + _FIRST_AFTER_MS
        borders = [ms_of(self.choose_from), ms_of(self.test_from), history.ends_ms]
        phase = int.from_bytes(hashlib.blake2b(customer.encode(), digest_size=8).digest(), "little") % _EVERY_MS
        for at_ms in range(first_ms + phase, history.ends_ms, _EVERY_MS):
            if not any(at_ms < border < at_ms + HORIZON_MS for border in borders):
                yield at_ms

    def algorithms(self, seed: int) -> Mapping[str, Classifier]:
        return {
            f"logistic regression on standardised features, C = {c:g}": make_pipeline(
                StandardScaler(), LogisticRegression(C=c, max_iter=1_000, random_state=seed)
            )
            for c in (0.01, 0.1, 1.0)
        }

    def baselines(self, train: Dataset, test: Dataset) -> Mapping[str, Probabilities]:
        """One signal each; a logistic curve over it leaves its order as it is."""

        def one_signal(name: str) -> Probabilities:
            column = BUY_NEXT.columns.index(name)
            model = LogisticRegression().fit(train.rows[:, [column]], train.outcome)
            probabilities: Probabilities = model.predict_proba(test.rows[:, [column]])[:, 1]
            return probabilities

        return {
            "prior": np.full(len(test.outcome), train.outcome.mean()),
            "recency": one_signal("log_days_since_segment"),
            "frequency": one_signal("log_segment_rate"),
            "recent frequency": one_signal("log_segment_recent_rate"),
        }


def _bought(purchases: Iterable[Purchase], before_ms: int, segments: Mapping[str, str]) -> set[str]:
    """The segments in the purchases before that time; the purchases are in order of time."""
    found: set[str] = set()
    for purchase in purchases:
        if purchase.ts >= before_ms:
            break
        found.update(segments[line.sku] for line in purchase.items if line.sku in segments)
    return found
