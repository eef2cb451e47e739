"""R21: with a guard of nearcast taken away, the checkers must find what it guards against."""

import asyncio
import contextlib
from pathlib import Path
from signal import SIGCONT

import pytest

from nearcast import topics
from tests.faults.clients import ids_in_the_log, insist_while_the_broker_sleeps_and_dies
from tests.faults.processes import Worker
from tests.faults.rig import Rig
from tests.faults.rollback import let_the_store_forget
from tests.faults.store import Losses, backup, restore, sync_always
from tests.faults.traffic import Round
from tests.faults.zombies import let_an_engine_oversleep, let_an_engine_wake_before_its_heir_commits
from tests.services.kafka import KafkaBroker
from tests.system.process import eventually


@pytest.mark.kafka
async def test_without_fencing_the_checkers_go_red(rig: Rig) -> None:
    """Commits that ask for neither epoch nor offsets: the sleeper's leaves its entries in the outbox a second time.

    It falls asleep having scored, so there is an offer in its batch.
    """
    await let_an_engine_oversleep(rig, "scored", variant="no-fencing")
    assert "outbox:" in _kinds(await rig.violations())


@pytest.mark.long
@pytest.mark.kafka
async def test_without_the_epoch_a_commit_between_owners_is_taken(rig: Rig) -> None:
    """Once its heir has committed, the offsets alone keep a sleeper's commit out; before that, only the epoch does."""
    assert await let_an_engine_wake_before_its_heir_commits(rig, variant="no-epoch")


@pytest.mark.long
@pytest.mark.kafka
async def test_without_the_offsets_a_store_put_back_is_written_on(rig: Rig) -> None:
    """The epoch is as it was and no connection broke; nobody notices, and what the store lost is not replayed."""
    poke = await let_the_store_forget(rig, variant="no-offsets")
    await _caught_up(rig, poke)
    assert _of_the_first_round(await rig.violations(dispatched=False))


@pytest.mark.long
@pytest.mark.kafka
async def test_without_the_brokers_word_the_log_lacks_what_was_acknowledged(rig: Rig, real_kafka: KafkaBroker) -> None:
    """Sent counts as written: clients are told so of events that die with the broker."""
    front = rig.add("front", "dispatcher", "api", variant="no-acks")
    await rig.start(front)
    ids = await insist_while_the_broker_sleeps_and_dies(rig, real_kafka, rig.round().traffic)
    assert ids - await ids_in_the_log(rig)


@pytest.mark.long
@pytest.mark.kafka
@pytest.mark.parametrize("how", ["always", "everysec", "older_copy"])
async def test_without_doubt_what_the_store_has_not_is_never_replayed(rig: Rig, tmp_path: Path, how: str) -> None:
    """The engine goes on from what it believes: the store missed a commit, lost its last second, or was put back."""
    engine = rig.add("engine", "engine", variant="no-doubt")
    await rig.start(engine)
    town, poke = rig.round(), rig.round(of_each=20)
    async with Losses(rig.valkey, rig.history).watching() as losses:
        await rig.produce([*town.sign_up, *poke.sign_up])
        await rig.quiet(dispatched=False)
        backup(rig.valkey, tmp_path / "backup")
        if how == "always":
            await sync_always(rig.redis)
            engine.arm("before_commit", 2, "stop")
            await rig.produce(town.traffic)
            await engine.asleep()
            await asyncio.to_thread(rig.valkey.kill)
            engine.signal(SIGCONT)
            await eventually(lambda: _starts_over(engine), within_s=60.0)
            await asyncio.to_thread(rig.valkey.start)
        else:
            await rig.produce(town.traffic)
            await eventually(lambda: rig.caught_up_on(topics.LOCATIONS), within_s=60.0)
            if how == "everysec":
                assert await losses.kill_and_lose(1.0) > 0
            else:
                await restore(rig.valkey, tmp_path / "backup", rig.history)
    await _caught_up(rig, poke)
    assert _of_the_first_round(await rig.violations(dispatched=False))


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


async def _starts_over(engine: Worker) -> bool:
    return "starting over" in engine.log


async def _caught_up(rig: Rig, poke: Round) -> None:
    """Something more happens in every partition, and is committed. In other topics the store may stay behind."""
    await rig.produce(poke.traffic)
    await eventually(lambda: rig.caught_up_on(topics.LOCATIONS), within_s=60.0)


def _of_the_first_round(sentences: list[str]) -> list[str]:
    """What is said of customers who did their last before the fault, and wait for no timer. What others did may be on
    its way still.
    """
    return [sentence for sentence in sentences if sentence.startswith(("customer r1-buyer-", "presence of r1-"))]


def _kinds(sentences: list[str]) -> set[str]:
    return {sentence.split()[0] for sentence in sentences}
