"""Pictures are well-formed SVG, true to scale, and their labels don't lie on each other.

They are read back with an XML parser and measured in pixels.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
from h3.api import basic_int as h3  # type: ignore[import-untyped]  # it ships no types
from hypothesis import given
from hypothesis import strategies as st

from geofence import cover
from geofence.drawing import Flat, Labels, Rect, View, element, words
from geofence.picture import Panel, cover_picture, panels_of
from geofence.survey import Site, compile_site
from geofence.track_picture import track_picture
from geofence.tracks import TrackPoint
from nearcast.moments import Transition
from nearcast.world import Circle, Fence, Polygon
from tests.geofence import places

LAT, LNG = 48.2, 16.37
START_MS = 1_777_636_800_000
SVG = "{http://www.w3.org/2000/svg}"
UGLY = '</text><script>alert("1")</script>&amp;\x00\x0b\ud800\ufffe]]>'

spots = st.tuples(st.floats(-89.99, 89.99), st.floats(-180, 180))


def shown(picture: str) -> Xml.Element:
    """The picture as a reader's XML parser sees it."""
    return Xml.fromstring(picture.encode())


def texts(root: Xml.Element) -> list[str]:
    return [node.text or "" for node in root.iter(f"{SVG}text")]


def sites(*fences: Fence) -> list[Site]:
    return [compile_site(each) for each in fences]


def shop(name: str = "Shop", store: str = "s1", east_m: float = 0.0) -> list[Fence]:
    """A vicinity, a house with a yard, and a department."""
    lat, lng = places.shifted(LAT, LNG, 0, east_m)
    shell, hole = places.square(lat, lng, 20).coordinates[0], places.square(lat, lng, 5).coordinates[0]
    department = places.square(*places.shifted(lat, lng, 12, 12), 6)
    return [
        Fence(id=f"{store}/around", store=store, kind="vicinity", geometry=Circle((lng, lat), 120.0)),
        Fence(id=f"{store}/house", store=store, kind="store", name=name, geometry=Polygon([shell, hole])),
        Fence(id=f"{store}/food", store=store, kind="department", geometry=department),
        Fence(id=f"{store}/tea", store=store, kind="product", sku="tea", geometry=Circle((lng, lat), 0.9)),
    ]


def walk(count: int, step_m: float = 2.0) -> list[TrackPoint]:
    """From the west through the shop to the east."""
    return [
        TrackPoint(START_MS + 1000 * n, *places.shifted(LAT, LNG, 0, (n - count / 2) * step_m)) for n in range(count)
    ]


def transitions(fence: Fence, *at_s: int) -> list[Transition]:
    return [Transition("enter", fence, START_MS + 1000 * second, 0.75) for second in at_s]


def badges(root: Xml.Element) -> list[Rect]:
    """The places of numbered labels and names: rectangles with round corners, but for those of the list."""
    return [rect for rect in _rects(root) if rect.x < 840]


def _rects(root: Xml.Element) -> Iterator[Rect]:
    for node in root.iter(f"{SVG}rect"):
        if "rx" in node.attrib:
            yield Rect(*(float(node.attrib[name]) for name in ("x", "y", "width", "height")))


@given(spots, spots)
def test_the_plane_is_true_from_its_middle(middle: tuple[float, float], other: tuple[float, float]) -> None:
    """In distance, whatever lies between: a pole, the antimeridian; and in direction, so that north is up."""
    east, north = Flat(*middle).metres(np.array([[other[1], other[0]]]))[0].tolist()
    apart_m = places.metres_between(*middle, *other)
    assert math.hypot(east, north) == pytest.approx(apart_m, rel=1e-6, abs=1e-3)
    nearby = Flat(*middle).metres(np.array([[middle[1], middle[0] + 1e-4]]))[0]
    assert nearby.tolist() == pytest.approx([0, 1e-4 * math.radians(places.EARTH_RADIUS_M)], abs=1e-3)


@given(st.lists(spots, min_size=1, max_size=8))
def test_a_view_holds_its_points(points: list[tuple[float, float]]) -> None:
    """All within the frame, with the same scale both ways."""
    near = np.array([(points[0][1] + lng / 1e4, max(min(points[0][0] + lat / 1e4, 90), -90)) for lat, lng in points])
    pixels = View.of(near, Rect(10, 20, 300, 200)).pixels(near)
    assert (pixels >= (10, 20)).all()
    assert (pixels <= (310, 220)).all()


