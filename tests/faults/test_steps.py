"""R1: a process killed at any step of a batch, or of a message, changes nothing but the time it takes."""

import asyncio
from itertools import zip_longest
from random import Random

import pytest

from tests.faults.processes import Worker
from tests.faults.rig import Rig
from tests.faults.worker import DELIVERY_STEPS, ENGINE_STEPS, STEPS

#: The latest time at which a step is sure to be reached in one round.
_TIMES = {
    "fetched": 3,
    "matched": 3,
    "before_commit": 3,
    "after_commit": 3,
    "scored": 2,
    "sent": 5,
    "receipt_written": 5,
}


@pytest.mark.kafka
async def test_a_kill_at_any_step_loses_and_doubles_nothing(rig: Rig) -> None:
    """Each step once, one of the engine's and one of the dispatcher's at a time: every acknowledged event counts once,
    every offer is one SMS and one coupon.
    """
    chance = Random(rig.seed)
    workers = await _workers(rig)
    rounds = {step: rig.round(of_each=3) for step in STEPS}
    await rig.produce([record for each in rounds.values() for record in each.sign_up])
    await rig.quiet()
    for pair in zip_longest(ENGINE_STEPS, DELIVERY_STEPS):
        steps = [step for step in pair if step is not None]
        for step in steps:
            workers[step].arm(step, chance.randint(1, _TIMES.get(step, 1)), "kill")
        for step in steps:
            await rig.produce(rounds[step].traffic)
        await asyncio.gather(*(_revive(rig, workers[step]) for step in steps))
        await rig.quiet()
    assert await rig.violations() == []
    offers = chance.sample(await rig.offers(), 20)
    codes = await rig.coupons(offers)
    assert len(set(codes.values())) == len(offers)
    assert await rig.coupons(offers) == codes, "the same coupon when applied again"
    await rig.quiet()
    assert await rig.violations() == []


@pytest.mark.long
@pytest.mark.kafka
@pytest.mark.parametrize("first", STEPS)
async def test_a_second_kill_while_recovering_changes_nothing_either(rig: Rig, first: str) -> None:
    """Every ordered pair of steps: killed at one, and at the other as soon as there is work again."""
    chance = Random(rig.seed)
    workers = await _workers(rig)
    rounds = {step: (rig.round(of_each=3), rig.round(of_each=3)) for step in STEPS}
    await rig.produce([record for pair in rounds.values() for each in pair for record in each.sign_up])
    await rig.quiet()
    for second in STEPS:
        workers[first].arm(first, chance.randint(1, _TIMES.get(first, 1)), "kill")
        await rig.produce(rounds[second][0].traffic)
        assert await workers[first].dead() == -9
        workers[first].disarm()
        workers[second].arm(second, 1, "kill")
        await workers[first].start()
        await rig.produce(rounds[second][1].traffic)
        await _revive(rig, workers[second])
        await rig.quiet()
    assert await rig.violations() == []


async def _workers(rig: Rig) -> dict[str, Worker]:
    """By step, the worker that comes to it."""
    engine, front = rig.add("engine", "engine"), rig.add("front", "dispatcher", "api")
    await rig.start(engine, front)
    return {step: engine if step in ENGINE_STEPS else front for step in STEPS}


async def _revive(rig: Rig, worker: Worker) -> None:
    assert await worker.dead() == -9
    worker.disarm()
    await rig.start(worker)
