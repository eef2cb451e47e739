"""Shoppers walk as people do, and the same seed walks them the same way."""

import math
from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Point
from shapely.geometry import Polygon as Shape

from clients import city, sample, simulator
from clients.geo import Spot
from clients.history import History
from nearcast.events import Cart, IntakeEvent, Location, Purchase

START_MS = 1_790_000_000_000
SEED = 7


def _simulation(
    retailer: sample.Retailer, walks: list[simulator.Walk], time_lapse: float = 6.0
) -> simulator.Simulation:
    return simulator.Simulation(retailer, walks, start_ms=START_MS, seed=SEED, time_lapse=time_lapse)


@pytest.fixture(scope="module")
def four_minutes(retailer: sample.Retailer, walks: list[simulator.Walk]) -> list[IntakeEvent]:
    return _simulation(retailer, walks).step(240_000)


def test_plans_are_deterministic(told: History, retailer: sample.Retailer, walks: list[simulator.Walk]) -> None:
    """The same households and seed make the same walks, another seed others."""
    assert simulator.plan(retailer, told.households, SEED) == walks
    assert simulator.plan(retailer, told.households, SEED + 1) != walks


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(0, 7_000), min_size=1, max_size=12))
def test_how_time_is_cut_changes_nothing(
    retailer: sample.Retailer, walks: list[simulator.Walk], cuts: list[int]
) -> None:
    """Many small steps give the events of one big step."""
    whole = _simulation(retailer, walks).step(sum(cuts))
    stepped = _simulation(retailer, walks)
    pieces = [event for cut in cuts for event in stepped.step(cut)]
    assert pieces == whole


def test_ids_are_unique_and_times_never_run_back(four_minutes: list[IntakeEvent]) -> None:
    """Every event has its own id; events come in time order, none before the start."""
    assert max(Counter(event.id for event in four_minutes).values()) == 1
    times = [event.ts for event in four_minutes]
    assert times == sorted(times)
    assert times[0] >= START_MS


def test_nobody_runs(retailer: sample.Retailer, walks: list[simulator.Walk]) -> None:
    """Between two fixes nobody gets further than brisk walking, times the time lapse, allows."""
    simulation = _simulation(retailer, walks, time_lapse=4.0)
    before = simulation.spots()
    for _ in range(300):
        simulation.step(1_000)
        now = simulation.spots()
        for uid, spot in now.items():
            assert spot.to(before[uid]) <= simulator.WALK_M_S * 1.15 * 4.0 + 1e-6
        before = now


def test_one_fix_a_second_each(four_minutes: list[IntakeEvent], walks: list[simulator.Walk]) -> None:
    """Devices report once a second, from their first fix on."""
    times = defaultdict(list)
    for event in four_minutes:
        if isinstance(event, Location):
            times[event.uid].append(event.ts)
    assert set(times) == {walk.uid for walk in walks}
    for stamps in times.values():
        assert {later - earlier for earlier, later in pairwise(stamps)} == {1_000}


def test_shoppers_enter_shops_and_stand_at_displays(retailer: sample.Retailer, four_minutes: list[IntakeEvent]) -> None:
    """Shapely finds indoor fixes inside the building, and some within a metre of a display."""
    by_id = {fence.id: fence for fence in retailer.fences}
    buildings = {
        shop.store.id: Shape(by_id[f"{shop.store.id}/building"].geometry.coordinates[0])  # type: ignore[union-attr, arg-type]
        for shop in retailer.shops
    }
    stands = [stand.spot for shop in retailer.shops for floor in shop.floors for stand in floor.stands]
    indoors = [event for event in four_minutes if isinstance(event, Location) and event.source == "beacon"]
    inside = {
        (event.uid, store)
        for event in indoors
        for store, shape in buildings.items()
        if shape.contains(Point(event.lng, event.lat))
    }
    # Everybody has been in a shop after four minutes.
    assert {uid for uid, _ in inside} == {event.uid for event in four_minutes}
    at_shelf = [event for event in indoors if event.accuracy_m == simulator.SHELF_ACCURACY_M]
    near = [event for event in at_shelf if min(_spot(event).to(stand) for stand in stands) < 0.9144]
    assert len(near) > 0.9 * len(at_shelf) > 0


def test_outdoor_noise_is_what_the_accuracy_says(retailer: sample.Retailer, walks: list[simulator.Walk]) -> None:
    """68 % of outdoor fixes lie within the accuracy that the device reports; errors drift instead of jumping."""
    simulation = _simulation(retailer, walks)
    errors: list[float] = []
    for _ in range(600):
        fixes = [event for event in simulation.step(1_000) if isinstance(event, Location) and event.source == "gps"]
        spots = simulation.spots()
        errors += [_spot(fix).to(spots[fix.customer]) for fix in fixes]
    within = sum(error <= simulator.GPS_ACCURACY_M for error in errors) / len(errors)
    assert within == pytest.approx(0.68, abs=0.06)
    assert max(errors) < 6 * simulator.GPS_ACCURACY_M


def test_purchases_are_the_real_baskets_once_each(told: History, four_minutes: list[IntakeEvent]) -> None:
    """What is paid at the till is today's baskets in their order, and some cart items stay behind."""
    for household in told.households:
        own = [event for event in four_minutes if event.uid == household.uid]
        paid = [event.items for event in own if isinstance(event, Purchase)]
        assert paid == [basket.lines for basket in household.today][: len(paid)]
    carted = {(event.uid, event.sku) for event in four_minutes if isinstance(event, Cart)}
    bought = {(event.uid, line.sku) for event in four_minutes if isinstance(event, Purchase) for line in event.items}
    assert carted & bought
    assert carted - bought


def test_a_long_demo_repeats_no_purchase(retailer: sample.Retailer, walks: list[simulator.Walk]) -> None:
    """When the baskets are used up shoppers go on walking, and buy nothing that nobody bought."""
    events = _simulation(retailer, walks, time_lapse=20.0).step(1_800_000)
    purchases = Counter(event.uid for event in events if isinstance(event, Purchase))
    assert set(purchases.values()) == {4}
    assert events[-1].ts > START_MS + 1_790_000


def test_walks_stay_in_the_city(retailer: sample.Retailer, walks: list[simulator.Walk]) -> None:
    """Nobody leaves the streets' rectangle by more than the width of a pavement."""
    simulation = _simulation(retailer, walks)
    for _ in range(300):
        simulation.step(1_000)
        for spot in simulation.spots().values():
            assert -10 <= spot.x <= city.COLUMNS * city.BLOCK_X + 10
            assert -10 <= spot.y <= city.ROWS * city.BLOCK_Y + 10
            assert math.isfinite(spot.x)


def _spot(event: Location) -> Spot:
    return city.FRAME.spot(event.lat, event.lng)
