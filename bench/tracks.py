"""Walks with a known truth, and what a phone's receiver makes of them.

Everything is laid out on a plan in metres, with the store's door at its south edge, and turned into degrees at the end.
The truth is known second by second. All of it follows from a seed.

A receiver's error has a standard deviation of `sigma_m` along each axis, and comes in three kinds:

* "white": independent from fix to fix. The easiest to see through, and unlike any real receiver.
* "drift": a first-order Gauss-Markov process with a correlation time of 60 s: e(t + dt) = e(t) exp(-dt / 60 s) + what
  keeps the deviation at sigma. 60 s is what the GPS plugin of the PX4 autopilot's simulator uses, and where D. L.
  Wilson's 20 days of a stationary Garmin 12XL ("Correlation of errors") show the bend of the autocorrelation. That
  such a process describes recorded GPS errors better than a white one is shown in Sensors 2020, 20(21), 6050.
* "reflections": drift, and now and then a signal that a wall reflects: on average every 10 minutes, for 10 s on average
  (both exponential), the position is off by another 3 to 6 sigma in one direction, and the phone doesn't know. These
  constants are ours.

The phone reports the accuracy that its error has (the radius of 68 %, 1.51 sigma), unless `claims_m` says another.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from nearcast.events import Location
from nearcast.world import Circle, Fence, Polygon

Floats = NDArray[np.float64]
Errors = Literal["white", "drift", "reflections"]

#: The radius that holds 68 % of a two-dimensional Gaussian, in standard deviations of one axis.
RADIUS_PER_SIGMA = math.sqrt(-2 * math.log(1 - 0.68))
DRIFT_S = 60.0
REFLECTION_EVERY_S = 600.0
REFLECTION_S = 10.0
REFLECTION_SIGMAS = (3.0, 6.0)

LAT, LNG = 48.2, 16.37
START_MS = 1_750_000_000_000
_METRES_PER_DEGREE = math.radians(1) * 6_371_008.8
DWELL_S = 60.0

#: The plan: shape and parent by id. The street runs east to west along y = -36, six metres south of the shop window.
STORE, DEPARTMENT, KIOSK = "store", "department", "kiosk"
STREET_Y = -36.0
#: Before the door and behind it; not the same way from it, so that no second falls onto the edge itself.
OUTSIDE, INSIDE = (0.0, -33.1), (0.0, -27.3)
KIOSK_AT, KIOSK_RADIUS_M = (150.0, -52.0), 12.0
PLAN: dict[str, shapely.Polygon] = {
    STORE: shapely.box(-20, -30, 20, 30),
    DEPARTMENT: shapely.box(-20, 10, 0, 30),
    KIOSK: shapely.Point(KIOSK_AT).buffer(KIOSK_RADIUS_M, quad_segs=64),
}


def to_degrees(xy: Floats) -> tuple[Floats, Floats]:
    """Latitudes and longitudes of points of the plan, one a row."""
    return (
        LAT + xy[:, 1] / _METRES_PER_DEGREE,
        LNG + xy[:, 0] / (_METRES_PER_DEGREE * math.cos(math.radians(LAT))),
    )


def fences() -> list[Fence]:
    """The plan's fences, with the product's default rules: what a retailer gets who sets nothing but the dwell."""

    def polygon(shape: shapely.Polygon) -> Polygon:
        lats, lngs = to_degrees(shapely.get_coordinates(shape))
        return Polygon([list(zip(lngs.tolist(), lats.tolist(), strict=True))])

    lats, lngs = to_degrees(np.array([KIOSK_AT]))
    return [
        Fence(id=STORE, store="s", kind="store", dwell_s=DWELL_S, geometry=polygon(PLAN[STORE])),
        Fence(id=DEPARTMENT, store="s", kind="department", parent=STORE, geometry=polygon(PLAN[DEPARTMENT])),
        Fence(
            id=KIOSK,
            store="k",
            kind="store",
            dwell_s=DWELL_S,
            geometry=Circle((float(lngs[0]), float(lats[0])), KIOSK_RADIUS_M),
        ),
    ]


class Visit(NamedTuple):
    """Time in a fence, seconds from the start of the walk; the first and the last second inside."""

    fence: str
    entered_s: float
    left_s: float

    @property
    def seconds(self) -> float:
        return self.left_s - self.entered_s


@dataclass(frozen=True)
class Walk:
    """Where somebody was: one row of the plan for each second."""

    name: str
    xy: Floats

    def visits(self) -> list[Visit]:
        """By fence, in order of time. Who starts or ends inside has entered or left then."""
        found = []
        for fence, shape in PLAN.items():
            inside = shapely.contains_xy(shape, self.xy[:, 0], self.xy[:, 1]).astype(np.int8)
            changes = np.flatnonzero(np.diff(inside, prepend=0, append=0))
            found += [Visit(fence, float(first), float(end - 1)) for first, end in changes.reshape(-1, 2).tolist()]
        return found


class _Feet:
    """Puts one second after the other, at walking speeds that differ a little from leg to leg."""

    def __init__(self, start: tuple[float, float], chance: np.random.Generator) -> None:
        self._chance = chance
        self._steps = [np.array([start], dtype=np.float64)]

    def to(self, x: float, y: float, speed_m_s: float) -> None:
        at = self._steps[-1][-1]
        apart = math.hypot(x - at[0], y - at[1])
        seconds = max(1, round(apart / (speed_m_s * self._chance.uniform(0.85, 1.15))))
        shares = np.linspace(0, 1, seconds + 1)[1:, None]
        self._steps.append(at + shares * (np.array([x, y]) - at))

    def stand(self, seconds: float) -> None:
        """Shift from one foot to the other, within a few decimetres."""
        sway = self._chance.normal(0, 0.15, (max(1, round(seconds)), 2))
        self._steps.append(self._steps[-1][-1] + sway)

    def wander(self, area: tuple[float, float, float, float], seconds: float) -> None:
        """From shelf to shelf with pauses, until the time is up."""
        until = self.seconds + seconds
        while self.seconds < until:
            left, bottom, right, top = area
            self.to(self._chance.uniform(left, right), self._chance.uniform(bottom, top), 0.8)
            self.stand(self._chance.exponential(15.0))

    @property
    def seconds(self) -> int:
        return sum(map(len, self._steps))

    def walk(self, name: str) -> Walk:
        return Walk(name, np.concatenate(self._steps))


STROLL_M_S = 1.3


def _from_the_street(chance: np.random.Generator) -> tuple[_Feet, float]:
    """Somebody who comes along the street, from either side; and which side."""
    side = float(chance.choice([-1.0, 1.0]))
    feet = _Feet((side * chance.uniform(200, 300), STREET_Y + chance.uniform(-2, 2)), chance)
    return feet, side


def _away(feet: _Feet, side: float, chance: np.random.Generator) -> None:
    feet.to(-side * chance.uniform(200, 300), STREET_Y + chance.uniform(-2, 2), STROLL_M_S)


def pass_by(chance: np.random.Generator) -> Walk:
    """Along the street, past the window, and on."""
    feet, side = _from_the_street(chance)
    _away(feet, side, chance)
    return feet.walk("pass by")


def look_in_the_window(chance: np.random.Generator) -> Walk:
    """Stops two metres before the shop window for one to ten minutes, and goes on: never in."""
    feet, side = _from_the_street(chance)
    feet.to(chance.uniform(-15, 15), -32.0, STROLL_M_S)
    feet.stand(chance.uniform(60, 600))
    _away(feet, side, chance)
    return feet.walk("look in the window")


def _visit(name: str, low_s: float, high_s: float) -> Callable[[np.random.Generator], Walk]:
    def walk(chance: np.random.Generator) -> Walk:
        feet, side = _from_the_street(chance)
        feet.to(*OUTSIDE, STROLL_M_S)
        feet.to(*INSIDE, STROLL_M_S)
        feet.wander((-18, -28, 18, 28), chance.uniform(low_s, high_s))
        feet.to(*INSIDE, STROLL_M_S)
        feet.to(*OUTSIDE, STROLL_M_S)
        _away(feet, side, chance)
        return feet.walk(name)

    return walk


def buy_at_the_kiosk(chance: np.random.Generator) -> Walk:
    """Steps up to a kiosk beside the street, stands there for a while, and goes on."""
    feet, side = _from_the_street(chance)
    feet.to(KIOSK_AT[0], KIOSK_AT[1] + 4.0, STROLL_M_S)
    feet.stand(chance.uniform(30, 240))
    _away(feet, side, chance)
    return feet.walk("buy at the kiosk")


#: What people do, and how often each of it is simulated in a round.
SCENARIOS: Sequence[tuple[Callable[[np.random.Generator], Walk], int]] = (
    (pass_by, 2),
    (look_in_the_window, 2),
    (_visit("pop in", 0, 20), 1),
    (_visit("visit", 60, 300), 3),
    (_visit("long visit", 300, 1500), 1),
    (buy_at_the_kiosk, 1),
)


def walks(rounds: int, seed: int) -> Iterator[Walk]:
    """All scenarios, so often."""
    chance = np.random.default_rng(seed)
    for _ in range(rounds):
        for make, times in SCENARIOS:
            for _ in range(times):
                yield make(chance)


def standing(metres_inside: float, seconds: int) -> Walk:
    """Somebody who doesn't move, so far inside the store's west wall (below 0: outside of it)."""
    return Walk("standing", np.tile([-20.0 + metres_inside, 0.0], (seconds, 1)))


@dataclass(frozen=True)
class Receiver:
    """How a phone sees its own position."""

    sigma_m: float
    errors: Errors
    interval_s: int
    #: The accuracy that it reports; None: that which its error has.
    claims_m: float | None = None

    @property
    def accuracy_m(self) -> float:
        return self.sigma_m * RADIUS_PER_SIGMA if self.claims_m is None else self.claims_m

    def fixes(self, walk: Walk, chance: np.random.Generator) -> list[Location]:
        """A fix every interval, the first at a random moment of the first one."""
        seconds = np.arange(int(chance.integers(self.interval_s)), len(walk.xy), self.interval_s)
        xy = walk.xy[seconds] + self._errors(len(seconds), chance)
        lats, lngs = to_degrees(xy)
        return [
            Location(uid="u", ts=START_MS + second * 1000, lat=lat, lng=lng, accuracy_m=self.accuracy_m)
            for second, lat, lng in zip(seconds.tolist(), lats.tolist(), lngs.tolist(), strict=True)
        ]

    def _errors(self, count: int, chance: np.random.Generator) -> Floats:
        fresh = chance.normal(0, self.sigma_m, (count, 2))
        if self.errors == "white":
            return fresh
        kept = math.exp(-self.interval_s / DRIFT_S)
        fresh[1:] *= math.sqrt(1 - kept * kept)
        for step in range(1, count):
            fresh[step] += kept * fresh[step - 1]
        if self.errors == "reflections":
            fresh += self._reflections(count, chance)
        return fresh

    def _reflections(self, count: int, chance: np.random.Generator) -> Floats:
        off = np.zeros((count, 2))
        at_s, end_s = 0.0, count * self.interval_s
        while (at_s := at_s + chance.exponential(REFLECTION_EVERY_S)) < end_s:
            lasts_s = chance.exponential(REFLECTION_S)
            angle, far_m = chance.uniform(0, 2 * math.pi), chance.uniform(*REFLECTION_SIGMAS) * self.sigma_m
            first, end = (math.ceil(second / self.interval_s) for second in (at_s, at_s + lasts_s))
            off[first:end] = far_m * math.cos(angle), far_m * math.sin(angle)
            at_s += lasts_s
        return off
