"""Click and collect through the real engine: what staff and the customer are told, and what remains of it."""

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from channels.gateway.publications import Position
from channels.gateway.streams import ChannelStreams, Listening
from channels.templates import Facts, check_words, with_pickup
from geofence import trips
from nearcast import keys
from nearcast.clock import ManualClock, SystemClock
from nearcast.customer import Customer, Presence
from nearcast.events import Action, Consent, Erase, Event, Location, Profile, Timer
from nearcast.ids import CustomerId, StoreId, partition_of
from nearcast.messages import Push
from nearcast.moments import Pickup
from nearcast.world import PICKUP_TRIGGERS, Circle, Fence, Promotion, Store, Trigger, Words
from offers.gates import may_not_contact
from offers.loading import load_world
from offers.worldfile import WorldFile
from server.api.app import create_app
from server.intake import Intake
from server.log.streams import StreamsLog
from server.roles import make_desk
from server.state import StateStore
from server.stored import decode_presence
from server.timers import TimerPump
from tests.oracle import stored_timers
from tests.server.replay.installation import KEYS, Installation, environment, installed
from tests.server.rig import PARTITIONS, Bench, committed
from tests.server.town import LAT, LNG, WORLD, metres_north

ANN = CustomerId("ann")
HOME = partition_of(ANN, PARTITIONS)
PATH = "/v1/stores/graben/pickups"
_ids = count()
_LNG_2 = LNG + 0.05


def _promotion(name: str, trigger: Any, kind: Any, title: str) -> Promotion:
    return Promotion(
        id=name, name=name, trigger=trigger, kind=kind, caps=[], deadline_s=80_000, words={"en": Words(title=title)}
    )


#: The town, a second store, and what is said of pickups.
TOWN = WorldFile(
    stores=[*WORLD.stores, Store(id="ring", name="Ring", lat=LAT, lng=_LNG_2)],
    fences=[
        *WORLD.fences,
        Fence(id="ring-in", store="ring", kind="store", geometry=Circle((_LNG_2, LAT), 40.0), dwell_s=60),
    ],
    products=WORLD.products,
    promotions=[
        _promotion("coming", "pickup_approaching", "assist", "{{ order }} in {{ minutes }} min at {{ store }}"),
        _promotion("here", "pickup_arrived", "offer", "{{ order }}: counter 3, {{ customer }}"),
        _promotion(
            "astray", "pickup_wrong_store", "offer", "This is {{ store }}; {{ order }} is at {{ pickup_store }}"
        ),
        _promotion("missed", "pickup_abandoned", "assist", "Put {{ order }} back"),
    ],
)


def action(what: Any, ts: int, **fields: Any) -> Action:
    about: dict[str, Any] = {"id": f"a{next(_ids)}", "uid": "ann", "order": "A-17", "store": "graben"} | fields
    return Action(ts=ts, action=what, **about)


def fix(ts: int, metres: float, lng: float = LNG) -> Location:
    """So far north of the Graben store, or of the Ring store with its longitude."""
    return Location(id=f"f{next(_ids)}", uid="ann", ts=ts, lat=metres_north(metres), lng=lng, accuracy_m=5.0)


def someone(ts: int) -> list[Event]:
    return [
        Consent(id=f"c{next(_ids)}", uid="ann", ts=ts, scope="websocket", granted=True),
        Profile(id=f"p{next(_ids)}", uid="ann", ts=ts, name="Ann"),
    ]


@pytest.fixture
async def town(redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Installation]:
    for name, value in environment(valkey_url).items():
        monkeypatch.setenv(name, value)
    async with installed(TOWN) as running:
        yield running


@pytest.fixture
async def api(town: Installation) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(make_desk(town.core)))
    staff = {"Authorization": f"Bearer {KEYS['staff']}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://api.test", headers=staff) as client:
        yield client


class Screen:
    """A device of somebody, connected from now on."""

    def __init__(self, redis: Redis, channel: str) -> None:
        self._streams = ChannelStreams(redis, f"node-{next(_ids)}", SystemClock())
        self._bus = redis.pubsub()
        self._channel = channel
        self._since: Position | None = None

    async def on(self) -> "Screen":
        await self._bus.subscribe(keys.node_bus(self._streams.node))
        [found], _ = await self._streams.attend([Listening(self._channel)])
        self._since = found.position
        return self

    async def next(self) -> Push:
        """The next thing that is shown."""
        async with asyncio.timeout(30):
            while not (found := (await self._streams.read(self._channel, self._since)).publications):
                await asyncio.sleep(0.02)
        assert self._since is not None
        self._since = self._since._replace(offset=found[0].offset)
        return msgspec.json.decode(found[0].data, type=Push)


