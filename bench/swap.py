"""What changing the model costs while events pour in: nothing may be lost or doubled, and nobody should notice.

    python -m bench.swap [--rate 20000] [--seconds 10] [--slices 6]

One engine process works off a steady load on Kafka (the city of `bench.engine`). In every other slice the registry is
told each second to use another redeem model, which the engine follows; latency is from handing an event to the log's
client until its batch is committed. Afterwards a second engine with an empty store works off the same log without any
swap: both must have made the same decisions, by id, and each engine must have counted as many as it has stored. The
stored decisions say which model each is owed to; a swapping slice in which not both have decided ends the benchmark.

The last line is one JSON object. On a machine that is too slow for the rate, latency says how far the engine fell
behind: then look at `kept_up`, and take a lower one.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from redis.asyncio import Redis

from bench.city import city
from bench.engine import latencies_ms, produce
from bench.processes import Order, Phase, Ready
from bench.rig import Rig, rig, site
from models.manifest import read_files
from models.training.train import run as train
from nearcast import keys
from nearcast.clock import SystemClock
from nearcast.decisions import Decision
from server.model_registry import ModelRegistry
from server.store import client_of
from server.valkey import EmbeddedValkey

_SWAP_EVERY_S = 1.0
_KEPT_UP_WITHIN_S = 1.0
_OF_TIMERS = frozenset({"cart_abandoned", "dwell", "exit"})
_AT_ONCE = 5_000
_DECISION = msgspec.json.Decoder(Decision)


class Made(NamedTuple):
    """A decision: the model that scored it, empty if none did; and whether a timer can have brought it about."""

    scored_by: str
    by_timer: bool


def of_events(made: Mapping[str, Made]) -> set[str]:
    """The decisions that don't depend on when an engine looks at the clock: timers are due earlier or later for it."""
    return {name for name, one in made.items() if not one.by_timer}


async def measure(arguments: argparse.Namespace) -> dict[str, object]:
    world = city(arguments.stores, random.Random(7))
    planned = arguments.customers + arguments.rate * arguments.seconds * arguments.slices
    async with site("kafka", None) as place, rig(place, world, arguments.customers, planned) as here:
        redis = client_of(place.redis)
        registry = ModelRegistry(redis, SystemClock(), budget_s=0.05)
        worker = await here.worker(first=True, customers=arguments.customers)
        version = await other_model(registry)
        phases: list[Phase] = []
        decided: dict[str, Made] = {}
        slices: list[Counter[str]] = []
        times: dict[bool, list[np.ndarray]] = {False: [], True: []}
        kept_up, swaps = True, 0
        try:
            await here.fill(here.walk.everyone())
            phases.append(await here.run(worker))
            decided |= await decisions(redis)
            for number in range(arguments.slices):
                swapping = number % 2 == 1
                await worker.ask(Order(record=True), Ready)
                async with swapped(registry, version, swapping) as done:
                    await produce(here, arguments.rate, arguments.seconds)
                swaps += done[0]
                ended_s = time.monotonic()
                commits = place.folder / "commits.json"
                phases.append(await worker.ask(Order(here.ends(), commits=str(commits)), Phase))
                kept_up &= phases[-1].ended_s - ended_s < _KEPT_UP_WITHIN_S
                times[swapping].append(latencies_ms(here, commits))
                new = await decisions(redis, decided.keys())
                decided |= new
                slices.append(Counter(made.scored_by for made in new.values() if made.scored_by))
                show(number, swapping, times[swapping][-1])
        finally:
            await worker.stop()
        counted = round(sum(phase.counters["nearcast_decisions"] for phase in phases))
        await redis.aclose()
        check_both_decided(slices, version)
        expected = await without_swaps(here, arguments.customers)
    steady, swapping_ms = (np.concatenate(times[kind]) for kind in (False, True))
    p99, p99_swapping = float(np.percentile(steady, 99)), float(np.percentile(swapping_ms, 99))
    return {
        "rate": arguments.rate,
        "kept_up": kept_up,
        "events": len(steady) + len(swapping_ms),
        "swaps": swaps,
        "decisions": len(decided),
        "decided_by": dict(sum(slices[0::2], Counter())),
        "decided_by_swapping": dict(sum(slices[1::2], Counter())),
        "lost": len(of_events(expected) - decided.keys()),
        "doubled": counted - len(decided) + len(of_events(decided) - expected.keys()),
        "p50_ms": round(float(np.percentile(steady, 50)), 2),
        "p50_swapping_ms": round(float(np.percentile(swapping_ms, 50)), 2),
        "p99_ms": round(p99, 2),
        "p99_swapping_ms": round(p99_swapping, 2),
        "p99_ratio": round(p99_swapping / p99, 3),
    }


