"""One run of the engine over a recording.

Everything that a live engine gets from elsewhere comes from the recording here: the records, and the time, which is
that of their arrival. What follows from the engine's own work is made anew, since other rules lead to other timers,
sign-ins and messages:

* Timers. A `timer` event of the recording counts if the run waits for exactly that one, as in a live engine; so it is
  at the same place among the other records, however late the live engine was. Only what the run waits for and the
  recording doesn't bring is fired on the run's own clock, when it is overdue for longer than a live engine takes.
* Events that the engine emits (the cart of a visitor who signed in) are fed back at the time of the event that led to
  them. `stitch` events in the recording are passed over.
* Receipts are about messages of the recorded rules. One counts if the run decided the same (the same moment, the same
  promotion), and then for the run's message; else it is dropped, and counted. What the run decides beyond the recorded
  has no receipts. Which decision a receipt is about is known from the recording or, since ids are derived, from a run
  with the recorded rules.

Where batches are cut depends on the recording alone, so two runs differ in nothing but their rules.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis

from models.registry import FixedModels
from models.scorer import Scorer
from nearcast import keys, topics
from nearcast.clock import ManualClock
from nearcast.decisions import Charge, Decision, Reason
from nearcast.errors import InputError
from nearcast.events import Channel, Receipt, Stitch, decode, encode
from nearcast.fold import FoldRules
from nearcast.ids import CustomerId, DecisionId, EventId, PromotionId, Sku, message_id, partition_of
from nearcast.messages import Emitted, decode_outbox
from offers.policy import Policy
from offers.worldfile import WorldFile
from server.budgets import Leases
from server.engine import Engine
from server.intake import Intake
from server.log.base import Entry, LogConsumer, Record
from server.replay.recording import Recording, TimerKey, key_of_timer, timer_in
from server.state import Commit, Encoded, StateStore
from server.store import client_of, reaching_store
from server.timers import TimerPump
from server.valkey import EmbeddedValkey
from server.world import WorldStore

#: How often timers are looked at.
TICK_MS = 250
#: A live engine looks every quarter of a second, and then the event has to come through the log.
OVERDUE_MS = 1_000
_CACHED_CUSTOMERS = 200_000


#: KEYS: outbox, dead letters and timers of every partition. Empties the streams; returns the fields of their entries,
#: and when the first timer is due.
_TAKE = """
local partitions = #KEYS / 3
local taken = {{}, {}}
for kind = 1, 2 do
  for at = (kind - 1) * partitions + 1, kind * partitions do
    for _, entry in ipairs(redis.call('XRANGE', KEYS[at], '-', '+')) do
      table.insert(taken[kind], entry[2])
    end
    redis.call('DEL', KEYS[at])
  end
end
local due = false
for at = 2 * partitions + 1, #KEYS do
  local first = redis.call('ZRANGE', KEYS[at], 0, 0, 'WITHSCORES')[2]
  if first and (not due or tonumber(first) < tonumber(due)) then due = first end
end
return {taken[1], taken[2], due}
"""


class Setup(NamedTuple):
    """What a run needs besides records and world: the same as the live engine has it."""

    partitions: int
    #: One of each kind that the engine asks.
    scorers: tuple[Scorer, ...]
    rules: FoldRules
    policy: Policy
    batch_events: int


class Key(NamedTuple):
    """What a decision is about. Its id won't do: that contains the version of the rules."""

    customer: CustomerId
    event: EventId
    trigger: str
    subject: str
    at_ms: int


class Made(NamedTuple):
    """What was decided."""

    id: DecisionId
    outcome: str
    promotion: PromotionId | None
    sku: Sku | None
    reason: Reason | None
    #: What it was expected to bring, in cents.
    expected_cents: float = 0.0
    #: The one to be tried first, where a model has put them in order.
    channel: Channel | None = None
    #: What it takes of budgets.
    charges: tuple[Charge, ...] = ()


#: What a decision was about, and the promotion that won.
About = tuple[Key, PromotionId | None]


