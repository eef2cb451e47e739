"""Budgets, on a real store: never overspent whatever happens to their workers, and nothing leaks."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as ConnectionLost

from nearcast import keys
from nearcast.clock import ManualClock
from nearcast.decisions import Charge
from nearcast.errors import Fenced, Unavailable
from offers.budgets import Limit
from server.budgets import ASK_AGAIN_S, IDLE_S, Demand, Leases, Usage, usages
from server.state import Commit, Ownership, Spent, StateStore

PARTITIONS = 3
TOPIC = "actions"
COFFEE, TEA = "coffee", "tea"
CUP, POT = Charge(pool=COFFEE, pieces=1), Charge(pool=TEA, pieces=1, cents=70)
DAY_MS = 86_400_000

T = TypeVar("T")


class Offer(msgspec.Struct, frozen=True):
    """What stands in the outbox for each offer, and once more, `back`, when it was not sent: the evidence."""

    charges: tuple[Charge, ...]
    back: bool = False


class Client(Redis):
    """To whose user something can happen after one of the replies that it waits for."""

    _left = 0
    _happens: Callable[[], Awaitable[None]] | None = None

    def after(self, replies: int, happens: Callable[[], Awaitable[None]] | None) -> None:
        self._left, self._happens = replies, happens

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        pipe = super().pipeline(transaction, shard_hint)
        execute = pipe.execute

        async def watched(*args: Any, **kwargs: Any) -> Any:
            replies = await execute(*args, **kwargs)
            self._left -= 1
            if self._left == 0 and self._happens is not None:
                await self._happens()
            return replies

        pipe.execute = watched  # type: ignore[method-assign]
        return pipe


class Worker:
    """What an engine does with budgets, in its order, for offers that somebody else thought of."""

    def __init__(self, redis: Redis, clock: ManualClock) -> None:
        self.state = StateStore(redis, PARTITIONS)
        self.leases = Leases(redis, PARTITIONS, clock)
        self.owned: dict[int, Ownership] = {}
        self._clock = clock

    async def take_over(self, *partitions: int) -> None:
        """Own these, and only these."""
        self.owned = {}
        owned = {partition: await self.state.take(partition) for partition in partitions}
        await self.leases.take_over({partition: owner.epoch for partition, owner in owned.items()})
        self.owned = owned

    async def decide(
        self, partition: int, charges: Sequence[Charge], wishes: int, limits: Mapping[str, Limit], version: int = 1
    ) -> list[Offer]:
        """So many customers would get an offer; those who do."""
        demands = {
            (partition, each.pool): Demand(limits[each.pool], wishes * each.pieces, wishes * each.cents)
            for each in charges
        }
        await self.leases.reach(demands, version)
        made = []
        for _ in range(wishes):
            if self.leases.has_room(partition, charges):
                self.leases.spend(partition, charges)
                made.append(Offer(tuple(charges)))
        return made

    async def commit(self, partition: int, offers: Iterable[Offer]) -> None:
        """Commit these offers, and those that come back."""
        await self.send(await self.prepare(partition, offers))

    async def prepare(self, partition: int, offers: Iterable[Offer]) -> Commit:
        """What comes before a commit, while none is on its way."""
        owner = self.owned[partition]
        read = {TOPIC: str(int(owner.offsets.get(TOPIC, "0")) + 1)}
        commit = Commit(partition=partition, epoch=owner.epoch, expected=owner.offsets, offsets=read)
        returned = []
        for offer in offers:
            commit.outbox.append((msgspec.json.encode(offer), 0))
            for each in offer.charges:
                spent = commit.spent.setdefault(each.pool, Spent(-1 if offer.back else 0))
                spent.expires_s = max(spent.expires_s, -1 if offer.back else 0)
                spent.pieces += -each.pieces if offer.back else each.pieces
                spent.cents += -each.cents if offer.back else each.cents
                if offer.back:
                    returned.append((partition, each))
        await self.leases.give_back(but=[(partition, pool) for pool in commit.spent])
        await self.leases.refund(returned)
        self.owned[partition] = owner._replace(offsets=read)
        return commit

    async def send(self, commit: Commit) -> None:
        await self.state.commit([self.state.encode(commit)])

    async def offer(self, partition: int, charges: Sequence[Charge], wishes: int, limit: Limit) -> list[Offer]:
        """Decide and commit, under one limit for all pools."""
        made = await self.decide(partition, charges, wishes, {each.pool: limit for each in charges})
        await self.commit(partition, made)
        return made

    async def rest(self) -> None:
        """Let everything become idle, and give it back."""
        self._clock.advance(round(IDLE_S * 1000))
        await self.leases.give_back()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def workers(redis: Redis, clock: ManualClock) -> list[Worker]:
    """One for each partition."""
    workers = [Worker(redis, clock) for _ in range(PARTITIONS)]
    for partition, worker in enumerate(workers):
        await worker.take_over(partition)
    return workers


async def used_of(redis: Redis, pool: str = COFFEE) -> Usage:
    return (await usages(redis, PARTITIONS, [pool]))[0]


async def test_a_crowd(redis: Redis, workers: list[Worker]) -> None:
    """300 wishes in three partitions on a budget of 50: fifty are granted, wherever they come first."""
    made = [await workers[n % 3].offer(n % 3, [CUP], 1, Limit(50, None)) for n in range(300)]
    for worker in workers:
        await worker.rest()
    made += [await workers[n].offer(n, [CUP], 10, Limit(50, None)) for n in range(3)]
    assert sum(map(len, made)) == 50
    assert await used_of(redis) == Usage(50, 0, 0, 0)


async def test_money(redis: Redis, workers: list[Worker]) -> None:
    """Of 500 cents at 70 each, seven offers; the 10 cents left are for nobody, and are held by nobody."""
    made = [await worker.offer(n, [POT], 5, Limit(None, 500)) for n, worker in enumerate(workers)]
    for worker in workers:
        await worker.rest()
    made.append(await workers[0].offer(0, [POT], 5, Limit(None, 500)))
    await workers[0].rest()
    assert sum(map(len, made)) == 7
    assert await used_of(redis, TEA) == Usage(7, 490, 0, 0)


async def test_all_or_nothing_of_several(redis: Redis, workers: list[Worker]) -> None:
    """An offer that draws on two budgets takes of both or of neither."""
    limits = {COFFEE: Limit(5, None), TEA: Limit(None, 140)}
    made = await workers[0].decide(0, [CUP, POT], 5, limits)
    await workers[0].commit(0, made)
    await workers[0].rest()
    assert len(made) == 2
    assert (await used_of(redis), await used_of(redis, TEA)) == (Usage(2, 0, 0, 0), Usage(2, 140, 0, 0))


async def test_no_limit_is_counted(redis: Redis, workers: list[Worker]) -> None:
    """Money without a limit is not held back, and a limit that comes later knows of it."""
    assert len(await workers[0].offer(0, [POT], 20, Limit(100, None))) == 20
    await workers[0].rest()
    made = await workers[1].decide(1, [POT], 20, {TEA: Limit(100, 1_500)}, version=2)
    assert len(made) == 1


async def test_seldom_asked(redis: Redis, workers: list[Worker]) -> None:
    """While there is plenty, most decisions ask nobody: a thousand of one partition, one by one, ask a few times."""
    steps = 0
    for _ in range(1_000):
        before = (await redis.hgetall(keys.budget(COFFEE))).get(b"pieces")
        await workers[0].decide(0, [CUP], 1, {COFFEE: Limit(100_000, None)})
        steps += (await redis.hgetall(keys.budget(COFFEE))).get(b"pieces") != before
    assert steps <= 1_000 / 60 + 1


async def test_a_crash_leaks_nothing(redis: Redis, workers: list[Worker], clock: ManualClock) -> None:
    """What a worker held when it died is its heir's, and goes back if that doesn't need it."""
    await workers[0].offer(0, [CUP], 10, Limit(1_000, None))
    assert (await used_of(redis)).held_pieces > 0
    heir = Worker(redis, clock)
    await heir.take_over(0)
    await heir.rest()
    assert await used_of(redis) == Usage(10, 0, 0, 0)
    assert not await redis.exists(keys.leases(0))


async def test_decided_and_never_committed(redis: Redis, workers: list[Worker], clock: ManualClock) -> None:
    """What a dead worker had decided and not committed was never used; who died in the middle has no say later."""
    made = await workers[0].decide(0, [CUP], 10, {COFFEE: Limit(10, None)})
    heir = Worker(redis, clock)
    await heir.take_over(0)
    with pytest.raises(Fenced):
        await workers[0].commit(0, made)
    assert len(await heir.offer(0, [CUP], 11, Limit(10, None))) == 10
    assert await used_of(redis) == Usage(10, 0, 0, 0)


async def test_rounds_of_one_batch(redis: Redis, workers: list[Worker]) -> None:
    """What the first round used counts in the second, although nothing of it is committed yet."""
    limits = {COFFEE: Limit(12, None)}
    made = [*await workers[0].decide(0, [CUP], 10, limits), *await workers[0].decide(0, [CUP], 10, limits)]
    await workers[0].commit(0, made)
    assert len(made) == 12
    assert await used_of(redis) == Usage(12, 0, 0, 0)


async def test_what_is_about_to_be_committed_is_kept(redis: Redis, workers: list[Worker], clock: ManualClock) -> None:
    """However long a batch takes: a lease that its commit draws on stays open, so that nothing leaks if that fails."""
    made = await workers[0].decide(0, [CUP], 5, {COFFEE: Limit(100, None)})
    clock.advance(round(2_000 * IDLE_S))
    commit = await workers[0].prepare(0, made)
    heir = Worker(redis, clock)
    await heir.take_over(0)
    with pytest.raises(Fenced):
        await workers[0].send(commit)
    await heir.rest()
    assert await used_of(redis) == Usage(0, 0, 0, 0)


async def test_a_sleeper_gives_nothing_back(redis: Redis, workers: list[Worker], clock: ManualClock) -> None:
    """Who wakes up after the partition was taken over can't give back what the heir has used, nor take more."""
    await workers[0].offer(0, [CUP], 1, Limit(20, None))
    heir = Worker(redis, clock)
    await heir.take_over(0)
    assert len(await heir.offer(0, [CUP], 20, Limit(20, None))) == 19
    for awake in (workers[0].rest(), workers[0].decide(0, [CUP], 20, {COFFEE: Limit(99, None)}, version=9)):
        with pytest.raises(Fenced):
            await awake
    assert await used_of(redis) == Usage(20, 0, 0, 0)


