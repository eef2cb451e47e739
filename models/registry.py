"""Which model scores for whom: the active one, a canary for some of the customers, and a shadow that only watches.

`Serving` is what stands between two changes; whoever works a batch off takes it once and keeps it until the end, so a
swap is always between two batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np

from models.fallback import Guard, Scored
from models.features.base import Kind
from models.manifest import Probability
from models.scorer import Rows, Scorer
from nearcast import metrics
from nearcast.ids import CustomerId, place_of

#: Stands for the model that comes with nearcast, or that NEARCAST_MODEL_DIR names.
DEFAULT = "default"


class Roles(msgspec.Struct, frozen=True, kw_only=True):
    """The versions that a kind of model uses; empty: none."""

    active: str = DEFAULT
    #: The active one before; what a rollback goes back to.
    previous: str = ""
    shadow: str = ""
    canary: str = ""
    #: Of the customers, for the canary.
    share: Probability = 0.0

    def of(self, version: str) -> list[str]:
        """The roles that this version has."""
        return [role for role in ("active", "previous", "shadow", "canary") if getattr(self, role) == version]


class Serving:
    """The models of one kind as they score now. For one thread at a time."""

    def __init__(
        self, active: Guard, *, canary: Guard | None = None, share: float = 0.0, shadow: Guard | None = None
    ) -> None:
        self.active = active
        self.canary = canary if share > 0 else None
        self.shadow = shadow
        self.share = share

    @property
    def guards(self) -> Iterator[tuple[str, Guard]]:
        """By role."""
        for role, guard in (("active", self.active), ("canary", self.canary), ("shadow", self.shadow)):
            if guard is not None:
                yield role, guard

    def guard_of(self, customer: CustomerId) -> Guard:
        """The model that scores for this customer: always the same one, as long as its share doesn't shrink. Another
        version's canary goes to others.
        """
        if self.canary is not None and place_of("canary", self.canary.version, customer) < self.share:
            return self.canary
        return self.active

    def score(self, rows: Rows, customers: Sequence[CustomerId]) -> Scored:
        """Score rows of the kind's features, each for its customer: one call for each model that is asked.

        Rows of one customer that stand together are one moment's.
        """
        if len(rows) == 0:
            return Scored([], [])
        given = np.asarray(rows, dtype=np.float32)
        made = self.active.score(given) if self.canary is None else self._by_arm(self.canary, given, customers)
        if self.shadow is not None:
            _watch(self.shadow, self.shadow.score(given).values, made.values, customers)
        return made

    def _by_arm(self, canary: Guard, given: np.ndarray, customers: Sequence[CustomerId]) -> Scored:
        arms = {customer: self.guard_of(customer) is canary for customer in dict.fromkeys(customers)}
        chosen = np.array([arms[customer] for customer in customers])
        values, versions = [0.0] * len(given), [""] * len(given)
        for guard, places in ((self.active, np.flatnonzero(~chosen)), (canary, np.flatnonzero(chosen))):
            if len(places):
                made = guard.score(given[places])
                for place, value, version in zip(places.tolist(), made.values, made.versions, strict=True):
                    values[place], versions[place] = value, version
        return Scored(values, versions)


class Models(Protocol):
    """Where the models come from."""

    def serving(self, kind: Kind) -> Serving:
        """Those in force at this moment."""
        ...


class FixedModels:
    """Models that never change: for a replay, a benchmark or a test. A kind that isn't named gets the fallback."""

    def __init__(self, *scorers: Scorer) -> None:
        self._serving = {scorer.manifest.kind: Serving(Guard(scorer)) for scorer in scorers}

    def serving(self, kind: Kind) -> Serving:
        return self._serving.get(kind) or Serving(Guard(None))


def roles_of(kinds: Mapping[Kind, Roles], version: str) -> list[str]:
    """The roles that a version has, in all kinds."""
    return [role for roles in kinds.values() for role in roles.of(version)]


def _watch(shadow: Guard, its: Sequence[float], made: Sequence[float], customers: Sequence[CustomerId]) -> None:
    """Compare a shadow's scores with those that decide, and whom each puts first in a moment."""
    differences = metrics.SHADOW_DIFFERENCE.labels(shadow.version)
    first = 0
    for place in range(len(made)):
        differences.observe(abs(its[place] - made[place]))
        if place + 1 < len(made) and customers[place + 1] == customers[place]:
            continue
        moment = range(first, place + 1)
        first = place + 1
        if len(moment) > 1:
            same = max(moment, key=its.__getitem__) == max(moment, key=made.__getitem__)
            metrics.SHADOW_WINNERS.labels(shadow.version, "same" if same else "other").inc()
