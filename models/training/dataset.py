"""Labelled feature rows, whatever the kind of model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray


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


@dataclass(frozen=True)
class Dataset:
    """Rows in the order of `Example`s: by customer, then by time. All arrays have one entry per row."""

    rows: NDArray[np.float64]
    outcome: NDArray[np.bool_]
    at_ms: NDArray[np.int64]
    group: NDArray[np.str_]
    customer: NDArray[np.str_]
    signals: Mapping[str, NDArray[np.float64]]

    def where(self, mask: NDArray[np.bool_]) -> "Dataset":
        """The rows for which `mask` holds."""
        return Dataset(
            self.rows[mask],
            self.outcome[mask],
            self.at_ms[mask],
            self.group[mask],
            self.customer[mask],
            {name: values[mask] for name, values in self.signals.items()},
        )

    @classmethod
    def of(cls, examples: Sequence[Example], width: int) -> Self:
        """Those rows, of `width` features each; none is fine."""
        signals = examples[0].signals.keys() if examples else ()
        return cls(
            rows=np.array([example.row for example in examples], dtype=np.float64).reshape(-1, width),
            outcome=np.array([example.outcome for example in examples], dtype=np.bool_),
            at_ms=np.array([example.at_ms for example in examples], dtype=np.int64),
            group=np.array([example.group for example in examples], dtype=np.str_),
            customer=np.array([example.customer for example in examples], dtype=np.str_),
            signals={
                name: np.array([example.signals[name] for example in examples], dtype=np.float64) for name in signals
            },
        )
