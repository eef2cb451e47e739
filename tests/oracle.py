"""The oracle: what the engine should have committed, worked out one record at a time, in one thread, in plain dicts.

    outcome = oracle.run(records, world, rules)              # records in one legal order, see below
    found = await committed(redis)                           # tests/server/rig.py
    timers = await oracle.stored_timers(redis, PARTITIONS)
    assert outcome.differences(found, timers) == []          # one sentence for each difference

It shares with the engine the vocabulary and the pure functions that say what one event means (`decode`, the fold, the
tracker, candidates, gates, `decide`, the model), and nothing of how a log is worked off: no batches, no rounds, no
cache, no columns, no commits, no store. So what it finds is a fault of those, or (by the second opinions below) of the
fold's sums or of the fence index.

**Order.** Within a partition and topic it is the log's. Between topics of one partition the log promises none, and the
oracle takes the records as they are given. `by_arrival` puts what was read back from a log, topic by topic, into the
order that the engine strives for; where a test can't control arrival (many producers, restarts), let what a customer
does in one topic not depend on what they do in another at the same time. The order of partitions doesn't matter.
Give every record once and from the start of the log, with those of `nearcast.feedback` (timers that fired, receipts,
stitches): the oracle sends nothing, so nothing comes back by itself. A record delivered to the engine twice after a
crash is one record.

**Second opinions**, independent of the code they check; a disagreement raises `Disagreement`:
* which fences contain a fix: great-circle distance and shapely's point in polygon, on the fences as described;
* how much was bought: sums over the raw JSON of the purchases that were folded;
* what is a duplicate: an id that this customer's last events had, and never one they had not.

**Not modelled**: "internal_error" dead letters (our own exceptions come out of `run`), a change of the world in the
middle, stock that changes, the dispatcher (entries stay in the outbox; pass `outbox=False` to `differences` where one
runs), and the 30 days after which stored decisions expire.
"""

import heapq
import json
import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec
import numpy as np
import shapely
from redis.asyncio import Redis

from geofence import spoof, trips
from geofence.displays import display_fences
from geofence.index import FenceIndex
from geofence.tracker import next_due_ms, on_timer, places, track
from models.features import redeem
from models.scorer import Scorer
from nearcast import fold, keys, topics
from nearcast.customer import Customer, Presence
from nearcast.decisions import Decision
from nearcast.errors import InputError
from nearcast.events import (
    PICKUP_ACTIONS,
    TOPIC_OF,
    Action,
    AnyEvent,
    Cart,
    Consent,
    Location,
    Purchase,
    Receipt,
    Stitch,
    Timer,
    decode,
    encode,
)
from nearcast.ids import CustomerId, Sku, StoreId, partition_of
from nearcast.messages import Emitted, OutboxEntry, Released
from nearcast.moments import Moment, moments_of_transitions
from nearcast.world import Circle, Fence, MultiPolygon, Polygon
from offers import measure, recalls
from offers.candidates import candidates, stock_wanted
from offers.catalogue import Catalogue
from offers.decide import Scores, decide, screen
from offers.messages import message_of
from offers.policy import Policy
from offers.worldfile import WorldFile
from server.log.base import Record

#: As many decisions about one customer as the store keeps.
KEPT_DECISIONS = 100
_EARTH_RADIUS_M = 6_371_008.8
#: So near to an edge, two ways of computing may differ.
_UNSURE_M = 0.01
_UNSURE_DEGREES = 1e-9

Timers = Mapping[tuple[CustomerId, str], int]


class Disagreement(AssertionError):
    """An independent second opinion differs from the code that engine and oracle share."""


class _Known(Protocol):
    @property
    def customer(self) -> Customer: ...
    @property
    def presence(self) -> Presence: ...


class Committed(Protocol):
    """What `tests.server.rig.committed` reads."""

    @property
    def customers(self) -> Mapping[CustomerId, _Known]: ...
    @property
    def decisions(self) -> Mapping[str, Decision]: ...
    @property
    def outbox(self) -> Sequence[OutboxEntry]: ...
    @property
    def dead_letters(self) -> Sequence[Mapping[bytes, bytes]]: ...


