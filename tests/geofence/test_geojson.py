"""Fences as GeoJSON and back."""

import json

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geofence.geojson import fences_from_geojson, fences_to_geojson
from nearcast.errors import InputError
from nearcast.events import YEAR_2000_MS
from nearcast.world import Circle, Corridor, Fence, OpenHours, SpecialDay, Window
from tests.geofence.places import circles, polygons, spots
from tests.geofence.test_corridors import corridors

PLACES = spots().flatmap(lambda spot: circles(spot) | polygons(spot)) | corridors()
PROPERTIES: dict[str, object] = {"id": "f1", "store": "s1", "kind": "store", "radius_m": 50}
FEATURE: dict[str, object] = {
    "type": "Feature",
    "geometry": {"type": "Point", "coordinates": [16.37, 48.2]},
    "properties": PROPERTIES,
}


def document(*features: object) -> bytes:
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def times() -> st.SearchStrategy[int]:
    return st.integers(YEAR_2000_MS, 9_999_999_999_999)


IDS = st.text("abcÄ-/ 0", min_size=1, max_size=6)
HOUR = st.integers(0, 1440)
HOURS = st.builds(OpenHours, weekday=st.integers(0, 6), opens=st.integers(0, 1440), closes=st.integers(0, 1440))
FIELDS = {
    "name": st.sampled_from(["", "Küche"]),
    "parent": st.none() | IDS,
    "floor": st.none() | st.integers(-50, 200),
    "dwell_s": st.none() | st.floats(0.001, 86_400),
    "exit_margin_m": st.none() | st.floats(0, 1_000),
    "enter_fixes": st.none() | st.integers(1, 100),
    "enter_s": st.none() | st.floats(0, 3_600),
    "exit_fixes": st.none() | st.integers(1, 100),
    "exit_s": st.none() | st.floats(0, 3_600),
    "approach_m": st.none() | st.floats(0.1, 100_000),
    "crossings": st.booleans(),
    "hours": st.none() | st.lists(HOURS, max_size=3),
    "special_days": st.none()
    | st.lists(
        st.builds(SpecialDay, st.dates(), st.lists(st.builds(Window, HOUR, HOUR), max_size=2)),
        max_size=2,
        unique_by=lambda day: day.date,
    ),
    "beacons": st.lists(IDS, max_size=2),
    "access_points": st.lists(IDS, max_size=2),
    "codes": st.lists(IDS, max_size=2),
}


@st.composite
def any_fence(draw: st.DrawFn, name: str) -> Fence:
    """A fence with any of its fields."""
    sku = draw(st.none() | IDS)
    since, until = sorted(draw(st.tuples(times(), times()).filter(lambda pair: pair[0] != pair[1])))
    return Fence(
        id=name,
        store=draw(IDS),
        kind="product" if sku else draw(st.sampled_from(["vicinity", "store", "department", "shelf"])),
        sku=sku,
        geometry=draw(PLACES),
        valid_from_ms=draw(st.none() | st.just(since)),
        valid_until_ms=draw(st.none() | st.just(until)),
        **{field: draw(values) for field, values in FIELDS.items()},
    )


def test_every_field_is_drawn() -> None:
    """A field that is added to fences is added here."""
    others = {"id", "store", "kind", "sku", "geometry", "valid_from_ms", "valid_until_ms"}
    assert set(Fence.__struct_fields__) == FIELDS.keys() | others


@given(st.integers(0, 3).flatmap(lambda count: st.tuples(*(any_fence(f"f{number}") for number in range(count)))))
@settings(max_examples=60)
def test_round_trip(fences: tuple[Fence, ...]) -> None:
    """What is written is read back equal; other GeoJSON readers understand it."""
    written = fences_to_geojson(fences)
    assert fences_from_geojson(written) == list(fences)
    for feature in json.loads(written)["features"]:
        assert feature["type"] == "Feature"
        assert shapely.from_geojson(json.dumps(feature["geometry"])).is_valid


