"""How many events a second one engine process takes through its commit, and how soon, on Kafka and on Valkey Streams.

    python -m bench.engine [--log kafka|streams|both] [--events 400000]
    python -m bench.engine --processes 2       so many engine processes in one group, against one
    python -m bench.engine --scaling           cost per event against known customers and against fences
    python -m bench.engine --soak MINUTES      memory and descriptors under a steady load

A city of 1,000 stores and 20,000 fences, 200,000 customers whose records are in the store, fixes of which 2 % cause a
transition, 5 % cart and purchase events, promotions and the shipped model (see `bench.city`). The engine is the
server's, in a process of its own with its default settings; its store is the embedded Valkey with its append-only file.

First every customer sends a fix (the warm-up: all are read from the store into the cache), then the measured events are
put into the log while the engine stands at a gate, then it works them off, in four slices. The floor is a process that
only fetches and decodes the same records, without any code of the server's, after each slice. The peer is a Quix
Streams application that does the same job (`bench.quix`), over the same records of the first customers. Latency is from
handing an event to the log's client until the engine, its batch committed, tells the log how far it got, at a steady
rate; all on one machine's clock. Its floor is the same until the process that only reads has the event, at the same
rate, just before.

The last line is one JSON object. `--kafka` uses a Kafka without data instead of starting one.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.city import FENCES_PER_STORE, Traffic, city, share_of_transitions
from bench.floor import Floor
from bench.load import Produced, number_of
from bench.processes import PARTITIONS, Commit, Ends, Order, Phase, Place, Process, Ready, usage
from bench.quix import peer
from bench.rig import Rig, producer, rig, site
from offers.worldfile import WorldFile

Row = dict[str, Any]

#: The start of a steady load is not steady: connections are made, caches of the processor are cold.
_UNSTEADY_S = 1.0
_SAMPLE_EVERY_S = 10.0
#: Turns of engine and floor.
_SLICES = 4
_KEPT_UP_WITHIN_S = 1.0
#: Of the peer's warm-up and measured events, the customers.
_PEER_CUSTOMERS = 10_000
_SCALE_CUSTOMERS = (1_000, 10_000, 100_000, 1_000_000)
_SCALE_FENCES = (100, 1_000, 10_000, 100_000)
_SCALE_EVENTS = 100_000


async def standard(arguments: argparse.Namespace) -> Row:
    """Throughput, floor, latency, peer; on each log."""
    world = city(arguments.stores, random.Random(7), arguments.fences)
    planned = 2 * arguments.customers + arguments.events
    rows: dict[str, Row] = {}
    for log in ("kafka", "streams") if arguments.log == "both" else (arguments.log,):
        print(f"-- on {log}", flush=True)
        async with (
            site(log, arguments.kafka) as place,
            rig(place, world, arguments.customers, planned) as here,
        ):
            rows[log] = await one_log(arguments, world, here, first=not rows)
    row = rows.get("kafka") or rows["streams"]
    headline = {name: row[name] for name in ("events_per_s", "events_per_cpu_s", "floor_ratio")}
    return headline | {
        "quix_ratio": row.get("quix_ratio"),
        "p50_ms": {rate: each["p50_ms"] for rate, each in row["latency"].items()},
        "p99_ms": {rate: each["p99_ms"] for rate, each in row["latency"].items()},
        "stores": len(world.stores),
        "fences": len(world.fences),
        "customers": arguments.customers,
        "events": arguments.events,
        "logs": rows,
    }


async def one_log(arguments: argparse.Namespace, world: WorldFile, here: Rig, *, first: bool) -> Row:
    row: Row = {}
    warm_up, measured = here.walk.everyone(), here.walk.next(arguments.events)
    print(f"warm-up: {len(warm_up):,} events; measured: {len(measured):,}", flush=True)
    if first:
        row["transition_share"] = round(share_of_transitions(world, warm_up, measured), 4)
        print(f"of the measured fixes {row['transition_share']:.2%} cause a transition", flush=True)
    worker = await here.worker(first=True, customers=arguments.customers)
    try:
        rss_before = usage(worker.pid).rss_bytes
        await here.fill(warm_up)
        cold = await here.run(worker)
        row["warm_up_events_per_s"] = round(len(warm_up) / cold.seconds)
        row["bytes_per_cached_customer"] = round((cold.rss_bytes - rss_before) / here.walk.customers)
        row |= await against_floor(here, worker, measured)
        show(row)
        row["latency"] = {str(rate): await latency(here, worker, rate, arguments.seconds) for rate in arguments.rates}
    finally:
        await worker.stop()
    if here.site.kafka and not arguments.no_quix:
        row |= await against_quix(arguments, here, warm_up, measured, row)
    return row


async def against_floor(here: Rig, worker: Process, measured: Traffic) -> Row:
    """Engine and floor in turns, slice by slice: a machine that is quick now and slow then is so for both."""
    phases, services, floors = [], [], []
    size = -(-len(measured) // _SLICES)
    for first in range(0, len(measured), size):
        slice_ = measured.part(first, min(first + size, len(measured)))
        after = here.ends()
        await here.fill(slice_)
        phase, used = await throughput(here, worker)
        phases.append(phase)
        services.append(used)
        reader = await bare(here, after, "--events", str(len(slice_)))
        floors.append(await reader.answer(Floor))
        await reader.stop()
    row = summary(phases, services, len(measured))
    row["floor_events_per_s"] = round(sum(each.events for each in floors) / sum(each.seconds for each in floors))
    row["floor_ratio"] = round(row["events_per_s"] / row["floor_events_per_s"], 3)
    row["floor_ratios"] = [
        round(size / phase.seconds / (floor.events / floor.seconds), 3)
        for phase, floor in zip(phases, floors, strict=True)
    ]
    return row


async def throughput(here: Rig, worker: Process) -> tuple[Phase, dict[str, float]]:
    """Have the engine work off what is in the log; also the processor time of the services meanwhile."""
    before = await here.site.service_cpu_s()
    phase = await here.run(worker)
    after = await here.site.service_cpu_s()
    return phase, {name: after[name] - used for name, used in before.items()}


def summary(phases: Sequence[Phase], services: Sequence[Mapping[str, float]], events: int) -> Row:
    """What the phases cost in all, per event that was filled in. The counters have those of timers besides."""

    def per_event(seconds: float) -> float:
        return round(seconds / events * 1e6, 2)

    cpu_s, batches = sum(phase.cpu_s for phase in phases), sum(phase.batches for phase in phases)
    counters = {name: round(sum(phase.counters[name] for phase in phases)) for name in phases[0].counters}
    return {
        "events_per_s": round(events / sum(phase.seconds for phase in phases)),
        "events_per_cpu_s": round(events / cpu_s),
        "engine_cpu_us": per_event(cpu_s),
        "engine_cpu_us_with_timers": round(cpu_s / counters["nearcast_events"] * 1e6, 2),
        **{f"{name}_cpu_us": per_event(sum(each[name] for each in services)) for name in services[0]},
        "stage_us": {stage: per_event(sum(each.stages[stage] for each in phases)) for stage in phases[0].stages},
        "events_per_batch": round(events / batches) if batches else None,
        "counters": counters,
    }


async def bare(here: Rig, after: Sequence[Ends], *more: str) -> Process:
    """A process that only reads, from there on."""
    file = here.site.folder / "after.json"
    file.write_bytes(msgspec.json.encode(after))
    process = await Process.start(
        here.site.folder / "floor.log",
        "bench.floor",
        *("--after", str(file), *more),
        *here.site.log,
    )
    await process.answer(Ready)
    return process


async def latency(here: Rig, worker: Process, rate: float, seconds: float) -> Row:
    """Of the engine, and of a process that only reads, which comes first and ends before the engine's turn."""
    commits = here.site.folder / "commits.json"
    reader = await bare(here, here.ends(), "--times", str(commits))
    try:
        await produce(here, rate, seconds)
        await reader.ask(Order(here.ends()), Floor)
    finally:
        await reader.stop()
    floor_ms = latencies_ms(here, commits)
    await here.run(worker)
    await worker.ask(Order(record=True), Ready)
    produced = await produce(here, rate, seconds)
    ended_s = time.monotonic()
    phase = await worker.ask(Order(here.ends(), commits=str(commits)), Phase)
    times = latencies_ms(here, commits)
    row = {
        "p50_ms": round(float(np.percentile(times, 50)), 2),
        "p99_ms": round(float(np.percentile(times, 99)), 2),
        "floor_p50_ms": round(float(np.percentile(floor_ms, 50)), 2),
        "floor_p99_ms": round(float(np.percentile(floor_ms, 99)), 2),
        "events": len(times),
        "produced_per_s": round(produced.events / produced.seconds),
        "kept_up": phase.ended_s - ended_s < _KEPT_UP_WITHIN_S,
        "engine_cpu_us": round(phase.cpu_s / produced.events * 1e6, 2),
    }
    print(f"{rate:>9,} events/s: {row}", flush=True)
    return row


