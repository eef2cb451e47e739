"""Footfall: what the engine counts, exactly once, and what of it may be shown."""

import random
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from nearcast import keys
from nearcast.customer import Stay
from nearcast.errors import Fenced, InputError
from nearcast.events import Consent, Erase, Event, Location, Timer
from nearcast.ids import CustomerId, FenceId, StoreId, partition_of
from nearcast.moments import Transition
from nearcast.world import Circle, Fence, Store
from offers.worldfile import WorldFile
from server.engine import Engine
from server.footfall import (
    MEAN_STEP_S,
    Asked,
    Counts,
    FootfallBook,
    Visits,
    expires_s,
    history_of,
    hour_of,
    hours_of,
    live_of,
    mean_shown_s,
    shown,
)
from server.log.base import Record
from server.state import StateStore
from server.stored import decode_presence, encode_presence
from server.world import WorldStore
from tests.server.rig import PARTITIONS, Playback, committed, engine_on, records_of
from tests.server.town import FENCES, LNG, WORLD, metres_north

NOW = 1_795_000_000_000
#: A whole hour of UTC, which is the town's.
HOUR = NOW // 3_600_000 * 3_600_000
GRABEN = StoreId("graben")
INSIDE, NEAR = FenceId("inside"), FenceId("near")
PEOPLE = [f"c{number}" for number in range(12)]


def fix(uid: str, ts: int, metres: float) -> Location:
    """A precise fix so many metres north of the store."""
    return Location(id=uuid.uuid4().hex, uid=uid, ts=ts, lat=metres_north(metres), lng=LNG, accuracy_m=5.0)


async def engine_of(redis: Redis, world: WorldFile = WORLD) -> Engine:
    """A new engine that owns everything, as after a restart."""
    store = WorldStore(redis)
    await store.put(world)
    engine = engine_on(redis, Playback(), store)
    await engine.follow_assignment()
    return engine


