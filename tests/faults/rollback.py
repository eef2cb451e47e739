"""How a store comes to be as it was, with all its connections open: as after a fail-over, behind one address, to a
replica that lagged.
"""

from redis.asyncio import Redis

from tests.faults.rig import Rig
from tests.faults.traffic import Round


async def let_the_store_forget(rig: Rig, variant: str = "") -> Round:
    """An engine works a round off, then the store is as it was before that. Another round whose customers have signed
    up: an engine learns from its next commit what the store has lost, so there must be something in every partition.
    """
    await rig.start(rig.add("engine", "engine", variant=variant))
    town, poke = rig.round(), rig.round(of_each=20)
    await rig.produce([*town.sign_up, *poke.sign_up])
    await rig.quiet(dispatched=False)
    before = await _picture(rig.redis)
    await rig.produce(town.traffic)
    await rig.quiet(dispatched=False)
    await _put_back(rig.redis, before)
    rig.history.note("put back", what_else="the store", keys=len(before))
    return poke


async def _picture(redis: Redis) -> dict[bytes, tuple[bytes, int]]:
    """Every key: its content, and in how many ms it expires (0: never)."""
    found = {}
    for name in [name async for name in redis.scan_iter(count=1_000)]:
        content, left_ms = await redis.dump(name), await redis.pttl(name)
        if content is not None:
            found[name] = content, max(0, left_ms)
    return found


async def _put_back(redis: Redis, picture: dict[bytes, tuple[bytes, int]]) -> None:
    """All at once; scripts stay."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.flushall()
        for name, (content, left_ms) in picture.items():
            pipe.restore(name, left_ms, content)
        await pipe.execute()
