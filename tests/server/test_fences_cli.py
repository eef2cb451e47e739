"""`nearcast fences` as somebody at a terminal uses it: on files, and on the store of a running server."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import click.testing
import msgspec
import numpy as np
import pytest
import shapely
from redis.asyncio import Redis

from nearcast.world import Circle, Fence, OpenHours, Polygon, Store
from offers.worldfile import WorldFile
from server.cli import main
from server.commands import fence_files
from server.world import WorldStore
from tests.geofence import places
from tests.server.town import LAT, LNG, WORLD

DOCS = Path(__file__).parents[2] / "docs"
SHOP = DOCS / "examples" / "shop.yaml"
START_MS = 1_777_636_800_000


class Answer(msgspec.Struct):
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def ask(*arguments: str | Path, **environment: str) -> Answer:
    """`nearcast fences ...`."""
    runner = click.testing.CliRunner()
    result = runner.invoke(main, ["fences", *map(str, arguments)], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Answer(result.exit_code, result.stdout, result.stderr)


def write(file: Path, **sections: object) -> Path:
    file.write_bytes(msgspec.json.encode(sections))
    return file


def collection(file: Path, *features: dict[str, object]) -> Path:
    return write(file, type="FeatureCollection", features=features)


def feature(coordinates: object, shape: str = "Polygon", **properties: object) -> dict[str, object]:
    return {
        "type": "Feature",
        "geometry": {"type": shape, "coordinates": coordinates},
        "properties": {"id": "f", "store": "s", "kind": "store", **properties},
    }


def square(half_m: float = 20.0, north_m: float = 0.0, east_m: float = 0.0) -> list[list[tuple[float, float]]]:
    return places.square(*places.shifted(LAT, LNG, north_m, east_m), half_m).coordinates


def track(file: Path, points: list[tuple[int, float, float]]) -> Path:
    """A CSV track: seconds, metres north and east."""
    rows = [
        f"{START_MS + 1000 * second},{lat!r},{lng!r},4"
        for second, north, east in points
        for lat, lng in [places.shifted(LAT, LNG, north, east)]
    ]
    file.write_text("\n".join(["ts,lat,lng,accuracy", *rows]))
    return file


def test_check_tells_what_fences_become(tmp_path: Path) -> None:
    """Area, reach, cells, and what is sure: as the same outline measures on a flat plan."""
    shell, hole = square(50)[0], square(10)[0]
    file = collection(
        tmp_path / "f.geojson", feature([shell, hole], id="yard"), feature((LNG, LAT), "Point", radius_m=30)
    )
    answer = ask("check", file)
    assert answer.code == 0, answer.err
    head, yard, circle = answer.out.splitlines()[:3]
    assert head.split()[:5] == ["ID", "STORE", "KIND", "PARENT", "SHAPE"]
    assert yard.split()[:6] == ["yard", "s", "store", "-", "Polygon", "9,600.0"]
    assert circle.split()[4:7] == ["Circle", "2,827.4", "30.0"]
    first, second = ask("check", file, "--json").json["fences"]
    assert first["area_m2"] == pytest.approx(100**2 - 20**2, rel=1e-4)
    assert first["reach_m"] == pytest.approx((9_600 / np.pi) ** 0.5, rel=1e-4)
    assert second["area_m2"] == pytest.approx(np.pi * 30**2, rel=1e-4)
    assert sum(first["cells"].values()) > 10
    assert 0 < first["sure_share"] < 1
    assert "fine: 2 fences" in answer.out


def test_check_names_everything_that_is_wrong(tmp_path: Path) -> None:
    """In all files, all features and all rings, at once: with file, feature, ring, vertex and why."""
    good = square()[0]
    bow = [good[0], good[2], good[1], good[3], good[0]]
    fences = collection(
        tmp_path / "f.geojson",
        feature([good], id="a"),
        feature([bow, good[:3]], id="b"),
        feature([good[:-1]], id="c"),
        feature([good], id="d", kind="shop"),
        feature([good], id="a"),
    )
    world = tmp_path / "w.yaml"
    world.write_text(
        "stores:\n  - {id: s, name: S, lat: 91, lng: 0}\nfences:\n"
        f"  - {{id: e, store: t, kind: store, geometry: {{type: Polygon, coordinates: [{json.dumps(bow)}]}}}}\n"
    )
    rest = tmp_path / "r.json"
    write(rest, fences=[Fence(id="g", store="s", kind="store", parent="nowhere", geometry=Circle((0, 0), 9))])
    (tmp_path / "x.geojson").write_text("{")
    answer = ask("check", fences, world, rest, tmp_path / "x.geojson")
    assert answer.code == 2
    assert answer.out == ""
    lines = answer.err.splitlines()
    for said in (
        ("meets itself", "f.geojson: features[1], ring 0, vertex 0"),
        ("at least 4 vertices", "f.geojson: features[1], ring 1"),
        ("not closed", "f.geojson: features[2], ring 0, vertex 3"),
        ("shop", "f.geojson: features[3]"),
        ("two fences", "'a'"),
        ("w.yaml:2", "lat"),
        ("x.geojson",),
    ):
        assert any(all(part in line for part in said) for line in lines), (said, lines)
    # What it refers to may be in what can't be read.
    assert "nowhere" not in answer.err
    assert "fence 'g' names the parent 'nowhere', which does not exist" in ask("check", rest).err
    assert len(ask("check", fences, "--json").json["problems"]) == 5


def test_check_names_what_is_wrong_in_world_files(tmp_path: Path) -> None:
    """Their geometry too, by the fence's id; and parents in a circle."""
    good = square()[0]
    bow = Polygon([[good[0], good[2], good[1], good[3], good[0]]])
    circle = Circle((LNG, LAT), 50.0)
    world = write(
        tmp_path / "w.json",
        stores=[Store(id="s", name="S", lat=LAT, lng=LNG)],
        fences=[
            Fence(id="bow", store="s", kind="store", geometry=bow),
            Fence(id="a", store="s", kind="department", geometry=circle, parent="b"),
            Fence(id="b", store="s", kind="department", geometry=circle, parent="a"),
            Fence(id="elsewhere", store="t", kind="store", geometry=circle),
        ],
    )
    answer = ask("check", world)
    assert answer.code == 2
    assert "meets itself" in answer.err
    assert "fence bow, ring 0, vertex 0" in answer.err
    assert "its own ancestor" in answer.err
    assert "'t', which does not exist" in answer.err


