"""Labelled feature rows, whatever the kind of model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.manifest import Window


@dataclass(frozen=True)
class Example:
    """One row, as the server would have computed it at `at_ms`, and what came of it."""

    row: list[float]
    outcome: bool
    at_ms: int
    #: What rows are compared within: a campaign, a week.
    group: str
    customer: str
    #: What baselines go by, beyond the features.
    signals: Mapping[str, float] = field(default_factory=dict)
    #: The same question put in other ways, with their outcomes: to fit models to, never to judge them by. Every example
    #: of a task has equally many.
    practice: Sequence[tuple[list[float], bool]] = ()


@dataclass(frozen=True)
class Dataset:
    """Rows in the order of `Example`s: by customer, then by time. All arrays have one entry per row."""

    rows: NDArray[np.float64]
    outcome: NDArray[np.bool_]
    at_ms: NDArray[np.int64]
    group: NDArray[np.str_]
    customer: NDArray[np.str_]
    signals: Mapping[str, NDArray[np.float64]]
    #: [rows, practice rows of each, features] and [rows, practice rows of each].
    practice_rows: NDArray[np.float64]
    practice_outcome: NDArray[np.bool_]

    def where(self, mask: NDArray[np.bool_] | NDArray[np.intp]) -> Self:
        """The rows for which `mask` holds."""
        return type(self)(
            self.rows[mask],
            self.outcome[mask],
            self.at_ms[mask],
            self.group[mask],
            self.customer[mask],
            {name: values[mask] for name, values in self.signals.items()},
            self.practice_rows[mask],
            self.practice_outcome[mask],
        )

    def lessons(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """What to fit a model to: all rows, then all practice rows; and their outcomes."""
        practice = self.practice_rows.reshape(-1, self.rows.shape[1])
        return np.concatenate([self.rows, practice]), np.concatenate([self.outcome, self.practice_outcome.ravel()])

    @classmethod
    def of(cls, examples: Sequence[Example], width: int) -> Self:
        """Those rows, of `width` features each; none is fine."""
        signals = examples[0].signals.keys() if examples else ()
        each = len(examples[0].practice) if examples else 0
        count = len(examples)
        return cls(
            rows=np.array([example.row for example in examples], dtype=np.float64).reshape(count, width),
            outcome=np.array([example.outcome for example in examples], dtype=np.bool_),
            at_ms=np.array([example.at_ms for example in examples], dtype=np.int64),
            group=np.array([example.group for example in examples], dtype=np.str_),
            customer=np.array([example.customer for example in examples], dtype=np.str_),
            signals={
                name: np.array([example.signals[name] for example in examples], dtype=np.float64) for name in signals
            },
            practice_rows=np.array(
                [[row for row, _ in example.practice] for example in examples], dtype=np.float64
            ).reshape(count, each, width),
            practice_outcome=np.array(
                [[outcome for _, outcome in example.practice] for example in examples], dtype=np.bool_
            ).reshape(count, each),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All rows of `parts`, at least one, in their order; those without rows may lack signals and practice rows."""
        parts = [part for part in parts if len(part.outcome)] or parts[:1]
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.outcome for part in parts]),
            np.concatenate([part.at_ms for part in parts]),
            np.concatenate([part.group for part in parts]),
            np.concatenate([part.customer for part in parts]),
            {name: np.concatenate([part.signals[name] for part in parts]) for name in parts[0].signals},
            np.concatenate([part.practice_rows for part in parts]),
            np.concatenate([part.practice_outcome for part in parts]),
        )


def window_of(rows: Dataset) -> Window:
    """What a manifest says of these rows, of which there must be some."""
    return Window(
        first=date_of(int(rows.at_ms.min())),
        last=date_of(int(rows.at_ms.max())),
        groups=len(np.unique(rows.group)),
        rows=len(rows.outcome),
        positives=int(rows.outcome.sum()),
    )


def ms_of(date: str) -> int:
    """The start of an ISO date, in UTC, as milliseconds."""
    return int(datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp() * 1000)


def date_of(at_ms: int) -> str:
    """The ISO date of a time, in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()
