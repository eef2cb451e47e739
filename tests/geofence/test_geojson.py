"""Fences as GeoJSON and back."""

import json

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geofence.geojson import fences_from_geojson, fences_to_geojson
from nearcast.errors import InputError
from nearcast.world import Circle, Fence, Geometry, Polygon
from tests.geofence.places import circles, polygons, spots

PLACES = spots().flatmap(lambda spot: circles(spot) | polygons(spot))
PROPERTIES: dict[str, object] = {"id": "f1", "store": "s1", "kind": "store", "radius_m": 50}
FEATURE: dict[str, object] = {
    "type": "Feature",
    "geometry": {"type": "Point", "coordinates": [16.37, 48.2]},
    "properties": PROPERTIES,
}


def document(*features: object) -> bytes:
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


@given(st.lists(PLACES, max_size=3), st.sampled_from(["store", "product"]), st.none() | st.just("parent"))
@settings(max_examples=40)
def test_round_trip(geometries: list[Geometry], kind: str, parent: str | None) -> None:
    """What is written is read back equal; other GeoJSON readers understand it."""
    fences = [
        Fence(
            id=f"f{number}",
            store="s1",
            kind=kind,  # type: ignore[arg-type]
            geometry=geometry,
            name="Küche",
            parent=parent,
            sku="x" if kind == "product" else None,
            dwell_s=12.5,
            exit_margin_m=0.0,
        )
        for number, geometry in enumerate(geometries)
    ]
    written = fences_to_geojson(fences)
    assert fences_from_geojson(written) == fences
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
            r"\$\.properties\.kind",
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


def test_radius_on_a_polygon() -> None:
    """A polygon with a radius is a contradiction."""
    ring = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0)]
    feature = json.loads(fences_to_geojson([Fence(id="f", store="s", kind="store", geometry=Polygon([ring]))]))
    feature["features"][0]["properties"]["radius_m"] = 5
    with pytest.raises(InputError, match="radius_m"):
        fences_from_geojson(json.dumps(feature).encode())