class Burial(msgspec.Struct, frozen=True, order=True):
    """A dead letter, without its wording."""

    partition: int
    topic: str
    position: str
    reason: str
    key: str
    value: bytes


@dataclass
class Outcome:
    """All that should stand in the store once the records are worked off."""

    customers: dict[CustomerId, Customer] = field(default_factory=dict)
    presences: dict[CustomerId, Presence] = field(default_factory=dict)
    #: Per customer, in the order in which they were made.
    decisions: dict[CustomerId, list[Decision]] = field(default_factory=dict)
    #: Per partition, in the order of the records.
    outbox: dict[int, list[OutboxEntry]] = field(default_factory=dict)
    dead_letters: list[Burial] = field(default_factory=list)
    #: Partition → topic → position of the last record.
    offsets: dict[int, dict[str, str]] = field(default_factory=dict)
    #: How many events of a topic had which result ("applied", "duplicate", "stale", "late", "no_consent").
    results: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def timers(self) -> dict[tuple[CustomerId, str], int]:
        """The timers that wait: (customer, kind) → due time in ms."""
        waiting = {(name, kind): due for name, known in self.customers.items() for kind, due in known.timers.items()}
        places = {(name, "presence"): presence.timer_ms for name, presence in self.presences.items()}
        pickups = {(name, "pickup"): trips.next_due_ms(presence) for name, presence in self.presences.items()}
        return waiting | {timer: due for timer, due in (places | pickups).items() if due}

    def differences(self, committed: Committed, timers: Timers | None = None, *, outbox: bool = True) -> list[str]:
        """One sentence for everything that is committed and should not be, or the other way round, or different.

        `timers` are those of `stored_timers`, left out if None. `outbox=False` leaves the outbox out.
        """
        found: list[str] = []
        for name in sorted(self.customers.keys() | self.presences.keys() | committed.customers.keys()):
            known = committed.customers.get(name)
            found += _unlike(
                f"customer {name}",
                self.customers.get(name, Customer(id=name)),
                Customer(id=name) if known is None else known.customer,
            )
            found += _unlike(
                f"presence of {name}",
                self.presences.get(name, Presence()),
                Presence() if known is None else known.presence,
            )
        made = {decision.id: decision for of_one in self.decisions.values() for decision in of_one}
        found += _unlike("decision", made, dict(committed.decisions))
        buried = sorted((burial.topic, burial.position, burial.reason, burial.key) for burial in self.dead_letters)
        stored = sorted(
            tuple(letter[name].decode() for name in (b"topic", b"position", b"reason", b"key"))
            for letter in committed.dead_letters
        )
        found += _unlike("dead letters", buried, stored)
        if outbox:
            entries = [entry for partition in sorted(self.outbox) for entry in self.outbox[partition]]
            found += _unlike("outbox of", by_addressee(entries), by_addressee(committed.outbox))
        if timers is not None:
            found += _unlike("timer", self.timers, dict(timers))
        return found