rects = st.builds(Rect, st.floats(0, 250), st.floats(0, 150), st.floats(1, 60), st.floats(1, 20))


@given(st.lists(rects, max_size=5), st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), max_size=25))
def test_labels_never_overlap(taken: list[Rect], wanted: list[tuple[float, float]]) -> None:
    """Not each other, nor what was there before; and they stay in the frame."""
    frame = Rect(0, 0, 300, 200)
    labels = Labels(frame, taken)
    placed = [spot for x, y in wanted if (spot := labels.place(x, y, 40, 14))]
    for number, spot in enumerate(placed):
        assert frame.holds(spot)
        assert not any(spot.overlaps(other) for other in (*taken, *placed[:number]))


def test_a_label_that_finds_no_room_is_left_out() -> None:
    """Rather than laid on another."""
    labels = Labels(Rect(0, 0, 100, 100), [Rect(0, 0, 100, 100)])
    assert labels.place(50, 50, 10, 10) is None


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_well_formed(text: str, value: str) -> None:
    """In an element and in an attribute; what XML can carry comes back as it was."""
    root = Xml.fromstring(element("g", words(text, 1, 2), data_x=value.replace("\x00", "")) if _fits(value) else "<g/>")
    for node in root.iter("text"):
        assert re.sub("\N{REPLACEMENT CHARACTER}", "", node.text or "") in (
            re.sub("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\ufffd]", "", text)
        )


def _fits(text: str) -> bool:
    return all(letter.isprintable() for letter in text)


def test_names_can_not_break_a_picture() -> None:
    """Nor bring anything into it: they come from files."""
    fences = shop(name=UGLY)
    panels = [[Panel(UGLY, sites(*fences))]]
    track = track_picture(walk(40), transitions(fences[1], 3, 20), sites(*fences))
    for root in (shown(cover_picture(panels)), shown(track)):
        assert {node.tag.removeprefix(SVG) for node in root.iter()} <= {
            "svg", "g", "title", "rect", "path", "circle", "line", "text", "defs", "pattern", "clipPath",
        }  # fmt: skip
        assert any(text.startswith("</text><script>") for text in texts(root))


@given(spots, st.integers(0, 13))
def test_outlines_of_cells_are_those_of_h3(spot: tuple[float, float], resolution: int) -> None:
    """For every resolution: what is drawn is the cell that matches."""
    keys = cover.ancestors(cover.finest_keys(np.array([spot[0]]), np.array([spot[1]])), resolution)
    drawn = cover.outline(cover.Cell(resolution, int(keys[0]), sure=True))
    parent = h3.cell_to_parent(h3.latlng_to_cell(*spot, 13), resolution)
    assert drawn == list(h3.cell_to_boundary(parent))


def test_every_cell_is_drawn() -> None:
    """Sure ones filled, boundary ones hatched; holes dashed."""
    (site,) = sites(shop()[1])
    root = shown(cover_picture([[Panel("x", [site])]]))
    paths = [node.attrib for node in root.iter(f"{SVG}path")]
    hatched = [each["d"] for each in paths if each.get("fill") == "url(#hatch-store)"]
    filled = [each["d"] for each in paths if each.get("fill-opacity") == "0.22"]
    assert [sum(d.count("M") for d in each) for each in (filled, hatched)] == [
        sum(cell.sure for cell in site.cells),
        sum(not cell.sure for cell in site.cells),
    ]
    (hole,) = [each["d"] for each in paths if each.get("stroke-dasharray") and each["fill"] == "none"]
    assert hole.count("M") == 1
    assert {"store", "hole", "sure cell: inside, no test", "N"} <= set(texts(root))


def test_the_scale_bar_is_true() -> None:
    """As long as what it says, measured on a square of known size beside it."""
    root = shown(
        cover_picture(
            [[Panel("x", sites(Fence(id="f", store="s", kind="store", geometry=places.square(LAT, LNG, 50))))]]
        )
    )
    (text,) = [text for text in texts(root) if text.endswith(" m")]
    bar = next(node.attrib["d"] for node in root.iter(f"{SVG}path") if "H" in node.attrib["d"])
    start, end = (float(number) for number in re.findall(r"M([\d.]+) .*H([\d.]+)", bar)[0])
    outline = next(node.attrib["d"] for node in root.iter(f"{SVG}path") if node.attrib.get("stroke-width") == "2")
    side = max(abs(float(x)) for x, _ in re.findall(r"l([-\d.]+) ([-\d.]+)", outline))
    assert (end - start) / float(text.split()[0]) == pytest.approx(side / 100, rel=0.01)


