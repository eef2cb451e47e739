"""Order: what piled up while no engine ran is decided as if it had been read when it came."""

import pytest

from tests.faults.rig import Rig

pytestmark = [pytest.mark.long, pytest.mark.kafka]


async def test_a_backlog_is_decided_like_live_traffic(rig: Rig) -> None:
    """People sign up on one topic and, later, walk past on another; the engine comes when all of it is in the log."""
    front = rig.add("front", "dispatcher", "api")
    await rig.start(front)
    town = rig.round(of_each=20, steps=10)
    await rig.produce(town.sign_up)
    await rig.produce(town.traffic)
    await rig.start(rig.add("engine", "engine"))
    await rig.quiet()
    assert await rig.violations() == []
