"""The benchmarks' city: stores and their fences, products and promotions, and the customers who walk through it.

Everything follows from the seed. Lengths are metres east and north of the city's centre until they become degrees, so
a fix lies where it is meant to lie: well inside a fence, or well outside the distance at which one is left.

A walker is away, or in one of four nested fences of one store: vicinity, store, department, product. With each fix they
stay where they are, or go one step in or out; how often is chosen so that 2 % of all fixes cause a transition while the
share of walkers in each place stays what it was. About one fix in eight is inside a fence.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import ClassVar

import numpy as np
import shapely
from numpy.typing import NDArray

from geofence.index import FenceIndex
from geofence.tracker import track
from nearcast import topics
from nearcast.customer import CartItem, Customer, Decayed, History, Presence, SegmentHistory
from nearcast.events import Location, decode
from nearcast.ids import CustomerId, Sku, partition_of
from nearcast.world import (
    Cap,
    Circle,
    Discount,
    Fence,
    FenceKind,
    Geometry,
    Polygon,
    Product,
    Promotion,
    Stock,
    Store,
    Trigger,
    What,
    Where,
    Who,
    Words,
)
from offers.worldfile import WorldFile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: The city is this many degrees high and wide, to each side of its centre; with more than `STORES_INSIDE` stores it is
#: larger, so that they never stand more densely.
LAT, LNG, DEGREES = 48.2, 16.37, 0.12
STORES_INSIDE = 1_000
FENCES_PER_STORE = 20

_METRES_NORTH = 111_195.0
_METRES_EAST = _METRES_NORTH * math.cos(math.radians(LAT))

_VICINITY_M, _STORE_M, _DEPARTMENT_M, _PRODUCT_M = 120.0, 45.0, 7.0, 1.0
#: Where a store's departments and their products are, seen from its middle.
_DEPARTMENTS = ((12.0, 0.0), (12.0, 22.0), (12.0, -22.0), (30.0, 0.0), (30.0, 18.0), (30.0, -18.0))
_PRODUCTS = ((3.0, 0.0), (-3.0, 0.0))
#: A walker who is away is at least this far from every store.
_AWAY_M = _VICINITY_M + 40.0
_AWAY_PLACES, _AWAY_PLACES_OF_A_STORE = 1 << 16, 16
#: How long someone must be in a department, of event time, until it counts as dwelling there.
_DWELL_S = 20.0

_SEGMENTS = ("coffee", "bakery", "dairy", "produce", "wine", "snacks", "care", "frozen")
_PRODUCTS_SOLD = 64

#: Of the walkers: away, in a vicinity, a store, a department, at a product; and of all fixes, those that go one step
#: in (as many go out). A step in or out is one event with a transition, and some who stay in a department dwell.
_SHARES = np.array([0.88, 0.05, 0.04, 0.02, 0.01])
_STEPS = np.array([0.0045, 0.0029, 0.0015, 0.0009])
_GO_IN = np.append(_STEPS, 0.0) / _SHARES
_GO_OUT = np.insert(_STEPS, 0, 0.0) / _SHARES
#: Radius of a fix's error in metres, and what gave it, by place. Only a beacon tells where in a department one is.
_HOW = (b"8.0", b"6.0", b"5.0", b'1.0,"source":"beacon"', b'0.4,"source":"beacon"')

#: Of all events: 5 % are of carts and purchases.
_CARTS, _PURCHASES = 0.025, 0.025


def city(stores: int, chance: Random, fences: int | None = None) -> WorldFile:
    """Stores over a city, each with a vicinity, its outline, departments and products.

    `fences` is how many there are in all, four for each store by default; a store has twenty at most.
    """
    per_store = 4 if fences is None else max(1, min(FENCES_PER_STORE, round(fences / stores)))
    world = WorldFile(products=_products(), promotions=_promotions())
    for number, (east, north) in enumerate(_places(stores, chance)):
        lat, lng = _degrees(east, north)
        world.stores.append(Store(id=f"s{number}", name=f"Store {number}", lat=lat, lng=lng))
        world.fences.extend(islice(_fences_of(number, east, north), per_store))
        world.stock.extend(
            Stock(store=f"s{number}", sku=_sku(number + near), quantity=0 if near % 8 == 7 else 20)
            for near in range(16)
        )
    return world


def profile(number: int, now_ms: int) -> Customer:
    """A customer as their past has left them: consents, a loyalty level, purchases in six segments, perhaps a cart."""
    day_ms = 86_400_000
    last_ms = now_ms - (1 + number % 60) * day_ms
    customer = Customer(
        id=CustomerId(_uid(number)),
        name=f"Customer {number}",
        email=f"customer{number}@example.com",
        loyalty=("", "silver", "gold")[number % 3],
        groups=["newsletter"] if number % 2 else [],
        # One in ten never agreed to any message.
        consents={} if number % 10 == 9 else {"websocket": (True, last_ms), "email": (True, last_ms)},
        history=History(
            baskets=20 + number % 30,
            lines=200,
            spend_cents=60_000 + number % 50_000,
            coupon_cents=900,
            coupon_baskets=number % 7,
            first_ms=now_ms - 300 * day_ms,
            last_ms=last_ms,
            recent_baskets=Decayed(2.5, last_ms),
            recent_spend=Decayed(9_000.0, last_ms),
            segments={
                _SEGMENTS[(number + n) % 8]: SegmentHistory(3 + n, 4_000, last_ms, 299, Decayed(1.0 + n, last_ms))
                for n in range(6)
            },
        ),
    )
    if number % 10 == 0:
        customer.cart = {Sku(_sku(number)): CartItem(1, 499, last_ms)}
        customer.cart_changed_ms = last_ms
    return customer


@dataclass(frozen=True)
class Traffic:
    """Encoded events in the order in which they happen, as columns; made once, and appended as often as needed."""

    #: Index into `TOPICS`, the customer's number, and the record's value, each by event.
    topic: NDArray[np.uint8]
    customer: Ints
    values: list[bytes]

    TOPICS: ClassVar = (topics.LOCATIONS, topics.CARTS, topics.PURCHASES)

    def __len__(self) -> int:
        return len(self.values)

    def of_customers(self, first: int) -> "Traffic":
        """The events of the first so many customers only."""
        chosen = np.flatnonzero(self.customer < first)
        return Traffic(self.topic[chosen], self.customer[chosen], [self.values[n] for n in chosen.tolist()])

    def part(self, first: int, end: int) -> "Traffic":
        """The events from `first` to before `end`."""
        return Traffic(self.topic[first:end], self.customer[first:end], self.values[first:end])

    def all_as(self, topic: str) -> "Traffic":
        """The same events, all of them on one topic."""
        return Traffic(np.full(len(self), self.TOPICS.index(topic), dtype=np.uint8), self.customer, self.values)

    @staticmethod
    def concatenated(first: "Traffic", second: "Traffic") -> "Traffic":
        return Traffic(
            np.concatenate([first.topic, second.topic]),
            np.concatenate([first.customer, second.customer]),
            first.values + second.values,
        )

    def rows(self) -> Iterator[tuple[str, str, bytes]]:
        """Topic, key and value of each event."""
        for topic, customer, value in zip(self.topic.tolist(), self.customer.tolist(), self.values, strict=True):
            yield self.TOPICS[topic], _uid(customer), value


class Walk:
    """Where every customer is, and what they do next. Can be pickled, to be gone on with in another process."""

    def __init__(self, world: WorldFile, customers: int, *, start_ms: int, step_ms: float, seed: int = 7) -> None:
        """`start_ms` is the time of the first event, `step_ms` the time between an event and the next one."""
        self.customers = customers
        self.now_ms = float(start_ms)
        self.step_ms = step_ms
        self._made = 0
        self._chance = np.random.default_rng(seed)
        self._stores = np.array([_metres(store.lat, store.lng) for store in world.stores])
        #: By store, where its walkers are when they are away: nobody is in two parts of the city within seconds.
        self._away = _nearest(self._stores, _away_places(self._stores, self._chance))
        # A store with fewer fences has none deeper inside; who would be there stays in the last one.
        self._deepest = {1: 1, 2: 2}.get(len(world.fences) // len(world.stores), 4)
        self._place = self._chance.choice(len(_SHARES), size=customers, p=_SHARES)
        self._store = self._chance.integers(len(self._stores), size=customers)
        self._department = self._chance.integers(len(_DEPARTMENTS), size=customers)
        self._product = self._chance.integers(len(_PRODUCTS), size=customers)

    def partition_of(self, partitions: int) -> NDArray[np.uint16]:
        """The partition of each customer."""
        return np.array([partition_of(_uid(number), partitions) for number in range(self.customers)], dtype=np.uint16)

    def everyone(self) -> Traffic:
        """A fix of every customer, then another one of those inside a fence, who have been there for long by then."""
        first = self._fixes(self._chance.permutation(self.customers))
        self.now_ms += 2 * _DWELL_S * 1000
        inside = np.flatnonzero(self._place)
        return Traffic.concatenated(first, self._fixes(self._chance.permutation(inside)))

    def next(self, events: int) -> Traffic:
        """So many events more, of anyone."""
        kind = self._chance.choice(3, size=events, p=(1 - _CARTS - _PURCHASES, _CARTS, _PURCHASES)).astype(np.uint8)
        customer = self._chance.integers(self.customers, size=events)
        return self._encode(kind, customer, *self._move(customer[kind == 0]))

    def _fixes(self, customers: Ints) -> Traffic:
        return self._encode(np.zeros(len(customers), dtype=np.uint8), customers, *self._positions(customers))

    def _move(self, customers: Ints) -> tuple[Ints, Floats]:
        """One step for each of these fixes, in order; the places and positions it leads to."""
        turn = _turns(customers)
        by_turn = np.argsort(turn, kind="stable")
        places, east_north = np.empty(len(customers), dtype=np.int64), np.empty((len(customers), 2))
        for fixes in np.split(by_turn, np.flatnonzero(np.diff(turn[by_turn])) + 1):
            self._step(customers[fixes])
            places[fixes], east_north[fixes] = self._positions(customers[fixes])
        return places, east_north

    def _step(self, who: Ints) -> None:
        drawn, place = self._chance.random(len(who)), self._place[who]
        goes_in, goes_out = drawn < _GO_IN[place], drawn > 1 - _GO_OUT[place]
        for coming, column, choices in (
            (goes_in & (place == 2), self._department, len(_DEPARTMENTS)),
            (goes_in & (place == 3), self._product, len(_PRODUCTS)),
        ):
            column[who[coming]] = self._chance.integers(choices, size=np.count_nonzero(coming))
        self._place[who] = place + goes_in - goes_out

    def _positions(self, who: Ints) -> tuple[Ints, Floats]:
        """Each one's place, and a position there in metres east and north."""
        place = np.minimum(self._place[who], self._deepest)
        jitter = self._chance.uniform(-1, 1, size=(len(who), 2))
        # Everybody passes on the western side, at a place of their own: nobody's way leads through the building.
        angle = math.pi * (2 / 3 + who % 97 / 97 * 2 / 3)
        store = self._stores[self._store[who]]
        department = store + np.array(_DEPARTMENTS)[self._department[who]]
        product = department + np.array(_PRODUCTS)[self._product[who]]
        spots = (
            self._away[self._store[who], who % _AWAY_PLACES_OF_A_STORE] + jitter * 8,
            store + np.stack([np.cos(angle), np.sin(angle)], axis=1) * 85.0 + jitter * 5,
            store + (-25.0, 0.0) + jitter * 4,
            department + (0.0, 4.0) + jitter * 0.3,
            product + jitter * 0.1,
        )
        return place, np.choose(place[:, None], spots)

    def _encode(self, kind: NDArray[np.uint8], customer: Ints, place: Ints, east_north: Floats) -> Traffic:
        """Events of these kinds and customers; places and positions are those of the fixes among them."""
        at_ms = (self.now_ms + np.arange(len(kind)) * self.step_ms).astype(np.int64)
        self.now_ms += len(kind) * self.step_ms
        numbers = np.arange(self._made, self._made + len(kind))
        self._made += len(kind)
        lats, lngs = _degrees_of(east_north)
        values: list[bytes] = [b""] * len(kind)
        fixes = np.flatnonzero(kind == 0)
        for index, n, who, ts, lat, lng, where in zip(
            *(column.tolist() for column in (fixes, numbers[fixes], customer[fixes], at_ms[fixes], lats, lngs, place)),
            strict=True,
        ):
            values[index] = _FIX % (n, who, ts, lat, lng, _HOW[where])
        others = np.flatnonzero(kind)
        for index, n, who, ts, what in zip(
            *(column.tolist() for column in (others, numbers[others], customer[others], at_ms[others], kind[others])),
            strict=True,
        ):
            values[index] = (_CART if what == 1 else _PURCHASE) % (n, who, ts, (who + n) % _PRODUCTS_SOLD)
        return Traffic(kind, customer, values)


