"""Seeded shoppers: where they walk, where they pause, what their devices report.

Pure and deterministic: no clock, no I/O. `plan` makes the walks, `Simulation.step` lets time pass and returns the
events of that time, in time order; how the time is cut into steps changes nothing.

What is real: the baskets (`clients.history`), walking speed, GPS noise (correlated, 68 % within 5 m) and indoor beacon
accuracy (0.3 to 1 m). What is not: the walks are made up, and walking is sped up by `time_lapse` so that a demo of
seconds shows walks of minutes. Pauses and the one fix per second stay as they are, so a dot moves `time_lapse`
times as far between two fixes.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from typing import Literal, NamedTuple

from clients import city
from clients.geo import Spot
from clients.history import Basket, Household
from clients.sample import Retailer, Shop
from nearcast.events import Action, Cart, IntakeEvent, Location, Purchase

WALK_M_S = 1.4
FIX_MS = 1_000
#: The shoppers' devices report for the first time within these first seconds, one after the other.
_APPEAR_MS = 4_000
GPS_ACCURACY_M = 5.0
BEACON_ACCURACY_M = 1.0
SHELF_ACCURACY_M = 0.3
#: A normal error of sigma s on both axes lies within 1.515 s in 68 % of the cases (Rayleigh).
_RAYLEIGH_68 = 1.515
#: How much of the last second's GPS error is still there: errors drift, they don't flicker.
_GPS_DRIFT = 0.9

Act = Literal["order_online", "ask", "pay"]


class Stop(NamedTuple):
    """A point on a walk, how long to stay there, and what happens on arrival."""

    spot: Spot
    pause_s: float = 0.0
    place: Literal["street", "shop", "shelf"] = "street"
    act: Act | None = None
    #: The fence that an "ask" is about.
    fence: str | None = None


class Trip(NamedTuple):
    """From home to a shop and on, or just past it (no basket)."""

    shop: Shop
    stops: tuple[Stop, ...]
    basket: Basket | None = None
    #: SKUs put into the online cart on the way; those not in the basket stay there.
    cart: tuple[str, ...] = ()


class Walk(NamedTuple):
    uid: str
    start: Spot
    speed_m_s: float
    trips: tuple[Trip, ...]


class Dot(NamedTuple):
    """What a device last reported."""

    uid: str
    lat: float
    lng: float


def plan(retailer: Retailer, households: Sequence[Household], seed: int) -> list[Walk]:
    """One walk per household: a trip for each of today's baskets, and some on which they only pass a shop."""
    walks = []
    for index, household in enumerate(households):
        rng = random.Random(f"{seed}:{household.uid}")
        home = retailer.shops[index % len(retailer.shops)]
        # A third are just coming in when the curtain rises, the others are one to four blocks away.
        start = at = home.house.door if index % 3 == 0 else _start(home, 130 + 28 * (index % 10))
        trips = []
        for number, basket in enumerate(household.today):
            if number > 0 and rng.random() < 0.4:
                trips.append(_pass_by(at, rng.choice(retailer.shops), rng))
                at = trips[-1].stops[-1].spot
            later = household.today[(number + 1) % len(household.today)]
            trips.append(_shopping(at, home, basket, _cart(retailer, basket, later, rng), rng))
            at = trips[-1].stops[-1].spot
        walks.append(Walk(household.uid, start, WALK_M_S * rng.uniform(0.85, 1.15), tuple(trips)))
    return walks


def _start(shop: Shop, distance_m: float) -> Spot:
    """The crossing whose way to the shop is nearest to `distance_m` metres."""
    door = shop.house.street
    return min(city.crossings(), key=lambda spot: (abs(abs(spot.x - door.x) + abs(spot.y - door.y) - distance_m), spot))


def _pass_by(at: Spot, shop: Shop, rng: random.Random) -> Trip:
    return Trip(shop, (*_way(at, shop.house.street, rng), Stop(shop.house.street, 1.0), *_away(shop, rng)))


