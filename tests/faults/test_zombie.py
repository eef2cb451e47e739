"""R3: a process that slept while others took its work over wakes up, and commits nothing and sends nothing."""

from signal import SIGCONT

import pytest

from tests.faults.rig import Rig
from tests.faults.worker import ENGINE_STEPS
from tests.faults.zombies import let_an_engine_oversleep, let_an_engine_wake_before_its_heir_commits


@pytest.mark.kafka
@pytest.mark.parametrize(
    "step",
    [
        "before_commit",
        *(pytest.param(step, marks=pytest.mark.long) for step in ENGINE_STEPS if step != "before_commit"),
    ],
)
async def test_an_engine_that_wakes_up_late_commits_nothing(rig: Rig, step: str) -> None:
    """It stops itself within a batch; its partitions move; what it then tries leaves no trace in the store."""
    assert await let_an_engine_oversleep(rig, step) == []
    assert await rig.violations(repeats=False) == []


@pytest.mark.kafka
async def test_an_engine_that_wakes_up_before_its_heir_commits_commits_nothing_either(rig: Rig) -> None:
    """The offsets in the store are those that it knows; only the epoch says that its partitions are another's."""
    assert not await let_an_engine_wake_before_its_heir_commits(rig)
    assert await rig.violations(dispatched=False) == []


@pytest.mark.long
@pytest.mark.kafka
@pytest.mark.parametrize(("step", "repeats"), [("outbox_read", False), ("sent", True), ("receipt_written", True)])
async def test_a_dispatcher_that_wakes_up_late_sends_nothing(rig: Rig, step: str, repeats: bool) -> None:
    """What it held is with another one, which has ended it. Where a message was handed over and not yet noted, that one
    or one of those next to it, the other must ask the provider again, under the same key; before any was handed over,
    nobody is asked twice.
    """
    engine = rig.add("engine", "engine")
    sleeper, other = rig.add("sleeper", "dispatcher"), rig.add("other", "dispatcher")
    await rig.start(engine, sleeper)
    town = rig.round()
    await rig.produce(town.sign_up)
    await rig.quiet()
    sleeper.arm(step, 1, "stop")
    await rig.produce(town.traffic)
    await sleeper.asleep()
    await rig.start(other)
    await rig.quiet()
    assert await rig.violations(repeats=repeats) == []
    asked = list(rig.provider.keys)
    sleeper.signal(SIGCONT)
    await sleeper.stop()
    await rig.quiet_without(sleeper)
    late = rig.provider.keys[len(asked) :]
    # What it was about to say when it was stopped is on its way: under the old key, so nobody gets it twice.
    assert not late or (repeats and set(late) <= set(asked))
    assert await rig.violations(repeats=repeats) == []
