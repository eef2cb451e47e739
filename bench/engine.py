"""How many events a second one engine process takes through the real commit, on Valkey Streams and on Kafka.

    python -m bench.engine [--events 60000] [--customers 20000] [--stores 200] [--kafka host:port]

Position fixes of shoppers in a city of stores (each with a vicinity, a store and two departments), most of them near no
store, one in ten at one, plus cart and consent events. The log is filled first; then one engine works it off: decode,
match, fold, decide, ONNX score and atomic commit to a real Valkey (append-only file on). The floor is the same loop
without the engine: fetch and decode only. Without `--kafka` a broker is started from Maven's jars, as in the tests.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

from models.scorer import Scorer
from nearcast import metrics, topics
from nearcast.clock import SystemClock
from nearcast.events import TOPIC_OF, Cart, Consent, Event, Location, decode, encode
from nearcast.fold import FoldRules
from nearcast.world import Circle, Discount, Fence, Product, Promotion, Stock, Store, What, Who, Words
from offers.policy import Policy
from offers.worldfile import WorldFile
from server.engine import Engine
from server.log.base import Entry, EventLog, LogConsumer
from server.log.kafka import KafkaLog, KafkaOptions
from server.log.streams import StreamsLog
from server.state import StateStore
from server.store import client_of
from server.valkey import EmbeddedValkey
from server.world import WorldStore

PARTITIONS = 4
LAT, LNG, DEGREES = 48.2, 16.37, 0.12
BATCH_EVENTS = 1_000


def city(stores: int, chance: random.Random) -> WorldFile:
    """Stores scattered over a city, four fences each, and two promotions."""
    world = WorldFile(
        products=[Product(sku="beans", name="Beans", segment="coffee", price_cents=1_299)],
        promotions=[
            Promotion(
                id="cart",
                name="Cart",
                trigger="walk_past",
                who=Who(in_cart=True),
                what=What(discount=Discount(percent=15)),
                words={"en": Words(title="{{ product }}")},
            ),
            Promotion(id="enter", name="Enter", trigger="enter", words={"en": Words(title="Welcome")}),
        ],
    )
    for n in range(stores):
        lat, lng = LAT + chance.uniform(-DEGREES, DEGREES), LNG + chance.uniform(-DEGREES, DEGREES)
        world.stores.append(Store(id=f"s{n}", name=f"Store {n}", lat=lat, lng=lng))
        for kind, radius_m in (("vicinity", 120.0), ("store", 40.0), ("department", 15.0), ("department", 8.0)):
            world.fences.append(
                Fence(id=f"s{n}-{kind}-{radius_m}", store=f"s{n}", kind=kind, geometry=Circle((lng, lat), radius_m))  # type: ignore[arg-type]
            )
        world.stock.append(Stock(store=f"s{n}", sku="beans", quantity=100))
    return world


def traffic(events: int, customers: int, world: WorldFile, chance: random.Random, now_ms: int) -> list[Event]:
    """Nine in ten fixes are anywhere in the city, one in ten is at a store; 2 % are cart events, 3 % consents."""
    made: list[Event] = []
    for n in range(events):
        uid, ts, kind = f"c{chance.randrange(customers)}", now_ms - events + n, chance.random()
        if kind < 0.02:
            made.append(Cart(id=f"e{n}", uid=uid, ts=ts, action="add", sku="beans"))
        elif kind < 0.05:
            made.append(Consent(id=f"e{n}", uid=uid, ts=ts, scope="websocket", granted=True))
        elif kind < 0.15:
            store = chance.choice(world.stores)
            made.append(Location(id=f"e{n}", uid=uid, ts=ts, lat=store.lat, lng=store.lng, accuracy_m=5.0))
        else:
            lat, lng = LAT + chance.uniform(-DEGREES, DEGREES), LNG + chance.uniform(-DEGREES, DEGREES)
            made.append(Location(id=f"e{n}", uid=uid, ts=ts, lat=lat, lng=lng, accuracy_m=5.0))
    return made


@asynccontextmanager
async def broker(bootstrap: str | None) -> AsyncIterator[KafkaOptions]:
    """The given Kafka, or one of our own."""
    if bootstrap:
        yield KafkaOptions(bootstrap=bootstrap)
        return
    from tests.services.kafka import choose_broker

    kind, why = choose_broker(force_tansu=False)
    print(f"starting {kind.name}{f', not Apache Kafka: {why}' if why else ''}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        kafka = kind(Path(folder))
        await kafka.start()
        try:
            yield kafka.options()
        finally:
            await kafka.stop()


async def fill(log: EventLog, events: Sequence[Event]) -> None:
    entries = [Entry(TOPIC_OF[type(event)], event.customer, encode(event)) for event in events]
    for first in range(0, len(entries), 2_000):
        await log.append(entries[first : first + 2_000])


async def owning_all(consumer: LogConsumer) -> None:
    while len(consumer.assignment()[1]) < PARTITIONS:
        await consumer.fetch(1, 50)


async def floor(log: EventLog, events: int) -> float:
    """Events a second when they are only fetched and decoded."""
    consumer = log.consumer("bench-floor", topics.CUSTOMER_TOPICS)
    await consumer.start()
    await owning_all(consumer)
    for partition in range(PARTITIONS):
        await consumer.seek(partition, {})
    seen, started = 0, time.perf_counter()
    while seen < events:
        for record in await consumer.fetch(BATCH_EVENTS, 1_000):
            decode(record.topic, record.value, position=record.position, arrived_ms=record.arrived_ms)
            seen += 1
    elapsed = time.perf_counter() - started
    await consumer.stop()
    return events / elapsed


async def engine(log: EventLog, url: str, world_file: WorldFile, events: int) -> tuple[float, float]:
    """Events a second, and a second of this process's processor time, through the whole engine."""
    redis = client_of(url)
    world = WorldStore(redis)
    await world.put(world_file)
    consumer = log.consumer("bench-engine", topics.CUSTOMER_TOPICS)
    await consumer.start()
    await owning_all(consumer)
    working = Engine(
        consumer=consumer,
        state=StateStore(redis, PARTITIONS),
        world=world,
        scorer=Scorer.load(Path(str(resources.files("models").joinpath("artifacts", "redeem")))),
        rules=FoldRules(),
        policy=Policy(),
        clock=SystemClock(),
        batch_events=BATCH_EVENTS,
        cached_customers=200_000,
    )
    # The engine's own counter: asking the store for the lag would be work for the store.
    before, started, cpu = committed(), time.perf_counter(), time.process_time()
    task = asyncio.create_task(working.run())
    while committed() - before < events:
        await asyncio.sleep(0.02)
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await consumer.stop()
    await redis.aclose()
    return events / elapsed, events / cpu


