"""R21: with a guard of nearcast taken away, the checkers must find what it guards against."""

import contextlib

import pytest

from nearcast import topics
from tests.faults.rig import Rig
from tests.faults.zombies import let_an_engine_oversleep
from tests.system.process import eventually


@pytest.mark.kafka
async def test_without_fencing_the_checkers_go_red(rig: Rig) -> None:
    """Commits that ask for neither epoch nor offsets: the sleeper's leaves its entries in the outbox a second time.

    It falls asleep having scored, so there is an offer in its batch.
    """
    await let_an_engine_oversleep(rig, "scored", variant="no-fencing")
    assert "outbox:" in _kinds(await rig.violations())


@pytest.mark.kafka
async def test_without_idempotency_the_checkers_go_red(rig: Rig) -> None:
    """A new key for each hand-over: a dispatcher killed after one leaves the customer with the same text twice."""
    engine, front = rig.add("engine", "engine"), rig.add("front", "dispatcher", variant="no-idempotency")
    await rig.start(engine, front)
    town = rig.round(of_each=2)
    await rig.produce(town.sign_up)
    await rig.quiet()
    front.arm("sent", 2, "kill")
    await rig.produce(town.traffic)
    await front.dead()
    front.disarm()
    await rig.start(front)
    await rig.quiet()
    assert "twice:" in _kinds(await rig.violations())


@pytest.mark.kafka
async def test_without_replay_the_checkers_go_red(rig: Rig) -> None:
    """An engine that goes on from the end of the log: what the killed one had read and not committed is gone."""
    engine = rig.add("engine", "engine", variant="no-replay")
    await rig.start(engine)
    town = rig.round(of_each=2)
    await rig.produce(town.sign_up)
    await rig.quiet(dispatched=False)
    engine.arm("before_commit", 2, "kill")
    await rig.produce(town.traffic)
    await engine.dead()
    engine.disarm()
    epochs = await rig.epochs()
    await rig.start(engine)
    await eventually(lambda: rig.taken_over_since(epochs), within_s=60.0)
    # These are in every partition of their topic. What comes just as it looks for the end may be skipped as well.
    while not await rig.caught_up_on(topics.ACTIONS):
        await rig.produce(rig.round(of_each=20).sign_up)
        with contextlib.suppress(AssertionError):
            await eventually(lambda: rig.caught_up_on(topics.ACTIONS), within_s=5.0)
    assert {"customer", "presence"} & _kinds(await rig.violations(dispatched=False))


def _kinds(sentences: list[str]) -> set[str]:
    return {sentence.split()[0] for sentence in sentences}