async def test_a_sleeper_can_take_nothing_that_its_heir_has_not_heard_of(
    redis: Redis, workers: list[Worker], clock: ManualClock
) -> None:
    """The same of a budget that neither had touched before: there is nothing in it that could tell them apart."""
    await Worker(redis, clock).take_over(0)
    with pytest.raises(Fenced):
        await workers[0].decide(0, [CUP], 20, {COFFEE: Limit(99, None)})
    assert await used_of(redis) == Usage(0, 0, 0, 0)
    assert not await redis.exists(keys.leases(0))


async def test_what_was_not_sent_comes_back(redis: Redis, workers: list[Worker], clock: ManualClock) -> None:
    """Its owner may use it again; and long after the rest was given back, it finds its way to the others."""
    (offer,) = await workers[0].offer(0, [CUP], 1, Limit(1, None))
    back = msgspec.structs.replace(offer, back=True)
    await workers[0].commit(0, [back])
    assert await workers[0].offer(0, [CUP], 2, Limit(1, None)) == [offer]
    await workers[0].rest()
    assert await workers[1].offer(1, [CUP], 1, Limit(1, None)) == []
    await workers[0].commit(0, [back])
    await workers[0].rest()
    clock.advance(round(ASK_AGAIN_S * 1000))
    assert await workers[1].offer(1, [CUP], 1, Limit(1, None)) == [offer]