def committed() -> float:
    """Events whose effects this process has committed so far."""
    (family,) = metrics.EVENTS.collect()
    return sum(sample.value for sample in family.samples if sample.name.endswith("_total"))


async def run(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    chance = random.Random(7)
    world = city(arguments.stores, chance)
    events = traffic(arguments.events, arguments.customers, world, chance, SystemClock().now_ms())
    results: dict[str, dict[str, float]] = {}
    for name in ("valkey streams", "kafka"):
        with tempfile.TemporaryDirectory() as folder:
            valkey = EmbeddedValkey(Path(folder))
            await valkey.start()
            try:
                if name == "kafka":
                    async with broker(arguments.kafka) as options:
                        results[name] = await measure(KafkaLog(options, PARTITIONS), valkey.url, world, events)
                else:
                    results[name] = await measure(StreamsLog(valkey.url, PARTITIONS), valkey.url, world, events)
            finally:
                await valkey.stop()
    return results


async def measure(log: EventLog, url: str, world: WorldFile, events: Sequence[Event]) -> dict[str, float]:
    await log.start()
    await fill(log, events)
    bare = await floor(log, len(events))
    per_second, per_cpu_second = await engine(log, url, world, len(events))
    await log.stop()
    return {
        "events_per_s": round(per_second),
        "events_per_cpu_s": round(per_cpu_second),
        "fetch_and_decode_per_s": round(bare),
        "share_of_floor": round(per_second / bare, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--customers", type=int, default=20_000)
    parser.add_argument("--stores", type=int, default=200)
    parser.add_argument("--kafka", help="bootstrap servers of a Kafka without data; default: start one")
    arguments = parser.parse_args()
    results = asyncio.run(run(arguments))
    print(f"{'event log':<16}{'events/s':>12}{'per CPU-s':>12}{'floor/s':>12}{'of floor':>10}")
    for name, row in results.items():
        print(
            f"{name:<16}{row['events_per_s']:>12,.0f}{row['events_per_cpu_s']:>12,.0f}"
            f"{row['fetch_and_decode_per_s']:>12,.0f}{row['share_of_floor']:>10.0%}"
        )
    print(json.dumps({"bench": "engine", "events": arguments.events, "stores": arguments.stores, "results": results}))


if __name__ == "__main__":
    main()
