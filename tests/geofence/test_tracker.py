"""Enter, dwell and exit, as a customer's fixes make them."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from geofence import tracker
from geofence.index import FenceIndex
from geofence.tracker import KEPT_PENDING, SILENCE_MS, SILENT_EXIT_CONFIDENCE, next_due_ms, on_timer, places, track
from nearcast.customer import Nearby, Pending, Presence, Stay
from nearcast.events import Location
from nearcast.ids import FenceId
from nearcast.moments import Transition
from nearcast.world import Circle, Fence, OpenHours, Polygon
from tests.geofence.places import fence, shifted, square

LAT, LNG = 48.2, 16.37
START_MS = 1_750_000_000_000


def fix(t_s: float, north_m: float, east_m: float, accuracy_m: float = 5.0, source: str = "gps") -> Location:
    lat, lng = shifted(LAT, LNG, north_m, east_m)
    return Location(
        uid="u",
        ts=START_MS + round(t_s * 1000),
        lat=lat,
        lng=lng,
        accuracy_m=accuracy_m,
        source=source,  # type: ignore[arg-type]
    )


def feed(presence: Presence, index: FenceIndex, fixes: list[Location]) -> list[Transition]:
    located = [one for one in fixes if one.lat == one.lat]
    matched = iter(index.match(np.array([one.lat for one in located]), np.array([one.lng for one in located])))
    found = []
    for one in fixes:
        inside, near = places(next(matched) if one.lat == one.lat else (), index)
        found += track(presence, one, inside, index, near)
    return found


def told(transitions: list[Transition]) -> list[tuple[str, str, float]]:
    return [(item.kind, item.fence.id, (item.at_ms - START_MS) / 1000) for item in transitions]


#: A store of 60 m by 60 m with a department in its north-east quarter, a shelf in that, and its vicinity.
STORE = fence(square(LAT, LNG, 30.0), "store", dwell_s=30.0)
DEPARTMENT = fence(square(*shifted(LAT, LNG, 12.0, 12.0), 12.0), "a-department", kind="department", parent="store")
SHELF = fence(square(*shifted(LAT, LNG, 20.0, 20.0), 3.0), "a-shelf", kind="shelf", parent="a-department")
VICINITY = fence(Circle((LNG, LAT), 150.0), "vicinity", kind="vicinity", dwell_s=1000.0)
INDEX = FenceIndex.build([STORE, DEPARTMENT, SHELF, VICINITY])


def test_walk() -> None:
    """A straight walk at 1 m/s, one fix a second, through the store, with a stop: everything at its time."""
    presence = Presence()
    positions = [*range(-200, 0), *[0] * 20, *range(200)]
    walk = [fix(second, -15.0, east) for second, east in enumerate(positions)]
    transitions = told(feed(presence, INDEX, walk))
    assert [(kind, name) for kind, name, _ in transitions] == [
        ("enter", "vicinity"),
        ("enter", "store"),
        ("dwell", "store"),
        ("exit", "store"),
        ("exit", "vicinity"),
    ]
    entered_s = transitions[1][2]
    # Over the edges at 51, 170, 250 and 370 s: a few metres later it is sure enough, and 10 m later for who leaves.
    assert [at_s for _, _, at_s in transitions] == pytest.approx([55, 173, entered_s + 30, 261, 382], abs=4)
    assert presence == Presence(last_ms=walk[-1].ts, timer_ms=0)
    assert presence.last_ms == walk[-1].ts


@pytest.mark.parametrize("accuracy_m", [5.0, 7.5])
@pytest.mark.parametrize("drift_s", [0.0, 60.0])
@pytest.mark.parametrize("inside_m", [-5.0, -1.0, 1.0, 5.0])
def test_no_flapping(accuracy_m: float, drift_s: float, inside_m: float) -> None:
    """Standing at the edge for an hour at one fix a second, errors independent or of one minute's drift: nobody
    who is outside comes in, and whoever is inside comes in at most once and never leaves.
    """
    rng = np.random.default_rng([round(accuracy_m), round(drift_s), round(inside_m + 10)])
    fixes = standing(rng, 3_600, inside_m, accuracy_m, drift_s)
    kinds = [kind for kind, _, _ in told(feed(Presence(), FenceIndex.build([STORE]), fixes))]
    assert kinds in ([], ["enter", "dwell"] if inside_m > 0 else [])


def standing(
    rng: np.random.Generator, count: int, inside_m: float, accuracy_m: float, drift_s: float, every_s: int = 1
) -> list[Location]:
    """Fixes of someone who stands so far inside the store's eastern wall."""
    errors = rng.normal(0, accuracy_m / 1.5096, (count, 2))
    if drift_s:
        kept = np.exp(-every_s / drift_s)
        for step in range(1, count):
            errors[step] = kept * errors[step - 1] + np.sqrt(1 - kept * kept) * errors[step]
    return [
        fix(number * every_s, north, 30.0 - inside_m + east, accuracy_m)
        for number, (north, east) in enumerate(errors.tolist())
    ]


