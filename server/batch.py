"""One batch of log records on its way through the engine: decoded events, the customers they touch, and what to commit.

Holds state, decides nothing. Customers are changed in place; if the batch can't be committed, the caller throws them
away and reads them again.

Most events are fixes of people who are near no store. Those need the hot record only; the cold one is read when an
event of another kind, or a moment, asks for it.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np

from geofence import spoof, trips
from geofence.tracker import next_due_ms, on_timer, places, track
from nearcast import fold, metrics, topics
from nearcast.customer import Customer, Presence, Stay
from nearcast.decisions import Charge, Decision
from nearcast.errors import InputError, UnreadableState
from nearcast.events import (
    PICKUP_ACTIONS,
    TOPIC_OF,
    Action,
    AnyEvent,
    Cart,
    Consent,
    Erase,
    Location,
    Timer,
    decode_record,
    encode,
)
from nearcast.ids import CustomerId, FenceId, derived_event_id
from nearcast.messages import Emitted, Message, OutboxEntry, Released, encode_outbox
from nearcast.moments import Moment, Transition, moments_of_transitions
from nearcast.world import Fence
from offers import measure, recalls
from offers.budgets import Share
from server.log.base import Record
from server.recent import Recent
from server.state import Commit, DeadLetter, Ownership, Spent
from server.stored import decode_customer
from server.world import World


class Cached(msgspec.Struct):
    """What an engine keeps of one partition's customers: hot records as they are, cold ones as they are stored.

    Decoded, a cold record takes several times the room, and gives the garbage collector a dozen things to look at; one
    event in twelve needs it.
    """

    presences: Recent[CustomerId, Presence]
    customers: Recent[CustomerId, bytes]


class Item(msgspec.Struct, gc=False):
    """An event that has to be folded in its turn."""

    record: Record
    event: AnyEvent
    customer: CustomerId
    #: Of a fix: the fences its position is in, and those that it is near.
    inside: Sequence[Fence] = ()
    near: Sequence[Fence] = ()
    #: And the H3 cell of resolution 7 around it; 0 without coordinates.
    cell: int = 0
    #: Of a fix: where the customer was. None if that can't be read.
    presence: Presence | None = None


#: A fix that nobody has looked at more closely yet, what `FenceIndex.match` says of its position, and its cell.
Fix = tuple[Record, Location, Sequence[int], int]


#: Something a customer's queue holds: an event to fold, or a moment (of an event folded already) to decide.
Work = tuple[Item, Moment | None]


class Missing(msgspec.Struct):
    """Whose records of one partition have to be read."""

    hot: dict[CustomerId, None] = {}
    cold: dict[CustomerId, None] = {}


def in_order(items: list[Item]) -> list[Item]:
    """Each customer's events of several topics in one order: by arrival, what changes a customer before where they are.

    The order within a topic is kept whatever its timestamps say. Between topics the log promises none; this makes the
    one that people expect likely ("put into the cart, then walked past"). Customers are independent of each other, so
    only those with events of several topics are looked at.
    """
    topics_of: dict[CustomerId, str] = {}
    mixed: set[CustomerId] = set()
    for item in items:
        customer, topic = item.customer, item.record.topic
        if topics_of.setdefault(customer, topic) != topic:
            mixed.add(customer)
    if not mixed:
        return items
    latest: dict[tuple[CustomerId, str, int], int] = {}
    ranked: list[tuple[int, bool, int]] = []
    for place, item in enumerate(items):
        if item.customer in mixed:
            topic = item.record.topic
            queue = (item.customer, topic, item.record.partition)
            arrived_ms = max(item.record.arrived_ms, latest.get(queue, 0))
            latest[queue] = arrived_ms
            ranked.append((arrived_ms, topic == topics.LOCATIONS, place))
    ordered = [item for item in items if item.customer not in mixed]
    return ordered + [items[place] for _, _, place in sorted(ranked)]


class Batch:
    """What arrived, whom it is about, and one `Commit` per partition."""

    def __init__(
        self, world: World, owned: Mapping[int, Ownership], rules: fold.FoldRules, fetched_ms: int = 0
    ) -> None:
        """`fetched_ms` is noted beside the messages that follow; nothing is decided by it."""
        self.world = world
        #: What is to be folded one by one; and the fixes that `pass_by` has not worked off, nor made items of.
        self.items: list[Item] = []
        self.fixes: list[Fix] = []
        #: Of customers with events other than fixes, and of those with moments.
        self.presences: dict[CustomerId, Presence] = {}
        self.customers: dict[CustomerId, Customer] = {}
        #: Customers whose hot or cold record can't be decoded.
        self.unreadable_hot: dict[CustomerId, UnreadableState] = {}
        self.unreadable_cold: dict[CustomerId, UnreadableState] = {}
        self.commits = {
            partition: Commit(partition=partition, epoch=owner.epoch, expected=owner.offsets, fetched_ms=fetched_ms)
            for partition, owner in owned.items()
        }
        #: What came back of budgets, by partition.
        self.returned: list[tuple[int, Charge]] = []
        self._rules = rules
        self._arrivals: list[int] = []
        #: The fixes, before they are matched.
        self._located: tuple[list[Record], list[Location]] = ([], [])
        #: Customers of whom an item must be folded before their later fixes.
        self._busy: set[CustomerId] = set()
        #: Of customers that were touched: their partition, and their timers as they were before.
        self._timers_before: dict[CustomerId, tuple[int, dict[str, int]]] = {}
        self._results: dict[tuple[str, str], int] = {}
        self._transitions: list[Transition] = []
        self._unknown_zones = 0

    def decode(self, records: Sequence[Record]) -> None:
        """Records to events; what can't be decoded becomes a dead letter."""
        located, fixes = self._located
        offsets = {partition: commit.offsets for partition, commit in self.commits.items()}
        for record in records:
            topic = record.topic
            offsets[record.partition][topic] = record.position
            try:
                event = decode_record(topic, record.value, record.arrived_ms)
            except InputError as error:
                self.bury(record, error.reason, error.detail)
                continue
            if event.__class__ is Location:
                located.append(record)
                fixes.append(event)
            else:
                self._add(record, event)
        self._arrivals = [record.arrived_ms for record in records]

    def match(self) -> None:
        """Find the fences of every fix in the batch, in one call."""
        records, events = self._located
        if not events:
            return
        lats = np.array([event.lat for event in events], dtype=np.float64)
        lngs = np.array([event.lng for event in events], dtype=np.float64)
        blind = np.isnan(lats)
        if blind.any():
            # Fixes without coordinates are nowhere, until their `zones` are looked at.
            hits: list[tuple[int, ...]] = [()] * len(events)
            seeing = np.flatnonzero(~blind)
            for place, found in zip(seeing.tolist(), self.world.fences.match(lats[seeing], lngs[seeing]), strict=True):
                hits[place] = found
        else:
            hits = self.world.fences.match(lats, lngs)
        self.fixes = list(zip(records, events, hits, spoof.cells_of(lats, lngs), strict=True))

    def _add(
        self,
        record: Record,
        event: AnyEvent,
        hits: Sequence[int] = (),
        cell: int = 0,
        presence: Presence | None = None,
    ) -> None:
        if event.id is None:
            event.id = derived_event_id(record.topic, f"{record.partition}:{record.position}")
        customer = event.customer
        inside, near = places(hits, self.world.fences)
        self.items.append(Item(record, event, customer, inside, near, cell, presence))
        self._busy.add(customer)

    def pass_by(self, cached: Mapping[int, Cached]) -> None:
        """Work off, without a call for each, what nearly every event is: a fix of someone who was nowhere and still is.

        Other fixes become items, so that each customer's events keep their order; those whose hot record is not cached
        stay where they are. `_fix` would do the same as is done here.
        """
        left: list[Fix] = []
        busy = self._busy
        late_after_ms = self._rules.late_after_ms
        presences = {partition: commit.presences for partition, commit in self.commits.items()}
        newest = {partition: known.presences.newest for partition, known in cached.items()}
        passed = 0
        for fix in self.fixes:
            record, event, hits, cell = fix
            partition = record.partition
            customer = CustomerId(event.uid) if event.uid else event.customer
            presence = newest[partition].get(customer) or cached[partition].presences.get(customer)
            if presence is None:
                left.append(fix)
            elif (
                hits
                or presence.inside
                or presence.nearby
                or presence.trips
                or event.zones
                or customer in busy
                or not presence.allowed
                or event.ts <= presence.last_ms
                or event.ts < record.arrived_ms - late_after_ms
            ):
                self._add(record, event, hits, cell, presence)
            else:
                if cell != presence.cell or presence.doubt or event.mock or event.accuracy_m < spoof.EXACT_M:
                    spoof.notice(presence, event, cell)
                presence.last_ms = event.ts
                presences[partition][customer] = presence
                passed += 1
        self.fixes = left
        if passed:
            applied = (topics.LOCATIONS, "applied")
            self._results[applied] = self._results.get(applied, 0) + passed

    def missing(self, cached: Mapping[int, Cached]) -> dict[int, Missing]:
        """Take what is cached of the events' customers; returns what has to be read, by partition."""
        missing: dict[int, Missing] = {}
        presences, customers = self.presences, self.customers
        # By partition: what is known of a customer in their own says nothing of a stray in another one.
        hots: set[tuple[int, CustomerId]] = set()
        colds: set[tuple[int, CustomerId]] = set()
        for record, fix, _, _ in self.fixes:
            missing.setdefault(record.partition, Missing()).hot[fix.customer] = None
        for item in self.items:
            customer, event = item.customer, item.event
            partition = item.record.partition
            if event.__class__ is Location:
                continue
            if self._needs_hot(event) and (partition, customer) not in hots:
                hots.add((partition, customer))
                hot = cached[partition].presences.get(customer)
                if hot is None:
                    missing.setdefault(partition, Missing()).hot[customer] = None
                else:
                    presences[customer] = hot
            if _needs_cold(event) and (partition, customer) not in colds:
                colds.add((partition, customer))
                cold = cached[partition].customers.get(customer)
                if cold is None:
                    missing.setdefault(partition, Missing()).cold[customer] = None
                else:
                    customers[customer] = decode_customer(customer, cold)
        return missing

    def arrange(self) -> None:
        """Bring the items into their order, once all is read. What is left of the fixes are those that can't be."""
        for fix in self.fixes:
            self._add(*fix)
        self.fixes = []
        self.items = in_order(self.items)

    def bury_strays(self, missing: Mapping[int, Missing], homes: Callable[[Sequence[CustomerId]], list[int]]) -> None:
        """Events in a partition that isn't their customer's become dead letters.

        Only who is not cached is looked at: nobody else's state could have been read there.
        """
        strays: set[tuple[int, CustomerId]] = set()
        for partition, wanted in missing.items():
            people = list(wanted.hot | wanted.cold)
            for customer, home in zip(people, homes(people), strict=True):
                if home != partition:
                    strays.add((partition, customer))
                    wanted.hot.pop(customer, None)
                    wanted.cold.pop(customer, None)
        if not strays:
            return
        said = "a customer's partition is murmur2(customer) modulo partitions"

        def is_stray(record: Record, customer: CustomerId) -> bool:
            stray = (record.partition, customer) in strays
            if stray:
                self.bury(record, "wrong_partition", said)
            return stray

        self.items = [item for item in self.items if not is_stray(item.record, item.customer)]
        self.fixes = [
            (record, event, hits, cell)
            for record, event, hits, cell in self.fixes
            if not is_stray(record, event.customer)
        ]

    def fold_round(self, waiting: Sequence[Work]) -> tuple[list[tuple[Item, Moment]], list[Work]]:
        """Fold on until each customer has a moment to decide; returns those moments, and the work that has to wait."""
        moments: list[tuple[Item, Moment]] = []
        later: list[Work] = []
        busy: set[CustomerId] = set()
        for item, moment in waiting:
            if item.customer in busy:
                later.append((item, moment))
                continue
            found = [moment] if moment is not None else self.apply(item)
            if found:
                busy.add(item.customer)
                moments.append((item, found[0]))
                later += [(item, other) for other in found[1:]]
        return moments, later

    def apply(self, item: Item) -> Sequence[Moment]:
        """Fold one event into its customer; returns the moments it is worth."""
        event = item.event
        if isinstance(event, Erase):
            # It needs no reading, and mends what can't be read.
            self._make_readable(item)
        elif error := self._unreadable(item):
            self.bury(item.record, "unreadable_state", str(error))
            # A withdrawal that can't be noted where it belongs: nobody's place is kept against their will meanwhile.
            if _forbids_location(event) and item.customer in self.presences:
                self._allow(item, allowed=False)
            return ()
        if isinstance(event, Location):
            status, moments = self._fix(item, event)
        elif fold.is_late(event, item.record.arrived_ms, self._rules):
            status, moments = self._late(item)
        elif isinstance(event, Timer) and event.kind == fold.PRESENCE_TIMER:
            status, moments = self._presence_timer(item, event)
        elif isinstance(event, Timer) and event.kind == fold.PICKUP_TIMER:
            status, moments = self._pickup_timer(item, event)
        else:
            status, moments = self._fold(item)
            scan = self._scan(event)
            if scan is not None and status == "applied":
                moments = [*moments, *self._scanned(item, scan)]
        result = (item.record.topic, status)
        self._results[result] = self._results.get(result, 0) + 1
        return moments

    def record(self, item: Item, decision: Decision, message: Message | None, shares: Sequence[Share] = ()) -> None:
        """Add a decision, and the message that follows from it, to what will be committed; `shares` are what it takes
        of budgets."""
        commit = self.commits[item.record.partition]
        commit.decisions.append(decision)
        for charge, limit in shares:
            spent = commit.spent.setdefault(charge.pool, Spent(limit.expires_s))
            spent.expires_s = limit.expires_s
            spent.pieces += charge.pieces
            spent.cents += charge.cents
        customer = self.customers[item.customer]
        exposures = measure.expose(customer, decision, self.world.catalogue)
        commit.tally.decided(decision, exposures)
        if message is None and not decision.held_until_ms and not exposures:
            return
        self._keep_timers(item, customer)
        commit.customers[item.customer] = customer
        if decision.held_until_ms:
            fold.hold(customer, decision.moment, decision.held_until_ms)
        if message is None:
            return
        tags = self.world.catalogue.promotions[message.promotion].tags
        fold.record_message(customer, message.id, decision, fence=message.fence, channels=message.channels, tags=tags)
        commit.outbox.append((encode_outbox(message), item.record.arrived_ms))

    def left(self, item: Item, moment: Moment, customer: Customer) -> None:
        """The customer left a fence: take back what held there, and free what was reserved for them in that store."""
        if moment.fence is None or moment.store is None:
            return
        # Of a stay that ended without a sign, the moment is that of the last one.
        now_ms = max(moment.at_ms, item.event.ts)
        entries: list[OutboxEntry] = [*recalls.on_leaving(customer, moment.fence, now_ms)]
        if moment.fence_kind == "store" and recalls.may_have_reserved(customer):
            entries.append(Released(customer=customer.id, store=moment.store, at_ms=now_ms))
        self._post(item, entries)

    def _post(self, item: Item, entries: Iterable[OutboxEntry]) -> None:
        outbox = self.commits[item.record.partition].outbox
        outbox += [(encode_outbox(entry), item.record.arrived_ms) for entry in entries]

    def finish(self) -> list[Commit]:
        """Every partition's commit, with the timers that changed."""
        for customer, (partition, before) in self._timers_before.items():
            after = self.customers[customer].timers
            if before == after:
                continue
            timers = self.commits[partition].timers
            for kind in before.keys() | after.keys():
                if before.get(kind) != after.get(kind):
                    timers[customer, kind] = after.get(kind, 0)
        return [commit for commit in self.commits.values() if commit.offsets]

    def count(self, now_ms: int) -> None:
        """Report what was committed to the metrics."""
        for (topic, status), events in self._results.items():
            metrics.EVENTS.labels(topic, status).inc(events)
        if self._unknown_zones:
            metrics.UNKNOWN_ZONES.inc(self._unknown_zones)
        for transition in self._transitions:
            metrics.TRANSITIONS.labels(transition.kind, transition.fence.kind).inc()
        for arrived_ms, events in Tally(self._arrivals).items():
            metrics.EVENT_TO_COMMIT.observe_many(max(0, now_ms - arrived_ms) / 1000, events)
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
            DeadLetter(
                reason, detail[:1_000], record.topic, record.position, record.key, record.arrived_ms, record.value
            )
        )

    def _needs_hot(self, event: AnyEvent) -> bool:
        return (
            isinstance(event, Location | Consent | Erase)
            or _is_hot_timer(event)
            or (isinstance(event, Action) and event.action in PICKUP_ACTIONS)
            or self._scan(event) is not None
        )

    def _unreadable(self, item: Item) -> UnreadableState | None:
        """Why the records that an event needs can't be decoded, or None if they can."""
        hot, cold = self.unreadable_hot.get(item.customer), self.unreadable_cold.get(item.customer)
        return (hot if self._needs_hot(item.event) else None) or (cold if _needs_cold(item.event) else None)

    def _make_readable(self, item: Item) -> None:
        """Before an erasure: blank records in place of those that can't be decoded."""
        hot = self.unreadable_hot.pop(item.customer, None)
        cold = self.unreadable_cold.pop(item.customer, None)
        if hot is None and cold is None:
            return
        # The one that is readable is the cache's, and is made blank in place.
        self.presences.setdefault(item.customer, Presence())
        self.customers.setdefault(item.customer, Customer(id=item.customer))
        kinds = (fold.CART_TIMER, fold.DEADLINE_TIMER, fold.HOLD_TIMER, fold.PRESENCE_TIMER, fold.PICKUP_TIMER)
        for kind in kinds:
            self.commits[item.record.partition].timers[item.customer, kind] = 0

    def _fix(self, item: Item, event: Location) -> tuple[str, Sequence[Moment]]:
        presence = item.presence
        if presence is None:
            raise LookupError("a fix whose hot record was neither read nor unreadable")
        if not presence.allowed:
            return "no_consent", ()
        if event.ts <= presence.last_ms:
            return "stale", ()
        if event.ts < item.record.arrived_ms - self._rules.late_after_ms:
            return "late", ()
        if event.zones:
            self._unknown_zones += self.world.fences.evidence.unknown(event.zones)
        return "applied", self._track(item, presence, event)

    def _scan(self, event: AnyEvent) -> Location | None:
        """What an action proves of where the customer is, if it does."""
        return self.world.fences.evidence.in_scan(event) if isinstance(event, Action) else None

    def _scanned(self, item: Item, scan: Location) -> Sequence[Moment]:
        presence = self.presences[item.customer]
        return self._track(item, presence, scan) if presence.allowed and scan.ts > presence.last_ms else ()

    def _track(self, item: Item, presence: Presence, fix: Location) -> Sequence[Moment]:
        """The moments of a fix that may be used, and is not stale."""
        spoof.notice(presence, fix, item.cell)
        before = dict(presence.inside)
        transitions = track(presence, fix, item.inside, self.world.fences, item.near)
        self.commits[item.record.partition].presences[item.customer] = presence
        # Whose position is kept needs a timer that forgets it.
        moved = transitions or (presence.nearby and not presence.timer_ms)
        moments = self._moved(item, presence, before, transitions) if moved else ()
        return self._follow(item, presence, moments, transitions, fix) if presence.trips else moments

    def _presence_timer(self, item: Item, event: Timer) -> tuple[str, Sequence[Moment]]:
        presence = self.presences[item.customer]
        if not presence.timer_ms or presence.timer_ms != event.due_ms:
            return "stale", ()
        self._forget_timer(item, presence)
        self.commits[item.record.partition].presences[item.customer] = presence
        before = dict(presence.inside)
        transitions = on_timer(presence, event.due_ms, self.world.fences)
        moments = self._moved(item, presence, before, transitions)
        return "applied", self._follow(item, presence, moments, transitions, None) if presence.trips else moments

    def _pickup_timer(self, item: Item, event: Timer) -> tuple[str, Sequence[Moment]]:
        presence = self.presences[item.customer]
        if event.due_ms != trips.next_due_ms(presence) or not presence.trips:
            return "stale", ()
        self.commits[item.record.partition].presences[item.customer] = presence
        return "applied", self._on_trips(
            item, presence, lambda: trips.on_timer(presence, event.event_id, item.customer, event.due_ms)
        )

    def _follow(
        self,
        item: Item,
        presence: Presence,
        moments: Sequence[Moment],
        transitions: Sequence[Transition],
        fix: Location | None,
    ) -> Sequence[Moment]:
        """The moments of transitions, and after them those of the pickups that the customer is on the way to."""
        stores = self.world.catalogue.stores
        found = self._on_trips(
            item,
            presence,
            lambda: trips.follow(presence, item.event.event_id, item.customer, transitions, stores, fix),
        )
        return [*moments, *found]

    def _on_trips(self, item: Item, presence: Presence, change: Callable[[], list[Moment]]) -> list[Moment]:
        """Change the trips; their timer, and which stores expect the customer, are kept in step."""
        commit = self.commits[item.record.partition]
        due_ms, stores = trips.next_due_ms(presence), trips.headed_for(presence)
        moments = change()
        if trips.next_due_ms(presence) != due_ms:
            commit.timers[item.customer, fold.PICKUP_TIMER] = trips.next_due_ms(presence)
        if trips.headed_for(presence) != stores:
            commit.pickups[item.customer] = trips.headed_for(presence)
        return moments

    def _moved(
        self, item: Item, presence: Presence, before: Mapping[FenceId, Stay], transitions: list[Transition]
    ) -> Sequence[Moment]:
        """After a transition: the timer of the stays is set anew, footfall is counted, and the moments are told."""
        counts = self.commits[item.record.partition].footfall
        counts.moved(before, presence.inside, transitions, self.world.catalogue.stores)
        due_ms = next_due_ms(presence, self.world.fences)
        if due_ms != presence.timer_ms:
            presence.timer_ms = due_ms
            self.commits[item.record.partition].timers[item.customer, fold.PRESENCE_TIMER] = due_ms
        self._transitions += transitions
        return moments_of_transitions(item.event.event_id, item.customer, transitions, presence.doubt)

    def _late(self, item: Item) -> tuple[str, Sequence[Moment]]:
        if fold.is_dropped_when_late(item.event):
            return "late", ()
        status, _ = self._fold(item)
        return "late" if status == "applied" else status, ()

    def _fold(self, item: Item) -> tuple[str, Sequence[Moment]]:
        event, customer = item.event, self.customers[item.customer]
        commit = self.commits[item.record.partition]
        self._keep_timers(item, customer)
        before = measure.standings(customer, event)
        had_in_cart = list(customer.cart) if isinstance(event, Cart) and customer.messages else ()
        folded = fold.apply(customer, event, self.world.catalogue.segments, self._rules)
        if folded.status == "applied":
            commit.customers[item.customer] = customer
            commit.tally.folded(customer, event, before, self.world.catalogue)
            if customer.messages:
                self._post(item, recalls.on_event(customer, event, had_in_cart))
        for emitted in folded.emit:
            value = msgspec.Raw(encode(emitted))
            self._post(item, [Emitted(topic=TOPIC_OF[type(emitted)], key=emitted.customer, value=value)])
        if folded.returned:
            self._return(commit, folded.returned)
        if folded.erased:
            self._erase(item)
        elif isinstance(event, Consent):
            self._allow(item, allowed=customer.location_allowed)
        elif isinstance(event, Action) and event.action in PICKUP_ACTIONS and folded.status == "applied":
            presence, fences = self.presences[item.customer], self.world.fences.by_id
            commit.presences[item.customer] = presence
            found = self._on_trips(item, presence, lambda: trips.act(presence, event, fences))
            return "applied", [*folded.moments, *found]
        return folded.status, folded.moments

    def _return(self, commit: Commit, returned: Iterable[tuple[str, int, int]]) -> None:
        """What was not sent gives back what it took of budgets."""
        for pool, pieces, cents in returned:
            spent = commit.spent.setdefault(pool, Spent(-1))
            spent.pieces -= pieces
            spent.cents -= cents
            self.returned.append((commit.partition, Charge(pool=pool, pieces=pieces, cents=cents)))

    def _keep_timers(self, item: Item, customer: Customer) -> None:
        if item.customer not in self._timers_before:
            self._timers_before[item.customer] = (item.record.partition, dict(customer.timers))

    def _allow(self, item: Item, *, allowed: bool) -> None:
        """Carry the consent to location over to the hot record; without it nobody's place is kept."""
        presence = self.presences[item.customer]
        if presence.allowed == allowed:
            return
        presence.allowed = allowed
        if not allowed:
            self._forget_place(item, presence)
        self.commits[item.record.partition].presences[item.customer] = presence

    def _forget_place(self, item: Item, presence: Presence) -> None:
        if presence.trips:
            self._on_trips(item, presence, lambda: trips.forget(presence))
        self.commits[item.record.partition].footfall.forgotten(presence.inside)
        presence.inside, presence.nearby, presence.doubt, presence.cell = {}, None, 0.0, 0
        if presence.timer_ms:
            self._forget_timer(item, presence)

    def _forget_timer(self, item: Item, presence: Presence) -> None:
        presence.timer_ms = 0
        self.commits[item.record.partition].timers[item.customer, fold.PRESENCE_TIMER] = 0

    def _erase(self, item: Item) -> None:
        """Back to a blank customer. In place: the cache and other events of the batch hold the same objects."""
        commit = self.commits[item.record.partition]
        commit.erased[item.customer] = item.record.arrived_ms
        commit.customers.pop(item.customer, None)
        commit.presences.pop(item.customer, None)
        commit.decisions = [made for made in commit.decisions if made.customer != item.customer]
        # What the customer's earlier events put into this batch's outbox is stopped by the re-check at send.
        presence = self.presences[item.customer]
        self._forget_place(item, presence)
        _become(presence, Presence())
        _become(self.customers[item.customer], Customer(id=item.customer))


def _forbids_location(event: AnyEvent) -> bool:
    return isinstance(event, Consent) and not event.granted and event.scope in ("all", "location")


def _needs_cold(event: AnyEvent) -> bool:
    return not isinstance(event, Location) and not _is_hot_timer(event)


def _is_hot_timer(event: AnyEvent) -> bool:
    return isinstance(event, Timer) and event.kind in (fold.PRESENCE_TIMER, fold.PICKUP_TIMER)


def _become(record: msgspec.Struct, other: msgspec.Struct) -> None:
    for name in record.__struct_fields__:
        setattr(record, name, getattr(other, name))
