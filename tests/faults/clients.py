"""Clients that bring events in over HTTP, and insist on each until it is acknowledged."""

import asyncio
from collections.abc import Sequence

import httpx
import msgspec

from tests.faults import broker
from tests.faults.rig import Rig
from tests.faults.traffic import Sent
from tests.services.kafka import KafkaBroker


async def insist_on_all(rig: Rig, records: Sequence[Sent]) -> set[str]:
    """Bring the records in over HTTP, each customer's in order, until all are acknowledged; their event ids."""
    queues: dict[tuple[str, str], list[dict[str, object]]] = {}
    for record in records:
        event = _event(record.value)
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


async def insist_while_the_broker_sleeps_and_dies(rig: Rig, kafka: KafkaBroker, records: Sequence[Sent]) -> set[str]:
    """The same; after half of them the broker takes what is sent and does nothing with it, is killed and comes back."""
    half = len(records) // 2
    ids = await insist_on_all(rig, records[:half])
    broker.stop(kafka, rig.history)
    sending = asyncio.create_task(insist_on_all(rig, records[half:]), name="clients")
    await asyncio.sleep(2.0)
    await broker.restart(kafka, rig.history)
    return ids | await sending


async def ids_in_the_log(rig: Rig) -> set[object]:
    """The ids of all events that the log holds."""
    return {_event(record.value).get("id") for record in await rig.log.everything()}


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


def _event(value: bytes) -> dict[str, object]:
    """The JSON object of a record; empty if it is none."""
    try:
        event = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return {}
    return event if isinstance(event, dict) else {}