def _shopping(at: Spot, shop: Shop, basket: Basket, cart: tuple[str, ...], rng: random.Random) -> Trip:
    house = shop.house
    first = Stop(at, rng.uniform(0.5, 2.5), act="order_online" if cart else None)
    way = [] if at == house.door else _way(at, house.street, rng)
    inside = [Stop(house.door, place="shop"), *_browsing(shop, basket, rng), Stop(house.till, 2.5, "shop", "pay")]
    out = Stop(house.door, place="shop")
    return Trip(shop, (first, *way, *inside, out, *_away(shop, rng)), basket, cart)


def _browsing(shop: Shop, basket: Basket, rng: random.Random) -> list[Stop]:
    """Up to four stands: first those that hold something of the basket, department by department."""
    bought = {line.sku for line in basket.lines}
    stands = [(stand.sku not in bought, rng.random(), floor, stand) for floor in shop.floors for stand in floor.stands]
    chosen = sorted(stands, key=lambda entry: entry[:2])[: rng.randint(2, 4)]
    asking = rng.randrange(len(chosen)) if rng.random() < 0.35 else None
    stops = []
    for number, (_, _, floor, stand) in enumerate(sorted(chosen, key=lambda entry: (entry[2].fence, entry[1]))):
        beside = stand.spot.moved(rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25))
        act: Act | None = "ask" if number == asking else None
        stops.append(Stop(beside, rng.uniform(3.0, 6.0), "shelf", act, floor.fence))
    return stops


def _away(shop: Shop, rng: random.Random) -> list[Stop]:
    """On to some crossing well outside the shop's vicinity."""
    street = shop.house.street
    far = [spot for spot in city.crossings() if 200 < spot.to(street) < 420]
    goal = rng.choice(far)
    return [*_way(street, goal, rng), Stop(goal)]


def _way(start: Spot, goal: Spot, rng: random.Random) -> list[Stop]:
    """Along the streets: on the pavement, with one corner or two. Both ends lie on streets that run along x."""
    side = rng.choice((-5.0, 5.0))
    columns = sorted(
        {city.BLOCK_X * math.floor(start.x / city.BLOCK_X), city.BLOCK_X * math.ceil(goal.x / city.BLOCK_X)}
    )
    turn = rng.choice(columns)
    corners = [start, Spot(turn, start.y), Spot(turn, goal.y), goal]
    return [Stop(spot.moved(side, side)) for spot in corners]


def _cart(retailer: Retailer, basket: Basket, later: Basket, rng: random.Random) -> tuple[str, ...]:
    """What goes into the online cart: some things bought today, and some that wait until a later basket."""
    today = [line.sku for line in basket.lines if line.sku in retailer.items]
    waiting = [line.sku for line in later.lines if line.sku in retailer.items and line.sku not in today]
    return tuple(dict.fromkeys(rng.sample(today, min(2, len(today))) + rng.sample(waiting, min(2, len(waiting)))))