def test_reads_what_others_write() -> None:
    """A circle is a Point with a radius; members of a Feature that GeoJSON allows are no obstacle."""
    (fence,) = fences_from_geojson(document({**FEATURE, "id": 7, "bbox": [0, 0, 1, 1]}))
    assert fence == Fence(id="f1", store="s1", kind="store", geometry=Circle((16.37, 48.2), 50.0))


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"{", "invalid_geojson", "truncated"),
        (b"\xff", "invalid_geojson", "malformed"),
        (b'{"type":"Feature"}', "invalid_geojson", "FeatureCollection|Invalid value"),
        (document(FEATURE, {**FEATURE, "geometry": None}), "invalid_geojson", r"features\[1\]"),
        (
            document({**FEATURE, "properties": {"id": "f1", "store": "s1", "kind": "store"}}),
            "invalid_geojson",
            "radius_m",
        ),
        (
            document({**FEATURE, "properties": {**PROPERTIES, "kind": "shop"}}),
            "invalid_geojson",
            r"\(features\[0\]\.properties\.kind\)",
        ),
        (document({**FEATURE, "properties": {**PROPERTIES, "dwel_s": 3}}), "invalid_geojson", "dwel_s"),
        (document({**FEATURE, "properties": {**PROPERTIES, "sku": "x"}}), "invalid_geojson", "sku"),
        (document({**FEATURE, "geometry": {"type": "Point", "coordinates": [16.0, 148.2]}}), "invalid_geojson", "90"),
        (
            document(
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1]]]},
                    "properties": {"id": "f1", "store": "s1", "kind": "store"},
                }
            ),
            "invalid_geometry",
            r"not closed.*\(features\[0\], ring 0, vertex 3\)",
        ),
    ],
)
def test_refused(data: bytes, reason: str, message: str) -> None:
    """The refusal names the feature and the field."""
    with pytest.raises(InputError, match=message) as caught:
        fences_from_geojson(data)
    assert caught.value.reason == reason


def test_a_line_with_room_around_it() -> None:
    """A LineString with `buffer_m` is a corridor."""
    line = {"type": "LineString", "coordinates": [[16.37, 48.2], [16.371, 48.2]]}
    properties = {"id": "lane", "store": "s1", "kind": "vicinity", "buffer_m": 4, "hours": [], "codes": ["qr-1"]}
    (fence,) = fences_from_geojson(document({"type": "Feature", "geometry": line, "properties": properties}))
    assert fence.geometry == Corridor([(16.37, 48.2), (16.371, 48.2)], 4.0)
    assert (fence.hours, fence.codes) == ([], ["qr-1"])


RING = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("geometry", "extra", "message"),
    [
        (
            {"type": "Polygon", "coordinates": [RING]},
            {"radius_m": 5},
            r"Point.*\(features\[1\]\.properties\.radius_m\)",
        ),
        ({"type": "Polygon", "coordinates": [RING]}, {"buffer_m": 5}, r"LineString.*\.properties\.buffer_m\)"),
        ({"type": "Point", "coordinates": [1, 2]}, {"radius_m": 5, "buffer_m": 5}, r"LineString.*\.buffer_m\)"),
        ({"type": "LineString", "coordinates": RING}, {}, r"needs it.*\.buffer_m\)"),
        ({"type": "LineString", "coordinates": RING}, {"radius_m": 5, "buffer_m": 5}, r"Point.*\.radius_m\)"),
        ({"type": "LineString", "coordinates": RING, "buffer_m": 5}, {}, r"unknown field.*\(features\[1\]\.geometry\)"),
        ({"type": "LineString", "coordinates": RING[:1]}, {"buffer_m": 5}, r"at least 2.*\(features\[1\], line\)"),
        ({"type": "LineString", "coordinates": [[1]]}, {"buffer_m": 5}, r"features\[1\]\.geometry\.coordinates\[0\]\)"),
        ({"type": "MultiLineString", "coordinates": [RING]}, {"buffer_m": 5}, r"MultiLineString.*\.geometry\.type\)"),
        ({"type": "Polygon", "coordinates": [RING]}, {"floor": 201}, r"200.*\.properties\.floor\)"),
        (
            {"type": "Polygon", "coordinates": [RING]},
            {"valid_until_ms": 1_800_000_000},
            r"milliseconds.*\.properties\)",
        ),
        (
            {"type": "Polygon", "coordinates": [RING]},
            {"hours": [{"weekday": 7, "opens": 0, "closes": 1}]},
            r"\(features\[1\]\.properties\.hours\[0\]\.weekday\)",
        ),
        ({"type": "Polygon", "coordinates": [RING]}, {"id": "f1"}, r"'f1' is that of features\[0\], too"),
    ],
)
def test_the_second_feature_is_wrong(geometry: object, extra: dict[str, object], message: str) -> None:
    """The refusal names the feature, counted from 0, and the field, or the line and vertex."""
    properties = {"id": "f2", "store": "s1", "kind": "store", **extra}
    with pytest.raises(InputError, match=message):
        fences_from_geojson(document(FEATURE, {"type": "Feature", "geometry": geometry, "properties": properties}))