async def test_limit_lowered_and_raised(redis: Redis, workers: list[Worker], clock: ManualClock) -> None:
    """Under a limit below what is out nothing is granted; who has not heard of the newest is held to it too."""
    old, lowered, raised = ({COFFEE: Limit(bound, None)} for bound in (5, 3, 6))
    await workers[0].commit(0, await workers[0].decide(0, [CUP], 4, old, version=1))
    await workers[0].rest()
    assert await workers[1].decide(1, [CUP], 1, lowered, version=2) == []
    assert await workers[2].decide(2, [CUP], 1, old, version=1) == []
    clock.advance(round(ASK_AGAIN_S * 1000))
    assert len(await workers[2].decide(2, [CUP], 1, raised, version=3)) == 1
    assert len(await workers[1].decide(1, [CUP], 9, lowered, version=2)) == 1
    assert (await used_of(redis)).held_pieces == 2


async def test_periods_are_forgotten(redis: Redis, workers: list[Worker], clock: ManualClock) -> None:
    """Everything of a pool whose period is long over expires together; what has no period stays."""
    soon_s = int((await redis.time())[0]) + 3_600
    for pool, expires_s in ((COFFEE, 0), (TEA, soon_s)):
        charge, limit = Charge(pool=pool, pieces=1), Limit(10, None, expires_s)
        commit = await workers[0].prepare(0, await workers[0].decide(0, [charge], 1, {pool: limit}))
        commit.spent[pool].expires_s = expires_s
        await workers[0].send(commit)
    for name in (keys.budget, lambda pool: keys.spent(0, pool)):
        assert await redis.expiretime(name(COFFEE)) == -1
        assert await redis.expiretime(name(TEA)) == soon_s
    await redis.delete(keys.budget(TEA), keys.spent(0, TEA))
    await workers[0].rest()
    assert not await redis.exists(keys.budget(TEA))
    # Who dies before it has asked the pool leaves a name on the list, and its heir no pool for ever.
    await redis.sadd(keys.leases(0), TEA)
    await Worker(redis, clock).take_over(0)
    assert 0 < await redis.ttl(keys.budget(TEA)) <= 86_400