def test_check_warns_of_slips(tmp_path: Path) -> None:
    """They are told, and the exit code is 0; --store narrows them too."""
    file = collection(
        tmp_path / "f.geojson",
        feature(square(20), id="house"),
        feature(square(10, east_m=20), id="out", kind="department", parent="house"),
        feature(square(1), id="kiosk", store="other"),
    )
    answer = ask("check", file)
    assert answer.code == 0
    warnings = [line for line in answer.out.splitlines() if line.startswith("warning: ")]
    assert any("'out'" in line and "outside of its parent 'house'" in line for line in warnings)
    assert any("'kiosk'" in line and "its reach is 1.1 m" in line for line in warnings)
    codes = {(each["fence"], each["code"]) for each in ask("check", file, "--json", "--store", "s").json["warnings"]}
    assert codes == {("out", "outside_of_parent")}
    assert ask("check", file, "--store", "nobody").code == 2


def test_check_draws_a_picture(tmp_path: Path) -> None:
    """An SVG that names the store; anything else is refused before the work, and a folder that isn't there is told."""
    picture = tmp_path / "p.svg"
    answer = ask("check", SHOP, "--picture", picture)
    assert answer.code == 0, answer.err
    said = [node.text for node in Xml.fromstring(picture.read_bytes()).iter("{http://www.w3.org/2000/svg}text")]
    assert "Graben (graben), around" in said
    assert "must end in .svg" in ask("check", SHOP, "--picture", tmp_path / "p.png").err
    answer = ask("check", SHOP, "--picture", tmp_path / "no" / "p.svg")
    assert (answer.code, "can't be written" in answer.err) == (2, True)


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """Names come from files: a terminal would obey them."""
    file = collection(tmp_path / "f.geojson", feature(square(), name="a\x1b]0;b\x07"))
    told = ask("at", str(LAT), str(LNG), file).out
    assert "a?]0;b?" in told
    assert "\x1b" not in told


