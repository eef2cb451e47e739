"""What pictures of places are made of: a flat map of a small part of the Earth, and well-formed SVG text."""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from geofence.sphere import EARTH_RADIUS_M, Floats

#: What XML 1.0 can't carry, however it is written.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TEXT_WIDTH = 0.56
#: Distances of a label from its point, and the directions tried, the best to read first.
_DISTANCES = (9, 18, 30, 44, 60, 80)
_DIRECTIONS = tuple((math.cos(math.radians(turn)), math.sin(math.radians(turn))) for turn in range(-45, 315, 30))


class Rect(NamedTuple):
    """A part of the drawing, in pixels; y grows downwards."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: "Rect") -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def holds(self, other: "Rect") -> bool:
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.x + other.width <= self.x + self.width
            and other.y + other.height <= self.y + self.height
        )


class Flat(NamedTuple):
    """The azimuthal equidistant plane around a point, in metres: true from the middle, whatever lies beyond (a pole,
    the antimeridian), and everywhere for places of a few kilometres.
    """

    lat: float
    lng: float

    @classmethod
    def around(cls, points: Floats) -> "Flat":
        """The plane in the middle of points (rows of longitude and latitude)."""
        lngs, lats = np.radians(points).T
        x, y, z = (np.cos(lats) * np.cos(lngs)).mean(), (np.cos(lats) * np.sin(lngs)).mean(), np.sin(lats).mean()
        return cls(math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x)))

    def metres(self, points: Floats) -> Floats:
        """Rows of metres east and north."""
        lat = math.radians(self.lat)
        turns, lats = np.radians(points[:, 0] - self.lng), np.radians(points[:, 1])
        east = np.cos(lats) * np.sin(turns)
        north = math.cos(lat) * np.sin(lats) - math.sin(lat) * np.cos(lats) * np.cos(turns)
        ahead = math.sin(lat) * np.sin(lats) + math.cos(lat) * np.cos(lats) * np.cos(turns)
        side = np.hypot(east, north)
        scale = np.where(side > 0, np.arctan2(side, ahead) / np.where(side > 0, side, 1.0), 1.0) * EARTH_RADIUS_M
        return np.column_stack((east * scale, north * scale))


class View(NamedTuple):
    """A part of the plane, drawn into a part of the picture."""

    flat: Flat
    frame: Rect
    #: The middle, in metres on the plane, and pixels per metre.
    east_m: float
    north_m: float
    scale: float

    @classmethod
    def of(cls, points: Floats, frame: Rect, *, least_m: float = 20.0, room: float = 0.08) -> "View":
        """A view that holds all points (longitude, latitude), with room around them."""
        flat = Flat.around(points)
        placed = flat.metres(points)
        low, high = placed.min(axis=0), placed.max(axis=0)
        width, height = np.maximum(high - low, least_m) * (1 + 2 * room)
        east, north = (low + high) / 2
        scale = min(frame.width / width, frame.height / height)
        return cls(flat, frame, float(east), float(north), float(scale))

    def pixels(self, points: Floats) -> Floats:
        """Rows of x and y."""
        placed = (self.flat.metres(points) - (self.east_m, self.north_m)) * self.scale
        middle = (self.frame.x + self.frame.width / 2, self.frame.y + self.frame.height / 2)
        return placed * (1.0, -1.0) + middle


class Labels:
    """Finds places for labels, so that none lies on another."""

    def __init__(self, frame: Rect, taken: Iterable[Rect] = ()) -> None:
        self._frame = frame
        self._taken = list(taken)

    def reserve(self, spot: Rect) -> None:
        """No label goes there."""
        self._taken.append(spot)

    def take(self, spot: Rect) -> bool:
        """Take this place, if it is free."""
        free = self._frame.holds(spot) and not any(spot.overlaps(other) for other in self._taken)
        if free:
            self._taken.append(spot)
        return free

    def place(self, x: float, y: float, width: float, height: float) -> Rect | None:
        """A free place for a label of the point, which is then taken; None if there is none near it."""
        for distance in _DISTANCES:
            for right, down in _DIRECTIONS:
                middle_x, middle_y = x + right * (distance + width / 2), y + down * (distance + height / 2)
                spot = Rect(middle_x - width / 2, middle_y - height / 2, width, height)
                if self.take(spot):
                    return spot
        return None


def element(name: str, content: str | None = None, **attributes: object) -> str:
    """An SVG element; `content` is SVG already. An underscore in a name of an attribute stands for a hyphen."""
    said = "".join(
        f" {key.rstrip('_').replace('_', '-')}={quoteattr(_written(value))}" for key, value in attributes.items()
    )
    return f"<{name}{said}/>" if content is None else f"<{name}{said}>{content}</{name}>"


def words(text: str, x: float, y: float, **attributes: object) -> str:
    """Text, as it is."""
    return element("text", escape(printable(text)), x=x, y=y, **attributes)


def printable(text: str) -> str:
    """The text without what can't be in XML, and without line ends and other controls."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if _NOT_XML.match(letter) or unicodedata.category(letter) == "Cc" else letter
        for letter in text
    )


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def width_of(text: str, size: float) -> float:
    """About how wide text is, in pixels; it depends on the reader's fonts."""
    return size * sum(1.0 if unicodedata.east_asian_width(letter) in "WF" else _TEXT_WIDTH for letter in text)


