"""Budgets, on a real store."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from nearcast.clock import ManualClock
from nearcast.errors import Conflict, Unavailable
from nearcast.ids import DecisionId, PromotionId
from server.budgets import KEEP_MS, Amount, Answer, Budgets, Limit, Tidied

COFFEE, TEA = PromotionId("coffee"), PromotionId("tea")
ONE = Amount()
GRANTED, ALREADY = Answer("granted"), Answer("already")
EXHAUSTED, RELEASED, TOO_LATE = (Answer("refused", why) for why in ("exhausted", "released", "too_late"))
MINUTE_MS = 60_000

T = TypeVar("T")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def budgets(redis: Redis, clock: ManualClock) -> Budgets:
    return Budgets(redis, clock)


def named(name: str | int) -> DecisionId:
    return DecisionId(f"d-{name}")


async def test_fifty_at_once(budgets: Budgets, clock: ManualClock) -> None:
    """50 decisions at once, each asked for twice, on a budget of 20: 20 of them get a share, each one share."""
    until = clock.now_ms() + MINUTE_MS
    asked = [named(n % 50) for n in range(100)]
    answers = await asyncio.gather(*(budgets.reserve(COFFEE, each, ONE, Limit(20), until) for each in asked))
    granted = {each for each, answer in zip(asked, answers, strict=True) if answer == GRANTED}
    assert answers.count(GRANTED) == len(granted) == 20
    assert answers.count(ALREADY) == 20
    assert answers.count(EXHAUSTED) == 60
    assert (await budgets.usage(COFFEE)).pieces == 20


async def test_money(budgets: Budgets, clock: ManualClock) -> None:
    """Pieces and cents are limited each by itself; what one decision takes may be all cents or all pieces."""
    until, limit = clock.now_ms() + MINUTE_MS, Limit(3, 1_000)
    assert await budgets.reserve(COFFEE, named(1), Amount(1, 700), limit, until) == GRANTED
    assert await budgets.reserve(COFFEE, named(2), Amount(1, 301), limit, until) == EXHAUSTED
    assert await budgets.reserve(COFFEE, named(3), Amount(0, 300), limit, until) == GRANTED
    assert await budgets.remaining(COFFEE, limit) == Limit(2, 0)
    assert await budgets.reserve(COFFEE, named(4), Amount(2, 0), limit, until) == GRANTED
    assert await budgets.reserve(COFFEE, named(5), ONE, limit, until) == EXHAUSTED
    assert await budgets.usage(COFFEE) == (3, 1_000, 0, 0)
    assert await budgets.release(COFFEE, named(4)) == "released"
    assert await budgets.settle(COFFEE, named(1)) == "settled"
    assert await budgets.release(COFFEE, named(3)) == "released"
    assert await budgets.usage(COFFEE) == (0, 0, 1, 700)


async def test_no_limit_is_counted(budgets: Budgets, clock: ManualClock) -> None:
    """A promotion without a limit is granted whatever it asks for, and a limit that comes later knows of it."""
    until = clock.now_ms() + MINUTE_MS
    for n in range(3):
        assert await budgets.reserve(COFFEE, named(n), Amount(1, 10**12), Limit(), until) == GRANTED
    assert await budgets.remaining(COFFEE, Limit()) == Limit()
    assert (await budgets.usage(COFFEE)).cents == 3 * 10**12
    assert await budgets.reserve(COFFEE, named(3), ONE, Limit(cents=10**12, version=1), until) == EXHAUSTED


async def test_what_changes_nothing_writes_nothing(budgets: Budgets, redis: Redis, clock: ManualClock) -> None:
    """An exhausted budget, asked again and again, costs the store no write; nor does a repetition."""
    until, limit = clock.now_ms() + MINUTE_MS, Limit(1, version=2)
    assert await budgets.reserve(COFFEE, named(1), ONE, limit, until) == GRANTED
    assert await budgets.settle(COFFEE, named(1)) == "settled"
    before = (await redis.info("persistence"))["rdb_changes_since_last_save"]
    assert await budgets.reserve(COFFEE, named(1), ONE, limit, until) == ALREADY
    assert await budgets.settle(COFFEE, named(1)) == "settled"
    assert await budgets.reserve(COFFEE, named(2), ONE, limit, until) == EXHAUSTED
    assert await budgets.reserve(COFFEE, named(2), ONE, Limit(9, version=1), until) == EXHAUSTED
    assert (await redis.info("persistence"))["rdb_changes_since_last_save"] == before


async def test_promotions_have_their_own(budgets: Budgets, clock: ManualClock) -> None:
    """One promotion's use is nothing to another's, nor is its decision."""
    until = clock.now_ms() + MINUTE_MS
    for promotion in (COFFEE, TEA):
        assert await budgets.reserve(promotion, named(1), ONE, Limit(1), until) == GRANTED
    assert await budgets.settle(COFFEE, named(1)) == "settled"
    assert await budgets.release(TEA, named(1)) == "released"


async def test_final_is_final(budgets: Budgets, clock: ManualClock) -> None:
    """What was settled can't be given back, what was given back can't be used, what was never held is neither."""
    until = clock.now_ms() + MINUTE_MS
    for name in ("used", "given back"):
        assert await budgets.reserve(COFFEE, named(name), ONE, Limit(5), until) == GRANTED
    for _ in range(2):
        assert await budgets.settle(COFFEE, named("used")) == "settled"
        assert await budgets.release(COFFEE, named("given back")) == "released"
    assert await budgets.release(COFFEE, named("used")) == "settled"
    assert await budgets.settle(COFFEE, named("given back")) == "released"
    assert await budgets.settle(COFFEE, named("stranger")) == "unknown"
    assert await budgets.release(COFFEE, named("stranger")) == "unknown"
    assert await budgets.reserve(COFFEE, named("used"), ONE, Limit(5), until) == ALREADY
    assert await budgets.reserve(COFFEE, named("given back"), ONE, Limit(5), until) == RELEASED
    assert await budgets.usage(COFFEE) == (0, 0, 1, 0)


async def test_limit_lowered(budgets: Budgets, clock: ManualClock) -> None:
    """Under a limit below what is out nothing is granted until enough came back; repetitions are answered as before."""
    until = clock.now_ms() + MINUTE_MS
    for n in range(5):
        assert await budgets.reserve(COFFEE, named(n), ONE, Limit(5, version=1), until) == GRANTED
    lowered = Limit(3, version=2)
    assert await budgets.remaining(COFFEE, lowered) == Limit(0, version=2)
    assert await budgets.reserve(COFFEE, named(0), ONE, lowered, until) == ALREADY
    for n in range(2):
        assert await budgets.release(COFFEE, named(n)) == "released"
        assert await budgets.reserve(COFFEE, named("next"), ONE, lowered, until) == EXHAUSTED
    assert await budgets.release(COFFEE, named(2)) == "released"
    assert await budgets.reserve(COFFEE, named("next"), ONE, lowered, until) == GRANTED


async def test_the_later_of_one_version(budgets: Budgets, clock: ManualClock) -> None:
    """Of two limits under one version the later counts, also for those whose version is older."""
    until, older = clock.now_ms() + MINUTE_MS, Limit(9)
    assert await budgets.reserve(COFFEE, named(1), ONE, Limit(1, version=1), until) == GRANTED
    assert await budgets.reserve(COFFEE, named(2), ONE, older, until) == EXHAUSTED
    assert await budgets.reserve(COFFEE, named(2), ONE, Limit(3, version=1), until) == GRANTED
    assert await budgets.remaining(COFFEE, older) == Limit(1, version=1)
    assert await budgets.reserve(COFFEE, named(3), ONE, older, until) == GRANTED
    assert await budgets.reserve(COFFEE, named(4), ONE, older, until) == EXHAUSTED


async def test_who_missed_the_change_is_held_to_it(budgets: Budgets, clock: ManualClock) -> None:
    """A worker whose world is older than another's can't grant by its old limit, in either direction."""
    until = clock.now_ms() + MINUTE_MS
    old, lowered, raised = Limit(5, 500, version=7), Limit(1, 100, version=8), Limit(2, version=9)
    assert await budgets.reserve(COFFEE, named(1), ONE, lowered, until) == GRANTED
    assert await budgets.reserve(COFFEE, named(2), ONE, old, until) == EXHAUSTED
    assert await budgets.remaining(COFFEE, old) == Limit(0, 100, version=8)
    assert await budgets.reserve(COFFEE, named(1), ONE, raised, until) == ALREADY
    assert await budgets.reserve(COFFEE, named(2), Amount(1, 900), lowered, until) == GRANTED
    assert await budgets.remaining(COFFEE, old) == Limit(0, None, version=9)


async def test_a_crash_leaks_until_the_reservation_ends(budgets: Budgets, clock: ManualClock) -> None:
    """A reservation that nobody came back for is given back at its end, not earlier; then it can't be settled."""
    until = clock.now_ms() + MINUTE_MS
    assert await budgets.reserve(COFFEE, named("lost"), ONE, Limit(1), until) == GRANTED
    clock.advance(MINUTE_MS - 1)
    assert await budgets.reconcile(COFFEE) == (0, 0)
    clock.advance(1)
    assert await budgets.reconcile(COFFEE) == Tidied(returned=1, forgotten=0)
    assert await budgets.settle(COFFEE, named("lost")) == "released"
    assert await budgets.reserve(COFFEE, named("lost"), ONE, Limit(1), until) == RELEASED
    assert (await budgets.usage(COFFEE)).pieces == 0


