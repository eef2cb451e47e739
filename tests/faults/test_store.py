"""R5 and R6: the store killed, robbed of its last second, or put back to an older copy; the log replays the rest.

What the log can't bring back, and no recipe here asks for: a coupon's redemption, an opt-out taken over HTTP whose
event is not in the log yet, WebSocket publications and their offsets, and which messages a provider without
idempotency keys already has.
"""

import asyncio
import contextlib
from pathlib import Path
from random import Random
from signal import SIGCONT, SIGSTOP

import pytest

from tests.faults.processes import Unexpected
from tests.faults.rig import Rig
from tests.faults.store import Losses, backup, restore, sync_always
from tests.system.process import eventually

pytestmark = [pytest.mark.long, pytest.mark.kafka]


async def test_killed_under_appendfsync_always(rig: Rig) -> None:
    """Killed three times under load, and nothing is lost."""
    chance = Random(rig.seed)
    await sync_always(rig.redis)
    await _start(rig)
    town = rig.round(of_each=20, steps=20)
    await rig.produce(town.sign_up)
    await rig.quiet()
    driving = asyncio.create_task(rig.produce_slowly(town.traffic, 10.0), name="traffic")
    for _ in range(3):
        await asyncio.sleep(chance.uniform(1.0, 3.0))
        await asyncio.to_thread(rig.valkey.kill)
        rig.history.note("killed", what_else="the store")
        await asyncio.sleep(chance.uniform(0.0, 0.5))
        await asyncio.to_thread(rig.valkey.start)
        await sync_always(rig.redis)
    await driving
    await rig.quiet()
    assert await rig.violations() == []


async def test_killed_under_appendfsync_everysec_with_its_last_second_gone(rig: Rig) -> None:
    """State and offsets go back together, so the log brings both forward again, and with them the outbox."""
    chance = Random(rig.seed)
    await rig.start(rig.add("engine0", "engine"), rig.add("engine1", "engine"))
    town = rig.round(of_each=20, steps=20)
    await rig.produce(town.sign_up)
    await rig.quiet(dispatched=False)
    lost = 0
    async with Losses(rig.valkey, rig.history).watching() as losses:
        driving = asyncio.create_task(rig.produce_slowly(town.traffic, 10.0), name="traffic")
        for _ in range(3):
            await asyncio.sleep(chance.uniform(1.5, 3.0))
            lost += await losses.kill_and_lose(1.0)
        await driving
        await rig.quiet(dispatched=False)
    assert lost > 0, "the recipe has to lose something"
    # What a dispatcher does that runs all the while has a recipe of its own, below.
    await rig.start(rig.add("front", "dispatcher", "api"))
    await rig.quiet()
    assert await rig.violations() == []


async def test_restored_from_an_older_copy(rig: Rig, tmp_path: Path) -> None:
    """A copy from before most of the traffic is put back: the outcome is the oracle's, nobody gets a second SMS, and
    each coupon has the code that it had.
    """
    await _start(rig)
    town, later, poke = (rig.round(of_each=n, steps=10) for n in (10, 10, 20))
    await rig.produce([*town.sign_up, *later.sign_up, *poke.sign_up])
    await rig.quiet()
    await rig.produce(town.traffic)
    await rig.quiet()
    offers = await rig.offers()
    backup(rig.valkey, tmp_path / "backup")
    codes = await rig.coupons(offers)
    await rig.produce(later.traffic)
    await rig.quiet()
    assert await rig.violations() == []

    await restore(rig.valkey, tmp_path / "backup", rig.history)
    # An engine learns from its next commit what the store has lost, so there must be something in every partition.
    await rig.produce(poke.traffic)
    await rig.quiet()
    assert await rig.violations(deliveries=False) == []
    assert await rig.coupons(offers) == codes


async def test_coupons_applied_after_the_copy_are_on_record_after_the_replay(rig: Rig, tmp_path: Path) -> None:
    """The record of each customer says that they applied their coupon, as it did before."""
    await _start(rig)
    town, poke = rig.round(of_each=20, steps=10), rig.round(of_each=20)
    await rig.produce([*town.sign_up, *poke.sign_up])
    await rig.quiet()
    backup(rig.valkey, tmp_path / "backup")
    await rig.produce(town.traffic)
    await rig.quiet()
    await rig.coupons(await rig.offers())
    await rig.quiet()
    await restore(rig.valkey, tmp_path / "backup", rig.history)
    await rig.produce(poke.traffic)
    await rig.quiet()
    assert await rig.violations(deliveries=False) == []


async def test_restored_while_nothing_happens(rig: Rig, tmp_path: Path) -> None:
    """A copy is put back, and the log replays what it lacks, although no customer does anything more."""
    await _start(rig)
    town = rig.round()
    await rig.produce(town.sign_up)
    await rig.quiet()
    backup(rig.valkey, tmp_path / "backup")
    await rig.produce(town.traffic)
    await rig.quiet()
    await restore(rig.valkey, tmp_path / "backup", rig.history)
    try:
        await rig.quiet(within_s=30.0)
    except Unexpected:
        pytest.fail("what the store lost is not replayed")
    assert await rig.violations(deliveries=False) == []


async def test_a_message_taken_before_its_commit_was_lost_is_sent_after_the_replay(rig: Rig, tmp_path: Path) -> None:
    """The dispatcher has taken an entry and not looked at it yet when the store loses the commit that wrote it."""
    engine, front = rig.add("engine", "engine"), rig.add("front", "dispatcher", "api")
    await rig.start(engine, front)
    town, poke = rig.round(), rig.round(of_each=20)
    await rig.produce([*town.sign_up, *poke.sign_up])
    await rig.quiet()
    backup(rig.valkey, tmp_path / "backup")
    front.arm("outbox_read", 1, "stop")
    await rig.produce(town.traffic)
    await front.asleep()
    await rig.quiet(dispatched=False)
    # Only the entries wake up: no commit brings their messages back before they are looked at.
    engine.signal(SIGSTOP)
    await restore(rig.valkey, tmp_path / "backup", rig.history)
    front.signal(SIGCONT)
    with contextlib.suppress(AssertionError):
        await eventually(lambda: _any_delivery(rig), within_s=3.0)
    engine.signal(SIGCONT)
    await rig.produce(poke.traffic)
    await rig.quiet()
    assert await rig.violations(deliveries=False) == []


async def _any_delivery(rig: Rig) -> bool:
    """Whether the store says of any message how it ended."""
    return bool((await rig.gather()).deliveries)


async def _start(rig: Rig) -> None:
    await rig.start(rig.add("engine0", "engine"), rig.add("engine1", "engine"), rig.add("front", "dispatcher", "api"))
