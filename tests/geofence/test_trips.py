"""Pickups: setting out, coming nearer, arriving, going astray, not coming."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geofence import trips
from nearcast.customer import Presence, Stay, Trip
from nearcast.events import PICKUP_ACTIONS, Action, Location
from nearcast.ids import CustomerId, EventId, FenceId, StoreId
from nearcast.moments import Moment, Transition
from nearcast.world import Circle, Fence, FenceKind, Store
from tests.geofence.places import shifted

LAT, LNG = 48.2, 16.37
START_MS = 1_750_000_000_000
MINUTE_MS = 60_000
STORES = {StoreId(name): Store(id=name, name=name, lat=LAT, lng=LNG + 0.1 * at) for at, name in enumerate("ab")}
ANN, EVENT = CustomerId("ann"), EventId("e")


def place(name: str, kind: FenceKind) -> Fence:
    return Fence(id=f"{name}-{kind}", store=name, kind=kind, geometry=Circle((LNG, LAT), 40.0))


FENCES = {FenceId(fence.id): fence for name in "ab" for kind in ("store", "vicinity") for fence in [place(name, kind)]}


def say(presence: Presence, action: str, minute: float = 0.0, **fields: Any) -> list[Moment]:
    event = Action(
        id="e",
        uid="ann",
        ts=START_MS + round(minute * MINUTE_MS),
        **{"action": action, "order": "o-1", "store": "a"} | fields,
    )
    return trips.act(presence, event, FENCES)


def go(presence: Presence, minute: float, metres: float, accuracy_m: float = 5.0) -> list[Moment]:
    """A fix so far north of store a, and of no fence."""
    lat, lng = shifted(LAT, LNG, metres, 0.0)
    fix = Location(uid="ann", ts=START_MS + round(minute * MINUTE_MS), lat=lat, lng=lng, accuracy_m=accuracy_m)
    return trips.follow(presence, EVENT, ANN, [], STORES, fix)


def turn(
    presence: Presence, kind: Any, name: str, of: FenceKind, minute: float = 1.0, confidence: float = 0.9
) -> list[Moment]:
    """A transition that no fix led to."""
    transition = Transition(kind, place(name, of), START_MS + round(minute * MINUTE_MS), confidence)
    return trips.follow(presence, EVENT, ANN, [transition], STORES)


def told(moments: Iterable[Moment]) -> list[str]:
    return [moment.trigger.removeprefix("pickup_") for moment in moments]


def only(presence: Presence) -> Trip:
    (trip,) = presence.trips
    return trip


def minutes_away(presence: Presence, minute: float) -> float:
    return (only(presence).eta_ms - START_MS) / MINUTE_MS - minute


def test_a_drive() -> None:
    """From setting out to the door: told once that they will be there in five minutes, and once that they are."""
    presence = Presence()
    say(presence, "order_ready")
    assert only(presence).state == "waiting"
    assert say(presence, "pickup_start", 1) == []
    moments = [moment for step in range(60) for moment in go(presence, 1 + step / 6, 6_000 - 100 * step)]
    assert told(moments) == ["approaching"]
    (moment,) = moments
    assert moment.pickup is not None
    assert (moment.store, moment.subject, moment.pickup.order) == ("a", "o-1", "o-1")
    assert 4.5 < (moment.pickup.eta_ms - moment.at_ms) / MINUTE_MS <= 5
    assert told(turn(presence, "enter", "a", "vicinity", 12)) == ["arrived"]
    assert turn(presence, "enter", "a", "store", 13) == go(presence, 13, 20) == go(presence, 40, 5_000) == []
    assert (only(presence).state, only(presence).eta_ms) == ("arrived", START_MS + 12 * MINUTE_MS)
    assert say(presence, "order_picked_up", 20) == []
    assert presence.trips == []


def test_the_first_eta_is_a_towns() -> None:
    """One fix tells nothing of the speed: 30 km/h over 1.3 times the distance."""
    presence = Presence()
    say(presence, "pickup_start")
    go(presence, 0, 5_000)
    assert minutes_away(presence, 0) == pytest.approx(13.0, abs=0.02)


@pytest.mark.parametrize(("metres_a_minute", "away"), [(1_000, 10.0), (300, 33.3)])
def test_the_eta_follows_the_speed(metres_a_minute: int, away: float) -> None:
    """After ten minutes at one speed, what remains is told by it: here 10 km, as the crow flies."""
    presence = Presence()
    say(presence, "pickup_start")
    for step in range(61):
        go(presence, step / 6, 10_000 + metres_a_minute * (60 - step) / 6)
    assert minutes_away(presence, 10) == pytest.approx(away, rel=0.05)


def test_nobody_is_slower_than_a_walk() -> None:
    """Whoever stands still 5 km away is on foot by the estimate, not at infinity."""
    presence = Presence()
    say(presence, "pickup_start")
    moments = [moment for minute in range(30) for moment in go(presence, minute, 5_000)]
    assert moments == []
    assert minutes_away(presence, 29) == pytest.approx(5_000 * 1.3 / 1.2 / 60, rel=0.01)


def test_jitter_is_no_speed() -> None:
    """Fixes a second apart that are 20 m off, this way and that, make nobody come."""
    presence = Presence()
    say(presence, "pickup_start")
    moments = [moment for step in range(1_200) for moment in go(presence, step / 60, 4_000 + 20 * (-1) ** step)]
    assert moments == []
    assert only(presence).speed_mps < 1.2


def test_poor_fixes_say_nothing_of_the_way() -> None:
    """A fix worse than 100 m and than a quarter of the distance, or without coordinates, changes no estimate."""
    presence = Presence()
    say(presence, "pickup_start")
    go(presence, 0, 8_000)
    before = msgspec.structs.asdict(only(presence))
    assert go(presence, 1, 300, accuracy_m=101) == []
    nowhere = Location(uid="ann", ts=START_MS + MINUTE_MS, zones=["beacon"])
    assert trips.follow(presence, EVENT, ANN, [], STORES, nowhere) == []
    assert msgspec.structs.asdict(only(presence)) == before
    go(presence, 1, 7_000, accuracy_m=1_700)
    assert only(presence).distance_m == 7_000


def test_a_leap_is_no_speed() -> None:
    """50 km in ten seconds, as a fix far off makes believe, count as a very fast car's at most."""
    presence = Presence()
    say(presence, "pickup_start")
    for step in range(30):
        go(presence, step / 6, 60_000)
    assert go(presence, 5, 10_000) == []
    assert minutes_away(presence, 5) > 25


