"""Fences that are redrawn under people: it is the fence that moved, and the exit says so."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geofence.index import FenceIndex
from geofence.tracker import SILENCE_MS, SILENT_EXIT_CONFIDENCE, next_due_ms, on_timer
from nearcast.customer import Presence
from nearcast.events import Location
from nearcast.moments import Transition
from nearcast.world import Circle, Fence
from tests.geofence.places import fence, shifted, square
from tests.geofence.test_tracker import DEPARTMENT, LAT, LNG, RICH, START_MS, STORE, VICINITY, feed, fix, told, walks

#: The store as it stands after it was redrawn 100 m to the east.
MOVED = square(*shifted(LAT, LNG, 0.0, 100.0), 30.0)


def exits(transitions: Sequence[Transition]) -> list[tuple[str, float, float, str]]:
    return [
        (item.fence.id, (item.at_ms - START_MS) / 1000, item.confidence, item.reason)
        for item in transitions
        if item.kind == "exit"
    ]


def redrawn(*fences: Fence, **names: Any) -> FenceIndex:
    """The index with other geometries, by the name of the fence."""
    return FenceIndex.build(
        [msgspec.structs.replace(one, geometry=names.get(one.id.removeprefix("a-"), one.geometry)) for one in fences]
    )


@pytest.mark.parametrize(
    "next_fix",
    [
        fix(20, 0, 0),  # where they were
        fix(20, 0, -300),  # far away meanwhile
        fix(20, 0, 0, 500.0),  # one that says nothing
        Location(uid="u", ts=START_MS + 20_000, zones=["?"]),
    ],
)
def test_the_next_fix_tells(next_fix: Location) -> None:
    """One fix is enough: nobody moved, so there is nothing to wait for; the confidence is 0."""
    presence = Presence()
    feed(presence, FenceIndex.build([STORE]), [fix(0, 0, 0), fix(10, 0, 0)])
    assert exits(feed(presence, redrawn(STORE, store=MOVED), [next_fix])) == [("store", 20, 0.0, "changed")]
    assert presence.inside == {}


def test_whoever_leaves_by_themselves() -> None:
    """The fence was redrawn, and holds where they were last seen in it: an exit as ever."""
    presence, wider = Presence(), redrawn(STORE, store=square(LAT, LNG, 40.0))
    feed(presence, FenceIndex.build([STORE]), [fix(0, 0, 0), fix(10, 0, 0)])
    ((_, _, confidence, reason),) = exits(feed(presence, wider, [fix(20, 0, 90), fix(40, 0, 120)]))
    assert (confidence > 0.9, reason) == (True, "")


def test_whoever_is_in_the_fence_as_it_is_now_stays() -> None:
    """A fix inside of it goes on with the stay, wherever the one before was."""
    presence = Presence()
    feed(presence, FenceIndex.build([STORE]), [fix(0, 0, 0)])
    assert told(feed(presence, redrawn(STORE, store=MOVED), [fix(30, 0, 100)])) == [("dwell", "store", 30)]


@pytest.mark.parametrize(("outside_m", "accuracy_m", "told_of"), [(9, 4, False), (11, 4, True), (38, 20, False)])
def test_a_change_within_margin_or_error_is_none(outside_m: float, accuracy_m: float, told_of: bool) -> None:
    """It must be clear: farther outside than `exit_margin_m`, and than three deviations of that fix's error."""
    presence = Presence()
    smaller = redrawn(STORE, store=square(*shifted(LAT, LNG, 0.0, 30.0 + outside_m), 30.0))
    feed(presence, FenceIndex.build([STORE]), [fix(0, 0, 0, 5.0), fix(10, 0, 0, accuracy_m)])
    found = exits(feed(presence, smaller, [fix(20, 0, 0, accuracy_m)]))
    assert ("changed" in [reason for *_, reason in found]) == told_of


def test_a_sign_that_contradicts_the_position_a_little() -> None:
    """Who is in a fence by a beacon may be at coordinates outside of it: that is no change, of whatever fence."""
    department = msgspec.structs.replace(DEPARTMENT, beacons=["b"])
    index, presence = FenceIndex.build([STORE, department]), Presence()
    there = msgspec.structs.replace(fix(0, -20, -20, 10.0, "wifi"), zones=["b"])
    assert {name for _, name, _ in told(feed(presence, index, [there]))} == {"store", "a-department"}
    assert all(reason == "" for *_, reason in exits(feed(presence, index, [fix(20, -20, -20), fix(40, -25, -25)])))


def test_a_department_that_sticks_out_of_its_store() -> None:
    """Where they were is outside of the store, and always was; it is left as ever, or with the department's hours."""
    annex = fence(square(*shifted(LAT, LNG, 0.0, 60.0), 10.0), "annex", kind="department", parent="store")
    away = [fix(30, 0, 200)]
    presence = Presence()
    feed(presence, FenceIndex.build([STORE, annex]), [fix(0, 0, 60), fix(10, 0, 60)])
    assert {reason for *_, reason in exits(feed(presence, FenceIndex.build([STORE, annex]), away))} == {""}
    presence = Presence()
    feed(presence, FenceIndex.build([STORE, annex]), [fix(0, 0, 60), fix(10, 0, 60)])
    left = exits(feed(presence, FenceIndex.build([STORE]), [fix(20, 0, 60), *away]))
    assert {(name, reason) for name, *_, reason in left} == {("annex", "deleted"), ("store", "")}
    closing = FenceIndex.build([STORE, msgspec.structs.replace(annex, valid_until_ms=START_MS + 20_000)])
    presence = Presence()
    feed(presence, closing, [fix(0, 0, 60), fix(10, 0, 60)])
    by_timer = msgspec.msgpack.decode(msgspec.msgpack.encode(presence), type=Presence)
    assert exits(on_timer(by_timer, START_MS + 20_000, closing)) == [("annex", 20, 0.0, "expired")]
    assert {(name, reason) for name, *_, reason in exits(feed(presence, closing, away))} == {
        ("annex", "expired"),
        ("store", ""),
    }