def test_at_tells_inside_and_near(tmp_path: Path) -> None:
    """Inner fences first, then those near with their distance; what is farther than 200 m isn't told."""
    file = collection(
        tmp_path / "f.geojson",
        feature(square(60), id="outer"),
        feature(square(20), id="inner"),
        feature(square(20, east_m=120), id="near"),
        feature(square(20, east_m=300), id="far"),
    )
    answer = ask("at", str(LAT), str(LNG), file, "--json", "--accuracy", "20")
    assert answer.code == 0, answer.err
    told = {each["id"]: each for each in answer.json["fences"]}
    assert list(told) == ["inner", "outer", "near"]
    assert [each["inside"] for each in told.values()] == [True, True, False]
    assert [each["edge_m"] for each in told.values()] == pytest.approx([20, 60, 100], rel=1e-3)
    # A fix of 20 m is a normal distribution with sigma 20 / 1.5096 along each axis.
    assert told["inner"]["probability"] == pytest.approx(0.757, abs=0.02)
    assert told["near"]["probability"] == 0
    text = ask("at", str(LAT), str(LNG), file, "--accuracy", "50").out
    assert "inside without an exact test" in text
    assert "the fence reaches 22.6 m" in text
    assert "near    near (store of s)" in text
    assert "in none of its cells: outside, 100.0 m from the edge" in text


@pytest.mark.parametrize(("north_m", "inside"), [(19.9, True), (20.1, False)])
def test_at_the_edge_the_exact_test_decides(tmp_path: Path, north_m: float, inside: bool) -> None:
    """And the answer says so; shapely agrees."""
    file = collection(tmp_path / "f.geojson", feature(square(20)))
    lat, lng = places.shifted(LAT, LNG, north_m, 3)
    assert shapely.Polygon(square(20)[0]).covers(shapely.Point(lng, lat)) is inside
    side = "inside" if inside else "outside"
    assert f"the exact test says {side}, 0.1 m from the edge" in ask("at", str(lat), str(lng), file).out


def test_at_negative_coordinates(tmp_path: Path) -> None:
    """South and west are numbers, not options; nonsense is refused."""
    file = collection(tmp_path / "f.geojson", feature((-70.66, -33.45), "Point", radius_m=100))
    assert "inside  f" in ask("at", "-33.45", "-70.66", file).out
    assert ask("at", "-33.45", "70.66", file).out == "in no fence, and none within 200 m\n"
    for wrong in (("91", "0"), ("nan", "0"), ("0", "inf"), ("x", "0")):
        assert ask("at", *wrong, file).code == 2


def test_at_a_time(tmp_path: Path) -> None:
    """By the store's clock: closed on Sundays, and before the fence comes into force."""
    monday = [OpenHours(weekday=0, opens=9 * 60, closes=18 * 60)]
    file = write(
        tmp_path / "w.json",
        stores=[Store(id="s", name="S", lat=LAT, lng=LNG, time_zone="America/New_York", hours=monday)],
        fences=[
            Fence(
                id="f", store="s", kind="store", geometry=Circle((LNG, LAT), 50.0), floor=3, valid_from_ms=START_MS,
                hours=[OpenHours(weekday=0, opens=12 * 60, closes=13 * 60)],
            )
        ],
    )  # fmt: skip

    def states(time: str) -> tuple[bool, bool, bool]:
        (told,) = ask("at", str(LAT), str(LNG), file, "--json", "--time", time).json["fences"]
        assert told["floor"] == 3
        return told["in_force"], told["store_open"], told["fence_open"]

    assert states("2026-05-04T16:30") == (True, True, True)
    assert states("2026-05-04T13:30") == (True, True, False)
    assert states("2026-05-03T16:30") == (True, False, False)
    assert states("2026-04-27T16:30") == (False, True, True)
    text = ask("at", str(LAT), str(LNG), file, "--time", "2026-05-03T16:30").out
    assert "in force, store CLOSED, fence CLOSED, floor 3" in text