def outline(rings: Iterable[Floats], *, closed: bool = True) -> str:
    """The `d` of a path along rows of x and y."""
    return "".join(_path(ring, closed=closed) for ring in rings)


def document(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    """A whole picture."""
    head = element("title", escape(printable(title)))
    paper = element("rect", width="100%", height="100%", fill="#fff")
    return element(
        "svg",
        "\n".join((head, paper, *parts)) + "\n",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_written(width)} {_written(height)}",
        width=width,
        height=height,
        role="img",
        font_family="system-ui, 'DejaVu Sans', 'Noto Sans', sans-serif",
        font_size=12,
        fill="#222",
    )


def scale_bar(view: View) -> Iterator[str]:
    """In the lower left corner: a round length, at most a quarter of the width."""
    length_m = _round_length(view.frame.width / 4 / view.scale)
    x, y = view.frame.x + 14, view.frame.y + view.frame.height - 14
    end = x + length_m * view.scale
    text = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    yield element("rect", x=x - 6, y=y - 20, width=end - x + 12, height=27, fill="#fff", fill_opacity=0.8)
    yield element("path", d=f"M{_written(x)} {_written(y - 4)}v4H{_written(end)}v-4", fill="none", stroke="#222")
    yield words(text, (x + end) / 2, y - 7, text_anchor="middle", font_size=11)


def north_arrow(view: View) -> Iterator[str]:
    """In the upper right corner."""
    x, y = view.frame.x + view.frame.width - 20, view.frame.y + 14
    yield element("path", d=f"M{_written(x)} {_written(y)}l5 16l-5 -4l-5 4z", fill="#222")
    yield words("N", x, y + 28, text_anchor="middle", font_size=11)


def furniture_of(frame: Rect) -> list[Rect]:
    """Where scale bar and north arrow are, for `Labels`."""
    return [
        Rect(frame.x, frame.y + frame.height - 40, frame.width / 4 + 30, 40),
        Rect(frame.x + frame.width - 40, frame.y, 40, 48),
    ]


def _path(ring: Floats, *, closed: bool) -> str:
    # Tenths of a pixel, each from the last one written, so that roundings don't add up.
    tenths = np.rint(ring * 10).astype(np.int64)
    if closed and len(tenths) > 1 and (tenths[0] == tenths[-1]).all():
        tenths = tenths[:-1]
    steps = np.diff(tenths, axis=0)
    steps = steps[(steps != 0).any(axis=1)]
    start = f"M{_written(tenths[0, 0] / 10)} {_written(tenths[0, 1] / 10)}"
    moves = "".join(f"l{_written(x / 10)} {_written(y / 10)}" for x, y in steps.tolist())
    return f"{start}{moves}{'z' if closed else ''}"


def _round_length(most_m: float) -> float:
    power = 10.0 ** math.floor(math.log10(most_m))
    return max(step * power for step in (1, 2, 5) if step * power <= most_m)


def _written(value: object) -> str:
    return f"{round(float(value), 2):g}" if isinstance(value, float | np.floating) else str(value)