class Oracle:
    """Takes records one at a time; `outcome` is what should be committed by now."""

    def __init__(
        self,
        world: WorldFile,
        rules: fold.FoldRules,
        *,
        partitions: int = 4,
        policy: Policy | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        # As whoever reads the world from the store gets it: the rules version is a hash of its JSON.
        world = msgspec.json.decode(msgspec.json.encode(world), type=WorldFile)
        self.outcome = Outcome()
        self._rules = rules
        self._partitions = partitions
        self._policy = policy or Policy()
        self._scorer = scorer or shipped_model()
        self._catalogue = Catalogue.build(world.stores, world.products, world.promotions)
        fences = [*world.fences, *(fence for product in world.products for fence in display_fences(product))]
        self._fences = FenceIndex.build(fences)
        self._places = _Places(fences)
        self._stock = {(StoreId(row.store), Sku(row.sku)): row.quantity for row in world.stock}
        self._ledger = _Ledger()

    def see(self, record: Record) -> None:
        """Work one record off, to its last consequence."""
        self.outcome.offsets.setdefault(record.partition, {})[record.topic] = record.position
        try:
            event = decode(
                record.topic,
                record.value,
                position=f"{record.partition}:{record.position}",
                arrived_ms=record.arrived_ms,
            )
        except InputError as error:
            self._bury(record, error.reason)
            return
        if partition_of(event.customer, self._partitions) != record.partition:
            self._bury(record, "wrong_partition")
            return
        status, moments = self._take(event, record)
        self.outcome.results[record.topic, status] += 1
        for moment in moments:
            self._decide(moment, record.partition, event.ts)

    def _take(self, event: AnyEvent, record: Record) -> tuple[str, list[Moment]]:
        late = event.ts + self._rules.late_after_ms < record.arrived_ms
        match event:
            case Location():
                return self._locate(event, late)
            case Timer(kind="presence"):
                return self._wait_no_longer(event)
            case Timer(kind="pickup"):
                return self._expect_no_longer(event)
            case Cart() if late:
                return "late", []
            case Action() if late:
                status, _ = self._fold(event, record)
                return "late" if status == "applied" else status, []
            case Action() if (scan := self._fences.evidence.in_scan(event)) is not None:
                status, moments = self._fold(event, record)
                return status, moments + (self._scan(scan) if status == "applied" else [])
            case _:
                return self._fold(event, record)

    def _locate(self, fix: Location, late: bool) -> tuple[str, list[Moment]]:
        name = fix.customer
        presence = self._presence(name)
        if not self._customer(name).location_allowed:
            return "no_consent", []
        if fix.ts <= presence.last_ms:
            return "stale", []
        if late:
            return "late", []
        return "applied", self._follow(fix, presence)

    def _scan(self, scan: Location) -> list[Moment]:
        """A scan that is folded and not late is a fix, if fixes may be used and it is newer than the last one."""
        presence, allowed = self._presence(scan.customer), self._customer(scan.customer).location_allowed
        return self._follow(scan, presence) if allowed and scan.ts > presence.last_ms else []

    def _follow(self, fix: Location, presence: Presence) -> list[Moment]:
        name = fix.customer
        if fix.lat == fix.lat:
            (hits,) = self._fences.match(np.array([fix.lat]), np.array([fix.lng]))
            inside, near = places(hits, self._fences)
            self._places.check(fix, {fence.id for fence in inside})
        else:
            inside, near = [], []
        self.outcome.presences[name] = presence
        (cell,) = spoof.cells_of(np.array([fix.lat]), np.array([fix.lng]))
        spoof.notice(presence, fix, cell)
        transitions = track(presence, fix, inside, self._fences, near)
        # Every stay is in the footfall from its beginning.
        for stay in presence.inside.values():
            stay.counted = True
        if transitions or (presence.nearby and not presence.timer_ms):
            presence.timer_ms = next_due_ms(presence, self._fences)
        moments = moments_of_transitions(fix.event_id, name, transitions, presence.doubt)
        return moments + trips.follow(presence, fix.event_id, name, transitions, self._catalogue.stores, fix)

    def _wait_no_longer(self, timer: Timer) -> tuple[str, list[Moment]]:
        presence = self._presence(timer.customer)
        if presence.timer_ms == 0 or presence.timer_ms != timer.due_ms:
            return "stale", []
        transitions = on_timer(presence, timer.due_ms, self._fences)
        presence.timer_ms = next_due_ms(presence, self._fences)
        moments = moments_of_transitions(timer.event_id, timer.customer, transitions, presence.doubt)
        return "applied", moments + trips.follow(
            presence, timer.event_id, timer.customer, transitions, self._catalogue.stores
        )

    def _expect_no_longer(self, timer: Timer) -> tuple[str, list[Moment]]:
        presence = self._presence(timer.customer)
        if not presence.trips or trips.next_due_ms(presence) != timer.due_ms:
            return "stale", []
        return "applied", trips.on_timer(presence, timer.event_id, timer.customer, timer.due_ms)

    def _fold(self, event: AnyEvent, record: Record) -> tuple[str, list[Moment]]:
        name = event.customer
        # A copy: whatever is not "applied" must have changed nothing, also not what is kept in memory only.
        after = _copy(self._customer(name))
        folded = fold.apply(after, event, self._catalogue.segments, self._rules)
        self._ledger.check_duplicate(event, folded.status)
        if folded.status != "applied":
            return folded.status, []
        if isinstance(event, Purchase):
            measure.attribute(after, event, self._catalogue)
        for recall in recalls.on_event(after, event, list(self._customer(name).cart)):
            self._post(record.partition, recall)
        for emitted in folded.emit:
            self._post(
                record.partition,
                Emitted(topic=TOPIC_OF[type(emitted)], key=emitted.customer, value=msgspec.Raw(encode(emitted))),
            )
        if folded.erased:
            for kept in (self.outcome.customers, self.outcome.presences, self.outcome.decisions):
                kept.pop(name, None)
            self._ledger.forget(name)
            return folded.status, folded.moments
        self.outcome.customers[name] = after
        self._ledger.check_purchases(record, event, after)
        if isinstance(event, Consent):
            self._allow(name, after.location_allowed)
        if isinstance(event, Action) and event.action in PICKUP_ACTIONS:
            presence = self.outcome.presences[name] = self._presence(name)
            return folded.status, [*folded.moments, *trips.act(presence, event, self._fences.by_id)]
        return folded.status, folded.moments

    def _allow(self, name: CustomerId, allowed: bool) -> None:
        presence = self._presence(name)
        presence.allowed = allowed
        if not allowed:
            presence.inside, presence.timer_ms, presence.trips = {}, 0, []
            presence.nearby, presence.doubt, presence.cell = None, 0.0, 0
        self.outcome.presences[name] = presence

    def _decide(self, moment: Moment, partition: int, event_ms: int) -> None:
        customer = self._customer(moment.customer)
        if moment.trigger == "exit" and moment.fence is not None and not moment.held_since_ms:
            left_ms = max(moment.at_ms, event_ms)
            for recall in recalls.on_leaving(customer, moment.fence, left_ms):
                self._post(partition, recall)
            if moment.fence_kind == "store" and moment.store is not None and recalls.may_have_reserved(customer):
                self._post(partition, Released(customer=customer.id, store=moment.store, at_ms=left_ms))
        found = candidates(moment, customer, self._catalogue)
        if not found:
            return
        stock = {pair: self._stock.get(pair, 0) for pair in stock_wanted(moment, found, self._catalogue)}
        screened = screen(moment, customer, found, self._catalogue, stock, self._policy)
        propensities, inputs = {}, {}
        for index, candidate in enumerate(screened):
            if candidate.stopped_by is None:
                promotion = self._catalogue.promotions[candidate.promotion]
                segment = None if candidate.sku is None else self._catalogue.segments.get(candidate.sku)
                row = redeem.row(customer, promotion, segment, moment.at_ms)
                propensities[index], inputs[index] = self._scorer.score([row])[0], row
        scores = Scores(propensities, inputs, self._scorer.version, redeem.REDEEM.hash)
        decision = decide(moment, customer, screened, scores, self._catalogue, self._policy)
        made = self.outcome.decisions.setdefault(moment.customer, [])
        made.append(decision)
        del made[:-KEPT_DECISIONS]
        message = message_of(decision, self._catalogue)
        if measure.expose(customer, decision, self._catalogue):
            self.outcome.customers[moment.customer] = customer
        if decision.held_until_ms:
            fold.hold(customer, moment, decision.held_until_ms)
            self.outcome.customers[moment.customer] = customer
        if message is not None:
            tags = self._catalogue.promotions[message.promotion].tags
            fold.record_message(
                customer, message.id, decision, fence=message.fence, channels=message.channels, tags=tags
            )
            self.outcome.customers[moment.customer] = customer
            self._post(partition, message)

    def _customer(self, name: CustomerId) -> Customer:
        return self.outcome.customers.get(name) or Customer(id=name)

    def _presence(self, name: CustomerId) -> Presence:
        return self.outcome.presences.get(name) or Presence()

    def _post(self, partition: int, entry: OutboxEntry) -> None:
        self.outcome.outbox.setdefault(partition, []).append(entry)

    def _bury(self, record: Record, reason: str) -> None:
        self.outcome.dead_letters.append(
            Burial(record.partition, record.topic, record.position, reason, record.key, record.value)
        )


def run(
    records: Iterable[Record],
    world: WorldFile,
    rules: fold.FoldRules,
    *,
    partitions: int = 4,
    policy: Policy | None = None,
    scorer: Scorer | None = None,
) -> Outcome:
    """What the engine should have committed after these records: see the module's docstring for their order.

    `policy` is the default one and `scorer` the shipped model if left out. Raises `Disagreement`.
    """
    oracle = Oracle(world, rules, partitions=partitions, policy=policy, scorer=scorer)
    for record in records:
        oracle.see(record)
    return oracle.outcome


def by_arrival(records: Iterable[Record]) -> list[Record]:
    """Records of whole logs, in log order per topic and partition, as one sequence by time of arrival.

    At equal times what changes a customer comes before where they are, and topics come in the order of their names.
    """
    places: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        places.setdefault((record.topic, record.partition), []).append(record)
    return list(
        heapq.merge(
            *places.values(), key=lambda record: (record.arrived_ms, record.topic == topics.LOCATIONS, record.topic)
        )
    )


def by_addressee(entries: Iterable[OutboxEntry]) -> dict[str, list[bytes]]:
    """Outbox entries as JSON, by whom they concern: a customer's messages in order, what goes back to the log sorted.

    Several visitors may sign in as one customer at the same time; their stitches have no order among each other.
    """
    found: dict[str, list[bytes]] = {}
    for entry in entries:
        name = f"{entry.key} on {entry.topic}" if isinstance(entry, Emitted) else entry.customer
        found.setdefault(name, []).append(msgspec.json.encode(entry))
    return {name: sorted(of_one) if " on " in name else of_one for name, of_one in found.items()}


async def stored_timers(redis: Redis, partitions: int = 4) -> dict[tuple[CustomerId, str], int]:
    """The timers that stand in the store: (customer, kind) → due time in ms."""
    found = {}
    for partition in range(partitions):
        rows = cast("list[tuple[bytes, float]]", await redis.zrange(keys.timers(partition), 0, -1, withscores=True))
        for member, due in rows:
            kind, _, customer = member.decode().partition("\x1f")
            found[CustomerId(customer), kind] = int(due)
    return found


def shipped_model() -> Scorer:
    """The model that comes with nearcast."""
    return Scorer.load(Path(str(resources.files("models").joinpath("artifacts", "redeem"))))


def _copy(customer: Customer) -> Customer:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(customer), type=Customer)


