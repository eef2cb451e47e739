"""Fences on a map: their outlines, names and dots, for all pictures alike."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from geofence.drawing import Labels, Rect, View, element, outline, shortened, width_of, words
from geofence.shapes import Disc
from geofence.sphere import Floats
from geofence.survey import Site

#: By kind of fence, from the outside in; told apart with any eyes (Okabe and Ito).
COLOURS = {
    "vicinity": "#6f7682",
    "store": "#0072b2",
    "department": "#009e73",
    "shelf": "#d55e00",
    "product": "#cc4399",
}
#: With fewer pixels from middle to edge, a fence is a dot.
_LEAST_PIXELS = 5.0
NAME_LETTERS = 28


def outline_of(site: Site, view: View, *, fill_opacity: float = 0.0) -> Iterator[str]:
    colour = COLOURS[site.fence.kind]
    shells, holes = shells_and_holes(site)
    everything = outline(view.pixels(ring) for ring in (*shells, *holes))
    if fill_opacity:
        yield element("path", d=everything, fill=colour, fill_opacity=fill_opacity, fill_rule="evenodd")
    yield element("path", d=outline(map(view.pixels, shells)), fill="none", stroke=colour, stroke_width=2)
    if holes:
        dashes = "5 3"
        yield element(
            "path",
            d=outline(map(view.pixels, holes)),
            fill="none",
            stroke=colour,
            stroke_width=2,
            stroke_dasharray=dashes,
        )


def shells_and_holes(site: Site) -> tuple[list[Floats], list[Floats]]:
    rings = site.rings()
    if isinstance(site.shape, Disc):
        return rings, []
    # A hole runs inside of the shell before it; shapely gives the shell of each part first.
    shells, holes = [], []
    remaining = iter(rings)
    for part in getattr(site.shape.geometry, "geoms", [site.shape.geometry]):
        shells.append(next(remaining))
        holes += [next(remaining) for _ in part.interiors]
    return shells, holes


def dots_of(sites: Iterable[Site], view: View) -> Iterator[str]:
    for site in sites:
        x, y = view.pixels(site.rings()[0]).mean(axis=0)
        radius = max(site.shape.reach_m * view.scale, 1.8)
        yield element("circle", cx=x, cy=y, r=radius, fill=COLOURS[site.fence.kind], fill_opacity=0.85)


def names_of(sites: Sequence[Site], view: View, labels: Labels) -> Iterator[str]:
    """The fences' names where there is room for them: at the upper edge inside, or beside it."""
    for site in sorted(sites, key=lambda site: -site.shape.reach_m):
        if is_dot(site, view):
            continue
        text = shortened(site.fence.name or site.fence.id, NAME_LETTERS)
        width = width_of(text, 12) + 8
        pixels = np.vstack([view.pixels(ring) for ring in site.rings()])
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        box = Rect(float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))
        if box.holds(view.frame):
            # All around: a name in the middle of it would seem to be something else's.
            continue
        middle = float(low[0] + high[0]) / 2 - width / 2
        for y in (float(low[1]) + 4, float(low[1] + high[1]) / 2 - 8, float(high[1]) - 20, float(low[1]) - 20):
            spot = Rect(middle, y, width, 16)
            if labels.take(spot):
                yield element("rect", x=spot.x, y=spot.y, width=width, height=16, rx=3, fill="#fff", fill_opacity=0.78)
                colour = COLOURS[site.fence.kind]
                yield words(text, spot.x + width / 2, spot.y + 12, text_anchor="middle", fill=colour, font_weight=600)
                break


def outer_first(sites: Iterable[Site]) -> list[Site]:
    return sorted(sites, key=lambda site: (list(COLOURS).index(site.fence.kind), -site.shape.reach_m))


def is_dot(site: Site, view: View) -> bool:
    """There may be thousands of products: they are dots, large or small, without a name."""
    return site.fence.kind == "product" or site.shape.reach_m * view.scale < _LEAST_PIXELS


def is_seen(site: Site, view: View) -> bool:
    pixels = np.vstack([view.pixels(ring) for ring in site.rings()])
    low, high = pixels.min(axis=0).tolist(), pixels.max(axis=0).tolist()
    return view.frame.overlaps(Rect(low[0], low[1], high[0] - low[0], high[1] - low[1]))


def clip(name: str, frame: Rect) -> Iterator[str]:
    yield element("clipPath", element("rect", **frame._asdict()), id=name)
    yield element("rect", **frame._asdict(), fill="#f8f8f6")


def border(frame: Rect) -> Iterator[str]:
    yield element("rect", **frame._asdict(), fill="none", stroke="#999")