class Run(NamedTuple):
    """What came of a run."""

    decisions: dict[Key, Made]
    records: int
    rules_version: str
    #: By what became of them: "kept", "dropped".
    receipts: Counter[str]
    #: By reason.
    dead_letters: Counter[str]

    @property
    def abouts(self) -> dict[DecisionId, About]:
        """Those of its decisions that there may be receipts about."""
        return {made.id: (key, made.promotion) for key, made in self.decisions.items() if made.promotion is not None}


def key_of(decision: Decision) -> Key:
    moment = decision.moment
    return Key(moment.customer, moment.event, moment.trigger, moment.subject, moment.at_ms)


def made_of(decision: Decision) -> Made:
    return Made(
        decision.id,
        decision.outcome,
        decision.promotion,
        decision.sku,
        decision.reason,
        decision.expected_cents,
        next(iter(decision.channels), None),
        tuple(decision.charges),
    )


async def play(
    recording: Recording,
    world: WorldFile,
    setup: Setup,
    folder: Path,
    progress: Callable[[int], None],
    earlier: Run | None = None,
) -> Run:
    """Run the engine over a recording, in a private store in `folder`. `progress` is told how many records are done.

    `earlier` is a run with the recorded rules: receipts may be about its decisions, too.
    """
    valkey = EmbeddedValkey(folder)
    await valkey.start()
    try:
        redis = client_of(valkey.url)
        try:
            worlds = WorldStore(redis)
            await worlds.apply(world, ())
            async with _playing(recording, setup, redis, worlds, earlier) as player:
                return await player.run(progress)
        finally:
            await redis.aclose()
    finally:
        await valkey.stop()


@asynccontextmanager
async def _playing(
    recording: Recording, setup: Setup, redis: Redis, worlds: WorldStore, earlier: Run | None
) -> AsyncIterator["_Player"]:
    state = _Witness(redis, setup.partitions, recording.timers.copy())
    clock = ManualClock(recording.first_ms)
    engine = Engine(
        consumer=_NoConsumer(setup.partitions),
        state=state,
        world=worlds,
        budgets=Leases(redis, setup.partitions, clock),
        models=FixedModels(*setup.scorers),
        rules=setup.rules,
        policy=setup.policy,
        clock=clock,
        batch_events=setup.batch_events,
        cached_customers=_CACHED_CUSTOMERS,
    )
    await engine.follow_assignment()  # becomes the owner of all partitions, as `run` would
    abouts = {} if earlier is None else earlier.abouts
    if recording.recorded is not None:
        abouts |= {decision.id: (key_of(decision), decision.promotion) for decision in recording.recorded.decisions}
    yield _Player(recording, setup, redis, engine, state, clock, worlds.current.catalogue.version, abouts)


