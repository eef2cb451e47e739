"""Special days of fences: their own, those of fences around them, and their store's."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geofence.geojson import fences_from_geojson, fences_to_geojson
from geofence.index import FenceIndex
from geofence.rules import Rules
from geofence.tracker import next_due_ms, on_timer
from nearcast.customer import Presence
from nearcast.errors import InputError
from nearcast.hours import zone_named
from nearcast.ids import FenceId, StoreId
from nearcast.world import Fence, OpenHours, SpecialDay, Window
from tests.geofence.places import fence, square
from tests.geofence.test_rules import KINDS, line
from tests.geofence.test_tracker import LAT, LNG, START_MS, feed, fix, told

#: START_MS is Sunday, 15 June 2025, 15:06:40 UTC, 17:06:40 in Vienna.
SUNDAY = date(2025, 6, 15)
ALWAYS = [OpenHours(weekday=day, opens=0, closes=1440) for day in range(7)]
CLOSED, OTHER = [SpecialDay(SUNDAY)], [SpecialDay(SUNDAY, [Window(0, 1440)])]
S1 = StoreId("s1")


def rules(of_store: list[SpecialDay], **fields: dict[str, Any]) -> dict[str, Rules]:
    index = FenceIndex.build(line(**fields), special_days={StoreId("s"): of_store})
    return {kind: index.rules[FenceId(kind)] for kind in KINDS}


def days(found: Rules) -> tuple[list[SpecialDay], list[SpecialDay]]:
    return list(found.special_days), list(found.narrowed_by)


def test_whose_days_count() -> None:
    """Beside the hours or farther in they replace windows; farther out they only take time; the nearest count."""
    for found in rules(CLOSED).values():
        assert days(found) == ([], [])  # always in use, and so on that day
    found = rules(CLOSED, store={"hours": ALWAYS}, shelf={"special_days": OTHER})
    assert [days(found[kind]) for kind in KINDS[:3]] == [([], []), ([], CLOSED), ([], CLOSED)]
    assert days(found["product"]) == days(found["shelf"]) == (OTHER, [])
    found = rules(CLOSED, store={"special_days": OTHER}, shelf={"hours": ALWAYS})
    assert days(found["department"]) == (OTHER, [])
    assert days(found["product"]) == days(found["shelf"]) == ([], OTHER)
    found = rules(CLOSED, store={"hours": ALWAYS, "special_days": []})
    assert days(found["shelf"]) == ([], [])  # an empty list is a word, too


@pytest.mark.parametrize(
    ("fields", "of_store", "enters"),
    [
        ({"hours": ALWAYS}, [], True),
        ({"hours": ALWAYS}, CLOSED, False),
        ({"hours": ALWAYS}, [SpecialDay(SUNDAY - timedelta(days=1))], True),
        ({}, CLOSED, True),
        ({"special_days": CLOSED}, [], False),
        ({"hours": [], "special_days": OTHER}, CLOSED, True),
        ({"hours": []}, OTHER, False),
    ],
)
def test_nobody_comes_in_on_a_day_off(fields: dict[str, Any], of_store: list[SpecialDay], enters: bool) -> None:
    """A fence that is not in use on the day notices nobody."""
    index = FenceIndex.build([fence(square(LAT, LNG, 30.0), "f", **fields)], special_days={S1: of_store})
    assert told(feed(Presence(), index, [fix(t_s, 0, 0) for t_s in (0, 20)])) == ([("enter", "f", 0)] if enters else [])


@pytest.mark.parametrize("by_timer", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_a_stay_ends_when_the_day_does(by_timer: bool, own: bool) -> None:
    """At the minute, by the store's clock, be it the fence's special day or its store's; as at the end of hours."""
    short = [SpecialDay(SUNDAY, [Window(540, 17 * 60 + 10)])]
    fields = {"special_days": short} if own else {"hours": ALWAYS}
    index = FenceIndex.build(
        [fence(square(LAT, LNG, 30.0), "f", dwell_s=5000.0, **fields)],
        zones={S1: zone_named("Europe/Vienna")},
        special_days={} if own else {S1: short},
    )
    presence = Presence()
    # Fixes that only confirm ask for the time, too.
    feed(presence, index, [fix(0, 0, 0), fix(60, 0, 0), fix(90, 0, 0)])
    assert next_due_ms(presence, index) == START_MS + 200_000
    ended = on_timer(presence, START_MS + 200_000, index) if by_timer else feed(presence, index, [fix(230, 0, 0)])
    assert told(ended) == [("exit", "f", 200)]
    assert (ended[0].reason, ended[0].confidence) == ("closed", 0.0)


