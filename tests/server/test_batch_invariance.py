"""Batch invariance: however a log is cut into batches, the engine commits what the oracle works out one by one.

An example is a list of steps that five people take around a small town. `log_of` turns it into log records, and asks
the oracle what there is to react to (timers that wait, messages that were sent, stitches on their way). The oracle's
outcome is what every way of working this log off has to arrive at: any cut, any order of the partitions and topics in a
batch, any cache, restarts in between, through `Engine.process` and through `Engine.run`.

The examples are the same each time. To look for new ones, for as long as you like:
`NEARCAST_TEST_EXAMPLES=5000 .venv/bin/pytest tests/server/test_batch_invariance.py`
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import chain, count
from typing import Any, NamedTuple, cast

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from geofence.trips import headed_for
from models.registry import FixedModels
from nearcast import keys, topics
from nearcast.clock import SystemClock
from nearcast.events import (
    TOPIC_OF,
    Action,
    Cart,
    Consent,
    Erase,
    Event,
    Identify,
    Line,
    Location,
    Profile,
    Purchase,
    Receipt,
    Timer,
    encode,
)
from nearcast.fold import FoldRules
from nearcast.ids import CustomerId, partition_of
from nearcast.messages import Emitted, Message, Recall, decode_outbox
from nearcast.world import Cap, Discount, Fence, Polygon, Promotion, What, Where, Who, Words
from offers.policy import Policy
from server.budgets import Leases
from server.engine import Engine
from server.log.base import LogConsumer, Record
from server.state import Encoded, StateStore
from server.world import WorldStore
from tests.oracle import Oracle, Outcome, by_addressee, stored_timers
from tests.server.rig import PARTITIONS, SCORER, Playback, committed
from tests.server.town import LAT, LNG, METRE, WORLD, metres_north

NOW = 1_795_000_000_000
RULES = FoldRules(cart_abandoned_after_ms=90_000)
#: Holds Ann out.
POLICY = Policy(caps=(Cap(count=4, period_s=3_600),), exploration=0.3, holdout=0.2, holdout_salt="c")
EXAMPLES = int(os.environ.get("NEARCAST_TEST_EXAMPLES", "0"))


def _words(title: str = "{{ product }}") -> dict[str, Words]:
    return {"en": Words(title=title)}


#: A polygon inside the store, and something to say at every trigger that the town leaves out.
TOWN = msgspec.structs.replace(
    WORLD,
    fences=[
        *WORLD.fences,
        Fence(
            id="coffee",
            store="graben",
            kind="department",
            parent="inside",
            dwell_s=30,
            beacons=["beacon-1"],
            access_points=["ap-1"],
            codes=["code-1"],
            geometry=Polygon(
                [
                    [
                        (LNG - 15 * METRE, LAT - 25 * METRE),
                        (LNG + 15 * METRE, LAT - 25 * METRE),
                        (LNG, LAT + 5 * METRE),
                        (LNG - 15 * METRE, LAT - 25 * METRE),
                    ]
                ]
            ),
        ),
    ],
    promotions=[
        *WORLD.promotions,
        Promotion(id="aisle", name="a", trigger="enter", where=Where(kinds=["department"]), words=_words()),
        Promotion(id="bye", name="b", trigger="exit", where=Where(kinds=["store", "vicinity"]), words=_words()),
        Promotion(id="forgot", name="f", trigger="cart_abandoned", who=Who(in_cart=True), words=_words()),
        Promotion(id="linger", name="l", trigger="dwell", what=What(segments=["coffee"]), words=_words()),
        Promotion(
            id="look",
            name="o",
            trigger="product_view",
            what=What(segments=["coffee", "kitchen"], discount=Discount(percent=5)),
            caps=[Cap(count=1, period_s=600)],
            words=_words(),
        ),
        Promotion(id="open", name="n", trigger="app_open", caps=[Cap(count=2, period_s=900)], words=_words()),
        Promotion(
            id="coming", name="c", trigger="pickup_approaching", kind="assist", caps=[], words=_words("{{ minutes }}")
        ),
        Promotion(id="here", name="h", trigger="pickup_arrived", caps=[], words=_words("{{ order }}")),
        Promotion(id="lost", name="x", trigger="pickup_abandoned", kind="assist", caps=[], words=_words()),
        Promotion(id="please", name="p", trigger="help_request", kind="assist", words=_words()),
        Promotion(id="wish", name="w", trigger="wishlist_add", who=Who(on_wishlist=True), words=_words()),
    ],
)


class Step(NamedTuple):
    """One thing that happens: who does it, how long after the last step, dated how far from then, and what."""

    who: str
    pause_ms: int
    dated_ms: int
    what: tuple[Any, ...]


KNOWN = ("ann", "bob", "cem")
DEVICES = ("d1", "d2")
SKUS = ("beans", "grinder", "gone", "unheard-of")


def _what() -> st.SearchStrategy[tuple[Any, ...]]:
    sku = st.sampled_from(SKUS)
    place = st.tuples(
        st.sampled_from(
            [-26.0, -20.0, -4.0, 0.0, 9.0, 10.5, 30.0, 39.0, 40.4, 60.0, 119.0, 125.0, 200.0, 4e3, 4e3, 4e3, 4e3]
        ),
        st.floats(-4.0, 4.0).map(lambda jitter: round(jitter, 2)),
        st.sampled_from([("gps", 5.0), ("gps", 25.0), ("gps", 0.0), ("beacon", 0.5), ("wifi", 12.0)]),
    )
    fix = st.tuples(st.just("fix"), place)
    # What the app or the floor tells besides, with coordinates or without.
    zones = st.lists(st.sampled_from(["inside", "near", "coffee", "beacon-1", "unheard-of"]), max_size=2)
    hint = st.tuples(st.just("hint"), st.none() | place, zones, st.booleans())
    leg = st.tuples(st.sampled_from([1_000, 9_000, 70_000]), st.sampled_from([0, 0, 0, -10_000]), place)
    # What is withdrawn before the last leg, and granted again after it.
    shy = st.sampled_from([None, None, None, None, "location", "all"])
    walk = st.tuples(st.just("walk"), st.lists(leg, min_size=2, max_size=6), shy)
    cart_actions = st.sampled_from(["add", "add", "add", "set", "remove", "clear", "order"])
    cart = st.tuples(st.just("cart"), cart_actions, sku, st.integers(0, 3), st.sampled_from([None, 1_299]))
    line = st.tuples(sku, st.integers(1, 3), st.integers(0, 5_000), st.sampled_from([0, 0, 50]))
    purchase = st.tuples(st.just("purchase"), st.lists(line, min_size=1, max_size=3))
    actions = ["app_open", "product_view", "wishlist_add", "wishlist_remove", "help_request", "staff_contact"]
    action = st.tuples(st.just("action"), st.sampled_from(actions), sku)
    scan = st.tuples(
        st.just("scan"),
        st.sampled_from(["qr_scan", "qr_scan", "wifi_lookup", "app_open"]),
        st.sampled_from(["code-1", "code-1", "code-1", "ap-1", "coffee", "unheard-of"]),
    )
    orders = st.tuples(
        st.just("pickup"),
        st.sampled_from(["order_ready", "pickup_start", "pickup_start", "pickup_cancel", "order_picked_up"]),
        st.sampled_from(["o1", "o2"]),
        st.sampled_from(["graben", "graben", "elsewhere"]),
        st.sampled_from([None, None, 0, 900]),
        st.sampled_from([None, None, 60, 600]),
    )
    fetch = st.tuples(st.just("fetch"), orders, st.integers(0, 3))
    scopes = st.sampled_from(["websocket", "websocket", "sms", "location", "location", "all"])
    consent = st.tuples(st.just("consent"), scopes, st.sampled_from([True, True, False]))
    profile = st.tuples(st.just("profile"), st.sampled_from(["gold", "none"]))
    identify = st.tuples(st.just("identify"), st.sampled_from(DEVICES), st.sampled_from(KNOWN), st.booleans())
    receipt = st.tuples(
        st.just("receipt"),
        st.integers(0, 5),
        st.sampled_from(["sent", "delivered", "opened", "failed", "suppressed", "redeemed"]),
    )
    fire = st.tuples(st.just("fire"), st.integers(1, 3), st.sampled_from([0, 0, 0, 1]))
    rubbish = st.tuples(
        st.just("rubbish"),
        st.sampled_from(topics.CUSTOMER_TOPICS),
        st.sampled_from([b"", b"\xff\xfe", b"{}", b'{"uid":"ann","lat":91,"lng":0}', b'{"uid":"ann","ts":12}']),
    )
    again = st.tuples(st.just("again"), st.integers(1, 12))
    rare = st.sampled_from([("erase",), ("erase",), ("deliver",), ("deliver",), ("stray",), ("stray",), ("nameless",)])
    often = (fix, fix, fix, hint, walk, cart, cart, consent, action, scan, fetch, fire, rare)
    return st.one_of(*often, purchase, profile, identify, receipt, rubbish, again)


_STEP = st.builds(
    Step,
    who=st.sampled_from([*KNOWN, *KNOWN, *KNOWN[:1], *KNOWN[:1], *DEVICES]),
    pause_ms=st.sampled_from([0, 1, 1_000, 15_000, 40_000, 120_000, 1_000_000]),
    dated_ms=st.sampled_from([0, 0, 0, 0, -1, -30_000, -700_000, -3_600_001, 30_000, 60_001]),
    what=_what(),
)
#: Lists of lists are longer on average, and still shrink well.
STEPS = st.lists(st.lists(_STEP, min_size=1, max_size=12), min_size=1, max_size=8).map(
    lambda some: list(chain.from_iterable(some))
)


class Log:
    """Writes records as the steps say, and shows each to the oracle at once."""

    def __init__(self) -> None:
        self.oracle = Oracle(TOWN, RULES, partitions=PARTITIONS, policy=POLICY, scorer=SCORER)
        self.records: list[Record] = []
        self._ends: dict[tuple[str, int], int] = {}
        self._now_ms = NOW
        self._stitched = 0

    def append(self, topic: str, key: str, value: bytes, partition: int | None = None) -> None:
        """One more record; no two arrive at the same time, so that every cut leaves the topics in one order."""
        self._now_ms += 1
        at = partition_of(key, PARTITIONS) if partition is None else partition
        place = self._ends[topic, at] = self._ends.get((topic, at), -1) + 1
        record = Record(topic, at, str(place), key, value, self._now_ms)
        self.records.append(record)
        self.oracle.see(record)

    def take(self, number: int, step: Step) -> None:
        """Do what a step says; nothing, if there is nothing to do it with."""
        self._now_ms += step.pause_ms
        about: dict[str, Any] = {"id": f"e{number}", "ts": self._now_ms + step.dated_ms}
        about |= {"anonymous_id": step.who} if step.who in DEVICES else {"uid": step.who}
        name = CustomerId(f"anon:{step.who}" if step.who in DEVICES else step.who)
        match step.what:
            case ("rubbish", topic, value):
                self.append(topic, name, value)
            case ("stray",):
                # Right beside an event that is where it belongs.
                self.append(topics.CARTS, name, encode(Cart(**about, action="add", sku="beans")))
                value = encode(Cart(**about | {"id": f"stray{number}"}, action="add", sku="beans"))
                self.append(topics.CARTS, name, value, partition=(partition_of(name, PARTITIONS) + 1) % PARTITIONS)
            case ("nameless",):
                self.append(
                    topics.CARTS, name, encode(Cart(**about | {"id": None, "ts": 0}, action="add", sku="beans"))
                )
            case ("again", back) if back <= len(self.records):
                old = self.records[-back]
                self.append(old.topic, old.key, old.value, old.partition)
            case ("walk", legs, shy):
                for leg, (pause_ms, dated_ms, place) in enumerate(legs, start=1_000 * (number + 1)):
                    if shy and place is legs[-1][-1]:
                        self.take(-leg, Step(step.who, 1, 0, ("consent", shy, False)))
                    self.take(leg, Step(step.who, pause_ms, dated_ms, ("fix", place)))
                if shy:
                    self.take(-1_000_000 - number, Step(step.who, 1, 0, ("consent", shy, True)))
            case ("fetch", order, legs):
                self.take(number, Step(step.who, 0, step.dated_ms, order))
                for leg, metres in enumerate((4e3, 200.0, 30.0)[:legs], start=1_000 * (number + 1)):
                    self.take(leg, Step(step.who, 60_000, 0, ("fix", (metres, 0.0, ("gps", 5.0)))))
            case ("identify", device, uid, delivered):
                self._sign_in(device, uid, number, step.dated_ms)
                if delivered:
                    self._deliver()
            case ("deliver",):
                self._deliver()
            case ("fire", times, wrong_by):
                for _ in range(times):
                    self._fire(name, wrong_by)
            case ("receipt", back, status):
                self._report(back, status, number, step.dated_ms)
            case what:
                event = _event(what, about)
                if event is not None:
                    self.append(TOPIC_OF[type(event)], event.customer, encode(event))

    def _sign_in(self, device: str, uid: str, number: int, dated_ms: int) -> None:
        event = Identify(id=f"e{number}", uid=uid, anonymous_id=device, ts=self._now_ms + dated_ms)
        self.append(topics.ACTIONS, event.customer, encode(event))

    def _deliver(self) -> None:
        """What the dispatcher does with stitches: write them back to the log."""
        entries = self.oracle.outcome.outbox.values()
        stitches = [entry for of_one in entries for entry in of_one if isinstance(entry, Emitted)]
        for stitch in stitches[self._stitched :]:
            self.append(stitch.topic, stitch.key, bytes(stitch.value))
        # One of them stays, and comes a second time.
        self._stitched = max(0, len(stitches) - 1)

    def _fire(self, name: CustomerId, wrong_by: int) -> None:
        for (customer, kind), due_ms in sorted(self.oracle.outcome.timers.items()):
            if customer == name:
                self._now_ms = max(self._now_ms, due_ms)
                at_ms = due_ms - wrong_by
                timer = Timer(id=f"{name}{kind}{at_ms}", ts=at_ms, kind=kind, due_ms=at_ms, **self._about(name))
                self.append(topics.FEEDBACK, name, encode(timer))

    def _report(self, back: int, status: Any, number: int, dated_ms: int) -> None:
        """What a channel says about one of the last messages, whoever it was for."""
        entries = chain.from_iterable(self.oracle.outcome.outbox.values())
        messages = sorted((entry.at_ms, entry.id, entry) for entry in entries if isinstance(entry, Message))
        if messages:
            _, _, message = messages[-1 - back % len(messages)]
            receipt = Receipt(
                id=f"e{number}",
                ts=self._now_ms + dated_ms,
                message=message.id,
                decision=message.decision,
                status=status,
                channel="websocket",
                **self._about(message.customer),
            )
            self.append(topics.FEEDBACK, message.customer, encode(receipt))

    @staticmethod
    def _about(name: CustomerId) -> dict[str, Any]:
        return {"anonymous_id": name[5:]} if name.startswith("anon:") else {"uid": name}


def _event(what: tuple[Any, ...], about: Mapping[str, Any]) -> Event | None:
    match what:
        case ("fix", (metres, jitter, (source, accuracy_m))):
            lng = LNG + jitter * METRE
            return Location(**about, lat=metres_north(metres), lng=lng, source=source, accuracy_m=accuracy_m)
        case ("hint", None, zones, mock):
            return Location(**about, zones=zones or ["unheard-of"], mock=mock)
        case ("hint", (metres, jitter, (source, accuracy_m)), zones, mock):
            lng = LNG + jitter * METRE
            return Location(
                **about, lat=metres_north(metres), lng=lng, source=source, accuracy_m=accuracy_m, zones=zones, mock=mock
            )
        case ("cart", action, sku, quantity, price):
            return Cart(**about, action=action, sku=sku, quantity=quantity, price_cents=price)
        case ("purchase", lines):
            names = ("sku", "quantity", "amount_cents", "coupon_cents")
            return Purchase(**about, items=[Line(**dict(zip(names, line, strict=True))) for line in lines])
        case ("action", action, sku):
            return Action(**about, action=action, sku=sku, store="graben")
        case ("scan", action, token):
            return Action(**about, action=action, fence=token, store="graben")
        case ("pickup", action, order, store, notice_s, within_s):
            wishes = {"notice_s": notice_s, "within_s": within_s}
            return Action(**about, action=action, order=order, store=store, **wishes)
        case ("consent", scope, granted):
            return Consent(**about, scope=scope, granted=granted)
        case ("profile", loyalty):
            return Profile(**about, loyalty=loyalty, name="N")
        case ("erase",):
            return Erase(**about)
    return None


def log_of(steps: Sequence[Step]) -> tuple[list[Record], Outcome]:
    """The records that these steps leave in the log, and what should come of them."""
    log = Log()
    for number, name in enumerate(KNOWN[:2]):
        log.take(-1 - number, Step(name, 0, 0, ("consent", "websocket", True)))
    for number, step in enumerate(steps):
        log.take(number, step)
    return log.records, log.oracle.outcome


class Way(NamedTuple):
    """One way of working a log off."""

    #: The numbers of records in the batches, over and over.
    sizes: list[int]
    #: How the partitions, and the topics within a batch, are mixed.
    seed: int
    cached_customers: int
    #: Before which batches another engine takes over, or comes in between.
    restarts: set[int]


WAYS = st.builds(
    Way,
    sizes=st.lists(st.sampled_from([1, 1, 2, 3, 5, 8, 13, 60]), min_size=2, max_size=6),
    seed=st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5]),
    cached_customers=st.sampled_from([0, 8, 1_000]),
    restarts=st.sets(st.integers(1, 12), max_size=3),
)
PLAIN = Way([1_000_000], 0, 1_000, set())


def batches_of(records: Sequence[Record], way: Way) -> list[list[Record]]:
    """The records in batches: each partition in its order, the partitions mixed, each batch sorted by topic or not."""
    chance = random.Random(way.seed)
    queues: dict[int, list[Record]] = {}
    for record in records:
        queues.setdefault(record.partition, []).append(record)
    if way.seed:
        # A shuffled deck says whose turn it is.
        turns = [partition for partition, queue in queues.items() for _ in queue]
        chance.shuffle(turns)
        rests = {partition: iter(queue) for partition, queue in queues.items()}
        records = [next(rests[partition]) for partition in turns]
    batches, first, number = [], 0, 0
    while first < len(records):
        size = way.sizes[number % len(way.sizes)]
        batch = list(records[first : first + size])
        if chance.random() < 0.5:
            # As a consumer may deliver it: in order within each topic and partition only.
            batch.sort(key=lambda record: (record.topic, -record.partition))
        batches.append(batch)
        first, number = first + size, number + 1
    return batches


class Script(Playback):
    """A consumer of a log whose batches are cut beforehand: serves them one by one, then waits.

    `seek` is obeyed as by a real one: what the store has not got is served again, from the first such record on.
    `disturb` is called once with the number of each batch in `disturbed`, before that batch is served.
    """

    def __init__(
        self, batches: Sequence[Sequence[Record]], disturbed: set[int], disturb: Callable[[int], Awaitable[Any]]
    ) -> None:
        self._batches = batches
        self._disturbed = set(disturbed)
        self._disturb = disturb
        self._next = 0
        self._after: dict[tuple[int, str], int] = {}
        self._missing = {(record.partition, record.topic): record.position for batch in batches for record in batch}
        self.finished = asyncio.Event()

    async def seek(self, partition: int, after: Mapping[str, str]) -> None:
        for topic in topics.CUSTOMER_TOPICS:
            self._after[partition, topic] = int(after.get(topic) or -1)
        self._next = 0
        # Of a batch that was refused, the other partitions' part is in the store.
        await self.progress(partition, after)

    async def fetch(self, max_records: int, wait_ms: int) -> list[Record]:
        while self._next < len(self._batches):
            batch = self._batches[self._next]
            if self._next in self._disturbed:
                self._disturbed.remove(self._next)
                await self._disturb(self._next)
            self._next += 1
            wanted = [record for record in batch if int(record.position) > self._after[record.partition, record.topic]]
            if wanted:
                return wanted
        await asyncio.sleep(wait_ms / 1_000)
        return []

    async def progress(self, partition: int, after: Mapping[str, str]) -> None:
        for topic, position in after.items():
            if self._missing.get((partition, topic)) == position:
                del self._missing[partition, topic]
        if not self._missing:
            self.finished.set()


class SlowStore(StateStore):
    """A store that takes its time to commit, so that the next batch has read what it wants before."""

    async def commit(self, batches: Sequence[Encoded]) -> None:
        await asyncio.sleep(0.005)
        await super().commit(batches)


def engine_on(
    redis: Redis, world: WorldStore, consumer: LogConsumer, cached_customers: int, store: type[StateStore] = StateStore
) -> Engine:
    return Engine(
        consumer=consumer,
        state=store(redis, PARTITIONS),
        world=world,
        budgets=Leases(redis, PARTITIONS, SystemClock()),
        models=FixedModels(SCORER),
        rules=RULES,
        policy=POLICY,
        clock=SystemClock(),
        batch_events=1_000,
        cached_customers=cached_customers,
    )


async def process(redis: Redis, world: WorldStore, records: Sequence[Record], way: Way) -> None:
    """Work the records off by `Engine.process`, in an otherwise empty store."""
    await forget_everyone(redis)
    engine = None
    for number, batch in enumerate(batches_of(records, way)):
        if engine is None or number in way.restarts:
            engine = engine_on(redis, world, Playback(), way.cached_customers)
            await engine.follow_assignment()
        await engine.process(batch)


async def run(redis: Redis, world: WorldStore, records: Sequence[Record], way: Way) -> None:
    """Work the records off by `Engine.run`, in an otherwise empty store.

    Instead of restarts: another takes one of the partitions, so that the engine is fenced, at once or a batch later.
    """
    await forget_everyone(redis)
    script = Script(
        batches_of(records, way), way.restarts, lambda number: redis.incr(keys.epoch((number + way.seed) % PARTITIONS))
    )
    engine = engine_on(redis, world, script, way.cached_customers, SlowStore if way.seed % 2 else StateStore)
    task = asyncio.create_task(engine.run(), name="engine under test")
    done = asyncio.create_task(script.finished.wait(), name="end of the script")
    try:
        async with asyncio.timeout(30):
            await asyncio.wait([task, done], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
    finally:
        task.cancel()
        done.cancel()
        await asyncio.gather(task, done, return_exceptions=True)


async def forget_everyone(redis: Redis) -> None:
    """Empty the store, but for the world and its stock."""
    names = [key async for key in redis.scan_iter(match=f"{keys.PREFIX}{{[0-9]*", count=10_000)]
    if names:
        await redis.delete(*names)


async def dump(redis: Redis) -> dict[str, Any]:
    """Every key of every partition as it is stored, but for what a cut may change.

    That is the epoch, ids within streams, how the entries of several people are mixed in an outbox, and in which order
    the dead letters of a partition come.
    """
    found: dict[str, Any] = {}
    async for key in redis.scan_iter(match=f"{keys.PREFIX}{{[0-9]*", count=10_000):
        name = key.decode()
        match await redis.type(key):
            case b"string" if not name.endswith(":epoch"):
                found[name] = await redis.get(key)
            case b"hash":
                found[name] = await redis.hgetall(key)
            case b"zset":
                found[name] = await redis.zrange(key, 0, -1, withscores=True)
            case b"list":
                found[name] = await redis.lrange(key, 0, -1)
            case b"stream":
                rows = cast("list[tuple[bytes, dict[bytes, bytes]]]", await redis.xrange(key))
                entries = [fields for _, fields in rows]
                if name.endswith(":outbox"):
                    found[name] = by_addressee(decode_outbox(entry[b"e"]) for entry in entries)
                else:
                    found[name] = sorted(entries, key=lambda entry: (entry[b"topic"], int(entry[b"position"])))
    return found


@pytest.fixture
async def town(redis: Redis) -> WorldStore:
    world = WorldStore(redis)
    await world.put(TOWN)
    return world


async def check(redis: Redis, outcome: Outcome) -> None:
    """What stands in the store is what the oracle says."""
    assert outcome.differences(await committed(redis), await stored_timers(redis, PARTITIONS)) == []
    for partition in range(PARTITIONS):
        offsets = await redis.hgetall(keys.offsets(partition))
        assert {topic.decode(): position.decode() for topic, position in offsets.items()} == outcome.offsets.get(
            partition, {}
        )
        pickups = await redis.hgetall(keys.pickups(partition))
        assert {name.decode(): stores.decode().split("\x1f") for name, stores in pickups.items()} == {
            name: headed
            for name, presence in outcome.presences.items()
            if partition_of(name, PARTITIONS) == partition and (headed := headed_for(presence))
        }
        for name, decisions in outcome.decisions.items():
            if partition_of(name, PARTITIONS) == partition:
                stored = await redis.lrange(keys.decisions_of(partition, name), 0, -1)
                assert [decision.id for decision in reversed(decisions)] == [entry.decode() for entry in stored]


_PROPERTY = settings(
    max_examples=EXAMPLES or 80,
    derandomize=not EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


#: Somebody said that they come for their order, and didn't. Seldom drawn.
_NOBODY_CAME = [
    Step("ann", 0, 0, ("fetch", ("pickup", "pickup_start", "o1", "graben", None, None), 0)),
    Step("ann", 0, 0, ("fire", 1, 0)),
]


@_PROPERTY
@given(steps=STEPS, way=WAYS)
@example(steps=_NOBODY_CAME, way=Way([1], 1, 0, set()))
async def test_any_cut(redis: Redis, town: WorldStore, steps: list[Step], way: Way) -> None:
    """Any way of calling `process` gives the oracle's outcome; and, to the byte, what one single batch gives."""
    records, outcome = log_of(steps)
    await process(redis, town, records, way)
    await check(redis, outcome)
    cut = await dump(redis)
    await process(redis, town, records, PLAIN)
    assert cut == await dump(redis)