class Log:
    """Records in one order, as a log numbers them."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, events: Sequence[Event]) -> list[Record]:
        first = len(self.records)
        # Nothing is from the future; the engine of the tests finds nothing late.
        new = records_of(events, NOW + 10**10 + first)
        self.records += [msgspec.structs.replace(record, position=str(first + at)) for at, record in enumerate(new)]
        return self.records[first:]


async def live(redis: Redis) -> dict[str, int]:
    """The live counts as they stand in the store, over all partitions."""
    total: Counter[str] = Counter()
    for partition in range(PARTITIONS):
        rows = await redis.hgetall(keys.footfall(partition))
        # Fences with nobody in them take no room.
        assert all(int(count) != 0 for count in rows.values())
        total.update({fence.decode(): int(count) for fence, count in rows.items()})
    return dict(total)


async def stays(redis: Redis) -> dict[str, int]:
    """The same, counted one by one from where everybody is."""
    known = (await committed(redis)).customers.values()
    return dict(Counter(fence for person in known for fence in person.presence.inside))


def some_events(seed: int, number: int) -> list[Event]:
    """People who walk about, fall silent, withdraw consent, give it again, and are erased."""
    chance = random.Random(seed)
    events: list[Event] = []
    now_ms = NOW
    for _ in range(number):
        now_ms += chance.choice([1_000, 5_000, 30_000, 20 * 60_000 if chance.random() < 0.1 else 2_000])
        who, what = chance.choice(PEOPLE), chance.random()
        if what < 0.05:
            events.append(Erase(id=uuid.uuid4().hex, uid=who, ts=now_ms))
        elif what < 0.12:
            granted = chance.random() < 0.5
            events.append(Consent(id=uuid.uuid4().hex, uid=who, ts=now_ms, scope="location", granted=granted))
        else:
            events.append(fix(who, now_ms, chance.choice([0.0, 5.0, 10.0, 80.0, 400.0])))
    return events


@pytest.mark.parametrize("seed", range(6))
async def test_live_counts_are_the_stays(redis: Redis, seed: int) -> None:
    """After any traffic, with restarts, commits whose reply was lost, timers and a deleted fence in between: the count
    of a fence is the number of people who are in it by their own records."""
    chance = random.Random(seed)
    log, engine, seen = Log(), await engine_of(redis), 0
    state = StateStore(redis, PARTITIONS)
    events = some_events(seed, 240)
    while events:
        some, events = events[: chance.randint(1, 40)], events[40:]
        records = log.add(some)
        await engine.process(records)
        seen = max(seen, sum((await live(redis)).values()))
        if chance.random() < 0.4:
            # Killed after the commit, before it was told of it: it starts over and reads from the stored offsets.
            engine = await engine_of(redis)
            offsets = {p: owner.offsets for p, owner in (await state.ownerships(range(PARTITIONS))).items()}
            done = [r for r in records if int(offsets[r.partition].get(r.topic, "-1")) >= int(r.position)]
            assert done == records
        if chance.random() < 0.3:
            due = [timer for p in range(PARTITIONS) for timer in await state.due_timers(p, some[-1].ts)]
            fired = [
                Timer(id=uuid.uuid4().hex, uid=timer.customer, ts=timer.due_ms, kind=timer.kind, due_ms=timer.due_ms)
                for timer in due
            ]
            await engine.process(log.add(fired))
        assert await live(redis) == await stays(redis)
    assert seen > 5
    await engine._world.remove("fence", INSIDE)
    await engine.process(log.add([fix(who, NOW + 10**9, 5.0) for who in PEOPLE]))
    counted = await live(redis)
    assert counted == await stays(redis)
    assert INSIDE not in counted
    assert counted[NEAR] > 0


async def test_a_refused_commit_counts_nothing(redis: Redis) -> None:
    """An engine that was overtaken adds nothing to any count, and the one that took over counts each visit once."""
    slow = await engine_of(redis)
    quick = await engine_of(redis)
    records = Log().add([fix(who, NOW, 0.0) for who in PEOPLE])
    with pytest.raises(Fenced):
        await slow.process(records)
    assert await live(redis) == {}
    await quick.process(records)
    assert (await live(redis))[INSIDE] == len(PEOPLE)
    (visits,) = (await FootfallBook(redis, PARTITIONS).days(GRABEN, {day_of(NOW)})).keys() & {(INSIDE, HOUR // 1000)}
    assert visits == (INSIDE, HOUR // 1000)


async def test_stays_that_were_never_counted(redis: Redis) -> None:
    """Whoever was inside before footfall was counted takes nobody else's count away by leaving."""
    engine, log = await engine_of(redis), Log()
    await engine.process(log.add([fix("old", NOW, 0.0), fix("new", NOW, 0.0)]))
    home = partition_of("old", PARTITIONS)
    name = keys.presence(home, "old")
    presence = decode_presence(CustomerId("old"), await redis.get(name)).presence
    for fence, stay in presence.inside.items():
        assert stay.counted
        stay.counted = False
        if await redis.hincrby(keys.footfall(home), fence, -1) == 0:
            await redis.hdel(keys.footfall(home), fence)
    await redis.set(name, encode_presence(presence))
    engine = await engine_of(redis)
    await engine.process(log.add([fix("old", NOW + 60_000, 900.0)]))
    assert await live(redis) == {INSIDE: 1, NEAR: 1}
    await engine.process(log.add([fix("new", NOW + 60_000, 900.0)]))
    assert await live(redis) == {}


