"""A town of made-up shoppers whose minds are known: the ground truth that `bench.closed_loop` measures policies by.

Each shopper has tastes, a rhythm of visits, an eye for discounts and some patience, all hidden from the server, which
only sees receipts. On a visit they may get one offer. They open it or not; what they then buy, they buy with more or
less the probability they would have had anyway. An offer they do nothing with annoys them, which wears off: annoyed
people open less and come less often.

All chance is drawn beforehand, by day, so that two policies in the same town meet the same luck: where they do the
same, the same happens. Times are days since the town began.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ANNOYANCE_HALF_LIFE_DAYS = 7.0


@dataclass(frozen=True, kw_only=True)
class Nature:
    """What people are like, as distributions. The defaults are those of an ordinary grocer, and not fitted to anything.

    `docs/models.md` gives the reason for each.
    """

    shoppers: int = 250
    segments: int = 12
    #: Standard deviation of the logarithm of a shopper's liking of a segment: at 1, two shoppers in three like it
    #: between 0.4 and 2.7 times as much as the town does.
    taste: float = 1.0
    #: Mean visits per day, and segments bought per visit.
    visits: float = 0.3
    basket: float = 2.5
    #: What 10 % off add to the log-odds of buying, for the median shopper; spread as `taste`.
    pull: float = 0.35
    #: Share of offers that the median shopper opens when not annoyed.
    opens: float = 0.5
    #: What an ignored offer adds to the annoyance; 1 makes them open 63 % less, and come 26 % less often.
    annoyance: float = 0.12


class Shopper:
    """One shopper: what they are like, and how they feel. Only `Town` and the oracle may look inside."""

    def __init__(self, nature: Nature, popularity: Floats, days: int, random: np.random.Generator) -> None:
        liking = popularity * np.exp(nature.taste * random.standard_normal(nature.segments))
        self.liking = liking / liking.sum()
        self.basket = nature.basket * math.exp(0.4 * random.standard_normal())
        self.rate = min(nature.visits * math.exp(0.5 * random.standard_normal()), 0.95)
        self.pull = nature.pull * math.exp(nature.taste / 2 * random.standard_normal())
        self.opens = 1 / (1 + math.exp(-math.log(nature.opens / (1 - nature.opens)) - random.standard_normal()))
        self.irritable = nature.annoyance * math.exp(0.5 * random.standard_normal())
        #: Days until a segment is fully wanted again after it was bought.
        self.cycle = random.uniform(3, 21, nature.segments)
        self.bought = -random.uniform(0, 30, nature.segments)
        self._annoyed, self._annoyed_at = 0.0, 0.0
        self._visit_luck = random.random(days)
        self._hour = random.uniform(9, 20, days)
        self._open_luck = random.random(days)
        self._buy_luck = random.random((days, nature.segments))

    def annoyance(self, at: float) -> float:
        return self._annoyed * float(0.5 ** ((at - self._annoyed_at) / _ANNOYANCE_HALF_LIFE_DAYS))

    def comes(self, day: int) -> float | None:
        """When they come on that day, if they do."""
        comes = self._visit_luck[day] < self.rate * math.exp(-0.3 * self.annoyance(day))
        return day + self._hour[day] / 24 if comes else None

    def wants(self, at: float) -> Floats:
        """P(buys), for every segment, without any offer."""
        need = 1 - np.exp(-(at - self.bought) / self.cycle)
        wanted: Floats = np.minimum(self.basket * self.liking * need, 0.9)
        return wanted

    def persuaded(self, at: float, segment: int, percent: float) -> float:
        """P(buys) of that segment once an offer of `percent` off is open before them."""
        wanted = float(self.wants(at)[segment])
        odds = wanted / (1 - wanted) * math.exp(self.pull * percent / 10)
        return odds / (1 + odds)

    def chance_to_open(self, at: float) -> float:
        return self.opens * math.exp(-self.annoyance(at))

    def visit(self, at: float, offer: tuple[int, float] | None) -> "Visit":
        """Shop, with an offer (segment, percent off) or none; changes how they feel and what they need."""
        day = int(at)
        chances = self.wants(at)
        bought_anyway = self._buy_luck[day] < chances
        opened = offer is not None and bool(self._open_luck[day] < self.chance_to_open(at))
        if offer is not None and opened:
            chances[offer[0]] = self.persuaded(at, *offer)
        bought = self._buy_luck[day] < chances
        redeemed = offer is not None and opened and bool(bought[offer[0]])
        if offer is not None and not redeemed:
            self._annoyed, self._annoyed_at = self.annoyance(at) + self.irritable, at
        self.bought[bought] = at
        return Visit(
            segments=np.flatnonzero(bought).tolist(),
            opened=opened,
            redeemed=redeemed,
            incremental=redeemed and offer is not None and not bool(bought_anyway[offer[0]]),
        )


@dataclass(frozen=True)
class Visit:
    """What came of one visit. `incremental`: the redeemed thing would not have been bought without the offer."""

    segments: list[int]
    opened: bool
    redeemed: bool
    incremental: bool


class Town:
    """All shoppers of one seed, for so many days."""

    def __init__(self, nature: Nature, seed: int, days: int) -> None:
        random = np.random.default_rng(seed)
        popularity = 1 / np.arange(1, nature.segments + 1) ** 0.7
        self.nature = nature
        self.shoppers = [Shopper(nature, popularity, days, random) for _ in range(nature.shoppers)]

    def visits(self, day: int) -> list[tuple[float, int]]:
        """Who comes on that day, and when, in order of time."""
        came = ((shopper.comes(day), number) for number, shopper in enumerate(self.shoppers))
        return sorted((at, number) for at, number in came if at is not None)