class _Player:
    def __init__(
        self,
        recording: Recording,
        setup: Setup,
        redis: Redis,
        engine: Engine,
        state: "_Witness",
        clock: ManualClock,
        rules_version: str,
        abouts: Mapping[DecisionId, About],
    ) -> None:
        self._recording = recording
        self._setup = setup
        self._engine = engine
        self._state = state
        self._clock = clock
        self._rules_version = rules_version
        self._take = redis.register_script(_TAKE)
        self._streams = [
            of_kind(partition)
            for of_kind in (keys.outbox, keys.dead_letters, keys.timers)
            for partition in range(setup.partitions)
        ]
        #: The earliest timer in the store.
        self._due_ms: int | None = None
        self._log = _VirtualLog(setup.partitions, clock)
        self._timers = TimerPump(state, Intake(self._log, clock), lambda: engine.partitions, _Behind(clock))
        self._abouts = abouts
        self._receipts: Counter[str] = Counter()
        self._dead_letters: Counter[str] = Counter()

    async def run(self, progress: Callable[[int], None]) -> Run:
        done = 0
        tick_ms = 0
        for tick_ms, records in _ticks(self._recording.records()):
            await self._fire_before(tick_ms)
            for chunk in _chunks(records, self._setup.batch_events):
                self._advance(chunk[-1].arrived_ms)
                await self._process([kept for record in chunk if (kept := self._adapted(record)) is not None])
            done += len(records)
            progress(done)
        await self._fire_before(tick_ms + 1)
        return Run(self._state.made, done, self._rules_version, self._receipts, self._dead_letters)

    async def _fire_before(self, tick_ms: int) -> None:
        """Go on to just before a tick, and fire what is overdue at each tick on the way."""
        while (now_ms := self._next_timers()) is not None and now_ms < tick_ms:
            self._advance(now_ms)
            for partition in range(self._setup.partitions):
                while await self._timers.fire(partition):
                    pass
            await self._process(self._log.taken())

    async def _process(self, records: Sequence[Record]) -> None:
        while records:
            for first in range(0, len(records), self._setup.batch_events):
                await self._engine.process(records[first : first + self._setup.batch_events])
            await self._drain()
            records = self._log.taken()

    async def _drain(self) -> None:
        """Take what the engine put out: emitted events go back into the log, messages nowhere."""
        with reaching_store():
            outbox, dead_letters, due_ms = await self._take(keys=self._streams)
        self._due_ms = None if due_ms is None else int(due_ms)
        for entry in outbox:
            emitted = decode_outbox(_field(entry, b"e"))
            if isinstance(emitted, Emitted):
                await self._log.append([Entry(emitted.topic, emitted.key, bytes(emitted.value))])
        for letter in dead_letters:
            self._dead_letters[_field(letter, b"reason").decode()] += 1

    def _next_timers(self) -> int | None:
        """The next tick at which a timer is overdue."""
        if self._due_ms is None:
            return None
        return max(_tick_of(self._due_ms + OVERDUE_MS), _tick_of(self._clock.now_ms() + 1))

    def _advance(self, to_ms: int) -> None:
        self._clock.advance(max(0, to_ms - self._clock.now_ms()))

    def _adapted(self, record: Record) -> Record | None:
        """The record as this run must see it; None if it is passed over."""
        if record.topic != topics.FEEDBACK:
            return record
        if (timer := timer_in(record)) is not None:
            self._state.to_come[key_of_timer(timer)] -= 1
            return record
        try:
            event = decode(
                record.topic,
                record.value,
                position=f"{record.partition}:{record.position}",
                arrived_ms=record.arrived_ms,
            )
        except InputError:
            return record
        if isinstance(event, Stitch):
            return None
        if not isinstance(event, Receipt):
            return record
        decision = self._counterpart(DecisionId(event.decision))
        self._receipts["dropped" if decision is None else "kept"] += 1
        if decision is None:
            return None
        event.decision = decision.id
        event.message = message_id(decision.id, "staff" if decision.outcome == "assist" else "customer")
        return msgspec.structs.replace(record, value=encode(event))

    def _counterpart(self, recorded: DecisionId) -> Made | None:
        """This run's decision that a receipt for a recorded one is good for."""
        about = self._abouts.get(recorded)
        if about is None:
            return self._state.by_id.get(recorded)
        key, promotion = about
        made = self._state.made.get(key)
        return made if made is not None and made.promotion == promotion else None


def _field(entry: Sequence[bytes], name: bytes) -> bytes:
    """Of a stream's entry as scripts return it: names and values by turns."""
    return entry[2 * entry[::2].index(name) + 1]