@pytest.fixture
async def log(redis: Redis, valkey_url: str) -> AsyncIterator[StreamsLog]:
    made = StreamsLog(valkey_url, PARTITIONS)
    await made.start()
    yield made
    await made.stop()


async def triggers(redis: Redis) -> list[str]:
    """What was decided about, in the order of time."""
    decisions = (await committed(redis)).decisions.values()
    return [made.moment.trigger for made in sorted(decisions, key=lambda made: made.at_ms)]


async def test_click_and_collect(town: Installation, api: httpx.AsyncClient, redis: Redis) -> None:
    """An order is ready and its customer drives up: the tablet says when they come, the phone where to go."""
    tablet, phone = await Screen(redis, "staff:graben").on(), await Screen(redis, "customer:ann").on()
    began_ms = time.time_ns() // 1_000_000 - 600_000
    await town.send(*someone(began_ms), action("order_ready", began_ms))
    assert (await api.get(PATH)).json() == {"pickups": []}
    await town.send(action("pickup_start", began_ms + 1_000))
    drive = [fix(began_ms + 2_000 + 10_000 * step, 4_000 - 150 * step) for step in range(25)]
    await town.send(*drive[:20])
    alert = await tablet.next()
    assert (alert.kind, alert.trigger, alert.order, alert.title) == (
        "assist", "pickup_approaching", "A-17", "A-17 in 5 min at Graben",
    )  # fmt: skip
    assert alert.eta_ms is not None
    assert 240_000 < alert.eta_ms - alert.at_ms <= 300_000
    (listed,) = (await api.get(PATH)).json()["pickups"]
    assert {name: listed[name] for name in ("order", "state", "ready", "updated_ms")} == {
        "order": "A-17", "state": "approaching", "ready": True, "updated_ms": drive[19].ts,
    }  # fmt: skip
    assert drive[19].ts < listed["eta_ms"] < drive[19].ts + 300_000
    assert listed["customer"] == alert.customer
    await town.send(*drive[20:], fix(began_ms + 400_000, 0))
    welcome = await phone.next()
    assert (welcome.kind, welcome.title, welcome.order) == ("offer", "A-17: counter 3, Ann", "A-17")
    (listed,) = (await api.get(PATH)).json()["pickups"]
    assert listed["state"] == "arrived"
    assert (await api.get("/v1/stores/ring/pickups")).json() == {"pickups": []}
    await town.send(action("order_picked_up", began_ms + 500_000))
    assert (await api.get(PATH)).json() == {"pickups": []}
    assert await triggers(redis) == ["pickup_approaching", "pickup_arrived"]
    assert await redis.keys("*:pickups") == []


async def test_who_may_look(api: httpx.AsyncClient) -> None:
    """Staff only, of a store that there is; nothing of what is listed says who the customer is."""
    assert (await api.get("/v1/stores/nowhere/pickups")).status_code == 404
    for role, status in (("pos", 403), ("intake", 403), ("staff", 200), ("admin", 200)):
        answer = await api.get(PATH, headers={"Authorization": f"Bearer {KEYS[role]}"})
        assert answer.status_code == status
    assert (await api.get(PATH, headers={"Authorization": ""})).status_code == 401


async def test_what_is_listed(town: Installation, api: httpx.AsyncClient) -> None:
    """By who is expected first, those of whom nothing is known last; no name, id or distance of anybody."""
    began_ms = time.time_ns() // 1_000_000 - 600_000
    await town.send(
        action("pickup_start", began_ms, order="far"),
        action("pickup_start", began_ms, order="near", uid="bob"),
        action("pickup_start", began_ms, order="unseen", uid="cem"),
        action("order_ready", began_ms, order="waits", uid="dan"),
        action("order_ready", began_ms, order="later"),
        action("pickup_start", began_ms, order="elsewhere", store="ring"),
    )
    await town.send(
        fix(began_ms + 1, 9_000), msgspec.structs.replace(fix(began_ms + 1, 3_000), uid="bob", id="near-fix")
    )
    answer = await api.get(PATH)
    assert [(row["order"], row["eta_ms"] is None) for row in answer.json()["pickups"]] == [
        ("near", False), ("far", False), ("unseen", True),
    ]  # fmt: skip
    assert {frozenset(row) for row in answer.json()["pickups"]} == {
        frozenset({"order", "state", "since_ms", "ready", "eta_ms", "updated_ms", "customer"})
    }
    assert not [name for name in ("ann", "bob", "cem", "3000", "9000") if name in answer.text]


