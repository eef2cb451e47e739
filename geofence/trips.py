"""Pickups: a customer on the way to a store where an order waits for them. A pure state machine in event time.

    waiting ──set out──► on_the_way ──notice──► approaching ──enter──► arrived ──picked up──► gone

* **waiting**: the shop said `order_ready`. Nobody waits for the customer yet.
* **on_the_way**: the customer said `pickup_start`. Who doesn't say so sets out by coming: a fix that would make them
  "approaching" and is at least `COMING_M` nearer than they once were while the order waited.
* **approaching**, once: a fix by which they will be there within the notice (5 minutes, or `Action.notice_s`).
* **arrived**, once: an enter of the store, or of its vicinity if they were on the way, as sure as `MIN_CONFIDENCE`; or
  they are there already when the order gets ready, or they set out.
* **wrong store**, once a trip: on the way, they dwell in a fence of kind "store" of another store. Going through one,
  or past it, is no mistake.
* **abandoned**: they call it off, or don't arrive in time (2 hours, or `Action.within_s`), or go away: `AWAY_M` farther
  off than they once were, `AWAY_MS` after that. An order that is ready goes on waiting. Of somebody who never said that
  they were coming nothing is told.

When they will be there is told from the distance as the crow flies times `DETOUR`, and from how fast that shrank of
late: a mean that forgets within `FORGET_MS`, begins at 30 km/h, and never counts as less than a walk.

Fixes and actions of one customer must come one at a time, in log order. What is kept of the fixes is distances.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from geofence.sphere import distance_m
from nearcast.customer import Presence, Trip
from nearcast.events import Action, Location
from nearcast.ids import CustomerId, EventId, FenceId, StoreId
from nearcast.moments import Moment, Pickup, Transition
from nearcast.world import Fence, Store, Trigger

#: How many orders of one customer are followed at a time; a further one takes the place of the one known longest.
MAX_TRIPS = 4
NOTICE_MS = 5 * 60_000
WITHIN_MS = 2 * 3_600_000
#: An order that nobody comes for is forgotten after a week; one that nobody said was picked up, after four hours.
KEPT_READY_MS = 7 * 86_400_000
KEPT_ARRIVED_MS = 4 * 3_600_000

#: Roads are longer than the crow's way: in towns by 1.2 to 1.4.
DETOUR = 1.3
FIRST_SPEED_MPS = 30 / 3.6
WALK_MPS = 1.2
#: Nobody drives faster than 180 km/h: what looks like it is an error of a fix.
MAX_SPEED_MPS = 50.0
FORGET_MS = 120_000
#: A fix says something of the way if it is no worse than this, or than a quarter of the distance.
GOOD_FIX_M = 100.0

#: What an enter or a dwell needs to be believed.
MIN_CONFIDENCE = 0.5
COMING_M = 500
AWAY_M = 1_000
AWAY_MS = 15 * 60_000

_UNDER_WAY = ("on_the_way", "approaching")
_GOAL_OF_WAITING = ("store",)
_GOAL = ("store", "vicinity")


def act(presence: Presence, action: Action, fences: Mapping[FenceId, Fence]) -> list[Moment]:
    """What the shop or the customer said of an order, one of `PICKUP_ACTIONS`. Nobody is followed without consent."""
    order, now_ms = action.order, action.ts
    if order is None or not presence.allowed:
        return []
    trip = next((trip for trip in presence.trips if trip.order == order), None)
    if action.action == "order_picked_up":
        presence.trips = [other for other in presence.trips if other is not trip]
        return []
    if action.action == "pickup_cancel":
        return _give_up(presence, trip, action.event_id, action.customer, now_ms, "cancelled") if trip else []
    if trip is None:
        trip = _new_trip(presence, order, StoreId(action.store or ""), now_ms)
    if action.action == "order_ready":
        trip.ready = True
        if trip.store != action.store:
            # The shop knows best where the order is.
            _turn_to(trip, StoreId(action.store or ""), now_ms)
    if action.notice_s is not None:
        trip.notice_ms = action.notice_s * 1_000
    if action.within_s is not None:
        trip.within_ms = action.within_s * 1_000
    if action.action == "pickup_start" and trip.state != "arrived":
        trip.announced = True
        if trip.state == "waiting":
            _set_out(trip, now_ms)
            # How slow they were at home says nothing of the way.
            trip.speed_mps = FIRST_SPEED_MPS
        trip.until_ms = now_ms + trip.within_ms
    here = [fences[fence_id] for fence_id in presence.inside if fence_id in fences]
    arrival = _arrival(trip, [Transition("enter", fence, now_ms, 1.0) for fence in here])
    return [_arrive(presence, trip, arrival, action.event_id, action.customer)] if arrival is not None else []


def follow(
    presence: Presence,
    event: EventId,
    customer: CustomerId,
    transitions: Sequence[Transition],
    stores: Mapping[StoreId, Store],
    fix: Location | None = None,
) -> list[Moment]:
    """What came of the trips: by transitions of the customer, and by the fix that led to them, if one did."""
    moments = []
    for trip in list(presence.trips):
        arrival = _arrival(trip, transitions)
        if arrival is not None:
            moments.append(_arrive(presence, trip, arrival, event, customer))
            continue
        stop = _wrong_stop(trip, transitions)
        if stop is not None:
            trip.astray = True
            moments.append(_moment("pickup_wrong_store", presence, trip, event, customer, stop.at_ms, at=stop))
        store = stores.get(trip.store)
        if fix is not None and store is not None and trip.state != "arrived" and _measure(trip, fix, store):
            moments += _come_nearer(presence, trip, event, customer, fix.ts)
    return moments


def forget(presence: Presence) -> list[Moment]:
    """Follow the customer no more, and tell nobody: they withdrew their consent."""
    presence.trips = []
    return []


def next_due_ms(presence: Presence) -> int:
    """When the next trip ends by itself; 0 if there is none."""
    return min((trip.until_ms for trip in presence.trips), default=0)


def on_timer(presence: Presence, event: EventId, customer: CustomerId, now_ms: int) -> list[Moment]:
    """End the trips whose time is over at `now_ms`."""
    moments = []
    for trip in [trip for trip in presence.trips if trip.until_ms <= now_ms]:
        if trip.state in _UNDER_WAY:
            moments += _give_up(presence, trip, event, customer, now_ms, "expired")
        else:
            presence.trips = [other for other in presence.trips if other is not trip]
    return moments


def headed_for(presence: Presence) -> list[StoreId]:
    """The stores that expect the customer, or have them, in alphabetical order."""
    return sorted({trip.store for trip in presence.trips if trip.state != "waiting"})


def _new_trip(presence: Presence, order: str, store: StoreId, now_ms: int) -> Trip:
    trip = Trip(order, store, now_ms, until_ms=now_ms + KEPT_READY_MS, notice_ms=NOTICE_MS, within_ms=WITHIN_MS)
    presence.trips = [*presence.trips[1 - MAX_TRIPS :], trip]
    return trip


def _turn_to(trip: Trip, store: StoreId, now_ms: int) -> None:
    trip.store, trip.astray = store, False
    trip.distance_m = trip.turn_m = -1
    trip.eta_ms = 0
    if trip.state != "waiting":
        _set_out(trip, now_ms)


def _set_out(trip: Trip, now_ms: int) -> None:
    trip.state, trip.since_ms, trip.until_ms = "on_the_way", now_ms, now_ms + trip.within_ms
    trip.turn_m, trip.turn_ms = trip.distance_m, now_ms


def _arrival(trip: Trip, transitions: Iterable[Transition]) -> Transition | None:
    if trip.state == "arrived":
        return None
    goal = _GOAL_OF_WAITING if trip.state == "waiting" else _GOAL
    for transition in transitions:
        fence = transition.fence
        if (
            transition.kind == "enter"
            and fence.store == trip.store
            and fence.kind in goal
            and transition.confidence >= MIN_CONFIDENCE
        ):
            return transition
    return None


def _arrive(presence: Presence, trip: Trip, arrival: Transition, event: EventId, customer: CustomerId) -> Moment:
    trip.state, trip.since_ms, trip.until_ms = "arrived", arrival.at_ms, arrival.at_ms + KEPT_ARRIVED_MS
    trip.eta_ms = arrival.at_ms
    return _moment("pickup_arrived", presence, trip, event, customer, arrival.at_ms, at=arrival)


def _wrong_stop(trip: Trip, transitions: Iterable[Transition]) -> Transition | None:
    if trip.astray or trip.state not in _UNDER_WAY:
        return None
    for transition in transitions:
        fence = transition.fence
        if (
            transition.kind == "dwell"
            and fence.kind == "store"
            and fence.store != trip.store
            and transition.confidence >= MIN_CONFIDENCE
        ):
            return transition
    return None


def _measure(trip: Trip, fix: Location, store: Store) -> bool:
    """Note how far it is and when they will be there; False if the fix doesn't say."""
    if math.isnan(fix.lat):
        return False
    distance = round(distance_m(fix.lat, fix.lng, store.lat, store.lng))
    if fix.accuracy_m > max(GOOD_FIX_M, distance / 4):
        return False
    # Time before they set out is none in which they came.
    gone_ms = fix.ts - max(trip.seen_ms, trip.since_ms)
    if trip.distance_m < 0:
        trip.speed_mps = FIRST_SPEED_MPS
    elif gone_ms > 0:
        speed = DETOUR * (trip.distance_m - distance) / gone_ms * 1_000
        speed = max(-MAX_SPEED_MPS, min(speed, MAX_SPEED_MPS))
        trip.speed_mps += (speed - trip.speed_mps) * (1 - math.exp(-gone_ms / FORGET_MS))
    trip.distance_m, trip.seen_ms = distance, fix.ts
    trip.eta_ms = fix.ts + round(DETOUR * distance / max(trip.speed_mps, WALK_MPS) * 1_000)
    return True