async def other_model(registry: ModelRegistry) -> str:
    """A redeem model that scores otherwise than the shipped one: trained on some of the households."""
    print("training another model", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        await asyncio.to_thread(train, Path(folder), seed=8, households=300)
        return await registry.add(read_files(Path(folder)).content, by="bench")


@asynccontextmanager
async def swapped(registry: ModelRegistry, version: str, swapping: bool) -> AsyncIterator[list[int]]:
    """Meanwhile, with `swapping`, another model each second. Gives how often, when it is over."""
    done = [0]

    async def swap() -> None:
        while True:
            await asyncio.sleep(_SWAP_EVERY_S)
            if done[0] % 2:
                await registry.rollback("redeem", by="bench")
            else:
                await registry.activate(version, by="bench")
            done[0] += 1

    task = asyncio.create_task(swap()) if swapping else None
    try:
        yield done
    finally:
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if done[0] % 2:
                await registry.rollback("redeem", by="bench")


async def without_swaps(here: Rig, customers: int) -> dict[str, Made]:
    """What an engine with an empty store decides about the same log."""
    print("the same log again, without a swap", flush=True)
    folder = here.site.folder / "again"
    folder.mkdir()
    valkey = EmbeddedValkey(folder)
    await valkey.start()
    try:
        here.site = here.site._replace(redis=valkey.url)
        worker = await here.worker(first=True, customers=customers)
        try:
            await here.run(worker)
        finally:
            await worker.stop()
        redis = client_of(valkey.url)
        found = await decisions(redis)
        await redis.aclose()
        return found
    finally:
        await valkey.stop()


async def decisions(redis: Redis, known: Set[str] = frozenset()) -> dict[str, Made]:
    """All that the store has, by id, but for the known ones."""
    marker = keys.decision(0, "").split("}", 1)[1]
    names = [key async for key in redis.scan_iter(match=f"*{marker}*", count=_AT_ONCE)]
    new = [name for name in dict.fromkeys(names) if name.decode().split(marker, 1)[1] not in known]
    found = {}
    for first in range(0, len(new), _AT_ONCE):
        blobs = await redis.mget(new[first : first + _AT_ONCE])
        for decision in [_DECISION.decode(blob) for blob in blobs if blob is not None]:
            scored_by = decision.model_version if decision.features_hash else ""
            found[str(decision.id)] = Made(scored_by, decision.moment.trigger in _OF_TIMERS)
    return found


def check_both_decided(slices: Sequence[Counter[str]], other: str) -> None:
    """`slices` has the decisions by the model that scored, steady and swapping in turns. Raises `RuntimeError`."""
    shipped = slices[0].keys() - {other}
    for number, owed in enumerate(slices):
        if number % 2 == 1 and not (owed[other] and any(owed[version] for version in shipped)):
            raise RuntimeError(
                f"slice {number + 1} should have swapped, but its decisions are owed to {dict(owed)}, and not to "
                f"both {other} and the model before it ({', '.join(sorted(shipped)) or 'none'})"
            )


def show(number: int, swapping: bool, times_ms: np.ndarray) -> None:
    p50, p99 = np.percentile(times_ms, (50, 99))
    print(
        f"slice {number + 1}, {'swapping' if swapping else 'steady':9}"
        f"{len(times_ms):>10,} events   p50 {p50:7.2f}   p99 {p99:7.2f} ms",
        flush=True,
    )


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=20_000, help="events a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each slice")
    parser.add_argument("--slices", type=int, default=6, help="steady and swapping in turns")
    parser.add_argument("--stores", type=int, default=200)
    parser.add_argument("--customers", type=int, default=50_000)
    row = asyncio.run(measure(parser.parse_args(given)))
    print(f"p99 while swapping is {row['p99_ratio']} times that without; lost {row['lost']}, doubled {row['doubled']}")
    print(json.dumps({"bench": "swap", **row}))


if __name__ == "__main__":
    main()