def test_nested_fences_are_left_inner_first() -> None:
    """The department and its store were redrawn, and the vicinity around them was not."""
    old, presence = FenceIndex.build([STORE, DEPARTMENT, VICINITY]), Presence()
    new = redrawn(STORE, DEPARTMENT, VICINITY, store=MOVED, department=MOVED)
    feed(presence, old, [fix(0, 12, 12), fix(10, 12, 12)])
    assert exits(feed(presence, new, [fix(20, 12, 12)])) == [
        ("a-department", 20, 0.0, "changed"),
        ("store", 20, 0.0, "changed"),
    ]
    assert set(presence.inside) == {"vicinity"}


def test_a_parent_is_not_left_while_its_child_is_occupied() -> None:
    """Only the store was redrawn: whoever is in the department is in it all the same."""
    old, presence = FenceIndex.build([STORE, DEPARTMENT]), Presence()
    feed(presence, old, [fix(0, 12, 12), fix(10, 12, 12)])
    assert exits(feed(presence, redrawn(STORE, DEPARTMENT, store=MOVED), [fix(20, 12, 12)])) == []
    assert set(presence.inside) == {"store", "a-department"}


def test_a_timer_tells_instead_of_a_dwell() -> None:
    """The fence that somebody would dwell in is not where they were; with no timer before it, silence ends the stay."""
    new = redrawn(STORE, store=MOVED)
    presence = Presence()
    feed(presence, FenceIndex.build([STORE]), [fix(0, 0, 0)])
    due_ms = next_due_ms(presence, new)
    assert exits(on_timer(presence, due_ms, new)) == [("store", 30, 0.0, "changed")]
    presence = Presence()
    feed(presence, FenceIndex.build([STORE]), [fix(0, 0, 0), fix(30, 0, 0)])
    silent = on_timer(presence, next_due_ms(presence, new), new)
    assert exits(silent) == [("store", 30, SILENT_EXIT_CONFIDENCE, "silent")]


def test_records_from_before_the_accuracy_was_kept() -> None:
    """Of them nothing is claimed: the stay ends with the evidence of the next fixes."""
    presence = Presence()
    feed(presence, FenceIndex.build([STORE]), [fix(0, 0, 0), fix(10, 0, 0)])
    older = msgspec.json.decode(msgspec.json.encode(presence))
    nearby = older[4]
    assert nearby.pop() == 5.0
    presence = msgspec.json.decode(msgspec.json.encode(older), type=Presence)
    found = exits(feed(presence, redrawn(STORE, store=MOVED), [fix(30, 0, 0), fix(50, 0, 0)]))
    assert [reason for *_, reason in found] == [""]


@given(walks())
@settings(max_examples=100, deadline=None)
def test_nothing_changes_by_itself(walk: list[Location]) -> None:
    """While the world stays as it is no exit says "changed": not by signs, floors, poor fixes, silence or timers."""
    presence = Presence()
    for one in walk:
        due_ms = next_due_ms(presence, RICH)
        while due_ms and due_ms <= one.ts:
            assert "changed" not in {item.reason for item in on_timer(presence, due_ms, RICH)}
            due_ms = next_due_ms(presence, RICH)
        assert "changed" not in {item.reason for item in feed(presence, RICH, [one])}


@given(
    radius_m=st.floats(5, 200),
    moved_m=st.floats(0, 400),
    accuracy_m=st.floats(3, 60),
    at_m=st.floats(0, 0.99),
    pause_s=st.integers(1, SILENCE_MS // 1000),
)
@settings(max_examples=200, deadline=None)
def test_a_circle_that_moves(radius_m: float, moved_m: float, accuracy_m: float, at_m: float, pause_s: int) -> None:
    """Whoever stands still is out of it when, and only when, it lies clearly beside where they were."""
    old = fence(Circle((LNG, LAT), radius_m), "f", dwell_s=86_400)
    lat, lng = shifted(LAT, LNG, 0.0, moved_m)
    new = FenceIndex.build([msgspec.structs.replace(old, geometry=Circle((lng, lat), radius_m))])
    presence, here = Presence(), at_m * radius_m
    feed(presence, FenceIndex.build([old]), [fix(0, 0, here, accuracy_m), fix(20, 0, here, accuracy_m)])
    entered = bool(presence.inside) and presence.inside[old.fence_id].last_inside_ms == START_MS + 20_000
    found = exits(feed(presence, new, [fix(20 + pause_s, 0, here, accuracy_m)]))
    outside_m, needed_m = abs(moved_m - here) - radius_m, max(10.0, 3 * accuracy_m / 1.5096)
    if math.isclose(outside_m, needed_m, abs_tol=0.1):
        return
    assert (("f", 20 + pause_s, 0.0, "changed") in found) == (entered and outside_m > needed_m)