def _come_nearer(presence: Presence, trip: Trip, event: EventId, customer: CustomerId, now_ms: int) -> Sequence[Moment]:
    """What the distance and the time that was just noted mean."""
    waiting = trip.state == "waiting"
    if trip.turn_m < 0 or (trip.distance_m > trip.turn_m if waiting else trip.distance_m < trip.turn_m):
        trip.turn_m, trip.turn_ms = trip.distance_m, now_ms
    soon = trip.notice_ms > 0 and trip.eta_ms - now_ms <= trip.notice_ms
    if waiting:
        if not soon or trip.turn_m - trip.distance_m < COMING_M:
            return ()
        _set_out(trip, now_ms)
    elif trip.distance_m >= trip.turn_m + AWAY_M and now_ms - trip.turn_ms >= AWAY_MS:
        return _give_up(presence, trip, event, customer, now_ms, "away")
    if not soon or trip.state == "approaching":
        return ()
    trip.state, trip.since_ms = "approaching", now_ms
    return [_moment("pickup_approaching", presence, trip, event, customer, now_ms)]


def _give_up(
    presence: Presence,
    trip: Trip,
    event: EventId,
    customer: CustomerId,
    now_ms: int,
    reason: Literal["cancelled", "expired", "away"],
) -> list[Moment]:
    told = trip.announced and trip.state != "waiting"
    moments = [_moment("pickup_abandoned", presence, trip, event, customer, now_ms, reason=reason)] if told else []
    if trip.ready:
        trip.state, trip.since_ms, trip.until_ms = "waiting", now_ms, now_ms + KEPT_READY_MS
        trip.announced = trip.astray = False
        trip.eta_ms = 0
    else:
        presence.trips = [other for other in presence.trips if other is not trip]
    return moments


def _moment(
    trigger: Trigger,
    presence: Presence,
    trip: Trip,
    event: EventId,
    customer: CustomerId,
    at_ms: int,
    *,
    at: Transition | None = None,
    reason: str = "",
) -> Moment:
    """`at` is the transition that led to it, if one did."""
    eta_ms = 0 if trigger == "pickup_abandoned" else trip.eta_ms
    return Moment(
        event=event,
        customer=customer,
        trigger=trigger,
        at_ms=at_ms,
        subject=trip.order,
        store=trip.store if at is None else at.fence.store_id,
        fence=None if at is None else at.fence.fence_id,
        fence_kind=None if at is None else at.fence.kind,
        confidence=1.0 if at is None else at.confidence,
        around=() if at is None else at.around,
        doubt=presence.doubt,
        pickup=Pickup(trip.order, trip.store, eta_ms, reason),
    )
