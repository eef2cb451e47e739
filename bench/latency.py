"""The whole path: from a location event produced to the log until the frame with its offer is at the customer's device.

    python -m bench.latency [--customers 2000] [--rate 5000] [--seconds 20] [--out FOLDER]

A city as in `bench.engine`, all customers connected to the gateway over WebSockets. They walk, and `--rate` events a
second are produced to Kafka (or with `--log streams` appended to Valkey Streams). Engine, dispatcher and gateway are
the server's, in processes as `--processes` says; all else (broker, store, producer, clients) has one of its own. Of
each push whose cause was a location event, on one machine's clock:

* log: handed to the log's client, until the log has confirmed it (or the engine has it)
* queue: until the engine takes it
* match: decoded, matched with fences, folded, candidates found; until the batch is scored
* score: the model, and what is decided and folded between two rounds of it
* commit: decided, and committed in the store
* dispatch: read from the outbox, checked again, until it is published
* socket: published, until the client's process has read the frame

An end that another process overtook (a message can be read from the outbox before the engine knows that it is
committed) counts as of then. What is timed is wrapped from outside (`bench.latency_worker`); the server has no switch
for it. With `--out` the spans are written to `latency.jsonl`, named as OpenTelemetry names them, a trace for each
push, and a plot to `latency.svg`.

The last line is one JSON object.
"""

import argparse
import asyncio
import hashlib
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench import latency_plot
from bench.city import city
from bench.gateway import Crowd
from bench.gateway_load import Count, Mark
from bench.latency_worker import Notes
from bench.load import Produced, number_of
from bench.processes import Order, Place, Process, Ready, usage
from bench.rig import Rig, producer, rig, site
from nearcast import topics
from tests.services.ports import free_ports

Row = dict[str, Any]
Ints = NDArray[np.int64]

STAGES = ("log", "queue", "match", "score", "commit", "dispatch", "socket")
_GROUP = "customers"
#: What `bench.engine_worker.settings` signs tokens with.
_SECRET = "t" * 32
_UNSTEADY_S = 1.0
#: So long without a push, and there will be no more.
_SILENCE_S = 2.0


class Push(NamedTuple):
    """One push: its event and message, and the times between which its stages lie, one more than there are stages."""

    event: str
    message: str
    times_ns: tuple[int, ...]


async def measure(arguments: argparse.Namespace) -> Row:
    world = city(arguments.stores, random.Random(7), arguments.fences)
    planned = 2 * arguments.customers + round(arguments.rate * (arguments.seconds + arguments.warm_up_seconds))
    async with (
        site(arguments.log, arguments.kafka) as place,
        rig(place, world, arguments.customers, planned) as here,
        AsyncExitStack() as stack,
    ):
        [port] = free_ports(1)
        workers: list[tuple[str, Process]] = []
        for roles in arguments.processes.split():
            more = ["--world", str(here.world_file), "--customers", str(arguments.customers)] if not workers else []
            worker = await Process.start(
                place.folder / "worker.log",
                "bench.latency_worker",
                *("--roles", roles, "--gateway-port", str(port), *place.services, *more),
            )
            stack.push_async_callback(worker.stop)
            await worker.answer(Ready)
            workers.append((roles, worker))
        engine = next(worker for roles, worker in workers if "engine" in roles.split(","))
        crowd = await Crowd.start(place.folder, 1, stack)
        await crowd.connect(_GROUP, port, 0, arguments.customers, secret=_SECRET)
        await here.fill(here.walk.everyone())
        await engine.ask(Order(here.ends()), Ready)
        # A load of the same kind, not measured: caches fill, connections are made.
        await load(here, engine, crowd, arguments.rate, arguments.warm_up_seconds)
        for _, worker in workers:
            await worker.ask(Order(commits=str(place.folder / "nobody.json")), Ready)
        await crowd.tell(Mark(_GROUP))
        before = {roles: usage(worker.pid).cpu_s for roles, worker in workers}
        produced = await load(here, engine, crowd, arguments.rate, arguments.seconds)
        used = {roles: usage(worker.pid).cpu_s - before[roles] for roles, worker in workers}
        notes = []
        for number, (_, worker) in enumerate(workers):
            file = place.folder / f"notes-{number}.json"
            await worker.ask(Order(commits=str(file)), Ready)
            notes.append(msgspec.json.decode(file.read_bytes(), type=Notes))
        seen = await crowd.seen(_GROUP)
        counts = await crowd.tell(Count(_GROUP))
        pushes = list(joined(dict(np.load(here.produced_file)), notes, seen))
    if not pushes:
        raise RuntimeError(f"of {produced.events} events none led to a push")
    if arguments.out:
        write_out(arguments.out, pushes, arguments)
    return {
        "bench": "latency",
        "log": arguments.log,
        **summary(pushes),
        "events": produced.events,
        "produced_per_s": round(produced.events / produced.seconds),
        "pushes": len(pushes),
        "pushes_of_other_events": len(seen["events"]) - len(pushes),
        "gaps": counts.gaps,
        "lost_connections": counts.lost,
        "cpu_share": {roles: round(spent / produced.seconds, 3) for roles, spent in used.items()},
        "customers": arguments.customers,
        "processes": arguments.processes,
        "stores": len(world.stores),
        "fences": len(world.fences),
    }


