"""One batch of log records on its way through the engine: decoded events, the customers they touch, and what to commit.

Holds state, decides nothing. Customers are changed in place; if the batch can't be committed, the caller throws them
away and reads them again.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np

from geofence.tracker import track
from nearcast import fold, metrics, topics
from nearcast.customer import Customer, Presence
from nearcast.decisions import Decision
from nearcast.errors import InputError
from nearcast.events import TOPIC_OF, AnyEvent, Consent, Location, decode, encode
from nearcast.ids import CustomerId
from nearcast.messages import Emitted, Message, encode_outbox
from nearcast.moments import Moment, Transition, moments_of_transitions
from nearcast.world import Fence
from server.log.base import Record
from server.state import Commit, DeadLetter, Known, Ownership
from server.world import World


class Item(msgspec.Struct):
    """An event, and the fences its position is in."""

    record: Record
    event: AnyEvent
    customer: CustomerId
    inside: Sequence[Fence] = ()


def in_order(records: Iterable[Record]) -> list[Record]:
    """Records of several topics in one order: by arrival, and what changes a customer before where they are.

    The order within a topic and partition is kept whatever its timestamps say. Between topics the log promises none;
    this makes the one that people expect likely ("put into the cart, then walked past").
    """
    places: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        places.setdefault((record.topic, record.partition), []).append(record)
    return list(heapq.merge(*places.values(), key=lambda record: (record.arrived_ms, record.topic == topics.LOCATIONS)))


class Batch:
    """What arrived, whom it is about, and one `Commit` per partition."""

    def __init__(self, world: World, owned: Mapping[int, Ownership], rules: fold.FoldRules) -> None:
        self.world = world
        self.items: list[Item] = []
        self.known: dict[CustomerId, Known] = {}
        self.commits = {
            partition: Commit(partition=partition, epoch=owner.epoch, expected=owner.offsets)
            for partition, owner in owned.items()
        }
        self._rules = rules
        self._timers_before: dict[CustomerId, dict[str, int]] = {}
        self._results: dict[tuple[str, str], int] = {}
        self._transitions: list[Transition] = []

    def decode(self, records: Iterable[Record], home: Callable[[CustomerId], int]) -> None:
        """Records to events; what can't be decoded, or belongs into another partition, becomes a dead letter."""
        for record in records:
            self.commits[record.partition].offsets[record.topic] = record.position
            try:
                event = decode(
                    record.topic,
                    record.value,
                    position=f"{record.partition}:{record.position}",
                    arrived_ms=record.arrived_ms,
                )
            except InputError as error:
                self.bury(record, error.reason, error.detail)
                continue
            customer = event.customer
            if home(customer) != record.partition:
                self.bury(record, "wrong_partition", "a customer's partition is murmur2(customer) modulo partitions")
                continue
            self.items.append(Item(record, event, customer))

    def customers(self) -> dict[int, list[CustomerId]]:
        """Whom the events are about, by partition."""
        wanted: dict[int, dict[CustomerId, None]] = {}
        for item in self.items:
            wanted.setdefault(item.record.partition, {})[item.customer] = None
        return {partition: list(customers) for partition, customers in wanted.items()}

    def match(self) -> None:
        """Find the fences of every fix in the batch, in one call."""
        fixes = [(item, item.event) for item in self.items if isinstance(item.event, Location)]
        if not fixes:
            return
        fences = self.world.fences
        hits = fences.match(
            np.array([fix.lat for _, fix in fixes], dtype=np.float64),
            np.array([fix.lng for _, fix in fixes], dtype=np.float64),
        )
        for (item, _), ordinals in zip(fixes, hits, strict=True):
            item.inside = [fences.fences[ordinal] for ordinal in ordinals]

    def apply(self, item: Item) -> list[Moment]:
        """Fold one event into its customer; returns the moments it is worth."""
        known = self.known[item.customer]
        event = item.event
        if isinstance(event, Location):
            status, moments = self._track(item, event, known)
        else:
            self._timers_before.setdefault(item.customer, dict(known.customer.timers))
            folded = fold.apply(known.customer, event, self.world.catalogue.segments, self._rules)
            status, moments = folded.status, folded.moments
            if status == "applied":
                self._touch(item)
            for emitted in folded.emit:
                self._emit(
                    item,
                    Emitted(topic=TOPIC_OF[type(emitted)], key=emitted.customer, value=msgspec.Raw(encode(emitted))),
                )
            if folded.erased:
                self._erase(item)
            elif isinstance(event, Consent) and not known.customer.location_allowed:
                self._forget_place(item)
        self._results[item.record.topic, status] = self._results.get((item.record.topic, status), 0) + 1
        return moments

    def record(self, item: Item, decision: Decision, message: Message | None) -> None:
        """Add a decision, and the message that follows from it, to what will be committed."""
        commit = self.commits[item.record.partition]
        commit.decisions.append(decision)
        if message is not None:
            fold.record_message(self.known[item.customer].customer, message.id, decision)
            commit.customers[item.customer] = self.known[item.customer].customer
            commit.outbox.append(encode_outbox(message))

    def finish(self) -> list[Commit]:
        """Every partition's commit, with the timers that changed."""
        for item in self.items:
            before = self._timers_before.pop(item.customer, None)
            if before is None:
                continue
            after = self.known[item.customer].customer.timers
            timers = self.commits[item.record.partition].timers
            for kind in before.keys() | after.keys():
                if before.get(kind) != after.get(kind):
                    timers[item.customer, kind] = after.get(kind, 0)
        return [commit for commit in self.commits.values() if commit.offsets]

    def count(self, now_ms: int) -> None:
        """Report what was committed to the metrics."""
        for (topic, status), events in self._results.items():
            metrics.EVENTS.labels(topic, status).inc(events)
        for transition in self._transitions:
            metrics.TRANSITIONS.labels(transition.kind, transition.fence.kind).inc()
        for item in self.items:
            metrics.EVENT_TO_COMMIT.observe(max(0, now_ms - item.record.arrived_ms) / 1000)
        for commit in self.commits.values():
            for letter in commit.dead_letters:
                metrics.DEAD_LETTERS.labels(letter.reason).inc()
            for decision in commit.decisions:
                metrics.DECISIONS.labels(decision.outcome, decision.reason or "").inc()

    def set_aside(self, record: Record, error: Exception) -> None:
        """A record that makes our own code fail: pass over it, and keep it with what went wrong."""
        self.commits[record.partition].offsets[record.topic] = record.position
        self.bury(record, "internal_error", f"{type(error).__name__}: {error}")

    def bury(self, record: Record, reason: str, detail: str) -> None:
        """Put a record among the dead letters."""
        self.commits[record.partition].dead_letters.append(
            DeadLetter(reason, detail[:1_000], record.topic, record.position, record.key, record.value)
        )

    def _track(self, item: Item, event: Location, known: Known) -> tuple[str, list[Moment]]:
        if not known.customer.location_allowed:
            return "no_consent", []
        if event.ts <= known.presence.last_ms:
            return "stale", []
        transitions = track(known.presence, event, item.inside, self.world.fences)
        self.commits[item.record.partition].presences[item.customer] = known.presence
        self._transitions += transitions
        return "applied", moments_of_transitions(event.event_id, item.customer, transitions)

    def _touch(self, item: Item) -> None:
        self.commits[item.record.partition].customers[item.customer] = self.known[item.customer].customer

    def _emit(self, item: Item, emitted: Emitted) -> None:
        self.commits[item.record.partition].outbox.append(encode_outbox(emitted))

    def _forget_place(self, item: Item) -> None:
        known = self.known[item.customer]
        if known.presence.inside:
            known.presence.inside = {}
            self.commits[item.record.partition].presences[item.customer] = known.presence

    def _erase(self, item: Item) -> None:
        commit = self.commits[item.record.partition]
        commit.erased.add(item.customer)
        commit.customers.pop(item.customer, None)
        commit.presences.pop(item.customer, None)
        commit.decisions = [made for made in commit.decisions if made.customer != item.customer]
        # What the customer's earlier events put into this batch's outbox is stopped by the re-check at send.
        self.known[item.customer] = Known(Customer(id=item.customer), Presence())
