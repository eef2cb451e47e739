"""Enter, dwell and exit, as a customer's fixes make them."""

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from geofence import tracker
from geofence.index import FenceIndex
from geofence.tracker import SILENCE_MS, SILENT_EXIT_CONFIDENCE, next_due_ms, on_timer, track
from nearcast.customer import Presence, Stay
from nearcast.events import Location
from nearcast.ids import FenceId
from nearcast.moments import Transition
from nearcast.world import Circle, Fence, Polygon
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
    matched = index.match(np.array([one.lat for one in fixes]), np.array([one.lng for one in fixes]))
    return [
        transition
        for one, ordinals in zip(fixes, matched, strict=True)
        for transition in track(presence, one, [index.fences[ordinal] for ordinal in ordinals], index)
    ]


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
    assert [at_s for _, _, at_s in transitions] == pytest.approx([51, 170, entered_s + 30, 266, 386], abs=1.5)
    assert presence.inside == {}
    assert presence.last_ms == walk[-1].ts


@pytest.mark.parametrize("accuracy_m", [3.0, 5.0, 12.0, 25.0])
def test_no_flapping(accuracy_m: float) -> None:
    """Standing on the edge for two hours at one fix a second, errors independent: at most one enter, no exit."""
    rng = np.random.default_rng(round(accuracy_m))
    sigma = accuracy_m / 1.5096
    errors = rng.normal(0, sigma, (7200, 2)).tolist()
    fixes = [fix(second, north, 30.0 + east, accuracy_m) for second, (north, east) in enumerate(errors)]
    index = FenceIndex.build([STORE])
    assert [kind for kind, _, _ in told(feed(Presence(), index, fixes))] == ["enter", "dwell"]


def test_margin() -> None:
    """A precise fix leaves beyond `exit_margin_m`; a poor one must be three times its accuracy away."""
    index = FenceIndex.build([STORE])
    for accuracy_m, stays_at_m, leaves_at_m in ((3.0, 9.5, 10.5), (20.0, 59.0, 61.0)):
        presence = Presence(inside={FenceId("store"): Stay(START_MS, START_MS)})
        assert feed(presence, index, [fix(1, 0.0, 30.0 + stays_at_m, accuracy_m)]) == []
        (transition,) = feed(presence, index, [fix(2, 0.0, 30.0 + leaves_at_m, accuracy_m)])
        assert transition.kind == "exit"
        assert transition.confidence > 0.99


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
    assert told(feed(presence, index, [fix(2, 0.0, 0.0, 30.0)])) == [("enter", "store", 2)]
    assert feed(presence, index, [fix(50, 0.0, 0.0, 1_000.0), fix(51, 0.0, 900.0, 1_000.0)]) == []
    assert presence.inside[FenceId("store")].last_inside_ms == START_MS + 2_000


def test_confidence() -> None:
    """Deep inside with a good fix is sure; just inside the edge is little more than even; a corner waits."""
    index = FenceIndex.build([STORE])
    (deep,) = feed(Presence(), index, [fix(1, 0.0, 0.0, 5.0)])
    (edge,) = feed(Presence(), index, [fix(1, 0.0, 29.0, 10.0)])
    assert deep.confidence == 1.0
    assert 0.5 <= edge.confidence < 0.65
    assert feed(Presence(), index, [fix(1, 29.0, 29.0, 10.0)]) == []


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
    assert told(feed(presence, index, [fix(1, 0, 0), fix(2, 0, 300)])) == [
        ("enter", "store", 1),
        ("exit", "store", 2),
        ("enter", "another", 2),
    ]


def test_inside_a_child_is_inside_the_parent() -> None:
    """A department that sticks out of its store: whoever is in it entered the store, and stays in it."""
    annex = fence(square(*shifted(LAT, LNG, 0.0, 60.0), 10.0), "annex", kind="department", parent="store")
    index = FenceIndex.build([STORE, annex])
    presence = Presence()
    assert told(feed(presence, index, [fix(1, 0, 60)])) == [("enter", "store", 1), ("enter", "annex", 1)]
    assert told(feed(presence, index, [fix(2, 0, 61), fix(50, 0, 62)])) == [("dwell", "store", 50)]
    assert told(feed(presence, index, [fix(61, 0, 120)])) == [("exit", "annex", 61), ("exit", "store", 61)]