async def test_at_asks_the_configured_store(redis: Redis, valkey_url: str) -> None:
    """Without files: the world as the server uses it, displays among it."""
    await WorldStore(redis).put(WORLD)
    environment = {
        "NEARCAST_REDIS_URL": valkey_url,
        "NEARCAST_API_KEYS": '{"admin": "k"}',
        **{f"NEARCAST_{name}_SECRET": "a-secret-of-more-than-32-characters-x" for name in ("TOKEN", "COUPON", "LINK")},
    }
    # In a thread: the command has an event loop of its own.
    answer = await asyncio.to_thread(ask, "at", str(LAT), str(LNG), "--json", **environment)
    assert answer.code == 0, answer.err
    told = {each["id"]: each["inside"] for each in answer.json["fences"]}
    assert told["inside"] is told["near"] is True
    assert told["graben:grinder:0"] is False


def test_without_files_and_without_a_store(tmp_path: Path) -> None:
    """One line says what is missing."""
    answer = ask("at", "0", "0", NEARCAST_DATA_DIR=str(tmp_path / "none"))
    assert answer.code == 2
    assert answer.err.count("\n") == 1


def visit(file: Path) -> Path:
    """From 200 m away into the shop for two minutes, and away again, at a fix a second."""
    way = [(-200.0 + 4 * n) for n in range(50)] + [0.0] * 120 + [4.0 * n for n in range(1, 51)]
    return track(file, [(second, 0.0, east) for second, east in enumerate(way)])


def test_replay_tells_transitions(tmp_path: Path) -> None:
    """Enter, dwell by the track's own clock, and exit, in order of time; the same as JSON."""
    file = collection(tmp_path / "f.geojson", feature(square(20), dwell_s=60, exit_margin_m=5))
    walked = visit(tmp_path / "walk.csv")
    rows = ask("replay", walked, file, "--json").json
    assert rows["points"] == 220
    kinds = {each["kind"]: each for each in rows["transitions"]}
    assert [each["kind"] for each in rows["transitions"]] == ["enter", "dwell", "exit"]
    assert all(each["fence"] == "f" for each in rows["transitions"])
    # The track is inside from second 45 to second 174.
    assert 45 <= (kinds["enter"]["at_ms"] - START_MS) / 1000 <= 52
    assert kinds["dwell"]["at_ms"] - kinds["enter"]["at_ms"] == pytest.approx(60_000, abs=1_000)
    assert 175 <= (kinds["exit"]["at_ms"] - START_MS) / 1000 <= 195
    assert all(0.5 <= each["confidence"] <= 1 for each in rows["transitions"])
    lines = ask("replay", walked, file).out.splitlines()
    assert lines[0] == "220 points, 2026-05-01 12:00:00 UTC to 2026-05-01 12:03:39 UTC"
    assert [line.split()[3] for line in lines[3:]] == ["enter", "dwell", "exit"]


def test_replay_tells_approaches_and_crossings(tmp_path: Path) -> None:
    """Where a fence asks for them, and where somebody was in it between two points."""
    file = collection(
        tmp_path / "f.geojson",
        feature(square(20), id="asks", approach_m=80, exit_margin_m=5),
        feature(square(8, east_m=100), id="between", exit_margin_m=5, crossings=True),
    )
    way = [(second, 0.0, east) for second, east in enumerate(range(-300, 60, 4))]
    walked = track(tmp_path / "walk.csv", [*way, (100, 0.0, 130.0), (101, 0.0, 134.0), (102, 0.0, 138.0)])
    told = [(each["kind"], each["fence"]) for each in ask("replay", walked, file, "--json").json["transitions"]]
    assert told.index(("approach", "asks")) < told.index(("enter", "asks"))
    assert ("cross", "between") in told
    assert ("enter", "between") not in told