#: As `nearcast.events.encode` writes them.
_FIX = b'{"type":"location","id":"e%d","uid":"c%d","ts":%d,"lat":%.7f,"lng":%.7f,"accuracy_m":%s}'
_CART = b'{"type":"cart","id":"e%d","uid":"c%d","ts":%d,"action":"add","sku":"p%d","price_cents":499}'
_PURCHASE = (
    b'{"type":"purchase","id":"e%d","uid":"c%d","ts":%d,'
    b'"items":[{"sku":"p%d","amount_cents":499},{"sku":"p1","amount_cents":1250,"coupon_cents":50}],"store":"s0"}'
)


def share_of_transitions(world: WorldFile, *traffic: Traffic) -> float:
    """Of the fixes in the last part of the traffic, those that the real tracker takes for a transition."""
    index = FenceIndex.build(world.fences)
    presences: dict[str, Presence] = {}
    for part in traffic:
        fixes = [
            event
            for topic, _, value in part.rows()
            if isinstance(event := decode(topic, value, position="", arrived_ms=2**42), Location)
        ]
        matched = index.match(np.array([fix.lat for fix in fixes]), np.array([fix.lng for fix in fixes]))
        changing = 0
        for fix, ordinals in zip(fixes, matched, strict=True):
            inside = [index.fences[ordinal] for ordinal in ordinals]
            changing += bool(track(presences.setdefault(fix.customer, Presence()), fix, inside, index))
    return changing / len(fixes)