def day_of(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()


async def test_visits_and_stays_by_hour(redis: Redis) -> None:
    """A visit and its time count in the hour in which it began, also when it ends in the next; keys expire."""
    engine, log = await engine_of(redis), Log()
    start = HOUR + 3_600_000 - 120_000
    await engine.process(log.add([fix("ann", start, 0.0), fix("bob", start + 1_000, 0.0)]))
    await engine.process(log.add([fix("ann", start + 300_000, 900.0)]))
    # The other one falls silent, and is taken to have left when last seen.
    await engine.process(log.add([fix("bob", start + 61_000, 0.0), fix("bob", start + 3_600_000, 900.0)]))
    found = await FootfallBook(redis, PARTITIONS).days(GRABEN, {day_of(start), day_of(start + 3_600_000)})
    assert found[INSIDE, HOUR // 1000] == Visits(visits=2, ended=2, stayed_s=300 + 60)
    assert not [hour for fence, hour in found if fence == INSIDE and hour != HOUR // 1000]
    names = [key async for key in redis.scan_iter(match=keys.footfall_day(0, "*", "*").replace("{0}", "*"))]
    assert names
    for name in names:
        assert await redis.expiretime(name) == expires_s(day_of(start), 400)
    fields = {field for name in names for field in await redis.hkeys(name)}
    assert not [field for field in fields if b"ann" in field or b"bob" in field]


@pytest.mark.parametrize("leaving", ["withdraws", "is erased"])
async def test_leaving_without_a_trace(redis: Redis, leaving: str) -> None:
    """Who withdraws consent, or is erased, is not among the people any more, and adds no time."""
    engine, log = await engine_of(redis), Log()
    await engine.process(log.add([fix("ann", NOW, 0.0)]))
    assert await live(redis) == {INSIDE: 1, NEAR: 1}
    last: Event = Erase(id="e", uid="ann", ts=NOW + 60_000)
    if leaving == "withdraws":
        last = Consent(id="c", uid="ann", ts=NOW + 60_000, scope="location", granted=False)
    await engine.process(log.add([last]))
    assert await live(redis) == {}
    found = await FootfallBook(redis, PARTITIONS).days(GRABEN, {day_of(NOW)})
    assert found[INSIDE, HOUR // 1000] == Visits(visits=1)


def test_an_enter_that_is_hardly_believed() -> None:
    """It makes a stay, since the engine goes by it, but no visit."""
    counts, fence = Counts(), FENCES[1]
    stays, stores = {INSIDE: Stay(NOW, NOW, confidence=0.4)}, {GRABEN: WORLD.stores[0]}
    counts.moved({}, stays, [Transition("enter", fence, NOW, 0.4)], stores)
    assert counts.live == {INSIDE: 1}
    assert stays[INSIDE].counted
    counts.moved(stays, {}, [Transition("exit", fence, NOW + 60_000, 1.0)], stores)
    assert counts.live == {}
    assert counts.days == {}


@pytest.mark.parametrize(
    ("zone", "at", "begins"),
    [
        ("Europe/Vienna", "2026-07-01T09:59:59+02:00", "2026-07-01T09:00:00+02:00"),
        ("Asia/Kolkata", "2026-07-01T00:10:00+05:30", "2026-07-01T00:00:00+05:30"),
        # The clock goes back: both passes of the hour are hours of their own.
        ("Europe/Vienna", "2026-10-25T02:30:00+02:00", "2026-10-25T02:00:00+02:00"),
        ("Europe/Vienna", "2026-10-25T02:30:00+01:00", "2026-10-25T02:00:00+01:00"),
        ("Pacific/Apia", "2026-01-01T00:00:00+13:00", "2026-01-01T00:00:00+13:00"),
    ],
)
def test_hour_of(zone: str, at: str, begins: str) -> None:
    """The hour that a clock in the shop shows, by its local date."""
    at_ms = round(datetime.fromisoformat(at).timestamp() * 1000)
    begin = datetime.fromisoformat(begins)
    assert hour_of(at_ms, ZoneInfo(zone)) == (begin.date().isoformat(), round(begin.timestamp()))


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Vienna", date(2026, 7, 1), 24),
        ("Europe/Vienna", date(2026, 3, 29), 23),
        ("Europe/Vienna", date(2026, 10, 25), 25),
        ("Asia/Kolkata", date(2026, 10, 25), 24),
        # Midnight itself is skipped.
        ("Africa/Cairo", date(2026, 4, 24), 23),
    ],
)
def test_hours_of_a_day(zone: str, day: date, hours: int) -> None:
    """As many as the day has on the shop's clock, each of that day; those to come are left out."""
    found = hours_of(day, day, 10**13, ZoneInfo(zone))
    assert len(found) == hours
    assert {hour.day for hour in found} == {day.isoformat()}
    assert [hour.begins_s for hour in found] == sorted({hour.begins_s for hour in found})
    assert hours_of(day, day, found[5].begins_s * 1000, ZoneInfo(zone)) == found[:6]


@given(st.integers(1, 20), st.lists(st.integers(0, 200), min_size=1, max_size=6), st.integers(0, 50))
def test_no_small_group_by_subtraction(k: int, children: list[int], besides: int) -> None:
    """Whatever is shown of a store and its departments: no figure, and no difference of sums of them, lies between 0
    and k; a withheld department can always hold as many as k - 1."""
    total = sum(children) + besides
    parent, parts = shown(total, k), [shown(child, k) for child in children]
    visible = [part for part in parts if part is not None]
    assert all((part is None) == (child < k) for part, child in zip(parts, children, strict=True))
    assert all(part is None or 0 <= child - part < k for part, child in zip(parts, children, strict=True))
    if parent is None:
        assert visible == []
        return
    rest = parent - sum(visible)
    assert rest % k == 0
    assert rest >= 0
    for one in visible:
        for other in visible:
            assert abs(one - other) % k == 0
    # The parent may be as much as this, by what is shown of it.
    assert parent + k - 1 - sum(visible) >= k - 1


@given(st.integers(2, 10), st.integers(0, 30), st.integers(0, 36_000))
def test_a_mean_stay_is_nobodys(k: int, ended: int, each_s: int) -> None:
    """Shown only of k visits that are over, and in steps."""
    mean_s = mean_shown_s(Visits(visits=ended, ended=ended, stayed_s=ended * each_s), k)
    assert (mean_s is None) == (ended < k)
    assert mean_s is None or (mean_s % MEAN_STEP_S == 0 and abs(mean_s - each_s) <= MEAN_STEP_S / 2)


def test_what_is_withheld_says_so() -> None:
    """Live and by hour: nobody, and too few, look the same."""
    store = Store(id="graben", name="Graben", lat=0.0, lng=0.0, time_zone="Europe/Vienna")
    fences = [
        Fence(id=name, store="graben", kind="department", name=name.upper(), geometry=Circle((0.0, 0.0), 9.0))
        for name in ("a", "b", "c")
    ]
    found = live_of(GRABEN, fences, {FenceId("b"): 4, FenceId("c"): 13}, 5, NOW)
    assert [(zone.people, zone.withheld) for zone in found.zones] == [(None, "fewer than 5")] * 2 + [(10, None)]
    hour = hour_of(NOW, ZoneInfo("Europe/Vienna"))
    counted = {
        (FenceId("a"), hour.begins_s): Visits(visits=4, ended=4, stayed_s=400),
        (FenceId("b"), hour.begins_s): Visits(visits=9, ended=3, stayed_s=900),
        (FenceId("c"), hour.begins_s): Visits(visits=10, ended=10, stayed_s=2_000),
    }
    names = {fence.fence_id: fence.name for fence in fences}
    rows = history_of(store, names, [hour], counted, 5).hours
    assert [(row.visits, row.mean_stay_s, row.withheld) for row in rows] == [
        (None, None, "fewer than 5"),
        (5, None, None),
        (10, 200, None),
    ]
    assert rows[0].hour == "2026-11-18T12:00:00+01:00"


@pytest.mark.parametrize(
    "asked",
    [
        Asked(first=date(2026, 1, 2), last=date(2026, 1, 1)),
        Asked(first=date(2025, 1, 1), last=date(2026, 1, 1)),
    ],
)
def test_a_range_that_makes_no_sense(asked: Asked) -> None:
    """Backwards, or more than one answer should hold."""
    with pytest.raises(InputError):
        asked.hours(WORLD.stores[0], 1, NOW)


def test_the_last_week_without_a_range() -> None:
    """Seven days, today included as far as it has come."""
    hours = Asked().hours(WORLD.stores[0], 1, NOW)
    assert len({hour.day for hour in hours}) == 7
    assert hours[-1].begins_s * 1000 <= NOW < hours[-1].begins_s * 1000 + 3_600_000