def test_margin() -> None:
    """A fix within `exit_margin_m` leaves nothing, however precise; beyond it, a poor fix must be deviations away."""
    index = FenceIndex.build([STORE])
    for accuracy_m, stays_at_m, leaves_at_m in ((3.0, 9.5, 10.5), (20.0, 20.0, 42.0)):
        presence = Presence(inside={FenceId("store"): Stay(START_MS, START_MS)})
        assert feed(presence, index, [fix(1, 0.0, 30.0 + stays_at_m, accuracy_m)]) == []
        (transition,) = feed(presence, index, [fix(41, 0.0, 30.0 + leaves_at_m, accuracy_m)])
        assert transition.kind == "exit"
        assert transition.confidence > 0.95


def test_far_away_is_left() -> None:
    """30 deviations outside no error explains: one fix is enough, also a moment later."""
    index = FenceIndex.build([STORE])
    assert told(feed(Presence(), index, [fix(0, 0, 0), fix(1, 0, 120), fix(2, 0, 135)])) == [
        ("enter", "store", 0),
        ("exit", "store", 2),
    ]


def test_the_fences_own_rules() -> None:
    """`enter_fixes`, `enter_s`, `exit_fixes` and `exit_s` are waited for, by fixes that all say the same."""
    index = FenceIndex.build([fence(square(LAT, LNG, 30.0), "f", enter_fixes=3, enter_s=40, exit_fixes=2, exit_s=30)])
    inside = [fix(t_s, 0, 0) for t_s in (0, 15, 30, 45)]
    outside = [fix(t_s, 0, 80) for t_s in (60, 75, 90)]
    assert told(feed(Presence(), index, inside + outside)) == [("enter", "f", 45), ("exit", "f", 90)]


def test_one_lying_fix_changes_nothing() -> None:
    """A reflected signal puts a fix, or two, 50 m away: nobody comes in and nobody leaves, at a fix a second."""
    index = FenceIndex.build([STORE])
    near = Presence(
        nearby=Nearby(
            *shifted(LAT, LNG, 0, 35),
            START_MS - 1_000,
            entering={FenceId("store"): Pending(START_MS - 1_000, START_MS - 1_000)},
        )
    )
    outside = [fix(t_s, 0, 35 if t_s not in (20, 40, 41) else 0) for t_s in range(60)]
    assert feed(near, index, outside) == []
    inside = [fix(t_s, 0, 0 if t_s not in (20, 40, 41) else 60) for t_s in range(60)]
    assert [kind for kind, _, _ in told(feed(Presence(), index, inside))] == ["enter", "dwell"]


def test_who_walks_in_is_in_after_a_few_steps() -> None:
    """Where fixes were kept on the way (here in the vicinity), walking is seen, and less evidence is asked for."""
    index = FenceIndex.build([STORE, VICINITY])
    rng = np.random.default_rng(3)
    walk = [
        fix(t_s, north, east, 7.5)
        for t_s, (north, east) in enumerate(rng.normal(0, 5, (200, 2)) + [(0, 1.4 * s - 190) for s in range(200)])
    ]
    at_s = next(at_s for kind, name, at_s in told(feed(Presence(), index, walk)) if (kind, name) == ("enter", "store"))
    assert 160 / 1.4 - 3 <= at_s <= 160 / 1.4 + 5


def test_dwell_once_a_stay() -> None:
    """Dwell comes once, and again only after leaving and coming back."""
    index = FenceIndex.build([STORE])
    stays = [fix(second, 0.0, 0.0) for second in range(0, 100, 10)]
    away = [fix(200, 0.0, 200.0)]
    again = [fix(second, 0.0, 0.0) for second in range(300, 400, 10)]
    assert told(feed(Presence(), index, stays + away + again)) == [
        ("enter", "store", 0),
        ("dwell", "store", 30),
        ("exit", "store", 200),
        ("enter", "store", 300),
        ("dwell", "store", 330),
    ]


