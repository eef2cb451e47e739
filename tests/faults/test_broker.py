"""R4: Kafka killed and started again, in the middle of a commit and in the middle of an append."""

import asyncio
from random import Random
from signal import SIGCONT

import pytest

from tests.faults import broker
from tests.faults.clients import ids_in_the_log, insist_on_all, insist_while_the_broker_sleeps_and_dies
from tests.faults.rig import Rig
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
    sending = asyncio.create_task(insist_on_all(rig, town.traffic), name="clients")
    for _ in range(2):
        await asyncio.sleep(chance.uniform(0.5, 2.0))
        await broker.restart(real_kafka, rig.history, after_s=chance.uniform(0.0, 1.0))
    ids = await sending
    await rig.quiet()
    assert await rig.violations() == []
    assert ids <= await ids_in_the_log(rig), "acknowledged, and not in the log"


async def test_nothing_is_acknowledged_that_a_broker_has_not_taken(rig: Rig, real_kafka: KafkaBroker) -> None:
    """The broker dies with what it was sent still in its sockets: no client was told that it is in the log."""
    engine, front = rig.add("engine", "engine"), rig.add("front", "dispatcher", "api")
    await rig.start(engine, front)
    town = rig.round()
    await rig.produce(town.sign_up)
    await rig.quiet()
    ids = await insist_while_the_broker_sleeps_and_dies(rig, real_kafka, town.traffic)
    await rig.quiet()
    assert await rig.violations() == []
    assert ids <= await ids_in_the_log(rig), "acknowledged, and not in the log"
