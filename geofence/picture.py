"""Pictures of fences with the H3 cells that stand for them, as SVG.

They hold the outlines and names they were given, and nothing else: no map is fetched, no font, no script.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from geofence import cover
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
from geofence.maps import COLOURS, border, clip, dots_of, is_dot, names_of, outer_first, outline_of, shells_and_holes
from geofence.survey import Site


class Panel(NamedTuple):
    """One map of several in a picture: fences with their cells, and outlines of others among them."""

    title: str
    covered: Sequence[Site]
    outlined: Sequence[Site] = ()


def panels_of(title: str, sites: Sequence[Site]) -> list[Panel]:
    """The maps of one store: its surroundings and, if there is more, what is within."""
    around = [site for site in sites if site.fence.kind == "vicinity"]
    within = [site for site in sites if site.fence.kind != "vicinity"]
    if not around or not within:
        return [Panel(title, sites)]
    houses = [site for site in within if site.fence.kind == "store"]
    return [Panel(f"{title}, around", around, houses or within), Panel(f"{title}, within", within)]


def cover_picture(rows: Sequence[Sequence[Panel]]) -> str:
    """Fences and their covers, one map a panel: sure cells filled, boundary cells hatched."""
    columns = max(map(len, rows))
    if columns == 1 and len(rows) > 1:
        columns, rows = 2, [[panel for row in rows[n : n + 2] for panel in row] for n in range(0, len(rows), 2)]
    width, height = (900.0, 680.0) if columns == 1 and len(rows) == 1 else (560.0, 460.0)
    parts = [element("defs", "".join(_hatches()))]
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            x, y = 20 + column * (width + 20), 20 + row * (height + 44)
            parts.append(words(shortened(panel.title, 70), x, y + 12, font_size=15, font_weight="bold"))
            parts += _panel(panel, Rect(x, y + 22, width, height), f"panel-{row}-{column}")
    bottom = 20 + len(rows) * (height + 44)
    parts += _legend([site for panels in rows for panel in panels for site in panel.covered], 20, bottom + 4)
    return document(20 + columns * (width + 20), bottom + 34, "Fences and their H3 cells", parts)


def _panel(panel: Panel, frame: Rect, name: str) -> Iterator[str]:
    everything = outer_first([*panel.covered, *panel.outlined])
    view = View.of(np.vstack([ring for site in everything for ring in site.rings()]), frame, room=0.05)
    dots = [site for site in everything if is_dot(site, view)]
    large = [site for site in everything if not is_dot(site, view)]
    covered = {site.fence.id for site in panel.covered}
    inner = [part for site in large if site.fence.id in covered for part in _cells(site, view)]
    inner += [part for site in large for part in outline_of(site, view)]
    inner += dots_of(dots, view)
    yield from clip(name, frame)
    yield element("g", "".join(inner), clip_path=f"url(#{name})")
    yield from names_of(large, view, Labels(frame, furniture_of(frame)))
    yield from border(frame)
    yield from scale_bar(view)
    yield from north_arrow(view)


def _cells(site: Site, view: View) -> Iterator[str]:
    colour = COLOURS[site.fence.kind]
    for sure in (True, False):
        corners = [np.array(cover.outline(cell))[:, ::-1] for cell in site.cells if cell.sure is sure]
        if corners:
            yield element(
                "path",
                d=outline(view.pixels(ring) for ring in corners),
                fill=colour if sure else f"url(#hatch-{site.fence.kind})",
                fill_opacity=0.22 if sure else 1,
                stroke=colour,
                stroke_width=0.5,
                stroke_opacity=0.6,
            )


def _legend(sites: Iterable[Site], x: float, y: float) -> Iterator[str]:
    there = list(sites)
    blue = COLOURS["store"]
    entries: list[tuple[str, dict[str, object]]] = [
        (kind, {"fill": "none", "stroke": colour, "stroke_width": 2})
        for kind, colour in COLOURS.items()
        if any(site.fence.kind == kind for site in there)
    ]
    entries.append(("sure cell: inside, no test", {"fill": blue, "fill_opacity": 0.22, "stroke": blue}))
    entries.append(("boundary cell: exact test", {"fill": "url(#hatch-store)", "stroke": blue}))
    if any(shells_and_holes(site)[1] for site in there):
        entries.append(("hole", {"fill": "none", "stroke": "#222", "stroke_width": 2, "stroke_dasharray": "5 3"}))
    for text, look in entries:
        yield element("rect", None, x=x, y=y, width=18, height=13, **look)
        yield words(text, x + 24, y + 11)
        x += 24 + width_of(text, 12) + 20


def _hatches() -> Iterator[str]:
    # Each kind at an angle of its own: cells of fences in fences lie on each other.
    turns = dict(zip(COLOURS, (45, -45, 15, 75, 0), strict=True))
    for kind, colour in COLOURS.items():
        line = element("path", d="M0 0V5", stroke=colour, stroke_width=1.1, stroke_opacity=0.55)
        yield element(
            "pattern", line, id=f"hatch-{kind}", width=5, height=5, patternUnits="userSpaceOnUse",
            patternTransform=f"rotate({turns[kind]})",
        )  # fmt: skip
