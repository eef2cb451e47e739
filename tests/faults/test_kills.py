"""R2: three engines under load, killed at random: the outcome is that of one event after the other, undisturbed."""

import asyncio
from random import Random

import pytest

from tests.faults.processes import Worker
from tests.faults.rig import Rig

_KILL_EVERY_S = 3.0


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("of_each", "steps", "kills"),
    [
        pytest.param(40, 20, 3, id="5k"),
        pytest.param(440, 40, 30, id="100k", marks=pytest.mark.long),
    ],
)
async def test_random_kills_under_load_leave_the_oracles_outcome(
    rig: Rig, of_each: int, steps: int, kills: int
) -> None:
    """Traffic goes on while engines (and now and then the dispatcher) are killed and started again."""
    chance = Random(rig.seed)
    engines = [rig.add(f"engine{n}", "engine") for n in range(3)]
    front = rig.add("front", "dispatcher", "api")
    await rig.start(*engines, front)
    town = rig.round(of_each=of_each, steps=steps)
    await rig.produce(town.sign_up)
    await rig.quiet()

    share = len(town.traffic) // kills + 1
    for first in range(0, len(town.traffic), share):
        some = town.traffic[first : first + share]
        driving = asyncio.create_task(rig.produce_slowly(some, _KILL_EVERY_S), name="traffic")
        await asyncio.sleep(chance.uniform(0.1, 0.9) * _KILL_EVERY_S)
        assert not driving.done(), "a kill of an idle system shows nothing"
        victim = chance.choice([*engines, *engines, front])
        await _replace(rig, victim, chance.uniform(0.0, 1.0))
        await driving
    await rig.quiet()
    assert await rig.violations() == []


async def _replace(rig: Rig, worker: Worker, after_s: float) -> None:
    await worker.kill()
    await asyncio.sleep(after_s)
    await rig.start(worker)