def _uid(number: int) -> str:
    return f"c{number}"


def _sku(number: int) -> str:
    return f"p{number % _PRODUCTS_SOLD}"


def _turns(customers: Ints) -> Ints:
    """For each place in the list, how often the same customer stands before it."""
    order = np.argsort(customers, kind="stable")
    grouped = customers[order]
    starts = np.flatnonzero(np.append(True, grouped[1:] != grouped[:-1]))
    turns = np.empty(len(customers), dtype=np.int64)
    turns[order] = np.arange(len(customers)) - np.repeat(starts, np.diff(np.append(starts, len(customers))))
    return turns


def _half_size(stores: int) -> tuple[float, float]:
    """Metres from the centre to the eastern and the northern edge."""
    larger = math.sqrt(max(1.0, stores / STORES_INSIDE))
    return DEGREES * _METRES_EAST * larger, DEGREES * _METRES_NORTH * larger


def _places(stores: int, chance: Random) -> Iterator[tuple[float, float]]:
    """One store somewhere in each cell of a grid, their vicinities apart."""
    side = math.ceil(math.sqrt(stores))
    half_east, half_north = _half_size(stores)
    cell_east, cell_north = 2 * half_east / side, 2 * half_north / side
    free_east, free_north = (max(0.0, cell / 2 - _VICINITY_M - 20) for cell in (cell_east, cell_north))
    for number in range(stores):
        row, column = divmod(number, side)
        yield (
            (column + 0.5) * cell_east - half_east + chance.uniform(-free_east, free_east),
            (row + 0.5) * cell_north - half_north + chance.uniform(-free_north, free_north),
        )


