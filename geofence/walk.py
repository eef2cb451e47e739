"""A recorded track through the tracker, on a clock made of its points. For tools: the engine does this with events."""

from collections.abc import Iterable, Iterator

import numpy as np

from geofence.index import FenceIndex
from geofence.tracker import next_due_ms, on_timer, places, track
from geofence.tracks import TrackPoint
from nearcast.customer import Presence
from nearcast.events import Location
from nearcast.moments import Transition

#: How long after the last point time goes on: everything silent is over by then.
AFTERWARDS_MS = 86_400_000


def walk(points: Iterable[TrackPoint], index: FenceIndex) -> Iterator[list[Transition]]:
    """What each point changes, with what timers did before it; at the end, what they do after the last one."""
    presence = Presence()
    for point in points:
        found = _until(presence, point.at_ms - 1, index)
        yield found + _fix(presence, point, index)
    yield _until(presence, presence.last_ms + AFTERWARDS_MS, index)


def _fix(presence: Presence, point: TrackPoint, index: FenceIndex) -> list[Transition]:
    fix = Location(uid="track", ts=point.at_ms, lat=point.lat, lng=point.lng, accuracy_m=point.accuracy_m)
    (hits,) = index.match(np.array([point.lat]), np.array([point.lng]))
    inside, near = places(hits, index)
    return track(presence, fix, inside, index, near)


def _until(presence: Presence, until_ms: int, index: FenceIndex) -> list[Transition]:
    """What timers do up to a time."""
    found: list[Transition] = []
    due_ms = next_due_ms(presence, index)
    while 0 < due_ms <= until_ms:
        found += on_timer(presence, due_ms, index)
        next_ms = next_due_ms(presence, index)
        if next_ms <= due_ms:
            break
        due_ms = next_ms
    return found