@given(
    own=st.none() | st.lists(st.integers(-2, 2), unique=True, max_size=2),
    of_store=st.lists(st.integers(-2, 2), unique=True, max_size=2),
    windows=st.lists(st.builds(Window, opens=st.integers(0, 1440), closes=st.integers(0, 1440)), max_size=2),
    minute=st.integers(-1_500, 1_500),
)
@settings(max_examples=100)
def test_a_bar_never_opens_by_its_stores_special_days(
    own: list[int] | None, of_store: list[int], windows: list[Window], minute: int
) -> None:
    """Whatever those say, outside of its own hours it is open on none but its own special days."""
    week = [OpenHours(weekday=6, opens=1080, closes=120)]

    def at(numbers: list[int]) -> list[SpecialDay]:
        return [SpecialDay(SUNDAY + timedelta(days=number), windows) for number in numbers]

    fields = {} if own is None else {"special_days": at(own)}
    place = square(LAT, LNG, 30.0)
    bar = FenceIndex.build([fence(place, "f", hours=week, **fields)], special_days={S1: at(of_store)})
    plain = FenceIndex.build([fence(place, "f", hours=week)])
    midnight_ms = int(datetime(2025, 6, 15, tzinfo=UTC).timestamp()) * 1000
    at_ms = midnight_ms + minute * 60_000
    if not own and bar.rules[FenceId("f")].is_open(at_ms, None):
        assert plain.rules[FenceId("f")].is_open(at_ms, None)


DAYS = st.dictionaries(
    st.dates(),
    st.lists(st.builds(Window, opens=st.integers(0, 1440), closes=st.integers(0, 1440)), max_size=2),
    max_size=3,
)


@given(given_days=st.none() | DAYS)
def test_as_geojson_and_back(given_days: dict[date, list[Window]] | None) -> None:
    """None, an empty list and any days come back as they were."""
    listed = None if given_days is None else [SpecialDay(day, found) for day, found in given_days.items()]
    before = fence(square(LAT, LNG, 30.0), "f", special_days=listed)
    assert fences_from_geojson(fences_to_geojson([before])) == [before]


def test_refused() -> None:
    """As for stores: a day that is given twice, or that isn't one."""
    told_of: dict[str, Any] = msgspec.json.decode(fences_to_geojson([fence(square(LAT, LNG, 30.0), "f")]))
    properties = told_of["features"][0]["properties"]
    for given_days, said in (
        ([{"date": "2026-12-24"}, {"date": "2026-12-24"}], "`special_days` has 2026-12-24 twice"),
        ([{"date": "2026-12-32"}], "RFC3339"),
        ([{"date": "2026-12-24", "windows": [{"opens": 0, "closes": 1441}]}], "1440"),
    ):
        properties["special_days"] = given_days
        with pytest.raises(InputError, match=said) as caught:
            fences_from_geojson(msgspec.json.encode(told_of))
        assert caught.value.reason == "invalid_geojson"
        assert caught.value.where.startswith("features[0].properties")
    with pytest.raises(msgspec.ValidationError, match="twice"):
        msgspec.convert(
            {"id": "f", "store": "s", "kind": "store", "geometry": {"type": "Circle", "center": [1, 2], "radius_m": 3}}
            | {"special_days": [{"date": "2026-12-24"}] * 2},
            Fence,
        )