DAY_S = 86_400.0


def test_a_silent_device_is_not_inside_for_ever() -> None:
    """Seen at a day's distance, twice in the store: they left when last seen, came anew, and dwell from then on."""
    index = FenceIndex.build([STORE])
    transitions = feed(Presence(), index, [fix(0, 0, 0), fix(10, 0, 0), fix(DAY_S, 0, 0), fix(DAY_S + 30, 0, 0)])
    assert told(transitions) == [
        ("enter", "store", 0),
        ("exit", "store", 10),
        ("enter", "store", DAY_S),
        ("dwell", "store", DAY_S + 30),
    ]
    assert transitions[1].confidence == SILENT_EXIT_CONFIDENCE


def test_silence_begins_after_its_limit() -> None:
    """At the limit the stay goes on, and its dwell is due; a millisecond later it is over."""
    index = FenceIndex.build([STORE])
    limit_s = SILENCE_MS / 1000
    assert told(feed(Presence(), index, [fix(0, 0, 0), fix(limit_s, 0, 0)])) == [
        ("enter", "store", 0),
        ("dwell", "store", limit_s),
    ]
    assert told(feed(Presence(), index, [fix(0, 0, 0), fix(limit_s + 0.001, 0, 0)])) == [
        ("enter", "store", 0),
        ("exit", "store", 0),
        ("enter", "store", limit_s + 0.001),
    ]


@pytest.mark.parametrize(("north_m", "accuracy_m"), [(5_000.0, 5.0), (35.0, 5.0), (0.0, 500.0)])
def test_silence_ends_wherever_the_fix_is(north_m: float, accuracy_m: float) -> None:
    """Far away, just outside, or too poor to tell: the stay is over, once, at the last time seen."""
    presence = Presence()
    index = FenceIndex.build([STORE])
    walk = [fix(0, 0, 0), fix(7_200, north_m, 0, accuracy_m), fix(7_201, north_m, 0, accuracy_m)]
    assert told(feed(presence, index, walk)) == [("enter", "store", 0), ("exit", "store", 0)]
    assert presence.inside == {}


def test_fixes_that_tell_nothing_are_silence_too() -> None:
    """A fix a minute, each worse than the fence, doesn't keep anybody in it."""
    index = FenceIndex.build([STORE])
    poor = [fix(minute * 60, 0, 0, 500.0) for minute in range(1, 60)]
    assert told(feed(Presence(), index, [fix(0, 0, 0), *poor])) == [("enter", "store", 0), ("exit", "store", 0)]


def test_silence_in_nested_fences() -> None:
    """Out of sight in the shelf: inner exits first, each at its own last time; then outer enters first."""
    places = [(0, 20.0), (20, 12.0), (3_600, 20.0)]
    walk = [fix(t_s, off_m, off_m, 1.0, "beacon") for t_s, off_m in places]
    assert told(feed(Presence(), INDEX, walk))[4:] == [
        ("exit", "a-shelf", 0),
        ("exit", "a-department", 20),
        ("exit", "store", 20),
        ("exit", "vicinity", 20),
        ("enter", "store", 3_600),
        ("enter", "vicinity", 3_600),
        ("enter", "a-department", 3_600),
        ("enter", "a-shelf", 3_600),
    ]


def test_silence_while_the_fence_vanished() -> None:
    """A fence deleted while nobody looked is left once, at the last time seen."""
    presence = Presence()
    feed(presence, INDEX, [fix(0, 0, 0)])
    gone = feed(presence, FenceIndex.build([STORE]), [fix(3_600, 500, 0)])
    assert told(gone) == [("exit", "store", 0), ("exit", "vicinity", 0)]
    assert presence.inside == {}


def test_stale_fix() -> None:
    """A fix that is not newer than the last one changes nothing."""
    presence = Presence()
    feed(presence, INDEX, [fix(10, 0.0, 0.0)])
    before = msgspec.json.encode(presence)
    assert feed(presence, INDEX, [fix(10, 0.0, 500.0), fix(9, 0.0, 500.0)]) == []
    assert msgspec.json.encode(presence) == before


