"""Recorded tracks are read as they are, and what is wrong in them is named by line or point.

The files are written here by hand, each in the way its format says, and by nothing of what reads them.
"""

import csv
import io
import json
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geofence import tracks
from geofence.tracks import TrackFormat, TrackPoint, read_track
from nearcast.errors import InputError

NOON = TrackPoint(1_777_636_800_000, 48.2, 16.37)
NOON_TEXT = "2026-05-01T12:00:00Z"

points = st.builds(
    TrackPoint,
    st.integers(tracks.YEAR_2000_MS, 4_000_000_000_000),
    st.floats(-90, 90),
    st.floats(-180, 180),
    st.floats(0, 100_000),
)
zones = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
lists = st.lists(points, min_size=1, max_size=20)


def iso(at_ms: int, zone: timezone) -> str:
    """A time in a zone, to the millisecond."""
    return (datetime.fromtimestamp(at_ms // 1000, tz=zone) + timedelta(milliseconds=at_ms % 1000)).isoformat()


def gpx(body: str, head: str = "") -> bytes:
    """A GPX document."""
    start = '<?xml version="1.0" encoding="UTF-8"?>\n' + head
    return f'{start}<gpx version="1.1" xmlns="http://www.topografix.com/GPX/1/1"><trk>{body}</trk></gpx>'.encode()


def feature(geometry: dict[str, object], **properties: object) -> dict[str, object]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


@given(lists, zones, st.sampled_from(["accuracy", "hacc", "x:horizontalAccuracy"]), st.text(max_size=20))
def test_gpx_comes_back(track: list[TrackPoint], zone: timezone, name: str, words: str) -> None:
    """Every point of every segment, in order, with times of any zone and the accuracy of an extension."""
    words = escape("".join(letter for letter in words if letter.isprintable()))
    body = "".join(
        f'<trkseg><trkpt lat="{p.lat!r}" lon="{p.lng!r}"><ele>3</ele><time> {iso(p.at_ms, zone)} </time>'
        f'<name>{words}</name><hdop>9</hdop><extensions><{name} xmlns:x="urn:x">{p.accuracy_m!r}</{name}>'
        "</extensions></trkpt></trkseg>"
        for p in track
    )
    assert read_track(gpx(body), "gpx") == track


@given(lists, zones, st.booleans(), st.sampled_from(["lng", "lon", " LON "]))
def test_csv_comes_back(track: list[TrackPoint], zone: timezone, as_ts: bool, longitude: str) -> None:
    """Columns in any order, others among them, quoted or not, with `ts` or `time`."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerow(["note", "accuracy", longitude, "ts" if as_ts else "time", "lat"])
    for p in track:
        writer.writerow(
            ["a,\nb", repr(p.accuracy_m), repr(p.lng), p.at_ms if as_ts else iso(p.at_ms, zone), repr(p.lat)]
        )
    assert read_track(("\ufeff" + out.getvalue()).encode(), "csv") == track


@given(lists, zones, st.booleans())
def test_geojson_points_come_back(track: list[TrackPoint], zone: timezone, as_ts: bool) -> None:
    """A collection of points, each with its time and accuracy."""
    features = [
        feature(
            {"type": "Point", "coordinates": [p.lng, p.lat, 170.5]},
            **({"ts": p.at_ms} if as_ts else {"time": iso(p.at_ms, zone)}),
            accuracy=p.accuracy_m,
            name="x",
        )
        for p in track
    ]
    assert read_track(json.dumps({"type": "FeatureCollection", "features": features}).encode(), "geojson") == track


@given(lists, zones, st.booleans(), st.integers(0, 20))
def test_geojson_lines_come_back(track: list[TrackPoint], zone: timezone, as_ts: bool, cut: int) -> None:
    """A line, or several, with a time for each position."""
    track = [point._replace(accuracy_m=7.5) for point in track]
    parts = [part for part in (track[:cut], track[cut:]) if part]
    coordinates: list[object] = [[[p.lng, p.lat] for p in part] for part in parts]
    times: list[object] = [[p.at_ms if as_ts else iso(p.at_ms, zone) for p in part] for part in parts]
    several = len(parts) > 1
    line = feature(
        {
            "type": "MultiLineString" if several else "LineString",
            "coordinates": coordinates if several else coordinates[0],
        },
        coordTimes=times if several else times[0],
        accuracy=7.5,
    )
    assert read_track(json.dumps(line).encode(), "geojson") == track


def test_accuracy_of_gpx() -> None:
    """What the logger says goes before hdop times 5 m; a point that says neither is street GPS."""
    body = "".join(
        f'<trkpt lat="48.2" lon="16.37"><time>{NOON_TEXT}</time>{more}</trkpt>'
        for more in ("", "<hdop>1.5</hdop>", "<hdop>1.5</hdop><extensions><accuracy>4</accuracy></extensions>")
    )
    wanted = [NOON, NOON._replace(accuracy_m=7.5), NOON._replace(accuracy_m=4.0)]
    assert read_track(gpx(body), "gpx") == wanted


def test_other_points_of_gpx_are_not_the_track() -> None:
    """Way points, routes and the file's own time."""
    extra = '</trk><wpt lat="1" lon="1"><time>x</time></wpt><rte><rtept lat="1" lon="1"/></rte><trk>'
    body = f'<name>x</name>{extra}<trkpt lat="48.2" lon="16.37"><time>{NOON_TEXT}</time></trkpt>'
    assert read_track(gpx(body), "gpx") == [NOON]


LAUGHS = '<!DOCTYPE gpx [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "head",
    [LAUGHS + "]>", '<!DOCTYPE gpx [<!ENTITY j SYSTEM "file:///etc/hostname">]>', '<!DOCTYPE gpx SYSTEM "x.dtd">'],
)
def test_document_types_are_refused(head: str) -> None:
    """A billion laughs, a file, and anything else that a document type could bring in; before any of it is read."""
    body = f'<name>&j;</name><trkpt lat="48.2" lon="16.37"><time>{NOON_TEXT}</time></trkpt>'
    with pytest.raises(InputError, match="document type is not accepted") as caught:
        read_track(gpx(body, head), "gpx")
    assert caught.value.where == "line 2"


TRKPT = '<trkpt lat="{}" lon="{}"><time>{}</time>{}</trkpt>'


@pytest.mark.parametrize(
    ("form", "data", "said", "where"),
    [
        ("gpx", b"<gpx><trk>", "not XML", "line 1"),
        ("gpx", b"", "not XML", "line 1"),
        ("gpx", b"<kml/>", "<kml>", "line 1"),
        ("gpx", gpx(""), "no point", ""),
        ("gpx", gpx('\n<trkpt lat="48" lon="16"/>'), "no <time>", "line 3"),
        ("gpx", gpx(TRKPT.format("95", "16", NOON_TEXT, "")), "latitude 95", "line 2"),
        ("gpx", gpx(TRKPT.format("48", "181", NOON_TEXT, "")), "longitude 181", "line 2"),
        ("gpx", gpx(TRKPT.format("nan", "16", NOON_TEXT, "")), "no number", "line 2"),
        ("gpx", gpx(TRKPT.format("48", "16", "noon", "")), "'noon' is not a time", "line 2"),
        ("gpx", gpx(TRKPT.format("48", "16", "1970-01-01T00:00:00Z", "")), "before the year 2000", "line 2"),
        ("gpx", gpx(TRKPT.format("48", "16", NOON_TEXT, "<hdop>-1</hdop>")), "accuracy -5", "line 2"),
        ("gpx", gpx(f'<trkpt lat="48"><time>{NOON_TEXT}</time></trkpt>'), "`lon` is missing", "line 2"),
        ("csv", b"", "no point", ""),
        ("csv", b"\xff\n", "not UTF-8", ""),
        ("csv", b"time,lat\n", "'lng'", "line 1"),
        ("csv", b"lat,lng\n", "'ts' or 'time'", "line 1"),
        ("csv", b"ts,lat,lng,lon\n", "two columns", "line 1"),
        ("csv", b'ts,lat,lng\n"1\n2",3,4\n\n5,6\n', "`ts` is '1\\n2'", "line 2"),
        ("csv", b'note,ts,lat,lng\n"a\nb",1777636800000,48,16\n\nc,1777636800000,48\n', "`lng` is missing", "line 5"),
        ("csv", b"ts,lat,lng\n1777636800,48,16\n", "before the year 2000", "line 2"),
        ("csv", b"time,lat,lng\n,48,16\n", "no time", "line 2"),
        ("csv", b"ts,lat,lng\n1777636800000,48,inf\n", "no number", "line 2"),
        ("csv", b'ts,lat,lng\n"1777636800000,48,16\n', "not CSV", "line 2"),
        ("geojson", b"[", "not a GeoJSON", ""),
        ("geojson", b'{"type": "FeatureCollection", "features": []}', "no point", ""),
        ("geojson", b'{"type": "FeatureCollection", "features": [{"type": "Feature"}]}', "geometry", "features[0]"),
    ],
)
def test_what_is_wrong_is_named(form: TrackFormat, data: bytes, said: str, where: str) -> None:
    """With the line, or the feature."""
    with pytest.raises(InputError) as caught:
        read_track(data, form)
    assert said in caught.value.detail
    assert (caught.value.reason, caught.value.where) == ("invalid_track", where)


@pytest.mark.parametrize(
    ("given_feature", "said", "where"),
    [
        (feature({"type": "Point", "coordinates": [16, 48]}), "needs the property `time`", ""),
        (feature({"type": "Point", "coordinates": [16]}, ts=1), "a longitude and a latitude", ""),
        (feature({"type": "LineString", "coordinates": [[16, 48]]}), "`coordTimes`", ""),
        (feature({"type": "LineString", "coordinates": [[16, 48]]}, coordTimes=[]), "as many times", ""),
        (
            feature({"type": "LineString", "coordinates": [[16, 48], [16, 99]]}, coordTimes=[NOON_TEXT, NOON_TEXT]),
            "latitude 99",
            "point 1",
        ),
        (
            feature(
                {"type": "MultiLineString", "coordinates": [[[16, 48]], [[16, 48]]]}, coordTimes=[[NOON_TEXT], ["x"]]
            ),
            "'x' is not a time",
            "line 1, point 0",
        ),
        (feature({"type": "MultiLineString", "coordinates": [[[16, 48]]]}, coordTimes=[]), "1 lines, but 0", ""),
        (
            feature({"type": "MultiLineString", "coordinates": [[[16, 48]]]}, coordTimes=["x"]),
            "as many times",
            "line 0",
        ),
        (feature({"type": "LineString", "coordinates": [[16, 48]]}, coordTimes=[["x"]]), "text or a number", "point 0"),
    ],
)
def test_wrong_features_are_named(given_feature: dict[str, object], said: str, where: str) -> None:
    """With the line and the point in them."""
    with pytest.raises(InputError) as caught:
        read_track(json.dumps(given_feature).encode(), "geojson")
    assert said in caught.value.detail
    assert caught.value.where == where


def test_endless_tracks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a largest number of points."""
    monkeypatch.setattr(tracks, "MAX_POINTS", 2)
    row = b"1777636800000,48.2,16.37\n"
    assert len(read_track(b"ts,lat,lng\n" + 2 * row, "csv")) == 2
    with pytest.raises(InputError, match="more than 2 points"):
        read_track(b"ts,lat,lng\n" + 3 * row, "csv")


GOOD: dict[TrackFormat, bytes] = {
    "gpx": gpx(TRKPT.format("48.2", "16.37", NOON_TEXT, "<hdop>1</hdop>")),
    "csv": b"ts,lat,lng,accuracy\n1777636800000,48.2,16.37,5\n",
    "geojson": json.dumps(feature({"type": "LineString", "coordinates": [[16, 48]]}, coordTimes=[NOON_TEXT])).encode(),
}


@given(st.sampled_from(list(GOOD)), st.data())
def test_no_bytes_break_a_reader(form: TrackFormat, data: st.DataObject) -> None:
    """A damaged file is refused, or read; nothing else is raised."""
    good = GOOD[form]
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(good)), st.integers(0, len(good)))))
    damaged = good[:start] + data.draw(st.binary(max_size=6) | st.text(max_size=6).map(str.encode)) + good[end:]
    with suppress(InputError):
        assert read_track(damaged, form)


def test_a_time_without_a_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command runs."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert read_track(b"time,lat,lng\n2026-05-01T12:00:00,48.2,16.37\n", "csv") == [NOON]
    finally:
        monkeypatch.undo()
        time.tzset()