async def produce(here: Rig, rate: float, seconds: float) -> Produced:
    """Go on with the walk at this rate; the times are in `here.produced_file`."""
    load = await producer(here, rate, seconds)
    try:
        produced = await load.ask(Order(), Produced)
    finally:
        await load.stop()
    here.walk = here.walk_left()
    here.note(produced.ends)
    return produced


def latencies_ms(here: Rig, file: Path) -> np.ndarray[Any, Any]:
    """From hand-over to commit (or to having been read), of each event that was handed over `_UNSTEADY_S` or more
    after the first."""
    produced = dict(np.load(here.produced_file))
    commits = msgspec.json.decode(file.read_bytes(), type=list[Commit])
    committed: dict[Place, list[tuple[int, int]]] = {}
    for commit in commits:
        for topic, position in commit.positions.items():
            committed.setdefault((topic, commit.partition), []).append((number_of(position), commit.at_ns))
    first_ns = min(int(columns[1, 0]) for columns in produced.values())
    found = []
    for name, columns in produced.items():
        topic, _, partition = name.partition(" ")
        positions, at_ns = np.array(committed[topic, int(partition)]).T
        commit_of = np.searchsorted(positions, columns[0])
        steady = columns[1] >= first_ns + _UNSTEADY_S * 1e9
        found.append((at_ns[commit_of] - columns[1])[steady] / 1e6)
    return np.concatenate(found)