async def test_the_next_one_tidies_up(budgets: Budgets, clock: ManualClock) -> None:
    """Without any reconciliation, overdue reservations make room for whoever asks; one settled late still counts."""
    until = clock.now_ms() + MINUTE_MS
    for n in range(100):
        assert await budgets.reserve(COFFEE, named(n), ONE, Limit(100), until) == GRANTED
    clock.advance(MINUTE_MS)
    later = clock.now_ms() + MINUTE_MS
    assert await budgets.settle(COFFEE, named(0)) == "settled"
    assert await budgets.reserve(COFFEE, named("big"), Amount(100), Limit(100), later) == EXHAUSTED
    assert await budgets.reserve(COFFEE, named("fits"), Amount(99), Limit(100), later) == GRANTED
    assert await budgets.usage(COFFEE) == (99, 0, 1, 0)


async def test_too_late(budgets: Budgets, clock: ManualClock) -> None:
    """Who comes for the first time at its end or later gets nothing, and leaves nothing."""
    assert await budgets.reserve(COFFEE, named(1), ONE, Limit(1), clock.now_ms()) == TOO_LATE
    assert await budgets.reconcile(COFFEE) == (0, 0)
    assert await budgets.settle(COFFEE, named(1)) == "unknown"


@pytest.mark.parametrize("settled", [True, False])
async def test_forgotten_is_not_granted_again(redis: Redis, settled: bool) -> None:
    """A record is kept for a while after its end; then a late repetition is refused, by a clock that lags too."""
    start_ms = ManualClock().now_ms()
    clock, lagging = ManualClock(start_ms), ManualClock(start_ms)
    budgets, slow = Budgets(redis, clock), Budgets(redis, lagging)
    until = start_ms + MINUTE_MS
    assert await budgets.reserve(COFFEE, named(1), ONE, Limit(5), until) == GRANTED
    await (budgets.settle if settled else budgets.release)(COFFEE, named(1))
    clock.advance(MINUTE_MS + KEEP_MS - 1)
    assert await budgets.reconcile(COFFEE) == (0, 0)
    assert await slow.reserve(COFFEE, named(1), ONE, Limit(5), until) == (ALREADY if settled else RELEASED)
    clock.advance(1)
    assert await budgets.reconcile(COFFEE) == Tidied(returned=0, forgotten=1)
    for each in (budgets, slow):
        assert await each.reserve(COFFEE, named(1), ONE, Limit(5), until) == TOO_LATE
        assert await each.settle(COFFEE, named(1)) == "unknown"
    assert await slow.reserve(COFFEE, named(2), ONE, Limit(5), until) == TOO_LATE
    assert await slow.reserve(COFFEE, named(2), ONE, Limit(5), until + 1) == GRANTED
    assert (await budgets.usage(COFFEE)).settled_pieces == int(settled)