async def load(here: Rig, engine: Process, crowd: Crowd, rate: float, seconds: float) -> Produced:
    """Go on with the walk, until the engine has committed it and no more pushes come."""
    process = await producer(here, rate, seconds)
    try:
        produced = await process.ask(Order(), Produced)
    finally:
        await process.stop()
    here.walk = here.walk_left()
    here.note(produced.ends)
    await engine.ask(Order(here.ends()), Ready)
    received, since_s = -1, time.monotonic()
    while time.monotonic() < since_s + _SILENCE_S:
        counts = await crowd.tell(Count(_GROUP))
        if counts.received != received:
            received, since_s = counts.received, time.monotonic()
        await asyncio.sleep(0.1)
    return produced


def joined(produced: Mapping[str, Ints], notes: Sequence[Notes], seen: Mapping[str, NDArray[Any]]) -> Iterator[Push]:
    """Put together what producer, server and clients saw of each push that follows from a steady location event."""
    first_ns = min(int(columns[1, 0]) for columns in produced.values()) + round(_UNSTEADY_S * 1e9)
    engine = next(each for each in notes if each.events)
    publishing = {message: at_ns for each in notes for message, at_ns in each.publishing_ns.items()}
    places = {event.event: event for event in engine.events if event.topic == topics.LOCATIONS}
    commits: dict[Place, list[tuple[int, int]]] = {}
    for commit in engine.commits:
        commits.setdefault((commit.topic, commit.partition), []).append((number_of(commit.position), commit.at_ns))
    columns_of = {place: np.array(rows).T for place, rows in commits.items()}
    for event_id, message, seen_ns in zip(
        seen["events"].tolist(), seen["messages"].tolist(), seen["seen_ns"].tolist(), strict=True
    ):
        event = places.get(event_id)
        if event is None or message not in publishing:
            continue
        position = number_of(event.position)
        positions, at_ns, durable_ns = produced[f"{event.topic} {event.partition}"]
        row = int(np.searchsorted(positions, position))
        if at_ns[row] < first_ns:
            continue
        reached, committed_ns = columns_of[event.topic, event.partition]
        batch = engine.batches[event.batch]
        times = [
            int(at_ns[row]),
            int(durable_ns[row]),
            batch.taken_ns,
            batch.scoring_ns,
            batch.scored_ns,
            int(committed_ns[int(np.searchsorted(reached, position))]),
            publishing[message],
            seen_ns,
        ]
        # From the end: nothing ends after what follows it.
        yield Push(event_id, message, tuple(np.minimum.accumulate(times[::-1])[::-1].tolist()))