def test_fix_worse_than_the_fence() -> None:
    """An accuracy radius larger than the fence enters nothing, keeps nobody, and shows nobody out."""
    index = FenceIndex.build([STORE])
    presence = Presence()
    assert feed(presence, index, [fix(1, 0.0, 0.0, 40.0)]) == []
    assert told(feed(presence, index, [fix(2, 0.0, 0.0, 10.0)])) == [("enter", "store", 2)]
    assert feed(presence, index, [fix(50, 0.0, 0.0, 1_000.0), fix(91, 0.0, 900.0, 1_000.0)]) == []
    assert presence.inside[FenceId("store")].last_inside_ms == START_MS + 2_000


def test_confidence() -> None:
    """Deep inside with a good fix is sure; a small fence and a fix that is little better than it are not."""
    index = FenceIndex.build([STORE])
    (deep,) = feed(Presence(), index, [fix(1, 0.0, 0.0, 5.0)])
    assert deep.confidence > 0.995
    assert feed(Presence(), index, [fix(1, 0.0, 29.0, 10.0)]) == []
    kiosk = FenceIndex.build([fence(Circle((LNG, LAT), 10.0), "kiosk")])
    (small,) = feed(Presence(), kiosk, [fix(1, 0.0, 0.0, 9.0), fix(21, 0.0, 2.0, 9.0)])
    assert 0.6 < small.confidence < 0.97


def test_confidence_is_the_share_that_is_right() -> None:
    """Of the enters into a kiosk at confidences about p, a share of about p is of people who are really inside."""
    index = FenceIndex.build([fence(Circle((LNG, LAT), 12.0), "kiosk")])
    rng = np.random.default_rng(11)
    told_of: list[tuple[float, bool]] = []
    for _ in range(1_500):
        north_m, east_m = rng.uniform(-30, 30, 2).tolist()
        accuracy_m = float(rng.uniform(5, 11))
        errors = rng.normal(0, accuracy_m / 1.5096, (8, 2)).tolist()
        fixes = [fix(40 * n, north_m + n_m, east_m + e_m, accuracy_m) for n, (n_m, e_m) in enumerate(errors)]
        for item in feed(Presence(), index, fixes):
            if item.kind == "enter":
                told_of.append((item.confidence, bool(np.hypot(north_m, east_m) <= 12.0)))
                break
    for low, high in ((0.8, 0.95), (0.95, 1.01)):
        found = [(confidence, right) for confidence, right in told_of if low <= confidence < high]
        assert len(found) >= 20, (low, len(found))
        mean = sum(confidence for confidence, _ in found) / len(found)
        assert sum(right for _, right in found) / len(found) == pytest.approx(mean, abs=0.12), (low, high, len(found))


@pytest.mark.parametrize(
    ("source", "accuracy_m", "enters"),
    [
        ("gps", 5.0, False),
        ("gps", 0.0, False),
        ("gps", 0.5, False),
        ("beacon", 0.5, True),
        ("qr", 0.0, True),
        ("wifi", 0.8, True),
        ("wifi", 5.0, False),
    ],
)
def test_product(source: str, accuracy_m: float, enters: bool) -> None:
    """Three feet around a product: precise sources tell, satellites don't, whatever accuracy they claim."""
    product = fence(Circle((LNG, LAT), 0.9144), "p", kind="product", sku="x", exit_margin_m=0.9144)
    index = FenceIndex.build([product])
    kinds = [kind for kind, _, _ in told(feed(Presence(), index, [fix(1, 0.1, 0.1, accuracy_m, source)]))]
    assert kinds == (["enter"] if enters else [])


def test_leaving_a_product() -> None:
    """A beacon fix two metres from the product's edge is an exit."""
    product = fence(Circle((LNG, LAT), 0.9144), "p", kind="product", sku="x", exit_margin_m=0.9144)
    index = FenceIndex.build([product])
    walk = [fix(1, 0.0, 0.0, 0.3, "beacon"), fix(2, 0.0, 1.5, 0.3, "beacon"), fix(3, 0.0, 3.0, 0.3, "beacon")]
    assert told(feed(Presence(), index, walk)) == [("enter", "p", 1), ("exit", "p", 3)]


def test_nested_order() -> None:
    """Into the shelf at once: the outer first; out at once: the inner first; equals by id."""
    presence = Presence()
    inside = feed(presence, INDEX, [fix(1, 20.0, 20.0, 1.0, "beacon")])
    assert [item.fence.id for item in inside] == ["store", "vicinity", "a-department", "a-shelf"]
    outside = feed(presence, INDEX, [fix(2, 500.0, 500.0, 1.0, "beacon")])
    assert [item.fence.id for item in outside] == ["a-shelf", "a-department", "store", "vicinity"]