def _nearest(stores: Floats, places: Floats) -> Floats:
    """For each store the places nearest to it."""
    found = np.empty((len(stores), _AWAY_PLACES_OF_A_STORE, 2))
    for number, store in enumerate(stores):
        apart = ((places - store) ** 2).sum(axis=1)
        found[number] = places[np.argpartition(apart, _AWAY_PLACES_OF_A_STORE)[:_AWAY_PLACES_OF_A_STORE]]
    return found


def _away_places(stores: Floats, chance: np.random.Generator) -> Floats:
    """Positions that are near no store."""
    tree = shapely.STRtree([shapely.Point(east_north) for east_north in stores])
    found = np.empty((0, 2))
    while len(found) < _AWAY_PLACES:
        tried = chance.uniform(-1, 1, size=(_AWAY_PLACES, 2)) * _half_size(len(stores))
        near = tree.query(shapely.points(tried), "dwithin", distance=_AWAY_M)[0]
        found = np.concatenate([found, np.delete(tried, near, axis=0)])
    return found[:_AWAY_PLACES]


def _degrees(east: float, north: float) -> tuple[float, float]:
    return LAT + north / _METRES_NORTH, LNG + east / _METRES_EAST


def _degrees_of(east_north: Floats) -> tuple[Floats, Floats]:
    return LAT + east_north[:, 1] / _METRES_NORTH, LNG + east_north[:, 0] / _METRES_EAST


