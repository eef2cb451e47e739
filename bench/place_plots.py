"""The plots of `bench.place`, as SVG."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bench.place_score import Report
from bench.recorded import Recorded
from bench.tracks import Floats
from geofence.drawing import Rect, View, document, element, north_arrow, outline, scale_bar, words

COLOURS = {"nearcast": "#0b6e4f", "raw": "#c2410c", "dwell-only": "#6b7280"}
_FRAME = Rect(64, 48, 560, 232)
_HEIGHT = 346
#: The narrowest group of bars.
_GROUP = 74


def bars(title: str, axis: str, groups: Mapping[str, Mapping[str, float]], *, scale: str = "linear") -> str:
    """A group of bars, one for each system. `scale` "log": from 0.5 to the next power of ten; 0 is drawn as a line."""
    frame = _FRAME._replace(width=max(_FRAME.width, _GROUP * len(groups)))
    most = max((value for group in groups.values() for value in group.values()), default=1.0)
    if scale == "log":
        top = 10.0 ** math.ceil(math.log10(max(most, 10)))
        ticks = [10.0**power for power in range(round(math.log10(top)) + 1)]
    else:
        top, ticks = 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]

    def height(value: float) -> float:
        if scale == "log":
            return frame.height * max(0.0, math.log(value / 0.5) / math.log(top / 0.5)) if value > 0 else 0.0
        return frame.height * value / top

    parts = _furniture(frame, title, axis, list(COLOURS))
    parts += _ticks_left(frame, {f"{tick:g}": height(tick) for tick in ticks})
    room = frame.width / max(len(groups), 1)
    wide = room * 0.8 / len(COLOURS)
    floor = frame.y + frame.height
    for place, (name, group) in enumerate(groups.items()):
        left = frame.x + room * (place + 0.1)
        for number, (system, colour) in enumerate(COLOURS.items()):
            if system in group:
                tall = max(height(group[system]), 1.5)
                parts.append(
                    element("rect", x=left + number * wide, y=floor - tall, width=wide - 1, height=tall, fill=colour)
                )
        for line, text in enumerate(name.split("\n")):
            parts.append(words(text, left + room * 0.4, floor + 16 + 13 * line, text_anchor="middle", font_size=10))
    return document(frame.width + 80, _HEIGHT, title, parts)


def shares(title: str, axis: str, values: Mapping[str, Sequence[float]], low: float, high: float) -> str:
    """For each system the share of its values up to each one: how delays are spread."""
    parts = _furniture(_FRAME, title, "share", list(values))
    parts += _ticks_left(_FRAME, {f"{tick:g}": _FRAME.height * tick for tick in (0, 0.25, 0.5, 0.75, 1)})
    floor = _FRAME.y + _FRAME.height
    for tick in np.linspace(low, high, 7).tolist():
        x = _FRAME.x + _FRAME.width * (tick - low) / (high - low)
        parts.append(words(f"{tick:g}", x, floor + 16, text_anchor="middle", font_size=10))
    parts.append(words(axis, _FRAME.x + _FRAME.width / 2, floor + 34, text_anchor="middle"))
    for system, own in values.items():
        if not own:
            continue
        ranked = np.sort(np.array(own))
        up = np.arange(1, len(ranked) + 1) / len(ranked)
        x = _FRAME.x + _FRAME.width * np.clip((ranked - low) / (high - low), 0, 1)
        # A step up at each value.
        steps: Floats = np.column_stack((np.repeat(x, 2), floor - _FRAME.height * np.repeat(np.append(0, up), 2)[1:-1]))
        parts.append(
            element("path", d=outline([steps], closed=False), fill="none", stroke=COLOURS[system], stroke_width=2)
        )
    return document(_FRAME.width + 80, _HEIGHT, title, parts)


def trust(title: str, classes: Mapping[float, tuple[int, int]]) -> str:
    """How often reports of each class of confidence were right, beside how often they claim to be."""
    parts = _furniture(_FRAME, title, "share that was right", [])
    parts += _ticks_left(_FRAME, {f"{tick:g}": _FRAME.height * tick for tick in (0, 0.25, 0.5, 0.75, 1)})
    floor, room = _FRAME.y + _FRAME.height, _FRAME.width / len(classes)
    before = 0.0
    for place, (level, (right, of)) in enumerate(sorted(classes.items())):
        left = _FRAME.x + room * (place + 0.15)
        tall = _FRAME.height * right / of
        parts.append(
            element("rect", x=left, y=floor - tall, width=room * 0.7, height=max(tall, 1.5), fill=COLOURS["nearcast"])
        )
        for bound in (before, level):
            y = floor - _FRAME.height * bound
            parts.append(element("path", d=f"M{left - 6:.1f} {y:.1f}h{room * 0.7 + 12:.1f}", stroke="#222"))
        label = f"{before:g} to {level:g}"
        parts.append(words(label, left + room * 0.35, floor + 16, text_anchor="middle", font_size=10))
        parts.append(words(f"{of} reports", left + room * 0.35, floor + 30, text_anchor="middle", font_size=10))
        before = level
    middle = _FRAME.x + _FRAME.width / 2
    parts.append(words("confidence (the lines: what it claims)", middle, floor + 48, text_anchor="middle"))
    return document(_FRAME.width + 80, _HEIGHT, title, parts)


def recorded(title: str, track: Recorded, fence: str, told: Mapping[str, Sequence[Report]], around_m: float) -> str:
    """The track near one fence, a panel for each system: enters filled, exits open."""
    degrees = {one.id: one for one in track.fences()}[fence].geometry
    ring = np.array(degrees.coordinates[0])  # type: ignore[union-attr]  # they are all polygons
    low, high = ring.min(axis=0), ring.max(axis=0)
    lng_m = 111_195 * math.cos(math.radians(float(low[1])))
    margin = np.array([around_m / lng_m, around_m / 111_195])
    window = np.array([low - margin, high + margin])
    points = np.array([(point.lng, point.lat) for point in track.points])
    seconds = np.array([point.at_ms - track.points[0].at_ms for point in track.points]) / 1000
    # The legs that come near the panel; the clip path cuts off the rest of them.
    near = ((points > window[0] - 5 * margin) & (points < window[1] + 5 * margin)).all(axis=1)
    runs = np.flatnonzero(np.diff(near.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    legs = [points[first:end] for first, end in runs.tolist()]
    parts = [words(title, 16, 24, font_size=15, font_weight=600)]
    for number, (system, reports) in enumerate(told.items()):
        frame = Rect(16 + number * 310, 56, 296, 300)
        view = View.of(window, frame, room=0)
        name = f"panel{number}"
        parts.append(
            element("clipPath", element("rect", x=frame.x, y=frame.y, width=frame.width, height=frame.height), id=name)
        )
        own = [report for report in reports if report.fence == fence and report.kind in ("enter", "exit")]
        enters = sum(report.kind == "enter" for report in own)
        parts.append(
            words(
                f"{system}: {enters} enters, {len(own) - enters} exits", frame.x, 48, fill=COLOURS[system], font_size=13
            )
        )
        drawn = [
            element("path", d=outline([view.pixels(ring)]), fill="#dbeafe", stroke="#1d4ed8"),
            element("path", d=outline(map(view.pixels, legs), closed=False), fill="none", stroke="#9ca3af"),
        ]
        for report in own:
            at = view.pixels(points[[int(np.argmin(np.abs(seconds - report.at_s)))]])[0]
            fill = COLOURS[system] if report.kind == "enter" else "#fff"
            drawn.append(
                element(
                    "circle", cx=float(at[0]), cy=float(at[1]), r=5, fill=fill, stroke=COLOURS[system], stroke_width=2
                )
            )
        parts.append(element("g", "".join(drawn), clip_path=f"url(#{name})"))
        parts.append(
            element("rect", x=frame.x, y=frame.y, width=frame.width, height=frame.height, fill="none", stroke="#d1d5db")
        )
        parts += [*scale_bar(view), *north_arrow(view)]
    parts.append(words("filled: enter; open: exit; grey: the track", 16, 376, font_size=11))
    return document(32 + 310 * len(told) - 14, 388, title, parts)


def _furniture(frame: Rect, title: str, axis: str, systems: Sequence[str]) -> list[str]:
    parts = [words(title, 16, 22, font_size=14, font_weight=600)]
    parts.append(element("path", d=f"M{frame.x} {frame.y}v{frame.height}h{frame.width}", fill="none", stroke="#6b7280"))
    middle = frame.y + frame.height / 2
    parts.append(words(axis, 16, middle, transform=f"rotate(-90 16 {middle:g})", text_anchor="middle"))
    for number, system in enumerate(systems):
        x = frame.x + frame.width - 90 * (len(systems) - number)
        parts.append(element("rect", x=x, y=30, width=10, height=10, fill=COLOURS[system]))
        parts.append(words(system, x + 14, 39, font_size=11))
    return parts


def _ticks_left(frame: Rect, heights: Mapping[str, float]) -> list[str]:
    parts = []
    for text, height in heights.items():
        y = frame.y + frame.height - height
        parts.append(element("path", d=f"M{frame.x} {y:.1f}h{frame.width}", stroke="#e5e7eb"))
        parts.append(words(text, frame.x - 6, y + 4, text_anchor="end", font_size=10))
    return parts
