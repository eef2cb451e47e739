"""Signs other than coordinates: what they prove, and who is believed when they disagree."""

import math

import msgspec
import pytest

from geofence.evidence import ACCESS_POINT_M, APP_CONFIDENCE, APP_M, BEACON_M, CODE_M, Evidence, middle_of
from geofence.index import FenceIndex
from nearcast.customer import Presence
from nearcast.events import Location
from nearcast.ids import FenceId
from nearcast.world import Circle, Corridor, MultiPolygon
from tests.geofence.places import fence, shifted, square
from tests.geofence.test_tracker import LAT, LNG, START_MS, feed, fix, told

STORE = fence(square(LAT, LNG, 30.0), "store", access_points=["ap"])
WINE = fence(
    square(*shifted(LAT, LNG, 15.0, 15.0), 8.0),
    "wine",
    kind="department",
    parent="store",
    beacons=["b-wine", "shared"],
    codes=["c-wine"],
)
BREAD = fence(
    square(*shifted(LAT, LNG, -15.0, -15.0), 8.0), "bread", kind="department", parent="store", beacons=["b-bread"]
)
UPSTAIRS = fence(square(LAT, LNG, 30.0), "upstairs", floor=1, beacons=["b-up", "shared"])
INDEX = FenceIndex.build([STORE, WINE, BREAD, UPSTAIRS])


def sign(t_s: float, *zones: str, at: Location | None = None, floor: int | None = None) -> Location:
    """A fix with these zones; without coordinates, or with those of `at`."""
    ts = START_MS + round(t_s * 1000)
    if at is None:
        return Location(uid="u", ts=ts, zones=list(zones), floor=floor, source="beacon")
    return msgspec.structs.replace(at, ts=ts, zones=list(zones), floor=floor)


def test_what_tokens_stand_for() -> None:
    """Each kind has its precision; the best sign of a fence counts; what nobody listed is counted, and says nothing."""
    evidence = Evidence(INDEX.fences)
    found = evidence.of(["c-wine", "b-wine", "ap", "shared", "bread", "??"], INDEX.reach_m)
    assert {name: found[name].precision_m for name in found} == {
        "wine": CODE_M,
        "store": ACCESS_POINT_M,
        "upstairs": BEACON_M,
        "bread": APP_M,
    }
    assert found[FenceId("bread")].confidence == APP_CONFIDENCE
    assert evidence.unknown(["c-wine", "??", "wine", "?"]) == 2
    large = FenceIndex.build([fence(Circle((LNG, LAT), 400.0), "large")])
    assert large.evidence.of(["large"], large.reach_m)[FenceId("large")].precision_m == 400.0


def test_signs_without_coordinates() -> None:
    """A beacon proves its department and the store around it, at once; another one leads from there to the next."""
    presence = Presence()
    steps = [sign(0, "b-wine"), sign(90, "b-wine"), sign(100, "b-bread"), sign(200, "??")]
    found = feed(presence, INDEX, steps)
    assert told(found) == [
        ("enter", "store", 0),
        ("enter", "wine", 0),
        ("dwell", "store", 90),
        ("dwell", "wine", 90),
        ("exit", "wine", 100),
        ("enter", "bread", 100),
    ]
    assert found[0].confidence == found[1].confidence == 0.95
    assert presence.nearby is not None
    assert (presence.nearby.located, presence.nearby.lat, presence.nearby.lng) == (False, 0.0, 0.0)


@pytest.mark.parametrize(
    ("token", "accuracy_m", "enters"),
    [
        ("b-wine", 10.0, True),  # the beacon is more precise than the fix far away, and believed
        ("c-wine", 2.5, True),
        ("ap", 5.0, False),  # the fix is more precise than the access point
        ("ap", 40.0, True),
        ("wine", 5.0, False),  # as it is than the app's own geofencing
        ("wine", 150.0, True),
    ],
)
def test_the_more_precise_is_believed(token: str, accuracy_m: float, enters: bool) -> None:
    """A sign and coordinates half a kilometre away contradict each other."""
    away = fix(0, 0.0, 1_200.0, accuracy_m, "wifi")
    entered = {name for kind, name, _ in told(feed(Presence(), INDEX, [sign(0, token, at=away)])) if kind == "enter"}
    assert entered == (({"store"} if token == "ap" else {"store", "wine"}) if enters else set())


def test_signs_and_coordinates_that_agree() -> None:
    """Then both count: the beacon for its department, the coordinates for the store, and the fix is kept."""
    presence = Presence()
    found = feed(presence, INDEX, [sign(0, "b-wine", at=fix(0, 10.0, 10.0))])
    assert [(item.fence.id, item.confidence > 0.94) for item in found][-1] == ("wine", True)
    assert presence.nearby is not None
    assert presence.nearby.located


def test_the_floor_rules_a_sign_out() -> None:
    """A beacon that is heard through the ceiling doesn't prove anything about the floor above."""
    heard = feed(Presence(), INDEX, [sign(0, "shared", floor=0)])
    assert [item.fence.id for item in heard] == ["store", "wine"]
    above = feed(Presence(), INDEX, [sign(0, "shared", floor=1)])
    assert "upstairs" in {item.fence.id for item in above}


def test_signs_change_nothing_for_who_is_elsewhere() -> None:
    """Unknown ids leave no trace: no transition, nothing kept."""
    presence = Presence()
    assert feed(presence, INDEX, [sign(0, "x", "y")]) == []
    assert presence == Presence(last_ms=START_MS)


def test_the_middle_of_a_fence() -> None:
    """Good to its size for each kind of geometry."""
    line = [(LNG, LAT), (LNG, LAT + 0.001), (LNG, LAT + 0.002)]
    square_ring = square(LAT, LNG, 30.0).coordinates
    for geometry, lat in (
        (Circle((LNG, LAT), 5.0), LAT),
        (square(LAT, LNG, 30.0), LAT),
        (MultiPolygon([square_ring]), LAT),
        (Corridor(coordinates=line, buffer_m=5.0), LAT + 0.001),
    ):
        assert middle_of(fence(geometry)) == pytest.approx((lat, LNG), abs=1e-9)
        assert not math.isnan(lat)
