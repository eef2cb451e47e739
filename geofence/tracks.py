"""Recorded tracks: GPX, CSV and GeoJSON as points in time. For tools; the engine never reads one.

Points stay in the order of the file. What is wrong is refused, with its line or point, and never skipped. The accuracy
is the radius of 68 % confidence in metres, as everywhere; where the track doesn't say, it is that of street GPS.

* **GPX**: every `trkpt`, with its `time`. Accuracy: an element `accuracy`, `hacc` or `horizontalAccuracy` (metres), as
  loggers write among the extensions; else `hdop` times 5 m, the error of a receiver whose satellites stand well.
* **CSV**: a line of names, then `ts` (ms since the Unix epoch) or `time` (ISO 8601), `lat`, `lng` or `lon`, and perhaps
  `accuracy`. Other columns are left alone.
* **GeoJSON**: lines with the property `coordTimes` (a time for each position), and points with `time` or `ts` and
  perhaps `accuracy`.

A time without a zone is UTC. An XML document type is refused: what it can declare (entities that grow without bound, or
name files) has no place in a track.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple
from xml.parsers import expat

import msgspec

from nearcast.errors import InputError
from nearcast.events import STREET_GPS_M, YEAR_2000_MS

TrackFormat = Literal["gpx", "csv", "geojson"]

#: Metres of error per unit of dilution of precision.
HDOP_M = 5.0
MAX_POINTS = 1_000_000
_LAST_MS = 9_999_999_999_999
_MAX_ACCURACY_M = 100_000.0
_ACCURACIES = frozenset(("accuracy", "hacc", "horizontalaccuracy"))
_POINT_TEXTS = _ACCURACIES | {"time", "hdop"}


class TrackPoint(NamedTuple):
    """Where somebody was at a time."""

    at_ms: int
    lat: float
    lng: float
    accuracy_m: float = STREET_GPS_M


def read_track(data: bytes, form: TrackFormat) -> list[TrackPoint]:
    """The points of a track, at least one. Raises `InputError` ("invalid_track"); `where` is the line or point."""
    readers: Mapping[TrackFormat, Callable[[bytes], Iterator[TrackPoint]]] = {
        "gpx": _of_gpx,
        "csv": _of_csv,
        "geojson": _of_geojson,
    }
    points: list[TrackPoint] = []
    for point in readers[form](data):
        if len(points) == MAX_POINTS:
            raise _invalid(f"it has more than {MAX_POINTS} points")
        points.append(point)
    if not points:
        raise _invalid("there is no point in it")
    return points


class _Gpx:
    """Gathers track points while expat reads."""

    def __init__(self) -> None:
        self.points: list[TrackPoint] = []
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._hear
        self._root = True
        #: The track point that is being read: its line, attributes, and the texts in it that matter.
        self._line = 0
        self._attributes: Mapping[str, str] | None = None
        self._texts: dict[str, str] = {}
        self._heard: list[str] | None = None

    def read(self, data: bytes) -> None:
        try:
            self._parser.Parse(data, True)
        except expat.ExpatError as error:
            raise _invalid(f"not XML: {expat.ErrorString(error.code)}", f"line {error.lineno}") from None

    def _refuse(self, *_: object) -> None:
        raise _invalid("an XML document type is not accepted", f"line {self._parser.CurrentLineNumber}")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = _local(tag)
        if self._root:
            self._root = False
            if name != "gpx":
                raise _invalid(f"not GPX: the document is a <{name}>", f"line {self._parser.CurrentLineNumber}")
        if name == "trkpt":
            self._line = self._parser.CurrentLineNumber
            self._attributes, self._texts = attributes, {}
        elif self._attributes is not None and name.lower() in _POINT_TEXTS:
            self._heard = []

    def _hear(self, text: str) -> None:
        if self._heard is not None:
            self._heard.append(text)

    def _end(self, tag: str) -> None:
        name = _local(tag)
        if name == "trkpt":
            self.points.append(self._point())
            self._attributes = None
        elif self._heard is not None and name.lower() in _POINT_TEXTS:
            self._texts.setdefault(name.lower(), "".join(self._heard).strip())
            self._heard = None

    def _point(self) -> TrackPoint:
        where = f"line {self._line}"
        attributes = self._attributes or {}
        if "time" not in self._texts:
            raise _invalid("the track point has no <time>", where)
        accuracy_m = STREET_GPS_M
        said = next((self._texts[name] for name in sorted(_ACCURACIES) if name in self._texts), None)
        if said is not None:
            accuracy_m = _number(said, "accuracy", where)
        elif "hdop" in self._texts:
            accuracy_m = HDOP_M * _number(self._texts["hdop"], "hdop", where)
        return _point(
            _iso(self._texts["time"], where),
            _number(attributes.get("lat"), "lat", where),
            _number(attributes.get("lon"), "lon", where),
            accuracy_m,
            where,
        )


def _of_gpx(data: bytes) -> Iterator[TrackPoint]:
    reader = _Gpx()
    reader.read(data)
    return iter(reader.points)


def _local(tag: str) -> str:
    return tag.rpartition(" ")[2]


def _of_csv(data: bytes) -> Iterator[TrackPoint]:
    try:
        rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    except UnicodeDecodeError as error:
        raise _invalid(f"not UTF-8: {error.reason} at byte {error.start}") from None
    columns: Mapping[str, int] | None = None
    line = 1
    try:
        for row in rows:
            where, line = f"line {line}", rows.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = _columns(row, where)
                continue
            cells = {name: row[at].strip() for name, at in columns.items() if at < len(row)}
            at_ms = _whole(cells["ts"], where) if cells.get("ts") else _iso(cells.get("time", ""), where)
            accuracy = cells.get("accuracy")
            yield _point(
                at_ms,
                _number(cells.get("lat"), "lat", where),
                _number(cells.get("lng"), "lng", where),
                _number(accuracy, "accuracy", where) if accuracy else STREET_GPS_M,
                where,
            )
    except csv.Error as error:
        raise _invalid(f"not CSV: {error}", f"line {rows.line_num}") from None


def _columns(names: list[str], where: str) -> Mapping[str, int]:
    """Which column is what."""
    known = {"lon": "lng", "accuracy_m": "accuracy"}
    columns: dict[str, int] = {}
    for place, said in enumerate(names):
        name = said.strip().lower()
        name = known.get(name, name)
        if name not in ("ts", "time", "lat", "lng", "accuracy"):
            continue
        if name in columns:
            raise _invalid(f"two columns are the {name}", where)
        columns[name] = place
    for needed in ("lat", "lng"):
        if needed not in columns:
            raise _invalid(f"no column is called {needed!r}; there must be ts or time, lat, and lng or lon", where)
    if "ts" not in columns and "time" not in columns:
        raise _invalid("no column is called 'ts' or 'time'", where)
    return columns


class _Place(msgspec.Struct, tag="Point"):
    coordinates: list[float]


class _Line(msgspec.Struct, tag="LineString"):
    coordinates: list[list[float]]


class _Lines(msgspec.Struct, tag="MultiLineString"):
    coordinates: list[list[list[float]]]


class _About(msgspec.Struct, rename={"times": "coordTimes"}):
    times: list[str | int | list[str | int]] | None = None
    time: str | None = None
    ts: int | None = None
    accuracy: float = STREET_GPS_M


class _Feature(msgspec.Struct, tag="Feature"):
    geometry: _Place | _Line | _Lines
    properties: _About


class _Collection(msgspec.Struct, tag="FeatureCollection"):
    features: list[msgspec.Raw]


_READ_DOCUMENT = msgspec.json.Decoder(_Feature | _Collection)
_READ_FEATURE = msgspec.json.Decoder(_Feature)


def _of_geojson(data: bytes) -> Iterator[TrackPoint]:
    try:
        document = _READ_DOCUMENT.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(f"not a GeoJSON feature or collection of a track: {error}") from None
    if isinstance(document, _Feature):
        yield from _of_feature(document, "")
        return
    for number, raw in enumerate(document.features):
        where = f"features[{number}]"
        try:
            feature = _READ_FEATURE.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _invalid(f"{error}", where) from None
        yield from _of_feature(feature, where)


def _of_feature(feature: _Feature, place: str) -> Iterator[TrackPoint]:
    geometry, about = feature.geometry, feature.properties
    if isinstance(geometry, _Place):
        if about.time is None and about.ts is None:
            raise _invalid("a point needs the property `time` or `ts`", place)
        at_ms = about.ts if about.ts is not None else _iso(about.time or "", place)
        yield _position(geometry.coordinates, at_ms, about, place)
        return
    if about.times is None:
        raise _invalid("a line needs the property `coordTimes`: a time for each of its positions", place)
    nested = isinstance(geometry, _Lines)
    lines = geometry.coordinates if isinstance(geometry, _Lines) else [geometry.coordinates]
    times = about.times if nested else [about.times]
    if len(times) != len(lines):
        raise _invalid(f"{len(lines)} lines, but {len(times)} lists of times", place)
    for number, (line, of_line) in enumerate(zip(lines, times, strict=True)):
        where = ", ".join(filter(None, (place, f"line {number}" if nested else "")))
        if not isinstance(of_line, list) or len(of_line) != len(line):
            raise _invalid(f"there must be as many times as positions ({len(line)})", where)
        for index, (coordinates, time) in enumerate(zip(line, of_line, strict=True)):
            at = ", ".join(filter(None, (where, f"point {index}")))
            if isinstance(time, list):
                raise _invalid("a time is text or a number", at)
            yield _position(coordinates, time if isinstance(time, int) else _iso(time, at), about, at)


def _position(coordinates: list[float], at_ms: int, about: _About, where: str) -> TrackPoint:
    if len(coordinates) < 2:
        raise _invalid("a position is a longitude and a latitude", where)
    return _point(at_ms, coordinates[1], coordinates[0], about.accuracy, where)


def _point(at_ms: int, lat: float, lng: float, accuracy_m: float, where: str) -> TrackPoint:
    """The point, if there can be such a one. Each check fails for NaN, too."""
    if not -90 <= lat <= 90:
        raise _invalid(f"latitude {lat:g} is not within -90..90 degrees", where)
    if not -180 <= lng <= 180:
        raise _invalid(f"longitude {lng:g} is not within -180..180 degrees", where)
    if not 0 <= accuracy_m <= _MAX_ACCURACY_M:
        raise _invalid(f"accuracy {accuracy_m:g} is not within 0..{_MAX_ACCURACY_M:g} m", where)
    if not YEAR_2000_MS <= at_ms <= _LAST_MS:
        raise _invalid("its time is before the year 2000 or after 2286: ms since the Unix epoch are meant", where)
    return TrackPoint(at_ms, lat, lng, accuracy_m)


def _number(text: str | None, name: str, where: str) -> float:
    if not text:
        raise _invalid(f"`{name}` is missing", where)
    try:
        number = float(text)
    except ValueError:
        raise _invalid(f"`{name}` is {text[:40]!r}, which is no number", where) from None
    if not math.isfinite(number):
        raise _invalid(f"`{name}` is {text[:40]!r}, which is no number", where)
    return number


def _whole(text: str, where: str) -> int:
    try:
        return int(text[:20])
    except ValueError:
        raise _invalid(f"`ts` is {text[:40]!r}, which is no whole number of milliseconds", where) from None


def _iso(text: str, where: str) -> int:
    """Milliseconds since the Unix epoch."""
    if not text:
        raise _invalid("it has no time", where)
    try:
        time = datetime.fromisoformat(text)
        return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise _invalid(f"{text[:40]!r} is not a time like 2026-05-01T09:00:00Z", where) from None


def _invalid(detail: str, where: str = "") -> InputError:
    return InputError("invalid_track", detail, where)
