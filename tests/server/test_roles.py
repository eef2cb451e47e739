"""What the roles of one process share, and what each has for itself."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from redis.asyncio import Redis

from nearcast import keys
from nearcast.events import Cart, Profile
from nearcast.ids import CustomerId
from server.core import open_core
from server.roles import make_engine
from server.settings import load
from tests.server.test_engine import consent, fix
from tests.server.town import WORLD

WITHIN_S = 20.0


async def test_a_crowd_of_requests_does_not_keep_the_engine_waiting(tmp_path: Path) -> None:
    """With every shared connection in use, events are decided, stock and all, and committed."""
    async with open_core(load(data_dir=tmp_path / "data", quiet_hours="")) as core, AsyncExitStack() as stack:
        await core.world.put(WORLD)
        now = core.clock.now_ms()
        scopes = [consent("ann", now, scope) for scope in ("websocket", "sms", "email")]
        profile, cart = Profile(id="p", uid="ann", ts=now), Cart(id="c", uid="ann", ts=now, action="add", sku="beans")
        await core.intake.append([profile, cart, *scopes, fix("ann", now + 5, 80)])
        (engine,) = [root for root in await make_engine(core, stack) if root.name == "engine"]
        # The API and the dispatcher ask the store with these two.
        pools = {core.redis.connection_pool, core.state._redis.connection_pool}
        crowd = [(pool, await pool.get_connection()) for pool in pools for _ in range(pool.max_connections)]
        task = asyncio.create_task(engine.work())
        decided = keys.decisions_of(core.state.partition(CustomerId("ann")), "ann")
        try:
            async with Redis.from_url(core.redis_url) as redis, asyncio.timeout(WITHIN_S):
                while not await redis.llen(decided):
                    assert not task.done()
                    await asyncio.sleep(0.01)
        finally:
            for pool, connection in crowd:
                await pool.release(connection)
            while not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=0.1)