def summary(pushes: Sequence[Push]) -> Row:
    """In ms, of the whole and of each stage by itself. Percentiles of stages don't add up to those of the whole."""
    times = np.array([push.times_ns for push in pushes]) / 1e6
    whole, stages = times[:, -1] - times[:, 0], np.diff(times, axis=1)

    def at(values: NDArray[Any], percent: float) -> float:
        return round(float(np.percentile(values, percent)), 2)

    return {
        "p50_ms": at(whole, 50),
        "p99_ms": at(whole, 99),
        "mean_ms": round(float(whole.mean()), 2),
        "stage_p50_ms": {name: at(stages[:, n], 50) for n, name in enumerate(STAGES)},
        "stage_p99_ms": {name: at(stages[:, n], 99) for n, name in enumerate(STAGES)},
        "stage_mean_ms": {name: round(float(stages[:, n].mean()), 3) for n, name in enumerate(STAGES)},
    }


def spans(push: Push, to_unix_ns: int) -> Iterator[Row]:
    """One trace: the whole push, and within it its stages. Ids follow from the message's."""
    trace = hashlib.sha256(push.message.encode()).hexdigest()

    def span(number: int, name: str, start_ns: int, end_ns: int) -> Row:
        return {
            "traceId": trace[:32],
            "spanId": hashlib.sha256(f"{push.message} {number}".encode()).hexdigest()[:16],
            "name": name,
            "startTimeUnixNano": start_ns + to_unix_ns,
            "endTimeUnixNano": end_ns + to_unix_ns,
        }

    whole = span(0, "push", push.times_ns[0], push.times_ns[-1])
    yield whole | {"attributes": {"event": push.event, "message": push.message}}
    for number, name in enumerate(STAGES):
        stage = span(number + 1, name, push.times_ns[number], push.times_ns[number + 1])
        yield stage | {"parentSpanId": whole["spanId"]}


def write_out(folder: Path, pushes: Sequence[Push], arguments: argparse.Namespace) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    to_unix_ns = time.time_ns() - time.monotonic_ns()
    lines = [msgspec.json.encode(span) for push in pushes for span in spans(push, to_unix_ns)]
    (folder / "latency.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    times_ms = np.array([push.times_ns for push in pushes]) / 1e6
    title = f"From event to frame: {arguments.customers:,} customers, {arguments.rate:,.0f} events/s, {arguments.log}"
    (folder / "latency.svg").write_text(latency_plot.waterfall(title, STAGES, times_ms))


def show(row: Row) -> None:
    print(f"{'milliseconds':<12}{'p50':>9}{'p99':>9}{'mean':>9}")
    for name in STAGES:
        figures = (row[f"stage_{figure}_ms"][name] for figure in ("p50", "p99", "mean"))
        print(f"  {name:<10}" + "".join(f"{value:>9.2f}" for value in figures))
    print(f"{'in all':<12}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['mean_ms']:>9.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", choices=("kafka", "streams"), default="kafka")
    parser.add_argument("--kafka", help="bootstrap servers of a Kafka without data; default: start one")
    parser.add_argument("--customers", type=int, default=2_000, help="all of them connected")
    parser.add_argument("--rate", type=float, default=5_000.0, help="events/s")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--warm-up-seconds", type=float, default=5.0, help="of the same load before")
    parser.add_argument("--stores", type=int, default=1_000)
    parser.add_argument("--fences", type=int, default=20_000, help="of all stores together; twenty a store at most")
    parser.add_argument(
        "--processes",
        default="engine,dispatcher gateway",
        help="the server's processes, with a space between them, and their roles, with a comma",
    )
    parser.add_argument("--out", type=Path, help="write the trace and the plot into this folder")
    row = asyncio.run(measure(parser.parse_args()))
    show(row)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