async def test_memory_is_bounded(budgets: Budgets, redis: Redis, clock: ManualClock) -> None:
    """However many decisions there were, what is kept is a few numbers and those of the last while."""
    for n in range(2_500):
        assert await budgets.reserve(COFFEE, named(n), ONE, Limit(5_000), clock.now_ms() + MINUTE_MS) == GRANTED
        if n % 2:
            assert await budgets.settle(COFFEE, named(n)) == "settled"
    clock.advance(MINUTE_MS + KEEP_MS)
    assert await budgets.reconcile(COFFEE) == Tidied(returned=1_250, forgotten=2_500)
    assert await redis.keys() == [b"nearcast:budget:{coffee}:totals"]
    assert await budgets.usage(COFFEE) == (0, 0, 1_250, 0)

    sizes = set()
    for n in range(200):
        clock.advance(KEEP_MS)
        assert await budgets.reserve(COFFEE, named(f"slow-{n}"), ONE, Limit(), clock.now_ms() + MINUTE_MS) == GRANTED
        sizes.add(await redis.hlen("nearcast:budget:{coffee}:records"))
    assert sizes <= {1, 2, 3}


async def test_one_decision_asks_for_one_thing(budgets: Budgets, clock: ManualClock) -> None:
    """A decision that comes back with another amount or end is an error that names both; it takes nothing."""
    until = clock.now_ms() + MINUTE_MS
    assert await budgets.reserve(COFFEE, named(1), Amount(1, 250), Limit(5), until) == GRANTED
    for amount, expires_ms in ((Amount(2, 250), until), (Amount(1, 0), until), (Amount(1, 250), until + 1)):
        with pytest.raises(Conflict, match=f"1 pieces and 250 cents until {until}.*promotion coffee, decision d-1"):
            await budgets.reserve(COFFEE, named(1), amount, Limit(5), expires_ms)
    assert await budgets.usage(COFFEE) == (1, 250, 0, 0)