def test_exits_before_enters() -> None:
    """Jumping from one store to another leaves the first before entering the second."""
    other = fence(square(*shifted(LAT, LNG, 0.0, 300.0), 30.0), "another")
    presence = Presence()
    index = FenceIndex.build([other, STORE])
    assert told(feed(presence, index, [fix(1, 0, 0), fix(31, 0, 300)])) == [
        ("enter", "store", 1),
        ("exit", "store", 31),
        ("enter", "another", 31),
    ]


def test_inside_a_child_is_inside_the_parent() -> None:
    """A department that sticks out of its store: whoever is in it entered the store, and stays in it."""
    annex = fence(square(*shifted(LAT, LNG, 0.0, 60.0), 10.0), "annex", kind="department", parent="store")
    index = FenceIndex.build([STORE, annex])
    presence = Presence()
    assert told(feed(presence, index, [fix(1, 0, 60)])) == [("enter", "store", 1), ("enter", "annex", 1)]
    assert told(feed(presence, index, [fix(2, 0, 61), fix(50, 0, 62)])) == [
        ("dwell", "store", 50),
        ("dwell", "annex", 50),
    ]
    assert told(feed(presence, index, [fix(61, 0, 120)])) == [("exit", "annex", 61), ("exit", "store", 61)]


def test_approach() -> None:
    """Coming within `approach_m` from outside is told once, and again only after having been clearly away."""
    index = FenceIndex.build([fence(square(LAT, LNG, 30.0), "f", approach_m=100.0)])
    presence = Presence()
    walk = [fix(30 * n, 0, east) for n, east in enumerate([300, 140, 60, 140, 60, 0, 60, 300, 60])]
    assert told(feed(presence, index, walk)) == [
        ("approach", "f", 60),
        ("enter", "f", 150),
        ("exit", "f", 180),
        ("approach", "f", 240),
    ]
    assert presence.nearby is not None
    assert feed(Presence(), index, [fix(0, 0, 0), fix(30, 0, 5)])[0].kind == "enter"
    (only_just,) = feed(Presence(), index, [fix(0, 0, 129.0, 20.0)])
    assert 0.5 <= only_just.confidence < 0.6


def test_cross() -> None:
    """The way between two fixes through a kiosk is a cross, if the kiosk asks for it, and where positions are kept:
    around other fences only."""
    kiosk = fence(Circle((LNG, LAT), 15.0), "kiosk", crossings=True)
    walk = [fix(0, 0, -60), fix(30, 0, 60)]
    assert feed(Presence(), FenceIndex.build([kiosk]), walk) == []
    index = FenceIndex.build([kiosk, VICINITY])
    crossed = feed(Presence(), index, walk)
    assert told(crossed) == [("enter", "vicinity", 0), ("cross", "kiosk", 30)]
    assert crossed[1].confidence > 0.95
    for other in (
        [fix(0, 0, -60), fix(121, 0, 60)],  # too long ago
        [fix(0, -40, -60), fix(30, -40, 60)],  # past it
        [fix(0, 0, -60), fix(15, 0, 0), fix(30, 0, 60)],  # with a fix in it
        [fix(0, 0, -60, 20.0), fix(30, 0, 60, 20.0)],  # too poor for so small a place
    ):
        assert "cross" not in {kind for kind, _, _ in told(feed(Presence(), index, other))}
    around = fence(Circle((LNG, LAT), 30.0), "hall")
    assert told(feed(Presence(), FenceIndex.build([kiosk, around, VICINITY]), walk)) == told(crossed)
    silent = FenceIndex.build([msgspec.structs.replace(kiosk, crossings=False), VICINITY])
    assert told(feed(Presence(), silent, walk)) == [("enter", "vicinity", 0)]


def test_a_fence_that_closes_and_one_that_expires() -> None:
    """Stays end when the time of the fence is over, by timer or with the next fix; nobody comes in outside of it."""
    until_ms = START_MS + 100_000
    hours = [OpenHours(weekday=6, opens=0, closes=15 * 60 + 10)]  # START_MS is Sunday, 15:06:40 UTC
    for fields, at_s, reason in (({"valid_until_ms": until_ms}, 100, "expired"), ({"hours": hours}, 200, "closed")):
        index = FenceIndex.build([fence(square(LAT, LNG, 30.0), "f", dwell_s=5000.0, **fields)])
        for by_timer in (True, False):
            presence = Presence()
            feed(presence, index, [fix(0, 0, 0), fix(60, 0, 0)])
            assert next_due_ms(presence, index) == START_MS + at_s * 1000
            if by_timer:
                ended = on_timer(presence, START_MS + at_s * 1000, index)
            else:
                ended = feed(presence, index, [fix(at_s + 30, 0, 0)])
            assert told(ended) == [("exit", "f", at_s)]
            assert (ended[0].reason, ended[0].confidence) == (reason, 0.0)
            assert feed(presence, index, [fix(at_s + 60, 0, 0), fix(at_s + 90, 0, 0)]) == []


