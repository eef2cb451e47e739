"""The picture of a track over the fences around it, with what the tracker made of it, as SVG.

The way is coloured by time. Transitions are numbered, and told beside the map; where they crowd in a store, a map of
its own shows that store. It holds the positions and names it was given, and nothing else: no map is fetched.
"""

import bisect
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from geofence.drawing import (
    Labels,
    Rect,
    View,
    document,
    element,
    furniture_of,
    north_arrow,
    outline,
    scale_bar,
    shortened,
    width_of,
    words,
)
from geofence.maps import (
    NAME_LETTERS,
    border,
    clip,
    dots_of,
    is_dot,
    is_seen,
    names_of,
    outer_first,
    outline_of,
)
from geofence.sphere import Floats
from geofence.survey import Site
from geofence.tracks import TrackPoint
from nearcast.moments import Transition

_TRANSITION_COLOURS = {
    "enter": "#00795a",
    "exit": "#c0392b",
    "dwell": "#a66a00",
    "approach": "#2c6fbb",
    "cross": "#7d3c98",
}
#: Dark blue to orange, as time goes by.
_FIRST_COLOUR, _MIDDLE_COLOUR, _LAST_COLOUR = (13, 8, 135), (190, 50, 130), (248, 149, 64)
_TIME_STEPS = 48
#: More points than this are not told apart in a picture; more fixes than that are not dotted.
_MOST_POINTS = 6_000
_MOST_DOTS = 500
_MOST_ROWS = 60
_WIDTH, _HEIGHT = 820.0, 600.0
_DETAIL_HEIGHT = 440.0
_MOST_DETAILS = 4
#: A store with so many transitions, drawn smaller than this, gets a map of its own.
_CROWD = 3
_LARGE_PIXELS = 320.0


class _Track(NamedTuple):
    """A track to draw: its points, the same as rows of longitude and latitude, and what happened at which point."""

    points: Sequence[TrackPoint]
    positions: Floats
    transitions: Sequence[Transition]
    #: The point at which each transition is marked.
    places: Sequence[int]


def track_picture(points: Sequence[TrackPoint], transitions: Sequence[Transition], sites: Sequence[Site]) -> str:
    """`transitions` are those of the track, `sites` the fences to show, as far as they are in the picture."""
    positions = np.array([(point.lng, point.lat) for point in points])
    shown = transitions[:_MOST_ROWS]
    newest = np.maximum.accumulate([point.at_ms for point in points]).tolist()
    places = [max(bisect.bisect_right(newest, transition.at_ms) - 1, 0) for transition in shown]
    track = _Track(points, positions, shown, places)

    frame = Rect(20, 20, _WIDTH, _HEIGHT)
    fences = {transition.fence.id for transition in transitions}
    touched = [ring for site in sites if site.fence.id in fences for ring in site.rings()]
    view = View.of(np.vstack([positions, *touched]), frame, least_m=60.0)
    details = _details(track, view, sites)
    hidden = {number for detail in details for number in detail.numbers}
    parts = [*_map("map", track, view, sites, [n for n in range(len(shown)) if n not in hidden], details)]
    for detail in details:
        where = detail.view.frame
        title = f"{detail.letter}: {shortened(detail.title, 60)}"
        parts.append(words(title, where.x, where.y - 8, font_size=14, font_weight="bold"))
        parts += _map(f"map-{detail.letter}", track, detail.view, sites, detail.numbers)
    left = frame.x + frame.width + 24
    parts += _time_bar(points, Rect(left, 40, 380, 12))
    parts += _list(shown, len(transitions), left, 96)
    lowest = max(frame.y + frame.height, *(d.view.frame.y + d.view.frame.height for d in details), 0.0)
    height = max(lowest, 96.0 + 26 + 19 * len(shown)) + 20
    return document(left + 410, height, "A track and its transitions", parts)


class _Detail(NamedTuple):
    """A map of one store: its letter on the large map, and the transitions that it shows."""

    letter: str
    title: str
    view: View
    #: Where it lies on the large map.
    spot: Rect
    numbers: Sequence[int]