@pytest.mark.parametrize("wrong", [-1, 10**12 + 1])
def test_amounts_and_limits_are_checked(wrong: int) -> None:
    """Nobody takes less than nothing, nor a number that the script could not count exactly."""
    for make in (Amount, Limit):
        with pytest.raises(ValueError, match=f"not {wrong} and 0"):
            make(wrong, 0)
        with pytest.raises(ValueError, match=f"not 0 and {wrong}"):
            make(0, wrong)


async def test_store_away(clock: ManualClock) -> None:
    """A store that can't be reached is `Unavailable`, not a crash."""
    async with Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0)) as nowhere:
        budgets = Budgets(nowhere, clock)
        for attempt in (
            budgets.reserve(COFFEE, named(1), ONE, Limit(1), clock.now_ms() + 1),
            budgets.settle(COFFEE, named(1)),
            budgets.release(COFFEE, named(1)),
            budgets.usage(COFFEE),
            budgets.remaining(COFFEE, Limit(1)),
            budgets.reconcile(COFFEE),
        ):
            with pytest.raises(Unavailable):
                await attempt


# Twelve decisions; what each asks for and until when belongs to it.
_START_MS = ManualClock().now_ms()
_AMOUNTS = {named(n): Amount(n % 3, 100 * (n % 4)) for n in range(12)}
_ENDS = {named(n): _START_MS + 40_000 * (1 + n) for n in range(12)}
_DECISIONS = st.sampled_from(sorted(_AMOUNTS))
_WORKERS = st.sampled_from([0, 1])


