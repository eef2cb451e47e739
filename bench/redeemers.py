"""Whether a coupon can be spent twice: 64 redeemers at once, killed processes, a killed store, thousands of rounds.

    python -m bench.redeemers [--rounds 10000] [--kills 500] [--store-kills 5] [--seed 1]

Each round is a new coupon. Eight processes redeem it eight times each, at the same time, every time for another
purchase; some are killed (SIGKILL) in the middle, started anew, and ask again, as tills do. Then all ask once more, and
it must be so that exactly one purchase was told that it has the coupon, that the store says the same, that everybody
else was told that it is gone, and that nobody was told first one thing and then another. The store is killed between
rounds and in the middle of some; each time it is back, and in the end, it must still know the winners of all rounds.
The first thing that isn't so ends it with an error.

The last line is one JSON object.
"""

import argparse
import asyncio
import contextlib
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal, NamedTuple

from nearcast import keys
from nearcast.clock import SystemClock
from nearcast.errors import InputError, NotFound, Unavailable
from nearcast.ids import CouponCode, CustomerId, DecisionId, PromotionId, StoreId
from server.coupons import AppliedOffer, CouponBook
from server.store import client_of
from server.valkey import die_with_parent
from tests.services.forks import CONTEXT
from tests.services.valkey import ValkeyProcess

PROCESSES, HANDS = 8, 8
STORE = StoreId("graben")
WON = "redeemed"
_SECRET = b"a secret of the redeemers, long enough"
_KILLED_WITHIN_S = 0.01

#: How long a process may take to answer, with a killed store in between.
_ANSWERS_WITHIN_S = 60.0

#: "" is nearcast as it is; the others are made wrong on purpose, for the check to find.
Variant = Literal["", "look, then redeem", "no append-only file"]


class Faults(NamedTuple):
    """How many processes, and how often the store, are killed over all rounds: the store by turns before a round and
    in the middle of one.
    """

    kills: int
    store_kills: int


def work(url: str, line: Connection, variant: Variant) -> None:
    """What a process does: redeem the code that it is told for the purchases it is told, and say what came of each."""
    die_with_parent()
    with asyncio.Runner() as runner:
        runner.run(_answer_all(url, line, variant))


async def _answer_all(url: str, line: Connection, variant: Variant) -> None:
    redis = client_of(url)
    book = CouponBook(redis, _SECRET, SystemClock())

    async def attempt(code: CouponCode, purchase: str) -> str:
        while True:
            try:
                if variant == "look, then redeem":
                    if (await book.validate(code)).state == "redeemed":
                        return "already_redeemed"
                    await redis.hset(keys.coupon(code), mapping={"state": "redeemed", "redemption": purchase})
                    return WON
                return (await book.redeem(code, STORE, purchase)).state
            except InputError as error:
                return error.reason
            except Unavailable:
                await asyncio.sleep(0.02)

    while True:
        code, purchases = await asyncio.to_thread(line.recv)
        said = await asyncio.gather(*(attempt(code, purchase) for purchase in purchases))
        line.send(dict(zip(purchases, said, strict=True)))


class Redeemers:
    """Eight processes, each with a line to it."""

    def __init__(self, url: str, variant: Variant) -> None:
        self._url = url
        self._variant = variant
        self._processes = [self._start() for _ in range(PROCESSES)]

    def ask(
        self, code: CouponCode, kill: int | None, after_s: float, store: ValkeyProcess | None
    ) -> tuple[dict[str, set[str]], bool]:
        """Have all redeem one coupon, and then once more; what each purchase was told, and whether a kill was in time.

        The process `kill` is killed, and asks again; `store` is killed, and started again.
        """
        told: dict[str, set[str]] = {}
        in_time = False
        for n in range(PROCESSES):
            self._send(n, code)
        if kill is not None or store is not None:
            time.sleep(after_s)
        if store is not None:
            store.kill()
            in_time = not all(line.poll() for _, line in self._processes)
            store.start()
        if kill is not None:
            process, line = self._processes[kill]
            process.kill()
            process.join()
            if line.poll():
                # It had said so before.
                self._note(told, line)
            in_time = in_time or not told
            line.close()
            self._processes[kill] = self._start()
            self._send(kill, code)
        for _, line in self._processes:
            self._note(told, line)
        for n in range(PROCESSES):
            self._send(n, code)
        for _, line in self._processes:
            self._note(told, line)
        return told, in_time

    def close(self) -> None:
        for process, line in self._processes:
            process.kill()
            process.join()
            line.close()

    def _send(self, n: int, code: CouponCode) -> None:
        self._processes[n][1].send((code, [f"{code}-{n}-{hand}" for hand in range(HANDS)]))

    def _note(self, told: dict[str, set[str]], line: Connection) -> None:
        if not line.poll(_ANSWERS_WITHIN_S):
            raise TimeoutError(f"a process has not answered in {_ANSWERS_WITHIN_S:g} s")
        try:
            said: Mapping[str, str] = line.recv()
        except (EOFError, ConnectionResetError):
            return
        for purchase, what in said.items():
            told.setdefault(purchase, set()).add(what)

    def _start(self) -> tuple[BaseProcess, Connection]:
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=work, args=(self._url, theirs, self._variant), daemon=True)
        process.start()
        theirs.close()
        return process, ours


