"""What else than coordinates tells where a device is: beacons, access points, printed codes, the app's own geofencing.

A fix may name them in `zones`. Each stands for the fences that list it (or, reported by the app, for the fence of that
id), with the precision of its kind: the radius within which the device is when it says so. Where coordinates and a
sign disagree, the more precise of the two is believed: see `tracker`. A sign that nobody has listed says nothing.

A scan (the actions `qr_scan` and `wifi_lookup`) that names one of them in `fence` is such a fix, without coordinates.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from nearcast.events import Action, Location
from nearcast.ids import FenceId
from nearcast.world import Circle, Corridor, Fence, MultiPolygon, Polygon

#: Metres: a code is read from arm's length; a beacon is heard farther away, but an app names the nearest.
CODE_M = 2.0
BEACON_M = 3.0
ACCESS_POINT_M = 15.0
#: Phones notice circles of a few hundred metres, and nothing under a hundred.
APP_M = 100.0
#: How sure a sign makes it that its fence is the right one. Ours: nobody can measure that for other people's shops.
CONFIDENCE: Mapping[float, float] = MappingProxyType({CODE_M: 0.99, BEACON_M: 0.95, ACCESS_POINT_M: 0.85})
#: Of the app's own geofencing: what it claims, 68 %.
APP_CONFIDENCE = 0.68


_SCANS: Mapping[str, Literal["qr", "wifi"]] = MappingProxyType({"qr_scan": "qr", "wifi_lookup": "wifi"})


class Sign(NamedTuple):
    """Something that proves presence in a fence, to within so many metres."""

    fence_id: FenceId
    precision_m: float
    confidence: float


class Evidence:
    """Signs by what a device calls them. Immutable."""

    def __init__(self, fences: Iterable[Fence]) -> None:
        self._fences: Mapping[FenceId, Fence] = MappingProxyType({fence.fence_id: fence for fence in fences})
        found: dict[str, list[Sign]] = {}
        for fence in self._fences.values():
            kinds = ((fence.codes, CODE_M), (fence.beacons, BEACON_M), (fence.access_points, ACCESS_POINT_M))
            for tokens, precision_m in kinds:
                for token in tokens:
                    found.setdefault(token, []).append(Sign(fence.fence_id, precision_m, CONFIDENCE[precision_m]))
        self._signs = MappingProxyType(found)

    def of(self, tokens: Sequence[str], reach_m: Callable[[FenceId], float]) -> dict[FenceId, Sign]:
        """The best sign for each fence that the tokens speak of; `reach_m` says how large a fence is."""
        best: dict[FenceId, Sign] = {}
        for token in tokens:
            signs = self._signs.get(token, [])
            fence_id = FenceId(token)
            if fence_id in self._fences:
                signs = [*signs, Sign(fence_id, max(APP_M, reach_m(fence_id)), APP_CONFIDENCE)]
            for sign in signs:
                known = best.get(sign.fence_id)
                if known is None or sign.precision_m < known.precision_m:
                    best[sign.fence_id] = sign
        return best

    def in_scan(self, action: Action) -> Location | None:
        """What a scan proves, as a fix without coordinates; None if it names nothing that a fence lists."""
        source, token = _SCANS.get(action.action), action.fence
        if source is None or token is None or token not in self._signs:
            return None
        return Location(
            id=action.id,
            uid=action.uid,
            anonymous_id=action.anonymous_id,
            ts=action.ts,
            source=source,
            zones=[token],
        )

    def unknown(self, tokens: Sequence[str]) -> int:
        """How many of them stand for nothing."""
        return sum(token not in self._signs and FenceId(token) not in self._fences for token in tokens)


def middle_of(fence: Fence) -> tuple[float, float]:
    """Latitude and longitude of a place in the middle of a fence, good to its size."""
    geometry = fence.geometry
    match geometry:
        case Circle():
            points = [geometry.center]
        case Polygon():
            points = geometry.coordinates[0][:-1]
        case MultiPolygon():
            points = geometry.coordinates[0][0][:-1]
        case Corridor():
            points = [geometry.coordinates[len(geometry.coordinates) // 2]]
    return math.fsum(lat for _, lat in points) / len(points), math.fsum(lng for lng, _ in points) / len(points)
