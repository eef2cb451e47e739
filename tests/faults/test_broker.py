"""R4: Kafka killed and started again, in the middle of a commit and in the middle of an append."""

import asyncio
from collections.abc import Sequence
from random import Random
from signal import SIGCONT

import httpx
import msgspec
import pytest

from tests.faults import broker
from tests.faults.rig import Rig
from tests.faults.traffic import Sent
from tests.services.kafka import KafkaBroker

pytestmark = [pytest.mark.long, pytest.mark.kafka]


@pytest.mark.parametrize("step", ["fetched", "before_commit", "after_commit"])
async def test_a_broker_killed_within_a_batch_changes_nothing(rig: Rig, real_kafka: KafkaBroker, step: str) -> None:
    """The engine holds its breath at the step; meanwhile the broker dies and comes back; then it goes on."""
    engine, front = rig.add("engine", "engine"), rig.add("front", "dispatcher", "api")
    await rig.start(engine, front)
    town = rig.round()
    await rig.produce(town.sign_up)
    await rig.quiet()
    engine.arm(step, 2, "stop")
    await rig.produce(town.traffic)
    await engine.asleep()
    await broker.kill(real_kafka, rig.history)
    engine.signal(SIGCONT)
    await broker.start(real_kafka, rig.history)
    await rig.quiet()
    assert await rig.violations() == []


async def test_what_was_acknowledged_over_http_survives_the_broker(rig: Rig, real_kafka: KafkaBroker) -> None:
    """Clients insist until each event is acknowledged, while the broker is killed twice: each counts once."""
    chance = Random(rig.seed)
    engine, front = rig.add("engine", "engine"), rig.add("front", "dispatcher", "api")
    await rig.start(engine, front)
    town = rig.round(of_each=8, steps=12)
    await rig.produce(town.sign_up)
    await rig.quiet()
    sending = asyncio.create_task(_insist_on_all(rig, town.traffic), name="clients")
    for _ in range(2):
        await asyncio.sleep(chance.uniform(0.5, 2.0))
        await broker.restart(real_kafka, rig.history, after_s=chance.uniform(0.0, 1.0))
    ids = await sending
    await rig.quiet()
    assert await rig.violations() == []
    logged = {msgspec.json.decode(r.value).get("id") for r in (await rig.gather()).records if _is_json(r.value)}
    assert ids <= logged, "acknowledged, and not in the log"


async def _insist_on_all(rig: Rig, records: Sequence[Sent]) -> set[str]:
    """Bring the records in over HTTP, each customer's in order, until all are acknowledged; their event ids."""
    queues: dict[tuple[str, str], list[dict[str, object]]] = {}
    for record in records:
        event = msgspec.json.decode(record.value) if _is_json(record.value) else {}
        if "id" in event:
            queues.setdefault((record.topic, record.key), []).append(event)
    slots = asyncio.Semaphore(16)
    async with rig.http("intake") as http:

        async def send(queue: list[dict[str, object]]) -> None:
            for event in queue:
                async with slots:
                    await _insist(http, event)

        await asyncio.gather(*(send(queue) for queue in queues.values()))
    rig.history.note("acknowledged", events=sum(map(len, queues.values())), over="http")
    return {str(event["id"]) for queue in queues.values() for event in queue}


async def _insist(http: httpx.AsyncClient, event: dict[str, object]) -> None:
    while True:
        try:
            answer = await http.post("/v1/events", json=event)
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code == 202:
            return
        assert answer is None or answer.status_code == 503, answer.text
        await asyncio.sleep(0.1)


def _is_json(value: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(value), dict)
    except msgspec.DecodeError:
        return False