def wrong(told: Mapping[str, set[str]], holder: str | None) -> list[str]:
    """What must not be after a round, as sentences."""
    winners = sorted(purchase for purchase, said in told.items() if WON in said)
    found = []
    if len(winners) != 1:
        found.append(f"{len(winners)} purchases were told that they have the coupon: {winners[:5]}")
    if holder is None or holder not in winners:
        found.append(f"the store says that {holder} has it")
    if len(told) != PROCESSES * HANDS:
        found.append(f"{len(told)} purchases were told anything")
    if odd := {what for said in told.values() for what in said} - {WON, "already_redeemed"}:
        found.append(f"some were told {sorted(odd)}")
    if both := [purchase for purchase, said in told.items() if len(said) > 1]:
        found.append(f"told one thing first and then another: {both[:5]}")
    return found


def storm(
    folder: Path, rounds: int, faults: Faults, seed: int, variant: Variant = ""
) -> tuple[list[str], Counter[str]]:
    """So many rounds; what went wrong in the first that did, and how much of everything there was."""
    chance = random.Random(seed)
    kills = set(chance.sample(range(rounds), faults.kills))
    store_kills = chance.sample(range(1, rounds), faults.store_kills)
    between, in_the_middle = set(store_kills[::2]), set(store_kills[1::2])
    options = ["--appendonly", "no"] if variant == "no append-only file" else []
    valkey = ValkeyProcess(folder, "--appendfsync", "always" if store_kills else "everysec", *options)
    valkey.start()
    redeemers = Redeemers(valkey.url, variant)
    count: Counter[str] = Counter()
    won: dict[CouponCode, str] = {}
    try:
        for n in range(rounds):
            if n in between:
                valkey.kill()
                valkey.start()
                if found := asyncio.run(_forgotten(valkey.url, won)):
                    return [f"before round {n}: {each}" for each in found], count
            code = asyncio.run(_apply(valkey.url, n))
            kill = chance.randrange(PROCESSES) if n in kills else None
            after_s = chance.uniform(0, _KILLED_WITHIN_S)
            told, in_time = redeemers.ask(code, kill, after_s, valkey if n in in_the_middle else None)
            count["kills"] += kill is not None
            count["store_kills"] += n in between or n in in_the_middle
            count["in_time"] += in_time
            count["rounds"] += 1
            count["won"] += sum(WON in said for said in told.values())
            count["refused"] += sum(WON not in said for said in told.values())
            if found := wrong(told, asyncio.run(_holder(valkey.url, code))):
                return [f"round {n}: {each}" for each in found], count
            (won[code],) = (purchase for purchase, said in told.items() if WON in said)
            if n in in_the_middle and (found := asyncio.run(_forgotten(valkey.url, won))):
                return [f"after round {n}: {each}" for each in found], count
        if found := asyncio.run(_forgotten(valkey.url, won)):
            return [f"in the end: {each}" for each in found], count
    finally:
        redeemers.close()
        valkey.stop()
    return [], count


async def _apply(url: str, n: int) -> CouponCode:
    clock = SystemClock()
    async with client_of(url) as redis:
        offer = AppliedOffer(
            customer=CustomerId(f"c-{n}"),
            decision=DecisionId(f"d-{n}"),
            promotion=PromotionId("rush"),
            expires_ms=clock.now_ms() + 3_600_000,
        )
        return (await CouponBook(redis, _SECRET, clock).apply(offer)).code


async def _holder(url: str, code: CouponCode) -> str | None:
    async with client_of(url) as redis:
        with contextlib.suppress(NotFound):
            return (await CouponBook(redis, _SECRET, SystemClock()).validate(code)).redemption_id
    return None


async def _forgotten(url: str, won: Mapping[CouponCode, str]) -> list[str]:
    """The winners that the store knows no more."""
    async with client_of(url) as redis:
        book = CouponBook(redis, _SECRET, SystemClock())
        coupons = await asyncio.gather(*(book.validate(code) for code in won), return_exceptions=True)
    lost = []
    for purchase, coupon in zip(won.values(), coupons, strict=True):
        if isinstance(coupon, BaseException) or (coupon.state, coupon.redemption_id) != (WON, purchase):
            lost.append(purchase)
    return [f"the store has forgotten {len(lost)} winners: {lost[:5]}"] if lost else []


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.redeemers", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--store-kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(min(asked.kills, asked.rounds), min(asked.store_kills, asked.rounds - 1))
        found, count = storm(Path(folder), asked.rounds, faults, asked.seed)
    print(
        json.dumps({**count, "redeemers": PROCESSES * HANDS, "wrong": found, "seconds": time.perf_counter() - began_s})
    )
    if found:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
