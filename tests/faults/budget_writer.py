"""A process that draws on one budget, as the engine and the dispatcher would, until it is told to stop or is killed.

It goes through the same decisions as its siblings, in an order of its own, over and over; after a restart from the
beginning, so that most of what it asks was asked before. It loses some replies on purpose and asks again. What it was
answered goes to its journal, one line each, written when the answer is there: what a killed writer was told survives.
"""

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from redis.asyncio import Redis

from nearcast.clock import SystemClock
from nearcast.errors import Unavailable
from nearcast.ids import DecisionId, PromotionId
from server.budgets import Amount, Answer, Budgets, Limit, State
from server.store import client_of
from server.valkey import die_with_parent

PROMOTION = PromotionId("rush")
BUDGET = 1_000
SHARE = Amount(1, 250)
#: How many decisions a writer has in hand at once.
_HANDS = 4
#: How many replies are lost, and how many finished decisions are asked for again in each round.
_LOST = 0.03
_AGAIN = 0.05

T = TypeVar("T")


#: "" is nearcast as it is; the others are made wrong on purpose, for the checkers to find.
Variant = Literal["", "fresh ids", "check, then act"]


class Orders(msgspec.Struct, frozen=True):
    """What a writer is started with. All of a run share everything but the journal and the seed."""

    url: str
    journal: Path
    log: Path
    #: The writer begins when this file is there, which holds the time of that in ms; and ends when the other is.
    go: Path
    stop: Path
    seed: str
    decisions: int
    #: Over how long the reservations that nobody comes back for run out.
    spread_ms: int
    variant: Variant = ""


def plan(n: int) -> Literal["settle", "release", "abandon"]:
    """What is to become of the n-th decision; the same for every writer."""
    return "abandon" if n % 10 < 2 else "release" if n % 10 == 2 else "settle"


class Writer:
    """One process's share of the work."""

    def __init__(self, orders: Orders, began_ms: int, budgets: Budgets, journal: int) -> None:
        self._orders = orders
        self._began_ms = began_ms
        self._budgets = budgets
        self._journal = journal
        self._chance = random.Random(orders.seed)
        self._attempts = 0

    async def work(self) -> None:
        """Go through the decisions, round after round, until told to stop."""
        order = list(range(self._orders.decisions))
        self._chance.shuffle(order)
        finished: set[int] = set()
        while not self._orders.stop.exists():
            round_ = iter([n for n in order if n not in finished or self._chance.random() < _AGAIN])
            async with asyncio.TaskGroup() as hands:
                for _ in range(_HANDS):
                    hands.create_task(self._go_through(round_, finished))

    async def _go_through(self, round_: Iterator[int], finished: set[int]) -> None:
        for n in round_:
            if self._orders.stop.exists():
                return
            if await self._carry_out(n):
                finished.add(n)

    async def _carry_out(self, n: int) -> bool:
        """Take one decision as far as it goes; whether that is its end."""
        decision = DecisionId(f"d-{n}")
        answer = await self._insist(lambda: self._reserve(decision, n))
        self._note(decision, answer.reason or answer.verdict)
        if answer.verdict == "granted":
            issued = (await self._insist(lambda: self._budgets.usage(PROMOTION))).pieces
            if issued > BUDGET:
                self._note(decision, "overspent")
        if answer.verdict == "refused":
            return answer.reason != "exhausted"
        if plan(n) == "settle":
            self._note(decision, await self._insist(lambda: self._settle(decision)))
        elif plan(n) == "release":
            self._note(decision, await self._insist(lambda: self._budgets.release(PROMOTION, decision)))
        return True

    async def _reserve(self, decision: DecisionId, n: int) -> Answer:
        until = self._expires_ms(n)
        limit = Limit(BUDGET)
        if self._orders.variant == "fresh ids":
            self._attempts += 1
            decision = DecisionId(f"{decision}/{os.getpid()}-{self._attempts}")
        elif self._orders.variant == "check, then act":
            if (await self._budgets.remaining(PROMOTION, limit)).pieces == 0:
                return Answer("refused", "exhausted")
            await asyncio.sleep(0.005)
            limit = Limit()
        return await self._budgets.reserve(PROMOTION, decision, SHARE, limit, until)

    def _expires_ms(self, n: int) -> int:
        """Abandoned decisions run out one by one within the run, the others long after it."""
        return self._began_ms + (500 + n * 7_919 % self._orders.spread_ms if plan(n) == "abandon" else 600_000)

    async def _settle(self, decision: DecisionId) -> State:
        state = await self._budgets.settle(PROMOTION, decision)
        return "settled" if self._orders.variant == "fresh ids" else state

    async def _insist(self, step: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Repeat a step until its answer arrives. Some answers are not waited for: whether it was done is unknown."""
        while True:
            patience_s = 0.001 if self._chance.random() < _LOST else None
            try:
                async with asyncio.timeout(patience_s):
                    return await step()
            except TimeoutError:
                continue
            except Unavailable:
                await asyncio.sleep(0.02)

    def _note(self, decision: DecisionId, what: str) -> None:
        os.write(self._journal, f"{decision} {what}\n".encode())


async def write(orders: Orders) -> None:
    """Work from the word go to the order to stop."""
    journal = os.open(orders.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    store: Redis = client_of(orders.url)
    os.write(journal, b"writer up\n")
    while not orders.go.exists():
        await asyncio.sleep(0.005)
    writer = Writer(orders, int(orders.go.read_text()), Budgets(store, SystemClock()), journal)
    await writer.work()
    with contextlib.suppress(Unavailable):
        await store.aclose()
    os.close(journal)


def run(orders: Orders) -> None:
    """What the process does."""
    die_with_parent()
    sys.stderr = orders.log.open("a")
    asyncio.run(write(orders))