def _unlike(what: str, expected: Any, found: Any) -> list[str]:
    if expected == found:
        return []
    if isinstance(expected, msgspec.Struct) and type(expected) is type(found):
        return [
            f"{what}: `{name}` should be {getattr(expected, name)!r}, is {getattr(found, name)!r}"
            for name in expected.__struct_fields__
            if getattr(expected, name) != getattr(found, name)
        ]
    if isinstance(expected, dict) and isinstance(found, dict):
        sentences = []
        for name in sorted(expected.keys() | found.keys()):
            if name not in found:
                sentences.append(f"{what} {name}: missing, should be {expected[name]!r}")
            elif name not in expected:
                sentences.append(f"{what} {name}: should not be there, is {found[name]!r}")
            else:
                sentences += _unlike(f"{what} {name}", expected[name], found[name])
        return sentences
    return [f"{what}: should be {expected!r}, is {found!r}"]


class _Places:
    """The second opinion on which fences contain a position: from the geometries as described, one by one."""

    def __init__(self, fences: Sequence[Fence]) -> None:
        self._fences = fences
        self._shapes = [_shape(fence) for fence in fences]
        self._boxes = np.array([_box(fence, shape) for fence, shape in zip(fences, self._shapes, strict=True)])

    def check(self, fix: Location, inside: set[str]) -> None:
        if not self._fences:
            return
        west, south, east, north = self._boxes.T
        near = np.flatnonzero((west <= fix.lng) & (fix.lng <= east) & (south <= fix.lat) & (fix.lat <= north))
        sure: set[str] = set()
        unsure: set[str] = set()
        for index in near.tolist():
            fence = self._fences[index]
            depth = self._depth(index, fix)
            if abs(depth) < 1:
                unsure.add(fence.id)
            elif depth > 0:
                sure.add(fence.id)
        if wrong := (sure ^ inside) - unsure:
            raise Disagreement(f"({fix.lat}, {fix.lng}): the index and plain geometry differ about {sorted(wrong)}")

    def _depth(self, index: int, fix: Location) -> float:
        """How deep inside the fence the fix is, in units of what is too near to the edge to tell."""
        geometry, shape = self._fences[index].geometry, self._shapes[index]
        if isinstance(geometry, Circle):
            return (geometry.radius_m - _great_circle_m(*geometry.center, fix.lng, fix.lat)) / _UNSURE_M
        point = shapely.Point(fix.lng, fix.lat)
        depth: float = shapely.boundary(shape).distance(point) / _UNSURE_DEGREES
        return depth if shapely.contains(shape, point) else -depth