def test_whoever_is_in_a_closed_store_is_in_none_of_its_departments() -> None:
    """A department with hours of its own closes with its store: no enter of the one by way of the other."""
    shut = [OpenHours(weekday=0, opens=0, closes=60)]
    always = [OpenHours(weekday=day, opens=0, closes=1440) for day in range(7)]
    outer = fence(square(LAT, LNG, 30.0), "outer", hours=shut)
    inner = fence(square(LAT, LNG, 20.0), "inner", kind="department", parent="outer", hours=always)
    assert feed(Presence(), FenceIndex.build([outer, inner]), [fix(t_s, 0, 0) for t_s in (0, 20, 40)]) == []


def test_another_floor() -> None:
    """On another floor nobody comes in, and who goes there leaves; without a floor, only the position counts."""
    index = FenceIndex.build([fence(square(LAT, LNG, 30.0), "f", floor=1)])

    def on(floor: int | None, t_s: float) -> Location:
        return msgspec.structs.replace(fix(t_s, 0, 0), floor=floor)

    assert feed(Presence(), index, [on(0, t_s) for t_s in (0, 20, 40)]) == []
    presence = Presence()
    assert told(feed(presence, index, [on(None, 0), on(1, 20), on(2, 40)])) == [("enter", "f", 0), ("exit", "f", 40)]


def test_fixes_that_come_in_one_delivery() -> None:
    """Ten fixes of the last ten minutes say the same however late they are heard of: time is the fixes' own."""
    index = FenceIndex.build([STORE, VICINITY])
    walk = [fix(60 * n, 0, east) for n, east in enumerate([400, 200, 100, 40, 10, 0, 5, 40, 100, 400])]
    one_by_one, at_once = Presence(), Presence()
    told_of = [item for one in walk for item in feed(one_by_one, index, [one])]
    assert feed(at_once, index, walk) == told_of
    assert {(item.kind, item.fence.id) for item in told_of} >= {
        ("enter", "store"),
        ("dwell", "store"),
        ("exit", "store"),
    }
    assert at_once == one_by_one


def test_the_position_is_forgotten() -> None:
    """A quarter of an hour after the last fix, nothing of where it was is left; a wanderer leaves nothing at once."""
    presence = Presence()
    feed(presence, INDEX, [fix(0, 0, 0)])
    assert presence.nearby is not None
    due_ms = START_MS + SILENCE_MS + 1
    while next_due_ms(presence, INDEX) and next_due_ms(presence, INDEX) < due_ms:
        on_timer(presence, next_due_ms(presence, INDEX), INDEX)
    assert next_due_ms(presence, INDEX) == due_ms
    on_timer(presence, due_ms, INDEX)
    assert presence == Presence(last_ms=START_MS)
    feed(presence, INDEX, [fix(2_000, 0, 0), fix(2_060, 900, 0)])
    assert presence == Presence(last_ms=START_MS + 2_060_000)


def test_what_is_kept_is_bounded() -> None:
    """Whoever hovers at the edges of hundreds of fences leaves no more than so many attempts, and a short trail."""
    many = [fence(Circle((LNG, LAT), 40.0 + number / 100), f"f{number}") for number in range(100)]
    index, presence = FenceIndex.build(many), Presence()
    rng = np.random.default_rng(1)
    for second in range(60):
        feed(presence, index, [fix(second, 0, 43.0 + rng.normal(0, 3.0))])
        if nearby := presence.nearby:
            assert len(nearby.entering) <= KEPT_PENDING
            assert len(nearby.leaving) <= KEPT_PENDING
            assert len(nearby.trail) <= 7
    assert len(msgspec.json.encode(presence)) < 5_000