@settings(_PROPERTY, max_examples=EXAMPLES or 50)
@given(steps=STEPS, way=WAYS)
@example(steps=_NOBODY_CAME, way=Way([1], 1, 0, set()))
async def test_any_cut_while_running(
    redis: Redis, town: WorldStore, monkeypatch: pytest.MonkeyPatch, steps: list[Step], way: Way
) -> None:
    """Also when batches follow each other in `run`, while the one before is being committed, and some are refused."""
    monkeypatch.setattr("server.engine._BACKOFF_S", 0.0)
    records, outcome = log_of(steps)
    await run(redis, town, records, way)
    await check(redis, outcome)


_CART = Step("bob", 0, 0, ("cart", "add", "beans", 1, None))
_NEAR = Step("bob", 1_000, 0, ("fix", (80.0, 0.0, ("gps", 5.0))))
_STRAY = Step("bob", 1_000, 0, ("stray",))


async def test_a_first_fix_while_the_cart_is_being_committed(redis: Redis, town: WorldStore) -> None:
    """The record that a commit on its way will write is not read from the store, which has an older one."""
    records, outcome = log_of([_CART, _NEAR, _CART])
    assert [made.outcome for made in outcome.decisions[CustomerId("bob")]] == ["offer"]
    await run(redis, town, records, Way([1], 1, 0, set()))
    await check(redis, outcome)