_LIMITS = st.builds(
    lambda cups, pots, cents: {COFFEE: Limit(cups, None), TEA: Limit(pots, cents)},
    st.integers(0, 40),
    st.integers(0, 40),
    st.none() | st.integers(0, 2_500),
)
#: One of the three, or whoever is the owner.
_OWNER = 3
_WORKERS = st.sampled_from([_OWNER, _OWNER, _OWNER, 0, 1, 2])
_PARTITIONS = st.integers(0, PARTITIONS - 1)
_CHARGES = st.sampled_from([[CUP], [POT], [CUP, POT]])
#: What happens in the middle of a step, and after how many replies.
_MISHAPS = st.none() | st.tuples(st.sampled_from(["lost", "overtaken"]), st.integers(1, 5))


class _Machine(RuleBasedStateMachine):
    """Three workers that take partitions from each other, at any moment, and don't know it at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: Client) -> None:
        super().__init__()
        self._loop = loop
        self.client = client
        self.client.after(0, None)
        self.run(client.flushdb())
        self.clock = ManualClock()
        self.workers = [Worker(client, self.clock) for _ in range(3)]
        #: Who took each partition over last.
        self.owners: dict[int, Worker] = {}
        #: By version, from 1 on; and the newest that anyone came with.
        self.limits = [{COFFEE: Limit(20, None), TEA: Limit(30, 1_400)}]
        self.known = 0
        self.granted = dict.fromkeys((COFFEE, TEA), (0, 0))
        for partition, worker in enumerate(self.workers):
            self.run(self.take(worker, partition))

    def run(self, answer: Awaitable[T]) -> T:
        return self._loop.run_until_complete(answer)

    async def take(self, worker: Worker, *partitions: int) -> None:
        for partition in partitions:
            self.owners[partition] = worker
        await worker.take_over(*partitions)

    def attempt(self, worker: Worker, partition: int, step: Awaitable[object], mishap: tuple[str, int] | None) -> None:
        """Do it; if something goes wrong the worker knows nothing any more, as an engine."""

        async def lost() -> None:
            raise ConnectionLost

        async def overtaken() -> None:
            await self.take(next(each for each in self.workers if each is not worker), partition)

        what, after = mishap or ("", 0)
        self.client.after(after, {"lost": lost, "overtaken": overtaken}.get(what))
        try:
            self.run(step)
        except (Fenced, Unavailable):
            worker.owned = {}
        finally:
            self.client.after(0, None)

    @rule(worker=st.integers(0, 2), partitions=st.sets(_PARTITIONS, min_size=1), is_lost=st.none() | st.integers(1, 4))
    def deal(self, worker: int, partitions: set[int], is_lost: int | None) -> None:
        """Partitions change hands; who had them before goes on as if nothing had been."""
        taker = self.workers[worker]
        mishap = ("lost", is_lost) if is_lost is not None else None
        self.attempt(taker, -1, self.take(taker, *sorted(partitions)), mishap)

    @rule(
        worker=_WORKERS,
        partition=_PARTITIONS,
        charges=_CHARGES,
        wishes=st.integers(1, 6),
        behind=st.sampled_from([0, 0, 1]),
        mishap=_MISHAPS,
        overlapping=st.booleans(),
        pause_ms=st.sampled_from([0, 0, 1_500]),
    )
    def offer(
        self,
        worker: int,
        partition: int,
        charges: list[Charge],
        wishes: int,
        behind: int,
        mishap: tuple[str, int] | None,
        overlapping: bool,
        pause_ms: int,
    ) -> None:
        """A batch; or two, the second while the commit of the first is on its way."""
        maker = self.workers[worker] if worker != _OWNER else self.owners[partition]
        if partition not in maker.owned:
            return
        version = max(0, len(self.limits) - 1 - behind)
        self.known = max(self.known, version)

        async def batches() -> None:
            limits = self.limits[version]
            made = await maker.decide(partition, charges, wishes, limits, version + 1)
            self.clock.advance(pause_ms)
            if not overlapping:
                await maker.commit(partition, made)
                return
            sending = asyncio.create_task(maker.send(await maker.prepare(partition, made)))
            try:
                made = await maker.decide(partition, charges, wishes, limits, version + 1)
            finally:
                await sending
            await maker.commit(partition, made)

        self.attempt(maker, partition, batches(), mishap)

    @rule(partition=_PARTITIONS, many=st.integers(1, 3), mishap=_MISHAPS)
    def not_sent(self, partition: int, many: int, mishap: tuple[str, int] | None) -> None:
        """The last of the offers that stand turn out not to have been sent."""
        worker, standing = self.owners[partition], self.run(self.standing(partition))
        if standing and partition in worker.owned:
            back = [msgspec.structs.replace(offer, back=True) for offer in standing[-many:]]
            self.attempt(worker, partition, worker.commit(partition, back), mishap)

    @rule(worker=st.integers(0, 2), partition=_PARTITIONS, mishap=_MISHAPS)
    def give_back(self, worker: int, partition: int, mishap: tuple[str, int] | None) -> None:
        self.clock.advance(1_000)
        giver = self.workers[worker]
        self.attempt(giver, partition, giver.leases.give_back(), mishap)

    @precondition(lambda self: len(self.limits) < 6)
    @rule(limits=_LIMITS)
    def change_the_limits(self, limits: dict[str, Limit]) -> None:
        self.limits.append(limits)

    @rule(taker=_PARTITIONS)
    def quiet(self, taker: int) -> None:
        """When nothing happens, all that is not used can be had by any one partition, and nobody keeps lists."""
        orphans = [partition for partition, owner in self.owners.items() if partition not in owner.owned]
        fresh = Worker(self.client, self.clock)
        self.run(self.take(fresh, *orphans))
        for worker in {id(each): each for each in self.owners.values()}.values():
            # What others own by now is not its to give back; an engine would have been told so by its log.
            if all(self.owners[n] is worker for n in worker.owned):
                self.run(worker.rest())
            else:
                self.run(self.take(worker, *[n for n in worker.owned if self.owners[n] is worker]))
                self.run(worker.rest())
        for partition in range(PARTITIONS):
            assert not self.run(self.client.exists(keys.leases(partition)))
        version = len(self.limits)
        self.known = version - 1
        owner = self.owners[taker]
        for pool, charge in ((COFFEE, CUP), (TEA, POT)):
            out = self.run(used_of(self.client, pool))
            assert out.held_pieces == out.held_cents == 0
            pieces, cents, _ = self.limits[-1][pool]
            rooms = [(pieces or 0) - out.used_pieces]
            if cents is not None:
                rooms.append((cents - out.used_cents) // 70)
            made = self.run(owner.decide(taker, [charge], 50, self.limits[-1], version))
            assert len(made) == max(0, min(rooms))
            self.run(owner.commit(taker, made))

    async def standing(self, partition: int) -> list[Offer]:
        """The offers of a partition that are out, by its outbox."""
        entries: list[Any] = await self.client.xrange(keys.outbox(partition)) or []
        offers = [msgspec.json.decode(fields[b"e"], type=Offer) for _, fields in entries]
        standing = [offer for offer in offers if not offer.back]
        for offer in offers:
            if offer.back:
                standing.remove(msgspec.structs.replace(offer, back=False))
        return standing

    @invariant()
    def never_overspent(self) -> None:
        """Not by the outboxes, nor by what the store counts; and grants rise only within the newest limit."""
        out = {n: self.run(self.standing(n)) for n in range(PARTITIONS)}
        for pool in (COFFEE, TEA):
            grants = [self.granted_to(pool, partition) for partition in range(PARTITIONS)]
            for unit, name in ((0, "pieces"), (1, "cents")):
                of_each = [
                    sum(getattr(each, name) for offer in out[n] for each in offer.charges if each.pool == pool)
                    for n in out
                ]
                counted = [int(self.run(self.client.hget(keys.spent(n, pool), name)) or 0) for n in out]
                assert counted == of_each
                assert all(used <= grant[unit] for used, grant in zip(of_each, grants, strict=True))
                granted = int(self.run(self.client.hget(keys.budget(pool), name)) or 0)
                assert granted == sum(grant[unit] for grant in grants)
                newest = self.limits[self.known][pool][unit]
                assert granted <= self.granted[pool][unit] or newest is None or granted <= newest
            self.granted[pool] = (sum(grant[0] for grant in grants), sum(grant[1] for grant in grants))

    def granted_to(self, pool: str, partition: int) -> tuple[int, int]:
        row = self.run(self.client.hget(keys.budget(pool), str(partition)))
        _, pieces, cents = (row or b"0 0 0").split()
        return int(pieces), int(cents)


def test_any_order_of_steps(valkey_url: str) -> None:
    """Whatever workers do in whatever order, and whatever befalls them in the middle of it."""
    loop = asyncio.new_event_loop()
    client = cast("Client", Client.from_url(valkey_url))

    class Machine(_Machine):
        def __init__(self) -> None:
            super().__init__(loop, client)

    try:
        run_state_machine_as_test(Machine, settings=settings(max_examples=30, stateful_step_count=30))
    finally:
        loop.run_until_complete(client.aclose())
        loop.close()