def test_fence_that_vanished() -> None:
    """A fence that left the index is left at the next fix, by id, with confidence 0; the rest goes on."""
    presence = Presence()
    feed(presence, INDEX, [fix(1, 20.0, 20.0, 1.0, "beacon")])
    smaller = FenceIndex.build([STORE, VICINITY])
    gone = feed(presence, smaller, [fix(2, 20.0, 20.0, 1.0, "beacon")])
    assert told(gone) == [("exit", "a-department", 2), ("exit", "a-shelf", 2)]
    assert [(item.confidence, item.reason) for item in gone] == [(0.0, "deleted")] * 2
    assert sorted(presence.inside) == ["store", "vicinity"]


@st.composite
def walks(draw: st.DrawFn) -> list[Location]:
    """A random walk near the store, with jumps, poor fixes, other sources, late fixes and long silences."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 80))
    steps = rng.normal(0, draw(st.sampled_from([1.0, 8.0, 40.0])), (count, 2)).cumsum(axis=0) * 0.7
    seconds = (np.arange(count) * draw(st.sampled_from([1, 7, 400])) + rng.integers(-3, 3, count)).tolist()
    accuracies = rng.choice([0.5, 4.0, 10.0, 25.0, 2_000.0], count).tolist()
    sources = rng.choice(["gps", "wifi", "beacon"], count).tolist()
    signs = rng.choice(["", "", "", "", "b-shelf", "a-department", "?"], count).tolist()
    floors = rng.choice([None, None, None, None, 0, 1], count).tolist()
    blind = (rng.random(count) < 0.3).tolist()
    return [
        msgspec.structs.replace(
            fix(10 + t, north, east, accuracy, source),
            zones=[sign] if sign else [],
            floor=floor,
            **({"lat": math.nan, "lng": math.nan} if sign and without else {}),
        )
        for t, (north, east), accuracy, source, sign, floor, without in zip(
            seconds, steps.tolist(), accuracies, sources, signs, floors, blind, strict=True
        )
    ]


#: As above, and with all that else can bring a transition about.
RICH = FenceIndex.build(
    [
        msgspec.structs.replace(STORE, approach_m=60.0),
        msgspec.structs.replace(DEPARTMENT, floor=0, crossings=True),
        msgspec.structs.replace(SHELF, beacons=["b-shelf"]),
        msgspec.structs.replace(VICINITY, valid_until_ms=START_MS + 5_000_000),
    ]
)


@given(walks(), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_any_grouping(walk: list[Location], seed: int) -> None:
    """The same fixes singly or in any batches, the state stored in between: same transitions, same presence."""
    rng = np.random.default_rng(seed)
    whole, grouped = Presence(), Presence()
    all_at_once = feed(whole, RICH, walk)
    transitions: list[Transition] = []
    rest = walk
    while rest:
        size = int(rng.integers(1, 9))
        transitions += feed(grouped, RICH, rest[:size])
        grouped = msgspec.msgpack.decode(msgspec.msgpack.encode(grouped), type=Presence)
        rest = rest[size:]
    assert transitions == all_at_once
    assert grouped == whole


@given(walks())
@settings(max_examples=60)
def test_transitions_add_up(walk: list[Location]) -> None:
    """Enter, at most one dwell, exit, enter ...; what was entered and not left is the presence; parents hold.

    A transition is at its fix, but for the exit of who was out of sight (that is when they were last seen), or of a
    fence that had expired before it.
    """
    presence = Presence()
    state: dict[str, str] = {}
    newest = 0
    for one in walk:
        last_seen = {name: stay.last_inside_ms for name, stay in presence.inside.items()}
        transitions = feed(presence, RICH, [one])
        newest = max(newest, one.ts)
        assert presence.last_ms == newest
        assert [_rank(item) for item in transitions] == sorted(_rank(item) for item in transitions)
        for item in transitions:
            silent = item.kind == "exit" and one.ts - last_seen[item.fence.fence_id] > SILENCE_MS
            if item.reason == "expired":
                assert item.at_ms == START_MS + 5_000_000 <= one.ts
            else:
                assert item.at_ms == (last_seen[item.fence.fence_id] if silent else one.ts)
                assert silent == (item.reason == "silent")
            assert 0.0 <= item.confidence <= 1.0
            assert item.around == tuple(above.fence_id for above in RICH.ancestors(item.fence.fence_id))
            if item.kind in ("approach", "cross"):
                assert state.get(item.fence.id) in (None, "exit")
                continue
            allowed = {"enter": (None, "exit"), "dwell": ("enter",), "exit": ("enter", "dwell")}[item.kind]
            assert state.get(item.fence.id) in allowed
            state[item.fence.id] = item.kind
        assert {name for name, kind in state.items() if kind != "exit"} == set(presence.inside)
        for name, stay in presence.inside.items():
            assert stay.last_inside_ms >= newest - SILENCE_MS
            assert {above.id for above in RICH.ancestors(name)} <= presence.inside.keys()
        if presence.inside:
            assert presence.nearby is not None
        before = msgspec.json.encode(presence)
        assert feed(presence, RICH, [one]) == []
        assert msgspec.json.encode(presence) == before


def _rank(item: Transition) -> int:
    return ["exit", "cross", "approach", "enter", "dwell"].index(item.kind)


def test_hole_is_outside() -> None:
    """A courtyard is not the store: nobody enters there, and whoever steps into it deep enough has left."""
    shell, yard = square(LAT, LNG, 100.0).coordinates[0], square(LAT, LNG, 40.0).coordinates[0]
    index = FenceIndex.build([Fence(id="ring", store="s", kind="store", geometry=Polygon([shell, yard]))])
    presence = Presence()
    walk = [fix(1, 0, 0), fix(31, 0, 70), fix(61, 0, 35), fix(91, 0, 10)]
    assert told(feed(presence, index, walk)) == [("enter", "ring", 31), ("exit", "ring", 91)]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 20, 70, 600, 901, 5_000]),
            st.sampled_from([(0, 0), (-20, -20), (15, 15), (20, 20), (31, 0), (80, 0), (400, 0)]),
            st.sampled_from([0.5, 4.0, 12.0, 40.0, 200.0]),
            st.sampled_from(["gps", "beacon"]),
        ),
        min_size=2,
        max_size=20,
    )
)
def test_the_quick_way_is_the_long_way(steps: list[tuple[int, tuple[int, int], float, str]]) -> None:
    """A fix that only confirms is worked off apart: stays and transitions are those of the general case."""
    at_s, fixes = 0, []
    for pause_s, (north_m, east_m), accuracy_m, source in steps:
        at_s += pause_s
        fixes.append(fix(at_s, north_m, east_m, accuracy_m, source))
    quick, long = Presence(), Presence()
    transitions = feed(quick, INDEX, fixes)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tracker, "_confirms", lambda *_: False)
        assert feed(long, INDEX, fixes) == transitions
    assert quick == long


@settings(deadline=None, max_examples=200)
@example([(16.1, 0)])
@given(
    st.lists(
        st.tuples(st.floats(0, 86_400, exclude_min=True), st.integers(0, SILENCE_MS)),
        min_size=1,
        max_size=4,
    )
)
def test_a_timer_that_fired_is_done(stays: list[tuple[float, int]]) -> None:
    """Whatever the dwell times, each timer brings something about, and the next one is due later, or never.

    A dwell by timer is at the first millisecond at which a fix would give it, too.
    """
    fences = [fence(square(LAT, LNG, 30.0), f"f{number}", dwell_s=dwell_s) for number, (dwell_s, _) in enumerate(stays)]
    index = FenceIndex.build(fences)
    presence = Presence(
        last_ms=START_MS + SILENCE_MS,
        inside={
            one.fence_id: Stay(START_MS, START_MS + seen_after_ms)
            for one, (_, seen_after_ms) in zip(fences, stays, strict=True)
        },
    )
    due_ms = next_due_ms(presence, index)
    while due_ms:
        assert [item for item in on_timer(presence, due_ms - 1, index) if item.kind == "dwell"] == []
        for item in on_timer(presence, due_ms, index):
            if item.kind == "dwell":
                assert item.at_ms - START_MS == pytest.approx(item.fence.dwell_s * 1000, abs=1)
        before_ms, due_ms = due_ms, next_due_ms(presence, index)
        assert due_ms > before_ms or due_ms == 0
    assert presence.inside == {}


def test_the_timer_and_the_fix_agree() -> None:
    """16.1 s are a little more than 16100 ms in floating point: a fix and the timer dwell at the same millisecond."""
    index = FenceIndex.build([fence(square(LAT, LNG, 30.0), "f", dwell_s=16.1)])
    first = fix(0, 0.0, 0.0)
    presence = Presence()
    assert [kind for kind, _, _ in told(feed(presence, index, [first]))] == ["enter"]
    due_s = (next_due_ms(presence, index) - START_MS) / 1000
    assert feed(presence, index, [fix(due_s - 0.001, 0.0, 0.0)]) == []
    assert told(feed(presence, index, [fix(due_s, 0.0, 0.0)])) == [("dwell", "f", due_s)]
