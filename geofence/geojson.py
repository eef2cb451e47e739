"""Fences as GeoJSON (RFC 7946) and back.

A fence is a Feature whose `properties` carry the fields of `nearcast.world.Fence`. Polygons are themselves; a circle,
which GeoJSON has none of, is a Point with the property `radius_m`. What one function writes, the other reads.
"""

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from geofence.geometry import compile_geometry
from nearcast.errors import InputError
from nearcast.events import Id, Text
from nearcast.world import Circle, Fence, FenceKind, Geometry, Latitude, Longitude, Metres, MultiPolygon, Polygon


class _Point(msgspec.Struct, tag="Point", frozen=True, forbid_unknown_fields=True):
    coordinates: tuple[Longitude, Latitude]


class _Properties(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    id: Id
    store: Id
    kind: FenceKind
    name: Text = ""
    parent: Id | None = None
    sku: Id | None = None
    dwell_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 60.0
    exit_margin_m: Annotated[float, msgspec.Meta(ge=0, le=1_000)] = 10.0
    radius_m: Metres | None = None


class _Feature(msgspec.Struct, tag="Feature", frozen=True, kw_only=True):
    geometry: _Point | Polygon | MultiPolygon
    properties: _Properties


class _Collection(msgspec.Struct, tag="FeatureCollection", frozen=True):
    features: list[msgspec.Raw]


class _Written(msgspec.Struct, frozen=True):
    type: Literal["FeatureCollection"]
    features: list[_Feature]


_READ_COLLECTION = msgspec.json.Decoder(_Collection)
_READ_FEATURE = msgspec.json.Decoder(_Feature)


def fences_from_geojson(data: bytes) -> list[Fence]:
    """The fences of a FeatureCollection, in its order.

    Raises `InputError`: "invalid_geojson" for a wrong shape of the document, "invalid_geometry" for impossible
    outlines; `where` names the feature, counted from 0.
    """
    try:
        collection = _READ_COLLECTION.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("invalid_geojson", str(error)) from None
    return [_fence_of(raw, f"features[{number}]") for number, raw in enumerate(collection.features)]


def fences_to_geojson(fences: Iterable[Fence]) -> bytes:
    """A FeatureCollection, in the order given."""
    return msgspec.json.encode(_Written("FeatureCollection", [_feature_of(fence) for fence in fences]))


def _fence_of(raw: msgspec.Raw, place: str) -> Fence:
    try:
        feature = _READ_FEATURE.decode(raw)
        properties = feature.properties
        fence = Fence(
            id=properties.id,
            store=properties.store,
            kind=properties.kind,
            geometry=_geometry_of(feature),
            name=properties.name,
            parent=properties.parent,
            sku=properties.sku,
            dwell_s=properties.dwell_s,
            exit_margin_m=properties.exit_margin_m,
        )
    except (ValueError, RecursionError) as error:
        raise InputError("invalid_geojson", str(error), place) from None
    try:
        compile_geometry(fence.geometry)
    except InputError as error:
        raise InputError(error.reason, error.detail, f"{place}, {error.where}") from None
    return fence


def _geometry_of(feature: _Feature) -> Geometry:
    radius_m = feature.properties.radius_m
    if not isinstance(feature.geometry, _Point):
        if radius_m is not None:
            raise ValueError("`radius_m` belongs to a Point, which it makes a circle")
        return feature.geometry
    if radius_m is None:
        raise ValueError("a Point needs the property `radius_m`: a fence has an area")
    return Circle(center=feature.geometry.coordinates, radius_m=radius_m)


def _feature_of(fence: Fence) -> _Feature:
    circle = fence.geometry if isinstance(fence.geometry, Circle) else None
    return _Feature(
        geometry=_Point(fence.geometry.center) if isinstance(fence.geometry, Circle) else fence.geometry,
        properties=_Properties(
            id=fence.id,
            store=fence.store,
            kind=fence.kind,
            name=fence.name,
            parent=fence.parent,
            sku=fence.sku,
            dwell_s=fence.dwell_s,
            exit_margin_m=fence.exit_margin_m,
            radius_m=circle.radius_m if circle else None,
        ),
    )