class _Machine(RuleBasedStateMachine):
    """Two workers with clocks of their own, and the budget as the documentation tells it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, redis: Redis) -> None:
        super().__init__()
        self._loop = loop
        self.run(redis.flushdb())
        self.clocks = (ManualClock(_START_MS), ManualClock(_START_MS))
        self.workers = [Budgets(redis, clock) for clock in self.clocks]
        self.records: dict[DecisionId, str] = {}
        self.settled = Amount(0)
        self.horizon_ms = 0
        self.limits = [Limit(8, 900, version=1)]
        self.known = -1
        #: Not the model's, but what was answered, whatever the model says.
        self.ever_granted: set[DecisionId] = set()

    def run(self, answer: Awaitable[T]) -> T:
        return self._loop.run_until_complete(answer)

    def held(self) -> Amount:
        shares = [_AMOUNTS[each] for each, state in self.records.items() if state == "held"]
        return Amount(sum(share.pieces for share in shares), sum(share.cents for share in shares))

    def tidy(self, now_ms: int) -> tuple[int, int]:
        returned = forgotten = 0
        for decision, state in list(self.records.items()):
            if state == "held" and _ENDS[decision] <= now_ms:
                self.records[decision] = "released"
                returned += 1
            if self.records[decision] != "held" and _ENDS[decision] <= now_ms - KEEP_MS:
                del self.records[decision]
                self.horizon_ms = max(self.horizon_ms, _ENDS[decision])
                forgotten += 1
        return returned, forgotten

    def room(self, share: Amount) -> bool:
        limit, held = self.limits[self.known], self.held()
        return all(
            most is None or used + more <= most
            for most, used, more in (
                (limit.pieces, held.pieces + self.settled.pieces, share.pieces),
                (limit.cents, held.cents + self.settled.cents, share.cents),
            )
        )

    def expected(self, decision: DecisionId, now_ms: int) -> Answer:
        state = self.records.get(decision)
        if state is not None:
            return RELEASED if state == "released" else ALREADY
        if _ENDS[decision] <= max(now_ms, self.horizon_ms):
            return TOO_LATE
        self.tidy(now_ms)
        if not self.room(_AMOUNTS[decision]):
            return EXHAUSTED
        self.records[decision] = "held"
        return GRANTED

    @rule(decision=_DECISIONS, worker=_WORKERS, behind=st.sampled_from([0, 0, 1]))
    def reserve(self, decision: DecisionId, worker: int, behind: int) -> None:
        version = max(0, len(self.limits) - 1 - behind)
        self.known = max(self.known, version)
        wanted = self.workers[worker].reserve(
            COFFEE, decision, _AMOUNTS[decision], self.limits[version], _ENDS[decision]
        )
        answer = self.run(wanted)
        assert answer == self.expected(decision, self.clocks[worker].now_ms())
        if answer == GRANTED:
            assert decision not in self.ever_granted
            self.ever_granted.add(decision)
            usage, limit = self.run(self.workers[worker].usage(COFFEE)), self.limits[self.known]
            assert limit.pieces is None or usage.pieces <= limit.pieces
            assert limit.cents is None or usage.cents <= limit.cents

    @rule(decision=_DECISIONS, worker=_WORKERS)
    def settle(self, decision: DecisionId, worker: int) -> None:
        if self.records.get(decision) == "held":
            self.records[decision] = "settled"
            share = _AMOUNTS[decision]
            self.settled = Amount(self.settled.pieces + share.pieces, self.settled.cents + share.cents)
        assert self.run(self.workers[worker].settle(COFFEE, decision)) == self.records.get(decision, "unknown")

    @rule(decision=_DECISIONS, worker=_WORKERS)
    def release(self, decision: DecisionId, worker: int) -> None:
        if self.records.get(decision) == "held":
            self.records[decision] = "released"
        assert self.run(self.workers[worker].release(COFFEE, decision)) == self.records.get(decision, "unknown")

    @rule(worker=_WORKERS)
    def reconcile(self, worker: int) -> None:
        tidied = self.run(self.workers[worker].reconcile(COFFEE))
        assert tidied == self.tidy(self.clocks[worker].now_ms())

    @rule(by_ms=st.sampled_from([20_000, 60_000, KEEP_MS]))
    def wait(self, by_ms: int) -> None:
        self.clocks[0].advance(by_ms)

    @rule()
    def wait_a_little(self) -> None:
        """The second worker's clock soon lags far behind the first one's."""
        self.clocks[1].advance(20_000)

    @precondition(lambda self: len(self.limits) < 6)
    @rule(pieces=st.none() | st.integers(0, 15), cents=st.none() | st.integers(0, 1_500))
    def change_the_limit(self, pieces: int | None, cents: int | None) -> None:
        self.limits.append(Limit(pieces, cents, version=len(self.limits) + 1))

    @invariant()
    def counted(self) -> None:
        held = self.held()
        expected = (held.pieces, held.cents, self.settled.pieces, self.settled.cents)
        assert self.run(self.workers[0].usage(COFFEE)) == expected


def test_any_order_of_steps(valkey_url: str) -> None:
    """Any sequence of steps by two workers with different clocks goes as the model says; nobody is granted twice."""
    loop = asyncio.new_event_loop()
    redis = Redis.from_url(valkey_url)

    class Machine(_Machine):
        def __init__(self) -> None:
            super().__init__(loop, redis)

    try:
        run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=40))
    finally:
        loop.run_until_complete(redis.aclose())
        loop.close()