def _shape(fence: Fence) -> Any:
    match fence.geometry:
        case Polygon(coordinates=rings):
            return shapely.Polygon(rings[0], rings[1:])
        case MultiPolygon(coordinates=polygons):
            return shapely.MultiPolygon([(rings[0], rings[1:]) for rings in polygons])
        case _:
            return None


def _box(fence: Fence, shape: Any) -> tuple[float, float, float, float]:
    """West, south, east, north; generous. Circles over a pole or the antimeridian get everything."""
    geometry = fence.geometry
    if not isinstance(geometry, Circle):
        west, south, east, north = shapely.bounds(shape).tolist()
        return west, south, east, north
    lng, lat = geometry.center
    reach = math.degrees(geometry.radius_m / _EARTH_RADIUS_M) * 1.01
    if abs(lat) + reach >= 89 or abs(lng) + reach / math.cos(math.radians(abs(lat) + reach)) >= 180:
        return -180.0, -90.0, 180.0, 90.0
    wide = reach / math.cos(math.radians(abs(lat) + reach))
    return lng - wide, lat - reach, lng + wide, lat + reach


def _great_circle_m(lng: float, lat: float, other_lng: float, other_lat: float) -> float:
    """By the angle between two unit vectors, which is not the formula that the index uses."""
    a, b = _unit(lng, lat), _unit(other_lng, other_lat)
    return _EARTH_RADIUS_M * math.atan2(float(np.linalg.norm(np.cross(a, b))), float(np.dot(a, b)))