def _details(track: _Track, view: View, sites: Sequence[Site]) -> list[_Detail]:
    found: list[_Detail] = []
    for store in dict.fromkeys(transition.fence.store for transition in track.transitions):
        within = [
            site for site in sites if site.fence.store == store and site.fence.kind not in ("vicinity", "product")
        ]
        if not within or len(found) == _MOST_DETAILS:
            continue
        rings = np.vstack([ring for site in within for ring in site.rings()])
        frame = Rect(20, 20 + _HEIGHT + 40 + len(found) * (_DETAIL_HEIGHT + 40), _WIDTH, _DETAIL_HEIGHT)
        close = View.of(rings, frame, room=0.15)
        house_x, house_y, house_width, house_height = _box(view.pixels(rings))
        width, height = (side * view.scale / close.scale for side in (frame.width, frame.height))
        spot = Rect(house_x + (house_width - width) / 2, house_y + (house_height - height) / 2, width, height)
        marked = close.pixels(track.positions[list(track.places)])
        numbers = [number for number, (x, y) in enumerate(marked.tolist()) if frame.holds(Rect(x, y, 0, 0))]
        if len(numbers) >= _CROWD and max(house_width, house_height) < _LARGE_PIXELS:
            house = next((site.fence for site in within if site.fence.kind == "store"), within[0].fence)
            found.append(_Detail("ABCD"[len(found)], house.name or house.id, close, spot, numbers))
    return found


def _map(
    name: str, track: _Track, view: View, sites: Sequence[Site], numbers: Sequence[int], details: Sequence[_Detail] = ()
) -> Iterator[str]:
    """One map: fences, the way, and labels of the transitions with these numbers."""
    seen = [site for site in sites if is_seen(site, view)]
    labels = Labels(view.frame, furniture_of(view.frame))
    # Marks come first: without a name, a fence is still there to be seen.
    frames = [part for detail in details for part in _frame(detail, labels)]
    marks = [*_marks(track, view, numbers, labels)]
    large = [site for site in seen if not any(detail.spot.holds(_spot(site, view)) for detail in details)]
    yield from clip(name, view.frame)
    yield element("g", "".join((*_backdrop(seen, view), *_line(track, view))), clip_path=f"url(#{name})")
    yield from names_of(large, view, labels)
    yield from frames
    yield from marks
    yield from border(view.frame)
    yield from scale_bar(view)
    yield from north_arrow(view)


def _frame(detail: _Detail, labels: Labels) -> Iterator[str]:
    spot = detail.spot
    labels.reserve(spot)
    yield element("rect", **spot._asdict(), fill="none", stroke="#222", stroke_width=1.2, stroke_dasharray="4 3")
    yield words(detail.letter, spot.x + 4, spot.y - 4, font_size=14, font_weight="bold")


def _spot(site: Site, view: View) -> Rect:
    return _box(np.vstack([view.pixels(ring) for ring in site.rings()]))


def _box(pixels: Floats) -> Rect:
    low, high = pixels.min(axis=0).tolist(), pixels.max(axis=0).tolist()
    return Rect(low[0], low[1], high[0] - low[0], high[1] - low[1])


def _backdrop(sites: Sequence[Site], view: View) -> Iterator[str]:
    dots = []
    for site in outer_first(sites):
        if not is_dot(site, view):
            yield from outline_of(site, view, fill_opacity=0.07)
        elif site.fence.kind != "product":
            dots.append(site)
    yield from dots_of(dots, view)