def test_own_notice() -> None:
    """The store is told as early as the trip asks for; with a notice of 0 not before they are there."""
    for notice_s, expected in ((900, ["approaching"]), (300, []), (0, [])):
        presence = Presence()
        say(presence, "pickup_start", notice_s=notice_s)
        assert told(go(presence, 0, 5_000)) == expected
    presence = Presence()
    say(presence, "pickup_start", notice_s=0)
    assert go(presence, 0, 0) == []
    assert told(turn(presence, "enter", "a", "store")) == ["arrived"]


def test_coming_without_saying_so() -> None:
    """An order is ready, and its customer comes near from afar: that is setting out. Living near is not."""
    presence = Presence()
    say(presence, "order_ready")
    assert [moment for minute in range(60) for moment in go(presence, minute, 300)] == []
    assert only(presence).state == "waiting"
    assert go(presence, 60, 4_000) == []
    moments = [moment for step in range(30) for moment in go(presence, 61 + step / 6, 4_000 - 100 * step)]
    assert told(moments) == ["approaching"]


def test_who_never_said_so_is_not_missed() -> None:
    """They came near and went home: nothing is told, and the order goes on waiting for them."""
    presence = Presence()
    say(presence, "order_ready")
    go(presence, 0, 4_000)
    assert told(go(presence, 1, 800)) == ["approaching"]
    assert trips.headed_for(presence) == ["a"]
    due_ms = trips.next_due_ms(presence)
    assert due_ms == START_MS + MINUTE_MS + trips.WITHIN_MS
    assert trips.on_timer(presence, EVENT, ANN, due_ms) == []
    assert only(presence).state == "waiting"
    assert trips.headed_for(presence) == []
    # From where they are now they aren't coming again.
    assert go(presence, 180, 700) == []


@pytest.mark.parametrize("kind", ["store", "vicinity"])
def test_there_already(kind: FenceKind) -> None:
    """Who is in the store when the order gets ready has arrived; who is near it has when they set out."""
    presence = Presence(inside={FenceId(f"a-{kind}"): Stay(START_MS, START_MS)})
    assert told(say(presence, "order_ready")) == (["arrived"] if kind == "store" else [])
    assert told(say(presence, "pickup_start", 1)) == (["arrived"] if kind == "vicinity" else [])
    assert only(presence).state == "arrived"


def test_an_unlikely_enter_is_no_arrival() -> None:
    """Nor is an enter of another store, or of a department; a likely one of the store is."""
    presence = Presence()
    say(presence, "pickup_start")
    assert turn(presence, "enter", "a", "store", confidence=0.49) == []
    assert turn(presence, "enter", "b", "store") == []
    assert turn(presence, "enter", "a", "department") == []
    assert turn(presence, "dwell", "a", "store") == []
    (moment,) = turn(presence, "enter", "a", "store", confidence=0.5)
    assert (moment.trigger, moment.fence, moment.fence_kind, moment.confidence) == (
        "pickup_arrived", "a-store", "store", 0.5,
    )  # fmt: skip


