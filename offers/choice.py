"""The choice among what passed every gate: the one worth most, or nothing; by chance, where the policy explores.

Chance is a pair of numbers from outside, so the same moment is always decided alike. How likely each action was is
known exactly: a logged choice can be weighed by it to ask what another policy would have brought.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec


class Option(msgspec.Struct, frozen=True):
    """One thing that could be done. Nothing is always possible, is worth 0, and needs no option."""

    expected_cents: float
    #: An alert to staff, or a notice: not an advertisement, so never worth too little.
    is_alert: bool = False
    #: The customer is held out of it.
    is_held: bool = False

    @property
    def is_worth_it(self) -> bool:
        return self.is_alert or self.expected_cents > 0


class Choice(NamedTuple):
    """What to do, as an index into the options; None is nothing."""

    chosen: int | None
    #: What would have been chosen if nobody were held out.
    wanted: int | None
    #: Whether chance chose.
    explored: bool
    #: How likely each option was, and nothing.
    probabilities: list[float]
    probability_of_nothing: float


def choose(options: Sequence[Option], exploration: float, chance: tuple[float, float]) -> Choice:
    """The choice among `options`; of equals the first.

    With probability `exploration` it is drawn evenly from all options and nothing, worth it or not: what is never tried
    is never learned of. `chance` are two numbers from 0 to below 1: whether to draw, and what. Where an alert to staff
    is among the options there is no drawing: somebody may be waiting.
    """
    if any(option.is_alert for option in options):
        exploration = 0.0
    explored = chance[0] < exploration
    everything = range(len(options))
    free = [index for index in everything if not options[index].is_held]
    best = _best(options, free)
    wanted = best if len(free) == len(options) else _best(options, everything)
    by_chance = exploration / (len(free) + 1)
    probabilities = [0.0 if option.is_held else by_chance for option in options]
    probability_of_nothing = by_chance
    if best is None:
        probability_of_nothing += 1.0 - exploration
    else:
        probabilities[best] += 1.0 - exploration
    return Choice(
        chosen=_drawn(free, chance[1]) if explored else best,
        wanted=_drawn(everything, chance[1]) if explored else wanted,
        explored=explored,
        probabilities=probabilities,
        probability_of_nothing=probability_of_nothing,
    )


def _best(options: Sequence[Option], among: Iterable[int]) -> int | None:
    best: int | None = None
    most_cents = 0.0
    for index in among:
        option = options[index]
        cents = option.expected_cents
        # The cheap question first: most are not the best.
        if (best is None or cents > most_cents) and option.is_worth_it:
            best, most_cents = index, cents
    return best


def _drawn(among: Sequence[int], chance: float) -> int | None:
    place = int(chance * (len(among) + 1))
    return among[place] if place < len(among) else None
