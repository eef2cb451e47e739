"""What an offer brought about: those who were made it against those who were held out of it, with 95 % intervals.

* Difference of conversion rates: Newcombe's hybrid score interval (method 10 in Newcombe 1998, "Interval estimation for
  the difference between independent proportions", Statistics in Medicine 17), from Wilson's for each rate.
* Relative lift, treated rate / held-out rate - 1: log ratio with the delta method (Katz et al. 1978, Biometrics 34).
* Revenue for each window: Welch's interval for the difference of two means.

All three take the windows to be independent of each other.
"""

import math
from statistics import NormalDist

import msgspec

#: With fewer windows in an arm nothing is said.
LEAST_WINDOWS = 10
CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One arm: windows, those in which something of the promotion was bought, and their revenue with its squares."""

    windows: int = 0
    bought: int = 0
    revenue_cents: int = 0
    squares: int = 0

    @property
    def rate(self) -> float | None:
        return self.bought / self.windows if self.windows else None

    @property
    def mean_cents(self) -> float | None:
        """Revenue for each window."""
        return self.revenue_cents / self.windows if self.windows else None


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Lift(msgspec.Struct, frozen=True, kw_only=True):
    """Treated against held out. None: too few windows or, of `relative`, no purchase in an arm."""

    #: Of the conversion rates, as a difference (0.02 is two percentage points) and relative (0.1 is 10 % more).
    difference: Estimate | None = None
    relative: Estimate | None = None
    #: Of the revenue for each window, in cents.
    revenue_cents: Estimate | None = None


def compare(treated: Arm, held_out: Arm) -> Lift:
    """The lift of one promotion."""
    if min(treated.windows, held_out.windows) < LEAST_WINDOWS:
        return Lift()
    return Lift(
        difference=_difference(treated, held_out),
        relative=_relative(treated, held_out),
        revenue_cents=_welch(treated, held_out),
    )


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a rate; `trials` is not 0."""
    rate = successes / trials
    centre = rate + _Z**2 / (2 * trials)
    spread = _Z * math.sqrt(rate * (1 - rate) / trials + _Z**2 / (4 * trials**2))
    scale = 1 + _Z**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _difference(treated: Arm, held_out: Arm) -> Estimate:
    one, other = treated.bought / treated.windows, held_out.bought / held_out.windows
    one_low, one_high = wilson(treated.bought, treated.windows)
    other_low, other_high = wilson(held_out.bought, held_out.windows)
    value = one - other
    return Estimate(
        value=value,
        low=value - math.hypot(one - one_low, other_high - other),
        high=value + math.hypot(one_high - one, other - other_low),
    )


def _relative(treated: Arm, held_out: Arm) -> Estimate | None:
    if not treated.bought or not held_out.bought:
        return None
    ratio = (treated.bought / treated.windows) / (held_out.bought / held_out.windows)
    error = math.sqrt(
        1 / treated.bought - 1 / treated.windows + 1 / held_out.bought - 1 / held_out.windows,
    )
    return Estimate(value=ratio - 1, low=ratio * math.exp(-_Z * error) - 1, high=ratio * math.exp(_Z * error) - 1)


def _welch(treated: Arm, held_out: Arm) -> Estimate | None:
    one, other = _error_of_mean(treated), _error_of_mean(held_out)
    if not one and not other:
        return None
    freedom = (one + other) ** 2 / (one**2 / (treated.windows - 1) + other**2 / (held_out.windows - 1))
    value = treated.revenue_cents / treated.windows - held_out.revenue_cents / held_out.windows
    spread = t_quantile(freedom) * math.sqrt(one + other)
    return Estimate(value=value, low=value - spread, high=value + spread)


def _error_of_mean(arm: Arm) -> float:
    """The squared standard error of the mean. Exact in whole numbers up to the last division."""
    return (arm.windows * arm.squares - arm.revenue_cents**2) / (arm.windows**2 * (arm.windows - 1))


def t_quantile(freedom: float) -> float:
    """How many standard errors a 95 % interval reaches, by Student's t with so many degrees of freedom.

    The expansion 26.7.5 of Abramowitz and Stegun, good to 0.0001 from `LEAST_WINDOWS` on.
    """
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