def test_fence_that_vanished() -> None:
    """A fence that left the index is left at the next fix, by id, with confidence 0; the rest goes on."""
    presence = Presence()
    feed(presence, INDEX, [fix(1, 20.0, 20.0, 1.0, "beacon")])
    smaller = FenceIndex.build([STORE, VICINITY])
    gone = feed(presence, smaller, [fix(2, 20.0, 20.0, 1.0, "beacon")])
    assert told(gone) == [("exit", "a-department", 2), ("exit", "a-shelf", 2)]
    assert [item.confidence for item in gone] == [0.0, 0.0]
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
    return [
        fix(10 + t, north, east, accuracy, source)
        for t, (north, east), accuracy, source in zip(seconds, steps.tolist(), accuracies, sources, strict=True)
    ]


@given(walks(), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_any_grouping(walk: list[Location], seed: int) -> None:
    """The same fixes singly or in any batches, the state stored in between: same transitions, same presence."""
    rng = np.random.default_rng(seed)
    whole, grouped = Presence(), Presence()
    all_at_once = feed(whole, INDEX, walk)
    transitions: list[Transition] = []
    rest = walk
    while rest:
        size = int(rng.integers(1, 9))
        transitions += feed(grouped, INDEX, rest[:size])
        grouped = msgspec.msgpack.decode(msgspec.msgpack.encode(grouped), type=Presence)
        rest = rest[size:]
    assert transitions == all_at_once
    assert grouped == whole


@given(walks())
@settings(max_examples=60)
def test_transitions_add_up(walk: list[Location]) -> None:
    """Enter, at most one dwell, exit, enter ...; what was entered and not left is the presence; parents hold.

    A transition is at its fix, but for the exit of who was out of sight: that is when they were last seen.
    """
    presence = Presence()
    state: dict[str, str] = {}
    newest = 0
    for one in walk:
        last_seen = {name: stay.last_inside_ms for name, stay in presence.inside.items()}
        transitions = feed(presence, INDEX, [one])
        newest = max(newest, one.ts)
        assert presence.last_ms == newest
        assert [_rank(item) for item in transitions] == sorted(_rank(item) for item in transitions)
        for item in transitions:
            silent = item.kind == "exit" and one.ts - last_seen[item.fence.fence_id] > SILENCE_MS
            assert item.at_ms == (last_seen[item.fence.fence_id] if silent else one.ts)
            assert 0.0 <= item.confidence <= 1.0
            allowed = {"enter": (None, "exit"), "dwell": ("enter",), "exit": ("enter", "dwell")}[item.kind]
            assert state.get(item.fence.id) in allowed
            state[item.fence.id] = item.kind
        assert {name for name, kind in state.items() if kind != "exit"} == set(presence.inside)
        for name, stay in presence.inside.items():
            assert stay.last_inside_ms >= newest - SILENCE_MS
            assert {above.id for above in INDEX.ancestors(name)} <= presence.inside.keys()


def _rank(item: Transition) -> int:
    return ["exit", "enter", "dwell"].index(item.kind)


def test_hole_is_outside() -> None:
    """A courtyard is not the store: nobody enters there, and whoever steps into it deep enough has left."""
    shell, yard = square(LAT, LNG, 100.0).coordinates[0], square(LAT, LNG, 40.0).coordinates[0]
    index = FenceIndex.build([Fence(id="ring", store="s", kind="store", geometry=Polygon([shell, yard]))])
    presence = Presence()
    walk = [fix(1, 0, 0), fix(2, 0, 70), fix(3, 0, 35), fix(4, 0, 10)]
    assert told(feed(presence, index, walk)) == [("enter", "ring", 2), ("exit", "ring", 4)]


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