async def processes(arguments: argparse.Namespace) -> Row:
    """The same kind of load, worked off by one engine process and then by several in its group, each with its share."""
    log = "kafka" if arguments.log == "both" else arguments.log
    world = city(arguments.stores, random.Random(7), arguments.fences)
    row: Row = {"cores": os.cpu_count()}
    planned = 4 * arguments.customers + 2 * arguments.events
    async with site(log, arguments.kafka) as place, rig(place, world, arguments.customers, planned) as here:
        for count in (1, arguments.processes):
            here.settle()
            workers = [await here.worker(first=count == 1, customers=arguments.customers)]
            try:
                workers += [await here.worker(first=False) for _ in range(count - 1)]
                shares = await _shares(workers)
                # Their caches are empty: a fix of everyone, not measured.
                for traffic in (here.walk.everyone(), here.walk.next(arguments.events)):
                    await here.fill(traffic)
                    phases = await asyncio.gather(
                        *(here.run(worker, share) for worker, share in zip(workers, shares, strict=True))
                    )
                seconds = max(phase.ended_s for phase in phases) - min(phase.started_s for phase in phases)
                row[f"events_per_s_of_{count}"] = round(arguments.events / seconds)
            finally:
                for worker in workers:
                    await worker.stop()
    row["ratio"] = round(row[f"events_per_s_of_{arguments.processes}"] / row["events_per_s_of_1"], 2)
    return row


