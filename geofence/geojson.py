"""Fences as GeoJSON (RFC 7946) and back.

A fence is a Feature whose `properties` carry the fields of `nearcast.world.Fence`. Polygons are themselves; a circle,
which GeoJSON has none of, is a Point with the property `radius_m`, and a corridor a LineString with the property
`buffer_m`. What one function writes, the other reads.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from geofence.geometry import compile_geometry
from nearcast.errors import InputError
from nearcast.world import (
    Circle,
    Corridor,
    Fence,
    FenceProperties,
    Geometry,
    Latitude,
    Longitude,
    Metres,
    MultiPolygon,
    Polygon,
)

_FIELDS = FenceProperties.__struct_fields__


class Point(msgspec.Struct, tag="Point", frozen=True, forbid_unknown_fields=True):
    """The centre of a circle."""

    coordinates: tuple[Longitude, Latitude]


class LineString(msgspec.Struct, tag="LineString", frozen=True, forbid_unknown_fields=True):
    """The middle of a corridor."""

    coordinates: list[tuple[Longitude, Latitude]]


class Properties(FenceProperties, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A fence's fields; `radius_m` belongs to a Point, and `buffer_m` to a LineString."""

    radius_m: Metres | None = None
    buffer_m: Metres | None = None


class Feature(msgspec.Struct, tag="Feature", frozen=True, kw_only=True):
    """One fence."""

    geometry: Point | LineString | Polygon | MultiPolygon
    properties: Properties


class FeatureCollection(msgspec.Struct, frozen=True, kw_only=True):
    """Fences."""

    type: Literal["FeatureCollection"] = "FeatureCollection"
    features: list[Feature]


class _Collection(msgspec.Struct, tag="FeatureCollection", frozen=True):
    features: list[msgspec.Raw]


_READ_COLLECTION = msgspec.json.Decoder(_Collection)
_READ_FEATURE = msgspec.json.Decoder(Feature)


def fences_from_geojson(data: bytes) -> list[Fence]:
    """The fences of a FeatureCollection, in its order.

    Raises `InputError`: "invalid_geojson" for a wrong shape of the document, "invalid_geometry" for impossible
    outlines, "duplicate_fence"; `where` names the feature, counted from 0, and the field, or the ring and vertex.
    """
    try:
        collection = _READ_COLLECTION.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("invalid_geojson", str(error)) from None
    fences: dict[str, Fence] = {}
    for number, raw in enumerate(collection.features):
        fence = fence_from_feature(raw, f"features[{number}]")
        if fence.id in fences:
            first = list(fences).index(fence.id)
            detail = f"the id {fence.id!r} is that of features[{first}], too"
            raise InputError("duplicate_fence", detail, f"features[{number}].properties.id")
        fences[fence.id] = fence
    return list(fences.values())


def fence_from_feature(data: bytes | msgspec.Raw, place: str = "feature") -> Fence:
    """The fence of one Feature, which errors call `place`. Raises `InputError` as `fences_from_geojson` does."""
    try:
        feature = _READ_FEATURE.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        detail, _, field = str(error).partition(" - at ")
        raise InputError("invalid_geojson", detail, place + field.strip("`").removeprefix("$")) from None
    geometry = _geometry_of(feature, place)
    try:
        compile_geometry(geometry)
    except InputError as error:
        raise InputError(error.reason, error.detail, f"{place}, {error.where}") from None
    return Fence(geometry=geometry, **{name: getattr(feature.properties, name) for name in _FIELDS})


def fences_to_geojson(fences: Iterable[Fence]) -> bytes:
    """A FeatureCollection, in the order given."""
    return msgspec.json.encode(collection_of(fences))


def collection_of(fences: Iterable[Fence]) -> FeatureCollection:
    """What `fences_to_geojson` writes."""
    return FeatureCollection(features=[_feature_of(fence) for fence in fences])


def _geometry_of(feature: Feature, place: str) -> Geometry:
    shape, radius_m, buffer_m = feature.geometry, feature.properties.radius_m, feature.properties.buffer_m
    if radius_m is not None and not isinstance(shape, Point):
        raise _wrong("it belongs to a Point, which it makes a circle", place, "radius_m")
    if buffer_m is not None and not isinstance(shape, LineString):
        raise _wrong("it belongs to a LineString, which it gives room around it", place, "buffer_m")
    if isinstance(shape, Point):
        if radius_m is None:
            raise _wrong("a Point needs it: a fence has an area", place, "radius_m")
        return Circle(center=shape.coordinates, radius_m=radius_m)
    if isinstance(shape, LineString):
        if buffer_m is None:
            raise _wrong("a LineString needs it: a fence has an area", place, "buffer_m")
        return Corridor(coordinates=shape.coordinates, buffer_m=buffer_m)
    return shape


def _wrong(detail: str, place: str, name: str) -> InputError:
    return InputError("invalid_geojson", detail, f"{place}.properties.{name}")


def _feature_of(fence: Fence) -> Feature:
    fields = {name: getattr(fence, name) for name in _FIELDS}
    shape = fence.geometry
    if isinstance(shape, Circle):
        return Feature(geometry=Point(shape.center), properties=Properties(**fields, radius_m=shape.radius_m))
    if isinstance(shape, Corridor):
        return Feature(geometry=LineString(shape.coordinates), properties=Properties(**fields, buffer_m=shape.buffer_m))
    return Feature(geometry=shape, properties=Properties(**fields))