def test_one_store_has_its_surroundings_and_its_inside() -> None:
    """Two maps, if there is something within a vicinity; else one."""
    everything = sites(*shop())
    assert [panel.title for panel in panels_of("S", everything)] == ["S, around", "S, within"]
    assert [panel.title for panel in panels_of("S", everything[1:])] == ["S"]
    assert [panel.title for panel in panels_of("S", everything[:1])] == ["S"]
    root = shown(cover_picture([panels_of("S", everything), panels_of("T", sites(*shop(store="s2")))]))
    assert [text for text in texts(root) if text.startswith(("S", "T"))].count("Shop") == 4


@pytest.mark.parametrize("spot", places.SPOTS)
def test_anywhere_on_earth(spot: tuple[float, float]) -> None:
    """Also at a pole and at the antimeridian a circle is drawn round, in one piece."""
    fence = Fence(id="f", store="s", kind="store", geometry=Circle((spot[1], spot[0]), 300.0))
    root = shown(cover_picture([[Panel("x", sites(fence))]]))
    outline = next(node.attrib["d"] for node in root.iter(f"{SVG}path") if node.attrib.get("stroke-width") == "2")
    corners = _corners(outline)
    middle = corners.mean(axis=0)
    assert np.hypot(*(corners - middle).T) == pytest.approx([680 / 1.1 / 2] * len(corners), rel=0.01)


def _corners(path: str) -> np.ndarray:
    start, *steps = [(float(x), float(y)) for x, y in re.findall(r"[Ml]([-\d.]+) ([-\d.]+)", path)]
    return np.cumsum(np.array([start, *steps]), axis=0)


def test_every_transition_is_told_and_marked() -> None:
    """With number, time, kind, name and confidence; those of one moment share a mark. Marks and names don't overlap."""
    fences = shop()
    told = [*transitions(fences[0], 5), *transitions(fences[1], 45), *transitions(fences[2], 45, 60)]
    root = shown(track_picture(walk(100), told, sites(*fences)))
    said = texts(root)
    assert "4 transitions" in said
    assert "12:00:45" in said
    assert "Shop (0.75)" in said
    assert said.count("2,3") == 1
    placed = badges(root)
    assert len(placed) >= 3
    for number, spot in enumerate(placed):
        assert not any(spot.overlaps(other) for other in placed[:number])


def test_a_crowded_store_gets_a_map_of_its_own() -> None:
    """On the large map it is a frame with a letter; its transitions are marked once, on its own map."""
    fences = shop()
    far = [*walk(60), TrackPoint(START_MS + 3_600_000, *places.shifted(LAT, LNG, 3_000, 3_000))]
    root = shown(track_picture(far, transitions(fences[1], 25, 30, 35, 40), sites(*fences)))
    said = texts(root)
    assert "A: Shop" in said
    # Once in the list, once on a map.
    assert [said.count(str(number)) for number in (1, 2, 3, 4)] == [2, 2, 2, 2]
    alone = shown(track_picture(walk(60), transitions(fences[1], 25, 30), sites(*fences)))
    assert "A: Shop" not in texts(alone)


def test_time_is_told_by_colour() -> None:
    """The way is cut where its colour changes, without gaps, and ends where the track does."""
    fences = shop()
    root = shown(track_picture(walk(200), [], sites(*fences)))
    pieces = [node.attrib for node in root.iter(f"{SVG}path") if node.attrib.get("stroke-linecap") == "round"]
    assert len({each["stroke"] for each in pieces}) > 20
    ways = [_corners(each["d"]) for each in pieces]
    for before, after in itertools.pairwise(ways):
        assert after[0] == pytest.approx(before[-1], abs=0.2)


@pytest.mark.parametrize("points", [walk(1), [walk(1)[0]] * 5, walk(20_000, 0.01), list(reversed(walk(30)))])
def test_odd_tracks_are_drawn(points: Sequence[TrackPoint]) -> None:
    """A single point, one that stands, a very long one (thinned), one whose clock goes backwards."""
    fences = shop()
    picture = track_picture(points, transitions(fences[1], 1), sites(*fences))
    shown(picture)
    assert len(picture) < 200_000


def test_more_transitions_than_a_picture_can_tell() -> None:
    """The first ones, and how many there are."""
    fences = shop()
    root = shown(track_picture(walk(200), transitions(fences[1], *range(100)), sites(*fences)))
    assert "100 transitions, the first 60" in texts(root)