class Simulation:
    """All shoppers, and the time that has passed for them."""

    def __init__(
        self, retailer: Retailer, walks: Sequence[Walk], *, start_ms: int, seed: int, time_lapse: float = 6.0
    ) -> None:
        self._now_ms = start_ms
        self._shoppers = [
            _Shopper(retailer, walk, start_ms + index * _APPEAR_MS // max(len(walks), 1), seed, time_lapse)
            for index, walk in enumerate(walks)
        ]

    @property
    def now_ms(self) -> int:
        return self._now_ms

    def step(self, passed_ms: int) -> list[IntakeEvent]:
        """The events of the next `passed_ms` milliseconds. A shopper's fix is the last of their second."""
        self._now_ms += passed_ms
        events: list[IntakeEvent] = []
        for shopper in self._shoppers:
            while shopper.due_ms <= self._now_ms:
                events += shopper.tick()
        return sorted(events, key=lambda event: event.ts)

    def dots(self) -> list[Dot]:
        """Where each shopper's device says they are; those without a fix so far are left out."""
        return [shopper.dot for shopper in self._shoppers if shopper.dot is not None]

    def spots(self) -> dict[str, Spot]:
        """Where each shopper really is."""
        return {shopper.walk.uid: shopper.spot for shopper in self._shoppers}


class _Shopper:
    """One walk under way. Starts over after the last trip; what was bought once isn't bought again."""

    def __init__(self, retailer: Retailer, walk: Walk, due_ms: int, seed: int, time_lapse: float) -> None:
        self.walk = walk
        self.spot = walk.start
        self.due_ms = due_ms
        self.dot: Dot | None = None
        self._retailer = retailer
        self._rng = random.Random(f"{seed}:{walk.uid}:noise")
        self._speed_m_s = walk.speed_m_s * time_lapse
        # Ids must not repeat when the demo runs again on kept data.
        self._run = f"{walk.uid}-{due_ms}"
        self._emitted = 0
        self._trip_number = 0
        self._stops: deque[Stop] = deque(walk.trips[0].stops)
        self._pause_s = 0.0
        self._place = "street"
        self._error = Spot(0.0, 0.0)

    def tick(self) -> list[IntakeEvent]:
        """One second of walking, then a fix."""
        at_ms = self.due_ms
        self.due_ms += FIX_MS
        events: list[IntakeEvent] = []
        left_s = FIX_MS / 1000
        while left_s > 0:
            if self._pause_s > 0:
                waited = min(self._pause_s, left_s)
                self._pause_s -= waited
                left_s -= waited
                continue
            stop = self._stops[0]
            self._place = "street" if "street" in (self._place, stop.place) else "shop"
            distance = self.spot.to(stop.spot)
            reach = self._speed_m_s * left_s
            if distance > reach:
                share = reach / distance
                self.spot = self.spot.moved((stop.spot.x - self.spot.x) * share, (stop.spot.y - self.spot.y) * share)
                break
            left_s -= distance / self._speed_m_s
            self._arrive(stop, at_ms, events)
        events.append(self._fix(at_ms))
        return events

    def _arrive(self, stop: Stop, at_ms: int, events: list[IntakeEvent]) -> None:
        self.spot, self._pause_s, self._place = stop.spot, stop.pause_s, stop.place
        if stop.act is not None:
            events += self._do(stop, at_ms)
        self._stops.popleft()
        if not self._stops:
            self._trip_number += 1
            trips = self.walk.trips
            self._stops.extend(trips[self._trip_number % len(trips)].stops)

    def _do(self, stop: Stop, at_ms: int) -> list[IntakeEvent]:
        trip = self.walk.trips[self._trip_number % len(self.walk.trips)]
        uid = self.walk.uid
        if stop.act == "ask":
            store = trip.shop.store.id
            return [Action(id=self._id(), uid=uid, ts=at_ms, action="help_request", store=store, fence=stop.fence)]
        if self._trip_number >= len(self.walk.trips) or trip.basket is None:
            return []
        if stop.act == "pay":
            store = trip.shop.store.id
            return [Purchase(id=self._id(), uid=uid, ts=at_ms, store=store, items=trip.basket.lines)]
        return [
            Cart(
                id=self._id(), uid=uid, ts=at_ms, action="add", sku=sku,
                price_cents=self._retailer.items[sku].price_cents,
            )
            for sku in trip.cart
        ]  # fmt: skip

    def _fix(self, at_ms: int) -> Location:
        if self._place == "street":
            accuracy = GPS_ACCURACY_M
            fresh = math.sqrt(1 - _GPS_DRIFT**2) * accuracy / _RAYLEIGH_68
            self._error = Spot(
                self._error.x * _GPS_DRIFT + self._rng.gauss(0, fresh),
                self._error.y * _GPS_DRIFT + self._rng.gauss(0, fresh),
            )
            error = self._error
        else:
            accuracy = SHELF_ACCURACY_M if self._place == "shelf" else BEACON_ACCURACY_M
            sigma = accuracy / _RAYLEIGH_68
            error = Spot(self._rng.gauss(0, sigma), self._rng.gauss(0, sigma))
        lat, lng = city.FRAME.lat_lng(self.spot.moved(error.x, error.y))
        self.dot = Dot(self.walk.uid, lat, lng)
        source: Literal["gps", "beacon"] = "gps" if self._place == "street" else "beacon"
        return Location(
            id=self._id(), uid=self.walk.uid, ts=at_ms, lat=lat, lng=lng, accuracy_m=accuracy, source=source
        )

    def _id(self) -> str:
        self._emitted += 1
        return f"{self._run}-{self._emitted}"
