"""A feature set: the names of what one kind of model sees, and a hash that says what they mean."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: What a model answers: P(this customer redeems this promotion), P(buys this segment within a week), P(reacts to this
#: channel).
Kind = Literal["redeem", "buy_next", "channel"]


@dataclass(frozen=True)
class FeatureSet:
    """The columns that the code of one kind computes, in their order.

    A change of what a column means needs a new `version`: models trained on the old meaning are then refused when they
    are loaded. A new column needs none, since a model names the columns that it takes.
    """

    kind: Kind
    version: int
    columns: tuple[str, ...]

    @property
    def hash(self) -> str:
        """That of all columns."""
        return self.hash_of(self.columns)

    def hash_of(self, columns: Sequence[str]) -> str:
        """SHA-256 over these columns, in this order, and what they mean; for a model that takes only some of them."""
        return hashlib.sha256("\n".join((self.kind, f"v{self.version}", *columns)).encode()).hexdigest()
