"""The engine: log records in, committed decisions out. This file is the flow; the parts live in their own packages.

    decode → load → match → rounds of (fold and track → candidates → gates → one score call → decisions) → commit

A batch is whatever arrived while the last one was worked on, bounded in size. A customer's events and moments are
handled strictly in order, one moment per customer and round, so that a decision sees the caps left by the one before;
customers are independent of each other. Therefore any way of cutting the log into batches gives the same result.

While a batch is being committed the next one is worked on already, on top of the state that the commit will leave; it
is committed only after it. If a commit fails, everything cached is thrown away, and the partitions are taken anew.

Nothing is sent from here: messages leave through the outbox, which is committed together with the state and offsets.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from models.channel_choice import Asked, best_first
from models.fallback import FALLBACK
from models.features import redeem
from models.registry import Models, Serving
from nearcast import metrics
from nearcast.clock import Clock
from nearcast.customer import Customer
from nearcast.decisions import Candidate, Decision, Reason
from nearcast.errors import Fenced, Unavailable, UnreadableState
from nearcast.fold import FoldRules
from nearcast.hours import zone_named
from nearcast.ids import CustomerId
from nearcast.moments import Moment
from offers.budgets import Share, shares_of
from offers.candidates import candidates, stock_wanted
from offers.catalogue import Catalogue
from offers.decide import Scores, decide, rule_out, screen
from offers.messages import message_of
from offers.policy import Policy
from server.batch import Batch, Cached, Item, Missing, Work
from server.budgets import Demand, Leases
from server.log.base import LogConsumer, Record
from server.recent import Recent
from server.state import Commit, Encoded, Ownership, StateStore
from server.stored import decode_customer, encode_customer
from server.world import WorldStore

logger = logging.getLogger("nearcast.server.engine")

_FETCH_WAIT_MS = 250
_BACKOFF_S = 0.5
#: A smaller batch waits for its commit: the next one is worked off sooner than this one is committed, and until it may
#: be committed itself more events come, which cost less together.
_WORTH_OVERLAPPING = 200
#: How often an engine without events looks whether its store is still what it was.
_LOOK_EVERY_S = 2.0
_FEATURES_HASH = redeem.REDEEM.hash
#: Looked up once: a batch may hold a single event.
_STAGES = {
    stage: metrics.BATCH_SECONDS.labels(stage) for stage in ("decode", "match", "load", "fold", "decide", "commit")
}


class _Serving(NamedTuple):
    """The models of one batch."""

    redeem: Serving
    channel: Serving


class Engine:
    """Owns the partitions the log assigns to it, and works through their records until cancelled."""

    def __init__(
        self,
        *,
        consumer: LogConsumer,
        state: StateStore,
        world: WorldStore,
        budgets: Leases,
        models: Models,
        rules: FoldRules,
        policy: Policy,
        clock: Clock,
        batch_events: int,
        cached_customers: int,
    ) -> None:
        self._consumer = consumer
        self._state = state
        self._world = world
        self._budgets = budgets
        self._models = models
        self._rules = rules
        self._policy = policy
        self._clock = clock
        self._batch_events = batch_events
        self._cached_customers = cached_customers
        self._generation: int | None = None
        self._owned: dict[int, Ownership] = {}
        self._cached: dict[int, Cached] = {}
        #: The commit on its way, if there is one.
        self._committing: asyncio.Task[None] | None = None
        self._looked_at_s = 0.0

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions owned now."""
        return frozenset(self._owned)

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self.follow_assignment()
                    records = await self._consumer.fetch(self._batch_events, _FETCH_WAIT_MS)
                    if records:
                        await self._submit(records)
                        if len(records) < _WORTH_OVERLAPPING:
                            await self._settle()
                    elif self._committing is None:
                        await self._budgets.give_back()
                        await self._look_for_lost_writes()
                    elif self._committing.done():
                        await self._settle()
                except (Unavailable, Fenced) as error:
                    # The commit may or may not have happened. Only the store knows: take the partitions again and go
                    # on from the offsets found there.
                    logger.warning("starting over from the stored offsets: %s", error)
                    await self._abandon()
                    self._generation = None
                    await asyncio.sleep(_BACKOFF_S)
        finally:
            await self._abandon()

    async def process(self, records: Sequence[Record]) -> None:
        """Work one batch off, from records to commit."""
        await self._submit(records)
        await self._settle()

    async def _submit(self, records: Sequence[Record]) -> None:
        """Work a batch off, wait for the commit before it, and send its own on its way."""
        await self._work_off([record for record in records if record.partition in self._owned])

    async def _work_off(self, records: Sequence[Record]) -> None:
        if not records:
            return
        try:
            batch = await self._work(records)
            commits = batch.finish()
            encoded = [self._state.encode(commit) for commit in commits]
        except (Unavailable, Fenced):
            raise
        except Exception as error:
            # A defect of ours must not stop the partition: halve the batch until the record that brings it out stands
            # alone, and set that one aside. Half-folded customers are thrown away first; what they were before is in
            # the store once the commit on its way is there.
            await self._settle()
            self._forget_customers()
            await self._budgets.take_over(self._epochs())
            if len(records) > 1:
                middle = len(records) // 2
                await self._work_off(records[:middle])
                await self._work_off(records[middle:])
                return
            logger.exception("a record became a dead letter because it made the engine fail")
            batch = Batch(self._world.current, self._owned, self._rules)
            batch.set_aside(records[0], error)
            commits = batch.finish()
            encoded = [self._state.encode(commit) for commit in commits]
        await self._settle()
        await self._budgets.give_back(but=[(commit.partition, pool) for commit in commits for pool in commit.spent])
        # Only now: what they give back counts when it is committed.
        await self._budgets.refund(batch.returned)
        for commit in commits:
            owner = self._owned[commit.partition]
            self._owned[commit.partition] = owner._replace(offsets=owner.offsets | commit.offsets)
        for made in encoded:
            cached = self._cached[made.partition]
            for customer, data in made.customers.items():
                cached.customers.put(customer, data)
        metrics.BATCH_EVENTS.observe(len(records))
        self._committing = asyncio.create_task(self._commit(batch, commits, encoded), name="engine commit")
        # It starts now, not when this task has nothing else to do.
        await asyncio.sleep(0)

    async def _commit(self, batch: Batch, commits: Sequence[Commit], encoded: Sequence[Encoded]) -> None:
        with _STAGES["commit"].time():
            await self._state.commit(encoded)
        batch.count(self._clock.now_ms())
        for commit in commits:
            await self._consumer.progress(commit.partition, commit.offsets)

    async def _settle(self) -> None:
        """Wait for the commit on its way. Raises what kept it from happening."""
        committing, self._committing = self._committing, None
        if committing is not None:
            await committing

    async def _abandon(self) -> None:
        """Give up what is on its way: wait until it is over, whatever came of it."""
        committing, self._committing = self._committing, None
        while committing is not None and not committing.done():
            # Again and again: redis-py can swallow a cancellation that meets a reply.
            committing.cancel()
            await asyncio.wait({committing}, timeout=0.1)
        if committing is not None and not committing.cancelled():
            committing.exception()

    async def _look_for_lost_writes(self) -> None:
        """A commit notices when the store came back without its last writes; while there is none, this does.

        Raises `Fenced`: the log has to replay what is missing.
        """
        now_s = self._clock.monotonic_s()
        if now_s < self._looked_at_s + _LOOK_EVERY_S:
            return
        self._looked_at_s = now_s
        for partition, found in (await self._state.ownerships(list(self._owned))).items():
            owned = self._owned[partition]
            # Under a higher epoch it is somebody else's: the log will say so.
            if found.epoch < owned.epoch or (found.epoch == owned.epoch and found.offsets != owned.offsets):
                raise Fenced(f"partition {partition}: the store has lost writes")

    def _epochs(self) -> dict[int, int]:
        return {partition: owner.epoch for partition, owner in self._owned.items()}

    def _forget_customers(self) -> None:
        bound = self._cached_customers // max(1, len(self._owned))
        self._cached = {partition: Cached(Recent(bound), Recent(bound)) for partition in self._owned}

    async def _work(self, records: Sequence[Record]) -> Batch:
        batch = Batch(self._world.current, self._owned, self._rules, self._clock.now_ms())
        # To the end of the batch: models change between two.
        serving = _Serving(self._models.serving("redeem"), self._models.serving("channel"))
        with _STAGES["decode"].time():
            batch.decode(records)
        with _STAGES["match"].time():
            batch.match()
        with _STAGES["load"].time():
            await self._load(batch)
        waiting: list[Work] = [(item, None) for item in batch.items]
        while waiting:
            with _STAGES["fold"].time():
                moments, waiting = batch.fold_round(waiting)
            if moments:
                with _STAGES["decide"].time():
                    await self._decide(batch, moments, serving)
        return batch

    async def _load(self, batch: Batch) -> None:
        """Get the records of the batch's customers that its events need: from the cache, or from the store."""
        for cached in self._cached.values():
            # Safe here: what goes was last used before the commit on its way was made.
            cached.presences.rotate()
            cached.customers.rotate()
        batch.pass_by(self._cached)
        missing = batch.missing(self._cached)
        if missing:
            batch.bury_strays(missing, self._state.homes)
            await self._read(batch, missing)
            batch.pass_by(self._cached)
        batch.arrange()

    async def _read(self, batch: Batch, missing: Mapping[int, Missing]) -> None:
        """Read records into the batch and the cache: one round trip, or two if a hot record asks for the cold one."""
        unsettled: dict[int, Missing] = {}
        answers = await self._state.fetch(
            {
                partition: (list(wanted.hot), list(wanted.cold))
                for partition, wanted in missing.items()
                if wanted.hot or wanted.cold
            }
        )
        for partition, (hot, cold) in answers.items():
            wanted = missing[partition]
            cached = self._cached[partition]
            for customer, data in zip(wanted.cold, cold, strict=True):
                try:
                    profile = decode_customer(customer, data)
                except UnreadableState as error:
                    batch.unreadable_cold[customer] = error
                    continue
                batch.customers[customer] = profile
                cached.customers.put(customer, encode_customer(profile) if data is None else data)
            for customer, found in zip(wanted.hot, hot, strict=True):
                if isinstance(found, UnreadableState):
                    batch.unreadable_hot[customer] = found
                    continue
                batch.presences[customer] = found.presence
                if found.settled:
                    cached.presences.put(customer, found.presence)
                else:
                    unsettled.setdefault(partition, Missing()).hot[customer] = None
        if not unsettled:
            return
        # The cache first: a commit on its way may hold a newer cold record than the store.
        await self._read_cold(
            batch, ((partition, who) for partition, wanted in unsettled.items() for who in wanted.hot)
        )
        for partition, wanted in unsettled.items():
            for customer in wanted.hot:
                if customer in batch.unreadable_cold:
                    # Whether fixes may be used is not known.
                    batch.unreadable_hot[customer] = batch.unreadable_cold[customer]
                    del batch.presences[customer]
                    continue
                presence = batch.presences[customer]
                presence.allowed = batch.customers[customer].location_allowed
                self._cached[partition].presences.put(customer, presence)

    async def _read_cold(self, batch: Batch, people: Iterable[tuple[int, CustomerId]]) -> None:
        """The cold records of people, by partition, of whom only a hot one was needed until now."""
        missing: dict[int, Missing] = {}
        for partition, customer in people:
            if customer in batch.customers or customer in batch.unreadable_cold:
                continue
            known = self._cached[partition].customers.get(customer)
            if known is None:
                missing.setdefault(partition, Missing()).cold[customer] = None
            else:
                batch.customers[customer] = decode_customer(customer, known)
        if missing:
            await self._read(batch, missing)

    async def _decide(self, batch: Batch, moments: Sequence[tuple[Item, Moment]], serving: _Serving) -> None:
        """Decide one moment of each of several customers: one stock read, one score call."""
        world = batch.world
        await self._read_cold(batch, ((item.record.partition, item.customer) for item, _ in moments))
        open_moments = []
        for item, moment in moments:
            if error := batch.unreadable_cold.get(item.customer):
                batch.bury(item.record, "unreadable_state", str(error))
                continue
            customer = batch.customers[item.customer]
            if moment.trigger == "exit" and not moment.held_since_ms and customer.messages:
                batch.left(item, moment, customer)
            found = candidates(moment, customer, world.catalogue)
            if found:
                found = rule_out(moment, customer, found, world.catalogue, self._policy)
                open_moments.append((item, moment, found))
        wanted = [pair for _, moment, found in open_moments for pair in stock_wanted(moment, found, world.catalogue)]
        stock = await self._world.stock(wanted)
        passing = [
            (item, moment, screen(moment, batch.customers[item.customer], found, world.catalogue, stock, self._policy))
            for item, moment, found in open_moments
        ]
        budgeted = await self._within_budgets(batch, passing)
        screened = []
        rows: list[list[float]] = []
        people: list[CustomerId] = []
        for item, moment, passed in budgeted:
            customer = batch.customers[item.customer]
            first = len(rows)
            scored = [index for index, candidate in enumerate(passed) if candidate.stopped_by is None]
            rows += _features(customer, moment, [passed[index] for index in scored], world.catalogue)
            people += [item.customer] * len(scored)
            screened.append((item, moment, passed, scored, first))
        scores, versions = serving.redeem.score(rows, people)
        decisions: list[tuple[Item, Decision, Sequence[Share]]] = []
        for item, moment, passed, scored, first in screened:
            last = first + len(scored)
            made = Scores(
                propensities=dict(zip(scored, scores[first:last], strict=True)),
                inputs=dict(zip(scored, rows[first:last], strict=True)),
                model_version=_version(versions[first:last], serving.redeem, item.customer),
                features_hash=_FEATURES_HASH,
            )
            decisions.append((item, *self._choose(batch, item, moment, passed, made)))
        if self._policy.best_channel_first:
            offers = [decision for _, decision, _ in decisions if decision.outcome == "offer"]
            self._choose_channels(batch, offers, serving.channel)
        for item, decision, shares in decisions:
            batch.record(item, decision, message_of(decision, world.catalogue), shares)

    async def _within_budgets(
        self, batch: Batch, moments: Sequence[tuple[Item, Moment, list[Candidate]]]
    ) -> Sequence[tuple[Item, Moment, list[Candidate]]]:
        """The same, with those candidates stopped whose budget is exhausted. One round trip, if any has a budget and
        what this engine holds of it runs out."""
        budgeted = batch.world.catalogue.budgeted
        if not budgeted:
            return moments
        wanted: dict[tuple[int, str], Demand] = {}
        shares: dict[tuple[int, int], list[Share]] = {}
        for place, (item, moment, found) in enumerate(moments):
            once: set[str] = set()
            for index, candidate in enumerate(found):
                if candidate.stopped_by is not None or candidate.promotion not in budgeted:
                    continue
                asked = _shares(candidate, moment, batch.world.catalogue)
                if not asked:
                    continue
                shares[place, index] = asked
                for charge, limit in asked:
                    # At most one of its candidates is chosen.
                    if charge.pool not in once:
                        once.add(charge.pool)
                        demand = wanted.setdefault((item.record.partition, charge.pool), Demand(limit))
                        demand.pieces += charge.pieces
                        demand.cents += charge.cents
        if not wanted:
            return moments
        await self._budgets.reach(wanted, batch.world.version)
        for (place, index), asked in shares.items():
            item, _, found = moments[place]
            if not self._budgets.has_room(item.record.partition, [charge for charge, _ in asked]):
                found[index] = replace(found[index], stopped_by=Reason.BUDGET_EXHAUSTED)
        return moments

    def _choose(
        self, batch: Batch, item: Item, moment: Moment, passed: list[Candidate], scores: Scores
    ) -> tuple[Decision, Sequence[Share]]:
        """Decide, and take of its budgets what the winner needs; if others of the round took the rest of them, decide
        among the others."""
        customer, catalogue = batch.customers[item.customer], batch.world.catalogue
        while True:
            decision = decide(moment, customer, passed, scores, catalogue, self._policy)
            won = next((n for n, each in enumerate(decision.candidates) if each.stopped_by is None), None)
            shares = _shares(passed[won], moment, catalogue) if won is not None else []
            if won is None or not shares:
                return decision, ()
            charges = [charge for charge, _ in shares]
            if self._budgets.has_room(item.record.partition, charges):
                self._budgets.spend(item.record.partition, charges)
                decision.charges = charges
                return decision, shares
            passed[won] = replace(passed[won], stopped_by=Reason.BUDGET_EXHAUSTED)

    def _choose_channels(self, batch: Batch, offers: Sequence[Decision], serving: Serving) -> None:
        """Put the channels of each offer in the order of P(reacts); of equals, in the promotion's."""
        promotions = batch.world.catalogue.promotions
        asked = [
            Asked(batch.customers[decision.customer], promotions[decision.promotion].channels, decision.at_ms)
            for decision in offers
            if decision.promotion is not None
        ]
        for decision, ways in zip(offers, best_first(asked, serving), strict=True):
            if not any(way.model == FALLBACK for way in ways):
                decision.channels = {way.channel: way.probability for way in ways}
                decision.channel_model_version = ways[0].model

    async def follow_assignment(self) -> None:
        """After a rebalance, take what is ours now: fence the owners before us and read on from the stored offsets."""
        generation, partitions = self._consumer.assignment()
        if generation == self._generation:
            return
        await self._abandon()
        self._owned.clear()
        for partition in sorted(partitions):
            ownership = await self._state.take(partition)
            await self._consumer.seek(partition, ownership.offsets)
            self._owned[partition] = ownership
        await self._budgets.take_over(self._epochs())
        self._forget_customers()
        self._generation = generation
        metrics.OWNED_PARTITIONS.set(len(self._owned))
        logger.info("owning partitions %s", sorted(self._owned))


def _shares(candidate: Candidate, moment: Moment, catalogue: Catalogue) -> list[Share]:
    """What an offer of the candidate would take of shared budgets."""
    promotion = catalogue.promotions[candidate.promotion]
    if not promotion.budgets:
        return []
    store = candidate.store or moment.store
    known = catalogue.stores.get(store) if store is not None else None
    return shares_of(promotion, store, zone_named(known.time_zone) if known else None, moment.at_ms)


def _version(versions: Sequence[str], serving: Serving, customer: CustomerId) -> str:
    """The model that a decision is owed to, or would have been; if a row got the fallback score, that."""
    if FALLBACK in versions:
        return FALLBACK
    return versions[0] if versions else serving.guard_of(customer).version


def _features(
    customer: Customer, moment: Moment, options: Sequence[Candidate], catalogue: Catalogue
) -> list[list[float]]:
    """The redeem model's rows for one moment's options."""
    if not options:
        return []
    segments, promotions = catalogue.segments, catalogue.promotions
    return redeem.rows(
        customer,
        moment.at_ms,
        [
            (promotions[option.promotion], None if option.sku is None else segments.get(option.sku))
            for option in options
        ],
    )