@pytest.mark.parametrize(("zone", "kinds"), [("Europe/Vienna", ["enter", "dwell", "exit"]), ("Asia/Tokyo", [])])
def test_replay_keeps_hours_by_the_clock_of_the_store(tmp_path: Path, zone: str, kinds: list[str]) -> None:
    """The walk begins at noon UTC: in Vienna it is 14:00 and the fence in use, in Tokyo it isn't."""
    friday = [OpenHours(weekday=4, opens=14 * 60, closes=15 * 60)]
    house = Polygon(square(20))
    file = write(
        tmp_path / "w.json",
        stores=[Store(id="s", name="S", lat=LAT, lng=LNG, time_zone=zone)],
        fences=[Fence(id="f", store="s", kind="store", geometry=house, exit_margin_m=5, hours=friday)],
    )
    told = ask("replay", visit(tmp_path / "walk.csv"), file, "--json").json["transitions"]
    assert [each["kind"] for each in told] == kinds


def test_replay_goes_on_after_the_last_point(tmp_path: Path) -> None:
    """Somebody who falls silent inside is in the end nowhere: the server's timers say when, and why."""
    file = collection(tmp_path / "f.geojson", feature(square(20), dwell_s=300))
    walked = track(tmp_path / "walk.csv", [(second, 0.0, 0.0) for second in range(120)])
    told = ask("replay", walked, file, "--json").json["transitions"]
    assert [(each["kind"], each["reason"]) for each in told] == [("enter", ""), ("dwell", ""), ("exit", "silent")]
    # By timer, without a fix that shows it.
    assert told[1]["at_ms"] == told[0]["at_ms"] + 300_000
    assert told[2]["confidence"] < 0.5


def test_replay_of_silence_between_points(tmp_path: Path) -> None:
    """What timers do between two points comes between them."""
    file = collection(tmp_path / "f.geojson", feature(square(20), dwell_s=300))
    inside = [(second, 0.0, 0.0) for second in range(30)]
    later = [(second + 7_200, 0.0, 0.0) for second in range(30)]
    told = ask("replay", track(tmp_path / "walk.csv", inside + later), file, "--json").json["transitions"]
    kinds = [each["kind"] for each in told]
    assert kinds == ["enter", "dwell", "exit", "enter", "dwell", "exit"]
    assert told[1]["at_ms"] < START_MS + 7_200_000


def test_replay_counts_stale_points(tmp_path: Path) -> None:
    """Points that are no newer than one before them."""
    file = collection(tmp_path / "f.geojson", feature(square(20)))
    walked = track(tmp_path / "walk.csv", [(0, 500, 0), (5, 500, 0), (5, 500, 0), (3, 500, 0), (6, 500, 0)])
    assert ask("replay", walked, file, "--json").json["stale_points"] == 2
    assert "2 of them are no newer" in ask("replay", walked, file).out
    assert "no transitions" in ask("replay", walked, file).out