async def _shares(workers: Sequence[Process]) -> list[list[int]]:
    """Wait until the workers have the partitions between them; each one's."""
    async with asyncio.timeout(60):
        while True:
            shares = [(await worker.ask(Order(status=True), Ready)).partitions for worker in workers]
            if all(shares) and sorted(itertools.chain(*shares)) == list(range(PARTITIONS)):
                return shares
            await asyncio.sleep(0.2)


async def against_quix(arguments: argparse.Namespace, here: Rig, warm_up: Traffic, measured: Traffic, row: Row) -> Row:
    if why := await peer.install():
        print(f"no Quix Streams: {why}")
        return {"quix_ratio": None, "quix": why}
    warm_up, measured = warm_up.of_customers(_PEER_CUSTOMERS), measured.of_customers(_PEER_CUSTOMERS)
    measured = measured.part(0, arguments.quix_events)
    result = await peer.measure(
        here.site.folder,
        str(here.site.kafka),
        here.world_file,
        here.walk,
        warm_up,
        measured.part(0, arguments.quix_events),
    )
    per_s = result.events / result.seconds
    quix = msgspec.to_builtins(result) | {
        "events_per_s": round(per_s),
        "events_per_cpu_s": round(result.events / result.cpu_s),
        "warm_up": len(warm_up),
    }
    print(f"Quix Streams: {quix}", flush=True)
    return {
        "quix_ratio": round(row["events_per_s"] / per_s, 1),
        "quix_cpu_ratio": round(row["events_per_cpu_s"] * result.cpu_s / result.events, 1),
        "quix": quix,
    }