def _line(track: _Track, view: View) -> Iterator[str]:
    """The way, cut where its colour changes."""
    points, pixels = track.points, view.pixels(track.positions)
    stride = -(-len(pixels) // _MOST_POINTS)
    kept = [*range(0, len(pixels) - 1, stride), len(pixels) - 1]
    steps = [_step_of(points[place].at_ms, points) for place in kept]
    begin = 0
    for end in range(1, len(kept)):
        if end == len(kept) - 1 or steps[end] != steps[begin]:
            yield element(
                "path",
                d=outline([pixels[kept[begin : end + 1]]], closed=False),
                fill="none",
                stroke=_time_colour(steps[begin] / _TIME_STEPS),
                stroke_width=2.2,
                stroke_linejoin="round",
                stroke_linecap="round",
            )
            begin = end
    if len(pixels) <= _MOST_DOTS:
        for place, (x, y) in enumerate(pixels.tolist()):
            step = _step_of(points[place].at_ms, points)
            yield element("circle", cx=x, cy=y, r=2.0, fill=_time_colour(step / _TIME_STEPS))


def _marks(track: _Track, view: View, numbers: Sequence[int], labels: Labels) -> Iterator[str]:
    """A numbered label for each place where something happened, tied to its place on the way."""
    by_place: dict[int, list[int]] = {}
    for number in numbers:
        by_place.setdefault(track.places[number], []).append(number)
    spots = {place: view.pixels(track.positions[[place]])[0].tolist() for place in sorted(by_place)}
    for x, y in spots.values():
        labels.reserve(Rect(x - 5, y - 5, 10, 10))
    ties, circles, badges = [], [], []
    for place, (x, y) in spots.items():
        text = _numbers(by_place[place])
        colours = {_TRANSITION_COLOURS[track.transitions[number].kind] for number in by_place[place]}
        colour = colours.pop() if len(colours) == 1 else "#333"
        circles.append(element("circle", cx=x, cy=y, r=4.5, fill="#fff", stroke=colour, stroke_width=2.2))
        spot = labels.place(x, y, width_of(text, 11) + 9, 16)
        if spot is None:
            continue
        middle_x, middle_y = spot.x + spot.width / 2, spot.y + spot.height / 2
        ties.append(element("line", x1=x, y1=y, x2=middle_x, y2=middle_y, stroke=colour, stroke_width=1.2))
        badges.append(element("rect", **spot._asdict(), rx=8, fill=colour, stroke="#fff"))
        badges.append(
            words(text, middle_x, spot.y + 12, text_anchor="middle", font_size=11, font_weight=600, fill="#fff")
        )
    yield from (*ties, *circles, *badges)


def _list(told: Sequence[Transition], all_of_them: int, x: float, y: float) -> Iterator[str]:
    title = f"{all_of_them} transitions" + (f", the first {len(told)}" if all_of_them > len(told) else "")
    yield words(title, x, y, font_size=14, font_weight="bold")
    for number, transition in enumerate(told):
        base = y + 26 + 19 * number
        colour = _TRANSITION_COLOURS[transition.kind]
        name = shortened(transition.fence.name or transition.fence.id, NAME_LETTERS)
        reason = f", {transition.reason}" if transition.reason else ""
        yield element("rect", x=x, y=base - 12, width=24, height=16, rx=8, fill=colour)
        yield words(str(number + 1), x + 12, base, text_anchor="middle", font_size=11, font_weight=600, fill="#fff")
        yield words(_clock(transition.at_ms), x + 32, base)
        yield words(transition.kind, x + 92, base, fill=colour, font_weight=600)
        yield words(f"{name} ({transition.confidence:.2f}{reason})", x + 154, base)


def _time_bar(points: Sequence[TrackPoint], frame: Rect) -> Iterator[str]:
    first, last = min(point.at_ms for point in points), max(point.at_ms for point in points)
    step = frame.width / _TIME_STEPS
    for number in range(_TIME_STEPS):
        yield element(
            "rect", x=frame.x + number * step, y=frame.y, width=step + 0.5, height=frame.height,
            fill=_time_colour(number / _TIME_STEPS),
        )  # fmt: skip
    day = datetime.fromtimestamp(first / 1000, tz=UTC)
    yield words(f"{day:%Y-%m-%d} {_clock(first)} UTC", frame.x, frame.y - 6)
    yield words(_clock(last), frame.x + frame.width, frame.y - 6, text_anchor="end")


def _numbers(numbers: Sequence[int]) -> str:
    """How a reader counts them: "3", "3-5", "3,9"."""
    shown = [number + 1 for number in numbers]
    if len(shown) > 2 and shown[-1] - shown[0] == len(shown) - 1:
        return f"{shown[0]}-{shown[-1]}"
    return ",".join(map(str, shown[:4])) + ("…" if len(shown) > 4 else "")


def _step_of(at_ms: int, points: Sequence[TrackPoint]) -> int:
    first, last = points[0].at_ms, points[-1].at_ms
    if last <= first:
        return 0
    return min(max(int((at_ms - first) / (last - first) * _TIME_STEPS), 0), _TIME_STEPS - 1)


def _time_colour(share: float) -> str:
    start, end = (_FIRST_COLOUR, _MIDDLE_COLOUR) if share < 0.5 else (_MIDDLE_COLOUR, _LAST_COLOUR)
    along = share * 2 % 1
    return "#" + "".join(f"{round(a + (b - a) * along):02x}" for a, b in zip(start, end, strict=True))


def _clock(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, tz=UTC):%H:%M:%S}"