@pytest.mark.parametrize("suffix", ["gpx", "geojson"])
def test_replay_reads_other_tracks(tmp_path: Path, suffix: str) -> None:
    """The same walk, the same transitions."""
    file = collection(tmp_path / "f.geojson", feature(square(20), exit_margin_m=5))
    walked = visit(tmp_path / "walk.csv")
    rows = [row.split(",") for row in walked.read_text().splitlines()[1:]]
    other = tmp_path / f"walk.{suffix}"
    if suffix == "gpx":
        seconds = [(int(ts) - START_MS) // 1000 for ts, *_ in rows]
        points = "".join(
            f'<trkpt lat="{lat}" lon="{lng}"><time>2026-05-01T12:{second // 60:02d}:{second % 60:02d}Z</time>'
            "<hdop>0.8</hdop></trkpt>"
            for second, (_, lat, lng, _) in zip(seconds, rows, strict=True)
        )
        other.write_text(f"<gpx><trk><trkseg>{points}</trkseg></trk></gpx>")
    else:
        coordinates = [[float(lng), float(lat)] for _, lat, lng, _ in rows]
        times = [int(ts) for ts, *_ in rows]
        line = feature(coordinates, "LineString") | {"properties": {"coordTimes": times, "accuracy": 4}}
        other.write_text(json.dumps(line))
    assert ask("replay", other, file, "--json").json == ask("replay", walked, file, "--json").json


def test_replay_draws_a_picture(tmp_path: Path) -> None:
    """With the transitions numbered."""
    file = collection(tmp_path / "f.geojson", feature(square(20), name="Graben", exit_margin_m=5))
    picture = tmp_path / "p.svg"
    assert ask("replay", visit(tmp_path / "walk.csv"), file, "--picture", picture).code == 0
    said = [node.text for node in Xml.fromstring(picture.read_bytes()).iter("{http://www.w3.org/2000/svg}text")]
    assert "3 transitions" in said


def test_replay_names_what_is_wrong(tmp_path: Path) -> None:
    """The file and its line; before any fence is read. A file of another kind, or fences that can't be used, too."""
    file = collection(tmp_path / "f.geojson", feature(square(20)))
    (tmp_path / "bad.csv").write_text("ts,lat,lng\n1777636800000,48,16\n1777636801000,x,16\n")
    answer = ask("replay", tmp_path / "bad.csv", file)
    assert (answer.code, answer.out) == (2, "")
    assert "bad.csv" in answer.err
    assert "line 3" in answer.err
    (tmp_path / "walk.kml").write_text("")
    assert "a track is a" in ask("replay", tmp_path / "walk.kml", file).err
    bad = collection(tmp_path / "g.geojson", feature([square(20)[0][:-1]]))
    answer = ask("replay", visit(tmp_path / "walk.csv"), bad)
    assert (answer.code, "features[0], ring 0, vertex 3" in answer.err) == (2, True)


def test_an_index_in_steps_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many fences are indexed some at a time, for the progress bar's sake: children before their parents, too."""
    monkeypatch.setattr(fence_files, "MANY", 2)
    names = [f"f{number}" for number in range(7)]
    circle = Circle((LNG, LAT), 50.0)
    chain = [
        Fence(id=name, store="s", kind="department", geometry=circle, parent=names[number + 1] if number < 6 else None)
        for number, name in enumerate(names)
    ]
    index = fence_files.index_of(chain, [])
    assert index.match(np.array([LAT]), np.array([LNG])) == [tuple(range(7))]
    assert [fence.id for fence in index.ancestors(chain[0].fence_id)] == names[1:]
    assert WorldFile(fences=list(index.fences)) == WorldFile(fences=chain)


def test_the_documented_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/fences-cli.md that name their files; what they print has the shown table's head."""
    page = (DOCS / "fences-cli.md").read_text()
    commands = re.findall(r"^nearcast fences (.*?docs/examples.*?)(?:  +#.*)?$", page, flags=re.MULTILINE)
    assert len(commands) == 6
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(DOCS)
    for command in commands:
        answer = ask(*command.split())
        assert answer.code == 0, (command, answer.err)
        assert answer.out.splitlines()[0] in page or command.startswith("check")
    drawn, kept = ((folder / "fences-check.svg").read_text() for folder in (tmp_path, DOCS))
    for part in ("<text", "<path", "<circle", ">Rochusmarkt<", "M"):
        assert drawn.count(part) == kept.count(part), f"docs/fences-check.svg is not what is drawn now: {part}"
    transitions = [line.split()[3:5] for line in answer.out.splitlines()[3:]]
    assert ["enter", "store-1/building"] in transitions
    assert ["exit", "store-1/building"] in transitions