def test_a_wrong_store() -> None:
    """Who stays in another store is told once, and is still on the way to theirs. Passing through is no mistake."""
    presence = Presence()
    say(presence, "order_ready")
    assert turn(presence, "dwell", "b", "store") == []
    say(presence, "pickup_start", 1)
    assert turn(presence, "enter", "b", "store", 2) == []
    assert turn(presence, "dwell", "b", "vicinity", 3) == []
    assert turn(presence, "dwell", "b", "store", 3, confidence=0.4) == []
    (moment,) = turn(presence, "dwell", "b", "store", 3)
    assert moment.pickup is not None
    assert (moment.trigger, moment.store, moment.pickup.store) == ("pickup_wrong_store", "b", "a")
    assert turn(presence, "dwell", "b", "store", 9) == []
    assert told(turn(presence, "enter", "a", "store", 20)) == ["arrived"]


def test_too_late() -> None:
    """Who said that they come and didn't within the trip's time is missed; what isn't ready is then forgotten."""
    for ready in (True, False):
        presence = Presence()
        if ready:
            say(presence, "order_ready")
        say(presence, "pickup_start", 10, within_s=600)
        due_ms = trips.next_due_ms(presence)
        assert due_ms == START_MS + 20 * MINUTE_MS
        (moment,) = trips.on_timer(presence, EVENT, ANN, due_ms)
        assert moment.pickup is not None
        assert (moment.trigger, moment.pickup.reason, moment.store) == ("pickup_abandoned", "expired", "a")
        assert [trip.state for trip in presence.trips] == (["waiting"] if ready else [])
        assert trips.next_due_ms(presence) == (due_ms + trips.KEPT_READY_MS if ready else 0)


def test_called_off() -> None:
    """Cancelling is told at once, once; an order that nobody set out for can't be called off aloud."""
    presence = Presence()
    say(presence, "order_ready")
    assert say(presence, "pickup_cancel") == []
    say(presence, "pickup_start", 1)
    (moment,) = say(presence, "pickup_cancel", 2)
    assert moment.pickup is not None
    assert (moment.trigger, moment.pickup.reason) == ("pickup_abandoned", "cancelled")
    assert say(presence, "pickup_cancel", 3) == []
    assert only(presence).state == "waiting"


def test_after_all() -> None:
    """After a trip that was called off all is told anew: of one that is announced aloud, of another in silence."""
    presence = Presence()
    say(presence, "order_ready")
    for minute in (10, 20):
        say(presence, "pickup_start", minute)
        assert told(turn(presence, "dwell", "b", "store", minute + 1)) == ["wrong_store"]
        assert told(go(presence, minute + 2, 500)) == ["approaching"]
        assert told(say(presence, "pickup_cancel", minute + 3)) == ["abandoned"]
    assert go(presence, 40, 4_000) == []
    assert told(go(presence, 42, 800)) == ["approaching"]
    assert trips.on_timer(presence, EVENT, ANN, trips.next_due_ms(presence)) == []


def test_who_sat_at_home_drives() -> None:
    """Setting out, they are expected at 30 km/h, however long they were seen not to move."""
    presence = Presence()
    say(presence, "order_ready")
    for minute in range(10):
        go(presence, minute, 8_000)
    say(presence, "pickup_start", 30)
    go(presence, 31, 7_600)
    assert minutes_away(presence, 31) == pytest.approx(19.7, rel=0.05)


def test_setting_out_again() -> None:
    """Saying so again gives more time, and doesn't tell the store again."""
    presence = Presence()
    say(presence, "pickup_start")
    assert told(go(presence, 1, 900)) == ["approaching"]
    say(presence, "pickup_start", 30)
    assert only(presence).state == "approaching"
    assert go(presence, 31, 900) == []
    assert trips.next_due_ms(presence) == START_MS + 30 * MINUTE_MS + trips.WITHIN_MS


def test_going_away() -> None:
    """A kilometre back, and a quarter of an hour since they were nearest: they aren't coming. A detour is shorter."""
    presence = Presence()
    say(presence, "pickup_start")
    assert go(presence, 0, 6_000) == []
    assert go(presence, 14, 7_500) == []
    assert go(presence, 15, 6_900) == []
    (moment,) = go(presence, 16, 7_000)
    assert moment.pickup is not None
    assert moment.pickup.reason == "away"
    assert presence.trips == []


