"""The plot of `bench.latency`, as SVG."""

from collections.abc import Sequence

import numpy as np

from bench.tracks import Floats
from geofence.drawing import Rect, document, element, words

_FRAME = Rect(96, 56, 560, 260)
_BAR, _WHISKER, _AXIS, _GRID = "#0b6e4f", "#c2410c", "#6b7280", "#e5e7eb"
_TICKS = 6


def waterfall(title: str, stages: Sequence[str], times_ms: Floats) -> str:
    """A row for each stage: a bar for its mean where the means before it end, and a line to its 99th percentile.

    Means, since these add up. `times_ms` has a row for each push: when it began, and when each stage of it ended.
    """
    lengths = np.diff(times_ms, axis=1)
    means, p99 = lengths.mean(axis=0), np.percentile(lengths, 99, axis=0)
    whole = times_ms[:, -1] - times_ms[:, 0]
    starts = np.append(0.0, np.cumsum(means)[:-1])
    reach = max(float((starts + p99).max()), float(np.percentile(whole, 99)))
    step = _round_step(reach / _TICKS)
    scale = _FRAME.width / (step * np.ceil(reach / step))
    floor = _FRAME.y + _FRAME.height
    parts = [words(title, 16, 22, font_size=14, font_weight=600)]
    parts.append(words("bar: mean; line: to the 99th percentile", 16, 40, font_size=11))
    for tick in np.arange(0, reach + step, step).tolist():
        x = _FRAME.x + tick * scale
        parts.append(element("path", d=f"M{x:.1f} {_FRAME.y}v{_FRAME.height}", stroke=_GRID))
        parts.append(words(f"{tick:g}", x, floor + 16, text_anchor="middle", font_size=10))
    parts.append(words("ms", _FRAME.x + _FRAME.width / 2, floor + 34, text_anchor="middle"))
    rows = [*zip(stages, starts, means, p99, strict=True), ("in all", 0.0, whole.mean(), np.percentile(whole, 99))]
    tall = _FRAME.height / len(rows)
    for number, (name, start, mean, most) in enumerate(rows):
        x, middle = _FRAME.x + start * scale, _FRAME.y + tall * (number + 0.5)
        parts.append(words(name, _FRAME.x - 8, middle + 4, text_anchor="end", font_size=11))
        parts.append(
            element("rect", x=x, y=middle - tall * 0.3, width=max(mean * scale, 1.0), height=tall * 0.6, fill=_BAR)
        )
        line = f"M{x:.1f} {middle:.1f}h{most * scale:.1f}m0 -4v8"
        parts.append(element("path", d=line, stroke=_WHISKER, stroke_width=1.5, fill="none"))
        label = f"{mean:.1f} / {most:.1f}"
        parts.append(words(label, x + max(most, mean) * scale + 5, middle + 4, font_size=10))
    parts.append(element("path", d=f"M{_FRAME.x} {_FRAME.y}v{_FRAME.height}h{_FRAME.width}", fill="none", stroke=_AXIS))
    return document(_FRAME.x + _FRAME.width + 90, floor + 48, title, parts)


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(max(least, 1e-6)))
    return float(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least))
