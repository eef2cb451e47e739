"""The benchmarks' city has the traffic that it claims to have."""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from bench.city import Traffic, Walk, city, profile, share_of_transitions
from geofence.index import FenceIndex
from nearcast import topics
from nearcast.events import Location, decode
from nearcast.ids import partition_of
from offers.worldfile import WorldFile, check_references

NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def world() -> WorldFile:
    return city(100, random.Random(7), 2_000)


def events(traffic: Traffic) -> Iterator[object]:
    for topic, _, value in traffic.rows():
        yield decode(topic, value, position="0:0", arrived_ms=NOW_MS + 10**9)


def test_two_percent_of_the_fixes_cause_a_transition(world: WorldFile) -> None:
    """As the real tracker sees them, in a steady part of the traffic, also in its second half."""
    walk = Walk(world, 4_000, start_ms=NOW_MS, step_ms=1.5)
    warm_up, measured, more = walk.everyone(), walk.next(30_000), walk.next(30_000)
    assert 0.015 < share_of_transitions(world, warm_up, measured) < 0.025
    assert 0.015 < share_of_transitions(world, warm_up, measured, more) < 0.025


def test_most_fixes_are_near_no_store_and_one_event_in_twenty_is_no_fix(world: WorldFile) -> None:
    """About one fix in eight is inside a fence, so most of those inside change nothing."""
    walk = Walk(world, 4_000, start_ms=NOW_MS, step_ms=1.5)
    made = list(events(walk.next(10_000)))
    fixes = [event for event in made if isinstance(event, Location)]
    assert 0.94 < len(fixes) / len(made) < 0.96
    index = FenceIndex.build(world.fences)
    hits = index.match(np.array([fix.lat for fix in fixes]), np.array([fix.lng for fix in fixes]))
    assert 0.09 < sum(map(bool, hits)) / len(fixes) < 0.15


def test_the_same_seed_gives_the_same_traffic(world: WorldFile) -> None:
    first, second = (Walk(world, 500, start_ms=NOW_MS, step_ms=1.5) for _ in range(2))
    assert first.everyone().values == second.everyone().values
    assert first.next(2_000).values == second.next(2_000).values


def test_event_time_never_runs_backwards(world: WorldFile) -> None:
    """Else a customer's fixes would be stale, and cost less than others."""
    walk = Walk(world, 500, start_ms=NOW_MS, step_ms=0.3)
    times = [event.ts for part in (walk.everyone(), walk.next(2_000)) for event in events(part)]  # type: ignore[attr-defined]
    assert times == sorted(times)


def test_the_world_is_whole() -> None:
    """All references lead somewhere, also with few fences a store, and fences are as many as asked for."""
    for stores, fences in ((5, 100), (50, 200), (3, 3)):
        world = city(stores, random.Random(7), fences)
        assert len(world.fences) == fences
        assert check_references(world) == []


def test_a_part_of_the_customers_keeps_their_events_in_order(world: WorldFile) -> None:
    walk = Walk(world, 500, start_ms=NOW_MS, step_ms=1.5)
    traffic = walk.next(3_000)
    chosen = traffic.of_customers(50)
    expected = [row for row in traffic.rows() if int(row[1][1:]) < 50]
    assert list(chosen.rows()) == expected
    assert {topic for topic, _, _ in chosen.all_as(topics.LOCATIONS).rows()} == {topics.LOCATIONS}


def test_customers_are_dealt_out_like_their_events() -> None:
    walk = Walk(city(2, random.Random(7), 40), 100, start_ms=NOW_MS, step_ms=1.5)
    assert walk.partition_of(4).tolist() == [partition_of(profile(n, NOW_MS).id, 4) for n in range(100)]