def test_the_shop_knows_where_the_order_is() -> None:
    """A phone can't move an order; when the shop moves it, the way begins anew."""
    presence = Presence()
    say(presence, "order_ready")
    say(presence, "pickup_start", 1, store="b")
    assert only(presence).store == "a"
    go(presence, 2, 3_000)
    say(presence, "order_ready", 3, store="b")
    trip = only(presence)
    assert (trip.store, trip.state, trip.distance_m, trip.eta_ms) == ("b", "on_the_way", -1, 0)
    assert turn(presence, "enter", "a", "store", 4) == []
    assert told(turn(presence, "enter", "b", "store", 5)) == ["arrived"]


def test_an_order_nobody_fetches() -> None:
    """A ready order is forgotten after a week, and one that was never said to be picked up after four hours."""
    presence = Presence()
    say(presence, "order_ready")
    assert trips.next_due_ms(presence) == START_MS + 7 * 86_400_000
    turn(presence, "enter", "a", "store", 1)
    due_ms = trips.next_due_ms(presence)
    assert due_ms == START_MS + MINUTE_MS + 4 * 3_600_000
    assert trips.on_timer(presence, EVENT, ANN, due_ms - 1) == []
    assert presence.trips
    assert trips.on_timer(presence, EVENT, ANN, due_ms) == []
    assert presence.trips == []


def test_nobody_is_followed_against_their_will() -> None:
    """Without consent to location no order makes a trip."""
    presence = Presence(allowed=False)
    assert say(presence, "order_ready") == say(presence, "pickup_start") == []
    assert presence.trips == []


def test_several_orders() -> None:
    """Each order is on a way of its own; of more than four the one known longest is let go."""
    presence = Presence()
    for number in range(6):
        say(presence, "pickup_start", number, order=f"o-{number}", store="ab"[number % 2])
    assert [trip.order for trip in presence.trips] == ["o-2", "o-3", "o-4", "o-5"]
    assert trips.headed_for(presence) == ["a", "b"]
    moments = turn(presence, "enter", "a", "store", 10)
    assert [moment.subject for moment in moments] == ["o-2", "o-4"]
    assert told(moments) == ["arrived"] * 2


_STEPS = st.lists(
    st.tuples(
        st.sampled_from([*sorted(PICKUP_ACTIONS), "fix", "fix", "fix", "enter", "dwell", "timer"]),
        st.sampled_from("ab"),
        st.sampled_from(["o-1", "o-2", "o-3", "o-4", "o-5"]),
        st.integers(0, 20_000),
        st.integers(0, 40),
    ),
    max_size=60,
)


@given(_STEPS)
def test_any_order_of_things(steps: list[tuple[str, str, str, int, int]]) -> None:
    """Whatever happens: at most four trips, each order once; each thing is told once a trip, and in its order; every
    trip ends by itself; and what is stored is the same after a restart."""
    presence, minute = Presence(), 0.0
    arrived: set[str] = set()
    near: set[str] = set()
    for what, name, order, metres, pause in steps:
        minute += pause
        match what:
            case "fix":
                moments = go(presence, minute, metres)
            case "enter" | "dwell":
                moments = turn(presence, what, name, "store", minute)
            case "timer":
                due_ms = trips.next_due_ms(presence)
                if not due_ms:
                    continue
                minute = max(minute, (due_ms - START_MS) / MINUTE_MS)
                moments = trips.on_timer(presence, EVENT, ANN, due_ms)
                assert trips.next_due_ms(presence) == 0 or trips.next_due_ms(presence) > due_ms
            case _:
                moments = say(presence, what, minute, order=order, store=name)
        orders = [trip.order for trip in presence.trips]
        assert len(orders) == len(set(orders)) <= trips.MAX_TRIPS
        for moment in moments:
            if moment.trigger == "pickup_approaching":
                assert moment.subject not in near | arrived
                near.add(moment.subject)
            elif moment.trigger == "pickup_arrived":
                assert moment.subject not in arrived
                arrived.add(moment.subject)
        waiting = {trip.order for trip in presence.trips if trip.state in ("waiting", "on_the_way")}
        near -= waiting | ({"o-1", "o-2", "o-3", "o-4", "o-5"} - set(orders))
        arrived -= waiting | ({"o-1", "o-2", "o-3", "o-4", "o-5"} - set(orders))
        presence = msgspec.json.decode(msgspec.json.encode(presence), type=Presence)
    for _ in range(3 * trips.MAX_TRIPS):
        if due_ms := trips.next_due_ms(presence):
            trips.on_timer(presence, EVENT, ANN, due_ms)
    assert presence.trips == []