async def scaling(arguments: argparse.Namespace) -> Row:
    """Processor time per event: more customers (in few fences), then more fences (with few customers)."""
    log = "kafka" if arguments.log == "both" else arguments.log
    customers = [(known, 2_000) for known in arguments.scale_customers]
    fences = [(10_000, fences) for fences in arguments.scale_fences]
    rows: dict[str, list[Row]] = {"customers": [], "fences": []}
    for kind, steps in (("customers", customers), ("fences", fences)):
        for known, wanted in steps:
            world = city(max(1, wanted // FENCES_PER_STORE), random.Random(7), wanted)
            planned = 2 * known + arguments.scale_events
            async with site(log, arguments.kafka) as place, rig(place, world, known, planned) as here:
                worker = await here.worker(first=True, customers=known)
                try:
                    await here.fill(here.walk.everyone())
                    await here.run(worker)
                    await here.fill(here.walk.next(arguments.scale_events))
                    row = {"customers": known, "fences": len(world.fences)}
                    phase, services = await throughput(here, worker)
                    row |= summary([phase], [services], arguments.scale_events)
                finally:
                    await worker.stop()
            rows[kind].append(row)
            print(
                f"{known:>10,} customers {len(world.fences):>8,} fences: engine "
                f"{row['engine_cpu_us_with_timers']:.2f} us per event worked off, timers of the warm-up included "
                f"({row['engine_cpu_us']:.2f} us without them), Valkey {row['valkey_cpu_us']:.2f} us",
                flush=True,
            )
    growth = {
        f"{kind}_growth": round(steps[-1]["engine_cpu_us_with_timers"] / steps[0]["engine_cpu_us_with_timers"], 2)
        for kind, steps in rows.items()
    }
    return growth | rows


async def soak(arguments: argparse.Namespace) -> Row:
    """Memory and descriptors of the engine under a steady load, and how fast they grow."""
    log = "kafka" if arguments.log == "both" else arguments.log
    world = city(arguments.stores, random.Random(7), arguments.fences)
    seconds = arguments.soak * 60
    samples = []
    async with (
        site(log, arguments.kafka) as place,
        rig(place, world, arguments.customers, 2 * arguments.customers) as here,
    ):
        worker = await here.worker(first=True, customers=arguments.customers)
        try:
            await here.fill(here.walk.everyone())
            await here.run(worker)
            load = await producer(here, arguments.soak_rate, seconds, "--steady")
            try:
                await worker.ask(Order(), Ready)
                answer = asyncio.create_task(load.ask(Order(), Produced))
                started = time.monotonic()
                while not answer.done():
                    used = usage(worker.pid)
                    samples.append((time.monotonic() - started, used.rss_bytes, used.descriptors))
                    await asyncio.wait({answer}, timeout=arguments.sample_every)
                produced = await answer
            finally:
                await load.stop()
            here.note(produced.ends)
            phase = await worker.ask(Order(here.ends()), Phase)
        finally:
            await worker.stop()
    # The first fifth, when buffers and caches still grow to their bounds, says nothing of what comes after.
    steady = np.array(samples[len(samples) // 5 :], dtype=np.float64)
    slopes = np.polyfit(steady[:, 0], steady[:, 1:], 1)[0] * 3600 if len(steady) > 1 else np.zeros(2)
    return {
        "minutes": arguments.soak,
        "events_per_s": round(produced.events / produced.seconds),
        "engine_cpu_us": round(phase.cpu_s / produced.events * 1e6, 2),
        "rss_mib": [round(rss / 2**20, 1) for _, rss, _ in samples],
        "descriptors": [descriptors for *_, descriptors in samples],
        "rss_mib_per_hour": round(float(slopes[0]) / 2**20, 2),
        "descriptors_per_hour": round(float(slopes[1]), 2),
    }


def show(row: Row) -> None:
    stages = row["stage_us"]
    print(f"{'microseconds per event':<34}{'':>10}")
    for stage, spent in stages.items():
        print(f"  stage {stage:<26}{spent:>10.2f}")
    for name in ("engine", "valkey", "kafka"):
        if f"{name}_cpu_us" in row:
            print(f"  processor time of {name:<14}{row[f'{name}_cpu_us']:>10.2f}")
    print(
        f"{row['events_per_s']:,} events/s; {row['events_per_cpu_s']:,} per CPU second; {row['floor_ratio']:.0%} of "
        f"the floor ({row['floor_events_per_s']:,}); {row['bytes_per_cached_customer']:,} bytes per cached customer",
        flush=True,
    )


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", choices=("kafka", "streams", "both"), default="both")
    parser.add_argument("--kafka", help="bootstrap servers of a Kafka without data; default: start one")
    parser.add_argument("--events", type=int, default=400_000, help="measured, after the warm-up")
    parser.add_argument("--customers", type=int, default=200_000)
    parser.add_argument("--stores", type=int, default=1_000)
    parser.add_argument("--fences", type=int, default=20_000, help="of all stores together; twenty a store at most")
    parser.add_argument("--rates", type=numbers, default=[1_000, 10_000, 50_000], help="events/s, for latency")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each rate")
    parser.add_argument("--processes", type=int, default=1, help="compare so many engine processes with one")
    parser.add_argument("--no-quix", action="store_true", help="leave the peer out")
    parser.add_argument("--quix-events", type=int, default=20_000, help="measured with the peer, at most")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--scale-customers", type=numbers, default=_SCALE_CUSTOMERS)
    parser.add_argument("--scale-fences", type=numbers, default=_SCALE_FENCES)
    parser.add_argument("--scale-events", type=int, default=_SCALE_EVENTS)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--soak-rate", type=float, default=5_000, help="events/s")
    parser.add_argument("--sample-every", type=float, default=_SAMPLE_EVERY_S, help="seconds, while soaking")
    arguments = parser.parse_args()
    run = standard
    for mode, wanted in ((soak, arguments.soak), (scaling, arguments.scaling), (processes, arguments.processes > 1)):
        run = mode if wanted else run
    print(json.dumps({"bench": "engine", "mode": run.__name__} | asyncio.run(run(arguments))))


if __name__ == "__main__":
    main()
