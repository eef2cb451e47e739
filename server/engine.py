"""The engine: log records in, committed decisions out. This file is the flow; the parts live in their own packages.

    decode → load → match → rounds of (fold and track → candidates → gates → one score call → decisions) → commit

A batch is whatever arrived while the last one was worked on, bounded in size. A customer's events and moments are
handled strictly in order, one moment per customer and round, so that a decision sees the caps left by the one before;
customers are independent of each other. Therefore any way of cutting the log into batches gives the same result.

Nothing is sent from here: messages leave through the outbox, which is committed together with the state and offsets.
"""

import asyncio
import logging
from collections.abc import Sequence

from models import features
from models.scorer import Scorer
from nearcast import metrics
from nearcast.clock import Clock
from nearcast.customer import Customer
from nearcast.decisions import Candidate
from nearcast.errors import Fenced, Unavailable
from nearcast.fold import FoldRules
from nearcast.ids import CustomerId
from nearcast.moments import Moment
from offers.candidates import candidates, stock_wanted
from offers.decide import decide, screen
from offers.messages import message_of
from offers.policy import Policy
from server.batch import Batch, Item, in_order
from server.log.base import LogConsumer, Record
from server.state import Commit, Known, Ownership, StateStore
from server.world import WorldStore

logger = logging.getLogger("nearcast.server.engine")

_FETCH_WAIT_MS = 250
_BACKOFF_S = 0.5

#: Something a customer's queue holds: an event to fold, or a moment (of an event folded already) to decide.
Work = tuple[Item, Moment | None]


