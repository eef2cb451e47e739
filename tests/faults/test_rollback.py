"""R6 without a restart: the store goes back, and no connection breaks that would make an engine look again."""

import pytest

from tests.faults.rig import Rig
from tests.faults.rollback import let_the_store_forget

pytestmark = [pytest.mark.long, pytest.mark.kafka]


async def test_put_back_under_open_connections(rig: Rig) -> None:
    """The next commit finds other offsets than it knows, and is refused: the log replays what the store lacks."""
    poke = await let_the_store_forget(rig)
    await rig.produce(poke.traffic)
    await rig.quiet(dispatched=False)
    assert await rig.violations(dispatched=False) == []