async def test_a_wrong_store(town: Installation, redis: Redis) -> None:
    """Whoever stays in a store where their order isn't learns it on the phone, once; then comes to the right one."""
    phone = await Screen(redis, "customer:ann").on()
    began_ms = time.time_ns() // 1_000_000 - 600_000
    await town.send(*someone(began_ms), action("pickup_start", began_ms, notice_s=0))
    stay = [fix(began_ms + 1_000 + 10_000 * step, 0, _LNG_2) for step in range(10)]
    await town.send(*stay)
    push = await phone.next()
    assert (push.title, push.store) == ("This is Ring; A-17 is at Graben", "ring")
    await town.send(fix(began_ms + 300_000, 900), fix(began_ms + 400_000, 0))
    assert (await phone.next()).title == "A-17: counter 3, Ann"
    assert await triggers(redis) == ["pickup_wrong_store", "pickup_arrived"]


async def test_abandoned_while_no_engine_ran(redis: Redis, log: StreamsLog) -> None:
    """The trip's time is over while nothing runs: the next engine tells it, once, and nobody is expected any more."""
    now_ms = SystemClock().now_ms()
    bench = Bench(redis, log)
    async with bench.running(TOWN):
        await bench.send(*someone(now_ms), action("pickup_start", now_ms, within_s=60))
        await bench.caught_up()
        await bench.send(fix(now_ms + 1_000, 9_000))
        await bench.caught_up()
    assert await redis.hgetall(keys.pickups(HOME)) == {b"ann": b"graben"}
    clock = ManualClock(now_ms + 59_999)
    pump = TimerPump(StateStore(redis, PARTITIONS), Intake(log, clock), lambda: frozenset({HOME}), clock)
    assert await pump.fire(HOME) == 0
    clock.advance(1)
    due_ms = now_ms + 60_000
    assert await stored_timers(redis, PARTITIONS) == {(ANN, "pickup"): due_ms}
    another = Bench(redis, log)
    async with another.running(TOWN):
        assert await pump.fire(HOME) == 1
        # A pump that died before it could forget the timer fires again.
        await redis.zadd(keys.timers(HOME), {"pickup\x1fann": due_ms})
        assert await pump.fire(HOME) == 1
        await another.caught_up()
    found = await committed(redis)
    (decision,) = found.decisions.values()
    assert decision.moment.pickup is not None
    assert (decision.promotion, decision.at_ms, decision.moment.pickup.reason) == ("missed", now_ms + 60_000, "expired")
    assert found.customers[ANN].presence.trips == []
    assert await redis.hgetall(keys.pickups(HOME)) == {}
    assert set(await stored_timers(redis, PARTITIONS)) == {(ANN, "deadline")}


@pytest.mark.parametrize("scope", ["location", "all"])
async def test_a_withdrawal(redis: Redis, log: StreamsLog, scope: Any) -> None:
    """Without consent nobody is followed: the trip ends without a word, also where the shop had said it's ready."""
    now_ms = SystemClock().now_ms()
    bench = Bench(redis, log)
    async with bench.running(TOWN):
        await bench.send(action("order_ready", now_ms), action("pickup_start", now_ms + 1))
        await bench.caught_up()
        assert await redis.hlen(keys.pickups(HOME)) == await redis.zcard(keys.timers(HOME)) == 1
        await bench.send(Consent(id="no", uid="ann", ts=now_ms + 2, scope=scope, granted=False))
        await bench.send(action("pickup_start", now_ms + 3))
        await bench.caught_up()
        await bench.send(fix(now_ms + 4, 0))
        await bench.caught_up()
    assert (await committed(redis)).customers[ANN].presence.trips == []
    assert await triggers(redis) == []
    assert await redis.hlen(keys.pickups(HOME)) == await redis.zcard(keys.timers(HOME)) == 0