class Engine:
    """Owns the partitions the log assigns to it, and works through their records until cancelled."""

    def __init__(
        self,
        *,
        consumer: LogConsumer,
        state: StateStore,
        world: WorldStore,
        scorer: Scorer,
        rules: FoldRules,
        policy: Policy,
        clock: Clock,
        batch_events: int,
        cached_customers: int,
    ) -> None:
        self._consumer = consumer
        self._state = state
        self._world = world
        self._scorer = scorer
        self._rules = rules
        self._policy = policy
        self._clock = clock
        self._batch_events = batch_events
        self._cached_customers = cached_customers
        self._generation: int | None = None
        self._owned: dict[int, Ownership] = {}
        self._cache: dict[int, dict[CustomerId, Known]] = {}

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions owned now."""
        return frozenset(self._owned)

    async def run(self) -> None:
        while True:
            try:
                await self._follow_assignment()
                records = await self._consumer.fetch(self._batch_events, _FETCH_WAIT_MS)
                if records:
                    await self.process(records)
            except (Unavailable, Fenced) as error:
                # The commit may or may not have happened. Only the store knows: take the partitions again and go on
                # from the offsets found there.
                logger.warning("starting over from the stored offsets: %s", error)
                self._generation = None
                await asyncio.sleep(_BACKOFF_S)

    async def process(self, records: Sequence[Record]) -> None:
        """Work one batch off, from records to commit."""
        await self._process(in_order(record for record in records if record.partition in self._owned))

    async def _process(self, records: Sequence[Record]) -> None:
        try:
            batch = await self._work(records)
            commits = batch.finish()
            encoded = [self._state.encode(commit) for commit in commits]
        except (Unavailable, Fenced):
            raise
        except Exception as error:
            # A defect of ours must not stop the partition: halve the batch until the record that brings it out stands
            # alone, and set that one aside. Half-folded customers are thrown away first.
            self._cache.clear()
            if len(records) > 1:
                middle = len(records) // 2
                await self._process(records[:middle])
                await self._process(records[middle:])
                return
            logger.exception("a record became a dead letter because it made the engine fail")
            batch = Batch(self._world.current, self._owned, self._rules)
            batch.set_aside(records[0], error)
            commits = batch.finish()
            encoded = [self._state.encode(commit) for commit in commits]
        with metrics.BATCH_SECONDS.labels("commit").time():
            await asyncio.gather(*(self._state.commit(commit) for commit in encoded))
        self._remember(batch, commits)
        batch.count(self._clock.now_ms())
        metrics.BATCH_EVENTS.observe(len(records))
        for commit in commits:
            await self._consumer.progress(commit.partition, commit.offsets)

    async def _work(self, records: Sequence[Record]) -> Batch:
        batch = Batch(self._world.current, self._owned, self._rules)
        with metrics.BATCH_SECONDS.labels("decode").time():
            batch.decode(records, self._state.partition)
        with metrics.BATCH_SECONDS.labels("load").time():
            await self._load(batch)
        with metrics.BATCH_SECONDS.labels("match").time():
            batch.match()
        waiting: list[Work] = [(item, None) for item in batch.items]
        while waiting:
            with metrics.BATCH_SECONDS.labels("fold").time():
                moments, waiting = fold_round(batch, waiting)
            if moments:
                with metrics.BATCH_SECONDS.labels("decide").time():
                    await self._decide(batch, moments)
        return batch

    async def _load(self, batch: Batch) -> None:
        """Get the batch's customers: from the cache, or in one round trip per partition."""
        missing: dict[int, list[CustomerId]] = {}
        for partition, customers in batch.customers().items():
            cached = self._cache.setdefault(partition, {})
            for customer in customers:
                known = cached.get(customer)
                if known is not None:
                    batch.known[customer] = known
                else:
                    missing.setdefault(partition, []).append(customer)
        loads = [self._state.load(partition, customers) for partition, customers in missing.items()]
        for customers, found in zip(missing.values(), await asyncio.gather(*loads), strict=True):
            batch.known.update(zip(customers, found, strict=True))

    async def _decide(self, batch: Batch, moments: Sequence[tuple[Item, Moment]]) -> None:
        """Decide one moment of each of several customers: one stock read, one score call."""
        world = batch.world
        open_moments = []
        for item, moment in moments:
            found = candidates(moment, batch.known[item.customer].customer, world.catalogue)
            if found:
                open_moments.append((item, moment, found))
        wanted = [pair for _, moment, found in open_moments for pair in stock_wanted(moment, found)]
        stock = await self._world.stock(wanted)
        screened = []
        rows: list[list[float]] = []
        for item, moment, found in open_moments:
            customer = batch.known[item.customer].customer
            first = len(rows)
            passed = screen(moment, customer, found, world.catalogue, stock, self._policy)
            scored = [index for index, candidate in enumerate(passed) if candidate.stopped_by is None]
            rows += [self._features(batch, customer, moment, passed[index]) for index in scored]
            screened.append((item, moment, passed, scored, first))
        scores = self._scorer.score(rows)
        for item, moment, passed, scored, first in screened:
            propensities = dict(zip(scored, scores[first : first + len(scored)], strict=True))
            decision = decide(moment, passed, propensities, world.catalogue, self._scorer.version)
            batch.record(item, decision, message_of(decision, world.catalogue))

    def _features(self, batch: Batch, customer: Customer, moment: Moment, candidate: Candidate) -> list[float]:
        catalogue = batch.world.catalogue
        segment = None if candidate.sku is None else catalogue.segments.get(candidate.sku)
        return features.row(customer, catalogue.promotions[candidate.promotion], segment, moment.at_ms)

    def _remember(self, batch: Batch, commits: Sequence[Commit]) -> None:
        """Keep where we are, and the customers just committed, newest last, within the bound."""
        for commit in commits:
            owner = self._owned[commit.partition]
            self._owned[commit.partition] = owner._replace(offsets=owner.offsets | commit.offsets)
        for item in batch.items:
            cached = self._cache.setdefault(item.record.partition, {})
            cached.pop(item.customer, None)
            cached[item.customer] = batch.known[item.customer]
        bound = self._cached_customers // max(1, len(self._owned))
        for cached in self._cache.values():
            for customer in list(cached)[: max(0, len(cached) - bound)]:
                del cached[customer]

    async def _follow_assignment(self) -> None:
        """After a rebalance, take what is ours now: fence the owners before us and read on from the stored offsets."""
        generation, partitions = self._consumer.assignment()
        if generation == self._generation:
            return
        self._cache.clear()
        self._owned.clear()
        for partition in sorted(partitions):
            ownership = await self._state.take(partition)
            await self._consumer.seek(partition, ownership.offsets)
            self._owned[partition] = ownership
        self._generation = generation
        metrics.OWNED_PARTITIONS.set(len(self._owned))
        logger.info("owning partitions %s", sorted(self._owned))


def fold_round(batch: Batch, waiting: Sequence[Work]) -> tuple[list[tuple[Item, Moment]], list[Work]]:
    """Fold on until each customer has a moment to decide; returns those moments, and the work that has to wait."""
    moments: list[tuple[Item, Moment]] = []
    later: list[Work] = []
    busy: set[CustomerId] = set()
    for item, moment in waiting:
        if item.customer in busy:
            later.append((item, moment))
            continue
        found = [moment] if moment is not None else batch.apply(item)
        if found:
            busy.add(item.customer)
            moments.append((item, found[0]))
            later += [(item, other) for other in found[1:]]
    return moments, later