def _metres(lat: float, lng: float) -> tuple[float, float]:
    return (lng - LNG) * _METRES_EAST, (lat - LAT) * _METRES_NORTH


def _fences_of(number: int, east: float, north: float) -> Iterator[Fence]:
    """A store's fences, outer ones first. Every third store has a floor plan of polygons."""
    drawn = number % 3 == 2
    store = f"s{number}"

    def fence(kind: FenceKind, name: str, x: float, y: float, size_m: float, parent: str | None) -> Fence:
        geometry: Geometry = Circle((_degrees(x, y)[1], _degrees(x, y)[0]), size_m)
        if drawn and kind in ("store", "department"):
            geometry = _square(x, y, size_m)
        dwell_s = _DWELL_S if kind == "department" else 86_400.0
        return Fence(
            id=f"{store}-{name}",
            store=store,
            kind=kind,
            geometry=geometry,
            parent=parent and f"{store}-{parent}",
            sku=_sku(number + int(name[1:])) if kind == "product" else None,
            dwell_s=dwell_s,
            exit_margin_m=1.0 if kind == "product" else 10.0,
        )

    yield fence("vicinity", "vicinity", east, north, _VICINITY_M, None)
    yield fence("store", "store", east, north, _STORE_M, "vicinity")
    for n, (x, y) in enumerate(_DEPARTMENTS):
        yield fence("department", f"d{n}", east + x, north + y, _DEPARTMENT_M, "store")
    for n, (x, y) in enumerate(_DEPARTMENTS):
        for m, (beside, above) in enumerate(_PRODUCTS):
            at = (east + x + beside, north + y + above)
            yield fence("product", f"p{2 * n + m}", *at, _PRODUCT_M, f"d{n}")


def _square(east: float, north: float, half_m: float) -> Polygon:
    corners = ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))
    ring = [_degrees(east + x * half_m, north + y * half_m) for x, y in corners]
    return Polygon([[(lng, lat) for lat, lng in ring]])


def _products() -> list[Product]:
    return [
        Product(sku=_sku(n), name=f"Product {n}", segment=_SEGMENTS[n % 8], price_cents=199 + 50 * (n % 20))
        for n in range(_PRODUCTS_SOLD)
    ]


def _promotions() -> list[Promotion]:
    def promotion(
        name: str, trigger: Trigger, segments: Sequence[str] = (), who: Who | None = None, kind: FenceKind | None = None
    ) -> Promotion:
        return Promotion(
            id=name,
            name=name,
            trigger=trigger,
            who=who or Who(),
            where=Where(kinds=[kind] if kind else []),
            what=What(segments=list(segments), discount=Discount(percent=15)),
            caps=[Cap(count=1, period_s=86_400)],
            words={"en": Words(title="{{ product }} for you")},
        )

    return [
        promotion("cart-near", "walk_past", who=Who(in_cart=True)),
        promotion("coffee-near", "walk_past", ["coffee"]),
        promotion("gold-near", "walk_past", ["wine"], Who(loyalty=["gold"])),
        promotion("welcome", "enter", kind="store"),
        promotion("fresh", "enter", ["produce", "dairy"], kind="store"),
        promotion("newsletter", "enter", ["bakery"], Who(groups=["newsletter"]), "department"),
        promotion("linger", "dwell", ["snacks", "wine"], kind="department"),
        promotion("linger-gold", "dwell", ["care"], Who(loyalty=["gold", "silver"]), "department"),
        promotion("at-shelf", "near_product"),
    ]