@pytest.mark.parametrize("readable", [True, False])
async def test_erased(redis: Redis, log: StreamsLog, readable: bool) -> None:
    """Of someone erased no trip, no timer and no place in a store's list is left, also if their record is damaged."""
    now_ms = SystemClock().now_ms() - 120_000
    bench = Bench(redis, log)
    async with bench.running(TOWN):
        await bench.send(action("pickup_start", now_ms, within_s=60))
        await bench.caught_up()
    assert await redis.hlen(keys.pickups(HOME)) == 1
    if not readable:
        await redis.set(keys.presence(HOME, ANN), b"[2,nonsense")
    another = Bench(redis, log)
    async with another.running(TOWN):
        await another.send(Erase(id="gone", uid="ann", ts=now_ms + 1))
        await another.caught_up()
        # One that the pump had taken before brings nobody back.
        due_ms = now_ms + 60_000
        await another.send(Timer(id="late", uid="ann", ts=due_ms, kind="pickup", due_ms=due_ms))
        await another.caught_up()
    # Who was erased stands among the erasures, until the eraser has seen to the rest.
    left = {key.decode() async for key in redis.scan_iter(match=f"{keys.PREFIX}{{{HOME}}}:*")}
    assert left == {keys.epoch(HOME), keys.offsets(HOME), keys.erasures(HOME)}


async def test_said_twice(redis: Redis, log: StreamsLog) -> None:
    """An action that a client repeats counts once: it does not set out again after it was called off."""
    now_ms = SystemClock().now_ms()
    start = action("pickup_start", now_ms)
    bench = Bench(redis, log)
    async with bench.running(TOWN):
        await bench.send(start, action("pickup_cancel", now_ms + 1), start)
        await bench.caught_up()
    assert (await committed(redis)).customers[ANN].presence.trips == []
    assert await triggers(redis) == ["pickup_abandoned"]


async def test_staff_are_alerted_all_the_same(redis: Redis, log: StreamsLog) -> None:
    """An order has to be brought whether or not staff spoke to its customer just now, or consent to a channel lacks."""
    now_ms = SystemClock().now_ms()
    bench = Bench(redis, log)
    async with bench.running(TOWN):
        await bench.send(action("staff_contact", now_ms, order=None), action("pickup_start", now_ms + 1))
        await bench.caught_up()
        await bench.send(fix(now_ms + 2, 1_000), fix(now_ms + 3, 0))
        await bench.caught_up()
    decided = sorted((await committed(redis)).decisions.values(), key=lambda made: made.at_ms)
    assert [(made.moment.trigger, made.outcome, made.reason) for made in decided] == [
        ("pickup_approaching", "assist", None),
        ("pickup_arrived", "nothing", "no_consent"),
    ]


@pytest.mark.parametrize("trigger", sorted(PICKUP_TRIGGERS))
def test_a_message_that_waits_is_stopped_by_a_withdrawal(trigger: Trigger) -> None:
    """Consent to location is asked for again before an alert of a pickup is sent."""
    ann = Customer(id=ANN)
    assert not may_not_contact(ann, "assist", trigger, [])
    ann.consents["location"] = (False, 1)
    assert may_not_contact(ann, "assist", trigger, [])


@pytest.mark.parametrize(("left_ms", "minutes"), [(1, 1), (60_000, 1), (60_001, 2), (0, 0), (-5, 0)])
def test_minutes(left_ms: int, minutes: int) -> None:
    """Minutes are rounded up, and never negative; unknown ones are left out."""
    facts = with_pickup(Facts(), Pickup("A-17", StoreId("s"), 1_000_000 + left_ms), None, 1_000_000)
    assert (facts.minutes, facts.order, str(facts.pickup_store)) == (minutes, "A-17", "")
    assert with_pickup(Facts(), Pickup("A-17", StoreId("s")), None, 1_000_000).minutes == ""


def test_the_page() -> None:
    """The promotions of docs/pickup.md are good as they stand, one a trigger; its figures are those of the code."""
    page = (Path(__file__).parents[2] / "docs" / "pickup.md").read_text(encoding="utf-8")
    example = load_world(page.split("```yaml\n", 1)[1].split("```", 1)[0], "pickup.md")
    assert {promotion.trigger for promotion in example.promotions} == PICKUP_TRIGGERS
    assert [check_words(promotion) for promotion in example.promotions] == [[]] * 4
    assert f"{trips.NOTICE_MS // 1_000}\nunless given" in page
    assert f"{trips.WITHIN_MS // 1_000:,} unless" in page
    assert f"least {trips.COMING_M} m" in page
    assert f"{trips.AWAY_M // 1_000} km farther off" in page
    assert f"{trips.AWAY_MS // 60_000} minutes after that" in page
    assert f"times {trips.DETOUR} (" in page
    assert f"sure as {trips.MIN_CONFIDENCE};" in page


def test_records_from_before_there_were_trips() -> None:
    """A presence that an older release wrote has none."""
    assert decode_presence(ANN, b"[2,[1750000000000,{},true,0]]").presence == Presence(last_ms=1_750_000_000_000)