def _unit(lng: float, lat: float) -> tuple[float, float, float]:
    east, north = math.radians(lng), math.radians(lat)
    return math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north)


class _Ledger:
    """The second opinion on purchases and duplicates: sums over raw JSON, and ids as they came."""

    #: The fold remembers more ids than this; what is older may or may not be recognised.
    _SURE = 32

    def __init__(self) -> None:
        self._sums: dict[CustomerId, Counter[str]] = {}
        self._recent: dict[tuple[CustomerId, bool], deque[str]] = {}
        self._ever: dict[tuple[CustomerId, bool], set[str]] = {}

    def check_duplicate(self, event: AnyEvent, status: str) -> None:
        if isinstance(event, Receipt):
            return
        name, event_id = event.customer, event.event_id
        # Sign-ins have a memory of their own.
        memory = (name, isinstance(event, Stitch))
        recent = self._recent.setdefault(memory, deque(maxlen=self._SURE))
        ever = self._ever.setdefault(memory, set())
        if status == "applied" and event_id in recent:
            raise Disagreement(f"event {event_id} of {name} was folded twice")
        if status == "duplicate" and event_id not in ever:
            raise Disagreement(f"event {event_id} of {name} is no duplicate")
        if status == "applied":
            recent.append(event_id)
            ever.add(event_id)

    def check_purchases(self, record: Record, event: AnyEvent, after: Customer) -> None:
        sums = self._sums.setdefault(after.id, Counter())
        if record.topic == topics.PURCHASES:
            lines = json.loads(record.value)["items"]
            sums["baskets"] += 1
            sums["lines"] += len(lines)
            sums["spend_cents"] += sum(line.get("amount_cents", 0) for line in lines)
            sums["coupon_cents"] += sum(line.get("coupon_cents", 0) for line in lines)
        for name in ("baskets", "lines", "spend_cents", "coupon_cents"):
            if getattr(after.history, name) != sums[name]:
                raise Disagreement(
                    f"{after.id} after {event.event_id}: `{name}` is {getattr(after.history, name)}, not {sums[name]}"
                )

    def forget(self, name: CustomerId) -> None:
        self._sums.pop(name, None)
        for of_stitches in (False, True):
            self._recent.pop((name, of_stitches), None)
            self._ever.pop((name, of_stitches), None)