async def test_a_stray_of_someone_known(redis: Redis, town: WorldStore) -> None:
    """A record in the wrong partition is a dead letter also when its customer is cached and is in the batch."""
    records, outcome = log_of([_CART, _STRAY])
    await process(redis, town, records, Way([3, 2], 0, 1_000, set()))
    await check(redis, outcome)


async def test_a_stray_changes_nobodys_order(redis: Redis, town: WorldStore) -> None:
    """A record in the wrong partition that is read first, though it came last, holds no other record back."""
    records, outcome = log_of([_CART, _NEAR, _STRAY])
    await process(redis, town, [records[-1], *records[:-1]], PLAIN)
    await check(redis, outcome)


def test_the_examples_mean_something() -> None:
    """The logs above hold what they should: every result, trigger and timer, offers made and suppressed, sign-ins."""
    seen: set[tuple[str, Any]] = set()
    rare = {("trigger", f"pickup_{what}") for what in ("approaching", "arrived", "abandoned")}
    rare |= {("trigger of a scan", "enter"), ("result", "late"), ("dead letter", "wrong_partition")}
    rare |= {("entry", Recall), ("message", "redeemed")}
    looked = count(1)

    # What Hypothesis draws depends on the modules that are loaded: 80 examples are enough on most days.
    @settings(_PROPERTY, max_examples=EXAMPLES or 120)
    @given(steps=STEPS)
    @example(steps=_NOBODY_CAME)
    def look(steps: list[Step]) -> None:
        if next(looked) > 80 and rare <= seen:
            return
        records, outcome = log_of(steps)
        seen.update(("result", result) for _, result in outcome.results)
        seen.update(("dead letter", burial.reason) for burial in outcome.dead_letters)
        scans = {msgspec.json.decode(record.value)["id"] for record in records if b'"fence":"code-1"' in record.value}
        for decision in (made for of_one in outcome.decisions.values() for made in of_one):
            seen.add(("trigger of a scan", decision.moment.event in scans and decision.moment.trigger))
            seen.update(
                {("outcome", decision.outcome), ("reason", decision.reason), ("trigger", decision.moment.trigger)}
            )
        entries = [entry for of_partition in outcome.outbox.values() for entry in of_partition]
        seen.update(("entry", type(entry)) for entry in entries)
        seen.update(("timer", kind) for _, kind in outcome.timers)
        for customer in outcome.customers.values():
            seen.update(("message", sent.status) for sent in customer.messages)
            seen.add(("taken over", bool(customer.stitched)))
        seen.add(("erased", any(b'"erase"' in record.value for record in records)))

    look()
    assert {what for kind, what in seen if kind == "result"} == {"applied", "duplicate", "stale", "late", "no_consent"}
    assert {what for kind, what in seen if kind == "dead letter"} >= {"malformed_event", "wrong_partition"}
    assert {what for kind, what in seen if kind == "outcome"} == {"offer", "assist", "nothing"}
    assert len({what for kind, what in seen if kind == "reason"}) >= 6
    assert len({what for kind, what in seen if kind == "trigger"}) >= 7
    assert {what for kind, what in seen if kind == "timer"} == {"cart_abandoned", "deadline", "presence", "pickup"}
    triggers = {what for kind, what in seen if kind == "trigger"}
    assert triggers >= {"pickup_approaching", "pickup_arrived", "pickup_abandoned"}
    assert ("trigger of a scan", "enter") in seen
    assert len({what for kind, what in seen if kind == "message"}) >= 4
    assert seen >= {("entry", Message), ("entry", Emitted), ("taken over", True), ("erased", True)}
