"""A flat plan of the sample city: metres east and north on paper, degrees on the wire.

Pure. Good for a district of a few kilometres: the Earth counts as a sphere, and as flat around the origin
(equirectangular projection; the error is under a centimetre per kilometre at this scale).
"""

import math
from typing import NamedTuple

EARTH_RADIUS_M = 6_371_008.8


class Spot(NamedTuple):
    """A place on the plan: metres along the two street directions from the origin."""

    x: float
    y: float

    def to(self, other: "Spot") -> float:
        """Distance in metres."""
        return math.hypot(other.x - self.x, other.y - self.y)

    def moved(self, dx: float, dy: float) -> "Spot":
        return Spot(self.x + dx, self.y + dy)


class Frame(NamedTuple):
    """Where the plan lies on Earth: its origin, and how far its x axis is turned from east (anticlockwise)."""

    lat: float
    lng: float
    turn_deg: float = 0.0

    def lat_lng(self, spot: Spot) -> tuple[float, float]:
        """Degrees, rounded to about a centimetre."""
        turn = math.radians(self.turn_deg)
        east = spot.x * math.cos(turn) - spot.y * math.sin(turn)
        north = spot.x * math.sin(turn) + spot.y * math.cos(turn)
        lat = self.lat + math.degrees(north / EARTH_RADIUS_M)
        lng = self.lng + math.degrees(east / (EARTH_RADIUS_M * math.cos(math.radians(self.lat))))
        return round(lat, 7), round(lng, 7)

    def spot(self, lat: float, lng: float) -> Spot:
        turn = math.radians(self.turn_deg)
        north = math.radians(lat - self.lat) * EARTH_RADIUS_M
        east = math.radians(lng - self.lng) * EARTH_RADIUS_M * math.cos(math.radians(self.lat))
        return Spot(
            east * math.cos(turn) + north * math.sin(turn),
            -east * math.sin(turn) + north * math.cos(turn),
        )