def _tick_of(at_ms: int) -> int:
    """The tick at which something that happens at this time is seen."""
    return -(-at_ms // TICK_MS) * TICK_MS


def _ticks(records: Iterable[Record]) -> Iterator[tuple[int, list[Record]]]:
    """The records by the tick at which they are seen, in an engine's order.

    Time doesn't go back: a record dated earlier is seen now.
    """
    tick_ms, waiting = 0, list[Record]()
    for record in records:
        seen_ms = _tick_of(record.arrived_ms)
        if seen_ms > tick_ms:
            if waiting:
                yield tick_ms, _in_order(waiting)
            tick_ms, waiting = seen_ms, []
        waiting.append(record)
    if waiting:
        yield tick_ms, _in_order(waiting)


def _in_order(records: Sequence[Record]) -> list[Record]:
    """As an engine reads them (`server.log.lanes`): by arrival, fixes last, and within a topic as they stand.

    Those that `nearcast record` wrote are in this order already; those that somebody wrote by hand may not be.
    """
    latest: dict[tuple[str, int], int] = {}
    ranked: list[tuple[int, bool, str, int]] = []
    for number, record in enumerate(records):
        place = record.topic, record.partition
        latest[place] = max(record.arrived_ms, latest.get(place, 0))
        ranked.append((latest[place], record.topic == topics.LOCATIONS, record.topic, number))
    return [records[number] for *_, number in sorted(ranked)]


def _chunks(records: Sequence[Record], most: int) -> Iterator[Sequence[Record]]:
    """Records to process together.

    A sign-in ends its chunk, since what it emits comes before what follows. Receipts have chunks of their own: only a
    decision that has been made can be found for one.
    """
    first = 0
    for at in range(1, len(records) + 1):
        last = records[at - 1]
        if (
            at == len(records)
            or at - first == most
            or _is_receipt(last) != _is_receipt(records[at])
            or (last.topic == topics.ACTIONS and b"identify" in last.value)
        ):
            yield records[first:at]
            first = at


def _is_receipt(record: Record) -> bool:
    # More may look like one than are; that costs a cut.
    return record.topic == topics.FEEDBACK and b"receipt" in record.value


class _Behind:
    """The run's clock for timers: what is not overdue yet is not due."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def now_ms(self) -> int:
        return self._clock.now_ms() - OVERDUE_MS

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s()


class _Witness(StateStore):
    """A state store that remembers every decision that was committed, and keeps no timer that the records bring."""

    def __init__(self, redis: Redis, partitions: int, to_come: Counter[TimerKey]) -> None:
        super().__init__(redis, partitions)
        #: How often each timer is in the records that are still to come.
        self.to_come = to_come
        self.made: dict[Key, Made] = {}
        #: Offers and alerts only: others have no receipts.
        self.by_id: dict[DecisionId, Made] = {}
        #: By the encoded commit's identity, which is kept alive here.
        self._encoded: dict[int, tuple[Encoded, Sequence[Decision]]] = {}

    def encode(self, batch: Commit) -> Encoded:
        own = {
            (customer, kind): 0 if self.to_come[customer, kind, due_ms] else due_ms
            for (customer, kind), due_ms in batch.timers.items()
        }
        encoded = super().encode(msgspec.structs.replace(batch, timers=own))
        self._encoded[id(encoded)] = (encoded, batch.decisions)
        return encoded

    async def commit(self, batches: Sequence[Encoded]) -> None:
        await super().commit(batches)
        for batch in batches:
            _, decisions = self._encoded.pop(id(batch))
            for decision in decisions:
                made = self.made[key_of(decision)] = made_of(decision)
                if decision.promotion is not None:
                    self.by_id[decision.id] = made


class _VirtualLog:
    """The `server.log.base.EventLog` that timers and emitted events are appended to: they arrive at once."""

    def __init__(self, partitions: int, clock: ManualClock) -> None:
        self.partitions = partitions
        self._clock = clock
        self._count = 0
        self._arrived: list[Record] = []

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def check(self) -> None: ...

    async def append(self, entries: Sequence[Entry]) -> None:
        now_ms = self._clock.now_ms()
        for topic, key, value in entries:
            self._count += 1
            partition = partition_of(key, self.partitions)
            self._arrived.append(Record(topic, partition, f"{now_ms}-{self._count}", key, value, now_ms))

    def consumer(self, group: str, topics: Sequence[str]) -> LogConsumer:  # noqa: ARG002  # the protocol's
        return _NoConsumer(self.partitions)

    def taken(self) -> list[Record]:
        """What was appended since the last call."""
        arrived, self._arrived = self._arrived, []
        return arrived


class _NoConsumer:
    """Owns every partition and delivers nothing: batches are handed to the engine directly."""

    def __init__(self, partitions: int) -> None:
        self._partitions = frozenset(range(partitions))

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def restart(self) -> None: ...

    def assignment(self) -> tuple[int, frozenset[int]]:
        return 1, self._partitions

    async def seek(self, partition: int, after: Mapping[str, str]) -> None: ...

    async def fetch(self, max_records: int, wait_ms: int) -> list[Record]:  # noqa: ARG002  # the protocol's
        return []

    async def progress(self, partition: int, after: Mapping[str, str]) -> None: ...

    def processed(self) -> dict[tuple[str, int], str]:
        return {}

    async def lag(self) -> dict[tuple[str, int], int]:
        return {}
